"""Evaluating a saved run: fixed episodes in environments of its own, and what they say of the policy."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from rlx.build import env_factory, known_best
from rlx.checkpoint import Checkpoint
from rlx.collect import Episode
from rlx.config.schema import EnvConfig, RunConfig
from rlx.config.setting import all_fields, require_whole, unused
from rlx.envs.games.opponents import parse_opponent
from rlx.envs.registry import GameEnvFactory
from rlx.errors import ConfigError, SyncError
from rlx.evaluation.capabilities import ablated, check_ablation
from rlx.evaluation.episodes import MAX_PARALLEL, episode_seeds, never, run_episodes
from rlx.evaluation.evaluator import mean_measures, optimal_moves, summarize
from rlx.evaluation.loading import choose_checkpoint, load_policy
from rlx.rng import seed_everything
from rlx.stats.intervals import share_interval
from rlx.store.evaluations import keep_evaluation
from rlx.store.measures import training_return
from rlx.store.runs import RunDir
from rlx.types import Mode, Policy, VectorEnv
from rlx.uploads import upload_videos

EVAL_STREAM = [0x5EED]
"""Seeds the episodes of `rlx eval`: the same for every run, and none of those that chose the best checkpoint."""

SIMULATIONS = "algo.search.num_eval_simulations"
"""The setting that the argument `simulations` changes."""

Ends = tuple[float, float] | None
"""A 95 % interval; None where there can be none."""


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Episodes of a policy and their summary; returns are undiscounted."""

    run: str
    env: str
    """The environment's id."""
    env_steps: int
    """Of the checkpoint."""
    stochastic: bool
    """Whether actions were sampled as in training."""
    episodes: tuple[Episode, ...]
    max_steps: int
    """Length at which episodes were cut; 0 for no limit."""
    return_mean: float
    return_std: float
    return_ci: Ends
    """Of the mean. None for fewer than five episodes, or returns that are all equal."""
    length_mean: float
    solve_rate: float | None = None
    """None where the environment does not say what is solved."""
    opponent: str | None = None
    """Of a two-player game."""
    optimal_moves: float | None = None
    """Share of the known positions of a solved game in which the policy chooses an optimal move."""
    ablation: Mapping[str, str] = field(default_factory=dict)
    """How the policy was changed."""
    env_settings: tuple[str, ...] = ()
    """How the environment was changed, each `name=value`."""
    videos: tuple[Path, ...] = ()
    training_return: float | None = None
    """Mean return of the last 100 training episodes before the checkpoint: another measure. None where the policy or the environment was
    changed, and in games."""

    @property
    def mode(self) -> str:
        return "stochastic" if self.stochastic else "deterministic"

    @property
    def return_min(self) -> float:
        return min(e.return_ for e in self.episodes)

    @property
    def return_max(self) -> float:
        return max(e.return_ for e in self.episodes)

    @property
    def num_cut(self) -> int:
        """Episodes that were cut at `max_steps`, and count with the return they had."""
        return sum(e.cut for e in self.episodes)

    @property
    def measures(self) -> dict[str, float]:
        """Means of what the environment measures beside the return, such as the distance on a course."""
        return mean_measures(self.episodes)

    @property
    def solve_rate_ci(self) -> Ends:
        return None if self.solve_rate is None else share_interval(self.solve_rate, len(self.episodes))

    @property
    def model_calls_mean(self) -> float | None:
        """Steps of a model for each episode; None where the agent asks for none."""
        calls = self._model_calls
        return sum(calls) / len(self.episodes) if calls else None

    @property
    def model_calls_per_solved(self) -> float | None:
        """Steps of a model in all episodes, for each solved one; None where none was."""
        solved = sum(bool(e.solved) for e in self.episodes)
        return sum(self._model_calls) / solved if self._model_calls and solved else None

    @property
    def _model_calls(self) -> list[int]:
        return [e.model_calls for e in self.episodes if e.model_calls is not None]

    @property
    def score(self) -> float:
        """Of a game: 1 for a win, 0.5 for a draw, 0 for a loss, on average."""
        return (1.0 + self.return_mean) / 2.0

    @property
    def score_ci(self) -> Ends:
        return None if self.return_ci is None else ((1.0 + self.return_ci[0]) / 2.0, (1.0 + self.return_ci[1]) / 2.0)

    @property
    def outcomes(self) -> tuple[int, int, int]:
        """Wins, draws and losses of a game."""
        returns = [e.return_ for e in self.episodes]
        return sum(r > 0 for r in returns), sum(r == 0 for r in returns), sum(r < 0 for r in returns)

    def as_dict(self) -> dict[str, Any]:
        """The summary as plain data, without the episodes; what does not apply is left out."""
        out: dict[str, Any] = {
            "run": self.run, "episodes": len(self.episodes), "mode": self.mode,
            "return_mean": self.return_mean, "return_std": self.return_std, "return_ci": list(self.return_ci or (None, None)),
            "return_min": self.return_min, "return_max": self.return_max, "length_mean": self.length_mean, "env_steps": self.env_steps,
            "eval_env_steps": sum(e.length for e in self.episodes), **self.ablation,
        }  # fmt: skip
        if self.training_return is not None:
            out["training_return_mean_100"] = self.training_return
        if self.env_settings:
            out["env"] = list(self.env_settings)
        if self.solve_rate_ci is not None:
            out |= {"solve_rate": self.solve_rate, "solve_rate_ci": list(self.solve_rate_ci)}
        if self.model_calls_mean is not None:
            out["model_calls_mean"] = self.model_calls_mean
            if self.solve_rate is not None:
                out["model_calls_per_solved"] = self.model_calls_per_solved
        out |= {f"{name}_mean": value for name, value in self.measures.items()}
        if self.opponent is not None:
            wins, draws, losses = self.outcomes
            out |= {"opponent": self.opponent, "score": self.score, "score_ci": list(self.score_ci or (None, None)), "wins": wins,
                    "draws": draws, "losses": losses}  # fmt: skip
        if self.optimal_moves is not None:
            out["optimal_moves"] = self.optimal_moves
        if self.videos:
            out["videos"] = list(map(str, self.videos))
        return out


