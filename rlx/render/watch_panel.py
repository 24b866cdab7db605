"""The text beside the pictures of `rlx watch`: a decision's distribution, its value, and the numbers that the network was given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rlx.render.cells import BOLD, DIM, PLAIN, Line, Span
from rlx.render.pictures import pictures_of

if TYPE_CHECKING:
    from rlx.evaluation.inputs import Input
    from rlx.evaluation.watching import Moment, Part, Watch

TAKEN, POLICY, SPREAD = 0x009E73, 0x56B4E9, 0x4A6A85
_NEGATIVE, _POSITIVE = 0xE69F00, 0x56B4E9
_LEVELS = "▁▂▃▄▅▆▇█"
_NAME = 14
"""Most characters of a name."""
_NUMBER = 7
"""Characters of a number behind a bar."""
_SPREAD_OF_INPUTS = 3.0
"""Where the bar of an input ends."""


def panel(moment: Moment, watch: Watch, given: Sequence[Input], width: int, height: int) -> list[Line]:
    """The text in at most `height` lines: the fullest form that fits, else its first lines.

    Args:
        moment: what is shown.
        watch: names the numbers of an action.
        given: the network's inputs.
        width, height: in characters.
    """
    forms: list[list[Line]] = []
    for few_options, few_numbers in ((False, False), (False, True), (True, True)):
        lines = decision(moment, watch, width, brief=few_options) + status(moment, watch)
        numbers = inputs(given, width, brief=few_numbers)
        forms.append(lines + ([[], *numbers] if numbers else []))
        if len(forms[-1]) <= height:
            return forms[-1]
    return forms[-1][:height]


def decision(moment: Moment, watch: Watch, width: int, *, brief: bool) -> list[Line]:
    """The distribution of every number of the action.

    Args:
        moment: is explained.
        watch: names the numbers.
        width: of a line.
        brief: one line for every choice, instead of one for each of its options.
    """
    lines: list[Line] = []
    names = [_short(part.name) for part in watch.parts]
    longest = max(map(len, names))
    for part, name, found in zip(watch.parts, names, distributions(moment, watch.parts), strict=True):
        if not part.options:
            lines.append(_quantity(part, name.ljust(longest), found, width))
        elif brief or (len(watch.parts) > 1 and len(part.options) == 2):
            lines.append(_strip(part, name.ljust(longest), found, width))
        else:
            lines += [[Span(name, style=DIM)]] if name else []
            lines += _options(part, found, width)
    return lines


class Distribution:
    """Of one number of an action: probabilities and what is allowed, or mean and standard deviation; None where they are not known."""

    def __init__(self) -> None:
        self.taken: float | None = None
        self.probs: NDArray[np.float32] | None = None
        self.q_value: NDArray[np.float32] | None = None
        self.allowed: NDArray[np.bool_] | None = None
        self.mean: float | None = None
        self.std: float | None = None


def distributions(moment: Moment, parts: tuple[Part, ...]) -> Iterator[Distribution]:
    """The distribution of each number of the action."""
    offset, quantity, found = 0, 0, moment.decision
    for i, part in enumerate(parts):
        of = Distribution()
        if moment.action is not None:
            of.taken = float(moment.action[i])
        if part.options:
            here = slice(offset, offset + len(part.options))
            offset = here.stop
            of.probs = None if found is None or found.probs is None else found.probs[here]
            of.q_value = None if found is None or found.q_value is None else found.q_value[here]
            of.allowed = None if moment.mask is None else moment.mask[here]
        else:
            if found is not None and found.mean is not None and found.std is not None:
                of.mean, of.std = float(found.mean[quantity]), float(found.std[quantity])
            quantity += 1
        yield of


def _options(part: Part, of: Distribution, width: int) -> list[Line]:
    """A line for each option: its name, a bar, its probability."""
    longest = min(_NAME, max(map(len, part.options)))
    room = max(1, width - longest - 2 - 1 - 5 - (of.q_value is not None) * (_NUMBER + 1))
    lines: list[Line] = []
    for i, option in enumerate(part.options):
        taken = of.taken is not None and int(of.taken) == i
        masked = of.allowed is not None and not of.allowed[i]
        style = DIM if masked else BOLD * taken
        mark = "▶ " if taken else "× " if masked else "  "
        line = [Span(mark + _short(option).ljust(longest), TAKEN if taken else PLAIN, style)]
        if masked:
            line.append(Span(" masked", style=DIM))
        elif of.probs is not None:
            line += [Span(" " + bar(float(of.probs[i]), room), TAKEN if taken else POLICY), Span(f" {of.probs[i]:4.2f}", style=style)]
        if of.q_value is not None:
            line.append(Span(f" {of.q_value[i]:+{_NUMBER}.2f}", style=style))
        lines.append(line)
    return lines


def _strip(part: Part, name: str, of: Distribution, width: int) -> Line:
    """One line: the name, a column for each option as high as its probability, and the option that is taken."""
    line = [Span(f"{name} ".lstrip() if not name.strip() else f"{name} ", style=DIM)]
    said = ""
    if of.taken is not None:
        said = f" ▶{_short(part.options[int(of.taken)])}"
        said += f" {of.probs[int(of.taken)]:4.2f}" if of.probs is not None else ""
    room = max(0, width - len(line[0].text) - len(said))
    for i in range(min(len(part.options), room)) if of.probs is not None else ():
        taken = of.taken is not None and int(of.taken) == i
        masked = of.allowed is not None and not of.allowed[i]
        level = "×" if masked else _LEVELS[min(7, int(8 * of.probs[i]))]  # type: ignore[index]
        line.append(Span(level, TAKEN if taken else POLICY, DIM if masked else 0))
    return [*line, Span(said, TAKEN, BOLD)]


def _quantity(part: Part, name: str, of: Distribution, width: int) -> Line:
    """One line: the bounds as a bar, one standard deviation around the mean in it, and the number that is taken."""
    number = "" if of.taken is None else f" {_signed(of.taken)}"
    spread = "" if of.std is None else f" ±{of.std:.2f}"
    room = max(5, width - len(name) - 3 - (_NUMBER + 1) - 6)
    low, high = (part.low, part.high) if np.isfinite([part.low, part.high]).all() else (-3.0, 3.0)
    cells = np.full(room, ord("─"), np.uint32)
    inks = np.full(room, PLAIN)

    def place(value: float) -> int:
        return int(np.clip((value - low) / max(1e-9, high - low), 0.0, 1.0) * (room - 1) + 0.5)

    if of.mean is not None and of.std is not None:
        spreads = slice(place(of.mean - of.std), place(of.mean + of.std) + 1)
        cells[spreads], inks[spreads] = ord("━"), POLICY
        cells[place(of.mean)] = ord("┃")
    if of.taken is not None:
        cells[place(of.taken)], inks[place(of.taken)] = ord("●"), TAKEN
    marks = [Span(chr(c), int(ink)) for c, ink in zip(cells.tolist(), inks, strict=True)]
    return [
        Span(f"{name} "),
        Span("├", style=DIM),
        *marks,
        Span("┤", style=DIM),
        Span(number.rjust(_NUMBER + 1), TAKEN),
        Span(spread, style=DIM),
    ]


def status(moment: Moment, watch: Watch) -> list[Line]:
    """Value, reward, and how an episode ended."""
    found, lines = moment.decision, list[Line]()
    if found is not None and found.value is not None:
        lines.append([Span("value   ", style=DIM), Span(f"{found.value:+.2f}")])
    elif moment.action is None and watch.why_no_frame is not None:
        lines.append([Span("the episode has ended" if moment.terminated else "cut: no steps are left", style=BOLD)])
    if moment.reward is not None:
        lines.append([Span("reward  ", style=DIM), Span(f"{moment.reward:+.2f}", style=BOLD if moment.reward else 0)])
    if found is not None and found.shift is not None:
        lines.append([Span(f"policy shift {found.shift:.3f} nats", style=DIM)])
    return lines


# The numbers that the network was given


def inputs(given: Sequence[Input], width: int, *, brief: bool) -> list[Line]:
    """Every input that is no picture.

    Args:
        given: the network's inputs.
        width: of a line.
        brief: many numbers in a line, as colours.
    """
    lines: list[Line] = []
    for part in given:
        if pictures_of(part) is not None:
            continue
        name = part.name or "input"
        if (said := in_words(part)) is not None:
            lines.append([Span(f"{_short(name)} ", style=DIM), Span(said)])
            continue
        values = part.values.ravel().astype(np.float64)
        if brief or len(values) > 40:
            lines.append([Span(f"{name} ", style=DIM), Span(f"{len(values)} numbers", style=DIM)])
            lines += _heat(values, width)
            continue
        names = part.names or tuple(f"{part.name} {i}".strip() for i in range(len(values)))
        longest = min(_NAME, max(map(len, names)))
        room = max(3, width - longest - 1 - _NUMBER - 1)
        for label, value in zip(names, values.tolist(), strict=True):
            colour = _POSITIVE if value >= 0.0 else _NEGATIVE
            lines.append(
                [
                    Span(_short(label).ljust(longest) + " ", style=DIM),
                    *_signed_bar(value, room, colour),
                    Span(f" {_signed(value):>{_NUMBER}}"),
                ]
            )
    return lines


def in_words(part: Input) -> str | None:
    """A Discrete input, or a few whole numbers; None for other inputs."""
    space, seen = part.space, part.observed.ravel()
    if isinstance(space, spaces.Discrete):
        index = int(seen.argmax()) if len(seen) == space.n and space.n > 1 else int(seen[0])
        return f"{index} of {int(space.n)}"
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary) and seen.size == int(np.prod(space.shape)):
        return " ".join(str(int(n)) for n in seen)
    return None


def _heat(values: NDArray[np.float64], width: int) -> list[Line]:
    """Numbers as coloured places, orange below and blue above zero."""
    spans = []
    for value in values.tolist():
        share = min(1.0, abs(value) / _SPREAD_OF_INPUTS)
        target = _POSITIVE if value >= 0.0 else _NEGATIVE
        parts = [int(60 + share * ((target >> shift & 255) - 60)) for shift in (16, 8, 0)]
        spans.append(Span(_LEVELS[min(7, int(8 * share))], parts[0] << 16 | parts[1] << 8 | parts[2]))
    return [spans[i : i + width] for i in range(0, len(spans), width)]


def _signed_bar(value: float, room: int, colour: int) -> Line:
    """A bar to the left or to the right of the middle."""
    half = (room - 1) // 2
    halves = min(2 * half, round(abs(value) / _SPREAD_OF_INPUTS * 2 * half))
    left = ("▐" * (halves % 2) + "█" * (halves // 2)).rjust(half) if value < 0.0 else " " * half
    right = ("█" * (halves // 2) + "▌" * (halves % 2)).ljust(half) if value >= 0.0 else " " * half
    return [Span(left, colour), Span("│", style=DIM), Span(right, colour)]


def bar(share: float, room: int) -> str:
    """A bar from the left, as wide as a share of the room."""
    eighths = round(8 * room * min(1.0, max(0.0, share)))
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8] * (eighths % 8 > 0)).ljust(room)


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


def _signed(value: float) -> str:
    return f"{value:+.2f}" if abs(value) < 99.995 else f"{value:+.0f}" if abs(value) < 1e5 else f"{value:+.0e}"
