"""Gradient steps of small actor-critics from a replay, on a CPU, through the kernels of `rlx.nn.off_policy_kernels`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlx.compiled_code import Kernel, load
from rlx.nn.critics import Critics
from rlx.nn.finite import refuse_non_finite
from rlx.nn.kernel_modules import MOST_WEIGHTS, OFF_POLICY
from rlx.nn.mlp import MLP
from rlx.nn.optim import FlatAdam
from rlx.nn.targets import Target

_TILE, _SPARE, _NETWORKS = 128, 7, 16  # as in `rlx.nn.off_policy_kernels`


class CompiledActorCritic:
    """Views of the parameters of a policy and of K critics for the kernels; valid while the parameters stay where they are.

    Args:
        policy: from features to means and log standard deviations of a squashed Gaussian, or to actions before tanh.
        critics: of features and actions in [-1, 1].
        policy_optimizer: whose vector has the policy's parameters, and perhaps the logarithm of alpha.
        critics_optimizer: whose vector has the parameters of the critics, and no others.
        target: of the critics.
        target_policy: of the policy; None if targets use the policy itself.
        num_actions: A.
        log_alpha: the parameter, if it is learned.
    """

    def __init__(
        self,
        policy: MLP,
        critics: Critics,
        policy_optimizer: FlatAdam,
        critics_optimizer: FlatAdam,
        target: Tensor,
        target_policy: Tensor | None,
        *,
        num_actions: int,
        log_alpha: Tensor | None,
    ) -> None:
        self._num_members, self._num_actions = critics.num_members, num_actions
        self._policy_optimizer, self._critics_optimizer = policy_optimizer, critics_optimizer
        num_features = critics.num_inputs - num_actions
        policy_vector, critics_vector = policy_optimizer.parameters, critics_optimizer.parameters
        policy_layers = _layers(policy_vector, [(layer.weight, layer.bias) for layer in policy.linears], inputs_last=True)
        critic_layers = _layers(critics_vector, list(zip(critics.weights, critics.biases, strict=True)), inputs_last=False)
        is_gaussian = policy_layers[-1, 1] == 2 * num_actions
        self._log_alpha_at = -1 if log_alpha is None else int(log_alpha.storage_offset())
        widest = int(max(policy_layers[:, 1].max(), critic_layers[:, 1].max()))
        num_hidden = int(policy_layers[:, 1].sum() + self._num_members * critic_layers[:, 1].sum())
        space: NDArray[Any] = np.zeros((_SPARE + num_features + 2 * num_actions + 2 * widest + num_hidden, _TILE), np.float32)
        self._stats: NDArray[Any] = np.zeros(4)
        self._settings: NDArray[Any] = np.zeros(7)
        networks = [
            num_features, num_actions, policy.activation == "relu", is_gaussian, self._num_members, policy_layers.ctypes.data,
            len(policy_layers), critic_layers.ctypes.data, len(critic_layers), space.ctypes.data, len(space), widest,
        ]  # fmt: skip
        target_policy = policy_vector if target_policy is None else target_policy
        kernels = load(OFF_POLICY)
        now = [*_vector(policy_vector), *_vector(critics_vector)]
        self._targets = _Call(kernels[0], [*networks, *_vector(target_policy), *_vector(target)])
        self._values_step = _Call(kernels[1], [*networks, *now, *(x.ctypes.data for x in critics_optimizer.arrays())])
        self._policy_step = _Call(kernels[2], [*networks, *now, *(x.ctypes.data for x in policy_optimizer.arrays())])
        self._alive = policy_layers, critic_layers, space, target, target_policy

    def targets(
        self, features: Tensor, reward: Tensor, discount: Tensor, *, noise: Tensor | None = None, alpha: Tensor | None = None,
        smoothing: float = 0.0, smoothing_clip: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """Targets y [B] from the features [B, D] of successors.

        Args:
            features: of the policy and the target critics.
            reward: [B].
            discount: [B] of the successors' values.
            noise: [B, A] standard normal; not read for actions without noise.
            alpha: [1] weight of the entropy, of a Gaussian policy.
            smoothing: standard deviation of the noise on actions, of another one.
            smoothing_clip: bound of that noise.
        """
        num = len(features)
        features, reward, discount = _plain(features), _plain(reward), _plain(discount)
        noise = features if noise is None else _plain(noise)
        alpha = reward if alpha is None else alpha
        self._settings[:2] = smoothing, smoothing_clip
        out = torch.empty(num)
        self._targets(
            out.data_ptr(), features.data_ptr(), num, noise.data_ptr(), reward.data_ptr(), discount.data_ptr(), alpha.data_ptr(),
            self._settings.ctypes.data,
        )  # fmt: skip
        return out

    def values_step(
        self, features: Tensor, action: Tensor, target: Tensor, weight: Tensor, learning_rate: float
    ) -> tuple[Tensor, float]:  # fmt: skip
        """One step of the critics on half the squared error, summed over K; returns the values [K, B] before it, and the loss.

        Args:
            features: [B, D], or [K, B, D] of each critic.
            action: [B, A] or [K, B, A].
            target: [B] or [K, B].
            weight: [B] or [K, B].
            learning_rate: step size.

        Raises:
            NonFiniteError: before anything is changed, if the loss or the gradient is not finite.
        """
        optimizer, stats = self._critics_optimizer, self._stats
        num = action.shape[-2]
        features, action, target, weight = _plain(features), _plain(action), _plain(target), _plain(weight)
        self._settings[:4] = learning_rate, optimizer.max_grad_norm, optimizer.epsilon, optimizer.num_steps
        out = torch.empty(self._num_members, num)
        failed = self._values_step(
            out.data_ptr(), stats.ctypes.data, num, self._settings.ctypes.data, features.data_ptr(), features.dim() == 3, action.data_ptr(),
            action.dim() == 3, target.data_ptr(), target.dim() == 2, weight.data_ptr(), weight.dim() == 2,
        )  # fmt: skip
        loss, norm, _, _ = stats.tolist()
        if failed:
            refuse_non_finite(loss, norm)
        optimizer.num_steps += 1
        return out, loss

    def policy_step(
        self, features: Tensor, learning_rate: float, *, noise: Tensor | None = None, alpha: Tensor | None = None,
        target_entropy: float = 0.0, log_alpha_bounds: tuple[float, float] = (0.0, 0.0),
    ) -> tuple[float, float, float, float]:  # fmt: skip
        """One step of the policy; returns the loss, the gradient's norm, and the means of log-probability and log standard deviation.

        Args:
            features: [B, D].
            learning_rate: step size.
            noise: [B, A] standard normal, of a Gaussian policy.
            alpha: [1] weight of the entropy, of a Gaussian policy.
            target_entropy: which alpha is adapted to, if it is learned.
            log_alpha_bounds: of its logarithm after the step.

        Raises:
            NonFiniteError: before anything is changed, if the loss or the gradient is not finite.
        """
        optimizer, stats = self._policy_optimizer, self._stats
        features = _plain(features)
        noise = features if noise is None else _plain(noise)
        alpha = features if alpha is None else alpha
        self._settings[:] = (
            learning_rate, optimizer.max_grad_norm, optimizer.epsilon, optimizer.num_steps, target_entropy, *log_alpha_bounds
        )  # fmt: skip
        failed = self._policy_step(
            stats.ctypes.data, features.data_ptr(), len(features), noise.data_ptr(), alpha.data_ptr(), self._log_alpha_at,
            self._settings.ctypes.data,
        )  # fmt: skip
        loss, norm, log_prob, log_std = stats.tolist()
        if failed:
            refuse_non_finite(loss, norm)
        optimizer.num_steps += 1
        return loss, norm, log_prob, log_std


def compile_actor_critic(
    policy: MLP, critics: Critics, policy_optimizer: FlatAdam, critics_optimizer: FlatAdam, target: Target[Any],
    target_policy: Target[Any] | None, *, num_actions: int, log_alpha: nn.Parameter | None,
) -> CompiledActorCritic | None:  # fmt: skip
    """The kernels for these networks, see `CompiledActorCritic`; None where they do not apply, or torch is as fast.

    They need the CPU, float32, relu or tanh without layer norm, and that the optimisers have no parameters but those of these networks.
    """
    of_policy = [p for layer in policy.linears for p in (layer.weight, layer.bias)] + ([] if log_alpha is None else [log_alpha])
    of_critics = [*critics.weights, *critics.biases]
    largest = max(max(layer.weight.numel() for layer in policy.linears), max(w[0].numel() for w in critics.weights))
    applies = (
        type(policy) is MLP
        and type(critics) is Critics
        and policy.activation in ("relu", "tanh")
        and policy.activation == critics.activation
        and not (len(policy.norms) or len(critics.scales))
        and largest <= MOST_WEIGHTS
        and _is_whole(policy_optimizer, of_policy)
        and _is_whole(critics_optimizer, of_critics)
    )
    if not applies:
        return None
    return CompiledActorCritic(
        policy, critics, policy_optimizer, critics_optimizer, target.vector, None if target_policy is None else target_policy.vector,
        num_actions=num_actions, log_alpha=log_alpha,
    )  # fmt: skip


def _is_whole(optimizer: FlatAdam, parameters: Sequence[Tensor]) -> bool:
    """Whether the optimiser's vector, in float32 on the CPU, is made of these parameters."""
    vector = optimizer.parameters
    if type(optimizer) is not FlatAdam or vector.device.type != "cpu" or vector.dtype != torch.float32:
        return False
    storage = vector.untyped_storage().data_ptr()
    lie_there = all(p.untyped_storage().data_ptr() == storage for p in parameters)
    return lie_there and len(vector) == sum(p.numel() for p in parameters)


class _Call:
    """A kernel's block: first what changes from call to call, then what does not."""

    def __init__(self, kernel: Kernel, networks: list[int]) -> None:
        self._kernel, self._block = kernel, np.zeros(_NETWORKS + len(networks), np.int64)
        self._block[_NETWORKS:] = networks
        self._at = self._block.ctypes.data

    def __call__(self, *arguments: int) -> int:
        self._block[: len(arguments)] = arguments
        return self._kernel(self._at)


def _vector(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.numel()


def _layers(vector: Tensor, layers: list[tuple[Tensor, Tensor]], *, inputs_last: bool) -> NDArray[Any]:
    """[L, 4]: inputs, outputs, and the offsets in the vector of weight and bias."""
    rows = []
    for weight, bias in layers:
        sizes = (weight.shape[-1], weight.shape[-2]) if inputs_last else (weight.shape[-2], weight.shape[-1])
        rows.append((*sizes, *(int(x.storage_offset() - vector.storage_offset()) for x in (weight, bias))))
    return np.array(rows, dtype=np.int64)


def _plain(tensor: Tensor) -> Tensor:
    """A float32 tensor of which a row follows the other."""
    return tensor.detach().to(torch.float32).contiguous()
