"""Levels from text files in the format of Boxoban (Guez et al. 2018, https://github.com/google-deepmind/boxoban-levels).

A level is a block of lines with one character for each cell: `#` wall, space floor, `.` goal, `$` box, `*` box on a goal, `@` player,
`+` player on a goal. Lines that begin with `;` and empty lines stand between levels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.envs.grids.sokoban_levels import BOX, GOAL, PLAYER, WALL
from rlx.errors import ConfigError
from rlx.files import UnreadableError, read_file

Array = NDArray[Any]
_CELLS = {"#": WALL, " ": 0, ".": GOAL, "$": BOX, "*": BOX | GOAL, "@": PLAYER, "+": PLAYER | GOAL}
_KNOWN = "".join(_CELLS)
LIMIT = 64 << 20
"""Bytes of a file of levels; those of Boxoban have 110 thousand."""
_TABLE = np.zeros(256, dtype=np.uint8)
for _character, _cell in _CELLS.items():
    _TABLE[ord(_character)] = _cell


def read_levels(path: Path, *, size: int | None, num_boxes: int | None, setting: str = "env.kwargs.levels") -> NDArray[np.uint8]:
    """All levels [n, H, W] of a file, or of the files *.txt in a directory and below it, in the order of their names.

    Files of a directory in which no line begins with a wall, such as a licence, are left out.

    Args:
        path: a file or a directory.
        size: height and width that the levels must have; None takes those of the first.
        num_boxes: boxes that the levels must have; None takes any number.
        setting: the setting that gave the path, for messages.

    Raises:
        ConfigError: with file and line of the first that is no level.
    """
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    texts = {file: _read(file, setting) for file in files}
    if path.is_dir():
        texts = {file: lines for file, lines in texts.items() if any(line.startswith("#") for line in lines)}
    shape, first = (None, "") if size is None else ((size, size), "env.kwargs.size")
    levels = []
    for file, lines in texts.items():
        blocks = list(_blocks(lines))
        if not blocks:
            raise ConfigError(f"{file}: holds no level; expected lines of {_words(_CELLS)}")
        if shape is None:
            shape, first = (len(blocks[0][1]), len(blocks[0][1][0])), f"the first level, {file}:{blocks[0][0]}"
        levels.append(_parse(file, blocks, shape, first, num_boxes))
    if not levels:
        raise ConfigError(f"{setting}={path}: holds no level; expected a file, or a directory of files *.txt, in Boxoban's format")
    return np.concatenate(levels)


def _read(file: Path, setting: str) -> list[str]:
    """The lines of a file, read within limits because a foreign run may name any file."""
    try:
        real = Path(os.path.realpath(file))  # links to levels are the user's own
        return read_file(real, limit=LIMIT).decode("latin-1").splitlines()
    except UnreadableError as error:
        raise ConfigError(f"{setting}={file}: cannot be read (it {error.reason}); expected a file or directory of levels") from error


def _blocks(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Every level with the number of its first line."""
    block: list[str] = []
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip() and not line.startswith(";"):
            block.append(line)
        elif block:
            yield number - len(block), block
            block = []


def _words(characters: Any) -> str:
    return ", ".join(repr(c) for c in characters)


def _parse(file: Path, blocks: list[tuple[int, list[str]]], shape: tuple[int, int], first: str, num_boxes: int | None) -> Array:
    """The levels [n, H, W] of a file; the checks of single levels are made on all at once."""
    height, width = shape
    for number, rows in blocks:
        for at, row in enumerate(rows):
            if row.strip(_KNOWN):
                unknown = next(c for c in row if c not in _CELLS)
                where = f"{file}:{number + at}: column {row.index(unknown) + 1}"
                raise ConfigError(f"{where} is the unknown character {unknown!r}; expected one of {_words(_CELLS)}")
            if len(row) != width:
                raise ConfigError(f"{file}:{number + at}: the row has {len(row)} cells; expected {width}, as {first} has")
        if len(rows) != height:
            raise ConfigError(f"{file}:{number}: the level that begins here has {len(rows)} rows; expected {height}, as {first} has")
    text = "".join(row for _, rows in blocks for row in rows)
    levels = _TABLE[np.frombuffer(text.encode("latin-1"), dtype=np.uint8)].reshape(-1, height, width)
    players, goals, boxes = (((levels & bit) != 0).sum(axis=(1, 2)) for bit in (PLAYER, GOAL, BOX))
    border = np.ones(shape, dtype=bool)
    border[1:-1, 1:-1] = False
    numbers = np.array([number for number, _ in blocks])
    _refuse(file, numbers, players != 1, "{} players; expected 1, written @ or +", players)
    _refuse(file, numbers, boxes != goals, "{} boxes ($ or *) and {} goals (., * or +); expected equal numbers", boxes, goals)
    wanted = "at least 1" if num_boxes is None else f"env.kwargs.num_boxes={num_boxes}"
    _refuse(file, numbers, boxes == 0 if num_boxes is None else boxes != num_boxes, f"{{}} boxes; expected {wanted}", boxes)
    off_goal = ((levels & (BOX | GOAL)) == BOX).sum(axis=(1, 2))
    _refuse(file, numbers, off_goal == 0, "every box on a goal already; expected one that is not")
    open_cells = ((levels != WALL) & border).sum(axis=(1, 2))
    _refuse(file, numbers, open_cells > 0, "{} cells at its border that are no wall; expected walls all around", open_cells)
    return levels


def _refuse(file: Path, numbers: Array, wrong: Array, what: str, *counts: Array) -> None:
    """Raise for the first level that is wrong."""
    if wrong.any():
        i = int(wrong.argmax())
        raise ConfigError(f"{file}:{numbers[i]}: the level that begins here has {what.format(*(count[i] for count in counts))}")
