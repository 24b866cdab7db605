"""Trained policies as ONNX and TorchScript files that include everything between an observation and an action.

The graph takes observations as the environment returns them, B at a time, and returns actions as the environment takes them. It includes
the encoding of bytes and choices, normalisation, the network, its most likely action, and the clipping or rescaling to the action space.
Its actions are those of `rlx.load`, up to the rounding of float32.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

import rlx
from rlx.envs.actions import stretch
from rlx.envs.masks import is_masked, with_mask
from rlx.errors import ConfigError
from rlx.policy import Policy
from rlx.spaces import ACTION_MASK, ProductSpace, describe_space, mask_width, space_leaves
from rlx.tree_ops import leaves, with_leaves
from rlx.types import Exportable, Tree

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt"}
_MASK_PATH = f"[{ACTION_MASK!r}]"
_BATCH = 2
"""Batch size that a graph is traced with; exporters would treat a size of 1 as constant."""


class PolicyGraph(nn.Module):
    """A module from observations to actions, both in the environment's format.

    Inputs are the parts of the observation, each [B, *]: one, unless the space is a Dict or Tuple. A mask of actions that is no part of
    the observation is one more, action_mask [B, M], and a policy with memory has is_first [B] bool and the parts of its carry. Outputs
    are the parts of the actions, each [B, *], and the parts of the next carry.

    Raises:
        ConfigError: if the policy's actions are not the output of a graph, or a part of its observations cannot be encoded in one.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        name = policy.config.algo.name
        if not isinstance(policy.algorithm, Exportable):
            why = "its actions come from a search, a planner or an imagination model, and its network alone would choose others"
            if not type(policy.algorithm).__module__.startswith("rlx."):
                why = "its class has no policy_module(), see rlx.types.Exportable"
            raise ConfigError(f"algo={name} cannot be exported: {why}; rlx.load returns the whole policy in Python")
        self.module = policy.algorithm.policy_module()
        seen, action_space = policy.spec.observation_space, policy.spec.action_space
        self._parts = space_leaves(policy.observation_space)
        self._is_box = isinstance(policy.observation_space, spaces.Box)
        self._takes_trees = not isinstance(seen, spaces.Box)
        self._is_masked = is_masked(seen, action_space)
        self._num_choices = mask_width(action_space)
        self._mask_at = next((i for i, (path, _) in enumerate(self._parts) if path == _MASK_PATH and self._is_masked), None)
        structure = _structure(policy.observation_space)
        if self._mask_at is not None:
            del structure[ACTION_MASK]
        self._tree_structure = structure
        for path, part in self._parts:
            if not isinstance(part, spaces.Box | spaces.Discrete | spaces.MultiBinary | spaces.MultiDiscrete):
                raise ConfigError(f"env={policy.config.env.id} observes {path or 'a'} {type(part).__name__}, which cannot be exported")
        if self._mask_at is not None and spaces.flatdim(self._parts[self._mask_at][1]) != self._num_choices:
            raise ConfigError(f"env={policy.config.env.id} has masks of {self._parts[self._mask_at][1]}, which cannot be exported: "
                              f"only [{self._num_choices}], one entry for each choice")  # fmt: skip
        self._carry = policy.initial_carry(_BATCH)
        rescale = policy.config.env.rescale_actions and action_space is not policy.action_space
        in_parts = action_space.parts if isinstance(action_space, ProductSpace) else [action_space]
        leaves_of_actions = space_leaves(policy.action_space)
        self._action_paths = [path for path, _ in leaves_of_actions]
        self._is_product = isinstance(action_space, ProductSpace)
        self.actions = nn.ModuleList(
            _EnvAction(leaf, part, rescale=rescale) for (_, leaf), part in zip(leaves_of_actions, in_parts, strict=True)
        )

    @property
    def num_obs(self) -> int:
        """Number of inputs that are parts of the observation, or its mask."""
        return len(self._parts) + self._takes_mask

    @property
    def _takes_mask(self) -> bool:
        """Whether the mask is an input of its own."""
        return self._is_masked and self._mask_at is None

    @property
    def input_names(self) -> list[str]:
        obs = ["_".join(["obs", *_words(path)]) for path, _ in self._parts]
        obs += [ACTION_MASK] * self._takes_mask
        carry = [f"carry_{i}" for i in range(len(leaves(self._carry)))]
        return [*obs, "is_first", *carry] if carry else obs

    @property
    def output_names(self) -> list[str]:
        actions = ["_".join(["action", *_words(path)]) for path in self._action_paths]
        return [*actions, *(f"next_carry_{i}" for i in range(len(leaves(self._carry))))]

    def examples(self) -> tuple[Tensor, ...]:
        """Example inputs for tracing."""
        obs = []
        for _, part in self._parts:
            low = part.low if isinstance(part, spaces.Box) else np.full(part.shape or (), getattr(part, "start", 0))
            obs.append(torch.zeros((_BATCH, *(part.shape or ())), dtype=_torch_dtype(part)))
            if not isinstance(part, spaces.Box):
                obs[-1] += torch.from_numpy(np.asarray(low)).to(obs[-1].dtype)
        if self._takes_mask:
            obs.append(torch.ones(_BATCH, self._num_choices, dtype=torch.bool))
        carry = leaves(self._carry)
        return (*obs, torch.ones(_BATCH, dtype=torch.bool), *carry) if carry else tuple(obs)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        obs, memory = self._encode(inputs[: self.num_obs]), inputs[self.num_obs :]
        is_first = memory[0] if memory else torch.zeros_like(inputs[0].reshape(inputs[0].shape[0], -1)[:, 0], dtype=torch.bool)
        carry = with_leaves(self._carry, memory[1:]) if memory else self._carry
        action, carry = self.module(obs, carry, is_first)
        return tuple(x.detach() for x in (*self._to_env(action), *leaves(carry)))

    def _encode(self, parts: tuple[Tensor, ...]) -> Tree:
        """Observations as the policy's network takes them: [B, *], or a tree of such parts."""
        if not self._takes_trees:
            if self._is_box:
                return _as_box(parts[0])
            return torch.cat([_encode(part, space) for part, (_, space) in zip(parts, self._parts, strict=True)], dim=1)
        seen = [_kept(part, space) for i, (part, (_, space)) in enumerate(zip(parts, self._parts, strict=False)) if i != self._mask_at]
        tree = with_leaves(self._tree_structure, seen)
        if not self._is_masked:
            return tree
        mask = parts[len(self._parts)] if self._mask_at is None else parts[self._mask_at]
        return with_mask(tree, mask.reshape(mask.shape[0], self._num_choices).to(torch.bool))

    def _to_env(self, action: Tensor) -> list[Tensor]:
        """Actions of the policy [B, *] as the parts of those of the environment."""
        if not self._is_product:
            return [self.actions[0](action)]
        numbers = action.split([part.num_numbers for part in self.actions], dim=1)
        return [part(x) for part, x in zip(self.actions, numbers, strict=True)]