def evaluate_run(
    run: RunDir,
    *,
    checkpoint: str = "latest",
    episodes: int = 100,
    stochastic: bool = False,
    seed: int = 0,
    opponent: str | None = None,
    simulations: int | None = None,
    ablation: Mapping[str, str] | None = None,
    env_settings: Sequence[str] = (),
    videos: int = 0,
    trust: bool = False,
    should_stop: Callable[[], bool] = never,
    progress: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = warnings.warn,
) -> EvaluationResult:
    """Evaluate a run, in its environment or in a variant of it; arguments and errors as of `evaluate_settings`."""
    return next(
        evaluate_settings(
            run, [env_settings], checkpoint=checkpoint, episodes=episodes, stochastic=stochastic, seed=seed, opponent=opponent,
            simulations=simulations, ablation=ablation, videos=videos, trust=trust, should_stop=should_stop, progress=progress, warn=warn,
        )
    )  # fmt: skip


def evaluate_settings(
    run: RunDir,
    settings: Sequence[Sequence[str]],
    *,
    checkpoint: str = "latest",
    episodes: int = 100,
    stochastic: bool = False,
    seed: int = 0,
    opponent: str | None = None,
    simulations: int | None = None,
    ablation: Mapping[str, str] | None = None,
    videos: int = 0,
    trust: bool = False,
    should_stop: Callable[[], bool] = never,
    progress: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = warnings.warn,
) -> Iterator[EvaluationResult]:
    """Evaluate a run in its environment, and in variants of it: frozen normalisers, fixed episodes, common random numbers.

    Everything is checked before the first episode. Results are kept in the run's evaluations.jsonl.

    Args:
        run: which.
        settings: for each evaluation the environment's constructor arguments that are changed, each `name=value`; [()] changes none.
        checkpoint: `best`, `latest`, or the env steps of one.
        episodes: number of episodes of each evaluation.
        stochastic: sample actions as in training, instead of taking the most likely one.
        seed: draws other episodes than the usual ones.
        opponent: of a two-player game; by default that of the run.
        simulations: of each tree search; by default those of the run's evaluations.
        ablation: choices of `Ablatable.ablate`.
        videos: how many of the episodes are also recorded, in the run's directory, and in its W&B run if it has one online.
        trust: run the code that somebody else's run names.
        should_stop: is asked before every env step.
        progress: is told how far a recording is.
        warn: is called with a message where a damaged checkpoint is passed over.

    Raises:
        ConfigError: if an argument does not fit the run.
        CheckpointError: if there is no such checkpoint.
        EnvError: if an environment fails.
        Stopped: when `should_stop` returns True.
    """
    require_whole("episodes", episodes, at_least=1, at_most=2**31 - 1)
    require_whole("seed", seed, at_least=0, at_most=2**63 - 1)
    require_whole("videos", videos, at_least=0, at_most=episodes)
    config, ablation = run.config(trust=trust), dict(ablation or {})
    if opponent is not None and not config.env.is_game:
        raise ConfigError(f"--opponent {opponent}: env={config.env.id} is no game; leave it out")
    check_ablation(ablation, algo=config.algo.name, run=run.reference)
    if simulations is not None:
        _check_simulations(config, simulations, ablation)
        config.algo.search.num_eval_simulations = simulations
    if videos and config.env.is_game:
        raise ConfigError(f"--video: games have no pictures; rlx play {run.reference} shows them")
    if videos and len(settings) > 1:
        raise ConfigError("--video: one value of every --env at a time; leave the others out")
    if opponent is not None:
        parse_opponent(opponent, "--opponent")(GameEnvFactory(config.env.id, config.env.kwargs).game, 0)
        config.env.opponent = opponent
    chosen = choose_checkpoint(run, checkpoint, warn=warn)
    searched = {} if simulations is None else {"simulations": simulations}
    variants = [replace(config, env=changed_env(config.env, changes)) for changes in settings]
    for changes, variant in zip(settings, variants, strict=True):
        result = _evaluate(run, config, variant, chosen, changes, episodes=episodes, stochastic=stochastic, seed=seed, ablation=ablation,
                           videos=videos, should_stop=should_stop, progress=progress)  # fmt: skip
        if problem := keep_evaluation(run.path, {**result.as_dict(), "seed": seed} | searched):
            warn(problem)
        try:
            upload_videos(run, result.videos)
        except SyncError as error:  # they are in the run's directory
            warn(str(error))
        yield result


