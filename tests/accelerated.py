"""Short runs of every algorithm in its settings for `test_accelerator.py`, and checks of them on a device other than the CPU.

An algorithm without a case here fails the test. With RLX_TEST_DEVICE=cuda in the environment a real device takes the place of the stand-in.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from rlx import loop
from rlx.build import build_algorithm, env_factory, env_spec, setup_torch
from rlx.checkpoint import find_checkpoints, load_algorithm
from rlx.config.compose import Composer
from rlx.config.schema import RunConfig
from rlx.errors import ConfigError
from rlx.evaluation.episodes import episode_seeds, run_episodes
from rlx.nn import memories
from rlx.parts import build
from rlx.tree_ops import pick
from rlx.types import Ablatable, HasParts, PredictsObservations

REAL = os.environ.get("RLX_TEST_DEVICE")
CPU = torch.device("cpu")
COMMON = ["recipe=null", "env.num_envs=3", "loop.eval_episodes=2", "loop.log_every=173", "loop.eval_every=2000000",
          "loop.checkpoint_every=0", "log.wandb=disabled", "log.console=quiet", "seed=5"]  # fmt: skip
SMALL = ["algo.num_blocks=1", "algo.num_channels=4", "algo.search.num_simulations=4", "algo.batch_size=16", "algo.replay_size=301"]
AZ = ["algo=alphazero", *SMALL, "algo.replay_start=24", "loop.total_env_steps=75"]
C4 = ["env=connect_four", "env.kwargs.rows=4", "env.kwargs.columns=4", "env.kwargs.x_in_row=3", "env.opponent=uct:5"]
AG = ["algo=alphago", *SMALL, "algo.num_expert_simulations=5", "algo.expert_fraction=0.3", "algo.reinforce_fraction=0.4",
      "algo.games_per_update=3", "algo.snapshot_every=3", "loop.total_env_steps=210"]  # fmt: skip
MZ = ["algo=muzero", "algo.num_channels=8", "algo.search.num_simulations=4", "algo.batch_size=16", "algo.replay_start=60",
      "algo.replay_size=90", "algo.steps_per_update=3", "algo.num_unroll_steps=3", "algo.td_steps=4", "algo.reanalyse=0.5",
      "loop.total_env_steps=102"]  # fmt: skip
DQ = ["algo=dqn", "algo.initial_steps=60", "algo.batch_size=16", "algo.hidden_sizes=[16]", "algo.replay_size=90", "algo.target_every=7",
      "loop.total_env_steps=150"]  # fmt: skip
PE = ["algo=pets", "algo.initial_steps=40", "algo.fit_every=30", "algo.hidden_sizes=[8,8]", "algo.ensemble_size=2",
      "algo.planner.num_candidates=12", "algo.planner.num_iterations=2", "algo.planner.horizon=4",
      "algo.max_epochs=2", "algo.replay_size=70", "algo.batch_size=32",
      "loop.total_env_steps=90"]  # fmt: skip
OP = ["algo.hidden_sizes=[8,8]", "algo.batch_size=16", "algo.initial_steps=60", "algo.utd=0.5", "algo.replay_size=90",
      "algo.rollout_length=4", "loop.total_env_steps=120"]  # fmt: skip
MO = ["algo.model.hidden_sizes=[8]", "algo.model.max_epochs=2", "algo.model.fit_every=50", "algo.model.replay_size=90",
      "algo.model.batch_size=32"]  # fmt: skip
IF = ["algo=i2a", "env.max_episode_steps=10", "algo.rollout_length=7", "algo.num_minibatches=3", "algo.num_channels=4",
      "algo.hidden_size=16", "loop.total_env_steps=70"]  # fmt: skip
IW = [*IF, "algo.rollout_depth=2", "algo.num_encoder_channels=4", "algo.encoder_size=8"]
IL = ["algo.num_model_channels=4", "algo.model_batch_size=16", "algo.model_replay_size=91", "algo.model_fraction=0.4"]
IB = ["algo=ibp", "env=spaceship", "algo.hidden_sizes=[8]", "algo.memory_size=6", "loop.total_env_steps=90"]
IBM = ["algo.model_batch_size=16", "algo.model_replay_size=31", "algo.model_hidden_size=8", "algo.model_steps=2"]
BOX = "env=sokoban"
CASES: dict[str, list[str]] = {
    "reinforce": ["algo=reinforce", "env=cartpole", "algo.rollout_length=13", "algo.episodes_per_update=5",
                  "algo.normalize_observation=true", "loop.total_env_steps=400"],
    "reinforce-none": ["algo=reinforce", "env=acrobot", "env.kwargs.max_episode_steps=40", "algo.advantage=to_go",
                       "algo.episodes_per_update=3", "loop.total_env_steps=500"],
    "a2c": ["algo=a2c", "env=pendulum", "env.kwargs.max_episode_steps=20", "algo.normalize_observation=true", "loop.total_env_steps=200"],
    "a2c-discrete": ["algo=a2c", "env=cartpole", "loop.total_env_steps=200"],
    "a2c-q": ["algo=a2c", "env=cartpole", "algo.advantage=q", "loop.total_env_steps=200"],
    "ppo": ["algo=ppo", "env=cartpole", "algo.rollout_length=16", "algo.target_kl=0.02", "algo.value_clip=0.2", "loop.total_env_steps=200"],
    "ppo-kl": ["algo=ppo", "env=pendulum", "env.kwargs.max_episode_steps=20", "algo.rollout_length=20", "algo.num_minibatches=3",
               "algo.normalize_observation=true", "algo.normalize_reward=true", "algo.objective=adaptive_kl", "loop.total_env_steps=240"],
    "ppo-shared": ["algo=ppo", "env=cartpole", "algo.shared_network=true", "algo.recompute_advantage=true", "algo.rollout_length=16",
                   "algo.hidden_sizes=[512,512]", "algo.activation=relu", "loop.total_env_steps=200"],
    "ppo-grid": ["algo=ppo", "env=sokoban", "env.max_episode_steps=20", "algo.rollout_length=16", "loop.total_env_steps=200"],
    "ppo-images": ["algo=ppo", "env=catch:Catch", "env.kwargs.frame_stack=3", "env.kwargs.max_episode_steps=13", "algo.encoder=grid",
                   "algo.rollout_length=16", "algo.sign_reward=true", "loop.total_env_steps=200"],
    "ppo-lstm": ["algo=ppo", "env=cartpole_positions", "algo.memory=lstm", "algo.memory_size=6", "algo.normalize_observation=true",
                 "algo.num_minibatches=3", "algo.rollout_length=16", "loop.total_env_steps=200"],
    "ppo-gru-masked": ["algo=ppo", "env=Taxi-v4", "env.kwargs.max_episode_steps=20", "algo.memory=gru", "algo.memory_size=6",
                       "algo.num_minibatches=3", "algo.rollout_length=16", "algo.objective=adaptive_kl", "loop.total_env_steps=200"],
    "a2c-lstm": ["algo=a2c", "env=recall", "algo.memory=lstm", "algo.memory_size=6", "loop.total_env_steps=200"],
    "reinforce-gru": ["algo=reinforce", "env=cartpole_positions", "algo.memory=gru", "algo.memory_size=6", "algo.rollout_length=13",
                      "algo.episodes_per_update=5", "loop.total_env_steps=400"],
    "ppo-nature": ["algo=ppo", "env=sokoban", "env.kwargs.observation=rgb", "env.max_episode_steps=9", "algo.rollout_length=8",
                   "algo.num_minibatches=2", "algo.num_epochs=1", "algo.hidden_sizes=[]", "loop.total_env_steps=72"],
    "ppo-planes": ["algo=ppo", "env=sokoban", "env.max_episode_steps=20", "algo.rollout_length=16", "algo.encoder=grid",
                   "loop.total_env_steps=144"],
    "a2c-tuple": ["algo=a2c", "env=Blackjack-v1", "loop.total_env_steps=200"],
    "dqn": [*DQ, "env=cartpole"],
    "dqn-all": [*DQ, "env=cartpole", "algo.per=true", "algo.dueling=true", "algo.distributional=c51", "algo.tau=0.5",
                "algo.anneal_learning_rate=true", "algo.rollout_length=5"],
    "dqn-masked": [*DQ, "env=Taxi-v4", "env.kwargs.max_episode_steps=20", "algo.layer_norm=true"],
    "dqn-images": [*DQ, "env=catch:Catch", "env.kwargs.frame_stack=3", "env.kwargs.max_episode_steps=13", "algo.encoder=grid",
                   "algo.sign_reward=true"],
    "sac": [*OP, "algo=sac", "env=pendulum", "env.kwargs.max_episode_steps=20", "algo.layer_norm=true"],
    "sac-steve": [*OP, "algo=sac", "env=cartpole_continuous", "algo.expansion=steve", "algo.model.termination=learned",
                  "algo.model.corruption=independent", "algo.model.corrupt_prob=0.2", *MO],
    "sac-mbpo": [*OP, "algo=sac", "env=pendulum", "algo.imagined=mbpo", "algo.stop=threshold", "algo.model.reward=learned", *MO],
    "sac-mve": [*OP, "algo=sac", "env=pendulum", "algo.expansion=mve", "algo.td_k=true", "algo.imagined=mbpo", "algo.stop=rank",
                "algo.model.kind=perfect", "algo.model.measure=gjs", "algo.model.fit_every=50", "algo.rollouts_per_step=0.3"],
    "td3": [*OP, "algo=td3", "env=pendulum", "env.kwargs.max_episode_steps=20", "algo.n_step=3"],
    "pqn": ["algo=pqn", "env=cartpole", "algo.rollout_length=16", "algo.normalize_observation=true", "algo.normalize_reward=true",
            "loop.total_env_steps=200"],
    "pqn-images": ["algo=pqn", "env=catch:Catch", "env.kwargs.frame_stack=3", "env.kwargs.max_episode_steps=13", "algo.encoder=grid",
                   "algo.rollout_length=16", "algo.sign_reward=true", "loop.total_env_steps=200"],
    "pqn-gru-masked": ["algo=pqn", "env=Taxi-v4", "env.kwargs.max_episode_steps=20", "algo.memory=gru", "algo.memory_size=6",
                       "algo.num_minibatches=3", "algo.rollout_length=16", "loop.total_env_steps=200"],
    "pets": [*PE, "env=cartpole_continuous", "env.kwargs.max_episode_steps=20", "algo.learn_variance_bounds=true"],
    "pets-cem": [*PE, "env=pendulum", "env.kwargs.max_episode_steps=20", "algo.planner.kind=cem", "algo.propagation=ts_1",
                 "algo.num_particles=2"],
    "pets-mppi": [*PE, "env=pendulum", "env.kwargs.max_episode_steps=20", "algo.planner.kind=mppi", "algo.reward=learned",
                   "algo.propagation=mean"],
    "pets-disagreement": [*PE, "env=cartpole_swingup", "env.kwargs.max_episode_steps=20", "algo.trust=disagreement",
                          "algo.holdout_fraction=0"],
    "pets-truncate": [*PE, "env=cartpole_continuous", "env.kwargs.max_episode_steps=20", "algo.trust=truncate", "algo.reward=learned"],
    "muzero-cartpole": [*MZ, "env=cartpole", "env.kwargs.max_episode_steps=25"],
    "muzero-puct": [*MZ, "env=cartpole", "env.kwargs.max_episode_steps=25", "algo.search.rule=puct", "algo.priority_exponent=0"],
    "muzero": [*MZ, "env=tic_tac_toe", "env.opponent=random"],
    "muzero-connect4": [*MZ, *C4, "algo.layers=conv", "algo.symmetries=true"],
    "muzero-sokoban": [*MZ, "env=sokoban", "env.max_episode_steps=20"],
    "muzero-pixels": [*MZ, "env=catch:Catch", "env.kwargs.balls=2", "env.kwargs.frame_stack=3", "env.kwargs.max_episode_steps=13"],
    "alphazero": [*AZ, *C4],
    "alphazero-puct": [*AZ, *C4, "algo.search.rule=puct", "algo.search.full_search_fraction=0.6", "algo.random_moves=0.2",
                       "algo.value_mix=0.3", "algo.search.num_cheap_simulations=3", "algo.steps_per_update=3", "algo.search.num_leaves=2"],
    "alphazero-tictactoe": [*AZ, "env=tic_tac_toe", "env.opponent=random"],
    "alphago": [*AG, *C4],
    "alphago-all": [*AG, "env=tic_tac_toe", "env.opponent=random", "algo.value_data=whole_games", "algo.mix=0.0",
                    "algo.search.num_leaves=2"],
    "ibp": [*IB, *IBM, "algo.strategy=tree", "algo.price=0.01", "env.num_actions=2"],
    "ibp-corrupted": [*IB, *IBM, "algo.strategy=n_step", "algo.corrupt_prob=0.5"],
    "ibp-perfect": [*IB, "algo.manager=always", "algo.model=perfect", "env.num_actions=2"],
    "i2a": [*IW, *IL, BOX, "algo.corrupt_prob=0.05"],
    "i2a-learned-search": [*IF, *IL, BOX, "algo.decide=search", "algo.rollout_depth=2", "algo.num_encoder_channels=4"],
    "i2a-learned-tree": [*IF, *IL, BOX, "algo.decide=tree", "algo.search.num_eval_simulations=5"],
    "i2a-pacman": [*IW, *IL, "env=minipacman"],
    "i2a-perfect": [*IW, BOX, "algo.imagination=perfect"],
    "i2a-copy": [*IW, BOX, "algo.imagination=copy"],
    "i2a-poor": [*IW, BOX, "algo.imagination=perfect", "algo.corrupt_prob=0.3"],
    "i2a-wide": [*IF, BOX, "algo.imagination=wide"],
    "i2a-off": [*IF, BOX, "algo.imagination=off"],
}  # fmt: skip
"""The case that has an algorithm's name stands for it where there is no time for all."""


