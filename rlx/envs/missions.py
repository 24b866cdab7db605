"""Observations of MiniGrid and BabyAI in spaces that say what they hold.

MiniGrid declares the codes of its grid (object, colour, state) as bytes of an image, 0 to 255, and its mission as a string. Here the
bounds of the grid are the greatest codes, so that it is known as categories, and the mission is a sequence of words as a
MultiDiscrete: the place of each word in the vocabulary of the environment's missions, from 1, and 0 after the last. A mission that is
the same in all episodes is left out.

Only what is still MiniGrid's own is changed: pictures, and what wrappers made of the observation, stay as they are.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

_BABYAI_WORDS = (
    *("a", "after", "and", "ball", "behind", "blue", "box", "door", "front", "go", "green", "grey", "in", "key", "left", "next", "object"),
    *("of", "on", "open", "pick", "purple", "put", "red", "right", "the", "then", "to", "up", "yellow", "you", "your"),
)
_BABYAI_MOST_WORDS = 20
"""Of an instruction, or of two: "put the grey ball next to the red box, then put …"."""
_BABYAI_MOST_WORDS_OF_SEQUENCES = 72
"""Of levels that are made by BabyAI's grammar: four instructions of 17 words, whose objects have places, and three conjunctions."""


def with_codes(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """The environment, with its codes and missions in spaces of their own if it is a MiniGrid; else as it is."""
    module = sys.modules.get("minigrid.minigrid_env")
    return _Codes(env) if module is not None and isinstance(env.unwrapped, module.MiniGridEnv) else env


class _Codes(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A MiniGrid with its codes and missions in spaces of their own."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        own = env.observation_space
        self._encode: Callable[[str], NDArray[np.int64]] | None = None
        self._changes = False
        if not isinstance(own, spaces.Dict):
            self.observation_space = _grid(own, env)
            return
        parts = {key: _grid(part, env) if key == "image" else part for key, part in own.spaces.items()}
        mission = parts.get("mission")
        if type(mission).__name__.endswith("MissionSpace"):
            self._changes = True
            words, most = _language(mission, env)
            if words:
                self._encode = _encoder(words, most)
                parts["mission"] = spaces.MultiDiscrete([len(words) + 1] * most)
            else:
                del parts["mission"]
        self.observation_space = spaces.Dict(parts)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        with contextlib.redirect_stdout(io.StringIO()):  # BabyAI prints each level that it rejects
            obs, info = self.env.reset(seed=seed, options=options)
        return self._observe(obs), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._observe(obs), reward, terminated, truncated, info

    def _observe(self, obs: Any) -> Any:
        if not self._changes:
            return obs
        obs = dict(obs)
        mission = obs.pop("mission")
        if self._encode is not None:
            obs["mission"] = self._encode(mission)
        return obs


def _grid(space: gymnasium.Space[Any], env: gymnasium.Env[Any, Any]) -> gymnasium.Space[Any]:
    """The space of a grid of codes [W, H, 3] with their bounds; any other space as it is."""
    from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX

    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or space.shape not in set(_shapes(env)):
        return space
    last_state = max(*STATE_TO_IDX.values(), 3)  # of the agent, in a view of the whole grid, its direction
    high = np.array([max(OBJECT_TO_IDX.values()), max(COLOR_TO_IDX.values()), last_state], dtype=np.uint8)
    return spaces.Box(np.zeros(space.shape, np.uint8), np.broadcast_to(high, space.shape).copy(), dtype=np.uint8)


def _shapes(env: gymnasium.Env[Any, Any]) -> Iterator[tuple[int, int, int]]:
    """Shapes that a grid of codes may have under the wrappers; none if one of them draws pictures."""
    found: list[tuple[int, int, int]] = []
    while isinstance(env, gymnasium.Wrapper):
        if type(env).__name__.startswith("RGB"):
            return
        size = vars(env).get("agent_view_size")
        found += [(size, size, 3)] if size else []
        env = env.env
    inner: Any = env
    yield from [*found, (inner.agent_view_size, inner.agent_view_size, 3), (inner.width, inner.height, 3)]


def _language(space: Any, env: gymnasium.Env[Any, Any]) -> tuple[tuple[str, ...], int]:
    """The words of an environment's missions and their greatest number in one; no words where the mission never changes."""
    if type(space).__name__ == "BabyAIMissionSpace":
        levels: Any = sys.modules["minigrid.envs.babyai.core.levelgen"]
        is_sequence = isinstance(env.unwrapped, levels.LevelGen)
        return _BABYAI_WORDS, _BABYAI_MOST_WORDS_OF_SEQUENCES if is_sequence else _BABYAI_MOST_WORDS
    choices: list[list[str]] = space.ordered_placeholders or []
    if all(len(words) == 1 for words in choices):
        return (), 0
    first, longest = [words[0] for words in choices], [max(words, key=lambda w: len(_words(w))) for words in choices]
    missions = [space.mission_func(*first[:i], word, *first[i + 1 :]) for i, words in enumerate(choices) for word in words]
    return tuple(sorted({word for mission in missions for word in _words(mission)})), len(_words(space.mission_func(*longest)))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\s,.;:!?]+", text.lower())


def _encoder(vocabulary: tuple[str, ...], most: int) -> Callable[[str], NDArray[np.int64]]:
    """The function from a mission to its words' places in the vocabulary [most]."""
    place = {word: i + 1 for i, word in enumerate(vocabulary)}
    last: dict[str, NDArray[np.int64]] = {}  # the mission of this episode

    def encode(mission: str) -> NDArray[np.int64]:
        if mission not in last:
            words = _words(mission)
            unknown = [word for word in words if word not in place]
            if unknown or len(words) > most:
                what = f"the word {unknown[0]!r}" if unknown else f"{len(words)} words"
                raise ValueError(
                    f"the mission {mission!r} has {what}, and the space of missions has at most {most} words of {', '.join(place)}"
                )
            codes = np.zeros(most, dtype=np.int64)
            codes[: len(words)] = [place[word] for word in words]
            last.clear()
            last[mission] = codes
        return last[mission]

    return encode
