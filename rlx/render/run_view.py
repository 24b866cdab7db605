"""Runs in the terminal: a table of many, and everything about one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from rlx.config.saved import typed_value
from rlx.render.braille import plot
from rlx.render.network_view import network_rows
from rlx.render.numbers import number
from rlx.render.tables import make_table
from rlx.store.details import CheckpointRow, RunDetails
from rlx.store.measures import EVALUATION, TRAINING, in_words
from rlx.store.rows import RunRow
from rlx.store.runs import segments_of
from rlx.store.times import parse_time
from rlx.text import printable
from rlx.track.console import duration

_MOST_EVALUATIONS = 10
_STATUS_STYLE = {"running": "green", "stopped": "yellow", "killed": "red", "failed": "red"}


def print_rows(console: Console, rows: Sequence[RunRow]) -> None:
    """Print a table of runs, and below it what cannot be read of them."""
    narrow, tagged = console.width < 100, any(row.tags for row in rows)
    columns = ("run", "algo", "env", "status", "done" if narrow else "env steps", "train", "eval", "best", "age")
    table = make_table(*columns, *(["tags"] if tagged else []))
    table.padding = (0, 1 if narrow else 2, 0, 0)
    for column in table.columns[3:]:
        column.no_wrap = True
    for row in rows:
        values = (row.return_mean_100, row.last_eval, row.best_eval)
        table.add_row(
            *map(printable, (row.run, row.algo, row.env)),
            Text(row.status, style=_STATUS_STYLE.get(row.status, "")),
            _done(row, narrow=narrow),
            *("–" if v is None else number(v) for v in values),
            _age(row.age_s),
            *([printable(", ".join(row.tags))] if tagged else []),
        )
    console.print(table)
    for row in rows:
        if row.problem:
            console.print(Text(printable(f"{row.run}: {row.problem}"), style="red"), soft_wrap=True)


def print_run(console: Console, details: RunDetails, lines: list[dict[str, Any]]) -> None:
    """Print one run.

    Args:
        console: where.
        details: the run.
        lines: of its metrics.jsonl, for the curve.
    """
    _print_head(console, details)
    _print_returns(console, details)
    _print_curve(console, lines)
    _print_metrics(console, details.metrics)
    _print_differences(console, details.differences)
    _print_network(console, details.meta.get("network"))
    _print_checkpoints(console, details.checkpoints)
    _print_evaluations(console, details.evaluations)
    _print_segments(console, segments_of(details.meta))


def print_title(console: Console, title: str) -> None:
    """Print the title of a section."""
    console.print(f"\n{title}", style="bold")


def _print_head(console: Console, details: RunDetails) -> None:
    meta, elapsed = details.meta, details.metrics.get("time/elapsed_s")
    console.print(Text(f"{details.run}   ", style="bold").append(details.status, style=_STATUS_STYLE.get(details.status, "")))
    console.print(f"{meta.get('algo', '?')} on {meta.get('env_id', meta.get('env', '?'))}, seed {meta.get('seed', '?')}, "
                  f"recipe {meta.get('recipe') or 'none'}", soft_wrap=True)  # fmt: skip
    if isinstance(began := meta.get("from"), dict):
        console.print(Text(printable(f"started from the weights of {began.get('run')} at {began.get('env_steps')} env steps "
                                     f"(SHA-256 {str(began.get('checkpoint_sha256'))[:12]})")), soft_wrap=True)  # fmt: skip
    done, total = details.env_steps, details.total_env_steps
    steps = "no line of metrics yet" if done is None else f"{done:,} of {_count(total)} env steps"
    console.print(steps + (f" in {duration(elapsed)}" if isinstance(elapsed, int | float) else ""))
    if details.tags:
        console.print(printable(f"tags: {', '.join(details.tags)}"), soft_wrap=True, markup=False)
    if details.notes:
        console.print(printable(details.notes, keep="\n"), soft_wrap=True, markup=False)
    for problem in details.problems:
        console.print(Text(problem, style="red"), soft_wrap=True)


def _print_returns(console: Console, details: RunDetails) -> None:
    """Print the two measures of the run's return, each with its name."""
    metrics = details.metrics
    if details.return_mean_100 is not None:
        console.print(f"training return    {number(details.return_mean_100)}   last 100 training episodes, sampled actions")
    if details.last_eval is not None:
        low, high = metrics.get("eval/return_ci_low"), metrics.get("eval/return_ci_high")
        ends = [number(end) for end in (low, high) if isinstance(end, int | float)]
        interval = f" (95 % interval {ends[0]} to {ends[1]})" if len(ends) == 2 else ""
        best = "" if details.best_eval is None else f", best {number(details.best_eval)}"
        console.print(f"evaluation return  {number(details.last_eval)}{interval}{best}   most likely actions")


def _print_curve(console: Console, lines: list[dict[str, Any]]) -> None:
    training, evaluations = (_series(lines, key) for key in (TRAINING, EVALUATION))
    drawn = plot(training, evaluations, width=min(console.width, 100) if console.is_terminal else 80, height=12, x_label="env steps")
    if drawn:
        console.print("\n" + "\n".join(drawn), soft_wrap=True)
        console.print(f"⠤⠒ {in_words(TRAINING)}   ● {in_words(EVALUATION)}", style="dim")