@contextlib.contextmanager
def device_here(**settings: Any) -> Iterator[torch.device]:
    """The stand-in, or the real device that RLX_TEST_DEVICE names."""
    if REAL:
        yield torch.device(REAL)
        return
    from accelerator import accelerator  # see there why not above

    with accelerator(**settings) as device:
        yield device


class _Log:
    """Hears everything and keeps nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


class _StopAt:
    """Stops once so many env steps are taken; counts nothing itself."""

    def __init__(self, env_steps: float) -> None:
        self.env_steps, self.now = env_steps, 0

    def should_stop(self) -> bool:
        return self.now >= self.env_steps

    def should_save(self) -> bool:
        return False


class Costs:
    """What the device was asked for in collecting and in updates, beside the numbers of rollout steps and gradient steps."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {"collect": Counter(), "update": Counter()}
        self.places: dict[str, Counter[str]] = {"collect": Counter(), "update": Counter()}
        self.rounds = self.gradient_steps = 0

    def watch(self, parts: Any) -> None:
        collect, update = parts.collector.collect, parts.algo.update

        def collected(num_steps: int) -> Any:
            self.rounds += num_steps
            return self._during("collect", lambda: collect(num_steps))

        def updated(rollout: Any, progress: Any) -> Any:
            metrics = self._during("update", lambda: update(rollout, progress))
            self.gradient_steps += int(metrics.get("update/num_gradient_steps", 0))
            return metrics

        parts.collector.collect, parts.algo.update = collected, updated

    def _during(self, phase: str, function: Callable[[], Any]) -> Any:
        if REAL:
            return function()
        from accelerator import METER

        METER.reset()
        out = function()
        sizes = {f"{kind}_bytes": size for kind, size in METER.bytes.items()}
        self.counts[phase].update({**METER.counts, **sizes, "launches": METER.launches, "waits": METER.waits})
        self.places[phase].update({f"{kind} {place}": n for (kind, place), n in METER.places.items()})
        return out


