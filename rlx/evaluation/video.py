"""Videos of evaluation episodes, encoded frame by frame with the ffmpeg of imageio-ffmpeg."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlx.config.schema import RunConfig
from rlx.envs.vector import GymVectorEnv
from rlx.errors import ConfigError, EnvError, StorageError
from rlx.evaluation.episodes import never, play_steps
from rlx.evaluation.rendering import env_name, frame_of, rendering_env
from rlx.files import make_directory
from rlx.types import Mode, Policy

_DEFAULT_FPS = 30
_REPORT_EVERY = 50


def record(
    config: RunConfig,
    policy: Policy,
    seeds: NDArray[np.int64],
    directory: Path,
    *,
    prefix: str,
    mode: Mode = "eval",
    should_stop: Callable[[], bool] = never,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Play one episode for every seed and write it as directory/prefix-<n>.mp4.

    Args:
        config: of the run; episodes are cut after loop.eval_max_steps, as in evaluations.
        policy: acts.
        seeds: of the episodes.
        directory: is made if it is missing.
        prefix: of the files' names.
        mode: how the policy acts.
        should_stop: is asked before every env step.
        progress: is called with a message now and then.

    Raises:
        ConfigError: if the video extra is missing or the environment renders no frames.
        EnvError: if the environment fails, or renders anything else than a frame.
        StorageError: if the videos cannot be written.
        Stopped: when `should_stop` returns True.
    """
    try:
        import imageio_ffmpeg  # noqa: F401  (the encoder that imageio finds by itself)
        from imageio.v2 import get_writer
    except ImportError:
        raise ConfigError("--video needs a package that is not installed: pip install 'rlx[video]'") from None
    env = rendering_env(config)
    fps = env.envs[0].metadata.get("render_fps") or _DEFAULT_FPS
    paths = []
    with contextlib.closing(env), _storing(directory):
        make_directory(directory)
        for i, seed in enumerate(seeds.tolist()):
            path = directory / f"{prefix}-{i}.mp4"
            temporary = directory / f".{path.stem}.tmp-{os.getpid()}.mp4"
            temporary.unlink(missing_ok=True)  # the encoder would follow a link
            frames = _frames(env, policy, seed, mode=mode, max_steps=config.loop.eval_max_steps, should_stop=should_stop)
            try:
                with contextlib.closing(get_writer(temporary, fps=fps, codec="libx264", macro_block_size=2)) as writer:
                    for n, frame in enumerate(frames):
                        writer.append_data(frame)
                        if n % _REPORT_EVERY == 0:
                            progress(f"video {i + 1} of {len(seeds)}: {n:,} frames")
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            paths.append(path)
    return paths


@contextlib.contextmanager
def _storing(directory: Path) -> Iterator[None]:
    """Turn what the disk refuses into a StorageError."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise StorageError(f"videos cannot be written to {directory} ({reason}); the evaluation itself needs no --video") from error


def _frames(
    env: GymVectorEnv, policy: Policy, seed: int, *, mode: Mode, max_steps: int, should_stop: Callable[[], bool]
) -> Iterator[NDArray[np.uint8]]:
    """The frames of an episode, all of one size."""
    first: NDArray[np.uint8] | None = None
    for _ in play_steps(env, policy, np.array([seed]), mode=mode, max_steps=max_steps, should_stop=should_stop):
        frame = frame_of(env.envs[0])
        first = frame if first is None else first
        if frame.shape != first.shape:
            raise EnvError(f"{env_name(env.envs[0])} cannot be recorded: a frame has shape {frame.shape}, the first one had {first.shape}")
        yield frame
