"""B MuJoCo robots that share one model: one MjData each, everything around the physics computed for all of them at once.

Results are those of gymnasium's environments to the last bit (`tests/test_mujoco_native.py`), at 1.2 to 1.5 times their speed: most of a
step is physics. The state is a few arrays, so that nothing is replayed to resume.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from rlx.envs.actions import seen_actions
from rlx.envs.contract import env_error, non_finite
from rlx.envs.mujoco.robots import Robot
from rlx.errors import CheckpointError
from rlx.tree_ops import Tree, leaves, map_tree, pick, put

Array = NDArray[Any]

_ASSETS = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
"""What the next steps depend on, the solver's warm start among it: without it they would be near, and not equal."""


def _is_finite(values: Array) -> bool:
    return 0 not in np.isfinite(values).tobytes()  # a fifth of the time of `all()`


class MujocoVectorEnv(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """B robots. Gymnasium's vector API with autoreset disabled: reset what has ended through `options={"reset_mask": mask}`.

    A subclass changes the world through `_load_model`, `_begin_episode`, `_ground`, `_observe` and `_reward`.

    Args:
        robot: what is observed and paid.
        num_envs: B.
        env_id: its name in errors.
        max_episode_steps: steps after which an episode is truncated; None never truncates.
        rescale_actions: bring actions to [-1, 1].
        threads: threads to step in; the results are the same with any number.

    Raises:
        EnvError: from reset and step, when an observation or a reward is not finite.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012  (the API's own class attribute)

    def __init__(
        self,
        robot: Robot,
        num_envs: int,
        *,
        env_id: str,
        max_episode_steps: int | None = 1000,
        rescale_actions: bool = False,
        threads: int = 1,
    ) -> None:
        self.robot, self.num_envs, self.env_id = robot, num_envs, env_id
        self.notes: list[str] = []
        self._limit = np.iinfo(np.int64).max if max_episode_steps is None else max_episode_steps
        self.model = self._load_model()
        self._data = [mujoco.MjData(self.model) for _ in range(num_envs)]
        self._init_qpos, self._init_qvel = self._data[0].qpos.copy(), self._data[0].qvel.copy()
        low, high = self.model.actuator_ctrlrange.astype(np.float32).T
        action_space = gymnasium.spaces.Box(low=low, high=high, dtype=np.float32)
        self.single_action_space, self._to_env = seen_actions(action_space, env_id, rescale=rescale_actions)

        self._ctrl = [data.ctrl for data in self._data]
        views = [robot.views(self.model, data) for data in self._data]
        self._seen = {name: np.stack([view[name] for view in views]) for name in views[0]}
        self._copies = [[(self._seen[name][i], view) for name, view in views[i].items()] for i in range(num_envs)]
        self._position = robot.position(self.model, self._seen)
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._seeds = np.zeros(num_envs, dtype=np.int64)
        self._obs = self._observe()
        self.single_observation_space = self._observation_space()
        threads = min(threads, num_envs)
        self._shares = [range(*ends) for ends in itertools.pairwise(num_envs * k // threads for k in range(threads + 1))]
        self._pool = ThreadPoolExecutor(len(self._shares) - 1) if len(self._shares) > 1 else None

    def simulations(self) -> list[tuple[Any, Any]]:
        """The MjModel and the MjData of every environment; a change of the model shows in the steps that follow."""
        return [(self.model, data) for data in self._data]

    # What a subclass may change.

    def _load_model(self) -> Any:
        return mujoco.MjModel.from_xml_path(str(_ASSETS / self.robot.xml))

    def _observation_space(self) -> gymnasium.Space[Any]:
        """The space of one observation; the observations are in `self._obs`."""
        return gymnasium.spaces.Box(-np.inf, np.inf, self._obs.shape[1:], np.float64)

    def _begin_episode(self, i: int, rng: np.random.Generator) -> None:
        """Write what an episode of environment i begins with into its MjData, which has just been reset; `rng` is the episode's own."""
        data = self._data[i]
        data.qpos[:], data.qvel[:] = self.robot.draw(rng, self._init_qpos, self._init_qvel)

    def _ground(self) -> Array | float:
        """[B] height of the ground under each robot, or one number for all of them."""
        return 0.0

    def _observe(self) -> Tree:
        """[B, *] the observations, in new arrays, from `self._seen`."""
        return self.robot.observe(self._seen)

    def _reward(self, action: Array, velocity: Array, healthy: NDArray[np.bool_]) -> Array:
        """[B] of a step; see `Robot.reward`."""
        return self.robot.reward(self._seen, action, velocity, healthy)

    # The environment.

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Tree, dict[str, Any]]:
        """Begin episodes where `options["reset_mask"]` (default everywhere); seed is one integer per env.

        The arrays returned here and by `step` are overwritten by the next call.
        """
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool))
        for i in np.flatnonzero(mask).tolist():
            self._begin(i, int(seed[i]))
        put(self._position, mask, self.robot.position(self.model, self._seen)[mask])
        put(self._obs, mask, pick(self._observe(), mask))
        if not all(map(_is_finite, leaves(self._obs))):
            self._refuse_non_finite(None)
        return self._obs, {}

    def _begin(self, i: int, seed: int) -> None:
        self._seeds[i], self._elapsed[i] = seed, 0
        data = self._data[i]
        try:
            mujoco.mj_resetData(self.model, data)
            self._begin_episode(i, seeding.np_random(seed)[0])
            mujoco.mj_forward(self.model, data)
        except Exception as error:
            raise env_error(self.env_id, i, "reset", self._where(i, reset=True), error) from error
        for row, view in self._copies[i]:
            row[...] = view

    def step(self, actions: Array) -> tuple[Tree, Array, Array, Array, dict[str, Any]]:
        given = actions if self._to_env is None else self._to_env(actions)
        self._elapsed += 1
        others = [self._pool.submit(self._advance, given, share) for share in self._shares[1:]] if self._pool else []
        try:
            self._advance(given, self._shares[0])
        finally:
            for other in others:
                other.result()
        before, self._position = self._position, self.robot.position(self.model, self._seen)
        velocity = (self._position - before) / (self.model.opt.timestep * self.robot.frame_skip)
        healthy = self.robot.healthy(self._seen, self._ground())
        reward = self._reward(given, velocity, healthy).astype(np.float32)
        terminated = ~healthy if self.robot.terminates else np.zeros(self.num_envs, dtype=bool)
        self._obs = self._observe()
        if not (_is_finite(reward) and all(map(_is_finite, leaves(self._obs)))):
            self._refuse_non_finite(actions, reward)
        return self._obs, reward, terminated, self._elapsed >= self._limit, {}

    def _advance(self, actions: Array, share: range) -> None:
        """Step the environments of a share, and copy what their robots read."""
        model, all_data, all_ctrl, all_copies, forces = self.model, self._data, self._ctrl, self._copies, self.robot.needs_forces
        frame_skip, mj_step = self.robot.frame_skip, mujoco.mj_step
        i = share.start
        try:
            for i in share:
                data = all_data[i]
                all_ctrl[i][:] = actions[i]
                mj_step(model, data, frame_skip)
                if forces:
                    mujoco.mj_rnePostConstraint(model, data)
                for row, view in all_copies[i]:
                    row[...] = view
        except Exception as error:
            raise env_error(self.env_id, i, "step", self._where(i), error) from error

    def _where(self, i: int, *, reset: bool = False) -> str:
        if reset:
            return f"reset with seed {self._seeds[i]}"
        return f"step {self._elapsed[i]} of the episode with seed {self._seeds[i]}"

    def _refuse_non_finite(self, actions: Array | None, reward: Array | None = None) -> None:
        for i in range(self.num_envs):
            earned = 0.0 if reward is None else reward[i]
            if not (np.isfinite(earned) and all(np.isfinite(leaf[i]).all() for leaf in leaves(self._obs))):
                where, action = self._where(i, reset=actions is None), None if actions is None else actions[i]
                raise non_finite(self.env_id, i, where, pick(self._obs, i), earned, action)

    # What the future depends on.

    def state_dict(self) -> dict[str, Any]:
        """Arrays with one row for each environment, and what they can be restored with."""
        return {
            "mujoco": mujoco.__version__,
            "physics": np.stack([self._physics(data) for data in self._data]),
            "position": self._position.copy(),  # of the robot before the next step: some are read from what physics does not hold
            "elapsed": self._elapsed.copy(),
            "seeds": self._seeds.copy(),
            "obs": map_tree(np.array, self._obs),
        }

    def _physics(self, data: Any) -> Array:
        state = np.empty(mujoco.mj_stateSize(self.model, _STATE))
        mujoco.mj_getState(self.model, data, state, _STATE)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the saved episodes.

        Raises:
            CheckpointError: if another version of MuJoCo, or another model, has saved them.
        """
        saved_by, physics = state.get("mujoco"), np.asarray(state.get("physics", 0.0), dtype=np.float64)
        if saved_by is None:
            raise CheckpointError(f"the checkpoint holds no states of rlx's own {self.env_id}: it was saved with env.native=false, or by "
                                  "another version; `rlx resume --inexact` goes on with new episodes")  # fmt: skip
        if saved_by != mujoco.__version__:
            raise CheckpointError(f"the environments were saved by mujoco {saved_by}, and this is mujoco {mujoco.__version__}, which would "
                                  f"continue them otherwise: pip install mujoco=={saved_by}, or `rlx resume --inexact` goes on with new "
                                  "episodes")  # fmt: skip
        expected = (self.num_envs, mujoco.mj_stateSize(self.model, _STATE))
        if physics.shape != expected:
            raise CheckpointError(f"the checkpoint holds states of the shape {physics.shape} for {self.env_id}, whose model has "
                                  f"{expected}: the model has changed; `rlx resume --inexact` goes on with new episodes")  # fmt: skip
        for i, data in enumerate(self._data):
            mujoco.mj_setState(self.model, data, physics[i], _STATE)
            for row, view in self._copies[i]:  # no mj_forward: it would compute anew what is one substep old after a step
                row[...] = view
        self._position[:] = np.asarray(state["position"])
        self._elapsed[:], self._seeds[:] = np.asarray(state["elapsed"]), np.asarray(state["seeds"])
        self._obs = map_tree(lambda leaf: np.asarray(leaf).copy(), state["obs"])  # a checkpoint has tensors

    def close(self, **kwargs: Any) -> None:
        if self._pool:
            with contextlib.suppress(Exception):
                self._pool.shutdown()
