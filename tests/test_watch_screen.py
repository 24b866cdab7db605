"""What rlx watch draws of any environment: screens, the characters that are sent of them, pictures, and text."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from fake_terminal import FakeTerminal
from gymnasium import spaces
from numpy.typing import NDArray

from rlx.config.compose import Composer
from rlx.envs.edge import Edge
from rlx.envs.vector import GymVectorEnv
from rlx.evaluation.inputs import Input, inputs_of
from rlx.evaluation.rendering import Camera
from rlx.evaluation.watching import Decision, Moment, Watch, action_parts, play
from rlx.render.cells import DIM, PLAIN, Cells, Span
from rlx.render.live_screen import changes, whole
from rlx.render.pictures import pictures_of, scaled
from rlx.render.watch_files import picture
from rlx.render.watch_panel import TAKEN
from rlx.render.watch_screen import plain, screen
from rlx.types import Explanation, PolicyOutput

MASK = np.array([1, 1, 0, 1, 1], dtype=bool)  # of three options and of two


class Rich(gymnasium.Env[Any, Any]):
    """Episodes of three steps with an image stack, a vector and a number to see, two masked choices to make, and a frame to render."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012  (the API's own class attribute)
    observation_space = spaces.Dict(
        {"eye": spaces.Box(0, 255, (2, 30, 40), np.uint8), "body": spaces.Box(-9.0, 9.0, (3,)), "room": spaces.Discrete(7)}
    )
    action_space = spaces.MultiDiscrete([3, 2])

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode, self.t = render_mode, 0

    def _observe(self) -> Any:
        eye = np.zeros((2, 30, 40), np.uint8)
        eye[0], eye[1] = 100, 200  # the older and the newer frame
        return {"eye": eye, "body": np.array([self.t, -2.0, 0.0], np.float32), "room": 5}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        return self._observe(), {"action_mask": MASK}

    def step(self, action: Any) -> Any:
        self.t += 1
        return self._observe(), 0.5, self.t == 3, False, {"action_mask": MASK}

    def render(self) -> Any:
        return np.full((64, 48, 3), (10 * self.t, 0, 250), np.uint8)


class Blind(Rich):
    metadata = {"render_modes": []}  # noqa: RUF012


class Policy:
    """Says of a batch of one what it always says."""

    device = torch.device("cpu")

    def initial_carry(self, batch_size: int) -> Any:
        return ()

    def act(self, obs: Any, carry: Any, is_first: Any, *, mode: str) -> PolicyOutput:
        return PolicyOutput(torch.tensor([[1, 0]]), carry, {})

    def explain(self, obs: Any, carry: Any, is_first: Any, *, mode: Any) -> tuple[PolicyOutput, Explanation]:
        probs = torch.tensor([[0.25, 0.75, 0.0, 0.9, 0.1]])
        inputs = {"['body']": torch.tensor([[1.5, -2.5, 0.0]])}
        return self.act(obs, carry, is_first, mode=mode), Explanation(probs, torch.tensor([3.25]), inputs=inputs)


def watch_of(env: GymVectorEnv, camera: Any = None, why: str | None = None) -> Watch:
    moments = play(env, Policy(), np.array([3]), camera=camera)  # type: ignore[arg-type]
    parts = action_parts(env.single_action_space, "Rich-v0", env.envs[0])
    return Watch(title="a run", grid=None, depth=0, parts=parts, fps=4.0, why_no_frame=lambda: why, moments=moments)


def rich_env() -> GymVectorEnv:
    return GymVectorEnv(lambda: Edge(Rich("rgb_array"), "Rich-v0", rescale_actions=False, flatten=False, mask_in_info=True), 1)


@pytest.fixture
def watch() -> Watch:
    env = rich_env()
    return watch_of(env, camera=env.envs[0].render)


def cells_of(moment: Moment, watch: Watch, width: int = 100, height: int = 50, **kwargs: Any) -> Cells:
    return screen(moment, watch, width, height, **{"colour": True} | kwargs)


# Moments


