"""The two measures of a policy's return. A policy may have twice the return in one than in the other, so that no table mixes them.

The training return includes what exploration costs, and lags behind the policy; evaluations play the most likely actions with the
policy of one moment.
"""

from __future__ import annotations

from rlx.config.choices import check_choice
from rlx.errors import ConfigError
from rlx.store.record import iterate_metrics
from rlx.store.runs import RunDir

EVALUATION, TRAINING = "eval/return_mean", "episode/return_mean_100"
MEASURES = {"evaluation": EVALUATION, "training": TRAINING}
"""The metric of each measure, by the name that users give it."""
_IN_WORDS = {"eval": "evaluation, most likely actions", "episode": "training, sampled actions"}


def metric_of(measure: str | None, metric: str | None) -> str | None:
    """The metric that --measure or --metric names; None if neither is given.

    Raises:
        ConfigError: if both are given, or there is no such measure.
    """
    if measure is None:
        return metric
    if metric is not None:
        raise ConfigError(f"--measure {measure} is short for --metric {MEASURES.get(measure, '…')}: leave one of them out")
    check_choice("--measure", measure, tuple(MEASURES))
    return MEASURES[measure]


def in_words(metric: str) -> str:
    """The name of a metric and, for returns, which measure it is: eval/return_mean (evaluation, most likely actions)."""
    group, _, name = metric.partition("/")
    words = _IN_WORDS.get(group) if name.startswith("return") else None
    return f"{metric} ({words})" if words else metric


def training_return(run: RunDir, env_steps: int) -> float | None:
    """The mean return of the last 100 training episodes that the record has at this many env steps; None if it has none."""
    found = None
    for line in iterate_metrics(run.metrics_path):
        if line["env_steps"] > env_steps:
            break
        found = line.get(TRAINING, found)
    return float(found) if isinstance(found, int | float) else None
