"""Ranks of one run agree to the last bit, and learn what one process with all environments learns."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from ranks import on_ranks

from rlx import distributed, memory
from rlx.distributed import World, launched, start
from rlx.errors import ConfigError
from rlx.nn.networks import Network
from rlx.nn.normalize import ObservationNormalizer, RewardScaler
from rlx.nn.optim import FlatAdam
from rlx.rng import seed_everything
from rlx.shared_sums import is_possible
from rlx.tree_ops import pick
from rlx.types import EnvSpec


def _everything(world: World) -> dict[str, Any]:
    """Every method of a world, each with arguments that differ by rank."""
    rank = world.rank
    torch.manual_seed(0)
    noise = world.draw(torch.zeros(2, 3), lambda x: x.normal_())
    found = {
        "sum": world.sum_(torch.linspace(-1.0, 1.0, 10_000).cos() * (rank + 0.1)).numpy(),
        "sum_float64": world.sum_float64(np.array([rank + 1.0, 1e-16])),
        "all_float64": world.all_float64(np.array([[float(rank)]])),
        "rows": world.gather_rows(torch.tensor([[rank, -rank], [7, 8]])),
        "columns": world.gather_rows(torch.tensor([[True, rank == 1], [False, True]]), dim=1),
        "nothing": world.gather_rows(torch.zeros(0, 2), dim=1).shape,
        "own": world.own_rows(torch.arange(6)),
        "gather": world.gather({"rank": rank}),
        "broadcast": world.broadcast(f"of {rank}"),
        "broadcast_": world.broadcast_(torch.tensor([rank + 5.0])),
        "agree": world.agree(1 << (2 * rank)),
        "noise": noise,
        "state": torch.get_rng_state(),
        "share": world.share(6),
    }
    world.check_equal("same")
    try:
        world.check_equal(f"rank {rank}", "the hash")
        found["differ"] = ""
    except Exception as error:
        found["differ"] = str(error)
    world.close()
    return found


def test_two_ranks_exchange_numbers_and_all_get_the_same_bits() -> None:
    first, second = on_ranks(2, _everything)
    assert np.array_equal(first["sum"], second["sum"])
    np.testing.assert_allclose(first["sum"], np.cos(np.linspace(-1, 1, 10_000)) * 1.2, atol=1e-6)
    for found in (first, second):
        assert found["sum_float64"].tolist() == [3.0, 2e-16]
        assert found["all_float64"].tolist() == [[[0.0]], [[1.0]]]
        assert found["rows"].tolist() == [[0, 0], [7, 8], [1, -1], [7, 8]]
        assert found["columns"].tolist() == [[True, False, True, True], [False, True, False, True]]
        assert found["nothing"] == (0, 4)
        assert found["broadcast"] == "of 0"
        assert found["broadcast_"].tolist() == [5.0]
        assert found["agree"] == 0b101
        assert "the hash of rank 1 differ from those of rank 0" in found["differ"]
    assert first["gather"] == [{"rank": 0}, {"rank": 1}]
    assert second["gather"] is None
    assert (first["share"], second["share"]) == (slice(0, 3), slice(3, 6))
    assert (first["own"].tolist(), second["own"].tolist()) == ([0, 1, 2], [3, 4, 5])


def test_the_noise_of_two_ranks_is_that_of_one_and_leaves_the_generators_equal() -> None:
    first, second = on_ranks(2, _everything)
    torch.manual_seed(0)
    assert torch.equal(torch.cat((first["noise"], second["noise"])), torch.empty(4, 3).normal_())
    assert torch.equal(first["state"], second["state"])
    assert torch.equal(first["state"], torch.get_rng_state())


def test_one_rank_needs_no_others() -> None:
    world, x = World(), torch.tensor([1.5])
    assert world.sum_(x) is x
    assert world.gather_rows(x) is x
    assert world.own_rows(x) is x
    assert world.broadcast_(x) is x
    assert world.gather("a") == ["a"]
    assert world.broadcast("a") == "a"
    assert world.agree(5) == 5
    assert world.all_float64(np.ones(2)).shape == (1, 2)
    assert world.share(7) == slice(0, 7)
    world.check_equal("anything")


def test_environments_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(ConfigError, match="use a multiple of 4, or 3 ranks"):
        World(0, 4).share(9)
    with pytest.raises(ConfigError, match="use a multiple of 2, or one process"):
        World(1, 2).share(7)


def test_a_rank_whose_peer_has_ended_is_told_to_resume() -> None:
    def leave(world: World) -> str:
        if world.rank == 1:
            return "left"
        world.sum_(torch.zeros(3))
        return "got an answer"

    first, second = on_ranks(2, leave)
    assert first.startswith("LostRankError: another rank has ended or cannot be reached")
    assert second == "left"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "2"}, "not RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "one"}, "RANK is 'one'; expected a whole number"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"RANK": "2"}, "expected LOCAL_RANK <= RANK < WORLD_SIZE"),
        ({"LOCAL_RANK": "1", "RANK": "0"}, "expected LOCAL_RANK <= RANK < WORLD_SIZE"),
    ],
)
def test_variables_of_torchrun_that_do_not_fit_are_refused(variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name in complete:
        monkeypatch.delenv(name, raising=False)
    for name, value in (variables if "WORLD_SIZE" in variables else complete | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as error:
        start()
    assert said in str(error.value)


def test_a_process_that_was_started_alone_is_the_only_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launched() == (0, 1)
    assert start() == World()


def _heights(num_rows: int) -> torch.Tensor:
    """Batches [N, 3]: a common feature, one that is nearly always 0, and a constant."""
    x = torch.from_numpy(np.random.default_rng(1).normal(5.0, 2.0, (num_rows, 3)).astype(np.float32))
    x[:, 1] *= x[:, 1] > 8.0
    x[:, 2] = 1.0
    return x


def _normalized(world: World, *, shares: bool = True) -> dict[str, Any]:
    normalizer = ObservationNormalizer(3, clip=5.0)
    scaler = RewardScaler(world.share(6).stop - world.share(6).start, discount=0.9, clip=10.0)
    if shares:
        normalizer.moments.world = scaler.moments.world = world
    for batch in _heights(240).split(120):
        normalizer.update(batch.view(20, 6, 3)[:, world.share(6)].flatten(0, 1))
    reward, is_last = _heights(60)[:, 0].view(10, 6), _heights(60)[:, 1].view(10, 6) > 8.0
    scaled = [scaler(r[:, world.share(6)], last[:, world.share(6)]) for r, last in zip(reward.split(5), is_last.split(5), strict=True)]
    return {"obs": normalizer.get_extra_state(), "scale": normalizer.scale, "reward": scaler.state_dict(), "scaled": torch.cat(scaled)}


@pytest.mark.parametrize("size", [2, 3])
def test_running_statistics_of_all_ranks_are_those_of_one_process(size: int) -> None:
    alone = _normalized(World())
    ranks = on_ranks(size, _normalized)
    for found in ranks:
        for one, many in ((alone["obs"], found["obs"]), (alone["reward"]["_extra_state"], found["reward"]["_extra_state"])):
            for name in ("mean", "variance", "count"):
                torch.testing.assert_close(many[name], one[name], rtol=2e-15, atol=1e-15)
        assert torch.equal(found["obs"]["rare"]["usual"], alone["obs"]["rare"]["usual"])
        assert torch.equal(found["obs"]["rare"]["count"], alone["obs"]["rare"]["count"])
        assert torch.equal(found["scale"], ranks[0]["scale"])
        assert torch.equal(found["reward"]["running_return"], alone["reward"]["running_return"])  # of all environments, in their order
    torch.testing.assert_close(torch.cat([found["scaled"] for found in ranks], dim=1), alone["scaled"])


def test_statistics_of_each_rank_alone_would_differ() -> None:
    first, second = on_ranks(2, lambda world: _normalized(world, shares=False))
    assert not torch.allclose(first["obs"]["mean"], second["obs"]["mean"], rtol=1e-4)
    assert not torch.allclose(first["reward"]["_extra_state"]["mean"], second["reward"]["_extra_state"]["mean"], rtol=1e-4)


def test_an_observation_that_is_not_finite_is_refused_by_all_ranks() -> None:
    def absorb(world: World) -> None:
        normalizer = ObservationNormalizer(2, clip=5.0)
        normalizer.moments.world = world
        normalizer.update(torch.tensor([[1.0, float("nan") if world.rank == 1 else 2.0]]))

    assert all(said.startswith("NonFiniteError: the environment gave") for said in on_ranks(2, absorb))


SPACES = {
    "kernels": (spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,))),
    "kernels, discrete": (spaces.Box(-1, 1, (3,)), spaces.Discrete(4)),
    "tensors": (spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Discrete(3)), spaces.MultiDiscrete([2, 3])),
    "bits": (spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Discrete(3)), spaces.MultiBinary(5)),
}


def _acting(world: World, kind: str) -> dict[str, Any]:
    seed_everything(3)
    observation_space, action_space = SPACES[kind]
    net = Network(EnvSpec(id="test", observation_space=observation_space, action_space=action_space), hidden_sizes=(8,), activation="tanh")
    FlatAdam(net, max_grad_norm=1.0)
    net.join(world)
    obs: Any = torch.linspace(-1, 1, 18).view(6, 3)
    if isinstance(observation_space, spaces.Dict):
        obs = {"a": torch.linspace(-1, 1, 12).view(6, 2), "b": torch.arange(6) % 3}
    mine = pick(obs, world.share(6))
    actions = [net.act(mine, (), torch.zeros(6, dtype=torch.bool)[world.share(6)], "train").action for _ in range(20)]
    return {"actions": torch.stack(actions), "next": (torch.rand(1), np.random.random_sample())}


@pytest.mark.parametrize("kind", SPACES)
def test_actions_of_two_ranks_are_those_of_one_process(kind: str) -> None:
    alone, (first, second) = _acting(World(), kind), on_ranks(2, lambda world: _acting(world, kind), preload=("rlx.nn.compiled",))
    torch.testing.assert_close(torch.cat((first["actions"], second["actions"]), dim=1), alone["actions"])
    assert first["next"] == second["next"] == alone["next"]


def _sums(world: World) -> list[Any]:
    found = []
    for n in (1, 7, 1000):
        x = torch.linspace(-1.0, 1.0, n, dtype=torch.float64 if n == 7 else torch.float32) * (1.0 + world.rank / 3.0)
        found += [world.sum_(x.clone() + i).numpy() for i in range(20)]
    return found


def test_sums_in_shared_memory_are_those_over_sockets() -> None:
    shared, sent = on_ranks(3, _sums), on_ranks(3, _sums, on_one_machine=False)
    for ranks in (shared, sent):
        for other in ranks[1:]:
            assert all(np.array_equal(a, b) for a, b in zip(ranks[0], other, strict=True))
    for a, b in zip(shared[0], sent[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(not is_possible(), reason="no shared memory for sums here")
def test_ranks_of_one_machine_share_memory_and_leave_nothing_behind() -> None:
    before = set(Path("/dev/shm").glob("rlx-*"))
    assert on_ranks(2, lambda world: distributed._shared is not None) == [True, True]
    assert on_ranks(2, lambda world: distributed._shared is not None, on_one_machine=False) == [False, False]
    assert set(Path("/dev/shm").glob("rlx-*")) <= before


@pytest.mark.parametrize("on_one_machine", [True, False])
def test_a_rank_that_has_left_is_missed(on_one_machine: bool) -> None:
    def leave(world: World) -> str:
        if world.rank == 1:
            world.close()
            time.sleep(0.2)
            return "left"
        world.sum_(torch.zeros(3))
        return "got an answer"

    first, second = on_ranks(2, leave, on_one_machine=on_one_machine)
    assert first.startswith("LostRankError: another rank has ended or cannot be reached")
    assert second == "left"


def test_free_memory_is_shared_by_the_ranks_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.Path, "read_text", lambda path: "MemAvailable: 1000 kB" if path.name == "meminfo" else "max")
    assert memory.free_bytes() == 1_024_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.free_bytes() == 256_000