def compose(name: str, *more: str) -> RunConfig:
    config: RunConfig = Composer().compose([*COMMON, *CASES[name], *more]).config
    return config


def train(config: RunConfig, directory: Path, device: torch.device, *, until: float = float("inf"), costs: Costs | None = None) -> Any:
    """Train to `until` or the end, from the newest checkpoint in the directory; returns the algorithm."""
    signals = _StopAt(until)
    with contextlib.closing(build(config, directory, device)) as parts:
        if parts.evaluator._probe is not None:
            parts.evaluator._probe = pick(parts.evaluator._probe, slice(20))
        if costs is not None:
            costs.watch(parts)
        update = parts.algo.update

        def counted(rollout: Any, progress: Any) -> Any:
            signals.now = progress.env_steps
            return update(rollout, progress)

        parts.algo.update = counted  # type: ignore[method-assign]
        loop.train(parts.algo, parts.collector, parts.evaluator, config=config.loop, logger=_Log(), checkpointer=parts.checkpointer,
                   signals=signals)  # fmt: skip
        parts.checkpointer.close()
        return parts.algo


def final_state(directory: Path) -> dict[str, Any]:
    """What the newest checkpoint holds, less what depends on the clock."""
    newest = find_checkpoints(directory)[0][0]
    rest = newest.read("run.pt")
    del rest["clock"]
    rest["metrics"]["updates"] = [{k: v for k, v in u.items() if not k.startswith("time/")} for u in rest["metrics"]["updates"]]
    return {"algo": newest.read("algo.pt"), **rest}


