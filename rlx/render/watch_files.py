"""Pictures and films of `rlx watch`, written to files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlx.errors import ConfigError, StorageError
from rlx.render import watch_picture
from rlx.render.page import save
from rlx.render.scene import Scene, paint
from rlx.render.watch_view import status

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rlx.envs.grids.gridworld import Grid
    from rlx.evaluation.watching import Moment, Watch

_BOARD_PX, _FRAME_PX = 308, 98
"""Pixels of the longer side of the board and of an imagined frame, about."""
_LAST_S = 1.0
"""How long a film stands still where an episode has ended."""
_MAX_FRAMES = 500
"""Of a film, which is held in memory, some 2 MB each, twice while it is encoded."""


def check_paths(gif: Path | None, png: Path | None) -> None:
    """Raise a ConfigError unless at most one is given, with its ending, and can be encoded here."""
    for option, path, ending in (("--gif", gif, ".gif"), ("--png", png, ".png")):
        if path is not None and path.suffix != ending:
            raise ConfigError(f"{option} {path}: expected an ending of {ending}")
    if gif is not None and png is not None:
        raise ConfigError("--gif and --png: a film or a picture, not both; leave one out")
    if gif is not None:
        try:
            import imageio.v3  # noqa: F401
        except ImportError:
            raise ConfigError("--gif needs a package that is not installed: pip install 'rlx[video]'; --png does without") from None


def save_picture(path: Path, watch: Watch, *, number: int) -> None:
    """Paint decision `number`, from 1.

    Raises:
        ConfigError: if the episodes end before it.
        StorageError: if the file cannot be written.
    """
    decisions = 0
    for moment in watch.moments:
        decisions += moment.action is not None
        if decisions == number:
            save(picture(moment, watch, moment), path)
            return
    raise ConfigError(f"--steps {number}: the episodes end after {decisions} decisions; choose one of 1 to {decisions}, or more --episodes")


def save_film(path: Path, watch: Watch, *, fps: float) -> None:
    """Paint every moment.

    Raises:
        ConfigError: if there are too many.
        StorageError: if the file cannot be written.
    """
    import imageio.v3 as imageio

    frames: list[NDArray[np.uint8]] = []
    before: Moment | None = None
    for moment in watch.moments:
        if len(frames) >= _MAX_FRAMES:
            raise ConfigError(f"--gif {path}: more than {_MAX_FRAMES:,} frames; stop earlier with --steps, or with fewer --episodes")
        shown = picture(moment, watch, before or moment)
        frames += [shown] * (1 if moment.action is not None else max(1, round(_LAST_S * fps)))
        before = moment if moment.inputs else before
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        imageio.imwrite(path, np.stack(frames), duration=1000.0 / fps, loop=0)
    except OSError as error:
        raise StorageError(f"--gif {path} cannot be written ({error.strerror or error}); choose another place") from error


def picture(moment: Moment, watch: Watch, still: Moment) -> NDArray[np.uint8]:
    """A moment as a picture [height, width, 3].

    Args:
        moment: what is shown.
        watch: names its parts.
        still: the last moment with inputs.
    """
    if watch.grid is not None:
        return paint(scene_of(moment, watch.grid, watch))
    return watch_picture.paint(moment, watch, still)


def scene_of(moment: Moment, grid: Grid, watch: Watch) -> Scene:
    """What is painted of a moment in a grid world."""
    assert moment.planes is not None
    longest = max(grid.planes_shape[1:])
    board = grid.draw(moment.planes[None], max(2, _BOARD_PX // longest))[0]
    tile = max(2, _FRAME_PX // longest)
    found, frames = moment.decision, None
    if found is not None and found.planes is not None:
        frames = np.stack([grid.draw(rollout, tile) for rollout in found.planes])
    shares = {} if found is None else {"policy": found.probs, "without": found.probs_without, "saliency": found.saliency}
    return Scene(
        title=f"{moment.when}    {watch.title}",
        board=board, status=status(moment, grid), actions=grid.action_names,
        chosen=None if moment.action is None else int(moment.action[0]),
        shares={name: values for name, values in shares.items() if values is not None},
        q_value=found.q_value if found else None, frames=frames, reward=found.reward if found else None,
        depth=watch.depth, frame_size=(tile * grid.planes_shape[1], tile * grid.planes_shape[2]),
        legend=list(zip(grid.kind_names, grid.colours, strict=True)),
    )  # fmt: skip
