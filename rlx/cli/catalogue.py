"""rlx config, rlx algos, rlx envs: what can be set and what there is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlx.cli.complete import complete_envs, complete_overrides
from rlx.cli.options import echo

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from rlx.config.compose import Composer

EXTRA_MODULES = {"mujoco": "mujoco", "box2d": "Box2D", "atari": "ale_py", "video": "imageio", "ray": "ray", "slurm": "submitit"}
"""For every extra of rlx, the module that is there once it is installed."""


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
    columns = [max(len(k) for k in values) + 2, min(24, max(len(as_typed(v)) for v in values.values())) + 2]
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

    row = Text(key.ljust(columns[0]), style="bold" if doc else "")
    row.append(as_typed(value).ljust(columns[1]), style="dim" if unused_unless else "cyan")
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


def missing(extra: str | None) -> str | None:
    """What to type to get an extra of rlx, or None if nothing is missing."""
    from importlib.util import find_spec

    return None if extra is None or find_spec(EXTRA_MODULES[extra]) else f"pip install 'rlx[{extra}]'"


def _recipes(composer: Composer, env: str) -> list[str]:
    """Algorithms that have a recipe for an environment."""
    from rlx.algos import ALGORITHMS

    return [algo for algo in ALGORITHMS if f"{algo}_{env}" in composer.options("recipe")]


def _gymnasium_ids(word: str) -> dict[str, str | None]:
    """Newest version of every registered id with `word` in it, and what to install for it."""
    from importlib.util import find_spec

    import gymnasium

    from rlx.envs.registry import extra_for

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


def key_docs(algo: str, *, group: str | None = None) -> dict[str, str]:
    """The sentence below each field of the schema by dotted key, for one algorithm; only the keys of `group` if one is named.

    Keys that are not set by themselves, env.id and algo.name, are left out.
    """
    import dataclasses

    from rlx.algos import ALGORITHMS
    from rlx.config import schema

    docs: dict[str, str] = {}
    classes = {"algo": ALGORITHMS[algo].config, "env": schema.EnvConfig, "loop": schema.LoopConfig,
               "log": schema.LogConfig, "runtime": schema.RuntimeConfig, "": schema.RunConfig}  # fmt: skip
    for name, class_ in classes.items():
        if group not in (None, name):
            continue
        written = _field_docs(class_)
        prefix = f"{name}." if name else ""
        docs |= {f"{prefix}{f.name}": written.get(f.name, "") for f in dataclasses.fields(class_) if prefix or f.name not in classes}
    return {key: doc for key, doc in docs.items() if key not in ("algo.name", "env.id")}


def _field_docs(class_: type) -> dict[str, str]:
    """The string literal below each annotated field, of a dataclass and of those it inherits from."""
    import ast
    import inspect
    import itertools
    import textwrap

    docs: dict[str, str] = {}
    for base in reversed(class_.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for field, below in itertools.pairwise(body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    docs[name] = " ".join(text.split())
    return docs


def as_typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)


def print_json(rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        echo(json.dumps(row))


def terminal() -> Console:
    """Standard output: as wide as the terminal, or as wide as it needs to be for a pipe, which gets no colour."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    return guarded(console if console.is_terminal else Console(highlight=False, markup=False, emoji=False, width=1000))


def guarded(console: Console) -> Console:
    """The console, which from now on shows control characters of what it prints instead of obeying them."""
    from rich.console import ConsoleOptions, RenderableType, RenderHook, RenderResult
    from rich.measure import Measurement
    from rich.segment import Segment

    from rlx.text import printable

    class Guarded:
        def __init__(self, shown: RenderableType) -> None:
            self._shown = shown

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            for text, style, control in console.render(self._shown, options):
                yield Segment(text if control else printable(text, keep="\n\t"), style, control)

        def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
            return Measurement.get(console, options, self._shown)

    class Hook(RenderHook):
        def process_renderables(self, renderables: list[Any]) -> list[Any]:
            return [Guarded(r) for r in renderables]

    console.push_render_hook(Hook())
    return console


def make_table(*headers: str) -> Table:
    """A table without borders."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", collapse_padding=True)
    for header in headers:
        table.add_column(header, overflow="fold")
    return table
