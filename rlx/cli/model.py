"""rlx model: how well the learned model of a run foresees episodes that it was not fitted to."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlx.cli.complete import complete_checkpoints, complete_runs
from rlx.cli.options import Trust, echo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console

    from rlx.config.schema import RunConfig
    from rlx.evaluation.model_error import ModelError
    from rlx.models.prediction import PredictsObservations

MODEL_STREAM = [0xF0CE5]
"""The episodes of `rlx model` are the same for every run, and none of them was trained on or chose a checkpoint."""
_POLICIES = ("plan", "random")
_MOST_STARTS = 500
_SAMPLES = 200
"""Samples of what may come from each start, at least."""
_TOGETHER = 32
"""Starts that are followed at once, which bounds the memory."""
_MOST_ROWS = 20


def model(
    run: Annotated[str, typer.Argument(help="Name or path of a run, or latest.", autocompletion=complete_runs)] = "latest",
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to play and to predict.")] = 5,
    checkpoint: Annotated[str, typer.Option(help="best, latest, or the env steps of one.", autocompletion=complete_checkpoints)] = "latest",
    policy: Annotated[str, typer.Option(help="Who acts: plan (the run, as in its evaluations) or random.")] = "plan",
    horizon: Annotated[int | None, typer.Option(min=1, help="Steps to look ahead. (default: the planner's horizon)")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Draws other episodes than the usual ones.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the figure here: .png, .svg, .pdf. (default: plots/ in the run)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    trust: Trust = False,
) -> None:
    """Measure a learned model on new episodes: its error k steps ahead, its intervals, and whether its doubts are warranted.

    Examples:

      rlx model

      rlx model pole --policy random --horizon 30

      rlx model pole --checkpoint best --json | jq .spearman
    """
    from rlx.config.compose import runs_directory
    from rlx.config.overrides import check_choice
    from rlx.errors import ConfigError
    from rlx.evaluation.loading import choose_checkpoint, load_policy
    from rlx.render import figures
    from rlx.store.runs import RunDir

    check_choice("--policy", policy, _POLICIES)
    if out is not None and out.suffix not in figures.FORMATS:
        raise ConfigError(f"--out {out}: expected an ending of {', '.join(figures.FORMATS)}")
    opened = RunDir.open(runs_directory(), run)
    config = opened.config(trust=trust)
    if not config.algo.plans_with_model:
        raise ConfigError(
            f"{opened.reference} is algo={config.algo.name}, which learns no model that predicts observations; rlx model measures runs "
            f"such as those of algo=pets (rlx train algo=pets env=pendulum), and rlx eval {opened.reference} evaluates this one"
        )
    chosen = choose_checkpoint(opened, checkpoint)

    from rlx.build import env_factory
    from rlx.evaluation.episodes import MAX_PARALLEL
    from rlx.rng import isolated_rng

    env = env_factory(config)(min(episodes, MAX_PARALLEL))
    algo: Any = load_policy(config, chosen, env)
    if not (algo.obs_scale > 0.0).any():
        raise ConfigError(f"{opened.reference} at {chosen.env_steps:,} env steps has not fitted its model yet, which it does from "
                          f"algo.initial_steps={config.algo.initial_steps}; choose a later --checkpoint, or rlx resume it")  # fmt: skip
    steps = horizon if horizon is not None else config.algo.horizon
    with isolated_rng(seed, chosen.env_steps):
        played = _play(env, algo, config, episodes, policy, seed)
        judged = _judge(algo, played, steps)
    env.close()
    path = out or opened.path / "plots" / ("model.png" if policy == "plan" else f"model-{policy}.png")
    title = f"{opened.name} at {chosen.env_steps:,} env steps"
    figures.save(figures.draw_model_error(judged, title=f"{title}, {_episodes(episodes)}, acting: {policy}"), path, inside=out is None)
    if as_json:
        about = {"run": opened.name, "env_steps": chosen.env_steps, "policy": policy, "episodes": episodes,
                 "eval_env_steps": sum(len(action) for _, action in played), "horizon": steps}  # fmt: skip
        echo(json.dumps(about | _as_json(judged) | {"figure": str(path)}))
        return
    _print(judged, f"{title}, {_episodes(episodes)} of {config.env.id}, acting: {policy}", path)


def _episodes(number: int) -> str:
    return f"{number} new episode{'s' if number > 1 else ''}"


def _play(
    env: Any, algo: PredictsObservations, config: RunConfig, episodes: int, policy: str, seed: int
) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Observations [L + 1, D] and actions [L, A] of new episodes."""
    import numpy as np

    from rlx.evaluation.episodes import episode_seeds, record_episodes
    from rlx.evaluation.evaluator import RandomPolicy

    seeds = episode_seeds(episodes, stream=[*MODEL_STREAM, seed])
    found = record_episodes(env, algo if policy == "plan" else RandomPolicy(env.single_action_space, seed=seed % 2**32), seeds)
    return [(np.stack(e.obs).reshape(len(e.obs), -1), np.stack(e.action)) for e in found]


