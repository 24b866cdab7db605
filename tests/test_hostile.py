"""A foreign directory, damaged or manipulated in some hundred ways, under every command that takes one.

Whatever is in it: no code of it runs, nothing outside of it is written, no command hangs, none ends in a traceback, and nothing reaches
the terminal that a terminal would obey. The inputs are drawn: a file of the directory, something that is wrong with it, a command.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from rlx.cli.main import app
from rlx.config.compose import Composer
from rlx.config.override_types import read_overrides
from rlx.files import is_directory, is_file
from rlx.store.runs import RunDir, new_meta

INPUTS, TOGETHER = 200, 20
COMMAND = get_command(app)
"""Built once, which takes longer than most commands."""
ALARM_S = 60
CODES = {0, 2, 3, 4, 5, 6, 7, 8}
"""Those that rlx/errors.py documents, less 1: a bug."""
WORDS = [
    "algo=ppo", "env=CartPole-v1", "recipe=null", "env.num_envs=2", "algo.rollout_length=8", "algo.num_minibatches=1", "algo.num_epochs=1",
    "algo.hidden_sizes=[4]", "loop.total_env_steps=32", "loop.log_every=16", "loop.eval_every=32", "loop.eval_episodes=1",
    "log.wandb=disabled", "log.console=quiet",
]  # fmt: skip
EVIL = "\x1b]0;owned\x07\x1b[31m\u202e[/red]\x9b2J\udcff"
SECRET = "hunter2"

RUN_COMMANDS = [
    "ls", "ls --json", "ls", "show gift", "show gift --json", "show latest", "eval gift --episodes 1", "resume gift",
    "resume gift loop.total_env_steps=48",
    "resume good", "model gift", "watch gift", "play gift --opponent random", "arena gift", "compare gift good", "plot gift --terminal",
    "plot gift good --out plot.svg", "sync gift --offline", "train --name gift --auto-resume " + " ".join(WORDS), "COMPLETE",
]  # fmt: skip
SWEEP_COMMANDS = [
    "ls", "ls --sweep many", "ls --sweep many --json", "ls --sweep latest", "compare many", "plot many --terminal", "sync many --offline",
    "sweep --resume many --dry-run --jobs 1", "sweep --resume many --jobs 1", "show many/000-s0", "compare 'many/*'", "COMPLETE",
]  # fmt: skip
RUN_FILES = [
    "config.yaml", "meta.json", "metrics.jsonl", ".lock", "checkpoints", "checkpoints/000000000032",
    "checkpoints/000000000032/manifest.json",
    "checkpoints/000000000032/algo.pt", "checkpoints/000000000032/run.pt", "progress.json", "log.txt", "videos", "plots", "wandb",
    "meta.json.tmp-1",
]  # fmt: skip
SWEEP_FILES = ["sweep.json", "ledger.jsonl", ".lock", "study.db", "000-s0", "000-s1", *(f"000-s0/{name}" for name in RUN_FILES[:8])]


def _digits(path: Path) -> None:
    path.write_text('{"env_steps": ' + "9" * 400 + "}\n")


def _bomb(path: Path) -> None:
    rows = ["a: &a [x,x,x,x,x,x,x,x,x]", *(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True))]
    path.write_text("\n".join(rows))


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 30)


KINDS: dict[str, Callable[[Path], object]] = {
    "missing": lambda p: None,
    "link to a file": lambda p: p.symlink_to(Path.cwd() / "outside" / "file"),
    "link to a directory": lambda p: p.symlink_to(Path.cwd() / "outside"),
    "link to nothing yet": lambda p: p.symlink_to(Path.cwd() / "outside" / "new"),
    "link to a device": lambda p: p.symlink_to("/dev/zero"),
    "circle": lambda p: p.symlink_to(p),
    "fifo": os.mkfifo,
    "directory": Path.mkdir,
    "empty": Path.touch,
    "sparse": _sparse,
    "bytes": lambda p: p.write_bytes(bytes(range(256))),
    "no utf-8": lambda p: p.write_bytes(b'{"env_steps": "\xff\xfe"}\n'),
    "deep list": lambda p: p.write_text("[" * 100_000),
    "deep mapping": lambda p: p.write_text('{"a":' * 100_000),
    "version": lambda p: p.write_text("1.2.3\n"),
    "digits": _digits,
    "null": lambda p: p.write_text("null\n"),
    "list": lambda p: p.write_text("[]\n"),
    "mapping": lambda p: p.write_text("{}\n"),
    "constants": lambda p: p.write_text('{"env_steps": 1, "eval/return_mean": NaN, "a": Infinity, "b": 1e999}\n'),
    "twice": lambda p: p.write_text('{"env_steps": 1, "env_steps": 2, "event": "x", "event": "y"}\n'),
    "alias bomb": _bomb,
}
VALUES: list[Any] = [
    None, True, -1, 0, 1e300, 1e-300, 2**63, 10**30, "", EVIL, [], {}, [None], {"a": {}}, "${oc.env:SECRET}", "$\\{oc.env:SECRET\\}",
    "\\x24{oc.env:SECRET}",
    "../../outside", "/etc/passwd", "evilmod:X-v0", "env=evilmod:X-v0", ["env=evilmod:X-v0"], {"../../outside": {"overrides": {},
    "values": {}}},
    "sqlite:////nowhere/x.db", "???", "nan", "2026-11-28T00:00:00", "9999-12-31T23:59:59+00:00", "[bold]x[/]", "$\\x_{", [[]] * 50,
]  # fmt: skip


def spoil(directory: Path, files: list[str], rng: random.Random) -> str:
    """Make something wrong with a directory; returns what."""
    name = rng.choice([name for name in files if is_directory((directory / name).parent)])
    path = directory / name
    if path.suffix in (".json", ".jsonl", ".yaml") and is_file(path) and rng.random() < 0.5:
        with contextlib.suppress(ValueError, IndexError):  # it was spoilt before
            return f"{name}: {_change(path, rng)}"
    kind = rng.choice([kind for kind in KINDS if kind != "sparse" or path.suffix != ".pt"])
    if is_directory(path):
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    KINDS[kind](path)
    return f"{name}: {kind}"


def _change(path: Path, rng: random.Random) -> str:
    """Put another value in the place of one; in YAML, of a line's."""
    value = rng.choice(VALUES)
    if path.suffix == ".yaml":
        lines = path.read_text().splitlines()
        at = rng.choice([i for i, line in enumerate(lines) if ": " in line])
        lines[at] = f"{lines[at].partition(': ')[0]}: {json.dumps(value)}"
        path.write_text("\n".join(lines))
        if rng.random() < 0.7:  # not to be refused for the difference alone
            _forget_record(path.parent)
        return lines[at]
    documents = [json.loads(line) for line in path.read_text().splitlines()] if path.suffix == ".jsonl" else [json.loads(path.read_text())]
    places: list[tuple[Any, Any]] = []

    def collect(tree: Any) -> None:
        for key in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
            places.append((tree, key))
            collect(tree[key])

    for document in documents:
        collect(document)
    tree, key = rng.choice(places)
    if isinstance(tree, dict) and rng.random() < 0.15:
        tree[EVIL] = tree.pop(key)
    else:
        tree[key] = value
    text = "\n".join(map(json.dumps, documents)) + "\n"
    path.write_text(text)
    return f"{key!r} = {value!r}"[:200]


