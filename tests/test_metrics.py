"""The metric buffer: means since the last flush, and the last hundred episodes."""

from __future__ import annotations

import ast
import fnmatch
import io
import math
import re
from pathlib import Path

import pytest
import torch

from rlx.collect import Episode
from rlx.metrics import MEANINGS, MetricBuffer
from rlx.serialize import plain


def test_flush_gives_means_since_the_last_flush():
    buffer = MetricBuffer()
    buffer.add_episodes([Episode(1.0, 10), Episode(3.0, 30)])
    buffer.add_update({"loss/policy": torch.tensor(1.0), "update/learning_rate": 0.5})
    buffer.add_update({"loss/policy": torch.tensor(2.0), "update/learning_rate": 0.25})
    assert buffer.flush() == {
        "episode/return": 2.0,
        "episode/length": 20.0,
        "episode/count": 2,
        "episode/return_mean_100": 2.0,
        "loss/policy": 1.5,
        "update/learning_rate": 0.375,
    }
    buffer.add_update({"loss/policy": torch.tensor(7.0)})
    assert buffer.flush() == {"episode/return_mean_100": 2.0, "loss/policy": 7.0}


def test_an_empty_buffer_flushes_to_nothing():
    assert MetricBuffer().flush() == {}


def test_gradient_steps_are_summed():
    buffer = MetricBuffer()
    for n in (0.0, 1.0, 16.0):
        buffer.add_update({"update/num_gradient_steps": n})
    assert buffer.flush() == {"update/num_gradient_steps": 17.0}


def test_metrics_that_only_some_updates_have_are_averaged_over_those():
    buffer = MetricBuffer()
    buffer.add_update({"update/num_gradient_steps": 0.0})
    buffer.add_update({"update/num_gradient_steps": 1.0, "loss/policy": torch.tensor(3.0)})
    assert buffer.flush() == {"update/num_gradient_steps": 1.0, "loss/policy": 3.0}


def test_what_is_not_a_number_is_left_out():
    buffer = MetricBuffer()
    buffer.add_update({"update/explained_variance": torch.tensor(math.nan), "loss/policy": torch.tensor(1.0), "update/x": math.inf})
    assert buffer.flush() == {"loss/policy": 1.0}


def test_flushed_values_are_plain_numbers():
    buffer = MetricBuffer()
    buffer.add_episodes([Episode(1.0, 10)])
    buffer.add_update({"loss/policy": torch.tensor(1.0), "update/num_gradient_steps": 3, "update/num_epochs": 2})
    assert all(type(v) in (int, float) for v in buffer.flush().values())


def test_mean_of_100_covers_the_last_100_episodes():
    buffer = MetricBuffer()
    buffer.add_episodes([Episode(1000.0, 1)] * 5)
    buffer.flush()
    buffer.add_episodes([Episode(float(i), 1) for i in range(1, 101)])
    assert buffer.flush()["episode/return_mean_100"] == 50.5
    assert buffer.return_mean_100 == 50.5


def test_mean_of_100_is_not_claimed_before_there_are_100():
    buffer = MetricBuffer()
    buffer.add_episodes([Episode(5.0, 1)] * 99)
    assert buffer.return_mean_100 is None
    assert buffer.flush()["episode/return_mean_100"] == 5.0
    buffer.add_episodes([Episode(105.0, 1)])
    assert buffer.return_mean_100 == pytest.approx(6.0)


