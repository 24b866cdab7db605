"""Two-player games of perfect information: OpenSpiel's rules with rlx's own encoders and symmetries.

The order of the players in OpenSpiel's observation tensors differs from game to game, and the tensors give no symmetries. Here the
player to move comes first in every named game. A game is tried out when it is made: rules that a search cannot handle are refused
with the reason.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlx.errors import ConfigError

PREFIX = "spiel:"
GameState = Any
"""A pyspiel.State."""
_UCT_C = 2.0
"""Exploration constant of UCT, the default of OpenSpiel's own examples."""
Symmetry = tuple[NDArray[np.int64], NDArray[np.int64]]
"""How cells [H * W] and actions [A] change places: new[i] = old[permutation[i]]."""


class Positions(NamedTuple):
    """The data of n positions that a search needs; they have m legal moves in all."""

    planes: NDArray[np.float32]  # [n, C, H, W], the player to move first; zeros where the game is over
    player: NDArray[np.int64]  # [n] who moves, 0 or 1; -1 where the game is over
    outcome: NDArray[np.float32]  # [n] what player 0 gets, scaled to [-1, 1]; 0 while the game goes on
    num_legal: NDArray[np.int64]  # [n] legal moves, 0 where the game is over
    legal: NDArray[np.int64]  # [m] the legal moves of the first position, then of the second, and so on


@dataclass(frozen=True)
class _Encoder:
    """Planes of a named game, from those of OpenSpiel."""

    own: tuple[tuple[int, ...], tuple[int, ...]]
    """For each player, OpenSpiel's planes that show the player's stones; each cell is on one of them at most."""
    side: bool = False
    """Add a plane of ones for player 1, where the two play under different rules (goal, direction, komi)."""
    last_move: bool = False
    """Add two planes: the point that ko forbids, and ones after a pass, because another pass ends the game."""
    symmetries: tuple[str, ...] = ("identity",)


_ALL = ("identity", "mirror", "flip", "half_turn", "transpose", "quarter_turn", "quarter_back", "antitranspose")
_ENCODERS = {
    "tic_tac_toe": _Encoder(((2,), (1,)), symmetries=_ALL),
    "connect_four": _Encoder(((0,), (1,)), symmetries=("identity", "mirror")),
    # The four symmetries that keep the four initial discs in place.
    "othello": _Encoder(((1,), (1,)), symmetries=("identity", "half_turn", "transpose", "antitranspose")),
    "hex": _Encoder(((5, 6, 7, 8), (0, 1, 2, 3)), side=True, symmetries=("identity", "half_turn")),
    "go": _Encoder(((0,), (1,)), side=True, last_move=True, symmetries=_ALL),
    "breakthrough": _Encoder(((0,), (1,)), side=True, symmetries=("identity", "mirror")),
}
_OTHER = {"othello": ((2,), (2,))}
"""The opponent's planes, where they are not the player's own with the sides swapped."""


