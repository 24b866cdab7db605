"""Left-right symmetries against the simulator, and learning from mirrored steps."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mujoco")

import mujoco
import torch
from test_algos import CONTINUOUS, build, make_rollout, update
from test_mujoco_native import native

from rlx.config.algos.ppo_config import Mirroring, Objective, PPOConfig
from rlx.envs.mujoco.mirrors import MIRRORED, mirror_of
from rlx.errors import ConfigError
from rlx.symmetry import Mirror, Signs
from rlx.types import Rollout


def make_symmetric(humanoid: Any) -> None:
    """Give the left leg the two constants in which it differs from the right one, and find contact forces by a solver that converges."""
    model = humanoid
    model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
    model.jnt_stiffness[model.joint("left_knee").id] = model.jnt_stiffness[model.joint("right_knee").id]
    model.dof_armature[model.joint("left_hip_y").dofadr[0]] = model.dof_armature[model.joint("right_hip_y").dofadr[0]]
    mujoco.mj_setConst(model, mujoco.MjData(model))


@pytest.mark.parametrize("env_id", MIRRORED)
def test_the_mirrored_state_and_action_lead_to_the_mirrored_next_state(env_id: str) -> None:
    env = native(env_id, 2)
    if env_id == "Humanoid-v5":
        make_symmetric(env.model)
    mirror = mirror_of(env_id, env.single_observation_space, env.single_action_space)
    assert mirror is not None
    env.reset(seed=[3, 3])
    rng, (one, other), hidden = np.random.default_rng(0), env._data, env.robot.hidden
    num_qpos, num_qvel = env.model.nq - hidden, env.model.nv
    worst, moved = 0.0, 0.0
    for _ in range(60):
        qpos = mirror.observation(
            np.pad(np.concatenate((one.qpos[hidden:], one.qvel)), (0, len(mirror.observation.sign) - num_qpos - num_qvel))
        )
        other.qpos[:hidden] = one.qpos[:hidden] * np.array([1, -1])[:hidden]
        other.qpos[hidden:], other.qvel[:] = qpos[:num_qpos], qpos[num_qpos : num_qpos + num_qvel]
        other.qacc_warmstart[:] = 0.0
        one.qacc_warmstart[:] = 0.0
        other.time = one.time
        env._position[1] = env._position[0] * np.array([1, -1])[: env._position.shape[1]]
        action = rng.uniform(-1, 1, size=env.single_action_space.shape).astype(np.float32)
        obs, reward, terminated, _, _ = env.step(np.stack((action, mirror.action(action))))
        worst = max(worst, np.abs(obs[1] - mirror.observation(obs[0])).max() / (1.0 + np.abs(obs[0]).max()))
        moved = max(moved, np.abs(obs[0] - mirror.observation(obs[0])).max())
        assert reward[1] == pytest.approx(reward[0], abs=1e-6)
        assert terminated[0] == terminated[1]
    assert worst < 1e-12
    assert moved > 0.1, "the gait was asymmetric"


BODY = Mirror(Signs(np.array([1, 0, 2]), np.array([1, 1, -1], np.float32)), Signs(np.array([1, 0]), np.array([-1, -1], np.float32)))
SYMMETRIC = dataclasses.replace(CONTINUOUS, mirror=BODY)


def with_mirrored(rollout: Rollout) -> Rollout:
    """The same, with the mirror image of each environment behind it."""
    obs, action = (Signs(*(torch.from_numpy(x) for x in signs)) for signs in BODY)

    def pairs(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.stack((x, y), dim=2).flatten(1, 2)

    flags = {name: pairs(x := getattr(rollout, name), x) for name in ("reward", "terminated", "truncated", "is_first")}
    doubled = dataclasses.replace(rollout, all_obs=pairs(rollout.all_obs, obs(rollout.all_obs)),
                                  action=pairs(rollout.action, action(rollout.action)), **flags)  # fmt: skip
    doubled.final_t, doubled.final_b = doubled.is_last.nonzero(as_tuple=True)
    doubled.final_obs = torch.stack((rollout.final_obs, obs(rollout.final_obs)), dim=1).flatten(0, 1)
    return doubled


@pytest.mark.parametrize("objective", [Objective.clip, Objective.adaptive_kl])
def test_learning_from_mirrored_steps_is_learning_from_twice_as_many_environments(objective: Objective) -> None:
    settings = {"objective": objective, "num_epochs": 2, "num_minibatches": 1, "learning_rate": 0.01}
    ours = build(PPOConfig(mirror=Mirroring.augment, **settings), SYMMETRIC)
    theirs = build(PPOConfig(**settings), CONTINUOUS, 8)
    for net in (ours.net, theirs.net):  # its first policy and values are their own mirror images
        net.load_state_dict(ours.net.state_dict())
        for trunk in net.trunks().values():
            trunk.output_weight.data.zero_()
    rollout = make_rollout(SYMMETRIC)
    metrics, expected = update(ours, rollout), update(theirs, with_mirrored(rollout))
    for name in ("loss/policy", "loss/value", "update/approx_kl", "update/grad_norm"):
        assert metrics[name] == pytest.approx(expected[name], abs=1e-5), name
    for p, q in zip(ours.net.parameters(), theirs.net.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=0)


def test_mirrored_steps_are_refused_where_no_symmetry_is_known() -> None:
    with pytest.raises(ConfigError, match=r"algo\.mirror=augment needs .* symmetry \(A-v5, with .* env=Continuous-v0"):
        build(PPOConfig(mirror=Mirroring.augment), dataclasses.replace(CONTINUOUS, mirrored=("A-v5",)))
