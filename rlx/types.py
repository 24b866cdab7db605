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

from rlx.bodies import Bodies
from rlx.distributed import World
from rlx.symmetry import Mirror
from rlx.tree_ops import Tree, map_tree, pick

State = dict[str, Any]
"""What `torch.load(weights_only=True)` can read back: tensors, numbers, strings, bytes, lists, tuples and dicts."""
Metrics = Mapping[str, Tensor | float]
Mode = Literal["train", "eval"]
RewardFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""reward(obs [..., D], action [..., A], next_obs [..., D]) -> [...], of tensors that broadcast."""
TerminationFn = Callable[[Tensor], Tensor]
"""termination(next_obs [..., D]) -> [...] bool: whether the episode terminates there."""
Simulator = Callable[[NDArray[Any], NDArray[Any]], tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]
"""(next_obs [n, D], reward [n], terminated [n]) of one step from obs [n, D] under action [n, A]; keeps no state."""


class Stateful(Protocol):
    """Anything that affects the future of a run."""

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


class PolicyOutput(NamedTuple):
    action: Tensor  # [B, *]
    carry: Tree  # [B, *]
    extras: dict[str, Tree]  # {name: [B, *]}, recorded in the rollout beside the action


class Explanation(NamedTuple):
    """Quantities behind a policy's decision in B states, in the environment's units of reward. What does not apply is None."""

    probs: Tensor | None  # [B, M] of the choices of all discrete parts of an action, in the order of `spaces.choices_of`
    value: Tensor | None = None  # [B], discounted
    probs_without: Tensor | None = None  # [B, A] of the same policy without imagination; None where none is in use
    planes: Tensor | None = None  # [B, A, D, C, H, W] the imagined frames of each action's rollout, zeros and ones
    reward: Tensor | None = None  # [B, A, D] of each imagined step
    saliency: Tensor | None = None  # [B, A], sums to 1: how much the policy depends on each rollout
    q_value: Tensor | None = None  # [B, A] where a search chooses the action
    mean: Tensor | None = None  # [B, C] of the continuous numbers of an action, in order
    std: Tensor | None = None  # [B, C]
    imagined: Tensor | None = None  # [B, K, D] observations after each of K imagined steps
    imagined_from: Tensor | None = None  # [B, K] where it was imagined: 0 in the real state, k in number k, -1 if it was not at all
    inputs: dict[str, Tree] | None = None  # [B, *] of the network, normalised, by the paths of `space_leaves`


@runtime_checkable
class Game(Protocol):
    """The rules of a two-player zero-sum game, as a search needs them."""

    num_actions: int
    max_length: int
    planes_shape: tuple[int, int, int]
    symmetries: list[tuple[NDArray[Any], NDArray[Any]]]

    def new_state(self) -> Any:
        """The initial state; a state has `child(action)`."""
        ...

    def state_of(self, history: Any) -> Any:
        """The state after a list of actions, up to the first negative one."""
        ...

    def plies(self, history: Any) -> list[Any]:
        """The states in which each of the actions was taken."""
        ...

    def uct(self, simulations: int, seed: int) -> Any:
        """A tree-search player with random rollouts; `step(state)` returns its move."""
        ...

    def observe(self, states: Any) -> dict[str, NDArray[Any]]:
        """The observation of n states: history [n, L], legal [n, A], planes [n, C, H, W] and player [n]."""
        ...

    def seen(self, obs: Mapping[str, NDArray[Any]]) -> Any:
        """As `look`, from an observation [n, *] instead of states, without outcomes."""
        ...

    def look(self, states: Any) -> Any:
        """Planes [n, C, H, W], player to move [n], outcome [n], number of legal moves [n] and the moves, of a list of n states."""
        ...


@runtime_checkable
class GridWorld(Protocol):
    """The rules of a grid world whose observations are planes [C, H, W] of zeros and ones, for n boards at a time."""

    planes_shape: tuple[int, int, int]
    num_actions: int
    events: tuple[str, ...]
    """Names of what can happen in a step, several at once."""
    event_reward: NDArray[np.float32]
    """[E]; the reward of a step is events @ event_reward."""

    def events_of(
        self, planes: NDArray[Any], action: NDArray[Any], next_planes: NDArray[Any], terminated: NDArray[Any]
    ) -> NDArray[np.bool_]:
        """The events [n, E] of observed steps: planes before and after [n, C, H, W], action [n], terminated [n]."""
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
    """What an algorithm may use of its environment beyond samples."""

    id: str
    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    game: Game | None = None
    """The rules of a two-player game; observations are then those of `Game.observe`."""
    grid: GridWorld | None = None
    """The rules of a grid world that is observed as planes."""
    bodies: Bodies | None = None
    """The rules of a body that thrusts among fixed ones."""
    mirror: Mirror | None = None
    """The left-right symmetry of a body."""
    mirrored: tuple[str, ...] = ()
    """The environments that have one, for messages."""
    reward_fn: RewardFn | None = None
    """The reward, where it is known as a function of observations and actions."""
    reward_unknown: str = "no reward function is declared"
    """Why there is no `reward_fn`."""
    termination_fn: TerminationFn | None = None
    """Where episodes terminate, if that is known."""
    never_terminates: bool = False
    """Whether episodes are known to end only by truncation."""
    simulator: Simulator | None = None
    """The environment itself as a model, where observations determine its state."""
    simulated: tuple[str, ...] = ()
    """The environments that have a simulator, for messages."""


@dataclass(kw_only=True)
class Rollout:
    """T steps of B parallel envs, with the true successor of every step. Observations are trees of tensors.

    `all_obs[t + 1]` is the policy's next input. Where an episode ended at t, that is the first observation of the next
    episode, and the true successor is in `final_obs`; `next_obs` combines the two. They are stored apart so that images
    are not stored twice.
    """

    all_obs: Tree  # [T + 1, B, *]
    action: Tensor  # [T, B, *], as the policy chose it, before clipping to the action space
    reward: Tensor  # [T, B] float32
    terminated: Tensor  # [T, B] bool: the successor has value 0; where a life was lost, the episode goes on
    truncated: Tensor  # [T, B] bool: the episode was cut; bootstrap from the successor
    is_first: Tensor  # [T, B] bool: obs[t] begins an episode
    final_t: Tensor  # [E] long: where an episode ended
    final_b: Tensor  # [E] long
    final_obs: Tree  # [E, *]
    carry: Tree  # [B, *] of the policy, before t = 0
    extras: dict[str, Tree] = field(default_factory=dict)  # {name: [T, B, *]}

    @property
    def obs(self) -> Tree:
        """[T, B, *] the observations that the policy acted on."""
        return pick(self.all_obs, slice(-1))

    @property
    def is_last(self) -> Tensor:
        """[T, B] bool: the episode terminated or was truncated with this step, or a life was lost."""
        return self.terminated | self.truncated

    @property
    def next_obs(self) -> Tree:
        """[T, B, *] the true successor of every step; never a reset observation."""
        return self.to_next(self.all_obs, self.final_obs)

    @property
    def num_env_steps(self) -> int:
        return self.reward.numel()

    def to_next(self, of_all_obs: Tree, of_final_obs: Tree) -> Tree:
        """Values [T, B, *] of `next_obs`, from the same function's values of `all_obs` [T + 1, B, *] and of `final_obs` [E, *]."""

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
    num_ranks: int = 1
    """Processes that collect at the same time; a rollout is one of their shares, and `env_steps` counts all of them."""

    def fraction_before(self, rollout: Rollout) -> float:
        """Fraction of the budget that was spent before `rollout`, which is already counted: 0 in the first update."""
        return min(1.0, (self.env_steps - rollout.num_env_steps * self.num_ranks) / self.total_env_steps)

    def advance(self, rollout: Rollout) -> tuple[int, int]:
        """Count a rollout; returns the env steps before and after it."""
        before = self.env_steps
        self.env_steps += rollout.num_env_steps * self.num_ranks
        self.iteration += 1
        return before, self.env_steps

    def state_dict(self) -> State:
        return {"env_steps": self.env_steps, "iteration": self.iteration}

    def load_state_dict(self, state: State) -> None:
        self.env_steps, self.iteration = state["env_steps"], state["iteration"]


