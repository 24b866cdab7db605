"""The metric buffer: means since the last flush, and the last hundred episodes."""

from __future__ import annotations

import io
import math

import pytest
import torch

from rlx.checkpoint import _plain
from rlx.collect import Episode
from rlx.metrics import MetricBuffer


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
    torch.save(_plain(buffer.state_dict()), file)
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
