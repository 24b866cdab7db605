"""The W&B mirror and rlx sync, offline, against a server that is not there, and against a small one that is."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rlx.config.algo_registry import ALGORITHMS
from rlx.config.compose import Composer
from rlx.config.schema import EnvConfig, RunConfig
from rlx.errors import ConfigError, RlxError, SyncError
from rlx.store.record import Record
from rlx.store.runs import RunDir
from rlx.store.wandb_settings import wandb_fields, wandb_group
from rlx.track import wandb as mirror_module
from rlx.track.logger import Mirror, NullMirror
from rlx.track.wandb import WandbMirror, make_mirror
from rlx.uploads import upload_videos

KEY = "0123456789abcdef0123456789abcdef01234567"
LINES: list[dict[str, Any]] = [
    {"env_steps": 100, "iteration": 1, "loss/policy": 0.5},
    {"env_steps": 200, "iteration": 2, "loss/policy": 0.25},
    {"env_steps": 200, "iteration": 2, "eval/return_mean": 7.0},  # an evaluation follows its log line at the same step
    {"env_steps": 300, "iteration": 3, "loss/policy": 0.125},
]
ROWS = {100: {"loss/policy": 0.5}, 200: {"loss/policy": 0.25, "eval/return_mean": 7.0}, 300: {"loss/policy": 0.125}}


@pytest.fixture(autouse=True)
def _no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / ".netrc"))
    yield
    mirror_module.tear_down()


@pytest.fixture
def dead_server(monkeypatch: pytest.MonkeyPatch) -> str:
    """A login, and a server that refuses connections."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    return "http://127.0.0.1:9"


