"""The results of evaluations as text: one in sentences, several as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rlx.render.numbers import digits
from rlx.render.tables import make_table

if TYPE_CHECKING:
    from rich.table import Table

    from rlx.evaluation.evaluate import EvaluationResult


def evaluation_lines(result: EvaluationResult) -> Iterator[str]:
    """Everything that was measured in one evaluation, a line for each quantity."""
    mean, std = digits(result.return_mean, result.return_std)
    least, most = digits(result.return_min, result.return_max)
    yield f"return {mean} ± {std}   95 % interval of the mean {_interval(result)}   range {least} to {most}"
    if result.training_return is not None:
        trained = digits(result.training_return)[0]
        yield f"training return {trained}, another measure: the last 100 training episodes, with sampled actions"
    if result.opponent is not None:
        ends = "" if result.score_ci is None else " (95 % interval {:.3f} to {:.3f})".format(*result.score_ci)
        wins, draws, losses = result.outcomes
        yield f"score {result.score:.3f}{ends} against {result.opponent}: {wins} wins, {draws} draws, {losses} losses"
    if result.optimal_moves is not None:
        yield f"optimal moves {100 * result.optimal_moves:.1f} % of the positions that are known"
    if result.solve_rate is not None:
        yield f"solved {100 * result.solve_rate:.1f} %   95 % interval {_solved(result)}"
    yield f"length {digits(result.length_mean)[0]} steps"
    yield from (f"{name.replace('_', ' ')} {digits(value)[0]}" for name, value in result.measures.items())
    if result.model_calls_mean is not None:
        each = result.model_calls_per_solved
        per_solved = f", {each:,.0f} for each that was solved (those of all episodes, over the solved ones)" if each else ""
        yield f"model calls {_few(result.model_calls_mean)} an episode{per_solved}"
    yield from (f"video {path}" for path in result.videos)


def evaluation_table(results: Sequence[EvaluationResult]) -> Table:
    """What was measured under several settings of the environment, a row for each."""
    solves, calls = results[0].solve_rate is not None, results[0].model_calls_mean is not None
    table = make_table("environment", "return", "95 %", *(["solved", "95 %"] if solves else []), "length",
                       *(name.replace("_", " ") for name in results[0].measures),
                       *(["model calls"] if calls else []), *(["per solved"] if calls and solves else []))  # fmt: skip
    for result in results:
        row = [" ".join(result.env_settings), digits(result.return_mean)[0], _interval(result)]
        if result.solve_rate is not None:
            row += [f"{100 * result.solve_rate:.1f} %", f"{_solved(result)}"]
        row += [digits(result.length_mean)[0], *(digits(value)[0] for value in result.measures.values())]
        if result.model_calls_mean is not None:
            row.append(_few(result.model_calls_mean))
            if solves:
                row.append(f"{each:,.0f}" if (each := result.model_calls_per_solved) else "–")
        table.add_row(*row)
    return table


def _interval(result: EvaluationResult) -> str:
    """The interval of the mean return, or why there is none."""
    if result.return_ci is None:
        all_equal = len(result.episodes) > 1 and result.return_min == result.return_max
        return "– (all equal)" if all_equal else "– (fewer than 5 episodes)"
    _, low, high = digits(result.return_mean, *result.return_ci)
    return f"{low} to {high}"


def _solved(result: EvaluationResult) -> str:
    return "{:.1f} to {:.1f} %".format(*(100 * end for end in result.solve_rate_ci or ()))


def _few(calls: float) -> str:
    """A mean number, with decimals where it is small and they matter."""
    return f"{calls:,.0f}" if calls >= 10.0 or calls == round(calls) else f"{calls:.2f}"
