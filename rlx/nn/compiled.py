"""Small networks on a CPU through the kernels of `rlx.nn.kernels`: one call each for acting, values and whole gradient steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlx.compiled_code import load, with_arguments
from rlx.nn.discrete_heads import CategoricalHead
from rlx.nn.finite import refuse_non_finite
from rlx.nn.heads import GaussianHead
from rlx.nn.kernel_modules import ACTING, LEARNING
from rlx.nn.leaf_encoders import Encoder, FlatEncoder
from rlx.nn.losses import Batch, PolicyGradientLoss, Steps
from rlx.nn.mlp import MLP
from rlx.nn.optim import FlatAdam
from rlx.types import Mode

Array = NDArray[Any]
_OBJECTIVES = {"clip": 0, "surrogate": 1, "log_prob": 2, "spo": 3}  # as in `rlx.nn.kernels`
_ACTIVATIONS = "tanh", "relu", "elu", "silu", "gelu"  # as in `rlx.nn.kernel_parts`
_WITH_SLOPES = "silu", "gelu"
_TILE = 128  # as in `rlx.nn.kernels`


class CompiledNetwork:
    """Views of a network's parameters for the kernels; valid while the parameters stay where they are.

    All of them are views of one float32 vector on the CPU (see `FlatAdam`).

    Args:
        encoder: without weights. Acting needs a `FlatEncoder`, which gives the normalisation.
        head: of the action distribution.
        policy: from inputs to the distribution's parameters and, without a critic, the value.
        critic: from inputs to the value.
    """

    def __init__(self, encoder: Encoder, head: CategoricalHead | GaussianHead, policy: MLP, critic: MLP | None) -> None:
        linears = [layer for mlp in (policy, critic) if mlp for layer in mlp.linears]
        self._forward_kernel, self._act_kernel = load(ACTING)
        self._theta: Array = torch.empty(0).set_(linears[0].weight.untyped_storage()).numpy()
        self._parameters = (self._theta.ctypes.data, self._theta.size)
        rows = [(x.in_features, x.out_features, int(x.weight.storage_offset()), int(x.bias.storage_offset())) for x in linears]
        self._layers = np.array(rows, dtype=np.int64)
        self._num_policy = len(policy.linears)
        self._holes = np.array([hole for mlp in (policy, critic) if mlp for hole in _holes(mlp)], dtype=np.int64)
        self._is_gaussian = isinstance(head, GaussianHead)
        self._log_std_at = int(head.log_std.storage_offset()) if isinstance(head, GaussianHead) else -1
        self._num_actions = head.num_outputs
        self._world = head.world
        self._has_slopes = policy.activation in _WITH_SLOPES
        self._activation = _ACTIVATIONS.index(policy.activation)
        self._encoder = encoder
        width = encoder.num_features
        self._normalization: tuple[Array, Array, float] = (np.ones(width, np.float32), np.zeros(width, np.float32), np.inf)
        self.acts = isinstance(encoder, FlatEncoder)
        """Whether `act` can be used: other encoders turn observations into inputs by tensor operations."""
        if isinstance(encoder, FlatEncoder) and (normalizer := encoder.normalizer):
            self._normalization = normalizer.scale.numpy(), normalizer.shift.numpy(), normalizer.clip
        self._widest = int(max(width, self._layers[:, 1].max()))
        self._num_hidden = int(self._layers[:, 1].sum())
        self._acting: dict[int, _Acting] = {}

    def act(self, obs: Array, mode: Mode) -> Array:
        """Observations [B, *] to actions [B, *], under NumPy's global generator."""
        num_rows = len(obs)
        if num_rows not in self._acting:
            self._acting[num_rows] = _Acting(self, num_rows)
        return self._acting[num_rows](obs, mode)

    def policy_params(self, inputs: Tensor) -> Tensor:
        """Inputs [N, D] to distribution parameters [N, D']."""
        return self._forward(inputs, 0, self._num_policy)[:, : self._num_actions]

    def value(self, inputs: Tensor) -> Tensor:
        """Inputs [N, D] to values [N]."""
        shared = self._num_policy == len(self._layers)
        return self._forward(inputs, 0 if shared else self._num_policy, len(self._layers))[:, -1]

    def _forward(self, inputs: Tensor, first: int, last: int) -> Tensor:
        x, out = _array(inputs), np.empty((len(inputs), self._layers[last - 1, 1]), np.float32)
        space = np.empty((2, len(inputs) * self._widest), np.float32)
        self._forward_kernel(*self._parameters, self._layers.ctypes.data, first, last, self._activation, x.ctypes.data, len(x),
                              space.ctypes.data, space.shape[1], out.ctypes.data)  # fmt: skip
        return torch.from_numpy(out)

    def gradient_steps(
        self,
        optimizer: FlatAdam,
        loss: PolicyGradientLoss,
        batch: Batch,
        *,
        learning_rate: float,
        order: Tensor | None,
        num_minibatches: int,
    ) -> Steps:
        """See `rlx.nn.policy_gradient.gradient_steps`."""
        num_rows = len(batch.action)
        batch_size = -(-num_rows // num_minibatches)
        log_ratios, stats = np.empty(num_rows, np.float32), np.empty((-(-num_rows // batch_size), 4))
        visit = self._visitor(optimizer, loss, batch, learning_rate=learning_rate, batch_size=batch_size)
        taken = visit(np.arange(num_rows) if order is None else order.numpy(), log_ratios, stats, 0)
        optimizer.num_steps += taken
        if taken < len(stats):
            policy_loss, value_loss, entropy, norm = stats[taken].tolist()
            refuse_non_finite(policy_loss + loss.value_coef * value_loss - loss.entropy_coef * entropy, norm)
        return Steps(torch.from_numpy(log_ratios), *torch.from_numpy(stats.T.astype(np.float32)))

    def gradients(
        self, optimizer: FlatAdam, loss: PolicyGradientLoss, batch: Batch, *, largest: int
    ) -> Callable[[Tensor | None], tuple[Tensor, Tensor]]:
        """A function that leaves the gradient of the mean loss over some rows of a batch in the optimiser.

        It takes the numbers of at most `largest` rows, or None for all, and returns their log-ratios [M] and losses [3] as of `Gradient`.
        """
        visit = self._visitor(optimizer, loss, batch, learning_rate=0.0, batch_size=largest)

        def gradient(part: Tensor | None) -> tuple[Tensor, Tensor]:
            rows = np.arange(len(batch.action)) if part is None else part.numpy()
            log_ratios, stats = np.empty(len(rows), np.float32), np.empty((1, 4))
            visit(rows, log_ratios, stats, 1)
            return torch.from_numpy(log_ratios), torch.from_numpy(stats[0, :3].astype(np.float32))

        return gradient

    def _visitor(
        self, optimizer: FlatAdam, loss: PolicyGradientLoss, batch: Batch, *, learning_rate: float, batch_size: int
    ) -> Callable[[Array, Array, Array, int], int]:
        """The kernel `gradient_steps` of a batch, as a function of order, log-ratios, stats, and whether it takes no step."""
        num_tiles = self._encoder.num_features + self._num_hidden + 2 * self._widest + 5 + (self._num_hidden if self._has_slopes else 0)
        space = np.empty(num_tiles * _TILE + batch_size, np.float32)
        index = batch.action.contiguous().numpy()
        old_params = np.zeros((1, 1), np.float32) if batch.old_params is None else _array(batch.old_params)
        columns = [_array(x) for x in (batch.inputs, batch.action, batch.old_log_prob, batch.old_value, batch.advantage, batch.target)]
        inputs, *others = (x.ctypes.data for x in columns)
        action, old_log_prob, *values = others
        (take_steps,) = load(LEARNING)
        # Addresses are looked up once: that takes as long as a small minibatch does.
        state = (*self._parameters, *(x.ctypes.data for x in optimizer.arrays()))
        shape = (
            self._layers.ctypes.data,
            len(self._layers),
            self._num_policy,
            self._num_actions,
            self._log_std_at,
            self._activation,
            inputs,
        )
        data = (index.ctypes.data, action, old_log_prob, old_params.ctypes.data, old_params.shape[1], *values)
        value_clip = -1.0 if loss.value_clip is None else loss.value_clip
        settings = (batch_size, _OBJECTIVES[loss.objective], loss.normalize_advantage, loss.clip, loss.kl_coef, value_clip, loss.value_coef,
                    loss.entropy_coef, learning_rate, optimizer.max_grad_norm, optimizer.epsilon, *optimizer.betas, space.ctypes.data,
                    self._widest, self._num_hidden)  # fmt: skip
        holes = self._holes.ctypes.data, len(self._holes)

        def visit(rows: Array, log_ratios: Array, stats: Array, only_gradient: int) -> int:
            return take_steps(*state, optimizer.num_steps, *shape, len(rows), *data, rows.ctypes.data, *settings, log_ratios.ctypes.data,
                              stats.ctypes.data, only_gradient, *holes)  # fmt: skip

        visit.alive = space, index, old_params, columns  # type: ignore[attr-defined]
        return visit


class _Acting:
    """Acting for a fixed number of rows. The addresses of its buffers are looked up once."""

    def __init__(self, network: CompiledNetwork, num_rows: int) -> None:
        num_actions, width = network._num_actions, network._encoder.num_features
        assert isinstance(network._encoder, FlatEncoder)
        self._is_gaussian, self._byte_scale = network._is_gaussian, network._encoder.scale_numpy
        self._obs: Array = np.zeros((num_rows, width), np.float32)
        self._noise: Array = np.zeros((num_rows, num_actions if network._is_gaussian else 1))
        world = network._world
        self._drawn = (num_rows * world.size, self._noise.shape[1])  # of all ranks, whose generators stay equal
        self._rows = None if world.size == 1 else slice(world.rank * num_rows, (world.rank + 1) * num_rows)
        self._indices: Array = np.zeros(num_rows, np.int64)
        self._actions: Array = np.zeros((num_rows, num_actions), np.float32)
        space, params = np.zeros((2, num_rows * network._widest), np.float32), np.zeros((num_rows, num_actions + 1), np.float32)
        scale, shift, bound = network._normalization
        self._call = {
            mode: with_arguments(
                network._act_kernel, network._theta, network._theta.size, network._layers, network._num_policy, num_actions,
                network._log_std_at, network._activation, self._obs, num_rows, scale, shift, np.array([bound], np.float32), self._noise,
                mode == "train", space, space.shape[1], params, self._indices, self._actions,
            )
            for mode in ("train", "eval")
        }  # fmt: skip

    def __call__(self, obs: Array, mode: Mode) -> Array:
        self._obs[:] = obs.reshape(self._obs.shape)
        if self._byte_scale is not None:
            self._obs *= self._byte_scale
        if mode == "train":
            noise = np.random.standard_normal(self._drawn) if self._is_gaussian else np.random.random_sample(self._drawn)
            self._noise[:] = noise if self._rows is None else noise[self._rows]
        self._call[mode]()
        return (self._actions if self._is_gaussian else self._indices).copy()


def _holes(mlp: MLP) -> Iterator[tuple[int, int, int, int]]:
    """The blocks of weights that stay 0 because of streams: offset of the first weight, rows, columns, and columns of the whole matrix."""
    for i, layer in enumerate(mlp.linears[: len(mlp.streams.sizes)] if mlp.streams else ()):
        first, width = int(layer.weight.storage_offset()), layer.in_features
        for rows, columns in mlp.streams.blocks(i) if mlp.streams else ():
            at, num_rows = first + rows.start * width, rows.stop - rows.start
            yield at, num_rows, columns.start, width
            yield at + columns.stop, num_rows, width - columns.stop, width


def _array(tensor: Tensor) -> Array:
    """A float32 array [*] in C order."""
    return np.ascontiguousarray(tensor.numpy(), dtype=np.float32)
