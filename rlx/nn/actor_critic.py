"""A policy and a value function over flat observations: what the policy-gradient family shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlx.errors import ConfigError
from rlx.nn.heads import make_head
from rlx.nn.mlp import MLP
from rlx.nn.normalize import ObservationNormalizer
from rlx.types import EnvSpec, Mode

_SMALL = 1 << 16
"""Parameters up to which acting in NumPy is faster than in torch."""


def byte_scale(space: gymnasium.spaces.Box) -> NDArray[np.float32] | None:
    """What brings bytes into [0, 1]: one number if the space is of bytes, a vector [D] if some of its numbers are those of an image.

    Numbers are a byte's where they are bounded by exactly 0 and 255, as where a dictionary with an image was flattened.
    """
    if space.dtype == np.uint8:
        return np.array(1.0 / max(1.0, float(space.high.max())), dtype=np.float32)
    is_byte = ((space.low == 0) & (space.high == 255)).ravel()
    return np.where(is_byte, np.float32(1.0 / 255.0), np.float32(1.0)) if is_byte.any() else None


class ActorCritic(nn.Module):
    """MLP policy and value function.

    Args:
        spec: gives the observation and action spaces.
        hidden_sizes: widths of the hidden layers.
        activation: "tanh" or "relu".
        shared: one network with two outputs instead of two networks.
        log_std_init: initial log standard deviation of a continuous policy.
        observation_clip: normalise observations and clip them to this many standard deviations; None leaves them alone.

    Raises:
        ConfigError: for spaces it has no network for.
    """

    def __init__(
        self,
        spec: EnvSpec,
        *,
        hidden_sizes: Sequence[int],
        activation: str,
        shared: bool = False,
        log_std_init: float = 0.0,
        observation_clip: float | None = None,
    ) -> None:
        super().__init__()
        space = spec.observation_space
        if not isinstance(space, gymnasium.spaces.Box):
            raise ConfigError(f"env={spec.id} has observation space {space}; this algorithm expects a Box: wrap the environment")
        num_features = 1
        for n in space.shape:
            num_features *= n
        self._scale_numpy = byte_scale(space)
        self._scale: Tensor | None
        self.register_buffer("_scale", None if self._scale_numpy is None else torch.from_numpy(self._scale_numpy), persistent=False)
        self.head = make_head(spec, log_std_init=log_std_init)
        num_outputs = self.head.num_outputs
        # Gain 0.01 makes the first policy nearly uniform (or centred), whatever the observation.
        self.policy = MLP([num_features, *hidden_sizes, num_outputs + shared], activation, output_gain=0.01)
        self.critic = None if shared else MLP([num_features, *hidden_sizes, 1], activation, output_gain=1.0)
        if shared:
            nn.init.orthogonal_(self.policy.output_weight.data[num_outputs:], gain=1.0)
        self._acts_in_numpy = sum(p.numel() for p in self.policy.parameters()) <= _SMALL
        self._first = (next(self.policy.parameters()),)  # in a tuple, or the module would register it again
        self._home = 0
        self._numpy_layers: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        self.normalizer = ObservationNormalizer(num_features, clip=observation_clip) if observation_clip else None

    def raw_features(self, obs: Tensor) -> Tensor:
        """Observations [B, *] as float32 vectors [B, D]; bytes, of images or of planes of bits, become [0, 1]."""
        features = obs.flatten(1).to(torch.float32)
        return features if self._scale is None else features * self._scale

    def features(self, obs: Tensor) -> Tensor:
        """Observations [B, *] as the networks see them, [B, D]."""
        raw = self.raw_features(obs)
        return self.normalizer(raw) if self.normalizer else raw

    def learning_from(self, obs: Tensor) -> AbstractContextManager[None]:
        """Around learning from a rollout's observations [B, *], so that the normaliser, if there is one, absorbs them in time."""
        return self.normalizer.learning_from(self.raw_features(obs)) if self.normalizer else nullcontext()

    def forward_vjp(self, features: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor, Tensor], None]]:
        """[B, D] to distribution parameters [B, D'] and values [B], and the function that carries their gradients back.

        The pullback adds to `parameter.grad`, given the gradients of a loss with respect to both outputs.
        """
        if self.critic is None:
            out, backward_both = self.policy.forward_vjp(features)
            return out[:, :-1], out[:, -1], lambda d_params, d_value: backward_both(torch.cat((d_params, d_value.unsqueeze(1)), dim=1))
        params, backward_policy = self.policy.forward_vjp(features)
        value, backward_value = self.critic.forward_vjp(features)

        def backward(d_params: Tensor, d_value: Tensor) -> None:
            backward_policy(d_params)
            backward_value(d_value.unsqueeze(1))

        return params, value[:, 0], backward

    def policy_params(self, features: Tensor) -> Tensor:
        """[B, D] to distribution parameters [B, D']."""
        out = self.policy(features)
        return out[:, :-1] if self.critic is None else out

    def value(self, features: Tensor) -> Tensor:
        """[B, D] to [B]."""
        return self.policy(features)[:, -1] if self.critic is None else self.critic(features)[:, 0]

    @torch.no_grad()
    def act(self, obs: Tensor, mode: Mode) -> Tensor:
        """Observations [B, *] to actions [B, *]: a sample in training, the mode in evaluation."""
        if self._acts_in_numpy and obs.device.type == "cpu":
            return torch.from_numpy(self._act_numpy(obs.numpy(), mode))
        params = self.policy_params(self.features(obs))
        return self.head.sample(params) if mode == "train" else self.head.mode(params)

    def _act_numpy(self, obs: NDArray[Any], mode: Mode) -> NDArray[Any]:
        """`act` for small networks on a CPU, where torch's overhead per operation is most of the time of a step."""
        if self._home != self._first[0].data_ptr():  # the parameters have moved since the views were taken
            self._numpy_layers, self._home = self.policy.numpy_layers(), self._first[0].data_ptr()
        x = obs.reshape(len(obs), -1).astype(np.float32)
        if self._scale_numpy is not None:
            x *= self._scale_numpy
        if self.normalizer:
            x = self.normalizer.forward_numpy(x)
        params = self.policy.forward_numpy(x, self._numpy_layers)
        if self.critic is None:
            params = params[:, :-1]
        return self.head.sample_numpy(params) if mode == "train" else self.head.mode(params)