def differences(a: Any, b: Any, at: str = "") -> list[str]:
    """Where two trees differ."""
    if isinstance(a, torch.Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(123.0), b.nan_to_num(123.0))
        return [] if same else [at]
    if isinstance(a, dict):
        return [at] if a.keys() != b.keys() else [d for k in a for d in differences(a[k], b[k], f"{at}/{k}")]
    if isinstance(a, list | tuple):
        return [at] if len(a) != len(b) else [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{at}/{i}")]
    return [] if a == b else [at]


def devices_of(algo: Any) -> set[str]:
    """Where the algorithm's networks are."""
    modules = [x for x in vars(algo).values() if isinstance(x, torch.nn.Module)]
    return {p.device.type for m in modules for p in [*m.parameters(), *m.buffers()]}


# What must hold of every case


def check_training(name: str, root: Path) -> tuple[float, float]:
    """A run that is stopped halfway and resumed ends with the bits of one that is not; stopped on the device, it can go on on the CPU.

    Returns:
        Waits for the device per env step while collecting, and per gradient step while updating (of alphago: per env step).
    """
    config, costs = compose(name), Costs()
    half = config.loop.total_env_steps / 2
    with device_here() as device:
        algo = train(config, root / "whole", device, costs=costs)
        assert devices_of(algo) <= {device.type}, devices_of(algo)
        steps = min(algo._steps.values()) if config.algo.name == "alphago" else costs.gradient_steps
        assert steps > 0, "nothing was learnt"
        train(config, root / "halves", device, until=half)
        shutil.copytree(root / "halves", root / "moved")
        train(config, root / "halves", device)
    wrong = differences(final_state(root / "whole"), final_state(root / "halves"))
    assert not wrong, f"resumed differs: {wrong[:6]}"
    train(config, root / "moved", CPU)
    counts = {phase: counted["waits"] for phase, counted in costs.counts.items()}
    return counts["collect"] / costs.rounds, counts["update"] / (costs.gradient_steps or costs.rounds)


def check_the_rest(name: str, root: Path) -> None:
    """A checkpoint of the CPU goes on on the device, and the device computes what the CPU does; after `check_training`."""
    config = compose(name)
    train(config, root / "back", CPU, until=config.loop.total_env_steps / 2)
    with device_here() as device:
        algo = train(config, root / "back", device)
        assert devices_of(algo) <= {device.type}, devices_of(algo)
    _check_use(name, root)
    if not REAL:
        _check_numbers(name, root)


def _check_numbers(name: str, root: Path) -> None:
    """Under one generator the device's numbers are the CPU's, once what the CPU does in NumPy, in bfloat16 or fused is done as there."""
    in_numpy = compose(name).algo.name in ("reinforce", "a2c", "ppo") and not any("activation" in word for word in CASES[name])
    config, adam = compose(name, *(["algo.activation=relu"] if in_numpy else [])), torch.optim.Adam
    with (  # one way of rounding
        mock.patch.object(torch.optim, "Adam", lambda *args, fused=None, **kwargs: adam(*args, **kwargs)),
        mock.patch("rlx.nn.resnet.fast_dtype", return_value=torch.float32),
        mock.patch("rlx.nn.networks._SMALL", -1),
        mock.patch("rlx.collect.array_policy", return_value=None),
        mock.patch.object(memories.GRUMemory, "unroll", memories._Recurrent.unroll),
    ):
        with device_here(own_generator=False) as device:
            train(config, root / "on_device", device)
        train(config, root / "on_cpu", CPU)
    a, b = (final_state(root / where) for where in ("on_device", "on_cpu"))
    for state in (a, b):
        del state["rng"]["cuda"]
    wrong = [d for d in differences(a, b) if not d.startswith("/algo/optimizer/param_groups")]
    assert not wrong, f"device differs from the CPU: {wrong[:6]}"


def _check_use(name: str, root: Path) -> None:
    """What rlx eval, watch, model, play and arena do with a policy, on the device."""
    config = compose(name)
    with device_here() as device, contextlib.closing(env_factory(config)(2)) as env:
        setup_torch(config, device)
        algo = build_algorithm(config, env_spec(config.env, env), device)
        load_algorithm(find_checkpoints(root / "whole")[0][0], algo, name=config.algo.name)
        for mode in ("eval", "train"):
            run_episodes(env, algo, episode_seeds(2, stream=[1], paired=config.env.is_game), mode=mode)  # type: ignore[arg-type]
        if config.env.is_game:
            _play(config, algo)
        if isinstance(algo, PredictsObservations):
            _predict(config, algo, env)
        if config.env.id in ("rlx/Sokoban-v0", "rlx/MiniPacman-v0"):
            _watch(config, algo)
        if isinstance(algo, Ablatable):
            _vary(config, algo, env)


def _play(config: RunConfig, algo: Any) -> None:
    from rlx.evaluation.game_session import GameSession
    from rlx.evaluation.match import RunPlayer, play_match

    game = env_factory(config).game  # type: ignore[union-attr]
    for part in (algo.parts() if isinstance(algo, HasParts) else {"": algo}).values():
        play_match(game, RunPlayer("a", part), RunPlayer("b", algo), openings=1, opening_plies=1, seed=0)
    session = GameSession(game, algo, run_side=0)
    while not session.is_over:
        session.play(session.analyse().best)


def _predict(config: RunConfig, algo: Any, env: Any) -> None:
    from rlx.evaluation.episodes import record_episodes
    from rlx.evaluation.model_quality import RandomPolicy, measure_error

    assert algo.observation_scale() is not None
    for policy in (algo, RandomPolicy(env.single_action_space, seed=0)):
        episodes = record_episodes(env, policy, episode_seeds(2, stream=[1]))
        assert np.isfinite(measure_error(algo, episodes, 2, device=algo.device).error).all()


def _watch(config: RunConfig, algo: Any) -> None:
    from rlx.envs.grids.grid_env import make_grid
    from rlx.envs.grids.grid_settings import settings_of
    from rlx.evaluation.watching import Watch, action_parts, play
    from rlx.render.watch_files import picture

    board = make_grid(settings_of(config.env.id, config.env.kwargs), 1)
    for mode in ("eval", "train"):
        moments = list(play(board, algo, np.array([3]), mode=mode, steps=3))  # type: ignore[arg-type]
    watch = Watch(title="title", grid=board.rules, depth=moments[0].decision.depth if moments[0].decision else 0, moments=iter(moments),
                  parts=action_parts(board.single_action_space, config.env.id, board), fps=3.0, why_no_frame=lambda: None)  # fmt: skip
    picture(moments[0], watch, moments[0])


def _vary(config: RunConfig, algo: Any, env: Any) -> None:
    choices = [[(name, choice) for choice in ("", *choices)] for name, choices in algo.ablations().items()]
    tried = 0
    for chosen in itertools.product(*choices):
        wanted = {name: choice for name, choice in chosen if choice}
        try:
            other = algo.ablate(wanted, mode="eval")
        except ConfigError:
            continue
        tried += 1
        run_episodes(env, other, episode_seeds(2, stream=[1]))
        if wanted.get("imagination") in ("on", "perfect"):
            _watch(config, other)
    assert tried
