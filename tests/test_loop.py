"""The loop with everything around it faked: the order of calls, and what is saved."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlx.checkpoint import find_checkpoints
from rlx.checkpointer import Checkpointer
from rlx.collect import Episode
from rlx.errors import EnvError, EvaluationError
from rlx.loop import crossed, never_pause, train
from rlx.types import Progress


@pytest.mark.parametrize(
    ("every", "before", "now", "expected"),
    [
        (10, 0, 9, False),
        (10, 9, 10, True),
        (10, 0, 10, True),
        (10, 10, 11, False),
        (10, 10, 20, True),
        (10, 15, 19, False),
        (10, 5, 35, True),  # several multiples at once
        (1, 3, 4, True),
        (0, 0, 100, False),
        (10, 20, 20, False),
    ],
)
def test_crossed_finds_a_multiple_after_before_and_up_to_now(every, before, now, expected):
    assert crossed(every, before, now) is expected


class World:
    """Algorithm, collector, evaluator, logger, checkpointer and signals in one; writes down what the loop asks of it.

    An iteration is 8 env steps and one episode, whose return is the number of the iteration.
    """

    rollout_length, device = 4, torch.device("cpu")

    def __init__(
        self, *, stop_after: int | None = None, save_at: int | None = None, failing: Any = (), stop_in_evaluation: int | None = None
    ) -> None:
        self.tape: list[Any] = []
        self.lines: list[dict[str, float]] = []
        self.whole_lines: list[dict[str, float]] = []
        self.notes: list[str] = []
        self.iteration = 0
        self.stop_after, self.save_at, self.failing, self.stop_in_evaluation = stop_after, save_at, failing, stop_in_evaluation

    # Collector and algorithm
    def reset(self) -> None:
        self.tape.append("reset")

    def collect(self, num_steps: int) -> Any:
        assert num_steps == 4
        self.iteration += 1
        return SimpleNamespace(num_env_steps=8), [Episode(float(self.iteration), 8)]

    def update(self, rollout: Any, progress: Progress) -> dict[str, Any]:
        assert progress.env_steps == 8 * self.iteration  # counted before the update
        assert progress.iteration == self.iteration
        return {"loss/policy": torch.tensor(float(self.iteration))}

    def state_dict(self) -> dict[str, Any]:
        return {"iteration": self.iteration}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.iteration = state["iteration"]

    def evaluate(self, algo: Any, env_steps: int, *, should_stop: Any) -> dict[str, float] | None:
        self.tape.append(("evaluate", env_steps))
        if self.stop_in_evaluation == env_steps:
            self.stop_after = self.iteration
        if should_stop():
            return None
        if env_steps in self.failing:
            raise EvaluationError("broken physics")
        return {"eval/return_mean": float(env_steps)}

    # Logger
    def write(self, line: dict[str, float], progress: Progress) -> None:
        self.tape.append(("eval line" if "eval/return_mean" in line else "line", progress.env_steps))
        self.whole_lines.append(line)
        self.lines.append({"env_steps": progress.env_steps} | {k: v for k, v in line.items() if not k.startswith("time/")})
        assert "time/elapsed_s" in line

    def rewind(self, env_steps: int, *, evaluated: bool) -> None:
        self.tape.append(("rewind", env_steps))
        self.lines = [
            line for line in self.lines if (line["env_steps"], not evaluated and "eval/return_mean" in line) <= (env_steps, False)
        ]

    def note(self, text: str, *, trace: str = "") -> None:
        self.notes.append(text)

    def tick(self, progress: Progress, metrics: Any, clock: Any) -> None:
        assert progress.env_steps == 8 * self.iteration

    def sync(self) -> None:
        self.tape.append("sync")

    # Checkpointer
    def restore(self, state: Any) -> None:
        assert set(state) == {"progress", "algo", "collector", "metrics", "clock", "rng"}

    def wait(self) -> None:
        pass

    def begin_save(self, state: Any, env_steps: int, *, evaluation_due: bool, evaluated: bool, first: Any) -> None:
        first()
        self.tape.append(("save", env_steps))

    def begin_score(self, env_steps: int, score: float, *, first: Any) -> None:
        first()
        self.tape.append(("score", env_steps, score))

    # Signals
    def should_stop(self) -> bool:
        return self.iteration == self.stop_after

    def should_save(self) -> bool:
        return self.iteration == self.save_at

    def run(self, checkpointer: Any = None, should_pause: Any = never_pause, **settings: Any) -> tuple[Progress, bool]:
        defaults = {"total_env_steps": 100, "target_return": None, "log_every": 0, "eval_every": 0, "eval_max_steps": 0,
                    "checkpoint_every": 0}  # fmt: skip
        config = SimpleNamespace(**defaults | settings)
        return train(self, self, self.evaluate, config=config, logger=self, checkpointer=checkpointer or self, signals=self,
                     should_pause=should_pause)  # fmt: skip

    def steps_of(self, event: str) -> list[int]:
        return [e[1] for e in self.tape if e[0] == event]


def test_loop_spends_the_budget_and_says_that_it_is_done():
    world = World()
    progress, done = world.run()
    assert (progress.env_steps, progress.iteration, done) == (104, 13, True)
    assert world.tape == ["reset", ("rewind", 0), ("line", 104), "sync", ("save", 104)]


def test_cadences_follow_env_steps_and_the_end():
    world = World()
    world.run(log_every=30, eval_every=25, checkpoint_every=40)
    assert world.steps_of("line") == [32, 64, 96, 104]
    assert world.steps_of("evaluate") == world.steps_of("eval line") == [32, 56, 80, 104]
    assert set(world.steps_of("save")) >= {40, 80, 104}


def test_an_iteration_is_logged_and_saved_before_it_is_evaluated_and_the_score_follows_its_line():
    world = World()
    world.run(total_env_steps=8, log_every=8, eval_every=8, checkpoint_every=8)
    events = [("line", 8), "sync", ("save", 8), ("evaluate", 8), ("eval line", 8), "sync", ("score", 8, 8.0)]
    assert world.tape == ["reset", ("rewind", 0), *events]


def test_the_end_is_logged_saved_and_evaluated_off_every_cadence():
    world = World()
    world.run(total_env_steps=20, log_every=1000, eval_every=1000, checkpoint_every=1000)
    events = [("line", 24), "sync", ("save", 24), ("evaluate", 24), ("eval line", 24), "sync", ("score", 24, 24.0)]
    assert world.tape == ["reset", ("rewind", 0), *events]


def test_a_line_of_training_and_that_of_its_evaluation_can_be_joined_without_loss():
    world = World()
    world.run(total_env_steps=8, log_every=8, eval_every=8)
    training, evaluation = world.whole_lines
    assert {key for key in training if training[key] != (training | evaluation)[key]} == set()
    assert "time/evaluate_s" in evaluation


def test_evaluation_is_off_at_zero_even_at_the_end():
    world = World()
    world.run(log_every=50)
    assert world.steps_of("evaluate") == []


def test_log_lines_average_over_what_happened_since_the_last():
    world = World()
    world.run(total_env_steps=32, log_every=16)
    assert [(line["episode/return"], line["loss/policy"], line["episode/count"]) for line in world.lines] == [(1.5, 1.5, 2), (3.5, 3.5, 2)]


def test_every_evaluation_has_a_checkpoint_that_gets_its_score():
    world = World()
    world.run(total_env_steps=40, eval_every=16)
    assert world.steps_of("save") == world.steps_of("evaluate") == world.steps_of("score") == [16, 32, 40]


def test_a_request_to_stop_saves_without_another_line_or_evaluation():
    world = World(stop_after=3)
    progress, done = world.run(log_every=16, eval_every=1000)
    assert (progress.env_steps, done) == (24, False)
    assert world.tape == ["reset", ("rewind", 0), ("line", 16), "sync", ("save", 24)]


def test_a_pause_at_a_line_saves_after_the_iteration_and_leaves_the_evaluation_due():
    world = World()
    progress, finished = world.run(log_every=8, eval_every=16, should_pause=lambda env_steps, line: env_steps >= 16)
    assert (progress.env_steps, finished) == (16, False)
    assert world.steps_of("save")[-1] == 16
    assert world.steps_of("evaluate") == []


def test_a_request_to_save_is_met_once_and_training_goes_on():
    world = World(save_at=2)
    _, done = world.run()
    assert world.steps_of("save") == [16, 104]
    assert done


def test_target_return_ends_training_once_100_episodes_reach_it():
    # the mean of the last 100 of 1, 2, ..., n is n - 49.5; it first reaches 60 at n = 110
    world = World()
    progress, done = world.run(total_env_steps=100_000, target_return=60.0, eval_every=100_000, log_every=100_000)
    assert (progress.iteration, done) == (110, True)
    assert world.steps_of("line") == world.steps_of("evaluate") == world.steps_of("save") == [880]


def test_target_return_waits_for_100_episodes():
    progress, _ = World().run(total_env_steps=100_000, target_return=-1.0)
    assert progress.iteration == 100


def test_a_stopped_run_that_is_resumed_writes_the_lines_of_one_that_was_not(tmp_path):
    settings = {"total_env_steps": 200, "log_every": 30, "eval_every": 70, "checkpoint_every": 50}
    whole = World()
    whole.run(Checkpointer(tmp_path / "whole", algo="fake"), **settings)
    lines: list[dict[str, float]] = []
    for stop_after in (0, 3, 11, 20, None):  # 3 and 11 lie between two log lines
        part = World(stop_after=stop_after)
        progress, done = part.run(Checkpointer(tmp_path / "parts", algo="fake"), **settings)
        assert done is (stop_after is None)
        lines += part.lines
        if stop_after == 3:
            assert "reset" not in part.tape  # resumed from the checkpoint at 0, not begun anew
            assert part.tape[0] == ("rewind", 0)
    assert progress.env_steps == 200
    assert lines == whole.lines


@pytest.mark.parametrize("lost", ["evaluation", "score"])
def test_an_evaluation_that_was_due_is_done_once_when_the_run_goes_on(lost, tmp_path, monkeypatch):
    settings = {"total_env_steps": 64, "log_every": 16, "eval_every": 32, "checkpoint_every": 24}
    whole = World()
    whole.run(Checkpointer(tmp_path / "whole", algo="fake"), **settings)
    killed, checkpointer = World(), Checkpointer(tmp_path / "killed", algo="fake")
    monkeypatch.setattr(*((killed, "evaluate") if lost == "evaluation" else (checkpointer, "begin_score")), killed_at_once)
    with pytest.raises(KeyboardInterrupt):  # in the place of SIGKILL
        killed.run(checkpointer, **settings)
    checkpointer.close()
    again = World()
    again.lines = killed.lines
    again.run(Checkpointer(tmp_path / "killed", algo="fake"), **settings)
    assert again.lines == whole.lines
    assert again.steps_of("evaluate") == [32, 64]
    scores = [[(c.env_steps, c.score, c.owes_evaluation) for c in find_checkpoints(tmp_path / name)[0]] for name in ("whole", "killed")]
    assert scores[0] == scores[1] == [(64, 64.0, False), (48, -math.inf, False)]


def killed_at_once(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_request_to_stop_gives_an_evaluation_up_and_the_run_is_not_finished_before_it_is_done(tmp_path):
    settings = {"total_env_steps": 32, "log_every": 16, "eval_every": 1000}
    stopped = World(stop_in_evaluation=32)
    progress, done = stopped.run(Checkpointer(tmp_path, algo="fake"), **settings)
    assert (progress.env_steps, done) == (32, False)
    assert stopped.steps_of("eval line") == []
    again = World()
    progress, done = again.run(Checkpointer(tmp_path, algo="fake"), **settings)
    assert done
    assert again.tape == [("rewind", 32), ("evaluate", 32), ("eval line", 32), "sync"]


def test_an_evaluation_that_fails_is_left_out_with_a_line_and_training_goes_on():
    world = World(failing=[16])
    _, done = world.run(total_env_steps=32, eval_every=16)
    assert done
    assert world.steps_of("eval line") == [32]
    assert world.notes == ["warning: the evaluation at 16 env steps is left out: broken physics"]


def test_a_run_whose_evaluations_all_fail_is_saved_to_its_end_and_says_so():
    world = World(failing=range(100))
    with pytest.raises(EnvError, match=r"training is finished and saved, but no evaluation succeeded.*broken physics"):
        world.run(total_env_steps=32, eval_every=16)
    assert world.steps_of("save") == [16, 32]
    assert len(world.notes) == 2


def test_a_run_that_is_over_does_nothing_when_resumed(tmp_path):
    World().run(Checkpointer(tmp_path, algo="fake"))
    again = World()
    progress, done = again.run(Checkpointer(tmp_path, algo="fake"))
    assert (progress.env_steps, done) == (104, True)
    assert again.tape == [("rewind", 104)]
