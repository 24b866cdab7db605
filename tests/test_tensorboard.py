"""Event files hold what the record holds, also of runs that were resumed; read by TensorBoard itself."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_api import settings, trained

import rlx
from rlx.track.tensorboard import TensorboardMirror

Scalars = dict[tuple[str, int], list[float]]


def shown(run: rlx.Run) -> Scalars:
    """What TensorBoard shows, as float32."""
    events = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    found: Scalars = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            found.setdefault((tag, event.step), []).append(event.value)
    return found


def recorded(run: rlx.Run) -> dict[tuple[str, int], Any]:
    found: dict[tuple[str, int], Any] = {}
    for line in run.metrics():
        for key, value in line.items():
            if key != "env_steps":
                found.setdefault((key, line["env_steps"]), []).append(pytest.approx(value))
    return found


def test_a_resumed_run_shows_every_number_of_the_record_once(here: Path) -> None:
    run = trained("ppo", "native", "x", "log.tensorboard=true", "loop.log_every=60")
    assert shown(run) == recorded(run) != {}
    last = sorted((run.path / "checkpoints").iterdir())[-1]
    saved = last.name, shutil.copytree(last, here / "saved")
    run.resume(["loop.total_env_steps=240"])
    shutil.rmtree(run.path / "checkpoints")
    shutil.copytree(saved[1], run.path / "checkpoints" / saved[0])  # as if it had been killed before its last checkpoint
    run.resume(["loop.total_env_steps=300"])
    assert shown(run) == recorded(run)


def test_turned_on_later_it_shows_what_came_before(here: Path) -> None:
    run = trained("ppo", "native", "x")
    assert not (run.path / "tensorboard").exists()
    run.resume(["loop.total_env_steps=180", "log.tensorboard=true"])
    assert shown(run) == recorded(run)


def test_where_it_is_missing_there_is_no_run(
    here: Path, monkeypatch: pytest.MonkeyPatch, run_command: Callable[[str], tuple[int, str, str]]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else found(name))
    code, _, error = run_command(f"train {' '.join(settings('ppo', 'native', 'log.tensorboard=true'))} --name x")
    assert (code, "pip install 'rlx[tensorboard]'" in error, (here / "runs").exists()) == (2, True, False)


def test_a_disk_that_refuses_ends_the_copying_with_one_note(tmp_path: Path) -> None:
    notes: list[str] = []
    mirror = TensorboardMirror(tmp_path, notes.append)
    mirror._writer.add_event = lambda event: (_ for _ in ()).throw(OSError("no space left"))
    for step in range(3):
        mirror.write({"env_steps": step, "loss/policy": 1.0})
    mirror.close(exit_code=0)
    assert notes == ["TensorBoard: stopped (OSError: no space left); nothing is lost, metrics.jsonl is the record"]