def _evaluate(
    run: RunDir, trained: RunConfig, config: RunConfig, checkpoint: Checkpoint, changes: Sequence[str], *, episodes: int,
    stochastic: bool, seed: int, ablation: Mapping[str, str], videos: int, should_stop: Callable[[], bool],
    progress: Callable[[str], None],
) -> EvaluationResult:  # fmt: skip
    """Play episodes under `config`, which is the run's own, `trained`, but for the environment's `changes`."""
    make_env = env_factory(config)
    env = make_env(min(episodes, MAX_PARALLEL))
    if changes:
        check_same_spaces(run, env_factory(trained)(1), env, changes)
    mode: Mode = "train" if stochastic else "eval"
    algo = ablated(load_policy(config, checkpoint, env), ablation, mode=mode)
    try:
        played = play_fixed_episodes(config, algo, env, episodes, stochastic=stochastic, seed=seed, should_stop=should_stop)
    finally:
        env.close()
    summary = summarize(played, game=config.env.is_game)
    known = known_best(make_env)
    recorded: list[Path] = []
    if videos:
        from rlx.evaluation.video import record

        recorded = record(config, algo, fixed_seeds(config, videos, seed=seed), run.path / "videos", prefix=f"{checkpoint.env_steps}",
                          mode=mode, should_stop=should_stop, progress=progress)  # fmt: skip
    return EvaluationResult(
        run=run.name, env=config.env.id, env_steps=checkpoint.env_steps, stochastic=stochastic, episodes=tuple(played),
        max_steps=config.loop.eval_max_steps,
        return_mean=summary["eval/return_mean"], return_std=summary["eval/return_std"],
        return_ci=(summary["eval/return_ci_low"], summary["eval/return_ci_high"]) if "eval/return_ci_low" in summary else None,
        length_mean=summary["eval/length_mean"], solve_rate=summary.get("eval/solve_rate"),
        opponent=config.env.opponent if config.env.is_game else None,
        optimal_moves=None if known is None else optimal_moves(algo, *known), ablation=ablation, env_settings=tuple(changes),
        videos=tuple(recorded),
        training_return=None if changes or ablation or config.env.is_game else training_return(run, checkpoint.env_steps),
    )  # fmt: skip


