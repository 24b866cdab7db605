"""The network of an agent that chooses by action values: an encoder, a memory, and Q(s, a) of every action from one trunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from gymnasium import spaces
from torch import Tensor

from rlx.errors import ConfigError
from rlx.nn.atoms import Atoms
from rlx.nn.backbone import ArrayPolicy, Backbone
from rlx.nn.discrete_heads import CategoricalHead
from rlx.nn.dueling import DuelingMLP
from rlx.nn.leaf_encoders import EncoderKind, FlatEncoder
from rlx.nn.mlp import MLP
from rlx.spaces import describe_space
from rlx.types import EnvSpec, Explanation, Mode, PolicyOutput, Tree


class QNetwork(Backbone):
    """Values of all actions [N, A] of observations. Actions that a mask forbids have a huge negative one.

    For the form of its inputs see `Backbone`, whose value of a state is that of its best action.

    Args:
        spec: gives the observation and action spaces.
        hidden_sizes: widths of the hidden layers behind encoder and memory.
        activation: of the hidden layers, see `rlx.nn.mlp`.
        layer_norm: normalise the inputs of each hidden layer's activation.
        dueling: two trunks, of the state's value and of the actions' advantages, instead of one.
        atoms: where each action's return has a distribution over these; None where its value is learnt alone.
        observation_clip, encoder, memory, memory_size: as of `Backbone`.

    Raises:
        ConfigError: unless actions are one choice of several, and for observation spaces that no encoder supports.
    """

    def __init__(
        self,
        spec: EnvSpec,
        *,
        hidden_sizes: Sequence[int],
        activation: str = "relu",
        layer_norm: bool = False,
        dueling: bool = False,
        atoms: Atoms | None = None,
        observation_clip: float | None = None,
        encoder: EncoderKind = "auto",
        memory: str = "none",
        memory_size: int = 64,
    ) -> None:
        if not isinstance(spec.action_space, spaces.Discrete):
            raise ConfigError(
                f"env={spec.id} has actions {describe_space(spec.action_space)}, expected Discrete: an agent that chooses by the value of "
                "every action needs a list of them; use algo=sac, algo=td3 or algo=ppo for a Box, algo=ppo for any other space"
            )
        super().__init__(spec, observation_clip=observation_clip, encoder=encoder, memory=memory, memory_size=memory_size)
        self.head = CategoricalHead(int(spec.action_space.n))
        self.atoms = atoms
        num_features, num_actions, num_atoms = self.memory.num_features, self.head.num_outputs, 1 if atoms is None else atoms.num_atoms
        self.trunk: MLP | DuelingMLP
        if dueling:
            self.trunk = DuelingMLP(num_features, hidden_sizes, num_actions, num_atoms, activation=activation, layer_norm=layer_norm)
        else:
            self.trunk = MLP([num_features, *hidden_sizes, num_actions * num_atoms], activation, output_gain=1.0, layer_norm=layer_norm)
        self.by_hand = not (self.encoder.has_weights or self.has_memory)
        """Whether `forward_vjp` differentiates by hand: the encoder has no weights, and the trunk supports it."""

    def trunks(self) -> dict[str, MLP]:
        if isinstance(self.trunk, DuelingMLP):
            return {"value": self.trunk.value, "advantages": self.trunk.advantage}
        return {"action values": self.trunk}

    def forward(self, inputs: Tree, carry: Tree = (), is_first: Tensor | None = None) -> Tensor:
        """Inputs to action values [N, A], differentiable by autograd."""
        return self._q(self._features(inputs, carry, is_first), inputs)

    def _q(self, features: Tensor, inputs: Tree) -> Tensor:
        return self._values(self.trunk(features), inputs)

    def _values(self, out: Tensor, inputs: Tree) -> Tensor:
        """The trunk's outputs to action values [N, A]."""
        return self._masked(out, inputs) if self.atoms is None else self.values_of(self._logits(out), inputs)

    def values_of(self, logits: Tensor, inputs: Tree) -> Tensor:
        """Logits [N, A, M] of distributions over `atoms` to action values [N, A]."""
        assert self.atoms is not None
        return self._masked(self.atoms.mean(logits), inputs)

    def _logits(self, out: Tensor) -> Tensor:
        return out.unflatten(-1, (self.head.num_outputs, -1))

    def forward_vjp(self, inputs: Tree, carry: Tree = (), is_first: Tensor | None = None) -> tuple[Tensor, Callable[[Tensor], None]]:
        """Action values [N, A], and the function that adds their gradients to `parameter.grad`, given that of a loss on the values.

        The gradient on the values of forbidden actions must be 0.
        """
        assert self.atoms is None, "distributions are learnt through `logits_vjp`"
        out, backward = self._trunk_vjp(inputs, carry, is_first)
        return self._masked(out, inputs), backward

    def logits_vjp(self, inputs: Tree) -> tuple[Tensor, Callable[[Tensor], None]]:
        """Logits [N, A, M] of the distributions over `atoms`, those of forbidden actions included; and their pullback, as above."""
        out, backward = self._trunk_vjp(inputs)
        return self._logits(out), lambda d_logits: backward(d_logits.flatten(1))

    def logits(self, inputs: Tree) -> Tensor:
        """The logits alone, differentiable by autograd."""
        return self._logits(self.trunk(self._features(inputs, (), None)))

    def _trunk_vjp(self, inputs: Tree, carry: Tree = (), is_first: Tensor | None = None) -> tuple[Tensor, Callable[[Tensor], None]]:
        if self.by_hand:
            return self.trunk.forward_vjp(self._unmasked(inputs))
        with torch.enable_grad():
            out = self.trunk(self._features(inputs, carry, is_first))
        return out.detach(), out.backward

    def value(self, inputs: Tree, carry: Tree = (), is_first: Tensor | None = None) -> Tensor:
        """Inputs to the values [N] of the best actions."""
        return self(inputs, carry, is_first).amax(-1)

    def _value(self, features: Tensor, inputs: Tree) -> Tensor:
        return self._q(features, inputs).amax(-1)

    def step(self, obs: Tree, carry: Tree, is_first: Tensor) -> tuple[Tensor, Tensor, Tree]:
        """Observations [B, *] of one step to action values [B, A], the values [B] of the best ones, and the next carry."""
        features, inputs, carry = self._step(obs, carry, is_first)
        q = self._q(features, inputs)
        return q, q.amax(-1), carry

    def _to_record(self, features: Tensor, inputs: Tree) -> dict[str, Tensor]:
        return {"value": self._value(features, inputs)}

    @torch.no_grad()
    def act(self, obs: Tree, carry: Tree, is_first: Tensor, mode: Mode, *, epsilon: float) -> PolicyOutput:
        """Observations [B, *] to the best actions [B], or in training, with probability epsilon, any of the allowed ones."""
        features, inputs, carry = self._step(obs, carry, is_first)
        q = self._q(features, inputs)
        if mode == "eval":
            return PolicyOutput(self.head.mode(q), carry, {})
        action = self._explore(q, inputs, epsilon)
        # Before the first update there is no scale of observations yet; the update has one, and computes everything anew.
        extras: dict[str, Tree] = {"value": q.amax(-1), "carry": carry} if self.records and not self.encoder.is_new else {}
        return PolicyOutput(action, carry, extras)

    def _explore(self, q: Tensor, inputs: Tree, epsilon: float) -> Tensor:
        """Actions [B]: those of the greatest values [B, A], or with probability epsilon any of the allowed ones."""
        action: Tensor = self.head.mode(q)
        if epsilon > 0.0:
            random = self.head.sample(self._masked(torch.zeros_like(q), inputs))
            action = torch.where(torch.rand(len(q), device=q.device) < epsilon, random, action)
        return action

    def array_policy(self, *, epsilon: float) -> ArrayPolicy | None:
        """`act` in mode "train" as a function of arrays [B, *]; None where the network is more than an MLP of vectors on a CPU."""
        encoder, trunk = self.encoder, self.trunk
        if not isinstance(encoder, FlatEncoder) or self.is_masked or self.has_memory:
            return None
        if self.atoms is not None or not isinstance(trunk, MLP) or (forward := trunk.on_arrays()) is None:
            return None
        return lambda obs: self._explore(torch.from_numpy(forward(encoder.preprocess_array(obs))), None, epsilon).numpy()

    @torch.no_grad()
    def explain(self, obs: Tree, carry: Tree, is_first: Tensor, mode: Mode, *, epsilon: float, value_scale: float = 1.0) -> Explanation:
        """The probabilities of `act` for the same arguments, the action values, and the network's inputs.

        Args:
            obs, carry, is_first, mode, epsilon: as of `act`.
            value_scale: factor from values to the environment's units.
        """
        features, inputs, _ = self._step(obs, carry, is_first)
        q = self._q(features, inputs)
        probs = torch.nn.functional.one_hot(q.argmax(-1), q.shape[-1]).to(q.dtype)
        if mode == "train":
            probs = torch.lerp(probs, self._masked(torch.zeros_like(q), inputs).softmax(-1), epsilon)
        return Explanation(probs, value_scale * q.amax(-1), q_value=value_scale * q, inputs=self.encoder.by_leaf(self._unmasked(inputs)))
