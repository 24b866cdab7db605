"""The evaluation of a learned model in the terminal: a curve of its error, and tables by steps ahead and by feature."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rlx.render.numbers import number
from rlx.render.tables import make_table
from rlx.render.terminal_figures import print_drawing

if TYPE_CHECKING:
    from rich.console import Console

    from rlx.evaluation.model_error import ModelError
    from rlx.evaluation.model_quality import ModelEvaluation

_MAX_ROWS = 20


def print_model_evaluation(console: Console, evaluation: ModelEvaluation) -> None:
    """Print everything but the path of the figure."""
    error = evaluation.error
    console.print(f"{evaluation.title} of {evaluation.env}, acting: {evaluation.policy}", soft_wrap=True)
    console.print(f"error, in standard deviations of the observations, from {len(error.disagreement)} starts", style="dim", soft_wrap=True)
    ahead = range(1, len(error.error) + 1)
    curves = [list(zip(map(float, ahead), y.tolist(), strict=True)) for y in (error.error, error.no_change)]
    if len(ahead) > 1:
        print_drawing(console, curves, ["the model", "predicting no change"], "steps ahead")
    _print_tables(console, error)
    rho = f"{error.spearman:.2f}" if math.isfinite(error.spearman) else "–"
    console.print(f"disagreement against error: Spearman {rho} over the starts; 1 where more disagreement always means more error, 0 "
                  "where it does not predict the error", soft_wrap=True)  # fmt: skip


def _print_tables(console: Console, error: ModelError) -> None:
    half, most = error.coverage(0.5), error.coverage(0.9)
    table = make_table("steps ahead", "error", "no change", "in 50 %", "in 90 %")
    for k in _some(len(error.error)):
        table.add_row(str(k + 1), *map(_number, (error.error[k], error.no_change[k])), f"{half[k].mean():.2f}", f"{most[k].mean():.2f}")
    console.print(table)
    console.print()
    table = make_table("feature", "error", "in 50 %", "in 90 %")
    for d in _some(len(error.features)):
        table.add_row(str(error.features[d]), _number(error.error_by_feature[d]), f"{half[:, d].mean():.2f}", f"{most[:, d].mean():.2f}")
    console.print(table)
    console.print("in 50 %, in 90 %: share of the observations within the model's central interval, expected 0.50 and 0.90; less means "
                  "that its intervals are too narrow", style="dim", soft_wrap=True)  # fmt: skip
    if max(len(error.error), len(error.features)) > _MAX_ROWS:
        console.print("not all rows are shown: --json has them", style="dim", soft_wrap=True)


def _some(count: int) -> list[int]:
    """0 to count - 1 with both ends, evenly thinned to _MAX_ROWS at most."""
    shown = min(count, _MAX_ROWS)
    return sorted({round(i * (count - 1) / max(1, shown - 1)) for i in range(shown)})


def _number(value: float) -> str:
    return number(value) if math.isfinite(value) else "–"
