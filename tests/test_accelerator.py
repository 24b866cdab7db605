"""Every algorithm on an accelerator: trained, resumed, moved and used, and how often it makes the device wait."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerated import CASES, check_the_rest, check_training, in_child

from rlx.algos import ALGORITHMS


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_algorithm_trains_resumes_and_moves_between_devices(algo: str, tmp_path: Path) -> None:
    assert algo in CASES, f"accelerated.CASES has no short run of {algo}"
    in_child(lambda: check_training(algo, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_algorithm_in_all_its_settings_can_be_used_on_either_device(case: str, tmp_path: Path) -> None:
    def check() -> None:
        check_training(case, tmp_path)
        check_the_rest(case, tmp_path)

    in_child(check)