class Game:
    """A two-player zero-sum game of perfect information.

    Args:
        name: of OpenSpiel, e.g. `connect_four`.
        parameters: of the game, e.g. `{"board_size": 7}`.

    Raises:
        ConfigError: if there is no such game, it has no such parameter, or a search cannot play it.
    """

    def __init__(self, name: str, parameters: dict[str, Any] | None = None) -> None:
        self.name, self.parameters = name, dict(parameters or {})
        self._game = _load(name, self.parameters)
        _refuse_unplayable(name, self._game)
        from open_spiel.python.observation import make_observation

        self.num_actions = int(self._game.num_distinct_actions())
        self.max_length = int(self._game.max_game_length())
        self.scale = float(max(abs(self._game.min_utility()), abs(self._game.max_utility())))
        shape = list(self._game.observation_tensor_shape())
        self._raw_shape = tuple(shape) if len(shape) == 3 else (int(np.prod(shape)), 1, 1)
        self._observation = make_observation(self._game)
        self._encoder = _ENCODERS.get(name)
        self.planes_shape = self._planes_shape()
        self.symmetries: list[Symmetry] = self._symmetries()
        self._try_out()

    def __reduce__(self) -> tuple[Any, ...]:
        return Game, (self.name, self.parameters)

    def __str__(self) -> str:
        words = ",".join(f"{k}={v}" for k, v in self.parameters.items())
        return f"{self.name}({words})" if words else self.name

    @property
    def spiel(self) -> Any:
        """The pyspiel.Game."""
        return self._game

    def new_state(self) -> GameState:
        return self._game.new_initial_state()

    def state_of(self, history: Sequence[int] | NDArray[Any]) -> GameState:
        """The state after a list of actions; the list ends at the first negative one. Raises a ValueError for an illegal action."""
        state = self.new_state()
        for ply, action in enumerate(history):
            if action < 0:
                break
            self._check_legal(state, action, ply)
            state.apply_action(int(action))
        return state

    def _check_legal(self, state: GameState, action: int, ply: int) -> None:
        """Histories come from files and from callers, and OpenSpiel writes outside its memory for an action that is not legal."""
        if action not in state.legal_actions():
            raise ValueError(f"action {action} is not legal at ply {ply} of {self}; legal are {state.legal_actions()}")

    def plies(self, history: Sequence[int] | NDArray[Any]) -> list[GameState]:
        """The states in which each of the actions was taken; the list ends at the first negative one. Raises as `state_of`."""
        state, found = self.new_state(), list[GameState]()
        for ply, action in enumerate(history):
            if action < 0:
                break
            self._check_legal(state, action, ply)
            found.append(state)
            state = state.child(int(action))
        return found

    def uct(self, simulations: int, seed: int) -> Any:
        """OpenSpiel's MCTSBot: UCT with random rollouts, and proven wins and losses backed up; `step(state)` is its move."""
        import pyspiel

        return pyspiel.MCTSBot(self._game, pyspiel.RandomRolloutEvaluator(1, seed), _UCT_C, simulations, 256, True, seed, False)

    def look(self, states: Sequence[GameState]) -> Positions:
        """The positions of the states, as networks and searches take them."""
        n = len(states)
        raw = np.zeros((n, self._raw_size), dtype=np.float32)
        player = np.full(n, -1, dtype=np.int64)
        outcome = np.zeros(n, dtype=np.float32)
        num_legal = np.zeros(n, dtype=np.int64)
        last = np.full(n, -1, dtype=np.int64)
        legal: list[list[int]] = []
        buffer, set_from, wants_last_move = self._observation.tensor, self._observation.set_from, self._wants_last_move
        for i, state in enumerate(states):
            who = state.current_player()
            if who < 0:
                outcome[i] = state.player_return(0) / self.scale
                continue
            player[i] = who
            set_from(state, who)
            raw[i] = buffer
            moves = state.legal_actions()
            num_legal[i] = len(moves)
            legal.append(moves)
            if wants_last_move:
                history = state.history()
                last[i] = history[-1] if history else -1
        flat = np.fromiter(itertools.chain.from_iterable(legal), dtype=np.int64, count=int(num_legal.sum()))
        planes = self._encode(raw.reshape(n, *self._raw_shape), player)
        if wants_last_move:
            planes[last == self.num_actions - 1, -1] = 1.0
            self._show_ko(planes, last, num_legal, flat)
        return Positions(planes, player, outcome, num_legal, flat)

    def observe(self, states: Sequence[GameState]) -> dict[str, NDArray[Any]]:
        """The observation of n states, which `seen` decodes.

        history [n, L] int32, the actions so far, then -1; legal [n, A] int8, 1 for a legal move; planes [n, C, H, W] as in `Positions`,
        as bytes where they are zeros and ones; player [n] int64, -1 where the game is over.
        """
        seen = self.look(states)
        history = np.full((len(states), self.max_length), -1, dtype=np.int32)
        for row, state in zip(history, states, strict=True):
            moves = state.history()
            row[: len(moves)] = moves
        legal = np.zeros((len(states), self.num_actions), dtype=np.int8)
        legal[np.repeat(np.arange(len(states)), seen.num_legal), seen.legal] = 1
        return {"history": history, "legal": legal, "planes": seen.planes.astype(self.planes_dtype), "player": seen.player}

    def seen(self, obs: Mapping[str, NDArray[Any]]) -> Positions:
        """The positions of an observation, equal to those of `look` except that outcomes are 0."""
        rows, moves = np.nonzero(obs["legal"])
        num_legal = np.bincount(rows, minlength=len(obs["legal"]))
        outcome = np.zeros(len(num_legal), dtype=np.float32)
        planes = obs["planes"].astype(np.float32, copy=False)
        return Positions(planes, obs["player"], outcome, num_legal, np.ascontiguousarray(moves))

    @property
    def planes_dtype(self) -> type[np.generic]:
        """The dtype of an observation's planes: bytes for the zeros and ones of a named game, else float32."""
        return np.float32 if self._encoder is None else np.uint8

    @functools.cached_property
    def _raw_size(self) -> int:
        return int(np.prod(self._raw_shape))

    @functools.cached_property
    def _wants_last_move(self) -> bool:
        return self._encoder is not None and self._encoder.last_move

    def _planes_shape(self) -> tuple[int, int, int]:
        c, h, w = self._raw_shape
        if self._encoder is None:
            return c + 1, h, w
        return 2 + self._encoder.side + 2 * self._encoder.last_move, h, w

    def _encode(self, raw: NDArray[np.float32], player: NDArray[np.int64]) -> NDArray[np.float32]:
        out = np.zeros((len(raw), *self.planes_shape), dtype=np.float32)
        second = player == 1
        if self._encoder is None:  # an unnamed game: OpenSpiel's observation of the player to move, and which player that is
            out[:, :-1] = raw
            out[second, -1] = 1.0
            return out
        own = self._encoder.own
        theirs = _OTHER.get(self.name, own[::-1])
        for who, rows in ((0, player == 0), (1, second)):
            seen = raw[rows]
            out[rows, 0] = seen[:, own[who]].sum(axis=1)
            out[rows, 1] = seen[:, theirs[who]].sum(axis=1)
        if self._encoder.side:
            out[second, 2] = 1.0
        return out

    def _show_ko(
        self, planes: NDArray[np.float32], last: NDArray[np.int64], num_legal: NDArray[np.int64], legal: NDArray[np.int64]
    ) -> None:
        """Mark the point that ko forbids on the last plane but one of planes [n, C, H, W], given the last actions [n].

        Of the points beside the last stone, it is the only one without a stone of the player to move, if it is empty and illegal. A stone
        there would capture the last stone, so suicide cannot be what makes it illegal.
        """
        stones, ends = planes.reshape(*planes.shape[:2], -1), np.cumsum(num_legal)
        placed = np.flatnonzero((num_legal > 0) & (last >= 0) & (last < stones.shape[-1]))
        beside = self._neighbours[last[placed]]
        free = (beside >= 0) & (stones[placed[:, None], 0, beside] == 0.0)
        only = np.flatnonzero(free.sum(axis=1) == 1)
        for i, point in zip(placed[only].tolist(), beside[only, free[only].argmax(axis=1)].tolist(), strict=True):
            if not stones[i, 1, point] and point not in legal[ends[i] - num_legal[i] : ends[i]]:
                stones[i, -2, point] = 1.0

    @functools.cached_property
    def _neighbours(self) -> NDArray[np.int64]:
        """The points beside each point of a board [H * W, 4], -1 beyond its edge."""
        _, h, w = self.planes_shape
        points = np.pad(np.arange(h * w).reshape(h, w), 1, constant_values=-1)
        return np.stack([points[:-2, 1:-1], points[2:, 1:-1], points[1:-1, :-2], points[1:-1, 2:]], axis=-1).reshape(-1, 4)

    def _symmetries(self) -> list[Symmetry]:
        _, h, w = self.planes_shape
        if self._encoder is None:
            return [(np.arange(h * w), np.arange(self.num_actions))]
        return [self._symmetry(name, h, w) for name in self._encoder.symmetries if h == w or name not in _TURNS]

    def _symmetry(self, name: str, h: int, w: int) -> Symmetry:
        cells = _GRIDS[name](np.arange(h * w).reshape(h, w)).reshape(-1)
        if self.name == "connect_four":
            return cells, np.arange(w)[::-1].copy() if name == "mirror" else np.arange(w)
        if self.name == "breakthrough":  # action: row, column, direction (three down, three up), capture
            actions = np.arange(self.num_actions).reshape(h, w, 2, 3, 2)
            return cells, (actions[:, ::-1, :, ::-1] if name == "mirror" else actions).reshape(-1)
        return cells, np.concatenate([cells, np.arange(h * w, self.num_actions)])

    def _try_out(self) -> None:
        """Play a few random games, to find a broken tensor or mask before days of training.

        Raises:
            ConfigError: if an observation does not change with a move, or returns do not sum to zero.
        """
        rng = np.random.default_rng(0)
        for _ in range(2):
            state, before = self.new_state(), None
            for _ in range(min(self.max_length, 60)):
                if state.is_terminal():
                    break
                positions = self.look([state])
                if before is not None and np.array_equal(before, positions.planes):
                    raise ConfigError(
                        f"env={PREFIX}{self}: its observation did not change with a move; this release of open-spiel cannot be used"
                    )
                before = positions.planes
                state.apply_action(int(rng.choice(positions.legal)))
            if state.is_terminal() and abs(sum(state.returns())) > 1e-9:
                raise ConfigError(f"env={PREFIX}{self}: its returns sum to {sum(state.returns())}, not to zero")


