"""The contracts between the parts of a run, and the shape letters used everywhere.

T time in a rollout, B parallel envs or a batch, A actions, N tree nodes or planner candidates, H planning horizon,
K ensemble members, L sequence length, D features, E episodes that ended. Rollouts are time-major `[T, B, ...]`.
The only clock is env steps; seconds end in `_s`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, Self, runtime_checkable

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlx.tree_ops import Tree, map_tree, pick

State = dict[str, Any]
"""What `torch.load(weights_only=True)` can read back: tensors, numbers, strings, bytes, lists, tuples and dicts."""
Metrics = Mapping[str, Tensor | float]
Mode = Literal["train", "eval"]
RewardFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""reward(obs [..., D], action [..., A], next_obs [..., D]) -> [...], of tensors that broadcast."""
TerminationFn = Callable[[Tensor], Tensor]
"""termination(next_obs [..., D]) -> [...] bool: whether the episode ends there, other than by being cut."""


class Stateful(Protocol):
    """Anything that affects the future of a run."""

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


class PolicyOutput(NamedTuple):
    action: Tensor  # [B, *]
    carry: Tree  # [B, *]
    extras: dict[str, Tensor]  # {name: [B, *]}, recorded in the rollout beside the action


class Explanation(NamedTuple):
    """What a policy's decision in B states was based on; rewards and values as the environment's. What does not apply is None."""

    probs: Tensor | None  # [B, A] of discrete actions
    value: Tensor | None = None  # [B], discounted
    probs_without: Tensor | None = None  # [B, A] if the policy did not read what it imagined; None where it reads nothing
    planes: Tensor | None = None  # [B, A, D, C, H, W] the imagined frames of each action's rollout, zeros and ones
    reward: Tensor | None = None  # [B, A, D] of each imagined step
    saliency: Tensor | None = None  # [B, A], sums to 1: how much the policy depends on each rollout
    q_value: Tensor | None = None  # [B, A] of a search that decides


class Game(Protocol):
    """The rules of a two-player zero-sum game, as a search needs them."""

    num_actions: int
    max_length: int
    planes_shape: tuple[int, int, int]
    symmetries: list[tuple[NDArray[Any], NDArray[Any]]]

    def new_state(self) -> Any:
        """The beginning; a state has `child(action)`."""
        ...

    def state_of(self, history: Any) -> Any:
        """The state after a list of actions, which ends at the first negative one."""
        ...

    def plies(self, history: Any) -> list[Any]:
        """The states in which each of the actions was taken."""
        ...

    def uct(self, simulations: int, seed: int) -> Any:
        """A player that searches without a network: `step(state)` is its move."""
        ...

    def observe(self, states: Any) -> dict[str, NDArray[Any]]:
        """The observation of n states: history [n, L], legal [n, A], planes [n, C, H, W] and player [n]."""
        ...

    def seen(self, obs: Mapping[str, NDArray[Any]]) -> Any:
        """What an observation [n, *] shows, as `look` sees the states, but for outcomes."""
        ...

    def look(self, states: Any) -> Any:
        """Planes [n, C, H, W], player to move [n], outcome [n], number of legal moves [n] and the moves, of a list of n states."""
        ...


class GridWorld(Protocol):
    """What may be known of a grid world whose observations are planes [C, H, W] of zeros and ones; n boards at a time."""

    planes_shape: tuple[int, int, int]
    num_actions: int
    events: tuple[str, ...]
    """Names of what can happen in a step, several at once."""
    event_reward: NDArray[np.float32]
    """[E]; the reward of a step is events @ event_reward."""

    def events_of(
        self, planes: NDArray[Any], action: NDArray[Any], next_planes: NDArray[Any], terminated: NDArray[Any]
    ) -> NDArray[np.bool_]:
        """The events [n, E] of steps as they were observed: planes before and after [n, C, H, W], action [n], terminated [n]."""
        ...

    def step(
        self, planes: NDArray[Any], action: NDArray[Any], rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]:
        """The perfect model: next planes [n, C, H, W], events [n, E] and terminated [n]; changes none of its arguments."""
        ...

    def ansi(self, planes: NDArray[Any]) -> str:
        """One board, planes [C, H, W], as text."""
        ...


@dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """What an algorithm may know of its environment beyond samples."""

    id: str
    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    game: Game | None = None
    """The rules, if it is a two-player game; an observation is then what `Game.observe` shows."""
    grid: GridWorld | None = None
    """The rules, if it is a grid world that is observed as planes."""
    reward_fn: RewardFn | None = None
    """The reward, where it is known and a function of what is observed."""
    reward_unknown: str = "nobody has declared it"
    """Why there is no `reward_fn`."""
    termination_fn: TerminationFn | None = None
    """When episodes terminate, where that is known."""
    never_terminates: bool = False
    """Whether it is known that episodes are only ever cut."""


@dataclass(kw_only=True)
class Rollout:
    """T steps of B parallel envs, with the true successor of every step. Observations are trees of tensors.

    `all_obs[t + 1]` is what the policy saw next. Where an episode ended at t that is the first observation of the next
    episode, and the observation the step really led to is in `final_obs`; `next_obs` puts the two together. Storing them
    apart keeps images from costing double.
    """

    all_obs: Tree  # [T + 1, B, *]
    action: Tensor  # [T, B, *], as the policy chose it, before clipping to the action space
    reward: Tensor  # [T, B] float32
    terminated: Tensor  # [T, B] bool: the successor is worth nothing
    truncated: Tensor  # [T, B] bool: the episode was cut; bootstrap from the successor
    is_first: Tensor  # [T, B] bool: obs[t] begins an episode
    final_t: Tensor  # [E] long: where an episode ended
    final_b: Tensor  # [E] long
    final_obs: Tree  # [E, *]
    carry: Tree  # [B, *] the policy's memory before t = 0
    extras: dict[str, Tensor] = field(default_factory=dict)  # {name: [T, B, *]}

    @property
    def obs(self) -> Tree:
        """[T, B, *] what the policy saw."""
        return pick(self.all_obs, slice(-1))

    @property
    def is_last(self) -> Tensor:
        """[T, B] bool: the episode ended with this step, either way."""
        return self.terminated | self.truncated

    @property
    def next_obs(self) -> Tree:
        """[T, B, *] the true successor of every step; never a reset observation."""
        return self.to_next(self.all_obs, self.final_obs)

    @property
    def num_env_steps(self) -> int:
        return self.reward.numel()

    def to_next(self, of_all_obs: Tree, of_final_obs: Tree) -> Tree:
        """Arrange a function of `all_obs` [T + 1, B, *] and of `final_obs` [E, *] as one of `next_obs` [T, B, *]."""

        def arrange(every: Tensor, final: Tensor) -> Tensor:
            out = every[1:].clone()
            out[self.final_t, self.final_b] = final
            return out

        return map_tree(arrange, of_all_obs, of_final_obs)


@dataclass(kw_only=True)
class Progress:
    """The only clock an algorithm may read."""

    total_env_steps: int
    env_steps: int = 0
    iteration: int = 0

    def fraction_before(self, rollout: Rollout) -> float:
        """Share of the budget that was spent when `rollout`, already counted, began: 0 in the first update."""
        return min(1.0, (self.env_steps - rollout.num_env_steps) / self.total_env_steps)

    def advance(self, rollout: Rollout) -> tuple[int, int]:
        """Count a rollout; returns the env steps before and after it."""
        before = self.env_steps
        self.env_steps += rollout.num_env_steps
        self.iteration += 1
        return before, self.env_steps

    def state_dict(self) -> State:
        return {"env_steps": self.env_steps, "iteration": self.iteration}

    def load_state_dict(self, state: State) -> None:
        self.env_steps, self.iteration = state["env_steps"], state["iteration"]


class ModelStep(NamedTuple):
    """Where one action leads from each state of a model; the tensors have the leading shape of its states, or one that broadcasts.

    A planner's model has states [*, B, N, D] of N candidates from each of B observations, with particles in front if it has any;
    a model that convolves has [n, C, H, W], n = B * N.
    """

    state: Tree  # [*, D]
    reward: Tensor  # [*]; without meaning where the episode had terminated before
    discount: Tensor | None = None  # [*]: 0 where the episode terminates with the step, else 1; None if it never does
    disagreement: Tensor | None = None  # [B, N], at least 0: spread of an ensemble's predictions; None where it was not measured


class Model(Protocol):
    """What an agent imagines with: rules, a simulator, an ensemble, a latent model. `rlx.models.unroll` takes many steps of one."""

    def initial(self, obs: Tree, num_candidates: int = 1) -> Tree:
        """States from which `num_candidates` action sequences begin in each of the observations [B, *]."""
        ...

    def step(self, state: Tree, action: Tensor) -> ModelStep:
        """One step under actions in units of the action space, one for each state; changes neither of its arguments."""
        ...


