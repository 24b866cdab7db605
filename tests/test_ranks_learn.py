"""PPO, A2C and REINFORCE learn on several ranks what they learn on one process with all environments.

Ranks get shares of the same made-up steps. Parameters may differ from those of one process by the order of float sums, 1e-6, and not at
all between ranks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from ranks import on_ranks

from rlx.algos.a2c import A2C
from rlx.algos.ppo import PPO
from rlx.algos.reinforce import Reinforce
from rlx.build import ranks_notes
from rlx.config.algos.a2c_config import A2CConfig
from rlx.config.algos.policy_gradient_config import Advantage, MemoryKind
from rlx.config.algos.ppo_config import Mirroring, Objective, PPOConfig
from rlx.config.algos.reinforce_config import ReinforceConfig
from rlx.config.compose import Composer
from rlx.distributed import World
from rlx.errors import NonFiniteError
from rlx.rng import seed_everything
from rlx.spaces import ACTION_MASK
from rlx.symmetry import Mirror, Signs
from rlx.tree_ops import leaves, map_tree, pick
from rlx.types import Distributes, EnvSpec, Progress, Rollout

Algo = PPO | A2C | Reinforce
LENGTH, ENVS, UPDATES = 16, 6, 3

VECTOR = EnvSpec(id="test", observation_space=spaces.Box(-9, 9, (3,)), action_space=spaces.Box(-1, 1, (2,)))
TWO_SIDED = EnvSpec(
    id="test",
    observation_space=VECTOR.observation_space,
    action_space=VECTOR.action_space,
    mirror=Mirror(Signs(np.array([1, 0, 2]), np.float32([1, 1, -1])), Signs(np.array([1, 0]), np.float32([1, 1]))),
)
CHOICE = EnvSpec(id="test", observation_space=spaces.Box(-9, 9, (3,)), action_space=spaces.Discrete(3))
MASKED = EnvSpec(
    id="test",
    observation_space=spaces.Dict({"a": spaces.Box(-9, 9, (3,)), "b": spaces.Discrete(3), ACTION_MASK: spaces.MultiBinary(5)}),
    action_space=spaces.MultiDiscrete([2, 3]),
)
SMALL: dict[str, Any] = {"hidden_sizes": [8], "learning_rate": 3e-3, "rollout_length": LENGTH, "normalize_observation": True}
STEPS: dict[str, Any] = {**SMALL, "num_epochs": 3, "num_minibatches": 4}
"""36 gradient steps in all."""


def ppo(spec: EnvSpec = VECTOR, **settings: Any) -> Callable[[int], Algo]:
    return lambda num_envs: PPO(PPOConfig(**{**STEPS, **settings}), spec, num_envs, torch.device("cpu"))


def a2c(spec: EnvSpec = VECTOR, **settings: Any) -> Callable[[int], Algo]:
    return lambda num_envs: A2C(A2CConfig(**{**SMALL, **settings}), spec, num_envs, torch.device("cpu"))


def reinforce(spec: EnvSpec = VECTOR, **settings: Any) -> Callable[[int], Algo]:
    return lambda num_envs: Reinforce(
        ReinforceConfig(**{**SMALL, "episodes_per_update": 5, **settings}), spec, num_envs, torch.device("cpu")
    )


KINDS: dict[str, Callable[[int], Algo]] = {
    "kernels": ppo(normalize_reward=True, value_clip=0.2),
    "kernels, discrete": ppo(CHOICE, objective=Objective.adaptive_kl, shared_network=True),
    "masks": ppo(MASKED, objective=Objective.spo, entropy_coef=0.01, recompute_advantage=True),
    "memory": ppo(CHOICE, memory=MemoryKind.gru, memory_size=4, num_minibatches=3),
    "adaptive": ppo(rpo_alpha=0.1, adaptive_learning_rate=True, normalize_value=True, popart=True, normalize_advantage=False),
    "mirror": ppo(TWO_SIDED, mirror=Mirroring.augment),
    "a2c": a2c(normalize_advantage=True, advantage=Advantage.q),
    "reinforce": reinforce(CHOICE, advantage=Advantage.q),
    "reinforce, memory": reinforce(CHOICE, memory=MemoryKind.lstm, memory_size=4, normalize_advantage=True),
}


def rollout_of(algo: Algo, spec: EnvSpec, share: slice, number: int) -> Rollout:
    """A share of made-up steps of ENVS environments, with the actions that the algorithm chooses."""
    rng = np.random.default_rng(number)
    shape = (LENGTH, ENVS)
    terminated, truncated = rng.random(shape) < 0.1, rng.random(shape) < 0.05
    is_last = terminated | truncated
    is_first = np.concatenate((np.full((1, ENVS), number == 0), is_last[:-1]))
    final_t, final_b = is_last.nonzero()
    own = (final_b >= share.start) & (final_b < share.stop)

    def observations(*shape: int) -> Any:
        vectors = torch.from_numpy(rng.normal(1.0, 2.0, (*shape, 3)).astype(np.float32))
        if not isinstance(spec.observation_space, spaces.Dict):
            return vectors
        mask = torch.from_numpy(rng.random((*shape, 5)) < 0.7)
        mask[..., 0] = mask[..., 2] = True
        return {"a": vectors, "b": torch.from_numpy(rng.integers(3, size=shape)), ACTION_MASK: mask}

    every, final = observations(LENGTH + 1, ENVS), observations(len(final_t))
    mine = map_tree(lambda leaf: leaf[:, share], every)
    carry = first_carry = algo.initial_carry(share.stop - share.start)
    actions, extras = [], []
    for t in range(LENGTH):
        out = algo.act(pick(mine, t), carry, torch.from_numpy(is_first[t, share]), mode="train")
        carry = out.carry
        actions.append(out.action)
        extras.append(out.extras)
    return Rollout(
        all_obs=mine,
        action=torch.stack(actions),
        reward=torch.from_numpy(rng.normal(0.5, 1.0, shape).astype(np.float32))[:, share],
        terminated=torch.from_numpy(terminated)[:, share],
        truncated=torch.from_numpy(truncated)[:, share],
        is_first=torch.from_numpy(is_first)[:, share],
        final_t=torch.from_numpy(final_t[own]),
        final_b=torch.from_numpy(final_b[own] - share.start),
        final_obs=map_tree(lambda leaf: leaf[torch.from_numpy(own)], final),
        carry=first_carry,
        extras=map_tree(lambda *steps: torch.stack(steps), *extras),
    )


def learn(world: World, make: Callable[[int], Algo], change: Callable[[Algo], None] = lambda algo: None, updates: int = UPDATES) -> Any:
    """The state after some updates, and the metrics of each."""
    seed_everything(0)
    share = world.share(ENVS)
    algo = make(share.stop - share.start)
    assert isinstance(algo, Distributes)
    algo.join(world)
    change(algo)
    progress, metrics = Progress(total_env_steps=10_000, num_ranks=world.size), []
    for number in range(updates):
        rollout = rollout_of(algo, _spec_of(algo), share, number)
        progress.advance(rollout)
        metrics.append({name: float(value) for name, value in algo.update(rollout, progress).items()})
    return {"state": algo.state_dict(), "metrics": metrics, "rng": torch.get_rng_state(), "flat": algo.optimizer.parameters.clone()}


def _spec_of(algo: Algo) -> EnvSpec:
    return MASKED if algo.net.is_masked else VECTOR


@pytest.mark.parametrize(("kind", "size"), [*((kind, 2) for kind in KINDS), ("kernels", 3)])
def test_ranks_learn_what_one_process_learns(kind: str, size: int, same: Callable[[Any, Any], bool]) -> None:
    alone = learn(World(), KINDS[kind])
    ranks = on_ranks(size, lambda world: learn(world, KINDS[kind]), preload=("test_ranks_learn", "rlx.nn.compiled"))
    for found in ranks:
        assert not isinstance(found, str), found
        assert same(found, ranks[0])  # to the last bit
        torch.testing.assert_close(found["flat"], alone["flat"], atol=1e-6, rtol=0.0)
        for one, many in zip(alone["metrics"], found["metrics"], strict=True):
            assert many == pytest.approx(one, abs=2e-6, rel=1e-5, nan_ok=True)
        assert torch.equal(found["rng"], alone["rng"])
        for one, many in zip(leaves(alone["state"]), leaves(found["state"]), strict=True):
            torch.testing.assert_close(torch.as_tensor(many), torch.as_tensor(one), atol=2e-6, rtol=1e-5)
    assert (alone["flat"] - learn(World(), KINDS[kind], updates=0)["flat"]).abs().max() > 1e-3


def test_ranks_stop_the_passes_over_a_rollout_where_one_process_stops() -> None:
    kind = ppo(target_kl=5e-3, num_epochs=6, anneal_learning_rate=False)
    alone = learn(World(), kind)
    epochs = [line["update/num_epochs"] for line in alone["metrics"]]
    assert 1.0 < min(epochs) < 6.0
    for found in on_ranks(2, lambda world: learn(world, kind)):
        assert [line["update/num_epochs"] for line in found["metrics"]] == epochs
        torch.testing.assert_close(found["flat"], alone["flat"], atol=1e-6, rtol=0.0)


def _forget_to_merge_observations(algo: Algo) -> None:
    assert algo.net.encoder.normalizer is not None
    algo.net.encoder.normalizer.moments.world = World()


def _forget_to_reduce(algo: Algo) -> None:
    algo.optimizer.reduce = lambda share, losses: losses  # type: ignore[method-assign]


def _forget_to_weight(algo: Algo) -> None:
    reduce = algo.optimizer.reduce
    algo.optimizer.reduce = lambda share, losses: reduce(1.0 / algo.world.size, losses)  # type: ignore[method-assign]


def _forget_to_draw_for_all(algo: Algo) -> None:
    algo.net.head.world = World()


FORGOTTEN = [_forget_to_merge_observations, _forget_to_reduce, _forget_to_weight, _forget_to_draw_for_all]


def test_the_comparison_finds_ranks_that_forget_something() -> None:
    alone = learn(World(), ppo())["flat"]
    ranks = on_ranks(2, lambda world: [learn(world, ppo(), change=forget)["flat"] for forget in FORGOTTEN])
    for forget, *found in zip(FORGOTTEN, *ranks, strict=True):
        assert max((flat - alone).abs().max() for flat in found) > 1e-5, forget


@pytest.mark.parametrize("kind", ["kernels", "masks"])
def test_a_loss_that_is_not_finite_on_one_rank_is_refused_by_all_before_the_step(kind: str) -> None:
    def spoil(world: World) -> dict[str, Any]:
        seed_everything(0)
        algo = KINDS[kind](ENVS // 2)
        algo.join(world)
        rollout = rollout_of(algo, _spec_of(algo), world.share(ENVS), 0)
        before = algo.optimizer.parameters.clone()
        algo.reward_scaler.forward = lambda reward, is_last: reward  # type: ignore[union-attr,method-assign]
        if world.rank == 1:
            rollout.reward[3, 1] = float("nan")
        try:
            algo.update(rollout, Progress(total_env_steps=100, num_ranks=2))
        except NonFiniteError as error:
            return {"said": str(error), "same": torch.equal(before, algo.optimizer.parameters)}
        return {"said": "nothing", "same": False}

    first, second = on_ranks(2, spoil)
    assert first == second
    assert "the loss is nan" in first["said"]
    assert first["same"]


@pytest.mark.parametrize("kind", ["kernels", "reinforce, memory"])
def test_what_two_ranks_saved_is_continued_by_one_process_and_by_three(kind: str, same: Callable[[Any, Any], bool]) -> None:
    def load(world: World, state: Any) -> Any:
        seed_everything(5)
        share = world.share(ENVS)
        algo = KINDS[kind](share.stop - share.start)
        algo.join(world)
        algo.load_state_dict(state)
        saved = copy.deepcopy(algo.state_dict())
        rollout = rollout_of(algo, _spec_of(algo), share, 3)
        algo.update(rollout, Progress(total_env_steps=10_000, env_steps=400, num_ranks=world.size))
        return {"saved": saved, "flat": algo.optimizer.parameters.clone()}

    state = on_ranks(2, lambda world: learn(world, KINDS[kind]))[0]["state"]
    alone = load(World(), state)
    assert same(alone["saved"], state)
    for found in on_ranks(3, lambda world: load(world, state)):
        assert same(found["saved"], state)
        torch.testing.assert_close(found["flat"], alone["flat"], atol=1e-6, rtol=0.0)


def test_ranks_begin_with_the_parameters_of_rank_0() -> None:
    def begin(world: World) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(world.rank)
        algo = ppo()(3)
        before = algo.optimizer.parameters.clone()
        algo.join(world)
        return before, algo.optimizer.parameters

    (first, joined), (second, other) = on_ranks(2, begin)
    assert not torch.equal(first, second)
    assert torch.equal(joined, first)
    assert torch.equal(other, first)


def test_small_minibatches_on_many_ranks_are_warned_of() -> None:
    settings = ["algo=ppo", "env=cartpole", "recipe=null", "env.num_envs=8", "algo.rollout_length=256", "algo.num_minibatches=8"]
    config = Composer().compose(settings).config
    algo = ppo(rollout_length=256)(8)
    (note,) = ranks_notes(algo, config, World(0, 2))
    assert "has 128 rows of a minibatch" in note
    assert "choose algo.num_minibatches=4" in note
    assert ranks_notes(algo, config, World()) == []
    config.algo.num_minibatches = 4
    assert ranks_notes(algo, config, World(0, 2)) == []
