"""A copy of the record in Weights & Biases: live while a run trains, or rebuilt afterwards by `rlx sync`.

metrics.jsonl is complete without W&B, so nothing here may stop or slow training: any error of W&B ends the copying with one note,
and only a thread of this module waits for it. Lines are logged with step=env_steps; W&B joins lines of the same step (a log line
and the evaluation after it) into one row.

W&B keeps the first value of a step. A run resumed from an earlier checkpoint keeps its W&B id while online, and W&B ignores its
lines up to the last step that it has. An offline W&B run cannot be continued, so every segment is a W&B run of its own in the
group of the first. `rlx sync` makes one clean W&B run of either.

This module and wandb_upload are the only ones that import wandb, and only inside functions.
"""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from rlx.errors import ConfigError
from rlx.files import make_directory
from rlx.track.logger import Mirror, NullMirror

if TYPE_CHECKING:
    import wandb

_INIT_TIMEOUT_S = 15.0
_FINISH_TIMEOUT_S = 8.0
_CLOSE_TIMEOUT_S = 10.0  # above _FINISH_TIMEOUT_S, after which W&B gives up by itself
_LAST_CHANCE_S = 3.0
"""Time that the end of a short run waits for W&B to begin."""
_FLUSH_S = 2.0  # the part of the copy that a killed trainer loses; W&B's default is 15
_LOGIN_VARIABLES = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
BEST_OF = ("eval/return_mean", "episode/return_mean_100")
"""Metrics whose highest value is also in W&B's summary, as best/KEY."""
_MAX_TAG = 64  # W&B refuses longer ones


@dataclass(frozen=True, kw_only=True)
class Description:
    """How a run is described in W&B."""

    directory: Path
    id: str
    name: str
    project: str | None
    config: dict[str, Any]
    tags: list[str]
    notes: str | None = None
    group: str | None = None
    entity: str | None = None
    title: str | None = None
    """Its name in W&B; None is the run's name."""
    best: Mapping[str, float] = field(default_factory=dict)
    """The highest values of `BEST_OF` before."""


def make_mirror(
    mode: str,
    *,
    run_dir: Path,
    run_id: str,
    name: str,
    project: str | None,
    config: dict[str, Any],
    tags: list[str],
    segment: int,
    note: Callable[[str], None],
    group: str | None = None,
    notes: str | None = None,
    entity: str | None = None,
    title: str | None = None,
    best: Mapping[str, float] = MappingProxyType({}),
) -> Mirror:
    """The mirror for log.wandb. It never prompts, and it catches W&B's errors.

    Args:
        mode: auto, online, offline or disabled. auto follows $WANDB_MODE if it is set, else it is online where a login exists.
            Without a login, online is offline too.
        run_dir: where W&B keeps its files, in wandb/; $WANDB_DIR overrides it.
        run_id: the run's W&B id, the same in all of its segments.
        name: the run's name.
        project: W&B project; None is $WANDB_PROJECT, or else rlx.
        config: the run's settings as plain data; enums are written by name.
        tags: labels to filter by.
        segment: 0 for a new run, k for the k-th resumption.
        note: prints one line; called only within this function, `write` and `close`.
        group: the W&B group of the run, e.g. for the seeds of one setting; $WANDB_RUN_GROUP overrides it.
        notes: text about the run.
        entity: W&B user or team; None is $WANDB_ENTITY, or else the login's default.
        title: the run's name in W&B; None is `name`.
        best: the highest values of `BEST_OF` in earlier segments.
    """
    mode = _mode_of_environment() if mode == "auto" else mode
    if mode == "disabled":
        return NullMirror()
    try:
        why_not = "" if mode == "offline" else why_no_login()
        if why_not:
            note(f"W&B: offline ({why_not}); `wandb login` and then `rlx sync {name}` uploads it")
        described = Description(directory=files_directory(run_dir), id=run_id, name=name, project=project, config=config, tags=tags,
                                group=group, notes=notes, entity=entity, title=title, best=best)  # fmt: skip
        return WandbMirror(described, segment=segment, offline=mode == "offline" or bool(why_not), note=note)
    except Exception as error:
        tear_down()
        note(f"W&B: off ({reason(error)}); training goes on without it")
        return NullMirror()


def files_directory(run_dir: Path) -> Path:
    """The directory of W&B's wandb/ for a run: $WANDB_DIR, or the run's directory.

    Raises:
        OSError: if it cannot be made, or a link is in the place of a run's wandb/.
    """
    if elsewhere := os.environ.get("WANDB_DIR"):
        directory = Path(elsewhere)
        directory.mkdir(parents=True, exist_ok=True)
        return directory
    make_directory(run_dir / "wandb")  # do not follow a link out of the run's directory
    return run_dir