def test_state_continues_identically_between_flushes():
    buffer, again = MetricBuffer(), MetricBuffer()
    buffer.add_episodes([Episode(float(i), i) for i in range(150)])
    buffer.flush()
    buffer.add_episodes([Episode(7.0, 3)])
    buffer.add_update({"loss/policy": torch.tensor(1.0), "update/num_gradient_steps": 4.0})
    file = io.BytesIO()
    torch.save(plain(buffer.state_dict()), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    for b in (buffer, again):
        b.add_episodes([Episode(9.0, 5)])
        b.add_update({"loss/policy": torch.tensor(2.0), "update/num_gradient_steps": 4.0})
    assert again.return_mean_100 == buffer.return_mean_100
    line = buffer.flush()
    assert again.flush() == line
    assert (line["episode/return"], line["loss/policy"], line["update/num_gradient_steps"]) == (8.0, 1.5, 8.0)


def test_state_stands_still_while_the_buffer_goes_on():
    buffer = MetricBuffer()
    buffer.add_update({"loss/policy": torch.tensor(1.0)})
    state = buffer.state_dict()
    buffer.add_update({"loss/policy": torch.tensor(5.0)})
    again = MetricBuffer()
    again.load_state_dict(state)
    assert again.flush() == {"loss/policy": 1.0}


def test_many_updates_give_the_mean_of_all_of_them_in_one_operation_and_the_state_holds_them_as_vectors():
    buffer, again = MetricBuffer(), MetricBuffer()
    values = torch.randn(1000)
    for i, value in enumerate(values):
        buffer.add_update({"loss/policy": value, "update/learning_rate": 0.1 * i, "update/num_gradient_steps": 2.0})
        if i == 700:
            again.load_state_dict(buffer.state_dict())
    state = buffer.state_dict()
    assert len(state["updates"]) < 256
    assert sum(map(len, state["folded"]["loss/policy"]["tensors"])) + len(state["updates"]) == 1000
    for i in range(701, 1000):
        again.add_update({"loss/policy": values[i], "update/learning_rate": 0.1 * i, "update/num_gradient_steps": 2.0})
    line = buffer.flush()
    assert line == again.flush()
    assert line["loss/policy"] == torch.stack(list(values)).mean().item()
    assert line["update/learning_rate"] == sum(0.1 * i for i in range(1000)) / 1000
    assert line["update/num_gradient_steps"] == 2000.0


def test_the_buffer_stays_bounded_however_many_updates_there_are(monkeypatch):
    monkeypatch.setattr("rlx.metrics._FOLD", 4)
    monkeypatch.setattr("rlx.metrics._LONGEST", 16)
    buffer = MetricBuffer()
    for i in range(1, 1003):
        buffer.add_episodes([Episode(float(i), i)])
        buffer.add_update({"loss/policy": torch.tensor(float(i))})
        state = buffer.state_dict()
        assert len(state["updates"]) < 4
        assert sum(map(len, state.get("folded", {}).get("loss/policy", {}).get("tensors", []))) < 16
        assert len(state["episode_sums"]) == 5
    again = MetricBuffer()
    again.load_state_dict(state)
    line = buffer.flush()
    assert line == again.flush()
    assert line["loss/policy"] == pytest.approx(501.5)
    assert (line["episode/return"], line["episode/count"]) == (501.5, 1002)
    assert line["episode/return_mean_100"] == pytest.approx(952.5)


# What metrics mean

ROOT = Path(__file__).parents[1]
WRITERS = [
    *ROOT.glob("rlx/algos/*.py"),
    *ROOT.glob("rlx/models/*.py"),
    *ROOT.glob("rlx/evaluation/*.py"),
    *(ROOT / f"rlx/{name}.py" for name in ("clock", "imagination", "metrics", "off_policy")),
]


def written() -> dict[str, set[str]]:
    """Every metric's key in the code that writes metrics, with * for what is put in; and the files that have it."""
    found: dict[str, set[str]] = {}
    for path in WRITERS:
        tree = ast.parse(path.read_text())
        tables = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "MEANINGS"]
        skip = {id(part) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for part in n.values}
        skip |= {id(n) for table in tables for n in ast.walk(table)}
        for n in ast.walk(tree):
            if isinstance(n, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in n.values)
            elif isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in skip:
                text = n.value
            else:
                continue
            if re.fullmatch(r"[a-z]+/[a-z0-9_*]+", text):
                found.setdefault(text, set()).add(path.stem)
    return found


def test_every_metric_has_a_meaning_and_every_meaning_a_metric():
    keys = written()
    assert len(keys) > 60
    unexplained = {key: files for key, files in keys.items() if not any(fnmatch.fnmatch(key, name) for name in MEANINGS)}
    assert unexplained.keys() <= {"loss/*", "eval/*"}, (
        f"say in rlx.metrics.MEANINGS what these mean, or use the key that means it: {unexplained}"
    )
    unused = {name for name in MEANINGS if not any(fnmatch.fnmatch(key, name) or fnmatch.fnmatch(name, key) for key in keys)}
    assert not unused


def test_no_two_metrics_have_the_same_meaning():
    assert len(set(MEANINGS.values())) == len(MEANINGS)


def test_what_the_documentation_calls_a_metric_is_one():
    said = set(re.findall(r"`((?:episode|eval|loss|update|search|latent|model|plan|imagination|game|replay|time)/[a-z0-9_]+)`",
                          "".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))))  # fmt: skip
    assert len(said) > 30
    assert {key for key in said if not any(fnmatch.fnmatch(key, name) for name in MEANINGS)} == set()
