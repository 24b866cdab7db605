"""What a run says about its network, and the precision of convolutions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import rlx.run
from rlx.nn.network_report import observation_line
from rlx.nn.precision import bfloat16_instructions
from rlx.render.network_view import network_rows

Command = Callable[[str], tuple[int, str, str]]
PICTURES = ("algo=ppo env=sokoban env.kwargs.observation=rgb env.num_envs=1 algo.rollout_length=2 algo.num_epochs=1 algo.num_minibatches=1 "
            "algo.hidden_sizes=[8] loop.total_env_steps=2 loop.eval_every=0 log.wandb=disabled log.console=plain")  # fmt: skip


def test_a_run_says_which_network_its_observation_got_when_it_starts_and_later(run_command: Command, here: Path) -> None:
    code, out, err = run_command(f"train {PICTURES} runtime.precision=bf16 --name pictures")
    assert code == 0, err
    assert "obs: 56x56x3 uint8 -> nature (371 k parameters)" in out + err
    assert "flattened" not in out + err
    shown = run_command("show pictures")[1]
    assert "an image of at least 36 pixels a side" in shown
    assert "371,360" in shown
    report = json.loads(run_command("show pictures --json")[1])["meta"]["network"]
    assert report["bfloat16"]
    assert report["num_parameters"] == sum(part["num_parameters"] for part in report["parts"])
    assert [part["part"] for part in report["parts"]] == ["observation", "policy", "value"]


def test_a_dry_run_says_it_too(run_command: Command) -> None:
    code, out, err = run_command(f"train {PICTURES} algo.encoder=impala algo.memory=gru algo.shared_network=true --dry-run")
    assert code == 0, err
    notes = [line.split()[1:] for line in out.splitlines() if line.startswith("# ")][1:-1]  # recipe and cadences
    assert [words[0] for words in notes] == ["observation", "memory", "policy"]
    assert notes[0][1:4] == ["56x56x3", "uint8", "impala"]
    assert notes[1][1:3] == ["256", "gru"]


@pytest.mark.parametrize("words", ["algo=ppo env=cartpole", "algo=ppo env=sokoban", "algo=muzero env=cartpole"])
def test_bf16_is_refused_where_nothing_is_computed_in_it(words: str, run_command: Command) -> None:
    code, _, err = run_command(f"train {words} recipe=null runtime.precision=bf16 --dry-run")
    assert code == 2
    assert "runtime.precision=bf16 has no effect" in err


def test_the_line_names_the_parts_of_a_tree_and_says_nothing_of_one_vector() -> None:
    def part(path: str, sees: str, network: str, count: int) -> dict[str, object]:
        return {"part": f"observation{path}", "sees": sees, "network": network, "num_outputs": 1, "num_parameters": count, "reason": ""}

    leaves = [part("['image']", "84x84x4 uint8", "nature", 1_684_128), part("['a'][0]", "Discrete(4)", "one-hot", 0)]
    assert observation_line({"parts": leaves}) == "obs: image 84x84x4 uint8 -> nature (1.68 M parameters), a.0 Discrete(4) -> one-hot"
    assert observation_line({"parts": [part("", "Box(4)", "vector", 0)]}) is None


@pytest.mark.parametrize("report", [None, 3, {}, {"parts": "x"}, {"parts": [1]}])
def test_a_report_that_is_none_has_no_rows(report: object) -> None:
    assert network_rows(report) == []


def test_a_run_in_bfloat16_says_so_where_it_goes_on_with_other_instructions(
    run_command: Command, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rlx.run, "bfloat16_instructions", lambda device: "avx512_bf16")
    assert run_command(f"train {PICTURES} runtime.precision=bf16 --name moved")[0] == 0
    assert "goes on with" not in "".join(run_command("resume moved loop.total_env_steps=4")[1:])
    monkeypatch.setattr(rlx.run, "bfloat16_instructions", lambda device: None)
    said = "".join(run_command("resume moved loop.total_env_steps=6")[1:])
    assert "warning: bfloat16 was computed by avx512_bf16, and here by emulation, which is slow" in said


@pytest.mark.parametrize(
    ("text", "found"),
    [("flags\t\t: fpu avx512_bf16 amx_bf16\n", "amx_bf16"), ("flags : avx512_bf16", "avx512_bf16"), ("Features : fp bf16", "bf16"),
     ("flags : avx2", None)],
)  # fmt: skip
def test_instructions_for_bfloat16_are_read_from_cpuinfo(text: str, found: str | None, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert bfloat16_instructions(torch.device("cpu"), tmp_path / "cpuinfo") == found


def test_where_there_is_no_cpuinfo_bfloat16_counts_as_emulated(tmp_path: Path) -> None:
    assert bfloat16_instructions(torch.device("cpu"), tmp_path / "none") is None
