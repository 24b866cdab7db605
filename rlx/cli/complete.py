"""What the shell offers after TAB: keys and values of a configuration, and the names of runs. Imports neither torch nor gymnasium.

Bash takes `algo=ppo` for three words, because `=` and `:` are in its COMP_WORDBREAKS, and replaces only what follows the last of
them. So the words are put together again here, and bash gets only the part of an answer that it will put in that place. A lone
answer would be followed by a space, which `algo.` and `algo.clip=` must not be: they are answered together with what they lead to.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

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


def complete_overrides(ctx: typer.Context, incomplete: str) -> list[Candidate]:
    """Complete a KEY=VALUE word of `rlx train`, `resume` or `config`."""
    given = [word for word in _joined([str(w) for w in ctx.params.get("overrides") or ()]) if "=" in word]
    config_dir, resuming = ctx.params.get("config_dir"), ctx.info_name == "resume"
    return _in_place(incomplete, lambda word: _overrides(word, given, Path(config_dir) if config_dir else None, resuming=resuming))


def complete_runs(incomplete: str) -> list[Candidate]:
    """Complete the name of a run, newest first; a path is left to the shell."""
    from rlx.config.compose import runs_directory
    from rlx.rundir import list_runs

    runs = sorted(list_runs(runs_directory()), key=lambda run: run.last_started, reverse=True)
    candidates = [("latest", runs[0].name)] if runs else []
    candidates += [(run.name, f"{run.meta().get('algo', '?')} on {run.meta().get('env', '?')}, {run.status}") for run in runs]
    return [c for c in candidates if c[0].startswith(incomplete)]


def complete_envs(incomplete: str) -> list[Candidate]:
    """Complete the short name of an environment."""
    from rlx.config.compose import Composer

    return [(name, id_) for name, id_ in Composer().env_ids().items() if name.startswith(incomplete)]


def _in_place(incomplete: str, candidates_for: Any) -> list[Candidate]:
    """Candidates for the whole word under the cursor, cut to the part that the shell will replace."""
    word = _bash_word()
    if word is None:
        return [c for c in candidates_for(incomplete) if c[0].startswith(incomplete)]
    cut = 1 + max(word.rfind(b) for b in _BREAKS) if _is_split() else 0
    return [(value[cut:], doc) for value, doc in candidates_for(word) if value.startswith(word)]


def _bash_word() -> str | None:
    """The whole word under the cursor if bash asks, else None."""
    split = _bash_words()
    return None if split is None else (_joined(split) or [""])[-1] if split[-1] else ""


def _is_split() -> bool:
    """Whether bash has split the word under the cursor."""
    words = _bash_words() or [""]
    return words[-1] in _BREAKS or (len(words) > 1 and words[-2] in _BREAKS and bool(words[-1]))


def _bash_words() -> list[str] | None:
    """The words up to the cursor as bash sees them; None if another shell asks."""
    if "COMP_WORDS" not in os.environ or "COMP_CWORD" not in os.environ:
        return None
    try:
        words = shlex.split(os.environ["COMP_WORDS"])
    except ValueError:  # an open quote
        words = os.environ["COMP_WORDS"].split()
    cursor = int(os.environ["COMP_CWORD"])
    return [*words, *[""] * (cursor + 1 - len(words))][: cursor + 1]


def _joined(words: list[str]) -> list[str]:
    """Words that bash has split at `=` and `:`, put together again."""
    joined: list[str] = []
    glue = False
    for word in words:
        is_break = word in _BREAKS
        if joined and (is_break or glue):
            joined[-1] += word
        else:
            joined.append(word)
        glue = is_break
    return joined


def _overrides(word: str, given: list[str], config_dir: Path | None, *, resuming: bool) -> list[Candidate]:
    """Everything that could stand where `word` stands; it need not begin with it."""
    from rlx.config.compose import Composer

    composer = Composer(config_dir if config_dir and config_dir.is_dir() else None)
    keys = _keys(composer, given, resuming=resuming)
    if "=" in word:
        key = word.partition("=")[0]
        return _assignments(key, keys[key], composer) if key in keys else []
    taken = {override.partition("=")[0] for override in given}
    left = {key: value for key, value in keys.items() if key not in taken and key.startswith(word)}
    if "." in word:
        candidates = [(f"{key}=", doc) for key, (_, doc) in left.items() if "." in key]
    else:
        sections = dict.fromkeys(key.partition(".")[0] for key in left if "." in key)
        candidates = [(f"{key}=", doc) for key, (_, doc) in left.items() if "." not in key]
        candidates += [(f"{section}.", f"settings of {section}") for section in sections]
    if len(candidates) == 1 and candidates[0][0].endswith("."):
        candidates = [(f"{key}=", doc) for key, (_, doc) in left.items() if "." in key]
    if len(candidates) == 1:
        key = candidates[0][0].removesuffix("=")
        candidates += _assignments(key, keys[key], composer)
    return candidates


def _keys(composer: Composer, given: list[str], *, resuming: bool) -> dict[str, tuple[Any, str]]:
    """Every key that can be set, with its field's default (a group's is itself) and its sentence."""
    from rlx.algos import ALGORITHMS
    from rlx.cli.catalogue import key_docs
    from rlx.config.schema import RESUMABLE, RunConfig

    algo = _chosen_algo(composer, given)
    config = RunConfig(algo=ALGORITHMS[algo].config())
    keys: dict[str, tuple[Any, str]] = {} if resuming else {group: (None, doc) for group, doc in _GROUPS.items()}
    for key, doc in key_docs(algo).items():
        if resuming and not any(key == allowed or key.startswith(f"{allowed}.") for allowed in RESUMABLE):
            continue
        section, _, name = key.rpartition(".")
        keys[key] = (_field(getattr(config, section) if section else config, name), doc)
    keys.pop("env.kwargs", None)  # takes env.kwargs.ANYTHING=
    return keys


def _field(config: Any, name: str) -> tuple[Any, bool]:
    """A field's default, and whether it may be null."""
    field = next(f for f in dataclasses.fields(config) if f.name == name)
    return getattr(config, name), "None" in str(field.type)


