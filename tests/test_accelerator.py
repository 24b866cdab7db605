"""Every algorithm on an accelerator: trained, resumed, moved and used, and how often it makes the device wait."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerated import CASES, check_the_rest, check_training
from zygote import in_child

from rlx.config.algo_registry import ALGORITHMS

# Most waits of each algorithm's short run while collecting and updating, as `check_training` counts them; searches of four simulations
# wait twice for each simulation and for the root.
WAITS = {
    "reinforce": (3, 13), "a2c": (3, 5), "ppo": (3, 0.5), "pets": (4, 4), "muzero": (16, 25), "alphazero": (14, 6), "alphago": (13, 6),
    "i2a": (3, 6),
}  # fmt: skip


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_algorithm_trains_resumes_and_moves_between_devices_and_seldom_waits(algo: str, tmp_path: Path) -> None:
    assert algo in CASES, f"accelerated.CASES has no short run of {algo}"
    assert algo in WAITS, f"WAITS has no bound for {algo}"
    collecting, updating = in_child(lambda: check_training(algo, tmp_path), preload=("accelerated",))
    assert collecting <= WAITS[algo][0]
    assert updating <= WAITS[algo][1]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_algorithm_in_all_its_settings_can_be_used_on_either_device(case: str, tmp_path: Path) -> None:
    def check() -> None:
        check_training(case, tmp_path)
        check_the_rest(case, tmp_path)

    in_child(check, preload=("accelerated",))