class ModelStep(NamedTuple):
    """One step of a model from each of its states; the tensors have the leading shape of the states, or one that broadcasts.

    A planner's model has states [*, B, N, D] of N candidates from each of B observations, with particles in front if it has any;
    a convolutional model has [n, C, H, W], n = B * N.
    """

    state: Tree  # [*, D] the next states
    reward: Tensor  # [*]; without meaning where the episode had terminated before
    discount: Tensor | None = None  # [*]: 0 where the episode terminates with the step, else 1; None if it never does
    disagreement: Tensor | None = None  # [B, N], at least 0: spread of an ensemble's predictions; None where it was not measured


class Model(Protocol):
    """A model to imagine with: rules, a simulator, an ensemble, a latent model. `rlx.models.unroll` takes many steps of one."""

    def initial(self, obs: Tree, num_candidates: int = 1) -> Tree:
        """Initial states of `num_candidates` action sequences from each of the observations [B, *]."""
        ...

    def step(self, state: Tree, action: Tensor) -> ModelStep:
        """One step under actions in units of the action space, one for each state; does not change its arguments."""
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
        """(obs, reward, terminated, truncated, info), each [B, *]; obs is the true successor. Arrays may be reused by the next call.

        `info["life_lost"]` [B] bool, where there is one, ends a return in training and not the episode.
        """
        ...

    def close(self) -> None: ...


# Optional attributes of an environment, or of a batch of them.


@runtime_checkable
class HasNotes(Protocol):
    """An environment with warnings for the user."""

    notes: Sequence[str]