def test_a_moment_has_what_was_seen_and_what_was_given_to_the_network(watch: Watch) -> None:
    moments = list(watch.moments)
    assert [m.step for m in moments] == [0, 1, 2, 3]
    first, last = moments[0], moments[-1]
    assert first.frame is not None
    assert (first.frame.shape, int(first.frame[0, 0, 0])) == ((64, 48, 3), 0)
    assert [int(m.frame[0, 0, 0]) for m in moments if m.frame is not None] == [0, 10, 20, 30], "of each step"
    assert first.mask is not None
    assert first.mask.tolist() == MASK.tolist()
    assert first.action is not None
    assert first.action.tolist() == [1, 0]
    body = next(part for part in first.inputs if part.name == "body")
    assert (body.observed.tolist(), body.values.tolist()) == ([0.0, -2.0, 0.0], [1.5, -2.5, 0.0])
    assert sorted(part.name for part in first.inputs) == ["body", "eye", "room"], "the mask is no input"
    assert (last.action, last.terminated, last.return_) == (None, True, 1.5)


def test_a_vector_of_several_parts_is_shown_part_by_part() -> None:
    edge = Edge(Rich(), "Rich-v0", rescale_actions=False)
    obs, _ = edge.reset(seed=0)
    parts = inputs_of(edge.observation_space, "Rich-v0", obs, None)
    found = {part.name: part for part in parts}
    assert found["body"].values.tolist() == [0.0, -2.0, 0.0]
    assert found["room"].observed.argmax() == 5


def test_where_nothing_is_rendered_the_reason_is_told(here: Any) -> None:
    gymnasium.register("Blind-v0", entry_point=Blind)
    camera = Camera(Composer().compose(["algo=ppo", "env=Blind-v0"]).config)
    assert camera() is None
    assert camera.problem == "env=Blind-v0 has no render mode rgb_array"
    watch = watch_of(rich_env(), why=camera.problem)
    moment = next(watch.moments)
    text = " ".join(cells_of(moment, watch, 60).text().split())
    assert "no frame: env=Blind-v0" in text
    assert "rgb_array" in text
    assert moment.frame is None


def test_a_renderer_that_fails_is_asked_once(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gymnasium.register("Rich-v0", entry_point=Rich)
    camera = Camera(Composer().compose(["algo=ppo", "env=Rich-v0"]).config)
    asked: list[int] = []
    monkeypatch.setattr(Rich, "render", lambda self: asked.append(1))
    camera.env.reset(seed=[0])
    assert [camera(), camera()] == [None, None]
    assert asked == [1]
    assert camera.problem is not None
    assert "cannot be shown: its rgb_array rendering gave" in camera.problem


# Screens


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (100, 50), (200, 60)], ids=str)
def test_frame_input_and_decision_are_visible_in_every_terminal(size: tuple[int, int], watch: Watch) -> None:
    moment = next(watch.moments)
    cells = cells_of(moment, watch, *size)
    text = cells.text()
    assert text.startswith("episode 1, step 1, return +0.0   a run")
    for word in ("choice 0", "▶ 1", "0.75", "value", "+3.25", "eye, newest", "room 5 of 7"):
        assert word in text, word
    assert (cells.paper == 0x0000FA).sum() >= 40, "the frame"
    assert (cells.paper == 0xC8C8C8).sum() >= 40, "the newer frame of the input"
    if size == (200, 60):
        assert (cells.paper == 0x646464).sum() >= 40, "and the older one, where there is room"


def test_masked_choices_are_dim_and_marked(watch: Watch) -> None:
    cells = cells_of(next(watch.moments), watch)
    lines = cells.text().splitlines()
    row = next(i for i, line in enumerate(lines) if "× 2" in line)
    column = lines[row].index("× 2")
    assert (cells.style[row, column : column + 3] == DIM).all()
    assert "masked" in lines[row]
    taken = next(i for i, line in enumerate(lines) if "▶ 1" in line)
    assert cells.ink[taken, lines[taken].index("▶ 1")] == TAKEN


