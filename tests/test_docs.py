"""The documentation's commands can be typed, its keys exist, its links lead somewhere, and its tutorial works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from launch import run_main

from rlx.config.compose import Composer, leaf_keys
from rlx.envs.families import needs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts and page.name not in ("commands.md", "settings.md", "metrics.md")]


def commands() -> list[str]:
    """Every `rlx train` and `rlx sweep` in a shell block, without its comment, each once."""
    found: dict[str, None] = {}
    for page in PAGES:
        if page.is_relative_to(ROOT / "docs/results"):  # what was typed at the commits that these name
            continue
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if re.match(r"rlx (train|sweep) .*=", line) and not re.search(r"my_|corridor|--from|boxoban|…|--resume|torchrun", line):
                    found[shlex.join(shlex.split(line, comments=True))] = None
    return list(found)


composer = Composer()


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_documentation_can_be_typed(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    verb, *words = shlex.split(command.removeprefix("rlx "))
    if verb == "train":
        if absent := next((needs(word.removeprefix("env=")) for word in words if word.startswith("env=")), None):
            pytest.skip(f"its environment is not installed: {absent}")
        composer.compose([word for word in words if re.match(r"[\w.]+=", word)])
    else:
        assert run_main(f"{shlex.join([verb, *words])} --dry-run", monkeypatch) == 0, capsys.readouterr().err


def all_keys() -> set[str]:
    """Every key of every algorithm, on an environment that suits it."""
    keys = set[str]()
    for overrides in (["algo=ppo"], ["algo=reinforce"], ["algo=a2c"], ["algo=i2a", "env=sokoban"],
                      *([f"algo={name}", "env=pendulum"] for name in ("pets", "sac", "td3")), ["algo=ibp", "env=spaceship"],
                      ["algo=dqn", "env=cartpole"], ["algo=pqn", "env=cartpole"],
                      *([f"algo={name}", "env=connect_four"] for name in ("alphazero", "alphago", "muzero"))):  # fmt: skip
        keys |= set(leaf_keys(composer.compose([*overrides, "recipe=null"]).config))
    return keys


def test_every_setting_that_the_documentation_names_exists() -> None:
    keys = all_keys()
    for page in PAGES:
        if page.is_relative_to(ROOT / "docs/results") or page.name == "architecture.md":  # which names code by its path
            continue
        named = set(re.findall(r"`((?:algo|loop|runtime|log)\.[a-z_.]+[a-z_])[`=]", page.read_text())) - {"log.txt"}
        groups = {key.rpartition(".")[0] for key in keys}
        assert {key for key in named if key not in keys | groups} == set(), page


def test_every_link_between_pages_leads_to_a_page_and_a_heading() -> None:
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            to = (page.parent / path).resolve() if path else page
            generated = to.parent == ROOT / "docs/reference"
            assert generated or to.exists(), f"{page.name}: {target}"
            if anchor:
                slugs = {
                    re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)$", to.read_text(), re.M)
                }
                assert anchor in slugs, f"{page.name}: {target}"


def test_the_index_lists_every_page() -> None:
    listed = set(re.findall(r"^(?:[\w-]+/)*[\w-]+$", (ROOT / "docs/index.md").read_text(), re.M))
    pages = {page.relative_to(ROOT / "docs").with_suffix("").as_posix() for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert pages - listed - {"index"} == set()