class VectorEnv(Protocol):
    """B environments under Gymnasium's vector API with autoreset disabled; one that is `Stateful` too can be resumed exactly.

    Observations are trees of arrays: one array for a Box, a dict for a Dict, a tuple for a Tuple.
    """

    num_envs: int
    single_observation_space: gymnasium.Space[Any]
    single_action_space: gymnasium.Space[Any]

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Tree, dict[str, Any]]:
        """Begin an episode where `options["reset_mask"]` (default everywhere); seed is one integer per env."""
        ...

    def step(self, actions: NDArray[Any]) -> tuple[Tree, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """(obs, reward, terminated, truncated, info), each [B, *]; obs is the true successor. Arrays may be reused by the next call."""
        ...

    def close(self) -> None: ...


class Policy(Protocol):
    """Chooses actions. Memory is a value that is passed in and out, so evaluation cannot disturb training."""

    @property
    def device(self) -> torch.device: ...

    def initial_carry(self, batch_size: int) -> Tree: ...

    def act(self, obs: Tree, carry: Tree, is_first: Tensor, *, mode: Mode) -> PolicyOutput:
        """Actions for obs [B, *]; must not change the policy, zeroes carry where is_first, and explores only in mode "train"."""
        ...


class Algorithm(Policy, Stateful, Protocol):
    rollout_length: int
    """Env steps per env that the algorithm wants between two updates, T."""

    def update(self, rollout: Rollout, progress: Progress) -> Metrics:
        """Absorb the data and take zero or more gradient steps; the only method that changes the algorithm."""
        ...


# What an algorithm may be able to do beyond acting and learning. Commands ask for these, and never for an algorithm by its name.


class Prediction(NamedTuple):
    """Observations 1 to H steps ahead."""

    mean: Tensor  # [H, B, D] without noise
    samples: Tensor  # [H, M, B, D] of what may be observed
    disagreement: Tensor  # [H, B] of the model's members, at least 0


@runtime_checkable
class PredictsObservations(Protocol):
    """An algorithm with a model that predicts observations (`rlx model`)."""

    def predict_observations(self, obs: Tensor, action: Tensor, *, min_samples: int) -> Prediction:
        """What follows actions [H, B, A] from obs [B, D], with M >= min_samples."""
        ...

    def observation_scale(self) -> Tensor | None:
        """[D] standard deviations of the observations that the model was fitted to, 0 of a constant feature; None before the first fit."""
        ...

    def prediction_horizon(self) -> int:
        """Steps ahead that the algorithm itself predicts, H."""
        ...


@runtime_checkable
class Explains(Protocol):
    """An algorithm that can say what a decision was based on (`rlx watch`)."""

    def explain(self, obs: Tensor, carry: Tree, is_first: Tensor, *, mode: Mode) -> tuple[PolicyOutput, Explanation]:
        """What `act` returns for the same arguments and the same random numbers, and an explanation of it."""
        ...


@runtime_checkable
class Ablatable(Protocol):
    """An algorithm that can do without one of its parts, which shows how much it relies on it (`rlx eval --imagination`)."""

    @classmethod
    def ablations(cls) -> Mapping[str, Sequence[str]]:
        """The choices of each ablation, by the name of the ablation."""
        ...

    def ablate(self, choices: Mapping[str, str], *, mode: Mode) -> Self:
        """This algorithm, or a copy that acts otherwise; what is not in `choices` stays as it is.

        Raises:
            ConfigError: if it cannot act so, or not in this mode.
        """
        ...


@runtime_checkable
class Exportable(Protocol):
    """An algorithm whose evaluation policy is a function of tensors, so that other programs can run it without rlx."""

    def policy_module(self) -> torch.nn.Module:
        """forward(obs [B, *], carry, is_first [B]) -> (action [B, *], carry): what `act` does in mode "eval", in operations of torch."""
        ...


@runtime_checkable
class Finetunable(Protocol):
    """An algorithm that can start from the networks of another run (`rlx train --from`)."""

    weight_parts: tuple[str, ...]
    """Entries of its state that are networks or normalisers, e.g. "net" or "reward_scaler/_extra_state"; the first one is needed."""


@runtime_checkable
class HasParts(Protocol):
    """An algorithm whose parts can act on their own (`rlx arena --parts`)."""

    def parts(self) -> Mapping[str, Policy]:
        """The parts by name."""
        ...