@runtime_checkable
class ChecksTrust(Protocol):
    """An environment whose saved state could harm the process if somebody changed it."""

    is_trusted: bool
    """Whether the run was started by the user, or is said to be trusted."""


@runtime_checkable
class ReportsReplay(Protocol):
    """An environment that is restored by replaying its open episodes, which may take long."""

    note: Callable[[str], None]
    """Called with a message before a long replay."""


class Policy(Protocol):
    """Chooses actions. The carry is passed in and out, so that evaluation cannot change training."""

    @property
    def device(self) -> torch.device: ...

    def initial_carry(self, batch_size: int) -> Tree: ...

    def act(self, obs: Tree, carry: Tree, is_first: Tensor, *, mode: Mode) -> PolicyOutput:
        """Actions for obs [B, *]. Does not change the policy, resets the carry where is_first, and explores only in mode "train"."""
        ...


class Algorithm(Policy, Stateful, Protocol):
    rollout_length: int
    """Env steps per env between two updates, T."""

    def update(self, rollout: Rollout, progress: Progress) -> Metrics:
        """Process the data, take zero or more gradient steps, and return metrics; the only method that changes the algorithm."""
        ...


# Optional capabilities of an algorithm. Commands test for these, never for an algorithm's name.


class Prediction(NamedTuple):
    """Observations 1 to H steps ahead."""

    mean: Tensor  # [H, B, D] without noise
    samples: Tensor  # [H, M, B, D] of the predicted distribution
    disagreement: Tensor  # [H, B] of the model's members, at least 0


@runtime_checkable
class PredictsObservations(Protocol):
    """An algorithm with a model that predicts observations (`rlx model`)."""

    def predict_observations(self, obs: Tensor, action: Tensor, *, min_samples: int) -> Prediction:
        """Predictions under actions [H, B, A] from obs [B, D], with M >= min_samples."""

    def observation_scale(self) -> Tensor | None:
        """[D] standard deviations of the observations that the model was fitted to, 0 of a constant feature; None before the first fit."""

    def prediction_horizon(self) -> int:
        """Steps ahead that the algorithm's own planner predicts, H."""


@runtime_checkable
class Explains(Protocol):
    """An algorithm that can explain its decisions (`rlx watch`)."""

    def explain(self, obs: Tree, carry: Tree, is_first: Tensor, *, mode: Mode) -> tuple[PolicyOutput, Explanation]:
        """The result of `act` for the same arguments and random numbers, and its explanation."""
        ...


@runtime_checkable
class Ablatable(Protocol):
    """An algorithm that can act with a part removed or replaced (`rlx eval --imagination`)."""

    @classmethod
    def ablations(cls) -> Mapping[str, Sequence[str]]:
        """The choices of each ablation, by the name of the ablation."""
        ...

    def ablate(self, choices: Mapping[str, str], *, mode: Mode) -> Self:
        """This algorithm, or a copy with these ablations; those that are not in `choices` stay as they are.

        Raises:
            ConfigError: if the algorithm has no such ablation as it is configured, or not in this mode.
        """
        ...


@runtime_checkable
class Exportable(Protocol):
    """An algorithm whose evaluation policy is a function of tensors, so that other programs can run it without rlx."""

    def policy_module(self) -> torch.nn.Module:
        """A module with forward(obs [B, *], carry, is_first [B]) -> (action [B, *], carry), equal to `act` in mode "eval"."""
        ...


@runtime_checkable
class Distributes(Protocol):
    """An algorithm that learns on many ranks (`rlx train --ranks`), each with its share of the environments, as one of all would learn."""

    def join(self, world: World) -> None:
        """Learn together with the other ranks from now on; called once, after the algorithm was built for this rank's environments.

        `update`, `state_dict` and `load_state_dict` are then called by all ranks together. What is saved is of all environments, in their
        order, so that it can be loaded on another number of ranks.
        """
        ...


@runtime_checkable
class Finetunable(Protocol):
    """An algorithm that can start from the networks of another run (`rlx train --from`)."""

    weight_parts: tuple[str, ...]
    """Entries of its state that are networks or normalisers, e.g. "net" or "reward_scaler/_extra_state"; the first one is required."""


@runtime_checkable
class HasParts(Protocol):
    """An algorithm whose parts can act on their own (`rlx arena --parts`)."""

    def parts(self) -> Mapping[str, Policy]:
        """The parts by name."""
        ...


@runtime_checkable
class KeepsReplay(Protocol):
    """An algorithm with a replay, whose size is said at the start of a run and refused if it does not fit.

    Its configuration has one field whose name ends in `replay_size`.
    """

    replay_bytes: int
    """Bytes that its replays take once they are full."""


@runtime_checkable
class ReportsNetwork(Protocol):
    """An algorithm that can say what its network is made of (`rlx show`)."""

    def network_report(self) -> dict[str, Any]:
        """See `rlx.nn.network_report`."""
        ...
