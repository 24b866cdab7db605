"""What the shell offers after TAB: keys and values of a configuration, and the names of runs. Imports neither torch nor gymnasium.

Bash takes `algo=ppo` for three words, because `=` and `:` are in its COMP_WORDBREAKS, and replaces only what follows the last of
them. So the words are put together again here, and bash gets only the part of an answer that it will put in that place. A lone
answer would be followed by a space, which `algo.` and `algo.clip=` must not be: they are answered together with what they lead to.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rlx.files import is_file
from rlx.text import printable

if TYPE_CHECKING:
    from rlx.config.compose import Composer

Candidate = tuple[str, str]
"""What to type, and what it means; bash shows only the first."""

_BREAKS = ("=", ":")
_GROUPS = {
    "algo": "the algorithm",
    "env": "the environment",
    "recipe": "values tuned for one algorithm and environment; null for none",
    "experiment": "a whole setting under one name",
}
_DEVICES = ("auto", "cpu", "cuda", "cuda:0", "mps")


@dataclass(frozen=True)
class _Key:
    """Something that can stand before `=`."""

    doc: str
    default: Any = None
    nullable: bool = False
    is_group: bool = False


def complete_overrides(ctx: typer.Context, incomplete: str) -> list[Candidate]:
    """Complete a KEY=VALUE word of `rlx train`, `resume` or `config`."""
    given = [word for word in _joined([str(w) for w in ctx.params.get("overrides") or ()]) if "=" in word]
    directory = Path(ctx.params.get("config_dir") or ".")
    config_dir = directory if ctx.params.get("config_dir") and directory.is_dir() else None
    return _in_place(incomplete, lambda word: _overrides(word, given, config_dir, resuming=ctx.info_name == "resume"))


def complete_runs(ctx: typer.Context, incomplete: str) -> list[Candidate]:
    """Complete the name of a run, newest first; a path is left to the shell, and `rlx resume` may go without a name."""
    from rlx.config.compose import runs_directory
    from rlx.store.runs import list_runs

    runs = sorted((r for r in list_runs(runs_directory()) if _is_name(r.name)), key=lambda run: run.last_started, reverse=True)
    candidates = [("latest", runs[0].name)] if runs else []
    for run in runs:
        meta = run.meta()
        candidates.append((run.name, _short(f"{meta.get('algo', '?')} on {meta.get('env', '?')}, {run.status}")))
    matching = [c for c in candidates if c[0].startswith(incomplete)]
    return complete_overrides(ctx, incomplete) if not matching and incomplete and ctx.info_name == "resume" else matching


def complete_sweeps(incomplete: str) -> list[Candidate]:
    """Complete the name of a sweep, newest first."""
    from rlx.config.compose import runs_directory

    paths = [p for p in runs_directory().glob("*") if _is_name(p.name) and is_file(p / "sweep.json")]
    newest = sorted(paths, key=lambda p: p.lstat().st_mtime, reverse=True)
    return [c for c in [("latest", "the newest"), *[(p.name, "") for p in newest]] if c[0].startswith(incomplete)]


def complete_runs_and_sweeps(ctx: typer.Context, incomplete: str) -> list[Candidate]:
    """Complete the name of a run or of a sweep."""
    return [*complete_runs(ctx, incomplete), *[c for c in complete_sweeps(incomplete) if c[0] != "latest"]]


def complete_checkpoints(ctx: typer.Context, incomplete: str) -> list[Candidate]:
    """Complete --checkpoint: best, latest, and the env steps of those that the run named before has."""
    from rlx.checkpoint import best_checkpoint, find_checkpoints
    from rlx.config.compose import runs_directory
    from rlx.errors import RlxError
    from rlx.store.runs import RunDir

    try:
        found, _ = find_checkpoints(RunDir.open(runs_directory(), str(ctx.params.get("run") or "latest")).checkpoints)
    except RlxError:
        return []
    best = best_checkpoint(found)
    candidates = [("best", f"at {best.env_steps:,} env steps")] if best else []
    candidates += [("latest", f"at {found[0].env_steps:,} env steps")] if found else []
    candidates += [(str(c.env_steps), f"evaluated at {c.score:.4g}" if abs(c.score) < 1e300 else "not evaluated") for c in found]
    return [c for c in candidates if c[0].startswith(incomplete)]


def complete_envs(incomplete: str) -> list[Candidate]:
    """Complete the short name of an environment."""
    from rlx.config.compose import Composer

    return [(name, id_) for name, id_ in Composer().env_ids().items() if name.startswith(incomplete)]


def _in_place(incomplete: str, candidates_for: Callable[[str], list[Candidate]]) -> list[Candidate]:
    """Candidates for the whole word under the cursor, less what the shell keeps of it."""
    word, kept = _bash_word() or (incomplete, 0)
    return [(value[kept:], _short(doc)) for value, doc in candidates_for(word) if value.startswith(word)]


def _short(doc: str) -> str:
    """A meaning that stays on one line: Typer would wrap it at 80 columns, and fish take the rest for another candidate."""
    return printable(textwrap.shorten(doc, 72, placeholder=" …"))


def _is_name(name: str) -> bool:
    """Whether a directory's name is one that rlx gives; what the shell is told lands on its command line."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}", name) is not None


