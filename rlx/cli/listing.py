"""rlx ls, rlx show: what runs there are and how they went. A damaged run is shown as far as it can be read."""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlx.cli.catalogue import as_typed, make_table, print_json, terminal
from rlx.cli.checkpoints import read_checkpoints
from rlx.cli.complete import complete_envs, complete_runs, complete_sweeps
from rlx.cli.options import echo
from rlx.cli.rows import SORTS, STATUSES, Row, is_wanted
from rlx.files import UnreadableError, parse_json, read_file
from rlx.render.braille import number, plot
from rlx.text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from rlx.store.runs import RunDir

_STATUS_STYLE = {"running": "green", "stopped": "yellow", "killed": "red", "failed": "red"}
_TOTAL = re.compile(r"^loop:(?:\n[ #].*)*?\n +total_env_steps: *(\d{1,18})\b", re.MULTILINE)
_NUMBER = rb"(-?\d{1,25}(?:\.\d{1,25})?(?:[eE][-+]?\d{1,2})?)(?=[,}\s])"
_RETURN = re.compile(rb'"episode/return_mean_100": *' + _NUMBER)
_EVALUATION = re.compile(rb'"eval/return_mean": *' + _NUMBER)
_CONFIG_BYTES, _RECORD_BYTES = 1 << 17, 1 << 29
_BEGINNINGS = re.compile(rb'^\{"env_steps": \d+, .*\}$', re.MULTILINE)


