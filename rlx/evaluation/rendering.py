"""The rendered frames of an environment, for videos and for `rlx watch`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rlx.build import env_factory
from rlx.config.schema import RunConfig
from rlx.envs.contract import describe, env_error
from rlx.envs.families import extra_for
from rlx.envs.registry import VectorEnvFactory, quiet_rendering
from rlx.envs.vector import GymVectorEnv
from rlx.errors import ConfigError, EnvError, RlxError


def rendering_env(config: RunConfig) -> GymVectorEnv:
    """One environment of a run that renders frames; raises as its constructor does."""
    quiet_rendering()
    camera: dict[str, Any] = {}
    if extra_for(config.env.id) == "mujoco" and not {"camera_id", "camera_name"} & config.env.kwargs.keys():
        camera["camera_name"] = "track"  # gymnasium 1.4 stays where the body began, and soon shows an empty floor
    make = _single(config)
    return GymVectorEnv(lambda: make(render_mode="rgb_array", **camera), 1)


def _single(config: RunConfig) -> Any:
    make_env = env_factory(config)
    assert isinstance(make_env, VectorEnvFactory)
    return make_env.single


def frame_of(env: gymnasium.Env[Any, Any], *, doing: str = "recorded") -> NDArray[np.uint8]:
    """The rendered frame of an environment, [H, W, 3] with even sides, which H.264 needs.

    Args:
        env: renders arrays.
        doing: what is done with frames, in errors.

    Raises:
        ConfigError: if it has no rgb_array rendering.
        EnvError: if rendering raises, or gives no frame.
    """
    try:
        frame = env.render()
    except (Exception, SystemExit) as error:
        raise env_error(env_name(env), 0, "render", "recording a video", error) from error
    if not isinstance(frame, np.ndarray):
        raise ConfigError(f"env={env_name(env)} cannot be {doing}: its rgb_array rendering gave {describe(frame)}, expected an array")
    if frame.ndim == 2:
        frame = np.repeat(frame[..., None], 3, axis=2)
    if frame.ndim != 3 or frame.shape[2] not in (3, 4) or frame.dtype != np.uint8 or min(frame.shape[:2]) < 2:
        raise EnvError(f"env={env_name(env)} cannot be {doing}: its rgb_array rendering gave {describe(frame)}, expected height x width x "
                       "3 bytes")  # fmt: skip
    return frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2, :3]


def env_name(env: gymnasium.Env[Any, Any]) -> str:
    return env.spec.id if env.spec else type(env.unwrapped).__name__


class Camera:
    """Frames of one environment, or the reason why there are none.

    Attributes:
        env: the environment, to be played in.
        problem: why there are no frames; None where there are.
    """

    def __init__(self, config: RunConfig) -> None:
        quiet_rendering()
        plain = GymVectorEnv(_single(config), 1)
        self.env = plain
        self.problem: str | None = None
        modes = plain.envs[0].metadata.get("render_modes") or ()
        if "rgb_array" not in modes:
            self.problem = f"env={config.env.id} has no render mode rgb_array"
            return
        try:
            self.env = rendering_env(config)
        except RlxError as error:
            self.problem = str(error)
        else:
            plain.close()

    @property
    def fps(self) -> float | None:
        """Frames a second of real time; None where the environment does not say."""
        found = self.env.envs[0].metadata.get("render_fps")
        return float(found) if isinstance(found, int | float) and found > 0 else None

    def __call__(self) -> NDArray[np.uint8] | None:
        """The current frame [H, W, 3]; None if there is none, and from then on."""
        if self.problem is None:
            try:
                return frame_of(self.env.envs[0], doing="shown")
            except RlxError as error:
                self.problem = str(error)
        return None