class _Server(BaseHTTPRequestHandler):
    """As much of W&B as wandb needs to upload a run."""

    received: dict[str, Any]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/file_stream"):
            for row in body.get("files", {}).get("wandb-history.jsonl", {}).get("content", []):
                self.received["rows"].append(json.loads(row))
            self.received["exit_code"] = body.get("exitcode", self.received.get("exit_code"))
            self._answer({})
            return
        variables, data = body.get("variables", {}), {}
        if body.get("operationName") == "UpsertBucket":
            self.received["runs"].append(variables)
            bucket = {"id": "x", "name": variables["name"], "historyLineCount": 0, "config": "{}",
                      "project": {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "me"}}}  # fmt: skip
            data = {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if body.get("operationName") == "RunResumeStatus" and self.received["resumable"]:
            lines = {
                "historyLineCount": 4,
                "eventsLineCount": 0,
                "logLineCount": 0,
                "historyTail": json.dumps([json.dumps({"_step": 300})]),
            }
            bucket = {
                "id": "x",
                "name": variables["name"],
                "summaryMetrics": "{}",
                "config": "{}",
                "eventsTail": "[]",
                "wandbConfig": '{"t": 1}',
                **lines,
            }
            data = {"model": {"id": "p", "name": "rlx", "entity": {"id": "e", "name": "me"}, "bucket": bucket}}
        if body.get("operationName") == "CreateRunFiles":
            files = [{"name": f, "uploadUrl": f"http://{self.headers['Host']}/{f}"} for f in variables["files"]]
            data = {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}
        self._answer({"data": data})

    def do_PUT(self) -> None:
        self.received["files"].append(self.path)
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer({})

    def _answer(self, body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None:
        pass


class _HttpServer(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # wandb does not wait for the answers to its last requests
            super().handle_error(*_)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A login, and a server; yields what the server received."""
    received: dict[str, Any] = {"rows": [], "runs": [], "files": [], "resumable": False}
    http = _HttpServer(("127.0.0.1", 0), type("Server", (_Server,), {"received": received}))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{http.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield received
    mirror_module.tear_down()
    http.shutdown()
    http.server_close()
    thread.join()


def mirror(tmp_path: Path, notes: list[str], mode: str = "auto", *, segment: int = 0) -> Mirror:
    config = {"seed": 3, "env": {"id": "CartPole-v1"}}
    return make_mirror(
        mode, run_dir=tmp_path, run_id="abcd1234", name="pole", project="proj", config=config, tags=["ppo", "x" * 99], segment=segment,
        note=notes.append,
    )  # fmt: skip


def write(mirror: Mirror, lines: list[dict[str, Any]] = LINES) -> None:
    for line in lines:
        mirror.write(line)


def leveldb_records(raw: bytes) -> Iterator[bytes]:
    """The records of a .wandb file, a LevelDB log with a header of its own: 32 KiB blocks of (crc, length, kind) and data."""
    assert raw.startswith(b":W&B")
    at, record = 7, b""
    while at + 7 <= len(raw):
        if (left := 32768 - at % 32768) < 7:  # the rest of a block that is too short for a head
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", raw, at)
        record += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or last part
            yield record
            record = b""


def read_offline(directory: Path) -> tuple[dict[int, dict[str, Any]], Any, int | None]:
    """The rows of a .wandb file, its run record and its exit code."""
    from wandb.proto import wandb_internal_pb2

    (path,) = directory.glob("*.wandb")
    rows: dict[int, dict[str, Any]] = {}
    run, exit_code = None, None
    for data in leveldb_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            step = record.history.step.num
            assert step not in rows
            rows[step] = row
        if record.HasField("run"):
            run = record.run
        if record.HasField("exit"):
            exit_code = record.exit.exit_code
    return rows, run, exit_code


def read_summary(directory: Path) -> dict[str, float]:
    """What was put into the summary of a .wandb file, beside the last value of every metric."""
    from wandb.proto import wandb_internal_pb2

    (path,) = directory.glob("*.wandb")
    found: dict[str, float] = {}
    for data in leveldb_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for item in record.summary.update:
            key = item.key or ".".join(item.nested_key)
            if key.startswith("best/"):
                found[key] = json.loads(item.value_json)
    return found


def metrics_only(rows: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {step: {k: v for k, v in row.items() if "/" in k} for step, row in rows.items()}


def offline_directory(tmp_path: Path, run_id: str = "abcd1234") -> Path:
    (directory,) = tmp_path.glob(f"wandb/offline-run-*-{run_id}")
    return directory


def test_disabled_does_not_import_wandb(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from rlx.track.wandb import make_mirror
m = make_mirror("disabled", run_dir=Path("."), run_id="a", name="a", project="p", config={}, tags=[], segment=0, note=print)
m.write({"env_steps": 1}); m.close(exit_code=0)
assert "wandb" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "value"), [("WANDB_MODE", "disabled"), ("WANDB_DISABLED", "true")])
def test_auto_follows_wandb_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert isinstance(mirror(tmp_path, []), NullMirror)


def test_missing_wandb_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    notes: list[str] = []
    assert isinstance(mirror(tmp_path, notes), NullMirror)
    assert len(notes) == 1
    assert notes[0].startswith("W&B: off (")


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_without_login_every_line_is_in_an_offline_run(tmp_path: Path, mode: str, capfd: pytest.CaptureFixture[str]) -> None:
    handlers = {s: signal.getsignal(s) for s in signal.valid_signals()}
    hooks = sys.exit, sys.excepthook
    notes: list[str] = []
    it = mirror(tmp_path, notes, mode)
    assert {s: signal.getsignal(s) for s in signal.valid_signals()} == handlers
    assert (sys.exit, sys.excepthook) == hooks
    write(it)
    it.close(exit_code=3)
    rows, run, exit_code = read_offline(offline_directory(tmp_path))
    assert metrics_only(rows) == ROWS
    assert [rows[s]["iteration"] for s in rows] == [1, 2, 3]
    assert (run.run_id, run.display_name, run.project, run.run_group, exit_code) == ("abcd1234", "pole", "proj", "", 3)
    assert list(run.tags) == ["ppo", "x" * 64]
    assert {u.key: json.loads(u.value_json) for u in run.config.update}["env"] == {"id": "CartPole-v1"}
    assert notes == ["W&B: offline (no login); `wandb login` and then `rlx sync pole` uploads it"]
    assert capfd.readouterr() == ("", "")
    assert not [t for t in threading.enumerate() if "wandb" in t.name]


@pytest.mark.parametrize(("project", "expected"), [(None, "mine"), ("said", "said")])
def test_what_the_environment_says_beats_defaults_and_not_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: str | None, expected: str
) -> None:
    for name, value in {"PROJECT": "mine", "ENTITY": "me", "TAGS": "a, b", "NOTES": "why", "RUN_GROUP": "g", "JOB_TYPE": "j"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    it = mirror_module.make_mirror("offline", run_dir=tmp_path, run_id="abcd1234", name="pole", project=project, config={}, tags=["ppo"],
                                   segment=0, note=print, group="ours")  # fmt: skip
    write(it)
    it.close(exit_code=0)
    run = read_offline(offline_directory(tmp_path))[1]
    assert (run.project, run.entity, list(run.tags), run.notes, run.run_group) == (expected, "me", ["ppo", "a", "b"], "why", "g")
    assert run.job_type == "j"


def test_entity_name_and_directory_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_NAME", "mine")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    config = Composer().compose(["log.wandb_entity=team"]).config
    fields = wandb_fields(config, {}, "pole")
    assert wandb_fields(config, {"sweep": "lr"}, "000-s0")["title"] == "lr/000-s0"
    (tmp_path / "run").mkdir()
    it = make_mirror(
        "offline", run_dir=tmp_path / "run", run_id="abcd1234", segment=0, note=print, best={"eval/return_mean": 9.0}, **fields
    )
    write(it, [*LINES, {"env_steps": 400, "iteration": 4, "episode/return_mean_100": 5.0}])
    it.close(exit_code=0)
    assert not list((tmp_path / "run").iterdir())
    _, run, _ = read_offline(offline_directory(tmp_path / "elsewhere"))
    assert (run.entity, run.display_name, run.job_type) == ("team", "mine", "train")
    summary = read_summary(offline_directory(tmp_path / "elsewhere"))
    assert summary == {"best/eval/return_mean": 9.0, "best/episode/return_mean_100": 5.0}


def test_seeds_of_one_setting_share_a_group_and_settings_do_not() -> None:
    config = Composer().compose(["seed=3"]).config
    other, wider = (Composer().compose(words).config for words in (["seed=4"], ["seed=3", "env.num_envs=16"]))
    assert wandb_group(config, {"sweep": "lr", "point": "002"}, "002-s3") == "lr/002"
    assert wandb_group(config, {}, "lander-s3") == "lander"
    assert wandb_group(config, {}, "x") == wandb_group(other, {}, "y") != wandb_group(wider, {}, "x")


def test_resumed_offline_segment_has_its_own_id_in_the_group_of_the_run(tmp_path: Path) -> None:
    it = mirror(tmp_path, notes := [], "offline", segment=2)
    write(it)
    it.close(exit_code=0)
    rows, run, _ = read_offline(offline_directory(tmp_path, "abcd1234-r2"))
    assert (run.run_id, run.run_group) == ("abcd1234-r2", "abcd1234")
    assert metrics_only(rows) == ROWS
    assert notes == []


def test_ctrl_c_of_the_group_and_a_terminal_leave_a_complete_file_and_no_prompt(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys, time
from pathlib import Path
from rlx.track.wandb import make_mirror
signal.signal(signal.SIGINT, lambda *_: None)
m = make_mirror("auto", run_dir=Path({str(tmp_path)!r}), run_id="abcd1234", name="pole", project="p", config={{}}, tags=[], segment=0,
                note=lambda text: print("NOTE", text))
lines = {LINES!r}
m.write(lines[0])
os.killpg(0, signal.SIGINT)
for line in lines[1:]: m.write(line)
m.close(exit_code=0)
"""
    pid, master = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", code])
    output = b""
    while True:
        try:
            chunk = os.read(master, 4096)
        except OSError:
            break
        if not chunk:
            break
        output += chunk
    _, status = os.waitpid(pid, 0)
    os.close(master)
    assert os.waitstatus_to_exitcode(status) == 0, output
    shown = output.decode().splitlines()
    assert shown == ["NOTE W&B: offline (no login); `wandb login` and then `rlx sync pole` uploads it"]
    assert metrics_only(read_offline(offline_directory(tmp_path))[0]) == ROWS


def test_killed_trainer_leaves_a_readable_file(tmp_path: Path) -> None:
    code = f"""
import os, time
from pathlib import Path
from rlx.track import wandb
wandb._FLUSH_S = 0.2
m = wandb.make_mirror("offline", run_dir=Path({str(tmp_path)!r}), run_id="abcd1234", name="n", project="p", config={{}}, tags=[], segment=0,
                      note=print)
for line in {LINES!r}: m.write(line)
time.sleep(1)
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == -9
    rows = metrics_only(read_offline(offline_directory(tmp_path))[0])
    assert {100: rows[100], 200: rows[200]} == {100: ROWS[100], 200: ROWS[200]}


def test_dead_network_falls_back_to_offline_while_the_trainer_goes_on(
    tmp_path: Path, dead_server: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mirror_module, "_INIT_TIMEOUT_S", 1.0)
    notes: list[str] = []
    begin, written = mirror_module.begin, threading.Event()
    monkeypatch.setattr(mirror_module, "begin", lambda *args, **kwargs: (written.wait(30), begin(*args, **kwargs))[1])
    it = mirror(tmp_path, notes)
    write(it)
    assert isinstance(it, WandbMirror)
    assert not it._begun.is_set()
    written.set()
    assert it._begun.wait(30)
    it.close(exit_code=0)
    assert metrics_only(read_offline(offline_directory(tmp_path))[0]) == ROWS
    assert len(notes) == 1
    assert notes[0].startswith("W&B: offline (")
    assert notes[0].endswith("; `rlx sync pole` uploads the run")
    assert capfd.readouterr() == ("", "")


def test_a_server_that_never_answers_does_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "_LAST_CHANCE_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        code = f"""
from pathlib import Path
from rlx.track import wandb
wandb._LAST_CHANCE_S, wandb._INIT_TIMEOUT_S = 0.5, 3600.0
m = wandb.make_mirror("auto", run_dir=Path({str(tmp_path)!r}), run_id="a", name="pole", project="p", config={{}}, tags=[], segment=0,
                      note=print)
m.write({{"env_steps": 1}})
m.close(exit_code=0)
"""
        environment = os.environ | {"WANDB_BASE_URL": f"http://127.0.0.1:{silent.getsockname()[1]}", "WANDB_API_KEY": KEY}
        command = [sys.executable, "-W", "error", "-c", code]  # if anything waited for W&B, its exit hook too, it would be an hour
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "W&B: no answer; nothing is lost, `rlx sync pole` uploads the run\n"
    assert done.stderr == ""


def test_a_wandb_that_raises_ends_the_copying_with_one_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def log(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of cheese\ntrace")

    monkeypatch.setattr(wandb.Run, "log", log)
    notes: list[str] = []
    it = mirror(tmp_path, notes, "offline")
    write(it)
    it.close(exit_code=0)
    it.write(LINES[0])
    assert notes == ["W&B: stopped (out of cheese); nothing is lost, `rlx sync pole` uploads the run"]


def test_a_killed_wandb_core_ends_the_copying_with_one_note(tmp_path: Path) -> None:
    notes: list[str] = []
    it = mirror(tmp_path, notes, "offline")
    it.write(LINES[0])
    service = mirror_module.service()
    assert service is not None
    service.kill()
    time.sleep(0.2)
    write(it, LINES[1:])
    it.close(exit_code=0)
    assert len(notes) == 1
    assert notes[0].startswith("W&B: stopped (")


def test_an_unusable_directory_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def init(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(wandb, "init", init)
    notes: list[str] = []
    assert isinstance(mirror(tmp_path, notes, "offline"), NullMirror)
    assert notes == ["W&B: off (no space left); training goes on without it"]


def test_online_run_is_uploaded_and_named_by_its_address(tmp_path: Path, server: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    notes: list[str] = []
    it = mirror(tmp_path, notes, segment=1)
    write(it)
    it.close(exit_code=0)
    assert metrics_only({row["_step"]: row for row in server["rows"]}) == ROWS
    assert {run["name"] for run in server["runs"]} == {"abcd1234"}  # a resumed run keeps its id
    assert server["runs"][0]["tags"] == ["ppo", "x" * 64]
    assert server["exit_code"] == 0
    assert notes == [f"W&B: {os.environ['WANDB_BASE_URL']}/me/proj/runs/abcd1234"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("where", ["WANDB_API_KEY", "netrc", "settings"])
def test_login_is_found_where_wandb_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    (tmp_path / "home").mkdir()
    assert mirror_module.why_no_login() == "no login"
    mirror_module.tear_down()
    if where == "WANDB_API_KEY":
        monkeypatch.setenv(where, KEY)
    elif where == "netrc":
        (tmp_path / "home" / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    elif where == "settings":
        monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
        (tmp_path / "settings").write_text(f"[default]\napi_key = {KEY}\n")
    assert mirror_module.why_no_login() == ""


def test_a_key_that_cannot_be_one_is_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    notes: list[str] = []
    it = mirror(tmp_path, notes)
    write(it)
    it.close(exit_code=0)
    assert metrics_only(read_offline(offline_directory(tmp_path))[0]) == ROWS
    assert len(notes) == 1
    assert notes[0].startswith("W&B: offline (no usable login, WANDB_API_KEY invalid")


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run with a record, whose env would need trust to be made."""
    monkeypatch.setenv("RLX_RUNS_DIR", str(tmp_path / "runs"))
    config = RunConfig(algo=ALGORITHMS["ppo"].config(), env=EnvConfig(id="no_such_module:Env-v0"))
    run = RunDir.create(tmp_path / "runs", "pole", config, {"wandb_id": "abcd1234"})
    record = Record(run.metrics_path)
    for line in LINES:
        record.write(line)
    record.close()
    return run


def sync(*arguments: Any, **options: Any) -> None:
    from rlx.cli.sync import sync as command

    command(*arguments, **options)


def test_sync_without_login_says_so(recorded: RunDir) -> None:
    with pytest.raises(ConfigError, match="W&B has no login: run `wandb login` first") as caught:
        sync("pole")
    assert caught.value.exit_code == 2


def test_sync_without_a_run_or_a_record_says_so(recorded: RunDir) -> None:
    with pytest.raises(ConfigError, match="did you mean pole"):
        sync("polo")
    recorded.metrics_path.unlink()
    with pytest.raises(ConfigError, match="no metrics yet"):
        sync("pole")


def test_sync_with_a_dead_network_says_so_and_leaves_the_run_alone(
    recorded: RunDir, dead_server: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mirror_module, "_INIT_TIMEOUT_S", 1.0)
    before = sorted(recorded.path.rglob("*"))
    with pytest.raises(SyncError, match=r"connection refused.*try again") as caught:
        sync("pole")
    assert isinstance(caught.value, RlxError)
    assert sorted(recorded.path.rglob("*")) == before
    assert capfd.readouterr() == ("", "")


def test_sync_makes_one_clean_run_of_the_record(recorded: RunDir, server: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    before = sorted(recorded.path.rglob("*"))
    sync("pole", project="other")
    assert metrics_only({row["_step"]: row for row in server["rows"]}) == ROWS
    run = server["runs"][0]
    assert run["name"].startswith("abcd1234-")
    assert (run["project"], run["displayName"], run["groupName"]) == (
        "other",
        "pole",
        wandb_group(recorded.config(trust=True), recorded.meta(), "pole"),
    )
    assert json.loads(run["config"])["log"]["value"]["wandb"] == "auto"
    assert run["tags"] == ["ppo", "no_such_module:Env-v0"]
    assert sorted(recorded.path.rglob("*")) == before
    out, err = capfd.readouterr()
    assert out == f"pole: 4 lines: {os.environ['WANDB_BASE_URL']}/me/other/runs/{run['name']}\n"
    assert err == ""


def test_sync_offline_writes_a_directory_for_wandb_sync(recorded: RunDir, capfd: pytest.CaptureFixture[str]) -> None:
    sync("pole", offline=True)
    directory = Path(capfd.readouterr().out.split("`")[1].removeprefix("wandb sync "))
    assert directory.parent == recorded.path / "wandb"
    rows, run, exit_code = read_offline(directory)
    assert metrics_only(rows) == ROWS
    assert (run.project, run.run_group, exit_code) == ("rlx", wandb_group(recorded.config(trust=True), recorded.meta(), "pole"), 0)


@pytest.fixture
def film(recorded: RunDir) -> Path:
    path = recorded.path / "videos" / "300-0.mp4"
    path.parent.mkdir()
    path.write_bytes(b"not really a film")
    return path


def test_videos_are_added_to_the_run_that_a_run_was_mirrored_to(recorded: RunDir, film: Path, server: dict[str, Any]) -> None:
    with pytest.raises(SyncError, match="`rlx sync pole` uploads the run with its videos"):
        upload_videos(recorded, [film])
    server["resumable"] = True
    upload_videos(recorded, [film])
    assert server["runs"][-1]["name"] == "abcd1234"
    (row,) = [row for row in server["rows"] if "videos/300-0" in row]
    assert row["_step"] > 300
    assert any("/media/videos/" in path for path in server["files"])


def test_without_a_login_videos_stay_where_they_are(recorded: RunDir, film: Path) -> None:
    upload_videos(recorded, [film])
    assert not (recorded.path / "wandb").exists()


def test_sync_takes_videos_along(recorded: RunDir, film: Path, server: dict[str, Any]) -> None:
    sync("pole")
    assert any("videos/300-0" in row for row in server["rows"])
    assert any("/media/videos/" in path for path in server["files"])
