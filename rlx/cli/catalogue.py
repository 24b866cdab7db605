"""rlx config, rlx algos, rlx envs: what can be set and what there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlx.cli.complete import complete_envs, complete_overrides
from rlx.cli.options import echo, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from rlx.config.compose import Composer


def config(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="What differs from the defaults.", autocompletion=complete_overrides),
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
    from rlx.config.compose import Composer, leaf_keys
    from rlx.config.documentation import key_docs, typed_value
    from rlx.render.tables import terminal

    composed = Composer(config_dir).compose(overrides or [])
    values, unused = leaf_keys(composed.config), {f"algo.{k}": setting for k, setting in composed.config.algo.unused_keys().items()}
    docs = key_docs(composed.config.algo.name)
    if as_json:
        echo(json.dumps({
            "choices": composed.choices,
            "values": {k: {"value": v, "source": composed.sources.get(k, "default"), "unused_unless": unused.get(k), "doc": docs.get(k)}
                       for k, v in values.items()},
        }))  # fmt: skip
        return
    console = terminal()
    recipe = composed.choices["recipe"]
    console.print(f"recipe: {f'conf/recipe/{recipe}.yaml' if recipe else 'none for this pair, so these are the defaults'}", style="dim")
    columns = [max(len(k) for k in values) + 2, min(24, max(len(typed_value(v)) for v in values.values())) + 2]
    titles = {"algo": f"algo={composed.choices['algo']}", "env": f"env={composed.choices['env']}"}
    if composed.choices["env"] != composed.config.env.id:
        titles["env"] += f" ({composed.config.env.id})"
    previous = None
    for key, value in values.items():
        if key in ("algo.name", "env.id"):  # in the titles, since this is not how they are set
            continue
        group = key.partition(".")[0]
        if group != previous:
            console.print()
            if group in titles:
                console.print(titles[group], style="bold")
        previous = group
        _print_key(console, columns, key, value, composed.sources.get(key, "default"), unused.get(key), docs.get(key) if describe else None)
    if console.is_terminal and not describe:
        console.print("\nSet any of them: rlx train KEY=VALUE …   What they mean: rlx config --describe", style="dim")


def _print_key(console: Console, columns: list[int], key: str, value: Any, source: str, unused_unless: str | None, doc: str | None) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from rlx.config.documentation import typed_value

    row = Text(key.ljust(columns[0]), style="bold" if doc else "")
    row.append(typed_value(value).ljust(columns[1]), style="dim" if unused_unless else "cyan")
    row.append(source, style="dim" if source == "default" else "green")
    if unused_unless:
        row.append(", unused", style="dim")
    console.print(row, soft_wrap=True)
    if doc and unused_unless:
        doc += f" Unused unless algo.{unused_unless}."
    if doc:
        console.print(Padding(Text(doc, style="dim"), (0, 0, 0, 4), expand=False))


def algos(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False) -> None:
    """List the algorithms.

    Examples:

      rlx algos

      rlx config algo=a2c --describe
    """
    from rlx.algos import ALGORITHMS
    from rlx.config.documentation import key_docs
    from rlx.render.tables import make_table, terminal

    rows = [
        {"name": name, "summary": info.summary, "for": info.config.suits, "settings": len(key_docs(name, group="algo"))}
        for name, info in ALGORITHMS.items()
    ]
    if as_json:
        print_json(rows)
        return
    table = make_table("algo", "what it is", "for", "settings")
    for row in rows:
        table.add_row(*map(str, row.values()))
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
    from rlx.config.compose import Composer
    from rlx.envs.registry import NATIVE, extra_for
    from rlx.errors import ConfigError
    from rlx.extras import missing
    from rlx.render.tables import make_table, terminal

    composer, word = Composer(config_dir), (pattern or "").lower()
    short = composer.env_ids()
    rows: list[dict[str, Any]] = [
        {"name": name, "id": id_, "recipes": _recipes(composer, name), "native": id_ in NATIVE, "missing": missing(extra_for(id_))}
        for name, id_ in short.items()
        if word in name.lower() or word in id_.lower()
    ]
    if word:
        rows += [
            {"name": id_, "id": id_, "recipes": [], "native": id_ in NATIVE, "missing": needs}
            for id_, needs in _gymnasium_ids(word).items()
            if id_ not in short.values()
        ]
    if not rows:
        raise ConfigError(
            f"{pattern}: no environment has that in its name; `rlx envs` lists those with a short name, "
            "env=my_module:MyEnv-v0 imports my_module first"
        )
    if as_json:
        print_json(rows)
        return
    table = make_table("env", "gymnasium id", "recipes for", "native", "needs")
    for row in rows:
        table.add_row(row["name"], row["id"] if row["id"] != row["name"] else "", ", ".join(row["recipes"]) or "–",
                      "native" if row["native"] else "", row["missing"] or "")  # fmt: skip
    console = terminal()
    console.print(table)
    advice = "Older versions are not shown." if word else "Any other gymnasium id works too: rlx envs PATTERN searches them."
    ready = max(rows, key=lambda row: (not row["missing"], len(row["recipes"])))["name"]
    console.print(f"\n{advice}\nTrain on one: rlx train env={ready}", style="dim")


def _recipes(composer: Composer, env: str) -> list[str]:
    """Algorithms that have a recipe for an environment."""
    from rlx.algos import ALGORITHMS

    return [algo for algo in ALGORITHMS if f"{algo}_{env}" in composer.options("recipe")]


def _gymnasium_ids(word: str) -> dict[str, str | None]:
    """Newest version of every registered id with `word` in it, and what to install for it."""
    from importlib.util import find_spec

    import gymnasium

    from rlx.envs.registry import extra_for
    from rlx.extras import missing

    if find_spec("ale_py") and word.startswith("ale"):
        import ale_py

        gymnasium.register_envs(ale_py)
    newest: dict[tuple[str | None, str], Any] = {}
    for spec in gymnasium.registry.values():
        if isinstance(spec.entry_point, str) and word in spec.id.lower():  # a function is a stub that only raises
            key = (spec.namespace, spec.name)
            newest[key] = max(newest.get(key, spec), spec, key=lambda s: s.version or 0)
    needs_jax = None if find_spec("jax") else "pip install jax"
    ids = {s.id: needs_jax if s.namespace in ("phys2d", "tabular") else missing(extra_for(s.id)) for s in newest.values()}
    if word.startswith("ale") and not find_spec("ale_py"):
        ids["ALE/Pong-v5 and all of Atari"] = missing("atari")
    return dict(sorted(ids.items()))