class _EnvAction(nn.Module):
    """From a policy's numbers for a part of an action, [B] or [B, k], to the environment's [B, *]; as `rlx.envs.actions`."""

    def __init__(self, leaf: gymnasium.Space[Any], seen: gymnasium.Space[Any], *, rescale: bool) -> None:
        super().__init__()
        self._shape, self._dtype = leaf.shape or (), _torch_dtype(leaf)
        self.num_numbers = int(np.prod(seen.shape or (1,)))
        self._is_box = isinstance(leaf, spaces.Box)
        arrays = {"start": np.ravel(getattr(leaf, "start", 0))}
        if isinstance(leaf, spaces.Box) and isinstance(seen, spaces.Box):
            centre, half = stretch(leaf) if rescale else (np.zeros(seen.shape), np.ones(seen.shape))
            ends = {"low": leaf.low, "high": leaf.high, "seen_low": seen.low, "seen_high": seen.high}
            arrays = {"centre": centre, "half": half} | {key: end.ravel().astype(np.float64) for key, end in ends.items()}
        for key, array in arrays.items():
            self.register_buffer(f"_{key}", torch.from_numpy(np.array(array)), persistent=False)

    def forward(self, action: Tensor) -> Tensor:
        if self._is_box:
            clipped = action.to(torch.float64).clamp(self._seen_low, self._seen_high)  # type: ignore[arg-type]
            chosen = (self._centre + self._half * clipped).clamp(self._low, self._high)  # type: ignore[operator,arg-type]
        else:
            chosen = action.to(torch.int64).reshape(action.shape[0], self.num_numbers) + self._start  # type: ignore[operator]
        return chosen.to(self._dtype).reshape(action.shape[0], *self._shape)


def _kept(value: Tensor, space: gymnasium.Space[Any]) -> Tensor:
    """Members [B, *] of a part of a tree, as `rlx.envs.observations` gives them to algorithms."""
    if isinstance(space, spaces.Box):
        return _as_box(value)
    return value.to(torch.int8 if isinstance(space, spaces.MultiBinary) else torch.int64)