_TURNS = ("transpose", "quarter_turn", "quarter_back", "antitranspose")
_GRIDS: dict[str, Any] = {
    "identity": lambda g: g,
    "mirror": lambda g: g[:, ::-1],
    "flip": lambda g: g[::-1],
    "half_turn": lambda g: g[::-1, ::-1],
    "transpose": lambda g: g.T,
    "quarter_turn": lambda g: np.rot90(g),
    "quarter_back": lambda g: np.rot90(g, -1),
    "antitranspose": lambda g: g[::-1, ::-1].T,
}


def _load(name: str, parameters: dict[str, Any]) -> Any:
    import difflib

    import pyspiel

    if name not in pyspiel.registered_names():
        near = difflib.get_close_matches(name, playable_names(), n=3)
        advice = f"did you mean env={PREFIX}{near[0]}?" if near else f"the games are {', '.join(playable_names())}"
        raise ConfigError(f"env={PREFIX}{name}: OpenSpiel has no such game; {advice}")
    specification = {g.short_name: g for g in pyspiel.registered_games()}[name].parameter_specification
    known = {key for key in specification if not key.endswith("obs_tensor")}  # users cannot set parameters of the observation
    for key in parameters:
        if key not in known:
            there = ", ".join(sorted(known)) or "none"
            raise ConfigError(f"env.kwargs.{key}: {name} has no such parameter; it has {there}")
    try:
        game = pyspiel.load_game(name, parameters)
        if game.num_distinct_actions() < 1 or min(game.observation_tensor_shape(), default=1) < 1:
            raise ValueError("such a board has no cells")
        game.new_initial_state()
        return game
    except Exception as error:  # a game's constructor may raise anything about its parameters
        raise ConfigError(f"env={PREFIX}{name} cannot be made with env.kwargs={parameters}: {' '.join(str(error).split())}") from error


