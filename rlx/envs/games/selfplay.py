"""Games as environments: self-play, and games against an opponent.

An observation shows the position (planes, legal moves, player to move), which the environment encodes once for all games together, and the
actions so far, from which a search rebuilds the state exactly.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from rlx.envs.games.openspiel import Game, GameState
from rlx.envs.games.opponents import MakeOpponent, Opponent
from rlx.tree_ops import map_tree, put

_NO_ACTION = -1


def observation_space(game: Game) -> gymnasium.spaces.Dict:
    """The space of `Game.observe`, for one game."""
    spaces = gymnasium.spaces
    return spaces.Dict({
        "history": spaces.Box(_NO_ACTION, game.num_actions - 1, (game.max_length,), np.int32),
        "legal": spaces.MultiBinary(game.num_actions),
        "planes": spaces.Box(0, 1 if game.planes_dtype is np.uint8 else np.inf, game.planes_shape, game.planes_dtype),
        "player": spaces.Discrete(3, start=-1),
    })  # fmt: skip


class _GameVectorEnv(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """B games with the observations of `Game.observe`."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012  (the API's own class attribute)

    def __init__(self, game: Game, num_envs: int) -> None:
        self.num_envs, self.game = num_envs, game
        self.single_observation_space = observation_space(game)
        self.single_action_space = gymnasium.spaces.Discrete(game.num_actions)
        self._states: list[GameState] = [game.new_state() for _ in range(num_envs)]
        self._agent = np.zeros(num_envs, dtype=np.int64)  # the player whose reward it is
        self._obs = game.observe(self._states)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Begin games where `options["reset_mask"]` (default everywhere); seed is one integer per env."""
        seeds = np.broadcast_to(np.asarray(0 if seed is None else seed, dtype=np.int64), self.num_envs)
        begun = np.flatnonzero((options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool)))
        for i in begun.tolist():
            self._open(i, int(seeds[i]))
        put(self._obs, begun, self.game.observe([self._states[i] for i in begun.tolist()]))
        return map_tree(np.copy, self._obs), {}

    def step(self, actions: NDArray[np.int64]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        reward = np.zeros(self.num_envs, dtype=np.float32)
        terminated = np.zeros(self.num_envs, dtype=bool)
        for i, action in enumerate(actions.tolist()):
            self._states[i].apply_action(action)
            self._reply(i)
            state = self._states[i]
            if state.is_terminal():
                terminated[i], reward[i] = True, state.player_return(int(self._agent[i])) / self.game.scale
        self._obs = self.game.observe(self._states)
        return map_tree(np.copy, self._obs), reward, terminated, np.zeros(self.num_envs, dtype=bool), {}

    def _open(self, i: int, seed: int) -> None:
        """Begin a game and play it up to the agent's first turn."""
        self._states[i] = self.game.new_state()

    def _reply(self, i: int) -> None:
        """Play a game up to the agent's next turn."""


class SelfPlayVectorEnv(_GameVectorEnv):
    """One agent moves for both sides. The reward, at the end, is player 0's return, scaled to [-1, 1]. Seeds have no effect."""

    def state_dict(self) -> dict[str, Any]:
        return {"history": self._obs["history"].tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._states = [self.game.state_of(row) for row in state["history"]]
        self._obs = self.game.observe(self._states)


class VersusOpponent(_GameVectorEnv):
    """An agent against an opponent that moves within `step`. The reward, at the end, is the agent's.

    All randomness follows from the episode's seed: which side begins (player 0 for an even seed), the opening, the opponent's moves.

    Args:
        opening_plies: random moves before the agent and the opponent play.
    """

    def __init__(self, game: Game, num_envs: int, make_opponent: MakeOpponent, *, opening_plies: int = 0) -> None:
        super().__init__(game, num_envs)
        self._make_opponent, self._opening_plies = make_opponent, opening_plies
        self._opponents: list[Opponent | None] = [None] * num_envs

    def _open(self, i: int, seed: int) -> None:
        self._agent[i] = seed % 2
        self._opponents[i] = self._make_opponent(self.game, seed)
        self._play_opening(i, np.random.default_rng(seed // 2))  # a pair of seeds 2k and 2k + 1 shares its opening
        self._reply(i)

    def _play_opening(self, i: int, rng: np.random.Generator) -> None:
        """Play random moves; they are drawn again if they end the game or leave the agent no turn."""
        while True:
            state = self._states[i] = self.game.new_state()
            for _ in range(self._opening_plies):
                state.apply_action(int(rng.choice(state.legal_actions())))
                if state.is_terminal():
                    break
            if not state.is_terminal():
                return

    def _reply(self, i: int) -> None:
        opponent, state = self._opponents[i], self._states[i]
        assert opponent is not None
        while not state.is_terminal() and state.current_player() != self._agent[i]:
            state.apply_action(opponent.move(state))
