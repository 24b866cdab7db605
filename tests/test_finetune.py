"""Runs that start from another run's weights: what they copy, what they refuse, and that they do not need the other run afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_api import settings, trained

import rlx
from rlx.checkpoint import find_checkpoints

Command = Callable[[str], tuple[int, str, str]]


def state(run: rlx.Run, which: int = 0) -> Any:
    return find_checkpoints(run.path / "checkpoints")[0][which].read_algorithm()


def without_time(run: rlx.Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in run.metrics()]


@pytest.mark.parametrize("algo", ["a2c", "reinforce", "ppo"])
def test_a_policy_is_handed_on_between_algorithms_that_share_its_network(algo: str, here: Path, same: Callable[[Any, Any], bool]) -> None:
    source = trained("ppo", "native", "source")
    ours = {"ppo": [], "a2c": ["algo.normalize_observation=true"], "reinforce": ["algo.normalize_observation=true"]}[algo]
    still = settings(algo, "native", "algo.learning_rate=1e-30", "algo.anneal_learning_rate=false", "loop.total_env_steps=30", *ours)
    tuned = rlx.train(still, name="tuned", from_="source@latest")
    weights = {k: v for k, v in state(source)["net"].items() if "normalizer" not in k}
    assert same({k: state(tuned)["net"][k] for k in weights}, weights)
    if algo != "reinforce":  # which waits for an episode to end before it learns
        counts = [state(run)["net"]["encoder.normalizer._extra_state"]["count"].item() for run in (source, tuned)]
        assert counts[0] == 120 < counts[1]  # the normaliser goes on from where it was
        assert state(tuned)["optimizer"]["num_steps"] < state(source)["optimizer"]["num_steps"]
    assert tuned.metrics()[-1]["env_steps"] < 120


def test_the_record_says_what_a_run_started_from(here: Path, run_command: Command) -> None:
    trained("ppo", "native", "source")
    code, out, error = run_command(f"train {' '.join(settings('ppo', 'native'))} --name tuned --from source@120")
    assert (code, "starts from source at 120 env steps: net, reward_scaler/_extra_state" in out) == (0, True), error
    origin = rlx.Run.open("tuned").meta["from"]
    checkpoint = find_checkpoints(here / "runs/source/checkpoints")[0][0]
    assert origin["checkpoint_sha256"] == checkpoint.manifest["files"]["algo.pt"]
    assert (
        f"started from the weights of source at 120 env steps (SHA-256 {origin['checkpoint_sha256'][:12]})" in run_command("show tuned")[1]
    )


def test_a_run_is_resumed_exactly_when_what_it_started_from_is_gone(here: Path) -> None:
    trained("ppo", "native", "source")
    whole = rlx.train(settings("ppo", "native"), name="whole", from_="source")
    fresh = trained("ppo", "native", "fresh")
    killed = rlx.train(settings("ppo", "native"), name="killed", from_="source")
    shutil.rmtree(here / "runs/source")
    shutil.rmtree(killed.path / "checkpoints")  # as if it had been killed before its first checkpoint
    again = killed.resume(["loop.log_every=173"])
    assert without_time(again) == without_time(whole) != without_time(fresh)
    (whole.path / "initial.pt").unlink()
    longer = whole.resume(["loop.total_env_steps=240"])  # from its checkpoint, which has everything
    assert longer.metrics()[-1]["env_steps"] >= 240


def test_weights_that_do_not_fit_are_named(here: Path) -> None:
    source = trained("ppo", "native", "source")
    with pytest.raises(rlx.errors.ConfigError) as error:
        rlx.train(settings("ppo", "gymnasium"), name="tuned", from_=source)
    message = str(error.value)
    assert "net.policy.layers.0.weight is [64, 4] there and [64, 6] here" in message
    assert "Discrete(2)) do not fit algo=ppo here" in message
    assert not (here / "runs/tuned").exists()
    with pytest.raises(rlx.errors.ConfigError, match=r"net.policy.layers.2.weight \[2, 64\] is only there"):
        rlx.train(settings("ppo", "native", "algo.hidden_sizes=[64]"), from_=source)
    with pytest.raises(rlx.errors.ConfigError, match=r"normalizer.*is only there"):
        rlx.train(settings("ppo", "native", "algo.normalize_observation=false"), from_=source)
    with pytest.raises(rlx.errors.ConfigError, match="algo=pets cannot start from weights"):
        rlx.train(settings("pets", "continuous", "loop.total_env_steps=20"), from_=source)
    with pytest.raises(rlx.errors.CheckpointError, match="no such checkpoint"):
        rlx.train(settings("ppo", "native"), from_="source@7")


def test_weights_that_were_changed_afterwards_are_refused(here: Path) -> None:
    trained("ppo", "native", "source")
    tuned = rlx.train(settings("ppo", "native"), name="tuned", from_="source")
    shutil.rmtree(tuned.path / "checkpoints")
    data = bytearray((tuned.path / "initial.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (tuned.path / "initial.pt").write_bytes(data)
    with pytest.raises(rlx.errors.CheckpointError, match="has changed since the run was started"):
        tuned.resume(["loop.log_every=173"])


def test_the_same_command_continues_what_it_started(here: Path) -> None:
    trained("ppo", "native", "source")
    for _ in range(2):
        rlx.train(settings("ppo", "native"), name="tuned", from_="source", auto_resume=True)
    with pytest.raises(rlx.errors.ConfigError, match="--from is source there and None here"):
        rlx.train(settings("ppo", "native"), name="tuned", auto_resume=True)


def test_a_game_player_is_handed_on(here: Path, same: Callable[[Any, Any], bool]) -> None:
    small = ["env.opponent=random", "loop.total_env_steps=9"]
    source = trained("alphazero", "game", "source", *small)
    tuned = trained("alphazero", "game", "x", *small, "seed=3")
    assert not same(state(source)["net"], state(tuned)["net"])
    tuned = rlx.train(settings("alphazero", "game", *small, "seed=3"), name="tuned", from_=source)
    assert same(state(source)["net"], state(tuned)["net"])  # no game has ended yet