def _judge(algo: PredictsObservations, played: list[tuple[NDArray[Any], NDArray[Any]]], horizon: int) -> ModelError:
    """Follow the model from many places in the episodes, under the actions that were taken there.

    Raises:
        ConfigError: if no episode is as long as the look-ahead.
    """
    import numpy as np
    import torch

    from rlx.errors import ConfigError
    from rlx.evaluation.model_error import judge, predictive_rank, windows

    found = windows(played, horizon, _MOST_STARTS)
    if found is None:
        longest = max(len(action) for _, action in played)
        raise ConfigError(f"--horizon {horizon}: the longest of the episodes lasts {longest} steps; expected 1 to {longest}, "
                          f"e.g. --horizon {max(1, longest // 2)}")  # fmt: skip
    obs, action = found
    means, ranks, doubts = [], [], []
    particles = -(-_SAMPLES // algo.num_members)
    for begin in range(0, obs.shape[1], _TOGETHER):
        part = slice(begin, begin + _TOGETHER)
        first, actions = (torch.from_numpy(x.astype(np.float32)).to(algo.device) for x in (obs[0, part], action[:, part]))
        mean, samples, disagreement = (x.cpu().numpy() for x in algo.predict_observations(first, actions, particles=particles))
        means.append(mean)
        ranks.append(np.stack([predictive_rank(s, o) for s, o in zip(samples, obs[1:, part], strict=True)]))
        doubts.append(disagreement)
    mean, rank, disagreement = (np.concatenate(x, axis=1).astype(np.float64) for x in (means, ranks, doubts))
    return judge(obs.astype(np.float64), mean, rank, disagreement, algo.obs_scale.cpu().numpy().astype(np.float64))


def _as_json(judged: ModelError) -> dict[str, Any]:
    """Everything that was measured; what JSON has no number for is null."""
    from rlx.evaluation.model_error import LEVELS

    def finite(values: np.ndarray) -> Any:
        return [finite(v) for v in values] if values.ndim else (float(values) if math.isfinite(values) else None)

    within = {f"coverage_{100 * level:.0f}": finite(judged.coverage(level)) for level in (0.5, 0.9)}
    return {
        "starts": len(judged.disagreement),
        "features": judged.features,
        "k_step_error": finite(judged.error),
        "no_change_error": finite(judged.no_change),
        "feature_error": finite(judged.error_by_feature),
        **within,
        "calibration": [{"nominal": level, "observed": float(judged.coverage(level).mean())} for level in LEVELS],
        "disagreement": float(judged.disagreement.mean()) if math.isfinite(judged.disagreement.mean()) else None,
        "spearman": judged.spearman if math.isfinite(judged.spearman) else None,
    }


def _print(judged: ModelError, title: str, path: Path) -> None:
    from rlx.render.tables import terminal
    from rlx.render.terminal_figures import print_drawing

    console = terminal()
    console.print(title, soft_wrap=True)
    console.print(f"error, in standard deviations of the observations, from {len(judged.disagreement)} starts", style="dim", soft_wrap=True)
    ahead = range(1, len(judged.error) + 1)
    curves = [list(zip(map(float, ahead), y.tolist(), strict=True)) for y in (judged.error, judged.no_change)]
    if len(ahead) > 1:
        print_drawing(console, curves, ["the model", "predicting no change"], "steps ahead")
    _print_tables(console, judged)
    rho = judged.spearman
    said = f"{rho:.2f}" if math.isfinite(rho) else "–"
    console.print(f"disagreement against error: Spearman {said} over the starts; 1 is a model that knows what it does not know, 0 one that "
                  "has no idea", soft_wrap=True)  # fmt: skip
    console.print(str(path), soft_wrap=True)


def _print_tables(console: Console, judged: ModelError) -> None:
    """By steps ahead and by feature; thinned where there are many."""
    from rlx.render.tables import make_table

    half, most = judged.coverage(0.5), judged.coverage(0.9)
    table = make_table("steps ahead", "error", "no change", "in 50 %", "in 90 %")
    for k in _some(len(judged.error)):
        table.add_row(str(k + 1), *map(_number, (judged.error[k], judged.no_change[k])), f"{half[k].mean():.2f}", f"{most[k].mean():.2f}")
    console.print(table)
    console.print()
    table = make_table("feature", "error", "in 50 %", "in 90 %")
    for d in _some(len(judged.features)):
        table.add_row(str(judged.features[d]), _number(judged.error_by_feature[d]), f"{half[:, d].mean():.2f}", f"{most[:, d].mean():.2f}")
    console.print(table)
    console.print("in 50 %, in 90 %: share of the observations within the model's central interval, expected 0.50 and 0.90; less "
                  "is a model that is too sure of itself", style="dim", soft_wrap=True)  # fmt: skip
    if max(len(judged.error), len(judged.features)) > _MOST_ROWS:
        console.print("not all rows are shown: --json has them", style="dim", soft_wrap=True)


def _some(count: int) -> list[int]:
    """0 to count - 1 with both ends, at most so many that a table can be read."""
    shown = min(count, _MOST_ROWS)
    return sorted({round(i * (count - 1) / max(1, shown - 1)) for i in range(shown)})


def _number(value: float) -> str:
    from rlx.render.numbers import number

    return number(value) if math.isfinite(value) else "–"
