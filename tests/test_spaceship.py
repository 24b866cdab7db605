"""The spaceship: its physics by hand, the batch, gymnasium's single ship, and the perfect model of it."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from rlx.config.compose import Composer
from rlx.envs.control.reward_functions import rules_of
from rlx.envs.control.spaceship import DT, LEFT, MASS, MOST_THRUST, SUBSTEPS, Spaceship, SpaceshipVectorEnv
from rlx.envs.control.spaceship_picture import Imagined, draw
from rlx.envs.control.spaceship_settings import SPACESHIP, SpaceshipSettings
from rlx.errors import ConfigError
from rlx.models.flight import PerfectFlight


def scene(*planets: tuple[float, float, float], at: tuple[float, float] = (1.0, 0.0), mass: float = 0.3) -> np.ndarray:
    """Rows [21, 1] with a ship at rest; planets that are not given weigh nothing and are far away."""
    rest = [(1e3, 1e3, 0.0)] * (5 - len(planets))
    return np.array([*at, 0.0, 0.0, mass, 1.0, *np.ravel([*planets, *rest])])[:, None]


def test_a_thrust_without_planets_is_a_straight_line_that_damping_shortens():
    rows, action = scene(), np.array([[-0.5], [0.25]])
    x, y, *_ = Spaceship(SpaceshipSettings()).fly(rows, action)[-1]
    kept = 1.0 - DT * 0.1 / 0.3
    reach = DT * sum(kept**i for i in range(SUBSTEPS)) * DT * MOST_THRUST / 0.3
    assert (x.item(), y.item()) == pytest.approx((1.0 - 0.5 * reach, 0.25 * reach))


def test_a_planet_pulls_along_the_line_between_and_by_the_square_of_a_distance():
    ship = Spaceship(SpaceshipSettings(gravity=2.0))
    _, _, vx, vy = ship.fly(scene((3.0, 0.0, 0.1)), np.zeros((2, 1)))[0]
    assert vx.item() == pytest.approx(DT * 2.0 * 0.1 / (4.0 + 0.01) * 2.0 / np.sqrt(4.01))
    assert vy.item() == 0.0
    farther = ship.fly(scene((5.0, 0.0, 0.1)), np.zeros((2, 1)))[0][2]
    assert vx.item() / farther.item() == pytest.approx(4.0, rel=0.01)


def test_energy_is_kept_without_damping(monkeypatch):
    monkeypatch.setattr("rlx.envs.control.spaceship.DAMPING", 0.0)
    monkeypatch.setattr("rlx.envs.control.spaceship.DT", 1e-4)
    rows = scene((0.0, 0.4, 0.3), (0.5, -0.5, 0.2), at=(0.8, 0.1))

    def energy(x, y, vx, vy):
        return 0.5 * (vx**2 + vy**2) - sum(2.0 * m / np.sqrt((x - px) ** 2 + (y - py) ** 2 + m * m) for px, py, m in rows[6:].reshape(5, 3))

    ship, start = Spaceship(SpaceshipSettings(gravity=2.0)), energy(*rows[:4])
    for _ in range(400):
        rows[:4] = ship.fly(rows, np.zeros((2, 1)))[-1]
    assert np.hypot(rows[2], rows[3]) > 0.5
    assert energy(*rows[:4]) == pytest.approx(start, rel=2e-3)


def test_scenes_are_in_their_ranges_and_differ():
    rows = Spaceship(SpaceshipSettings()).scenes(np.arange(2000))
    radius, planets = np.hypot(rows[0], rows[1]), rows[6:].reshape(5, 3, -1)
    orbit = np.hypot(planets[:, 0], planets[:, 1])
    for values, low, high in ((radius, 0.6, 1.0), (rows[MASS], 0.004, 0.36), (orbit, 0.4, 1.0), (planets[:, 2], 0.08, 0.4)):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
    assert len(np.unique(np.arctan2(planets[:, 1], planets[:, 0]))) == 10_000
    assert (rows[2:4] == 0.0).all()


def test_noise_multiplies_the_thrust_by_its_deviation_and_depends_on_the_seed_alone():
    factors = Spaceship(SpaceshipSettings(noise=0.1, num_actions=3)).factors(np.arange(20_000))
    assert factors.shape == (3, 20_000)
    assert factors.mean() == pytest.approx(1.0, abs=2e-3)
    assert factors.std() == pytest.approx(0.1, rel=0.02)
    assert abs(np.corrcoef(factors)[0, 1]) < 0.02


def test_the_perfect_model_is_the_environment_without_noise():
    env = SpaceshipVectorEnv(50, noise=0.0, num_actions=3)
    obs, _ = env.reset(seed=np.arange(50))
    model, rng = PerfectFlight(env.bodies), np.random.default_rng(0)
    rules = rules_of(SPACESHIP, {"noise": 0.0, "num_actions": 3})
    for left in (2, 1, 0):
        action = rng.uniform(-1.5, 1.5, (50, 2)).astype(np.float32)  # some beyond the bounds
        predicted = model(torch.from_numpy(obs), torch.from_numpy(action))
        next_obs, reward, terminated, _, _ = env.step(action)
        torch.testing.assert_close(predicted, torch.from_numpy(next_obs), atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(
            rules.reward(torch.from_numpy(obs), torch.from_numpy(action), predicted), torch.from_numpy(reward), atol=2e-4, rtol=2e-4
        )
        assert terminated.all() == (left == 0)
        assert (next_obs[:, LEFT] == left).all()
        obs = next_obs


def test_an_episode_costs_fuel_above_the_threshold_and_the_final_distance():
    env = SpaceshipVectorEnv(2, noise=0.0, num_actions=2, fuel_price=0.01)
    env.reset(seed=np.arange(2))
    _, first, terminated, _, _ = env.step(np.array([[1.0, 0.0], [0.1, 0.1]]))
    assert first.tolist() == pytest.approx([-0.01 * (14.4 - 8.0), 0.0])
    assert not terminated.any()
    obs, last, terminated, _, _ = env.step(np.zeros((2, 2)))
    assert last == pytest.approx(-np.hypot(obs[:, 0], obs[:, 1]), rel=1e-5)
    assert terminated.all()


def test_a_batch_equals_single_ships_and_a_restored_one():
    batch, copied = SpaceshipVectorEnv(3, num_actions=3), SpaceshipVectorEnv(3, num_actions=3)
    singles = [gymnasium.make(SPACESHIP, num_actions=3) for _ in range(3)]
    obs, _ = batch.reset(seed=np.arange(3))
    for i, single in enumerate(singles):
        assert (single.reset(seed=i)[0] == obs[i]).all()
    actions = np.random.default_rng(1).uniform(-1, 1, (3, 3, 2)).astype(np.float32)
    for action in actions:
        copied.load_state_dict(batch.state_dict())
        obs, reward, terminated, _, _ = batch.step(action)
        again = copied.step(action)
        assert (again[0] == obs).all()
        assert (again[1] == reward).all()
        for i, single in enumerate(singles):
            theirs = single.step(action[i])
            assert (theirs[0] == obs[i]).all()
            assert theirs[1:3] == (reward[i], terminated[i])


def test_a_reset_begins_anew_only_where_it_is_asked_to():
    env = SpaceshipVectorEnv(2)
    first, _ = env.reset(seed=np.array([1, 2]))
    moved, *_ = env.step(np.full((2, 2), 0.3))
    both, _ = env.reset(seed=np.array([1, 0]), options={"reset_mask": np.array([True, False])})
    assert (both[0] == first[0]).all()
    assert (both[1] == moved[1]).all()


def test_settings_reach_the_environment_and_are_refused_out_of_their_range():
    config = Composer().compose(["env=spaceship", "env.num_actions=2", "env.fuel_price=0.1"]).config
    assert config.env.kwargs["num_actions"] == 2
    with pytest.raises(ConfigError, match=r"env.kwargs.gravity must be a number from 0 to 100"):
        Composer().compose(["env=spaceship", "env.gravity=-1"])
    with pytest.raises(ConfigError, match="num_actions must be a whole number from 1 to 100"):
        Composer().compose(["env=spaceship", "env.num_actions=0"])


def test_the_picture_shows_the_ship_the_planets_and_what_was_imagined():
    rows = scene((0.0, 0.7, 0.4), at=(-0.8, 0.0))[:, 0]
    bare = draw(rows)
    assert bare[200, 200].tolist() == [0, 200, 120]
    assert bare[200, round(200 - 0.8 / 1.35 * 200)].tolist() == [240, 240, 255]
    assert bare[round(200 - 0.7 / 1.35 * 200), 200].tolist() == [150, 128, 110]
    imagined = draw(rows, [Imagined((-0.8, 0.0), (0.4, -0.6))])
    assert imagined[round(200 + 0.6 / 1.35 * 200), round(200 + 0.4 / 1.35 * 200)].tolist() == [255, 190, 60]
    assert gymnasium.make(SPACESHIP, render_mode="rgb_array").unwrapped.render().shape == (400, 400, 3)
