"""Videos: streamed, cut like evaluations, and refused in one line."""

from __future__ import annotations

import gc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlx.config.compose import Composer
from rlx.errors import ConfigError, EnvError, RlxError, StorageError
from rlx.evaluation.video import record
from rlx.types import PolicyOutput

pytest.importorskip("imageio_ffmpeg", reason="needs the video extra")

DRAWN: dict[str, Any] = {}


class Drawn(gymnasium.Env[Any, Any]):
    """Episodes of five steps that are drawn by DRAWN["render"]."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012  (the API's own class attribute)
    observation_space, action_space = spaces.Box(-1.0, 1.0, (1,)), spaces.Box(0.0, 10.0, (1,))

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode, self.t = render_mode, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        DRAWN["actions"].append(float(action[0]))
        return np.zeros(1, np.float32), 1.0, self.t == 5, False, {}

    def render(self) -> Any:
        assert self.render_mode == "rgb_array"
        return DRAWN["render"](self.t)


class Still:
    device = torch.device("cpu")

    def initial_carry(self, batch_size: int) -> Any:
        return ()

    def act(self, obs: Any, carry: Any, is_first: Any, *, mode: str) -> PolicyOutput:
        return PolicyOutput(torch.full((1, 1), 0.5), carry, {})


@pytest.fixture
def drawn(here: Path) -> dict[str, Any]:
    gymnasium.register("Drawn-v0", entry_point=Drawn)
    DRAWN.update(actions=[], render=lambda t: np.full((33, 48, 3), 10 * t, np.uint8))
    return DRAWN


def film(directory: Path, *words: str) -> Path:
    config = Composer().compose(["algo=ppo", "env=Drawn-v0", *words]).config
    return record(config, Still(), np.array([3]), directory, prefix="7")[0]  # type: ignore[arg-type]


def test_frames_are_given_to_the_encoder_one_by_one(drawn, tmp_path, monkeypatch):
    tape: list[str] = []

    def get_writer(path: Path, **_: Any) -> Any:
        path.touch()
        return SimpleNamespace(append_data=lambda frame: tape.append(f"write {frame.shape} {frame.max()}"), close=lambda: None)

    monkeypatch.setattr("imageio.v2.get_writer", get_writer)
    drawn["render"] = lambda t: tape.append("draw") or np.full((33, 48, 3), t, np.uint8)
    film(tmp_path / "videos", "env.kwargs.render_mode=human")  # the recorder's mode goes before the run's own
    assert tape == [word for t in range(6) for word in ("draw", f"write (32, 48, 3) {t}")]
    assert drawn["actions"] == [7.5] * 5  # stretched, as in training


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imageio's reader leaves its pipes to the collector
def test_a_video_has_every_frame_and_ends_where_evaluations_are_cut(drawn, tmp_path):
    import imageio.v3 as imageio

    assert len(imageio.imread(film(tmp_path / "videos"))) == 6
    assert len(imageio.imread(film(tmp_path / "videos", "loop.eval_max_steps=2"))) == 3
    assert [p.name for p in (tmp_path / "videos").iterdir()] == ["7-0.mp4"]
    gc.collect()


def raising(t: int) -> Any:
    raise RuntimeError("no display")


def in_the_way(directory: Path) -> None:
    directory.write_text("a file")


@pytest.mark.parametrize(
    ("render", "error", "message"),
    [
        (lambda t: np.zeros((3, 64, 64), np.uint8), EnvError, r"shape \(3, 64, 64\) and dtype uint8, expected height x width x 3"),
        (lambda t: np.zeros((64, 64, 3)), EnvError, "dtype float64"),
        (lambda t: np.zeros((64 + 2 * t, 64, 3), np.uint8), EnvError, r"a frame has shape \(66, 64, 3\), the first one had \(64, 64, 3\)"),
        (raising, EnvError, "raised RuntimeError in render: no display"),
        (lambda t: None, ConfigError, "rendering gave None"),
        (lambda t: "####", ConfigError, "rendering gave '####'"),
        (in_the_way, StorageError, "videos is a file, and no directory"),
    ],
)
def test_what_cannot_be_recorded_is_one_error_and_leaves_no_file(render, error, message, drawn, tmp_path):
    directory = tmp_path / "videos"
    if render is in_the_way:
        render(directory)
    else:
        drawn["render"] = render
    with pytest.raises(error, match=message) as caught:
        film(directory)
    assert isinstance(caught.value, RlxError)
    assert caught.value.exit_code in (2, 5, 6)
    assert not directory.is_dir() or list(directory.iterdir()) == []