def _assignments(key: str, known: tuple[Any, str], composer: Composer) -> list[Candidate]:
    """`key=value` for every value there is to choose from, or for the default."""
    field, _ = known
    return [(f"{key}={value}", doc) for value, doc in (_members(key, composer) if field is None else _values(key, *field))]


def _members(group: str, composer: Composer) -> list[Candidate]:
    from rlx.algos import ALGORITHMS

    if group == "env":
        ids = composer.env_ids()
        return [*ids.items(), *((id_, f"same as {name}") for name, id_ in ids.items() if id_ != name)]
    docs = {name: info.summary for name, info in ALGORITHMS.items()} if group == "algo" else {}
    return [(name, docs.get(name, "")) for name in composer.options(group)] + ([] if group == "algo" else [("null", "none")])


def _values(key: str, default: Any, nullable: bool) -> list[Candidate]:
    if isinstance(default, Enum):
        values = [member.name for member in type(default)]
    elif isinstance(default, bool):
        values = ["true", "false"]
    elif key == "runtime.device":
        values = list(_DEVICES)
    else:
        values = ["null" if default is None else str(default).replace(" ", "")]
    values += ["null"] if nullable and "null" not in values else []
    standard = "null" if default is None else default.name if isinstance(default, Enum) else str(default).replace(" ", "")
    return [(value, "the default" if value.lower() == standard.lower() else "") for value in values]


def _chosen_algo(composer: Composer, given: list[str]) -> str:
    """The algorithm that the words given, an experiment among them, or conf/config.yaml choose."""
    import yaml

    from rlx.algos import ALGORITHMS

    groups = dict(word.split("=", 1) for word in given)
    files = [composer.file("experiment", groups.get("experiment", "")), *(d / "config.yaml" for d in composer.directories)]
    found = [groups.get("algo")]
    for path in files:
        if path and path.is_file():
            defaults = (yaml.safe_load(path.read_text()) or {}).get("defaults", [])
            found += [d.get("algo") or d.get("override /algo") for d in defaults if isinstance(d, dict)]
    return next((name for name in found if name in ALGORITHMS), next(iter(ALGORITHMS)))