def _series(lines: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(float(line["env_steps"]), float(line[key])) for line in lines if isinstance(line.get(key), int | float)]


def _print_metrics(console: Console, values: dict[str, Any]) -> None:
    if not values:
        return
    print_title(console, "Last metrics")
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


def _print_differences(console: Console, differences: dict[str, Any]) -> None:
    if not differences:
        return
    print_title(console, "Settings that are not the defaults")
    width = max(map(len, differences))
    for key, value in differences.items():
        console.print(f"  {key:<{width}}  {typed_value(value)}", soft_wrap=True)


def _print_network(console: Console, report: Any) -> None:
    if not (rows := network_rows(report)):
        return
    print_title(console, "Network")
    table = make_table("  part", "sees", "network", "outputs", "parameters", "why")
    for part, *rest in rows:
        table.add_row(*map(printable, (f"  {part}", *rest)))
    console.print(table)


def _print_checkpoints(console: Console, rows: list[CheckpointRow]) -> None:
    print_title(console, "Checkpoints")
    if not rows:
        console.print("  none yet", style="dim")
        return
    table = make_table("  env steps", "eval", "size", "resumes", "")
    for row in rows:
        resumes = "exactly" if row.exact else f"not exactly: {row.why_not_exact}" if row.exact is False else ""
        note = Text(row.damage, style="red") if row.damage else Text("best" if row.best else "", style="green")
        steps = row.name if row.env_steps is None else f"{row.env_steps:,}"
        score = "–" if row.score is None else number(row.score)
        table.add_row(f"  {steps}", score, f"{number(row.bytes)}B", "" if row.damage else resumes, note)
    console.print(table)


_NO_CHANGES = ("at", "run", "env_steps", "eval_env_steps", "episodes", "mode", "videos", "opponent", "wins", "draws", "losses",
               "model_calls_mean", "model_calls_per_solved", "optimal_moves", "length_mean", "score", "score_ci", "solve_rate",
               "solve_rate_ci", "return_mean", "return_std", "return_ci", "return_min", "return_max",
               "distance_mean", "obstacles_passed_mean", "training_return_mean_100")  # fmt: skip


def _print_evaluations(console: Console, results: list[dict[str, Any]]) -> None:
    """Print what `rlx eval` measured, newest first."""
    if not results:
        return
    print_title(console, "Evaluations")
    table = make_table("  at", "env steps", "episodes", "return", "±", "solved", "with")
    for result in reversed(results[-_MOST_EVALUATIONS:]):
        at, solved = parse_time(result["at"]), result.get("solve_rate")
        changes = {key: value for key, value in result.items() if key not in _NO_CHANGES and not (key == "seed" and value == 0)}
        shown = [*([str(result["mode"])] if result.get("mode") == "stochastic" else []), *(f"{k}={v}" for k, v in changes.items())]
        table.add_row(
            f"  {at.astimezone():%Y-%m-%d %H:%M}" if at else "  ?",
            f"{result['env_steps']:,}",
            f"{result['episodes']:,}",
            number(result["return_mean"]),
            number(result["return_std"]),
            f"{100 * solved:.1f} %" if isinstance(solved, int | float) else "",
            printable(" ".join(shown)),
        )
    console.print(table)
    if len(results) > _MOST_EVALUATIONS:
        console.print(f"  and {len(results) - _MOST_EVALUATIONS} earlier ones: rlx show --json", style="dim")


def _print_segments(console: Console, segments: list[dict[str, Any]]) -> None:
    print_title(console, "Started and resumed")
    if not segments:
        console.print("  never", style="dim")
        return
    table = make_table("  at", "for", "ended", "env steps", "on", "changed")
    for segment in segments:
        start, end = parse_time(segment.get("started")), parse_time(segment.get("ended"))
        steps = segment.get("env_steps")
        changed = segment.get("overrides") or []
        table.add_row(
            f"  {start.astimezone():%Y-%m-%d %H:%M}" if start else "  ?",
            duration((end - start).total_seconds()) if start and end else "–",
            str(segment.get("status", "?")) if end else "–",
            _count(steps) if isinstance(steps, int) else "–",
            ", ".join([*(str(segment[k]) for k in ("device", "host") if segment.get(k)), *_ranks(segment)]) or "?",
            " ".join(map(str, changed)) if isinstance(changed, list) else str(changed),
        )
    console.print(table)


def _ranks(segment: dict[str, Any]) -> list[str]:
    ranks = segment.get("ranks")
    return [f"{ranks} ranks"] if isinstance(ranks, int) else []


def _count(value: Any) -> str:
    return "?" if value is None else f"{value:,}"


def _done(row: RunRow, *, narrow: bool) -> str:
    if row.env_steps is None:
        return "–"
    if narrow and row.total_env_steps:
        return f"{100 * row.env_steps / row.total_env_steps:.0f} %"
    return f"{number(row.env_steps)} of {'?' if row.total_env_steps is None else number(row.total_env_steps)}"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"