def test_a_continuous_action_is_shown_within_its_bounds() -> None:
    space = spaces.Box(-2.0, 2.0, (2,))
    parts = action_parts(space, "Pendulum-v1", None)
    assert [(p.name, p.low, p.high) for p in parts] == [("action 0", -2.0, 2.0), ("action 1", -2.0, 2.0)]
    decision = Decision(None, 1.0, mean=np.array([0.0, 2.0], np.float32), std=np.array([1.0, 0.1], np.float32))
    moment = Moment(episode=1, step=0, reward=None, return_=0.0, action=np.array([1.0, 2.0]), decision=decision)
    watch = Watch(title="", grid=None, depth=0, parts=parts, fps=3.0, why_no_frame=lambda: None, moments=iter(()))
    first, second = cells_of(moment, watch, 60).text().splitlines()[1:3]
    bar = first[first.index("├") + 1 : first.index("┤")]
    assert bar.count("━") + 2 == pytest.approx(len(bar) / 2, abs=2), "two standard deviations of four"
    assert bar.index("●") > bar.index("┃") == len(bar) // 2
    assert "+1.00 ±1.00" in first
    assert second.index("●") == second.index("┤") - 1, "at the upper bound"


def test_the_inputs_stay_where_an_episode_has_ended(watch: Watch) -> None:
    moments = list(watch.moments)
    text = cells_of(moments[-1], watch, still=moments[-2]).text()
    assert "the episode has ended" in text
    assert "room 5 of 7" in text


def test_without_colours_pictures_are_letters(watch: Watch) -> None:
    cells = cells_of(next(watch.moments), watch, colour=False)
    assert (cells.ink == PLAIN).all()
    assert (cells.paper == PLAIN).all()
    assert cells.text().count("*") + cells.text().count("#") > 50


def test_plain_text_says_the_same(watch: Watch) -> None:
    moments = list(watch.moments)
    assert plain(moments[1], watch).splitlines() == [
        "episode 1, step 2, return +0.5   a run",
        "  reward +0.5   value +3.250",
        "  choice 0: 0 0.250   ▶ 1 0.750   2 masked",
        "  choice 1: ▶ 0 0.900   1 0.100",
        "  input body: 1.5 -2.5 0",
        "  input eye: uint8 [2, 30, 40], mean 150",
        "  input room: 5 of 7",
    ]
    assert "the episode has ended" in plain(moments[-1], watch)


# What is sent to a terminal


def random_cells(rng: np.random.Generator, height: int, width: int) -> Cells:
    cells = Cells(height, width)
    cells.picture(1, 2, rng.integers(0, 3, (7, width - 9, 3), dtype=np.uint8) * 100)
    for row in range(height - 3, height):
        cells.write(row, int(rng.integers(5)), [Span("abc▶é", int(rng.choice([PLAIN, 0x123456])), int(rng.integers(4)))])
    return cells


def test_the_terminal_shows_every_screen_and_is_sent_what_changed() -> None:
    rng = np.random.default_rng(0)
    terminal = FakeTerminal(14, 40)
    before: Cells | None = None
    for _ in range(20):
        cells = random_cells(rng, 14, 40)
        if before is not None and rng.random() < 0.5:
            cells.glyph[:10], cells.ink[:10], cells.paper[:10] = before.glyph[:10], before.ink[:10], before.paper[:10]
        sent = terminal.num_characters
        terminal.feed(changes(before, cells, "truecolor"))
        assert terminal.screen.same(cells).all()
        if before is not None:
            assert terminal.num_characters - sent == (~cells.same(before)).sum()
        before = cells
    assert changes(before, before, "truecolor") == "", "nothing, where nothing changed"  # type: ignore[arg-type]


def test_a_terminal_of_another_size_is_drawn_anew() -> None:
    rng = np.random.default_rng(1)
    old, new = random_cells(rng, 14, 40), random_cells(rng, 20, 30)
    terminal = FakeTerminal(20, 30)
    terminal.feed(changes(old, new, "truecolor"))
    assert terminal.screen.same(new).all()


