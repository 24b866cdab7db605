"""The wheel holds what it should and trains on its own; names and versions agree wherever they are written down."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import rlx
from rlx.config.algo_registry import ALGORITHMS
from rlx.envs.families import _ENTRY_POINTS, FAMILIES
from rlx.extras import EXTRA_MODULES

ROOT = Path(rlx.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "rlx", "conf")


def call(*command: str | Path, cwd: Path) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RLX_", "WANDB_", "PYTHON"))} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from what is under version control, without the network."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    for name in ("tests", "runs"):
        (source / name).mkdir()
        (source / name / "stray.py").touch()
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", cwd=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin directory of a new virtual environment with the wheel; dependencies are those of this one, its own rlx is not."""
    directory = tmp_path_factory.mktemp("elsewhere")
    venv.create(directory / "venv", with_pip=False)
    binaries = directory / "venv" / "bin"
    python = binaries / "python"
    call(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=directory)
    site = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=directory).strip())
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")  # a .pth in there, as of an editable rlx, is not read
    return binaries


def test_the_wheel_holds_the_configuration_and_neither_tests_nor_runs(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"rlx/{p.relative_to(ROOT)}" for p in (ROOT / "conf").rglob("*.yaml")} <= names
    assert {str(p.relative_to(ROOT)) for p in (ROOT / "rlx").rglob("*.py")} <= names
    assert {name.split("/")[0] for name in names} == {"rlx", f"rlx-{rlx.__version__}.dist-info"}
    assert "rlx/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_an_installed_wheel_trains_and_evaluates_elsewhere(elsewhere: Path, tmp_path: Path) -> None:
    where = Path(call(elsewhere / "python", "-c", "import rlx; print(rlx.__file__)", cwd=tmp_path).strip())
    assert where.is_relative_to(elsewhere.parent)
    words = ["algo=ppo", "env=cartpole", "loop.total_env_steps=3000", "log.wandb=disabled"]
    out = call(elsewhere / "rlx", "train", *words, "--name", "w", cwd=tmp_path)
    assert "recipe ppo_cartpole" in out
    assert "finished after" in out
    result = json.loads(call(elsewhere / "rlx", "eval", "w", "--episodes", "2", "--json", cwd=tmp_path))
    assert result["episodes"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


def test_the_version_is_the_same_everywhere(wheel: Path) -> None:
    assert metadata.version("rlx") == rlx.__version__
    assert wheel.name.startswith(f"rlx-{rlx.__version__}-")


def test_every_extra_that_a_message_names_exists() -> None:
    extras = set(PROJECT["project"]["optional-dependencies"])
    texts = [p.read_text() for p in [*(ROOT / "rlx").rglob("*.py"), ROOT / "README.md"]]
    named = {extra for text in texts for names in re.findall(r"rlx\[([a-z0-9,]+)\]", text) for extra in names.split(",")}
    assert named | set(EXTRA_MODULES) | set(_ENTRY_POINTS.values()) | {f.extra for f in FAMILIES if f.extra} <= extras
    assert {"mujoco", "box2d", "atari", "video", "dev"} <= extras


def test_every_recipe_is_for_an_algorithm_or_experiments_and_an_environment_that_there_are() -> None:
    envs = {p.stem for p in (ROOT / "conf" / "env").glob("*.yaml")} | {"atari", "minatar", "courses"}  # families of ids
    experiments = {p.stem.partition("_")[0] for p in (ROOT / "conf" / "experiment").glob("*_*.yaml")}
    for path in (ROOT / "conf" / "recipe").glob("*.yaml"):
        algo, _, env = path.stem.partition("_")
        assert algo in {*ALGORITHMS, *experiments}, path
        assert env in envs, path


def test_the_constraints_pin_what_the_project_allows() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().lower().split() if "==" in line)
    required = [re.match(r"[a-z0-9-]+", name)[0] for name in PROJECT["project"]["dependencies"]]  # type: ignore[index]
    assert [name for name in required if name not in pinned] == []
