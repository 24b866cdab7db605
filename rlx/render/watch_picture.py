"""A picture of one decision in any environment: the frame, the network's input, and the distribution of the action."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rlx.render.page import CHOSEN, FAINT, INK, MARGIN, Page
from rlx.render.pictures import Picture, Pictures, largest, pictures_of, scaled
from rlx.render.watch_panel import Distribution, distributions, in_words

if TYPE_CHECKING:
    from rlx.evaluation.watching import Moment, Part, Watch

_HEAD, _GAP, _LINE = 56, 14, 19
_FRAME_PX, _INPUT_PX = 480, 252
"""Pixels of the longer side of the frame and of an input."""
_LEAST_PX = 96
"""Of a small input, which is enlarged."""
_NAME, _BAR, _NUMBER = 110, 150, 110
"""Widths in pixels of a name, a bar, and the number behind it."""
_MOST_OPTIONS, _MOST_NUMBERS = 20, 20
_PAPER, _POLICY, _SPREAD = "#EEEEEE", "#0072B2", "#9FC9E6"
_NEGATIVE, _POSITIVE = "#D55E00", "#0072B2"


def paint(moment: Moment, watch: Watch, still: Moment) -> NDArray[np.uint8]:
    """The picture [height, width, 3]; its size depends on the shapes of what is shown only.

    Args:
        moment: what is shown.
        watch: names its parts.
        still: a moment with inputs, which are shown where an episode has ended.
    """
    inputs = moment.inputs or still.inputs
    seen = [p for part in inputs if (p := pictures_of(part)) is not None]
    frame = None if moment.frame is None else _fitted(moment.frame, _FRAME_PX, least=_FRAME_PX // 2)
    strips = [_strip(of) for of in seen]
    numbers = [part for part in inputs if pictures_of(part) is None]
    rows = _num_rows(watch.parts) + 4 + sum(_num_number_rows(part) + 1 for part in numbers)
    across = [0 if frame is None else frame.shape[1], max((s.shape[1] for s in strips), default=0), _NAME + _BAR + _NUMBER]
    tall = [0 if frame is None else frame.shape[0], sum(s.shape[0] + 2 * _LINE for s in strips), rows * _LINE]
    width = 2 * MARGIN + sum(across) + 2 * MARGIN * sum(a > 0 for a in across[:2])
    page = Page(_HEAD + max(tall) + MARGIN, width)
    page.title(f"{moment.when}    {watch.title}")
    x: int = MARGIN
    if frame is not None:
        page.image(x, _HEAD, frame)
        x += across[0] + 2 * MARGIN
    y: float = _HEAD
    for of, strip in zip(seen, strips, strict=True):
        note = f", {len(of.shown)} frames, newest first" if of.is_stack else ""
        page.text(x, y, f"{of.name or 'input'}{note}", color=FAINT)
        page.image(x, y + _LINE, strip)
        y += strip.shape[0] + 2 * _LINE
    if strips:
        x += across[1] + 2 * MARGIN
    y = _HEAD
    for part, found in zip(watch.parts, distributions(moment, watch.parts), strict=True):
        y = _paint_options(page, part, found, x, y) if part.options else _paint_quantity(page, part, found, x, y)
    y = _paint_status(page, moment, x, y + _LINE // 2) + _LINE // 2
    for given in numbers:
        y = _paint_numbers(page, given, x, y) + _LINE // 2
    return page.pixels()


def _fitted(picture: Picture, most: int, *, least: int) -> Picture:
    return scaled(picture, *largest(picture.shape, most, most, enlarged=least))


def _strip(of: Pictures) -> Picture:
    """The newest picture, and beside it the older ones in half its size, or all channels of a grid."""
    first = _fitted(of.shown[0], _INPUT_PX, least=_LEAST_PX)
    if len(of.shown) == 1:
        return first
    others = of.shown[1:9]
    height, width = first.shape[:2]
    small = [scaled(p, max(1, height // 2), max(1, width // 2)) if of.is_stack else scaled(p, height, width) for p in others]
    below = 2 if of.is_stack else 1  # pictures in a column
    columns = -(-len(small) // below)
    across = small[0].shape[1] + _GAP // 2
    strip = np.full((height + (_GAP // 2 if of.is_stack else 0), width + columns * across, 3), 255, np.uint8)
    strip[:height, :width] = first
    for i, picture in enumerate(small):
        top, left = i % below * (picture.shape[0] + _GAP // 2), width + _GAP // 2 + i // below * across
        strip[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return strip


def _num_rows(parts: tuple[Part, ...]) -> int:
    return sum((min(_MOST_OPTIONS, len(p.options)) + bool(p.name)) if p.options else 1 for p in parts)


def _num_number_rows(part: Any) -> int:
    return 1 if in_words(part) is not None else min(_MOST_NUMBERS, part.values.size) + 1


def _paint_options(page: Page, part: Part, of: Distribution, x: float, y: float) -> float:
    """A row for each option, the most likely ones of many; returns where the next row begins."""
    if part.name:
        page.text(x, y, part.name, color=FAINT)
        y += _LINE
    shown = np.arange(len(part.options))
    if len(shown) > _MOST_OPTIONS:
        order = np.argsort(-(np.eye(len(shown))[int(of.taken or 0)] if of.probs is None else of.probs), kind="stable")
        shown = np.sort(order[:_MOST_OPTIONS])
    for i in shown.tolist():
        taken = of.taken is not None and int(of.taken) == i
        masked = of.allowed is not None and not of.allowed[i]
        name = _cut(part.options[i], 14)
        colour = CHOSEN if taken else "#BBBBBB" if masked else INK
        page.text(x, y, f"▶ {name}" if taken else name, color=colour, weight="bold" if taken else "normal")
        if masked:
            page.text(x + _NAME, y, "masked", color="#BBBBBB")
        elif of.probs is not None:
            page.bar(x + _NAME, y + 2, _BAR, _PAPER)
            page.bar(x + _NAME, y + 2, _BAR * float(of.probs[i]), CHOSEN if taken else _POLICY)
            page.text(x + _NAME + _BAR + 8, y, f"{of.probs[i]:.2f}", color=colour)
        if of.q_value is not None:
            page.text(x + _NAME + _BAR + 50, y, f"Q {of.q_value[i]:+.2f}", color=FAINT)
        y += _LINE
    return y


def _paint_quantity(page: Page, part: Part, of: Distribution, x: float, y: float) -> float:
    """A row: one standard deviation around the mean within the bounds, and the number that is taken."""
    low, high = (part.low, part.high) if np.isfinite([part.low, part.high]).all() else (-3.0, 3.0)

    def place(value: float) -> float:
        return x + _NAME + _BAR * float(np.clip((value - low) / max(1e-9, high - low), 0.0, 1.0))

    page.text(x, y, _cut(part.name, 16))
    page.bar(x + _NAME, y + 2, _BAR, _PAPER)
    said = ""
    if of.mean is not None and of.std is not None:
        left, right = place(of.mean - of.std), place(of.mean + of.std)
        page.bar(left, y + 2, right - left, _SPREAD)
        page.bar(place(of.mean) - 1, y + 2, 2, _POLICY)
        said = f" ± {of.std:.2f}"
    if of.taken is not None:
        page.bar(place(of.taken) - 2, y, 4, CHOSEN, height=13)
        page.text(x + _NAME + _BAR + 8, y, f"{of.taken:+.2f}{said}", color=INK)
    return y + _LINE


def _paint_status(page: Page, moment: Moment, x: float, y: float) -> float:
    found = moment.decision
    lines = [f"value {found.value:+.2f}"] if found is not None and found.value is not None else []
    if moment.reward is not None:
        lines.append(f"reward {moment.reward:+.2f}")
    if moment.action is None:
        lines.append("the episode has ended" if moment.terminated else "cut: no steps are left")
    for i, line in enumerate(lines):
        page.text(x, y + i * _LINE, line)
    return y + 2 * _LINE


def _paint_numbers(page: Page, part: Any, x: float, y: float) -> float:
    """The numbers of an input as bars to both sides of a middle, the first ones of many."""
    if (said := in_words(part)) is not None:
        page.text(x, y, f"{part.name or 'input'}: {said}")
        return y + _LINE
    values = part.values.ravel().astype(float)
    rest = f", the first {_MOST_NUMBERS} of {len(values)} numbers" if len(values) > _MOST_NUMBERS else ""
    page.text(x, y, f"{part.name or 'input'}{rest}", color=FAINT)
    middle = x + _NAME + _BAR / 2
    for i, value in enumerate(values[:_MOST_NUMBERS].tolist()):
        y += _LINE
        page.text(x, y, _cut(part.names[i] if part.names else str(i), 16), color=FAINT)
        page.bar(x + _NAME, y + 2, _BAR, _PAPER)
        length = _BAR / 2 * min(1.0, abs(value) / 3.0)
        page.bar(middle if value >= 0.0 else middle - length, y + 2, length, _POSITIVE if value >= 0.0 else _NEGATIVE)
        page.text(x + _NAME + _BAR + 8, y, f"{value:+.2f}")
    return y + _LINE


def _cut(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
