"""One Atari game on ale-py's emulator, which owns frame skipping, stickiness and the start of an episode.

Actions stick outside the emulator, with the episode's own generator: the emulator does not save the action it last executed, so a game
with stickiness inside could not be saved exactly. An episode begins by restoring the state after loading the game, which takes a
thousandth of the time of loading it anew and, unlike the emulator's own reset, leaves nothing of the episode before.

ale-py (GPL) is an optional package that brings the games; this project holds no game.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rlx.envs.atari.atari_settings import RULES, AtariProtocol, AtariSettings, game_of
from rlx.envs.atari.frames import SIDE, shrinker
from rlx.errors import CheckpointError, ConfigError

FRAME_SKIP = 4
"""Frames for which an action is held, unless it sticks."""

_SEED = 1
"""Of the emulator's own generator, on which no game depends."""

_UNRESTORABLE = {"Qbert", "Tetris", "TicTacToe3D"}
"""Games that a restored state does not continue exactly in ale-py 0.12.1 and before, which do not save that a frame was left half drawn.
They are loaded anew for every episode, and replayed."""
_LAST_INEXACT_VERSION = (0, 12, 1)

_SPREAD = 1024
"""Bytes by which the lengths of a game's states may differ: some of its numbers are saved as text."""


class AtariEnv(gymnasium.Env[NDArray[np.uint8], Any]):
    """A game with observations [K, 84, 84]: the last K frames in grey, zeros before the first.

    Each frame is the brighter of the last two of the four that an action is held for; at the end of a game the last one is repeated.
    `info` has `lives` and, under protocol v4, `life_lost`.

    Args:
        env_id: such as ALE/Pong-v5.
        protocol: how it is played.
        settings: what differs from the protocol.
        render_mode: "rgb_array", or None.

    Raises:
        ConfigError: if the game has no such mode or difficulty.
    """

    has_native_state = True
    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012  (the API's own class attribute)

    def __init__(
        self, env_id: str, protocol: AtariProtocol, settings: AtariSettings | None = None, *, render_mode: str | None = None
    ) -> None:
        import ale_py

        self.spec, self.render_mode = gymnasium.spec(env_id), render_mode
        self.protocol, self._rules, self._settings = protocol, RULES[protocol], settings or AtariSettings()
        self._sticky = self._rules.sticky if self._settings.sticky is None else float(self._settings.sticky)
        self._rom: Any = ale_py.roms.get_rom_path(self.spec.kwargs["game"])
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.ale = ale_py.ALEInterface()
        self.ale.setInt("random_seed", _SEED)
        self.ale.setFloat("repeat_action_probability", 0.0)
        self._load()
        full = self._settings.full_action_space
        self._actions = self.ale.getLegalActionSet() if full else self.ale.getMinimalActionSet()
        self._noop, self._fire = ale_py.Action.NOOP, ale_py.Action.FIRE
        self._make_state, self._version = ale_py.ALEState, ale_py.__version__
        self.reports_life_loss, self.frame_stack = self._rules.lives, self._settings.frame_stack
        self.action_space = spaces.Discrete(len(self._actions))
        self.observation_space = spaces.Box(0, 255, (self.frame_stack, SIDE, SIDE), np.uint8)
        self.restores_exactly = game_of(env_id) not in _UNRESTORABLE or _numbers(ale_py.__version__) > _LAST_INEXACT_VERSION
        self._start = self.ale.cloneState(include_rng=True)
        height, width = self.ale.getScreenDims()
        self._raw = np.zeros((2, height, width), dtype=np.uint8)
        self._shrink = shrinker(self._raw)
        self._rng = np.random.default_rng(0)
        self.ale.getScreenGrayscale(self._raw[0])
        self._first_frame = self._shrink().copy()
        self._begin(self._first_frame, frames=0)

    def _load(self) -> None:
        self.ale.loadROM(self._rom)
        for name, available, choose in (
            ("mode", self.ale.getAvailableModes(), self.ale.setMode),
            ("difficulty", self.ale.getAvailableDifficulties(), self.ale.setDifficulty),
        ):
            wanted = getattr(self._settings, name)
            if wanted is None:
                continue
            if wanted not in available:
                raise ConfigError(f"env.kwargs.{name} must be one of {', '.join(map(str, available))}, which the game has, got {wanted}")
            choose(wanted)
        self.ale.reset_game()

    def _begin(self, frame: NDArray[np.uint8], *, frames: int) -> None:
        self._stack = np.zeros((self.frame_stack, SIDE, SIDE), dtype=np.uint8)
        self._stack[-1] = frame
        self._last, self._lives, self._frames = self._noop, self.ale.lives(), frames

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._return_to_start()
        presses = [self._noop] * int(self._rng.integers(1, self._rules.noops + 1)) if self._rules.noops else []
        if self._rules.fire and self._fire in self._actions:
            presses += [self._fire] * FRAME_SKIP
        for action in presses:
            self.ale.act(action)
            if self.ale.game_over():
                self._return_to_start()
        frame = self._first_frame
        if len(presses) > 1:  # the first screen after restoring may show pixels of before
            self._raw[1] = 0
            self.ale.getScreenGrayscale(self._raw[0])
            frame = self._shrink()
        self._begin(frame, frames=len(presses))
        return self._stack, {"lives": self._lives}

    def _return_to_start(self) -> None:
        if self.restores_exactly:
            self.ale.restoreState(self._start)
        else:
            self._load()

    def step(self, action: Any) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        ale, chosen, reward, over = self.ale, self._actions[int(action)], 0.0, False
        for frame in range(FRAME_SKIP):
            if not self._sticky or self._rng.random() >= self._sticky:
                self._last = chosen
            reward += ale.act(self._last)
            self._frames += 1
            over = ale.game_over(with_truncation=False)
            if over:
                break
            if frame >= FRAME_SKIP - 2:
                ale.getScreenGrayscale(self._raw[frame - FRAME_SKIP])
        seen, self._stack = self._stack, np.empty_like(self._stack)
        self._stack[:-1], self._stack[-1] = seen[1:], seen[-1] if over else self._shrink()
        lives_before, self._lives = self._lives, ale.lives()
        info: dict[str, Any] = {"lives": self._lives}
        if self.reports_life_loss:
            info["life_lost"] = not over and 0 < self._lives < lives_before
        return self._stack, reward, over, not over and self._frames >= self._settings.max_frames, info

    def state_dict(self) -> dict[str, Any]:
        """The game between two steps: the emulator's memory, and what this class adds to it."""
        return {
            "ale": np.frombuffer(self.ale.cloneState(include_rng=True).serialize(), dtype=np.uint8),
            "stack": self._stack.copy(),
            "last_action": self._last.value,
            "lives": self._lives,
            "frames": self._frames,
            "rng": self._rng.bit_generator.state,
            "protocol": self.protocol.value,
            "version": self._version,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a saved game.

        Raises:
            CheckpointError: if it comes from another version of ale-py, or is no state of this game.
        """
        if state["version"] != self._version:
            raise CheckpointError(f"it was saved with ale-py {state['version']}, and {self._version} is installed: install the first, "
                                  "or begin new episodes with `rlx resume --inexact`")  # fmt: skip
        memory, stack = np.asarray(state["ale"]), np.asarray(state["stack"])
        if memory.dtype != np.uint8 or abs(memory.size - len(self._start.serialize())) > _SPREAD:
            raise ValueError(f"{memory.size:,} bytes of {memory.dtype} are not the memory of this game")
        if stack.shape != self._stack.shape or stack.dtype != np.uint8:
            raise ValueError(f"frames of shape {stack.shape} and dtype {stack.dtype}, expected {self._stack.shape} of uint8")
        actions = {action.value: action for action in (self._noop, *self._actions)}
        last, lives, frames = actions[state["last_action"]], int(state["lives"]), int(state["frames"])
        self._rng.bit_generator.state = state["rng"]
        self.ale.restoreState(self._make_state(memory.tobytes()))
        self._stack, self._last, self._lives, self._frames = stack.copy(), last, lives, frames

    def get_action_meanings(self) -> list[str]:
        """Names of the actions."""
        return [action.name for action in self._actions]

    def render(self) -> NDArray[np.uint8] | None:
        """The screen [H, W, 3]."""
        return np.asarray(self.ale.getScreenRGB()) if self.render_mode == "rgb_array" else None


def _numbers(text: str) -> tuple[int, ...]:
    """The numbers at the start of a version."""
    numbers = []
    for part in text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