def _refuse_unplayable(name: str, game: Any) -> None:
    """Raise a ConfigError unless a two-player tree search can play a game."""
    reason = _unplayable(game.get_type(), players=game.num_players())
    if reason:
        raise ConfigError(
            f"env={PREFIX}{name}: {reason}; search needs two players, full information, no dice and one outcome at the end, "
            "as in connect_four, othello or go"
        )


def _unplayable(kind: Any, players: int | None = None) -> str | None:
    import pyspiel

    types = pyspiel.GameType
    if players is not None and players != 2:
        return f"it is for {players} player{'s' if players != 1 else ''}"
    if kind.min_num_players > 2 or kind.max_num_players < 2:
        return "it is not for two players"
    if kind.dynamics != types.Dynamics.SEQUENTIAL:
        return "its players move at the same time"
    if kind.chance_mode != types.ChanceMode.DETERMINISTIC:
        return "chance has a part in it"
    if kind.information != types.Information.PERFECT_INFORMATION:
        return "it hides information from its players"
    if kind.reward_model != types.RewardModel.TERMINAL or kind.utility != types.Utility.ZERO_SUM:
        return "it is not decided by one zero-sum outcome at its end"
    if not kind.provides_observation_tensor:
        return "OpenSpiel has no tensor for its positions"
    return None


@functools.cache
def playable_names() -> tuple[str, ...]:
    """OpenSpiel's games that can be played here with their default parameters."""
    import pyspiel

    return tuple(sorted(g.short_name for g in pyspiel.registered_games() if g.default_loadable and _unplayable(g) is None))
