"""Allowed imports between packages, checked in the source, and heavy modules that commands must not import, checked at run time."""

from __future__ import annotations

import ast
import functools
import graphlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import rlx

PACKAGE = Path(rlx.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {f"rlx.{p.relative_to(PACKAGE).with_suffix('').as_posix().replace('/', '.')}".removesuffix(".__init__"): p for p in FILES}
MAX_LINES = 450
COMMON = ("rlx.spaces", "rlx.types", "rlx.errors", "rlx.tree_ops")
"""The contracts, the errors and trees of arrays: open to every package."""


@functools.cache
def source(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def imports(module: str) -> set[str]:
    """Every module that a file imports, anywhere in it, also only for its types."""
    return set(_imports(ast.walk(source(module))))


def runtime_imports(module: str) -> set[str]:
    """Every module that a file imports when it runs, also inside functions; imports under `if TYPE_CHECKING` are left out."""
    return set(_imports(_at_run_time(source(module))))


def _at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _at_run_time(node)


def _imports(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else str(node.module)


def inside(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == p or name.startswith(f"{p}.") for p in packages)


def own_imports(module: str) -> set[str]:
    return {name for name in imports(module) if inside(name, ("rlx",))}


def foreign_imports(module: str) -> set[str]:
    return {name.partition(".")[0] for name in imports(module)} - {"rlx"} - sys.stdlib_module_names


def of_package(name: str) -> list[str]:
    return [m for m in MODULES if inside(m, (name,))]


DATA = ("rlx.replay", "rlx.columns", "rlx.experience", "rlx.transfer")
RULES = {
    "rlx.loop": (*COMMON, "rlx.collect", "rlx.checkpointer", "rlx.clock", "rlx.metrics", "rlx.rng", "rlx.track.logger",
                 "rlx.distributed"),
    "rlx.algos": (
        *COMMON, "rlx.ops", "rlx.nn", "rlx.models", "rlx.planning", *DATA, "rlx.memory", "rlx.action_range", "rlx.off_policy",
        "rlx.imagination", "rlx.config.algos", "rlx.distributed", "rlx.symmetry",
    ),
    "rlx.models": (*COMMON, "rlx.ops", "rlx.nn", "rlx.models", *DATA),
    "rlx.planning": (*COMMON, "rlx.ops", "rlx.nn", "rlx.models", "rlx.planning", "rlx.transfer"),
    "rlx.nn": (*COMMON, "rlx.ops", "rlx.nn", "rlx.compiled_code", "rlx.kernel_memory", "rlx.transfer", "rlx.distributed"),
    "rlx.envs": (*COMMON, "rlx.envs", "rlx.compiled_code", "rlx.kernel_memory", "rlx.extras", "rlx.files", "rlx.user_code",
                 "rlx.symmetry"),
    "rlx.config.algos": ("rlx.errors", "rlx.config.algos", "rlx.config.setting"),
    "rlx.track": (*COMMON, "rlx.clock", "rlx.files", "rlx.metrics", "rlx.text", "rlx.track", "rlx.store.record"),
    "rlx.checkpoint": (*COMMON, "rlx.files", "rlx.segments", "rlx.serialize"),
    "rlx.checkpointer": (*COMMON, "rlx.files", "rlx.checkpoint", "rlx.segments", "rlx.serialize", "rlx.distributed"),
    "rlx.serialize": (*COMMON, "rlx.appended"),
    "rlx.segments": (*COMMON, "rlx.files", "rlx.appended"),
    "rlx.appended": (),
    "rlx.collect": (*COMMON, "rlx.transfer", "rlx.distributed", "rlx.shares"),
    "rlx.shares": (),
    "rlx.transfer": COMMON,
    "rlx.compiled_code": ("rlx.errors",),
    "rlx.kernel_memory": (),
    "rlx.replay": (*COMMON, "rlx.appended", "rlx.columns", "rlx.priorities"),
    "rlx.priorities": (),
    "rlx.columns": (*COMMON, "rlx.appended"),
    "rlx.stats": (*COMMON, "rlx.stats", "rlx.config", "rlx.store", "rlx.files"),
    "rlx.store": (*COMMON, "rlx.store", "rlx.config", "rlx.checkpoint", "rlx.segments", "rlx.files", "rlx.text", "rlx.trust"),
    "rlx.config": (*COMMON, "rlx.config", "rlx.envs", "rlx.extras", "rlx.files", "rlx.trust", "rlx.user_code"),
    "rlx.trust": (*COMMON, "rlx.files", "rlx.config.schema"),
    "rlx.render": (*COMMON, "rlx.render", "rlx.config", "rlx.envs", "rlx.evaluation", "rlx.files", "rlx.stats", "rlx.store", "rlx.sweep",
                   "rlx.text", "rlx.track"),
    "rlx.types": ("rlx.tree_ops", "rlx.bodies", "rlx.distributed", "rlx.symmetry"),
    "rlx.distributed": ("rlx.errors", "rlx.launcher", "rlx.shared_sums"),
    "rlx.shared_sums": (),
    "rlx.launcher": ("rlx.errors",),
    "rlx.bodies": (),
    "rlx.symmetry": (),
    "rlx.spaces": (),
    "rlx.tree_ops": (),
    "rlx.errors": (),
    "rlx.ops": (),
}  # fmt: skip
"""What of rlx a package may import; a package that does not exist yet is held to its rule when it does."""

FOREIGN = {
    "wandb": ("rlx.track.wandb", "rlx.track.wandb_upload"),
    "tensorboard": ("rlx.track.tensorboard",),
    "hydra": ("rlx.config", "rlx.sweep"),
    "omegaconf": ("rlx.config", "rlx.sweep"),
    "optuna": ("rlx.sweep",),
    "ray": ("rlx.sweep.executors.ray",),
    "submitit": ("rlx.sweep.executors.slurm",),
    "matplotlib": ("rlx.render",),
    "typer": ("rlx.cli",),
    "rich": ("rlx.cli", "rlx.render", "rlx.track.console"),
}
"""Where a library may appear."""


@pytest.mark.parametrize("package", RULES)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    broken = {m: bad for m in of_package(package) if (bad := {n for n in own_imports(m) if not inside(n, RULES[package])})}
    assert broken == {}


@pytest.mark.parametrize("library", FOREIGN)
def test_a_library_appears_only_where_it_may(library: str) -> None:
    assert [m for m in MODULES if library in foreign_imports(m) and not inside(m, FOREIGN[library])] == []


def test_ops_are_torch_and_nothing_else() -> None:
    assert foreign_imports("rlx.ops") == {"torch"}


def test_environments_do_without_torch_but_for_types() -> None:
    assert [m for m in of_package("rlx.envs") if "torch" in foreign_imports(m)] == []


def test_no_algorithm_imports_another() -> None:
    for module in of_package("rlx.algos"):
        assert own_imports(module) & set(of_package("rlx.algos")) == set(), module


def test_only_the_composition_root_and_the_commands_know_every_package() -> None:
    knows_all = {
        m for m in MODULES if "rlx.config.algo_registry" in own_imports(m) and any(inside(n, ("rlx.envs",)) for n in own_imports(m))
    }
    assert {m for m in knows_all if not inside(m, ("rlx.cli", "rlx.config"))} == {"rlx.build"}


def test_the_rules_find_what_they_forbid() -> None:
    tree = ast.parse("def f():\n    from rlx import ops\n    from rlx.algos.ppo import PPO\n    import torch.nn")
    assert set(_imports(ast.walk(tree))) == {"rlx.ops", "rlx.algos.ppo", "torch.nn"}


def test_no_two_files_have_one_name() -> None:
    names = Counter(path.name for path in FILES if path.name != "__init__.py")
    assert [name for name, number in names.items() if number > 1] == []


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other_in_a_circle_not_even_inside_functions() -> None:
    assert find_circle({module: (runtime_imports(module) & set(MODULES)) - {module} for module in MODULES}) == []


def package_of(module: str) -> str:
    """The package or module right below rlx that a module belongs to."""
    return ".".join(module.split(".")[:2])


def test_no_packages_import_each_other_in_a_circle_not_even_inside_functions() -> None:
    graph: dict[str, set[str]] = {}
    for module in set(MODULES) - {"rlx"}:
        package = package_of(module)
        graph.setdefault(package, set()).update({package_of(n) for n in runtime_imports(module) & set(MODULES)} - {package, "rlx"})
    assert find_circle(graph) == []


def test_a_circle_would_be_found() -> None:
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) != []
    tree = ast.parse("if TYPE_CHECKING:\n    from rlx import ops\ndef f():\n    from rlx import types")
    assert set(_imports(_at_run_time(tree))) == {"rlx.types"}


PRINTING = ("rlx.cli", "rlx.render", "rlx.track.console", "rlx.sweep.executors.worker")
"""Who may write to the terminal. A worker of a sweep has the run's log.txt as its standard output."""


def prints(tree: ast.AST) -> bool:
    """Whether code calls print or writes to the standard streams."""
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return any(call == "print" or call.startswith(("sys.stdout.write", "sys.stderr.write", "traceback.print_")) for call in calls)


def test_only_the_cli_and_renderers_print() -> None:
    assert [m for m in MODULES if prints(source(m)) and not inside(m, PRINTING)] == []


def test_only_the_entry_point_imports_the_cli() -> None:
    assert [m for m in MODULES if any(inside(n, ("rlx.cli",)) for n in own_imports(m)) and not inside(m, ("rlx.cli", "rlx.__main__"))] == []


def test_the_cli_parses_calls_and_prints_in_few_lines() -> None:
    assert sum(len(path.read_text().splitlines()) for path in (PACKAGE / "cli").glob("*.py")) <= 2500


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) < MAX_LINES


# At run time


def loaded(code: str, *names: str, cwd: Path) -> tuple[str, set[str]]:
    """Run code in a fresh interpreter; returns what it said and which of the modules are loaded at its end."""
    code = f"import sys\ntry:\n    {code}\nfinally:\n    print('\\nloaded', *[n for n in {names} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, timeout=60)
    *said, last = done.stdout.splitlines()
    assert last.startswith("loaded"), done.stderr
    return "\n".join(said) + done.stderr, set(last.split()[1:])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--help", "Start with:"),
        ("--version", rlx.__version__),
        ("train --help", "Train an algorithm on an environment"),
        ("config", "algo.learning_rate"),
        ("algos", "ppo"),
        ("train algo.learnin_rate=1", "did you mean algo.learning_rate?"),
        ("train algo=ppo algo.clip=7", "algo.clip must be"),
        ("sweep algo.learnin_rate=1,2", "did you mean algo.learning_rate?"),
        ("sweep algo.clip=0.1,0.2 --seeds 2 --dry-run", "2 settings"),
    ],
)
def test_a_command_that_does_not_train_imports_neither_torch_nor_wandb(arguments: str, said: str, tmp_path: Path) -> None:
    call = f"sys.argv = ['rlx', *{arguments.split()}]; from rlx.cli.main import main; main()"
    out, found = loaded(call, "torch", "wandb", cwd=tmp_path)
    assert said in out
    assert found == set()


def test_help_imports_no_hydra_either(tmp_path: Path) -> None:
    call = "sys.argv = ['rlx', '--help']; from rlx.cli.main import main; main()"
    assert loaded(call, "torch", "wandb", "hydra", "omegaconf", "gymnasium", "numpy", cwd=tmp_path)[1] == set()


def test_a_list_of_runs_takes_neither_hydra_nor_numpy(tmp_path: Path) -> None:
    call = "sys.argv = ['rlx', 'ls']; from rlx.cli.main import main; main()"
    out, found = loaded(call, "torch", "hydra", "numpy", "gymnasium", cwd=tmp_path)
    assert "There are no runs" in out
    assert found == set()


def test_environments_and_their_workers_leave_torch_out(tmp_path: Path) -> None:
    assert loaded("import rlx.envs.registry, rlx.envs.workers", "torch", cwd=tmp_path)[1] == set()


def test_looking_at_checkpoints_takes_neither_torch_nor_numpy(tmp_path: Path) -> None:
    call = "from pathlib import Path; from rlx.checkpoint import find_checkpoints; find_checkpoints(Path())"
    assert loaded(call, "torch", "numpy", cwd=tmp_path)[1] == set()
