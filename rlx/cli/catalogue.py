"""rlx config, rlx algos, rlx envs: the settings, the algorithms and the environments."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlx.cli.complete import complete_envs, complete_overrides
from rlx.cli.options import echo, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from rlx.config.documentation import KeyRow


def config(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings that differ from the defaults.", autocompletion=complete_overrides),
    ] = None,
    describe: Annotated[bool, typer.Option("--describe", "-d", help="Also say what each key means.")] = False,
    config_dir: Annotated[Path | None, typer.Option(help="A directory of your own YAML groups, searched before conf/.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print every key that can be set, its value, and where the value comes from.

    Examples:

      rlx config

      rlx config algo=a2c env=halfcheetah --describe

      rlx config algo=ppo seed=7 | grep seed

      rlx config algo=ppo --json | jq '.values["algo.clip"]'
    """
    from rlx.config.compose import Composer
    from rlx.config.documentation import key_rows
    from rlx.config.saved import typed_value
    from rlx.render.tables import terminal

    composed = Composer(config_dir).compose(overrides or [])
    rows = key_rows(composed)
    if as_json:
        values = {row.key: {k: v for k, v in asdict(row).items() if k != "key"} for row in rows}
        echo(json.dumps({"choices": composed.choices, "values": values}))
        return
    console = terminal()
    recipe = composed.choices["recipe"]
    console.print(f"recipe: {f'conf/recipe/{recipe}.yaml' if recipe else 'none for this pair, so these are the defaults'}", style="dim")
    columns = max(len(row.key) for row in rows) + 2, min(24, max(len(typed_value(row.value)) for row in rows)) + 2
    titles = {"algo": f"algo={composed.choices['algo']}", "env": f"env={composed.choices['env']}"}
    if composed.choices["env"] != composed.config.env.id:
        titles["env"] += f" ({composed.config.env.id})"
    previous = None
    for row in rows:
        if row.key in ("algo.name", "env.id"):  # shown in the titles: these keys are not set by themselves
            continue
        group = row.key.partition(".")[0]
        if group != previous:
            console.print()
            if group in titles:
                console.print(titles[group], style="bold")
        previous = group
        _print_key(console, columns, row, describe=describe)
    if console.is_terminal and not describe:
        console.print("\nSet any of them: rlx train KEY=VALUE …   What they mean: rlx config --describe", style="dim")


def _print_key(console: Console, columns: tuple[int, int], row: KeyRow, *, describe: bool) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from rlx.config.saved import typed_value

    line = Text(row.key.ljust(columns[0]), style="bold" if describe and row.doc else "")
    line.append(typed_value(row.value).ljust(columns[1]), style="dim" if row.unused_unless else "cyan")
    line.append(row.source, style="dim" if row.source == "default" else "green")
    if row.derived is not None:
        line.append(f", {row.derived:,} for this budget", style="dim")
    if row.unused_unless:
        line.append(", unused", style="dim")
    console.print(line, soft_wrap=True)
    if describe and row.doc:
        doc = row.doc + (f" Unused unless {row.unused_unless}." if row.unused_unless else "")
        console.print(Padding(Text(doc, style="dim"), (0, 0, 0, 4), expand=False))


def algos(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False) -> None:
    """List the algorithms.

    Examples:

      rlx algos

      rlx config algo=a2c --describe
    """
    from rlx.config.available import algorithms
    from rlx.render.tables import make_table, terminal

    rows = algorithms()
    if as_json:
        print_json(map(asdict, rows))
        return
    table = make_table("algo", "what it is", "for", "settings")
    for row in rows:
        table.add_row(row.name, row.summary, row.suits, str(row.settings))
    console = terminal()
    console.print(table)
    console.print("\nTrain one:      rlx train algo=ppo env=cartpole, rlx train algo=alphazero env=connect_four", style="dim")
    console.print("Its settings:   rlx config algo=ppo --describe", style="dim")


def envs(
    pattern: Annotated[
        str | None, typer.Argument(help="Show only names with this in them, and search gymnasium's too.", autocompletion=complete_envs)
    ] = None,
    config_dir: Annotated[Path | None, typer.Option(help="A directory of your own YAML groups, searched before conf/.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """List the environments that have a short name; any other gymnasium id works as well.

    Examples:

      rlx envs

      rlx envs walker

      rlx train env=my_module:MyEnv-v0   # an environment that `import my_module` registers
    """
    from rlx.config.available import environments
    from rlx.config.compose import Composer
    from rlx.render.tables import make_table, terminal

    rows = environments(Composer(config_dir), pattern or "")
    if as_json:
        print_json(map(asdict, rows))
        return
    table = make_table("env", "gymnasium id", "recipes for", "native", "needs")
    for row in rows:
        table.add_row(row.name, row.id if row.id != row.name else "", ", ".join(row.recipes) or "–", "native" if row.native else "",
                      row.missing or "")  # fmt: skip
    console = terminal()
    console.print(table)
    advice = "Older versions are not shown." if pattern else "Any other gymnasium id works too: rlx envs PATTERN searches them."
    ready = max(rows, key=lambda row: (not row.missing, len(row.recipes))).name
    console.print(f"\n{advice}\nTrain on one: rlx train env={ready}", style="dim")