def fixed_seeds(config: RunConfig, episodes: int, *, seed: int) -> NDArray[np.int64]:
    """Of the episodes of `rlx eval`; the first n are the same whatever their number is."""
    return episode_seeds(episodes, stream=[*EVAL_STREAM, seed], paired=config.env.is_game)


def play_fixed_episodes(
    config: RunConfig, algo: Policy, env: VectorEnv, episodes: int, *, stochastic: bool, seed: int, should_stop: Callable[[], bool]
) -> list[Episode]:
    """The episodes of `rlx eval` under freshly seeded global generators; raises as `run_episodes`."""
    seed_everything(seed)
    return run_episodes(env, algo, fixed_seeds(config, episodes, seed=seed), mode="train" if stochastic else "eval",
                        max_steps=config.loop.eval_max_steps, should_stop=should_stop)  # fmt: skip


def changed_env(env: EnvConfig, changes: Sequence[str]) -> EnvConfig:
    """An environment's configuration with other constructor arguments, each written `name=value`.

    Raises:
        ConfigError: if one is not written so, or the environment declares no such argument.
    """
    kwargs = dict(env.kwargs)
    for change in changes:
        name, equals, value = change.removeprefix("env.").removeprefix("kwargs.").partition("=")
        if not (equals and name and value):
            raise ConfigError(f"--env {change}: expected name=value, e.g. --env max_episode_steps=120")
        kwargs[name] = yaml.safe_load(value)
    return replace(env, kwargs=kwargs)


def _check_simulations(config: RunConfig, simulations: int, ablation: Mapping[str, str]) -> None:
    """Raise a ConfigError where the number of simulations has no effect on evaluations."""
    if SIMULATIONS not in {key for key, _, _ in all_fields(config, "")}:
        raise ConfigError(f"--simulations {simulations}: algo={config.algo.name} searches no tree; leave it out")
    changed = copy.deepcopy(config)
    for name, choice in ablation.items():
        setattr(changed.algo, name, choice)
    if needed := unused(changed).get(SIMULATIONS):
        option = needed.removeprefix("algo.").replace("=", " ")
        raise ConfigError(f"--simulations {simulations} has no effect unless {needed}; add --{option}, or leave it out")


def check_same_spaces(run: RunDir, before: VectorEnv, after: VectorEnv, changes: Sequence[str]) -> None:
    """Raise a ConfigError if observations or actions are not those that a run was trained on."""
    old, new = ((e.single_observation_space, e.single_action_space) for e in (before, after))
    before.close()
    if old != new:
        raise ConfigError(
            f"--env {' --env '.join(changes)}: {run.reference} acts on {old[0]} with {old[1]}, but this is {new[0]} with {new[1]}"
        )