def _bash_word() -> tuple[str, int] | None:
    """The whole word under the cursor, and how many of its characters bash will keep; None if another shell asks."""
    if "COMP_WORDS" not in os.environ or "COMP_CWORD" not in os.environ:
        return None
    try:
        words = shlex.split(os.environ["COMP_WORDS"])
    except ValueError:  # an open quote
        words = os.environ["COMP_WORDS"].split()
    words = words[: int(os.environ["COMP_CWORD"]) + 1]
    if len(words) <= int(os.environ["COMP_CWORD"]):
        return "", 0  # the word under the cursor is empty
    whole = _joined(words)[-1]
    return whole, len(whole) - (0 if words[-1] in _BREAKS else len(words[-1]))


def _joined(words: list[str]) -> list[str]:
    """Words that bash has split at `=` and `:`, put together again."""
    joined: list[str] = []
    glue = False
    for word in words:
        if joined and (glue or word in _BREAKS):
            joined[-1] += word
        else:
            joined.append(word)
        glue = word in _BREAKS
    return joined


def _overrides(word: str, given: list[str], config_dir: Path | None, *, resuming: bool) -> list[Candidate]:
    """Everything that could stand where `word` stands; it need not begin with it."""
    from rlx.config.compose import Composer

    composer = Composer(config_dir)
    keys = _keys(composer, given, resuming=resuming)
    name, is_assigned, _ = word.partition("=")
    if is_assigned:
        return _assignments(name, keys[name], composer) if name in keys else []
    taken = {override.partition("=")[0] for override in given}
    left = {key: entry for key, entry in keys.items() if key not in taken and key.startswith(word)}
    whole = [(f"{key}=", entry.doc) for key, entry in left.items() if "." not in key]
    nested = [(f"{key}=", entry.doc) for key, entry in left.items() if "." in key]
    sections = dict.fromkeys(f"{key.partition('.')[0]}." for key, _ in nested)
    candidates = (
        nested if "." in word or (not whole and len(sections) == 1) else [*whole, *((s, f"settings of {s[:-1]}") for s in sections)]
    )
    if len(candidates) == 1:
        key = candidates[0][0].removesuffix("=")
        candidates += _assignments(key, keys[key], composer)
    return candidates


def _keys(composer: Composer, given: list[str], *, resuming: bool) -> dict[str, _Key]:
    """Every key that can be set."""
    from rlx.algos import ALGORITHMS
    from rlx.config.documentation import key_docs
    from rlx.config.schema import RESUMABLE, RunConfig

    algo = _chosen_algo(composer, given)
    config = RunConfig(algo=ALGORITHMS[algo].config())
    keys = {} if resuming else {group: _Key(doc, is_group=True) for group, doc in _GROUPS.items()}
    for key, doc in key_docs(algo).items():
        if resuming and not any(key == allowed or key.startswith(f"{allowed}.") for allowed in RESUMABLE):
            continue
        section, _, name = key.rpartition(".")
        owner = getattr(config, section) if section else config
        field = next(f for f in dataclasses.fields(owner) if f.name == name)
        keys[key] = _Key(doc, getattr(owner, name), nullable="None" in str(field.type))
    keys.pop("env.kwargs", None)  # takes env.kwargs.ANYTHING=
    return keys


def _assignments(name: str, key: _Key, composer: Composer) -> list[Candidate]:
    """`name=value` for every value there is to choose from, or for the default."""
    return [(f"{name}={value}", doc) for value, doc in (_members(name, composer) if key.is_group else _values(name, key))]


def _members(group: str, composer: Composer) -> list[Candidate]:
    from rlx.algos import ALGORITHMS

    if group == "env":
        ids = composer.env_ids()
        return [*ids.items(), *((id_, f"same as {name}") for name, id_ in ids.items() if id_ != name)]
    if group == "algo":
        return [(name, ALGORITHMS[name].summary if name in ALGORITHMS else "") for name in composer.options("algo")]
    return [*((name, "") for name in composer.options(group)), ("null", "none")]


def _values(name: str, key: _Key) -> list[Candidate]:
    from rlx.config.documentation import typed_value

    default = typed_value(key.default)
    values = [default]
    if isinstance(key.default, Enum):
        values = [member.name for member in type(key.default)]
    elif isinstance(key.default, bool):
        values = ["true", "false"]
    elif name == "runtime.device":
        values = list(_DEVICES)
    if key.nullable and key.default is not None:
        values.append("null")
    return [(value, "the default" if value == default else "") for value in values]


def _chosen_algo(composer: Composer, given: list[str]) -> str:
    """The algorithm that the words given, an experiment among them, or conf/config.yaml choose."""
    import yaml

    from rlx.algos import ALGORITHMS

    groups = dict(word.split("=", 1) for word in given)
    found = [groups.get("algo")]
    for path in (composer.file("experiment", groups.get("experiment", "")), *(d / "config.yaml" for d in composer.directories)):
        if path and path.is_file():
            defaults: list[Any] = (yaml.safe_load(path.read_text()) or {}).get("defaults") or []
            found += [d.get("algo") or d.get("override /algo") for d in defaults if not isinstance(d, str)]
    return next((name for name in found if name in ALGORITHMS), next(iter(ALGORITHMS)))