@pytest.mark.parametrize(("system", "code"), [("truecolor", "38;2;1;158;115"), ("256", "38;5;"), ("standard", "3")])
def test_colours_are_those_that_the_terminal_has(system: str, code: str) -> None:
    cells = Cells(1, 3)
    cells.write(0, 0, [Span("a", 0x019E73)])
    assert f"\x1b[0;{code}" in changes(None, cells, system)


def test_a_screen_is_kept_as_lines() -> None:
    cells = random_cells(np.random.default_rng(2), 14, 40)
    terminal = FakeTerminal(14, 40)
    terminal.feed(whole(cells, "truecolor"))
    assert terminal.screen.text() == cells.text()


def test_text_from_elsewhere_cannot_control_the_terminal() -> None:
    cells = Cells(1, 20)
    cells.write(0, 0, [Span("a\x1b[2J字b")])
    assert cells.text() == "a\\x1b[2J?b"
    cells.write(0, 15, [Span("longer than the room")])
    assert cells.text()[15:] == "long…"


# Pictures


def part_of(values: NDArray[Any], space: gymnasium.Space[Any]) -> Input:
    return Input("", values, values, space)


@pytest.mark.parametrize(("shape", "count"), [((4, 84, 84), 4), ((84, 84, 4), 4), ((96, 96, 3), 1), ((3, 60, 80), 1), ((60, 80), 1),
                                              ((4, 60, 80, 1), 4), ((2, 60, 80, 3), 2)], ids=str)  # fmt: skip
def test_images_are_found_with_channels_first_and_last(shape: tuple[int, ...], count: int) -> None:
    values = np.arange(np.prod(shape), dtype=np.uint32).astype(np.uint8).reshape(shape)
    found = pictures_of(part_of(values, spaces.Box(0, 255, shape, np.uint8)))
    assert found is not None
    assert len(found.shown) == count
    assert all(p.shape[2] == 3 and min(p.shape[:2]) >= 60 for p in found.shown)
    if shape == (4, 84, 84):
        np.testing.assert_array_equal(found.shown[0][..., 0], values[3])  # the newest first
    if shape == (96, 96, 3):
        np.testing.assert_array_equal(found.shown[0], values)


def test_the_channels_of_a_board_of_codes_have_a_colour_for_every_code() -> None:
    values = np.zeros((7, 7, 3), np.uint8)
    values[0, 0] = (10, 4, 2)
    found = pictures_of(part_of(values, spaces.Box(0, 255, (7, 7, 3), np.uint8)))
    assert found is not None
    assert len(found.shown) == 3
    assert len({tuple(p[0, 0]) for p in found.shown} | {tuple(found.shown[0][1, 1])}) == 4


@pytest.mark.parametrize("space", [spaces.Box(-1.0, 1.0, (5,)), spaces.Discrete(5), spaces.Box(-1.0, 1.0, (4, 6))], ids=str)
def test_vectors_are_no_pictures(space: Any) -> None:
    assert pictures_of(part_of(np.asarray(space.sample()), space)) is None


def test_a_smaller_picture_has_the_mean_of_what_its_pixels_cover() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(12, 20, 3), dtype=np.uint8)
    expected = pixels.reshape(4, 3, 5, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(scaled(pixels, 4, 5), expected, atol=0.51)
    uneven = scaled(pixels, 5, 7)
    assert abs(float(uneven.mean()) - float(pixels.mean())) < 1.0
    np.testing.assert_array_equal(scaled(pixels, 24, 40)[::2, ::2], pixels)


# Files


def test_every_moment_of_a_film_has_the_same_size(watch: Watch) -> None:
    moments = list(watch.moments)
    shapes = {picture(m, watch, m if m.inputs else moments[0]).shape for m in moments}
    assert len(shapes) == 1
    shown = picture(moments[2], watch, moments[2])
    assert (shown == (20, 0, 250)).all(-1).sum() > 240 * 100, "the frame, enlarged"
    assert (shown == 200).all(-1).sum() > 96 * 96, "the newer frame of the input"
    assert (shown == 100).all(-1).sum() > 1000, "the older one"
