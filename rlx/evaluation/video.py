"""Videos of evaluation episodes, encoded with the ffmpeg that imageio-ffmpeg carries; frames go to the encoder as they come."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from rlx.build import env_factory
from rlx.collect import env_actions, to_tensor
from rlx.config.schema import RunConfig
from rlx.envs.contract import describe, env_error
from rlx.envs.registry import VectorEnvFactory, extra_for, quiet_rendering
from rlx.envs.vector import GymVectorEnv
from rlx.errors import ConfigError, EnvError, StorageError
from rlx.files import make_directory
from rlx.types import Algorithm, Mode

_DEFAULT_FPS = 30
_REPORT_EVERY = 50


def record(
    config: RunConfig,
    algo: Algorithm,
    seeds: NDArray[np.int64],
    directory: Path,
    *,
    prefix: str,
    mode: Mode = "eval",
    progress: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Play one episode for every seed and write it as directory/prefix-<n>.mp4; `progress` is told how far it is.

    Episodes are cut after loop.eval_max_steps, as in evaluations.

    Raises:
        ConfigError: if the video extra is missing or the environment has no pictures.
        EnvError: if it fails, or draws what is no picture.
        StorageError: if the videos cannot be written.
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
            try:
                with contextlib.closing(get_writer(temporary, fps=fps, codec="libx264", macro_block_size=2)) as writer:
                    for n, frame in enumerate(_frames(env, algo, seed, mode, config.loop.eval_max_steps)):
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


def _frames(env: GymVectorEnv, algo: Algorithm, seed: int, mode: Mode, max_steps: int) -> Iterator[NDArray[np.uint8]]:
    """The pictures of an episode, all of one size."""
    to_env = env_actions(env.single_action_space)
    obs, _ = env.reset(seed=[seed])
    carry, is_first, steps, done = algo.initial_carry(1), True, 0, False
    first = _frame(env.envs[0])
    yield first
    while not done and not 0 < max_steps <= steps:
        batch = to_tensor(obs.copy(), algo.device)
        with torch.no_grad():
            action, carry, _ = algo.act(batch, carry, torch.tensor([is_first], device=algo.device), mode=mode)
        obs, _, terminated, truncated, _ = env.step(to_env(action))
        frame = _frame(env.envs[0])
        if frame.shape != first.shape:
            raise EnvError(f"{_name(env.envs[0])} cannot be recorded: a frame has shape {frame.shape}, the first one had {first.shape}")
        yield frame
        is_first, steps, done = False, steps + 1, bool(terminated[0] | truncated[0])


def _frame(env: gymnasium.Env[Any, Any]) -> NDArray[np.uint8]:
    """What an environment draws, as [H, W, 3] with even sides, which H.264 needs.

    Raises:
        ConfigError: if it has no rgb_array rendering.
        EnvError: if rendering raises, or gives no picture.
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
