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
    "dqn": (3, 9), "dqn-all": (3, 3),
    "reinforce": (3, 13), "a2c": (3, 5), "ppo": (3, 0.5), "pets": (4, 4), "muzero": (16, 25), "alphazero": (14, 6), "alphago": (13, 6),
    "i2a": (3, 6), "ppo-images": (3, 1), "ppo-lstm": (3, 3), "ppo-gru-masked": (4, 3), "sac": (3, 3), "td3": (3, 3),
    "sac-steve": (3, 14), "sac-mbpo": (3, 9),
    "pqn": (3, 1), "pqn-gru-masked": (4, 3),
    "ibp": (3, 3), "ibp-corrupted": (6, 3),
}  # fmt: skip


@pytest.mark.parametrize("case", WAITS)
def test_algorithm_trains_resumes_and_moves_between_devices_and_seldom_waits(case: str, tmp_path: Path) -> None:
    collecting, updating = in_child(lambda: check_training(case, tmp_path), preload=("accelerated",))
    assert collecting <= WAITS[case][0]
    assert updating <= WAITS[case][1]


def test_every_algorithm_has_a_bound_on_its_waits() -> None:
    assert set(ALGORITHMS) <= set(WAITS) <= set(CASES)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_algorithm_in_all_its_settings_can_be_used_on_either_device(case: str, tmp_path: Path) -> None:
    def check() -> None:
        check_training(case, tmp_path)
        check_the_rest(case, tmp_path)

    in_child(check, preload=("accelerated",))
