"""A terminal that understands the escape sequences of `rlx.render.live_screen`, for tests of what is on the screen."""

from __future__ import annotations

import re

import numpy as np

from rlx.render.cells import PLAIN, Cells

_TOKEN = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|([^\x1b])", re.DOTALL)


class FakeTerminal:
    """A screen of characters with their colours, and what was switched on.

    Args:
        height, width: in characters.
    """

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.screen, self.usual = Cells(height, width), Cells(height, width)
        self.row = self.column = 0
        self.modes: set[str] = {"25", "7"}
        self._ink, self._paper, self._style = PLAIN, PLAIN, 0
        self._rest = ""
        self.num_characters = 0

    def feed(self, text: str) -> None:
        """Interpret what a program wrote, which may end inside a sequence."""
        text = self._rest + text
        end = text.rfind("\x1b")
        whole = end < 0 or _TOKEN.match(text, end) is not None
        text, self._rest = (text, "") if whole else (text[:end], text[end:])
        for found in _TOKEN.finditer(text):
            codes, command, character = found.groups()
            if character is not None:
                self._put(character)
            elif command == "H":
                self.row, self.column = (int(n) - 1 for n in (codes or "1;1").split(";"))
            elif command == "J":
                assert codes == "2"
                self.screen = Cells(self.height, self.width)
            elif command == "m":
                self._colours([int(n or 0) for n in codes.split(";")])
            else:
                assert command in "hl", found.group()
                mode = codes.removeprefix("?")
                (self.modes.add if command == "h" else self.modes.discard)(mode)
                if mode == "1049":
                    self.screen = Cells(self.height, self.width) if command == "h" else self.usual

    def _put(self, character: str) -> None:
        if character in "\r\n":
            self.row, self.column = self.row + (character == "\n"), 0
            return
        self.num_characters += 1
        if self.row < self.height and self.column < self.width:
            at = self.row, self.column
            self.screen.glyph[at], self.screen.style[at] = ord(character), self._style
            self.screen.ink[at], self.screen.paper[at] = self._ink, self._paper
        self.column += 1

    def _colours(self, codes: list[int]) -> None:
        while codes:
            code = codes.pop(0)
            if code == 0:
                self._ink, self._paper, self._style = PLAIN, PLAIN, 0
            elif code in (1, 2):
                self._style |= code
            else:
                assert code in (38, 48), code
                assert codes.pop(0) == 2, "true colours"
                colour = codes.pop(0) << 16 | codes.pop(0) << 8 | codes.pop(0)
                if code == 38:
                    self._ink = colour
                else:
                    self._paper = colour

    def shows(self, text: str) -> bool:
        return text in self.screen.text()

    def colours(self) -> set[int]:
        return set(np.unique(self.screen.paper).tolist()) | set(np.unique(self.screen.ink).tolist())
