"""Videos of evaluation episodes, encoded frame by frame with the ffmpeg of imageio-ffmpeg."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rlx.build import env_factory
from rlx.config.schema import RunConfig
from rlx.envs.contract import describe, env_error
from rlx.envs.registry import VectorEnvFactory, extra_for, quiet_rendering
from rlx.envs.vector import GymVectorEnv
from rlx.errors import ConfigError, EnvError, StorageError
from rlx.evaluation.episodes import never, play_steps
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
    quiet_rendering()
    make_env = env_factory(config)
    assert isinstance(make_env, VectorEnvFactory)
    camera: dict[str, Any] = {}
    if extra_for(config.env.id) == "mujoco" and not {"camera_id", "camera_name"} & config.env.kwargs.keys():
        camera["camera_name"] = "track"  # gymnasium 1.4 stays where the body began, and soon shows an empty floor
    env = GymVectorEnv(lambda: make_env.single(render_mode="rgb_array", **camera), 1)
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
        frame = _frame(env.envs[0])
        first = frame if first is None else first
        if frame.shape != first.shape:
            raise EnvError(f"{_name(env.envs[0])} cannot be recorded: a frame has shape {frame.shape}, the first one had {first.shape}")
        yield frame


def _frame(env: gymnasium.Env[Any, Any]) -> NDArray[np.uint8]:
    """The rendered frame of an environment, [H, W, 3] with even sides, which H.264 needs.

    Raises:
        ConfigError: if it has no rgb_array rendering.
        EnvError: if rendering raises, or gives no frame.
    """
    try:
        frame = env.render()
    except (Exception, SystemExit) as error:
        raise env_error(_name(env), 0, "render", "recording a video", error) from error
    if not isinstance(frame, np.ndarray):
        raise ConfigError(f"env={_name(env)} cannot be recorded: its rgb_array rendering gave {describe(frame)}, expected an array")
    if frame.ndim == 2:
        frame = np.repeat(frame[..., None], 3, axis=2)
    if frame.ndim != 3 or frame.shape[2] not in (3, 4) or frame.dtype != np.uint8 or min(frame.shape[:2]) < 2:
        raise EnvError(f"env={_name(env)} cannot be recorded: its rgb_array rendering gave {describe(frame)}, expected height x width x 3 "
                       "bytes")  # fmt: skip
    return frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2, :3]


def _name(env: gymnasium.Env[Any, Any]) -> str:
    return env.spec.id if env.spec else type(env.unwrapped).__name__
