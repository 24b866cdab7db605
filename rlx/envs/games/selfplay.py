"""Games as environments: an agent against itself, and against an opponent.

An observation is the list of the actions so far, so that whoever acts can rebuild the state exactly.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from rlx.envs.games.openspiel import Game, GameState
from rlx.envs.games.opponents import MakeOpponent, Opponent

_NO_ACTION = -1


class _GameVectorEnv(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """B games. obs [B, L] int32: the actions so far, then -1."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012  (the API's own class attribute)

    def __init__(self, game: Game, num_envs: int) -> None:
        self.num_envs, self.game = num_envs, game
        length = game.max_length
        self.single_observation_space = gymnasium.spaces.Box(_NO_ACTION, game.num_actions - 1, (length,), np.int32)
        self.single_action_space = gymnasium.spaces.Discrete(game.num_actions)
        self._history = np.full((num_envs, length), _NO_ACTION, dtype=np.int32)
        self._ply = np.zeros(num_envs, dtype=np.int64)
        self._states: list[GameState] = [game.new_state() for _ in range(num_envs)]
        self._agent = np.zeros(num_envs, dtype=np.int64)  # for whom the reward is

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.int32], dict[str, Any]]:
        """Begin games where `options["reset_mask"]` (default everywhere); seed is one integer per env."""
        seeds = np.broadcast_to(np.asarray(0 if seed is None else seed, dtype=np.int64), self.num_envs)
        for i in np.flatnonzero((options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool))):
            self._open(int(i), int(seeds[i]))
        return self._history.copy(), {}

    def step(self, actions: NDArray[np.int64]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        reward = np.zeros(self.num_envs, dtype=np.float32)
        terminated = np.zeros(self.num_envs, dtype=bool)
        for i, action in enumerate(actions.tolist()):
            self._apply(i, action)
            self._reply(i)
            state = self._states[i]
            if state.is_terminal():
                terminated[i], reward[i] = True, state.player_return(int(self._agent[i])) / self.game.scale
        return self._history.copy(), reward, terminated, np.zeros(self.num_envs, dtype=bool), {}

    def _open(self, i: int, seed: int) -> None:
        """Begin a game and lead it to the agent's first turn."""
        self._begin(i)

    def _reply(self, i: int) -> None:
        """Lead a game to the agent's next turn."""

    def _begin(self, i: int) -> None:
        self._history[i], self._ply[i], self._states[i] = _NO_ACTION, 0, self.game.new_state()

    def _apply(self, i: int, action: int) -> None:
        self._states[i].apply_action(action)
        self._history[i, self._ply[i]] = action
        self._ply[i] += 1


class SelfPlayVectorEnv(_GameVectorEnv):
    """One agent moves for both sides; the reward, at the end, is what player 0 gets, scaled to [-1, 1]. Seeds have no effect."""

    def state_dict(self) -> dict[str, Any]:
        return {"history": self._history.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._history = np.array(state["history"], dtype=np.int32).reshape(self._history.shape)
        self._ply = (self._history != _NO_ACTION).sum(axis=1)
        self._states = [self.game.state_of(row) for row in self._history.tolist()]


class VersusOpponent(_GameVectorEnv):
    """An agent against an opponent, who moves within the step; the reward, at the end, is the agent's.

    The episode's seed decides everything that is random: who begins (player 0 for an even seed), the opening, the opponent.

    Args:
        opening_plies: random moves before the first that counts.
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
        """Random moves, drawn again if they end the game or leave the agent no turn."""
        while True:
            self._begin(i)
            for _ in range(self._opening_plies):
                self._apply(i, int(rng.choice(self._states[i].legal_actions())))
                if self._states[i].is_terminal():
                    break
            if not self._states[i].is_terminal():
                return

    def _reply(self, i: int) -> None:
        opponent = self._opponents[i]
        assert opponent is not None
        while not self._states[i].is_terminal() and self._states[i].current_player() != self._agent[i]:
            self._apply(i, opponent.move(self._states[i]))
