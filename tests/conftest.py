"""Fixtures of every test: one thread, global generators independent of earlier tests, and a comparison."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import zygote
from launch import run_main

from rlx.rng import seed_everything

zygote.start()  # before anything is differentiated in this process


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_key(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The key that signs runs lies in a directory of the tests' own."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    seed_everything(0)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor | np.ndarray) or isinstance(b, torch.Tensor | np.ndarray):
        a, b = torch.as_tensor(a), torch.as_tensor(b)
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(123.0), b.nan_to_num(123.0))
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


@pytest.fixture
def same() -> Callable[[Any, Any], bool]:
    """Whether two trees of tensors, arrays, numbers and strings are equal to the last bit."""
    return _same


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of a sixteenth of a replay, however small that is, so that tiny replays have some."""
    monkeypatch.setattr("rlx.appended._LEAST_BYTES", 0)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory; modules and environments that a test brings are forgotten after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RLX_RUNS_DIR", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = dict(gymnasium.registry)
    yield tmp_path
    for id_, spec in list(gymnasium.registry.items()):
        if id_ not in known and any(
            own in str(spec.entry_point) for own in ("rlx.", "ale_py", "minigrid", "dm_control", "robotics")
        ):  # by an import, which happens once
            known[id_] = spec
    gymnasium.registry.clear()
    gymnasium.registry.update(known)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], tuple[int, str, str]]:
    """Run a command line in this process: exit code, stdout and stderr."""

    def run(line: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_main(line, monkeypatch)
        return (code, *capsys.readouterr())

    return run
