"""rlx watch: an agent at play in a grid world, and what it imagines."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlx.cli.complete import complete_checkpoints, complete_runs
from rlx.cli.options import Trust, echo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rlx.config.schema import RunConfig
    from rlx.envs.grids.gridworld import Grid, GridVectorEnv
    from rlx.evaluation.watching import Moment
    from rlx.render.scene import Scene
    from rlx.store.runs import RunDir

_BOARD_PX, _FRAME_PX = 308, 98
"""Pixels of the longer side of the board and of an imagined frame in a picture, about."""
_LAST_S = 1.0
"""How long a film stands still where an episode has ended."""
_MOST_FRAMES = 500
"""Of a film, which is held in memory, some 2 MB each, twice while it is encoded."""


def watch(
    run: Annotated[str, typer.Argument(help="A run on a grid world.", autocompletion=complete_runs)] = "latest",
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to play; those of rlx eval, in its order.")] = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after so many decisions; with --png, which one to draw.")] = None,
    fps: Annotated[float, typer.Option(min=0.1, max=50.0, help="Decisions a second, in a terminal and in a film.")] = 3.0,
    stochastic: Annotated[
        bool, typer.Option("--stochastic", help="Sample actions as in training, instead of the most likely one.")
    ] = False,
    imagination: Annotated[
        str | None,
        typer.Option(help="Agents that imagine: what to read, as in rlx eval: on, off, shuffled, copy or perfect."),
    ] = None,
    decide: Annotated[
        str | None,
        typer.Option(help="Agents that imagine: what chooses actions, as in rlx eval: network, search or tree."),
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="best, latest, or the env steps of one.", autocompletion=complete_checkpoints)] = "latest",
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Draws other episodes than the usual ones.")] = 0,
    gif: Annotated[Path | None, typer.Option(help="Write the episodes here as a film instead of showing them.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write one decision here as a picture instead: the first, or number --steps.")] = None,
    trust: Trust = False,
) -> None:
    """Watch an agent play sokoban or minipacman, with the rollouts that it imagines of each action and the rewards predicted in them.

    policy is the probability of an action, without what it would be if nothing imagined were read. saliency is how much of the policy
    hangs on an action's rollout: the divergence KL(policy || policy with that rollout's encoding replaced by zeros), as a share of the
    sum over actions.

    Examples:

      rlx watch boxes

      rlx watch boxes --stochastic --episodes 5 --fps 2

      rlx watch boxes --imagination perfect --gif boxes.gif

      rlx watch boxes --png decision.png --steps 8
    """
    from rlx.config.compose import runs_directory
    from rlx.errors import ConfigError
    from rlx.evaluation.capabilities import ablated, check_ablation
    from rlx.evaluation.evaluate import EVAL_STREAM
    from rlx.evaluation.loading import choose_checkpoint, load_policy
    from rlx.store.runs import RunDir

    for option, path, ending in (("--gif", gif, ".gif"), ("--png", png, ".png")):
        if path is not None and path.suffix != ending:
            raise ConfigError(f"{option} {path}: expected an ending of {ending}")
    if gif is not None and png is not None:
        raise ConfigError("--gif and --png: a film or a picture, not both; leave one out")
    if gif is not None:
        _need_imageio()
    opened = RunDir.open(runs_directory(), run)
    config = opened.config(trust=trust)
    env = _board(opened, config)
    ablation = {name: choice for name, choice in (("imagination", imagination), ("decide", decide)) if choice is not None}
    check_ablation(ablation, algo=config.algo.name, run=opened.reference)
    chosen = choose_checkpoint(opened, checkpoint)
    algo: Any = ablated(load_policy(config, chosen, env), ablation, mode="train" if stochastic else "eval")

    from rlx.evaluation.episodes import episode_seeds
    from rlx.evaluation.watching import play
    from rlx.rng import seed_everything

    seed_everything(seed)
    seeds = episode_seeds(episodes, stream=[*EVAL_STREAM, seed])
    moments = play(env, algo, seeds, mode="train" if stochastic else "eval", steps=steps)
    reading = f", decided by {decide}" if decide is not None else ""
    reading += f", imagination {imagination}" if imagination is not None else ""
    title = f"{opened.name} at {chosen.env_steps:,} env steps{reading}"
    depth = config.algo.rollout_depth if config.algo.imagines and (config.algo.has_world or decide) else 0
    if png is not None:
        _save_picture(png, moments, env.rules, title, depth, number=steps or 1)
    elif gif is not None:
        _save_film(gif, moments, env.rules, title, depth, fps=fps)
    else:
        _show(moments, env.rules, title, depth, fps=fps)


def _board(run: RunDir, config: RunConfig) -> GridVectorEnv:
    """One board of the world that a run is on.

    Raises:
        ConfigError: if that is no grid world.
    """
    from rlx.envs.grids.grid_env import make_grid
    from rlx.envs.grids.grid_settings import WORLDS, settings_of
    from rlx.errors import ConfigError

    if config.env.id not in WORLDS:
        instead = f"rlx play {run.reference} shows it" if config.env.is_game else f"rlx eval {run.reference} --video 1 records it"
        raise ConfigError(
            f"{run.reference} is algo={config.algo.name} on env={config.env.id}, and rlx watch is for grid worlds (sokoban, minipacman); "
            f"{instead}"
        )
    return make_grid(settings_of(config.env.id, config.env.kwargs), 1, split="evaluation")


# In the terminal


def _show(moments: Iterable[Moment], grid: Grid, title: str, depth: int, *, fps: float) -> None:
    """Live at a pace; where nobody is looking, one after the other as text."""
    from rich.live import Live

    from rlx.render.tables import terminal
    from rlx.render.watch_view import find_room, view
    from rlx.track.console import is_live_terminal

    console = terminal()
    colour = console.is_terminal and console.color_system is not None

    def shown(moment: Moment) -> Any:  # the window may change its size
        return view(moment, grid, title, find_room(grid, depth, console.width, console.height, colour=colour))

    if not is_live_terminal():
        for moment in moments:
            console.print(shown(moment))
            console.print()
        return
    try:
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            due = time.monotonic()
            for moment in moments:
                time.sleep(max(0.0, due - time.monotonic()))
                live.update(shown(moment), refresh=True)
                due = time.monotonic() + 1.0 / fps
    except KeyboardInterrupt:
        console.print("left", style="dim")


# In a file


def _save_picture(path: Path, moments: Iterable[Moment], grid: Grid, title: str, depth: int, *, number: int) -> None:
    from rlx.errors import ConfigError
    from rlx.render.scene import paint, save

    decisions = 0
    for moment in moments:
        decisions += moment.action is not None
        if decisions == number:
            save(paint(_scene(moment, grid, title, depth)), path)
            echo(str(path))
            return
    raise ConfigError(f"--steps {number}: the episodes end after {decisions} decisions; choose one of 1 to {decisions}, or more --episodes")


def _save_film(path: Path, moments: Iterable[Moment], grid: Grid, title: str, depth: int, *, fps: float) -> None:
    import imageio.v3 as imageio
    import numpy as np

    from rlx.errors import ConfigError, StorageError
    from rlx.render.scene import paint

    frames: list[NDArray[np.uint8]] = []
    for moment in moments:
        if len(frames) >= _MOST_FRAMES:
            raise ConfigError(f"--gif {path}: more than {_MOST_FRAMES:,} frames; stop earlier with --steps, or with fewer --episodes")
        frames += [paint(_scene(moment, grid, title, depth))] * (1 if moment.action is not None else max(1, round(_LAST_S * fps)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        imageio.imwrite(path, np.stack(frames), duration=1000.0 / fps, loop=0)
    except OSError as error:
        raise StorageError(f"--gif {path} cannot be written ({error.strerror or error}); choose another place") from error
    echo(str(path))


def _scene(moment: Moment, grid: Grid, title: str, depth: int) -> Scene:
    import numpy as np

    from rlx.render.scene import Scene
    from rlx.render.watch_view import status

    longest = max(grid.planes_shape[1:])
    board = grid.draw(moment.planes[None], max(2, _BOARD_PX // longest))[0]
    tile = max(2, _FRAME_PX // longest)
    thought, frames = moment.thought, None
    if thought is not None and thought.planes is not None:
        frames = np.stack([grid.draw(rollout, tile) for rollout in thought.planes])
    shares = {} if thought is None else {
        "policy": thought.probs, "without": thought.probs_without, "saliency": thought.saliency,
    }  # fmt: skip
    return Scene(
        title=f"{moment.when}    {title}",
        board=board, status=status(moment, grid), actions=grid.action_names, chosen=moment.action,
        shares={name: values for name, values in shares.items() if values is not None}, q_value=thought.q_value if thought else None,
        frames=frames, reward=thought.reward if thought else None, depth=depth,
        frame_size=(tile * grid.planes_shape[1], tile * grid.planes_shape[2]),
        legend=list(zip(grid.kind_names, grid.colours, strict=True)),
    )  # fmt: skip


def _need_imageio() -> None:
    from rlx.errors import ConfigError

    try:
        import imageio.v3  # noqa: F401
    except ImportError:
        raise ConfigError("--gif needs a package that is not installed: pip install 'rlx[video]'; --png does without") from None