def _structure(space: gymnasium.Space[Any]) -> Tree:
    """A tree with the structure of a space's members."""
    if isinstance(space, spaces.Dict):
        return {key: _structure(part) for key, part in space.spaces.items()}
    return tuple(map(_structure, space.spaces)) if isinstance(space, spaces.Tuple) else None


def _as_box(value: Tensor) -> Tensor:
    """Members [B, *] of a Box with at least one dimension besides the batch, as a policy's input has."""
    return value if value.ndim > 1 else value.unsqueeze(1)


def _words(path: str) -> list[str]:
    """The keys of a path such as ['camera'][0], as words for the name of a graph's input."""
    return ["".join(c if c.isalnum() else "_" for c in part.strip("'\"")) for part in path.replace("]", "").split("[")[1:]]


def _torch_dtype(space: gymnasium.Space[Any]) -> torch.dtype:
    """The dtype of a graph's input for members of a space; float32 where torch has no such dtype."""
    try:
        return torch.from_numpy(np.zeros(0, dtype=space.dtype)).dtype
    except TypeError:
        return torch.float32


def _encode(value: Tensor, space: gymnasium.Space[Any]) -> Tensor:
    """Encodings [B, D] float32 of members [B, *] of a space, equal to those of `rlx.envs.edge`."""
    if isinstance(space, spaces.Box):
        vector = value.reshape(value.shape[0], -1).to(torch.float32)
        return vector * (1.0 / max(1.0, float(space.high.max()))) if space.dtype == np.uint8 else vector
    if isinstance(space, spaces.Discrete):
        return nn.functional.one_hot(value.to(torch.int64) - int(space.start), int(space.n)).to(torch.float32)
    if isinstance(space, spaces.MultiDiscrete):
        flat, start = value.reshape(value.shape[0], -1).to(torch.int64), np.ravel(space.start)
        hot = [nn.functional.one_hot(flat[:, i] - int(start[i]), int(n)) for i, n in enumerate(np.ravel(space.nvec))]
        return torch.cat(hot, dim=1).to(torch.float32)
    return value.reshape(value.shape[0], -1).to(torch.float32)


def description(policy: Policy, run: str) -> dict[str, str]:
    """A file's metadata: the run, the versions and the spaces."""
    return {
        "rlx_version": rlx.__version__, "run": run, "algo": policy.config.algo.name, "env": policy.config.env.id,
        "env_kwargs": json.dumps(policy.config.env.kwargs), "env_steps": str(policy.env_steps), "seed": str(policy.config.seed),
        "observation_space": describe_space(policy.observation_space), "action_space": describe_space(policy.action_space),
    }  # fmt: skip


def export_policy(policy: Policy, kind: str, *, run: str) -> bytes:
    """The content of a file with a policy, in evaluation mode.

    Args:
        policy: on the CPU.
        kind: onnx or torchscript.
        run: name of the run in the file's metadata.

    Raises:
        ConfigError: if this policy cannot be exported, or a package for it is missing.
    """
    graph = PolicyGraph(policy).eval()
    with torch.enable_grad(), warnings.catch_warnings():  # without gradients networks compute in NumPy, which exporters cannot trace
        warnings.simplefilter("ignore")  # torch's own deprecations
        return _onnx(graph, description(policy, run)) if kind == "onnx" else _torchscript(graph, description(policy, run))


def _onnx(graph: PolicyGraph, described: dict[str, str]) -> bytes:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"--format onnx needs a package that is not installed ({error.name}): pip install 'rlx[export]'") from error
    batch = torch.export.Dim("batch")
    examples = graph.examples()
    with _quiet("torch.onnx"):
        program = torch.onnx.export(
            graph, examples, dynamo=True, verbose=False, input_names=graph.input_names, output_names=graph.output_names,
            dynamic_shapes=(tuple({0: batch} for _ in examples),),
        )  # fmt: skip
    assert program is not None
    program.model.metadata_props.update(described)
    return program.model_proto.SerializeToString()


def _torchscript(graph: PolicyGraph, described: dict[str, str]) -> bytes:
    """A traced module. torch deprecated TorchScript in 2.13 and still loads it; `torch.export` needs a compiler for use from C++."""
    traced, buffer = torch.jit.trace(graph, graph.examples(), check_trace=False), io.BytesIO()
    torch.jit.save(traced, buffer, _extra_files={"rlx.json": json.dumps(described | {"inputs": graph.input_names})})
    return buffer.getvalue()


@contextlib.contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Suppress a logger's messages below errors in the block."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
