"""Videos of evaluation episodes, encoded with the ffmpeg that imageio-ffmpeg carries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlx.collect import env_actions, to_tensor
from rlx.config.schema import RunConfig
from rlx.envs.registry import EnvFactory, extra_for, quiet_rendering
from rlx.errors import ConfigError
from rlx.types import Algorithm, Mode

_DEFAULT_FPS = 30


def record(
    config: RunConfig, algo: Algorithm, seeds: NDArray[np.int64], directory: Path, *, prefix: str, mode: Mode = "eval"
) -> list[Path]:
    """Play one episode for every seed and write it as directory/prefix-<n>.mp4.

    Raises:
        ConfigError: if the video extra is missing or the environment cannot draw.
    """
    try:
        import imageio.v3 as imageio
        import imageio_ffmpeg  # noqa: F401  (the encoder that imageio finds by itself)
    except ImportError:
        raise ConfigError("--video needs a package that is not installed: pip install 'rlx[video]'") from None
    quiet_rendering()
    camera: dict[str, Any] = {}
    if extra_for(config.env.id) == "mujoco" and not {"camera_id", "camera_name"} & config.env.kwargs.keys():
        camera["camera_name"] = "track"  # gymnasium 1.4 stays where the body began, and soon shows an empty floor
    env = EnvFactory(config.env.id, config.env.kwargs)(render_mode="rgb_array", **camera)
    to_env = env_actions(env.action_space)
    directory.mkdir(exist_ok=True)
    fps = env.metadata.get("render_fps", _DEFAULT_FPS)
    paths = []
    for i, seed in enumerate(seeds):
        frames = _play(env, algo, int(seed), to_env, mode)
        path = directory / f"{prefix}-{i}.mp4"
        imageio.imwrite(path, _even(np.stack(frames)), fps=fps, codec="libx264", macro_block_size=2)
        paths.append(path)
    env.close()
    return paths


def _play(env: Any, algo: Algorithm, seed: int, to_env: Any, mode: Mode) -> list[NDArray[np.uint8]]:
    obs, _ = env.reset(seed=seed)
    carry, is_first, done = algo.initial_carry(1), True, False
    frames = [_frame(env)]
    while not done:
        batch = to_tensor(np.asarray(obs)[None], algo.device)
        action, carry, _ = algo.act(batch, carry, torch.tensor([is_first], device=algo.device), mode=mode)
        obs, _, terminated, truncated, _ = env.step(to_env(action)[0])
        frames.append(_frame(env))
        is_first, done = False, terminated or truncated
    return frames


def _frame(env: Any) -> NDArray[np.uint8]:
    frame = env.render()
    if not isinstance(frame, np.ndarray):
        raise ConfigError(f"env={env.spec.id} cannot be recorded: its rgb_array rendering gave {type(frame).__name__}")
    return frame


def _even(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Crop to even sides, which H.264 needs."""
    return frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