def ls(
    runs_dir: Annotated[Path | None, typer.Option(help="Where to look; otherwise $RLX_RUNS_DIR, or runs/ here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    sweep: Annotated[
        str | None, typer.Option(help="List the runs of a sweep, by name, path or latest.", autocompletion=complete_sweeps)
    ] = None,
    algo: Annotated[str | None, typer.Option(help="Only runs of this algorithm.")] = None,
    env: Annotated[
        str | None, typer.Option(help="Only runs in environments with this in their name.", autocompletion=complete_envs)
    ] = None,
    status: Annotated[str | None, typer.Option(help=f"Only runs that are {', '.join(STATUSES[:-1])} or {STATUSES[-1]}.")] = None,
    sort: Annotated[str, typer.Option(help="started, name, return, eval, best or steps.")] = "started",
) -> None:
    """List the runs, the one started last at the top, and the sweeps; or the runs of a sweep.

    Examples:

      rlx ls

      rlx ls --sweep latest

      rlx ls --algo ppo --env cartpole --status finished --sort return

      rlx ls --json | jq -r 'select(.status == "killed") | .run'
    """
    from rlx.config.compose import runs_directory
    from rlx.config.overrides import did_you_mean
    from rlx.errors import ConfigError

    root = runs_dir or runs_directory()
    for option, given, choices in (("--sort", sort, tuple(SORTS)), ("--status", status, STATUSES)):
        if given is not None and given not in choices:
            raise ConfigError(f"{option} {given}: {did_you_mean(given, list(choices))}")
    if sweep is not None:
        from rlx.render.sweep_overview import list_sweep

        list_sweep(root, sweep, as_json=as_json)
        return
    rows = [_read_row(run) for run in _newest_first(root)]
    everything, rows = rows, [row for row in rows if is_wanted(row, algo, env, status)]
    if (value := SORTS[sort]) is not None:
        rows.sort(key=value)
    if as_json:
        print_json(asdict(row) for row in rows)
        return
    console = terminal()
    from rlx.render.sweep_overview import print_sweeps

    if everything and not rows:
        console.print(f"None of the {len(everything)} runs in {root} is like that; `rlx ls` lists them all", soft_wrap=True)
        return
    if not rows:
        if print_sweeps(console, root):
            return
        console.print(f"There are no runs in {root} yet; start one: rlx train algo=ppo env=cartpole", soft_wrap=True)
        return
    from rich.text import Text

    narrow = console.width < 100
    table = make_table("run", "algo", "env", "status", "done" if narrow else "env steps", "return", "eval", "best", "age")
    table.padding = (0, 1 if narrow else 2, 0, 0)
    for column in table.columns[3:]:
        column.no_wrap = True
    for row in rows:
        how = Text(row.status, style=_STATUS_STYLE.get(row.status, ""))
        values = (row.return_mean_100, row.last_eval, row.best_eval)
        table.add_row(
            *map(printable, (row.run, row.algo, row.env)),
            how,
            _done(row, narrow=narrow),
            *("–" if v is None else number(v) for v in values),
            _age(row.age_s),
        )
    console.print(table)
    for row in rows:
        if row.problem:
            console.print(Text(printable(f"{row.run}: {row.problem}"), style="red"), soft_wrap=True)
    print_sweeps(console, root)
    if console.is_terminal:
        console.print("\nreturn: mean of the last 100 training episodes   More: rlx show RUN", style="dim")


def _newest_first(root: Path) -> list[RunDir]:
    """Every directory that is, or was, a run."""
    from rlx.store.runs import RunDir, is_run

    if not root.is_dir():
        return []
    found = [p for p in root.iterdir() if not p.name.startswith(".") and (is_run(p) or os.path.lexists(p / "checkpoints"))]
    runs = [RunDir(p) for p in found]
    return sorted(runs, key=lambda run: (run.last_started, run.name), reverse=True)


def _read_row(run: RunDir) -> Row:
    """`read_row`, or a row that says why there is none: one bad directory is nothing to the others."""
    try:
        return read_row(run)
    except (OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        return Row(run=run.name, status="?", problem=f"unreadable: {type(error).__name__}: {error}")


def read_row(run: RunDir) -> Row:
    """What a list says of a run, reading no more than it must."""
    from rlx.store.record import read_record

    problems = []
    if not run.meta():
        problems.append("meta.json is damaged or missing")
    total = total_env_steps(run.path)
    if total is None:
        problems.append("config.yaml is damaged" if (run.path / "config.yaml").is_file() else "config.yaml is missing")
    meta = run.meta()
    algo, env = str(meta.get("algo") or "?")[:40], str(meta.get("env") or meta.get("env_id") or "?")[:60]
    row = Row(run=run.name, algo=algo, env=env, status=run.status if run.meta() else "?", total_env_steps=total, age_s=_age_s(run))
    try:
        data = read_file(run.metrics_path, limit=_RECORD_BYTES)
    except UnreadableError as error:
        data = b""
        if not error.missing:
            problems.append(f"metrics.jsonl {error.reason}")
    data = data[: data.rfind(b"\n") + 1]  # a process that was killed may leave half a line
    evaluations = [float(v) for v in _EVALUATION.findall(data)]
    if evaluations:
        row.last_eval, row.best_eval = evaluations[-1], max(evaluations)
    returns = _RETURN.search(data, max(0, data.rfind(b'"episode/return_mean_100"')))
    row.return_mean_100 = float(returns[1]) if returns else None
    if data:
        try:
            last = parse_json(data[data.rfind(b"\n", 0, -1) + 1 :])
            if type(last.get("env_steps")) is not int or last["env_steps"] < 0:
                raise ValueError("env_steps")
            row.env_steps = last["env_steps"]
        except ValueError:
            row.env_steps = next((line["env_steps"] for line in reversed(run.metrics())), None)
    if len(_BEGINNINGS.findall(data)) < data.count(b"\n") and (damage := read_record(run.metrics_path).problem):
        problems.append(f"metrics.jsonl is damaged: {damage}")
    row.problem = "; ".join(problems) + f": see rlx show {run.name}" if problems else None
    return row


def total_env_steps(directory: Path) -> int | None:
    """The budget in a run's config.yaml, found without reading it as a configuration; None if it is missing or damaged."""
    try:
        total = _TOTAL.search(read_file(directory / "config.yaml", limit=_CONFIG_BYTES).decode())
    except (UnreadableError, UnicodeDecodeError):
        return None
    return int(total[1]) if total else None


def show(
    run: Annotated[str, typer.Argument(help="Name or path of a run, or latest.", autocompletion=complete_runs)] = "latest",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show one run: its settings, how far it got, its curve, checkpoints and files, and what to do next.

    Examples:

      rlx show

      rlx show lander

      rlx show lander --json | jq '.checkpoints[] | select(.best)'
    """
    from rlx.config.compose import runs_directory
    from rlx.store.runs import RunDir

    opened = RunDir.open(runs_directory(), run)
    row, lines = read_row(opened), opened.metrics()
    problems = [row.problem.partition(": see")[0]] if row.problem else []
    if opened.segments and opened.segments[-1].get("error"):
        problems.append(str(opened.segments[-1]["error"]))
    differences, resumable = {}, True
    try:
        differences = _differences(opened)
        problems += [f"config.yaml is not what was started: {', '.join(changes)}" for changes in [opened.changes()] if changes]
    except ValueError as error:  # a ConfigError, or text that is none
        problems, resumable = [*problems, str(error)], False
    facts: dict[str, Any] = {
        **asdict(row),
        "problem": "; ".join(problems) or None,
        "path": str(opened.path),
        "meta": opened.meta(),
        "resumable": resumable,
        "differences": differences,
        "checkpoints": read_checkpoints(opened.checkpoints),
        "metrics": _last_values(lines),
    }
    if as_json:
        echo(json.dumps(facts))
        return
    console = terminal()
    _print_head(console, facts, problems)
    _print_curve(console, lines)
    _print_metrics(console, facts["metrics"])
    _print_differences(console, differences)
    _print_checkpoints(console, facts["checkpoints"])
    _print_segments(console, opened.segments)
    _print_next(console, opened, facts)


def _print_head(console: Console, facts: dict[str, Any], problems: list[str]) -> None:
    from rich.text import Text

    from rlx.track.console import duration

    meta, elapsed = facts["meta"], facts["metrics"].get("time/elapsed_s")
    console.print(Text(f"{facts['run']}   ", style="bold").append(facts["status"], style=_STATUS_STYLE.get(facts["status"], "")))
    console.print(f"{meta.get('algo', '?')} on {meta.get('env_id', meta.get('env', '?'))}, seed {meta.get('seed', '?')}, "
                  f"recipe {meta.get('recipe') or 'none'}", soft_wrap=True)  # fmt: skip
    done, total = facts["env_steps"], facts["total_env_steps"]
    steps = "no line of metrics yet" if done is None else f"{done:,} of {_count(total)} env steps"
    console.print(steps + (f" in {duration(elapsed)}" if isinstance(elapsed, int | float) else ""))
    for problem in problems:
        console.print(Text(problem, style="red"), soft_wrap=True)


def _print_curve(console: Console, lines: list[dict[str, Any]]) -> None:
    training, evaluations = (_series(lines, key) for key in ("episode/return_mean_100", "eval/return_mean"))
    drawn = plot(training, evaluations, width=min(console.width, 100) if console.is_terminal else 80, height=12, x_label="env steps")
    if drawn:
        console.print("\n" + "\n".join(drawn), soft_wrap=True)
        console.print("⠤⠒ episode/return_mean_100   ● eval/return_mean", style="dim")


def _series(lines: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(float(line["env_steps"]), float(line[key])) for line in lines if isinstance(line.get(key), int | float)]


def _last_values(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The newest value of every metric."""
    values: dict[str, Any] = {}
    for line in lines:
        values |= line
    return {name: value for name, value in sorted(values.items()) if "/" in name}


def _print_metrics(console: Console, values: dict[str, Any]) -> None:
    if not values:
        return
    _title(console, "Last metrics")
    table = make_table("", "")
    table.show_header = False
    groups: dict[str, list[str]] = {}
    for name, value in values.items():
        group, _, rest = name.partition("/")
        shown = number(value) if isinstance(value, int | float) else str(value)
        groups.setdefault(group, []).append(f"{rest}\N{NO-BREAK SPACE}{shown}")
    for group, entries in groups.items():
        table.add_row(f"  {group}", "   ".join(entries))
    console.print(table)


def _differences(run: RunDir) -> dict[str, Any]:
    """Settings that are not the defaults of the schema, the environment's id apart.

    Raises:
        ConfigError: if config.yaml cannot be read.
    """
    from rlx.algos import ALGORITHMS
    from rlx.config.compose import leaf_keys, load_config
    from rlx.config.schema import RunConfig

    config = load_config(run.path / "config.yaml")
    default = RunConfig(algo=ALGORITHMS[config.algo.name].config())
    mine, theirs = map(leaf_keys, (config, default))
    return {k: v for k, v in mine.items() if k != "env.id" and (k not in theirs or theirs[k] != v)}


def _print_differences(console: Console, differences: dict[str, Any]) -> None:
    if not differences:
        return
    _title(console, "Settings that are not the defaults")
    width = max(map(len, differences))
    for key, value in differences.items():
        console.print(f"  {key:<{width}}  {as_typed(value)}", soft_wrap=True)


def _print_checkpoints(console: Console, rows: list[dict[str, Any]]) -> None:
    from rich.text import Text

    _title(console, "Checkpoints")
    if not rows:
        console.print("  none yet", style="dim")
        return
    table = make_table("  env steps", "eval", "size", "resumes", "")
    for row in rows:
        resumes = "exactly" if row["exact"] else f"not exactly: {row['why_not_exact']}" if row["exact"] is False else ""
        note = Text(row["damage"], style="red") if row["damage"] else Text("best" if row["best"] else "", style="green")
        steps = row["name"] if row["env_steps"] is None else f"{row['env_steps']:,}"
        score = "–" if row["score"] is None else number(row["score"])
        table.add_row(f"  {steps}", score, f"{number(row['bytes'])}B", "" if row["damage"] else resumes, note)
    console.print(table)


def _print_segments(console: Console, segments: list[dict[str, Any]]) -> None:
    from rlx.track.console import duration

    _title(console, "Started and resumed")
    if not segments:
        console.print("  never", style="dim")
        return
    table = make_table("  at", "for", "ended", "env steps", "on", "changed")
    for segment in segments:
        start, end = _time(segment.get("started")), _time(segment.get("ended"))
        steps = segment.get("env_steps")
        changed = segment.get("overrides") or []
        table.add_row(
            f"  {start.astimezone():%Y-%m-%d %H:%M}" if start else "  ?",
            duration((end - start).total_seconds()) if start and end else "–",
            str(segment.get("status", "?")) if end else "–",
            _count(steps) if isinstance(steps, int) else "–",
            ", ".join(str(segment[k]) for k in ("device", "host") if segment.get(k)) or "?",
            " ".join(map(str, changed)) if isinstance(changed, list) else str(changed),
        )
    console.print(table)


def _print_next(console: Console, run: RunDir, facts: dict[str, Any]) -> None:

    _title(console, "Files")
    for name in ("config.yaml", "meta.json", "metrics.jsonl", "checkpoints", "videos", "plots", "wandb"):
        if os.path.lexists(run.path / name):
            console.print(f"  {run.path / name}", soft_wrap=True)
    reference = run.reference
    usable = [c for c in facts["checkpoints"] if not c["damage"]]
    commands = []
    if facts["status"] == "running":
        commands.append(("look again", f"rlx show {reference}"))
    elif not facts["resumable"]:
        commands.append(("start anew", "rlx train …   # without its config.yaml a run cannot go on"))
    elif facts["status"] == "finished":
        commands.append(("train on", f"rlx resume {reference} loop.total_env_steps={2 * (facts['total_env_steps'] or 100_000)}"))
    else:
        commands.append(("go on" if usable else "start over", f"rlx resume {reference}"))
    if usable and facts["resumable"]:
        best = " --checkpoint best" if any(c["best"] for c in usable) else ""
        commands.append(("evaluate", f"rlx eval {reference}{best}"))
    _title(console, "Next")
    for meaning, command in commands:
        console.print(f"  {meaning:<10}  {command}", soft_wrap=True)


def _title(console: Console, title: str) -> None:
    console.print(f"\n{title}", style="bold")


def _count(value: Any) -> str:
    return "?" if value is None else f"{value:,}"


def _done(row: Row, *, narrow: bool) -> str:
    if row.env_steps is None:
        return "–"
    if narrow and row.total_env_steps:
        return f"{100 * row.env_steps / row.total_env_steps:.0f} %"
    return f"{number(row.env_steps)} of {'?' if row.total_env_steps is None else number(row.total_env_steps)}"


def _time(value: Any) -> datetime | None:
    try:
        at = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return at if 1 < at.year < 9999 else None  # beyond, other time zones have no time for it


def _age_s(run: RunDir) -> float | None:
    """Seconds since a run ended or, if that is not known, last wrote a metric or started."""
    segments = run.segments
    at = _time(segments[-1].get("ended")) if segments else None
    if at is None:
        with contextlib.suppress(OSError, ValueError, OverflowError):  # no file, or of a year that no calendar has
            at = datetime.fromtimestamp(run.metrics_path.lstat().st_mtime, UTC)
    at = at or _time(run.last_started)
    return max(0.0, (datetime.now(UTC) - at).total_seconds()) if at else None


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"