def _forget_record(run: Path) -> None:
    meta = run / "meta.json"
    if meta.is_file():
        content = json.loads(meta.read_text())
        meta.write_text(json.dumps({k: v for k, v in content.items() if k not in ("config", "signature")}))
    for manifest in run.glob("checkpoints/*/manifest.json"):
        content = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({k: v for k, v in content.items() if k not in ("config", "sha256")}))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/ with a run, another one, and a sweep of two runs."""
    from rlx.run import train
    from rlx.store.sweep_spec import Point, Spec
    from rlx.store.sweeps import SweepDir

    root = tmp_path_factory.mktemp("made") / "runs"
    composed = Composer().compose(WORDS)
    for name in ("gift", "good"):
        train(RunDir.create(root, name, composed.config, new_meta(composed)), composed.config, overrides=[])
    overrides = read_overrides(WORDS)
    spec = Spec(overrides=overrides, seeds=[0, 1], swept=[], objective="eval/return_mean")
    sweep = SweepDir.create(root, "many", spec, {"000": Point(overrides=tuple(overrides), values={"clip": 0.2})})
    sweep.log("drive", executor="here")
    for seed in (0, 1):
        run = sweep.create_run("000", seed, composed, {"clip": 0.2})
        for name in ("metrics.jsonl", "checkpoints"):
            source = root / "gift" / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, run.path / name)
        sweep.log("start", run=run.name, attempt=1)
        sweep.log("end", run=run.name, status="finished", attempt=1)
    return root


@pytest.fixture
def ground(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with things that must not change, a module that must not be imported, and no W&B, workers or graphics."""
    from rlx.sweep.executors.executor import Job, Result
    from rlx.sweep.executors.worker import work

    class Here:
        """Works on a job in this process."""

        slots, description = 1, "here"

        def __init__(self, *_: object, **__: object) -> None:
            self._ended: list[tuple[Job, Result]] = []

        def start(self, job: Job) -> None:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # the run's log
                self._ended.append((job, work(job)))

        def wait(self, timeout_s: float) -> list[tuple[Job, Result]]:
            ended, self._ended = self._ended, []
            return ended

        def waiting(self, job: Job) -> bool:
            return False

        def stop(self, job: Job) -> None: ...

        kill = stop

        def close(self) -> None: ...

    def overdue(*_: object) -> None:
        raise AssertionError("the command hangs")

    (here / "outside").mkdir()
    (here / "outside" / "file").write_text('{"precious": 1}\n')
    (here / "evilmod.py").write_text("import pathlib\npathlib.Path('executed').touch()\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(here)])
    monkeypatch.setenv("SECRET", SECRET)
    monkeypatch.setattr("rlx.cli.main.app", COMMAND)
    monkeypatch.setattr("rlx.sweep.launch.make_executor", Here)
    monkeypatch.setattr("rlx.sweep.executors.local.warm_up", lambda: None)
    monkeypatch.setattr("rlx.uploads.upload", lambda lines, **_: f"{len(list(lines))} uploaded")
    before = signal.signal(signal.SIGALRM, overdue)
    yield here
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def contents(directory: Path) -> dict[str, Any]:
    return {str(p): (p.lstat().st_mode, p.lstat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in directory.rglob("*")}


def complete(_: str) -> tuple[int, str, str]:
    """What the shell would offer for a run's or a sweep's name."""
    from types import SimpleNamespace

    from rlx.cli.complete import complete_runs_and_sweeps

    context: Any = SimpleNamespace(params={}, info_name="compare")
    return 0, "\n".join(f"{name} {doc}" for name, doc in complete_runs_and_sweeps(context, "")), ""


def is_harmless(text: str) -> bool:
    return not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text if c not in "\n\t")


@pytest.mark.parametrize("part", range(INPUTS // TOGETHER))
def test_directory_from_a_stranger_does_nothing_but_be_read(
    part: int, made: Path, ground: Path, run_command: Callable[[str], tuple[int, str, str]]
) -> None:
    for number in range(part * TOGETHER, (part + 1) * TOGETHER):
        rng = random.Random(number)
        shutil.rmtree("runs", ignore_errors=True)
        shutil.copytree(made, "runs")
        name, files, commands = ("gift", RUN_FILES, RUN_COMMANDS) if number % 3 else ("many", SWEEP_FILES, SWEEP_COMMANDS)
        wrong = [spoil(Path.cwd() / "runs" / name, files, rng) for _ in range(1 if rng.random() < 0.8 else 3)]
        if rng.random() < 0.1:
            named = EVIL.replace("/", "") + "\n"
            shutil.copytree(os.fsencode(made / name), b"runs/" + named.encode("utf-8", "surrogateescape"))
        command = rng.choice(commands)
        said = f"input {number}: {wrong}, rlx {command}"
        before = contents(ground / "outside")
        signal.alarm(ALARM_S)
        try:
            code, out, err = (complete if command == "COMPLETE" else run_command)(command)
        except BaseException as error:
            raise AssertionError(f"{said}: {type(error).__name__}: {error}") from error
        signal.alarm(0)
        printed = out + err
        assert code in CODES, f"{said}: exit code {code}\n{printed}"
        assert "Traceback" not in printed, said
        assert is_harmless(printed), f"{said}: {printed!r}"
        assert SECRET not in printed, said
        assert contents(ground / "outside") == before, said
        assert not Path("executed").exists(), said
        assert not any(re.search(SECRET, p.read_text(errors="replace")) for p in Path("runs").rglob("*.yaml") if _is_plain(p)), said
        if command == "ls":
            assert re.search(r"^good ", out, re.MULTILINE), f"{said}\n{out}"


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 20
