"""Evaluating a saved run with one thing changed at a time: its returns under each change, against those without any."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.build import env_factory
from rlx.collect import Episode
from rlx.config.schema import RunConfig
from rlx.config.setting import require_whole
from rlx.envs.mujoco.course_settings import COURSES
from rlx.errors import ConfigError, EnvError
from rlx.evaluation.disturbances import Observer
from rlx.evaluation.episodes import MAX_PARALLEL, never
from rlx.evaluation.evaluate import Ends, changed_env, check_same_spaces, play_fixed_episodes
from rlx.evaluation.loading import choose_checkpoint, load_policy
from rlx.evaluation.probe_kinds import Row, chosen
from rlx.evaluation.probes import Inapplicable, Subject, changed, flattened, refuse_games
from rlx.stats.intervals import mean_interval
from rlx.store.evaluations import keep_probes
from rlx.store.runs import RunDir
from rlx.types import Algorithm

NOMINAL = "nominal"


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """The fixed episodes under one change; returns are undiscounted."""

    probe: str
    """nominal where nothing is changed."""
    value: float | str | None
    label: str
    episodes: tuple[Episode, ...]
    nominal: tuple[Episode, ...]
    """The same episodes without the change."""

    @cached_property
    def returns(self) -> NDArray[np.float64]:
        return np.array([episode.return_ for episode in self.episodes])

    @cached_property
    def _nominal_returns(self) -> NDArray[np.float64]:
        return np.array([episode.return_ for episode in self.nominal])

    @property
    def return_mean(self) -> float:
        return float(self.returns.mean())

    @property
    def return_std(self) -> float:
        return float(self.returns.std(ddof=1)) if len(self.returns) > 1 else 0.0

    @cached_property
    def return_ci(self) -> Ends:
        """Of the mean. None for fewer than five episodes, or returns that are all equal."""
        return _interval(self.returns)

    @property
    def length_mean(self) -> float:
        return float(np.mean([episode.length for episode in self.episodes]))

    @property
    def difference(self) -> float:
        """Of the mean return from the nominal one."""
        return float((self.returns - self._nominal_returns).mean())

    @cached_property
    def difference_ci(self) -> Ends:
        """Of the mean of the episodes' differences from themselves without the change."""
        return _interval(self.returns - self._nominal_returns)

    @property
    def relative(self) -> float | None:
        """The mean return in units of the nominal one; None where that is not positive."""
        nominal = float(self._nominal_returns.mean())
        return self.return_mean / nominal if nominal > 0.0 else None

    def as_dict(self) -> dict[str, Any]:
        return {
            "probe": self.probe, "value": self.value, "return_mean": self.return_mean, "return_std": self.return_std,
            "return_ci": list(self.return_ci or (None, None)), "length_mean": self.length_mean, "difference": self.difference,
            "difference_ci": list(self.difference_ci or (None, None)), "relative": self.relative,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """A run under every change, in the order in which they were played."""

    run: str
    env: str
    """The environment's id."""
    env_steps: int
    """Of the checkpoint."""
    stochastic: bool
    seed: int
    nominal: ProbeRow
    rows: tuple[ProbeRow, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    """Labels of changes that could not be made, each with the reason."""
    env_settings: tuple[str, ...] = ()
    """How the environment of all rows differs from that of training, each `name=value`."""

    @property
    def mode(self) -> str:
        return "stochastic" if self.stochastic else "deterministic"

    @cached_property
    def overall(self) -> ProbeRow:
        """Each episode's mean over all changes."""
        returns = np.mean([row.returns for row in self.rows], axis=0)
        lengths = np.mean([[episode.length for episode in row.episodes] for row in self.rows], axis=0)
        episodes = tuple(Episode(float(r), round(float(n))) for r, n in zip(returns, lengths, strict=True))
        return ProbeRow(probe="mean", value=None, label="mean of the rows", episodes=episodes, nominal=self.nominal.episodes)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the single episodes as plain data."""
        return {
            "run": self.run, "env": self.env, "env_steps": self.env_steps, "episodes": len(self.nominal.episodes), "mode": self.mode,
            "seed": self.seed, **({"env_settings": list(self.env_settings)} if self.env_settings else {}),
            "rows": [row.as_dict() for row in (self.nominal, *self.rows)], "mean": self.overall.as_dict(),
            "left_out": dict(self.left_out),
        }  # fmt: skip


def probe_run(
    run: RunDir,
    words: Sequence[str] = (),
    *,
    checkpoint: str = "latest",
    episodes: int = 20,
    stochastic: bool = False,
    seed: int = 0,
    env_settings: Sequence[str] = (),
    flat: bool = False,
    trust: bool = False,
    should_stop: Callable[[], bool] = never,
    progress: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = warnings.warn,
) -> ProbeResult:
    """Play the fixed episodes of `rlx eval` unchanged, and once more under each change, in new environments each time.

    Args:
        run: which.
        words: the changes, as of `probe_kinds.chosen`; of none, those of the panel that the environment allows.
        checkpoint: `best`, `latest`, or the env steps of one.
        episodes: number of episodes under each change.
        stochastic: sample actions as in training, instead of taking the most likely one.
        seed: draws other episodes than the usual ones.
        env_settings: arguments of the environment's constructor that are changed in all rows, each `name=value`.
        flat: play on flat ground in all rows, where the environment is a course with obstacles.
        trust: run the code that somebody else's run names.
        should_stop: is asked before every env step.
        progress: is told what is played.
        warn: is called with a message where a damaged checkpoint is passed over, or the result cannot be kept.

    Raises:
        ConfigError: if an argument does not fit the run, or a change that was named cannot be made.
        CheckpointError: if there is no such checkpoint.
        EnvError: if the environment fails without any change.
        Stopped: when `should_stop` returns True.
    """
    require_whole("episodes", episodes, at_least=1, at_most=2**31 - 1)
    require_whole("seed", seed, at_least=0, at_most=2**63 - 1)
    rows, config = chosen(words), run.config(trust=trust)
    refuse_games(config, run.reference)
    config = replace(config, env=changed_env(config.env, env_settings))
    if flat:
        config = flattened(config)
        env_settings = [*env_settings, "easiest=0", "hardest=0"] if config.env.id in COURSES else env_settings
    rows, left_out = _applicable(rows, config, named=bool(words), run=run.reference)
    saved = choose_checkpoint(run, checkpoint, warn=warn)

    def play(env: Any, algo: Algorithm) -> tuple[Episode, ...]:
        return tuple(play_fixed_episodes(config, algo, env, episodes, stochastic=stochastic, seed=seed, should_stop=should_stop))

    progress(NOMINAL)
    observer = Observer(env_factory(config)(min(episodes, MAX_PARALLEL)))
    try:
        if env_settings:
            check_same_spaces(run, env_factory(run.config(trust=trust))(1), observer.env, env_settings)
        algo = load_policy(config, saved, observer.env)
        unchanged = play(observer, algo)
    finally:
        observer.close()
    subject = Subject(config=config, num_envs=observer.num_envs, scale=observer.scale())
    played = []
    for i, row in enumerate(rows):
        progress(f"{row.label} ({i + 1} of {len(rows)})")
        try:
            with changed(row, subject) as env:
                found = play(env, algo)
        except EnvError as error:  # physics that the simulator cannot compute any more
            left_out.append((row.label, str(error)))
            continue
        played.append(ProbeRow(probe=row.probe.name, value=row.value, label=row.label, episodes=found, nominal=unchanged))
    if not played:
        raise EnvError(f"{run.reference}: no change could be played; {'; '.join(f'{label}: {why}' for label, why in left_out)}")
    result = ProbeResult(
        run=run.name, env=config.env.id, env_steps=saved.env_steps, stochastic=stochastic, seed=seed, rows=tuple(played),
        nominal=ProbeRow(probe=NOMINAL, value=None, label=NOMINAL, episodes=unchanged, nominal=unchanged),
        left_out=tuple(left_out), env_settings=tuple(env_settings),
    )  # fmt: skip
    if problem := keep_probes(run.path, result.as_dict()):
        warn(problem)
    return result


def _applicable(rows: list[Row], config: RunConfig, *, named: bool, run: str) -> tuple[list[Row], list[tuple[str, str]]]:
    """The changes that can be made, and the others with the reasons; found in one environment, before anything is played.

    Raises:
        ConfigError: if one that was named cannot be made, or none can.
    """
    kept, left_out = list[Row](), dict[str, tuple[str, str]]()
    subject = Subject(config=config, num_envs=1, scale=())
    for row in rows:
        key = row.label if row.probe.choices else row.probe.name
        if key in left_out:
            continue
        try:
            with changed(row, subject):
                kept.append(row)
        except Inapplicable as reason:
            left_out[key] = (key, f"env={config.env.id} {reason}")
    if left_out and (named or not kept):
        name, why = next(iter(left_out.values()))
        those = ", ".join(dict.fromkeys(row.probe.name for row in kept))
        advice = (
            f"of those named, {those} can be" if kept else "rlx probe without --probe plays what can be" if named else "rlx eval plays it"
        )
        raise ConfigError(f"--probe {name}: {why}, so that {run} cannot be probed by it; {advice}")
    return kept, list(left_out.values())


def _interval(values: NDArray[np.float64]) -> Ends:
    low, high = mean_interval([values], resamples=2000)
    return (float(low), float(high)) if np.isfinite(low) else None
