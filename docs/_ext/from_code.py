"""Pages of the reference that are read off the code when the site is built: commands, settings, metrics, exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from sphinx.application import Sphinx

REFERENCE = Path(__file__).parents[1] / "reference"


def commands() -> str:
    """Every verb with its options and examples, as Typer describes them."""
    import typer
    from typer.cli import get_docs_for_click

    from rlx.cli.main import app

    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="rlx", title="Commands")
    for name, verb in command.commands.items():  # Typer cuts the summaries of the list short
        text = re.sub(rf"^\* `{name}`: .*$", f"* `{name}`: {(verb.help or '').strip().splitlines()[0]}", text, count=1, flags=re.MULTILINE)
    return _examples_as_blocks(text)


def _examples_as_blocks(text: str) -> str:
    """Indented lines of the form `rlx …` after "Examples:" become one shell block."""
    lines, out, block = text.splitlines(), list[str](), list[str]()
    inside = False
    for line in lines:
        if line.strip() == "Examples:":
            inside = True
            continue
        if inside and (line.startswith("rlx ") or line.strip().startswith("rlx ") or not line.strip()):
            if line.strip():
                block.append(line.strip())
            continue
        if inside:
            out += ["```sh", *block, "```", ""]
            block, inside = [], False
        out.append(line)
    return "\n".join(out) + "\n"


def settings() -> str:
    """Every key of every algorithm, and those of all runs, with defaults."""
    from rlx.config.algo_registry import ALGORITHMS

    out = [
        "# Settings",
        "",
        "Defaults without a recipe. `rlx config algo=… env=… --describe` prints the same for one pair, with the source of every value.",
        "",
    ]
    common: dict[str, dict[str, str]] = {}
    for name in ALGORITHMS:
        env = next(e for e in ("cartpole", "pendulum", "connect_four", "sokoban") if _fits(name, e))
        call = [sys.executable, "-m", "rlx", "config", f"algo={name}", f"env={env}", "recipe=null", "--json"]
        values = json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)["values"]
        own = {k: v for k, v in values.items() if k.startswith("algo.") and k != "algo.name"}
        common = common or {k: v for k, v in values.items() if not k.startswith("algo.") and k != "env.id"}
        out += [f"## algo={name}", "", *_table(own), ""]
    return "\n".join([*out[:4], "## Every run", "", *_table(common), "", *out[4:]]) + "\n"


def _fits(algo: str, env: str) -> bool:
    call = [sys.executable, "-m", "rlx", "config", f"algo={algo}", f"env={env}", "recipe=null", "--json"]
    return subprocess.run(call, capture_output=True).returncode == 0


def _table(values: dict[str, dict[str, str]]) -> list[str]:
    rows = [f"| `{k}` | `{json.dumps(v['value'])}` | {(v.get('doc') or '').replace('|', chr(92) + '|')} |" for k, v in values.items()]
    return ["| key | default | what it does |", "|---|---|---|", *rows]


def metrics() -> str:
    """What each key of metrics.jsonl means."""
    from rlx.metrics import MEANINGS

    head = """\
# Metrics

Each line of `metrics.jsonl` has `env_steps` and `iteration`. A key has one meaning in every algorithm. Losses belong to their
algorithm: compare them between runs of one algorithm only. Everything that depends on the clock is under `time/`; all other
numbers are the same for the same seed on the same machine.

| key | meaning |
|---|---|"""
    return "\n".join([head, *(f"| `{key}` | {meaning.replace('|', chr(92) + '|')} |" for key, meaning in MEANINGS.items())]) + "\n"


PAGES = {"commands.md": commands, "settings.md": settings, "metrics.md": metrics}


def write(app: Sphinx) -> None:
    for name, make in PAGES.items():
        path, text = REFERENCE / name, make()
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def _escape_shapes(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """In a shape such as [B, *] the star is no emphasis."""
    lines[:] = [line.replace(", *]", r", \*]").replace("from_:", r"from\_:") for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write)
    app.connect("autodoc-process-docstring", _escape_shapes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