class BestSoFar:
    """The highest values of `BEST_OF` as entries of W&B's summary, whose other entries are the last value of every key."""

    def __init__(self, best: Mapping[str, float]) -> None:
        self._best = dict(best)

    def entries(self) -> dict[str, float]:
        return {f"best/{key}": value for key, value in self._best.items()}

    def update(self, line: Mapping[str, Any]) -> bool:
        """Whether a line has a new best value."""
        better = {key: line[key] for key in BEST_OF if key in line and line[key] > self._best.get(key, float("-inf"))}
        self._best |= better
        return bool(better)


class WandbMirror:
    """Copies lines to W&B in its own thread; `write` takes microseconds of the training thread.

    The constructor begins an offline run, before training starts. The thread begins an online run, while lines queue up; if that
    fails, the run is offline.

    Raises:
        Exception: any error of W&B when an offline run cannot be begun.
    """

    def __init__(self, described: Description, *, segment: int, offline: bool, note: Callable[[str], None]) -> None:
        self._described, self._segment, self._note = described, segment, note
        self._todo: queue.SimpleQueue[Mapping[str, Any] | int] = queue.SimpleQueue()  # an int ends it, as exit code
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._begun = threading.Event()
        self._ended = self._abandoned = False
        run = self._begin_offline() if offline else None
        self._thread = threading.Thread(target=self._copy, args=(run,), name="rlx-wandb", daemon=True)
        self._thread.start()

    def rewind(self, env_steps: int) -> None:
        """Nothing to do: W&B keeps the first value of a step and ignores later ones."""

    def write(self, line: Mapping[str, Any]) -> None:
        if not self._ended:
            self._todo.put(line)
        self._tell()

    def close(self, *, exit_code: int) -> None:
        """Finish the W&B run, within about 10 seconds, or 3 if W&B never answered."""
        self._todo.put(exit_code)
        if self._begun.wait(_LAST_CHANCE_S):
            self._thread.join(_CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            self._abandoned = True
            kill(service())
            self._thread.join(1.0)
            self._news.put(f"W&B: no answer; nothing is lost, `rlx sync {self._described.name}` uploads the run")
        self._tell()

    def _tell(self) -> None:
        while not self._news.empty():
            self._note(self._news.get())

    def _copy(self, run: wandb.Run | None) -> None:
        """The thread's function: begin the W&B run if needed, log lines until the exit code comes, and finish."""
        try:
            run = run or self._begin_online()
            self._begun.set()
            best = BestSoFar(self._described.best)
            while not isinstance(item := self._todo.get(), int):
                run.log(dict(item), step=item["env_steps"])
                if best.update(item):
                    run.summary.update(best.entries())
            run.finish(exit_code=item)
        except Exception as error:
            if not self._abandoned:
                self._news.put(f"W&B: stopped ({reason(error)}); nothing is lost, `rlx sync {self._described.name}` uploads the run")
        finally:
            self._ended = True
            self._begun.set()
            tear_down()

    def _begin_online(self) -> wandb.Run:
        try:
            run = begin(self._described, mode="online", resume="allow")
        except Exception as error:
            if self._abandoned:
                raise
            tear_down()  # or W&B says that the id is in use
            self._news.put(f"W&B: offline ({reason(error)}); `rlx sync {self._described.name}` uploads the run")
            return self._begin_offline()
        self._news.put(f"W&B: {run.url}")
        return run

    def _begin_offline(self) -> wandb.Run:
        first = self._described
        again = replace(first, id=f"{first.id}-r{self._segment}", group=first.group or first.id)
        return begin(first if self._segment == 0 else again, mode="offline")


def mirrors(mode: str) -> bool:
    """Whether a run of a sweep is mirrored under log.wandb=`mode`: under auto, only where there is a login."""
    if mode != "auto" or (mode := _mode_of_environment()) != "auto":
        return mode != "disabled"
    if not any(os.environ.get(name) for name in _LOGIN_VARIABLES) and not any(map(os.path.exists, _login_files())):
        return False  # determined without importing W&B, which takes two seconds
    try:
        return not why_no_login()
    except Exception:  # the runs would be offline too
        return False
    finally:
        tear_down()


def why_offline(mode: str) -> str:
    """Why runs under log.wandb=`mode` are offline although they should be online; "" otherwise."""
    if mode != "online" and (mode != "auto" or _mode_of_environment() != "online"):
        return ""
    try:
        return why_no_login()
    except Exception as error:
        return reason(error)
    finally:
        tear_down()


def is_online(mode: str) -> bool:
    """Whether log.wandb=`mode` and the environment select W&B's server and there is a login; uses no network and no prompt."""
    mode = _mode_of_environment() if mode == "auto" else mode
    return mode in ("auto", "online") and mirrors("auto") and not why_offline("online")


def _login_files() -> list[str]:
    """The files in which W&B keeps logins and server addresses."""
    home = Path.home()
    settings = Path(os.environ.get("WANDB_CONFIG_DIR") or home / ".config" / "wandb") / "settings"
    return [os.environ.get("NETRC") or str(home / ".netrc"), str(home / "_netrc"), str(settings), "wandb/settings"]


def begin(
    described: Description, *, mode: Literal["online", "offline"], resume: Literal["allow", "must"] | None = None, **settings: Any
) -> wandb.Run:
    """A new W&B run, begun without a prompt, without output, and without saving the user's code.

    Raises:
        Exception: any error of W&B, in the online case within _INIT_TIMEOUT_S.
    """
    _set_up(mode)
    import wandb

    wanted = {
        "silent": True,
        "console": "off",
        "disable_git": True,
        "disable_code": True,
        "label_disable": True,
        "x_save_requirements": False,
        "init_timeout": _INIT_TIMEOUT_S,
        "finish_timeout": _FINISH_TIMEOUT_S,
        "finish_timeout_raises": True,
        "x_transaction_log_flush_interval": _FLUSH_S,
        **settings,
    }
    known = {key: value for key, value in wanted.items() if key in wandb.Settings.model_fields}  # they come and go with versions
    return wandb.init(
        mode=mode,
        id=described.id,
        group=os.environ.get("WANDB_RUN_GROUP") or described.group,
        name=described.title or described.name,
        job_type=os.environ.get("WANDB_JOB_TYPE") or "train",
        entity=described.entity or os.environ.get("WANDB_ENTITY") or None,
        project=described.project or os.environ.get("WANDB_PROJECT") or "rlx",
        dir=str(described.directory.resolve()),
        config=_plain(described.config),
        notes=described.notes,
        tags=[tag[:_MAX_TAG] for tag in dict.fromkeys([*described.tags, *_tags_of_environment()]) if tag],
        resume=resume,
        reinit="create_new",
        settings=wandb.Settings(**known),
    )


def _set_up(mode: Literal["online", "offline"]) -> None:
    """Start W&B's process silently if it does not run. The mode is `mode`, not $WANDB_MODE."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    hooks = sys.exit, sys.excepthook
    try:
        wandb.setup(settings=wandb.Settings(silent=True, mode=mode))
    finally:
        sys.exit, sys.excepthook = hooks  # W&B replaces both to learn the exit code, and would print every traceback twice


def tear_down() -> None:
    """End W&B's process, so that nothing waits for it when the interpreter exits."""
    wandb = sys.modules.get("wandb")
    if wandb is None:
        return
    process = service()
    try:
        wandb.teardown()
    except Exception:  # it has crashed or hangs
        kill(process)


def service() -> subprocess.Popen[bytes] | None:
    """W&B's process. W&B has no public access to it, and no way to end it before its timeouts, which would keep the interpreter alive."""
    with contextlib.suppress(AttributeError, ImportError):
        from wandb.sdk import wandb_setup

        setup: Any = wandb_setup._singleton
        process: subprocess.Popen[bytes] = setup._connection._proc._process
        return process
    return None


def kill(service: subprocess.Popen[bytes] | None) -> None:
    if service is not None:
        service.kill()
        service.wait()


def why_no_login() -> str:
    """Why W&B has no login for its server, determined without network or prompt; "" if it has one."""
    _set_up("online")
    import wandb

    try:
        found = wandb.login(prompt=False, verify=False)
    except wandb.errors.AuthenticationError as error:
        return f"no usable login, {reason(error)}"
    return "" if found else "no login"


def _mode_of_environment() -> str:
    """The mode that W&B's own environment variables set, else auto."""
    if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true"):
        return "disabled"
    mode = os.environ.get("WANDB_MODE", "").lower()
    return {"dryrun": "offline"}.get(mode, mode if mode in ("disabled", "offline", "online") else "auto")


def _tags_of_environment() -> list[str]:
    return [tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",")]


def check_login(mode: str) -> None:
    """Raise a ConfigError if log.wandb=online and W&B has no login."""
    if mode == "online" and (why := why_offline(mode)):
        raise ConfigError(f"log.wandb=online: W&B has {why}; run `wandb login` or set WANDB_API_KEY, or use log.wandb=auto or offline")


def _plain(tree: Any) -> Any:
    """A configuration with enums by name."""
    if isinstance(tree, Mapping):
        return {str(key): _plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_plain(value) for value in tree]
    return tree.name if isinstance(tree, Enum) else tree


def reason(error: BaseException) -> str:
    """An error as one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
