"""Shell completion: keys and values of a configuration, and the names of runs, sweeps and checkpoints.

Bash splits `algo=ppo` into three words, because `=` and `:` are in its COMP_WORDBREAKS, and replaces only the last of them. So the
words are joined again here, and bash gets only the part of a candidate that it inserts. Imports neither torch nor gymnasium.
"""

from __future__ import annotations

import os
import re
import shlex
import textwrap
from collections.abc import Callable
from pathlib import Path

import typer

from rlx.store.layout import is_sweep
from rlx.text import printable

Candidate = tuple[str, str]
"""A word, and what it means; bash shows only the word."""

_BREAKS = ("=", ":")


def complete_overrides(ctx: typer.Context, incomplete: str) -> list[Candidate]:
    """Complete a KEY=VALUE word of `rlx train`, `resume` or `config`."""
    from rlx.config.completion import override_candidates

    given = [word for word in _joined([str(w) for w in ctx.params.get("overrides") or ()]) if "=" in word]
    directory = Path(ctx.params.get("config_dir") or ".")
    config_dir = directory if ctx.params.get("config_dir") and directory.is_dir() else None
    return _in_place(incomplete, lambda word: override_candidates(word, given, config_dir, resuming=ctx.info_name == "resume"))


def complete_runs(ctx: typer.Context, incomplete: str) -> list[Candidate]:
    """Complete the name of a run, newest first. The shell completes paths; `rlx resume` also takes KEY=VALUE words here."""
    from rlx.store.layout import runs_directory
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
    from rlx.store.layout import runs_directory

    paths = [p for p in runs_directory().glob("*") if _is_name(p.name) and is_sweep(p)]
    newest = sorted(paths, key=lambda p: p.lstat().st_mtime, reverse=True)
    return [c for c in [("latest", "the newest"), *[(p.name, "") for p in newest]] if c[0].startswith(incomplete)]


def complete_runs_and_sweeps(ctx: typer.Context, incomplete: str) -> list[Candidate]:
    """Complete the name of a run or of a sweep."""
    return [*complete_runs(ctx, incomplete), *[c for c in complete_sweeps(incomplete) if c[0] != "latest"]]


def complete_checkpoints(ctx: typer.Context, incomplete: str) -> list[Candidate]:
    """Complete --checkpoint: best, latest, and the env steps of the run's checkpoints."""
    from rlx.checkpoint import best_checkpoint, find_checkpoints
    from rlx.errors import RlxError
    from rlx.store.layout import runs_directory
    from rlx.store.runs import RunDir

    run = str(ctx.params.get("run") or next(iter(ctx.params.get("runs") or ()), "latest"))
    try:
        found, _ = find_checkpoints(RunDir.open(runs_directory(), run).checkpoints)
    except RlxError:
        return []
    best = best_checkpoint(found)
    candidates = [("best", f"at {best.env_steps:,} env steps")] if best else []
    candidates += [("latest", f"at {found[0].env_steps:,} env steps")] if found else []
    candidates += [(str(c.env_steps), f"evaluated at {c.score:.4g}" if abs(c.score) < 1e300 else "not evaluated") for c in found]
    return [c for c in candidates if c[0].startswith(incomplete)]


def complete_probes(incomplete: str) -> list[Candidate]:
    """Complete --probe: the names of changes, and each with the values that it has by default."""
    from rlx.evaluation.probe_kinds import PANEL, PROBES

    candidates = [(PANEL, "all that is changed by default")]
    for probe in PROBES.values():
        candidates += [(probe.name, probe.meaning), (f"{probe.name}={probe.example}", probe.meaning)]
    return _in_place(incomplete, lambda word: [c for c in candidates if "=" in word or "=" not in c[0]])


def complete_envs(incomplete: str) -> list[Candidate]:
    """Complete the short name of an environment."""
    from rlx.config.compose import Composer

    return [(name, id_) for name, id_ in Composer().env_ids().items() if name.startswith(incomplete)]


def _in_place(incomplete: str, candidates_for: Callable[[str], list[Candidate]]) -> list[Candidate]:
    """Candidates for the whole word under the cursor, without the part that the shell keeps."""
    word, kept = _bash_word() or (incomplete, 0)
    return [(value[kept:], _short(doc)) for value, doc in candidates_for(word) if value.startswith(word)]


def _short(doc: str) -> str:
    """A description on one line: typer would wrap a longer one at 80 columns, and fish would read the rest as another candidate."""
    return printable(textwrap.shorten(doc, 72, placeholder=" …"))


def _is_name(name: str) -> bool:
    """Whether a directory has a name that rlx gives. Others are not offered, because a candidate becomes part of a command."""
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
