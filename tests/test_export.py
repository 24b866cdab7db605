"""Exported policies choose the actions of loaded ones, and exported tables equal the record."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import masked
import numpy as np
import onnxruntime
import pytest
import torch
from test_api import Odd, odd, trained  # noqa: F401  (odd is a fixture)

import rlx
from rlx.envs.masks import MaskReader
from rlx.policy_graph import PolicyGraph, export_policy
from rlx.spaces import space_leaves
from rlx.tree_ops import leaves, named_leaves

Command = Callable[[str], tuple[int, str, str]]
NUM_OBS = 1000


def observations(policy: rlx.Policy, scale: float = 2.0) -> Any:
    """A thousand of them, spread beyond what training saw."""
    space = policy.observation_space
    if not space_leaves(space)[0][0]:
        return (np.random.default_rng(0).normal(size=(NUM_OBS, *space.shape)) * scale).astype(space.dtype)  # type: ignore[misc]
    space.seed(0)
    sampled = [space.sample() for _ in range(NUM_OBS)]
    return {key: np.stack([obs[key] for obs in sampled]) for key in sampled[0]}


def run_onnx(data: bytes, obs: Any) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(data)
    meta = session.get_modelmeta().custom_metadata_map
    assert {"run": "run", "algo": "ppo", "env_steps": "120"}.items() <= meta.items()
    names = [part.name for part in session.get_inputs()]
    parts = list(obs.values()) if isinstance(obs, dict) else [obs]
    (action,) = session.run(["action"], dict(zip(names, parts, strict=True)))
    return np.asarray(action)


def run_torchscript(data: bytes, obs: Any) -> np.ndarray[Any, Any]:
    parts = list(obs.values()) if isinstance(obs, dict) else [obs]
    extra = {"rlx.json": ""}
    (action,) = torch.jit.load(io.BytesIO(data), _extra_files=extra)(*map(torch.from_numpy, parts))
    assert len(json.loads(extra["rlx.json"])["inputs"]) == len(parts)
    return np.asarray(action)


RUN = {"onnx": run_onnx, "torchscript": run_torchscript}
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


SETTINGS = {
    "discrete": ("ppo", "native", ["algo.shared_network=true"]),
    "continuous": ("a2c", "continuous", ["algo.normalize_observation=false"]),
    "bytes": ("reinforce", "grid", []),
    "action values": ("dqn", "native", ["algo.dueling=true", "algo.distributional=c51"]),
    "dictionary": ("ppo", "native", ["env=odd_env:Odd"]),
}


@pytest.mark.parametrize(("name", "kind"), [("discrete", "onnx"), ("dictionary", "onnx"), *((name, "torchscript") for name in SETTINGS)])
def test_an_exported_policy_acts_as_the_loaded_one(name: str, kind: str, odd: Path, run_command: Command) -> None:  # noqa: F811
    algo, env, settings = SETTINGS[name]
    policy = trained(algo, env, "run", *settings).load()
    code, out, error = run_command(f"export run --format {kind}")
    assert code == 0, error
    obs = observations(policy)
    exported = RUN[kind](Path(out.split(":")[0]).read_bytes(), obs)
    actions, _ = policy.act(obs)
    assert exported.dtype == actions.dtype
    assert len(np.unique(actions.round(4), axis=0)) > 1
    if actions.dtype.kind == "i":
        np.testing.assert_array_equal(exported, actions)
    else:
        np.testing.assert_allclose(exported, actions, rtol=1e-5, atol=1e-6)


def test_what_no_graph_can_do_is_refused(here: Path, run_command: Command) -> None:
    trained("pets", "continuous", "planner", "loop.total_env_steps=12")
    code, _, error = run_command("export planner")
    assert code == 2
    assert "algo=pets cannot be exported: its actions come from a search" in error
    assert "there is no directory nowhere" in run_command("export planner -o nowhere/x.onnx")[2]


def test_memory_goes_in_and_comes_out_of_the_graph(here: Path) -> None:
    class Counts(torch.nn.Module):
        def forward(self, obs: torch.Tensor, carry: Any, is_first: torch.Tensor) -> tuple[torch.Tensor, Any]:
            count = torch.where(is_first, 0, carry["count"]) + 1
            return count % 2, {"count": count}

    policy = trained("ppo", "native", "run").load()
    policy.algorithm.policy_module = Counts  # type: ignore[attr-defined]
    policy.initial_carry = lambda n: {"count": torch.zeros(n, dtype=torch.int64)}  # type: ignore[method-assign]
    graph = PolicyGraph(policy)
    assert (graph.input_names, graph.output_names) == (["obs", "is_first", "carry_0"], ["action", "next_carry_0"])
    exported = torch.jit.load(io.BytesIO(export_policy(policy, "torchscript", run="run")))
    action, count = exported(torch.zeros(3, 4), torch.tensor([False, True, False]), torch.tensor([5, 6, 7]))
    assert action.tolist() == [0, 1, 0]
    assert count.tolist() == [6, 1, 8]


def test_a_policy_that_sees_trees_is_given_trees(odd: Path) -> None:  # noqa: F811
    class Sees(torch.nn.Module):
        def forward(self, obs: Any, carry: Any, is_first: torch.Tensor) -> tuple[torch.Tensor, Any]:
            return torch.stack([obs["image"].sum((1, 2)) + (obs["place"] == 2), obs["speed"][:, 1]], dim=1), carry

    policy = trained("ppo", "native", "run", "env=odd_env:Odd").load()
    policy.spec = dataclasses.replace(policy.spec, observation_space=policy.observation_space)
    policy.algorithm.policy_module = Sees  # type: ignore[attr-defined]
    exported = torch.jit.load(io.BytesIO(export_policy(policy, "torchscript", run="run")))
    image, place, speed = torch.zeros(3, 2, 2, dtype=torch.uint8), torch.tensor([0, 2, 1]), torch.tensor([[9.0, 0.5]] * 3)
    assert exported(image, place, speed)[0].tolist() == [[1.0, 5.0], [2.0, 5.0], [1.0, 5.0]]  # rescaled to the action space


def stacked(*members: Any) -> Any:
    """Members of a space in one tree of arrays [B, *]."""
    if isinstance(members[0], dict):
        return {key: stacked(*(member[key] for member in members)) for key in members[0]}
    return tuple(map(stacked, *members)) if isinstance(members[0], tuple) else np.stack(members)


@pytest.mark.parametrize(
    ("kind", "kwargs", "more"),
    [
        ("torchscript", {"where": "info", "actions": "nested"}, []),
        ("torchscript", {"where": "obs"}, []),
        ("onnx", {"where": "method", "actions": "discrete"}, ["algo.memory=lstm", "algo.memory_size=4"]),
    ],
)
def test_masks_memories_and_actions_with_parts_are_in_the_graph(kind: str, kwargs: dict[str, Any], more: list[str], here: Path) -> None:
    given = [f"env.kwargs.{key}={str(value).lower()}" for key, value in kwargs.items()]
    policy = trained("ppo", "native", "run", "env=masked:Masked", *given, *more).load()
    env = masked.Masked(**kwargs)
    obs, masks = zip(*((env.reset(seed=i)[0], env.mask) for i in range(5)), strict=True)
    in_obs = kwargs["where"] == "obs"
    wanted = policy.act(stacked(*obs), action_mask=None if in_obs else stacked(*masks))
    seen = {path: torch.from_numpy(np.stack(many)) for path, many in zip_leaves(policy.observation_space, obs)}
    inputs = list(seen.values())
    if not in_obs:
        inputs.append(torch.from_numpy(np.stack([MaskReader(env.action_space, "mask")(mask) for mask in masks])))
    if more:
        inputs += [torch.ones(5, dtype=torch.bool), *leaves(policy.initial_carry(5))]
    data = export_policy(policy, kind, run="run")
    if kind == "onnx":
        session = onnxruntime.InferenceSession(data)
        found = session.run(None, dict(zip([x.name for x in session.get_inputs()], [x.numpy() for x in inputs], strict=True)))
    else:
        found = [x.numpy() for x in torch.jit.load(io.BytesIO(data))(*inputs)]
    for got, expected in zip(found, map(np.asarray, leaves(wanted)), strict=True):
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def zip_leaves(space: Any, members: Any) -> list[tuple[str, list[Any]]]:
    """The leaves of members of a space, by path, in the order of the space."""
    found = [dict(named_leaves(member)) for member in members]
    return [(path, [leaf[path] for leaf in found]) for path, _ in space_leaves(space)]


def test_a_table_holds_every_line_of_the_record(here: Path, run_command: Command) -> None:
    run = trained("ppo", "native", "run")
    code, out, _ = run_command("export run --format csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (code, list(rows[0])[:2]) == (0, ["env_steps", "iteration"])
    assert [{k: float(v) for k, v in row.items() if v} for row in rows] == run.metrics()
    assert run_command("export run --format csv -o table.csv")[0] == 0
    assert (here / "table.csv").read_text() == out
    assert run_command("export run --format csv -o nowhere/table.csv")[0] == 6
    assert "leave it out" in run_command("export run --format csv --checkpoint best")[2]
