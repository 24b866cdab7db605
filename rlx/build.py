"""From a RunConfig to an algorithm, its environments and its device."""

from __future__ import annotations

import ctypes
import dataclasses
import math
import os
import sys
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector.utils import create_empty_array
from numpy.typing import NDArray
from torch import Tensor

from rlx.bodies import Bodies
from rlx.config import algo_registry
from rlx.config.algos.base_config import AlgoConfig
from rlx.config.schema import MOST_OBJECTS, EnvConfig, Precision, RunConfig
from rlx.distributed import World
from rlx.envs.actions import stretch
from rlx.envs.control.reward_functions import Rules, rules_of
from rlx.envs.control.simulators import SIMULATORS, simulator_of
from rlx.envs.mujoco.mirrors import MIRRORED, mirror_of
from rlx.envs.native import IN_THREADS
from rlx.envs.registry import GameEnvFactory, VectorEnvFactory
from rlx.envs.vector import GymVectorEnv
from rlx.envs.wrapping import Wrapping
from rlx.errors import ConfigError
from rlx.memory import check_fits, within_memory
from rlx.nn.precision import convolutions_in
from rlx.rng import seed_everything
from rlx.spaces import describe_space, original_space, space_leaves
from rlx.tree_ops import Tree, leaves
from rlx.types import Algorithm, Distributes, EnvSpec, Game, GridWorld, KeepsReplay, ReportsNetwork, RewardFn, Simulator, VectorEnv

_MUCH = 500_000_000
"""Bytes of a replay from which its size is announced."""
_REPLAY_SHARE = 0.8
"""Part of the free memory that a replay may take once it is full; the rest of the run needs some too."""
_ROWS = 256
"""Rows of a minibatch below which a step of several ranks takes a small network longer than its rows do."""
_IMAGE = 256
"""Bytes from which an array of two or three dimensions counts as an image."""


def resolve_device(config: RunConfig) -> torch.device:
    """The device for runtime.device on this machine.

    Raises:
        ConfigError: if this machine does not have it.
    """
    wanted = config.runtime.device
    if wanted == "auto":
        return torch.device("cuda" if config.gains_from_gpu and torch.cuda.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        there = f"{torch.cuda.device_count()} CUDA devices" if torch.cuda.is_available() else "no CUDA device"
        raise ConfigError(f"runtime.device={wanted}: torch sees {there} here; use runtime.device=cpu or auto (see `rlx doctor`)")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("runtime.device=mps: torch sees no Apple GPU here; use runtime.device=cpu or auto (see `rlx doctor`)")
    return device


def device_of_rank(device: torch.device, world: World) -> torch.device:
    """The device of this rank: each has a GPU of its own. Raises a ConfigError if there are too few here."""
    if world.size == 1 or device.type != "cuda":
        return device
    if world.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"rank {world.rank} would need the GPU number {world.local_rank} of its machine, which has {torch.cuda.device_count()}: "
            "start no more ranks on a machine than it has GPUs, or say runtime.device=cpu"
        )
    return torch.device("cuda", world.local_rank)


def setup_torch(config: RunConfig, device: torch.device) -> None:
    """Set the threads, precision and determinism of this process."""
    _keep_freed_memory()
    torch.set_num_threads(config.runtime.threads)
    precision = config.runtime.precision
    torch.set_float32_matmul_precision("highest" if precision is Precision.bf16 else precision.value)
    # torch's default is True for convolutions.
    torch.backends.cudnn.allow_tf32 = precision not in (Precision.highest, Precision.bf16)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # whose generator is saved, see `rlx.rng`
    if config.runtime.deterministic and (device.type != "cpu" or config.runtime.threads > 1):
        # One CPU thread is deterministic without it, and this call imports modules of torch for 0.9 s.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def _keep_freed_memory() -> None:
    """Let glibc keep freed memory: otherwise every batch of frames is allocated from the system again, with a page fault for each page."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        for option, value in ((-3, 1 << 25), (-1, 1 << 29), (-2, 1 << 26)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD
            libc.mallopt(option, value)  # type: ignore[union-attr]


def env_factory(config: RunConfig) -> VectorEnvFactory | GameEnvFactory:
    env = config.env
    if env.is_game:
        return GameEnvFactory(id=env.id, kwargs=env.kwargs, opponent=env.opponent, opening_plies=env.opening_plies)
    make_env = VectorEnvFactory(id=env.id, kwargs=env.kwargs, native=env.native, protocol=env.protocol, workers=env.workers,
                                worker_timeout_s=env.worker_timeout_s, rescale_actions=env.rescale_actions, threads=env.threads,
                                flatten=not config.algo.takes_trees,
                                wrappers=list(map(Wrapping, env.wrapper_targets(), env.wrapper_kwargs())))  # fmt: skip
    if (not make_env.is_native or env.id in IN_THREADS) and env.num_envs > MOST_OBJECTS:
        raise ConfigError(f"env.num_envs must be at most {MOST_OBJECTS:,}, got {env.num_envs}: each {env.id} is an object of its own")
    return make_env


def env_spec(config: EnvConfig, env: VectorEnv | gymnasium.Env[Any, Any]) -> EnvSpec:
    """The EnvSpec of an environment; `env` is one environment or a batch."""
    rules = Rules(reward_unknown="env.wrappers may change it") if config.wrappers else rules_of(config.id, config.kwargs)
    observation_space, action_space = spaces_of(env)
    simulator = None if config.wrappers else simulator_of(config.id, config.kwargs)
    return EnvSpec(
        id=config.id,
        observation_space=observation_space,
        action_space=action_space,
        game=game if isinstance(game := getattr(env, "game", None), Game) else None,
        grid=None if config.wrappers else _rules_of(env, "grid", GridWorld),
        bodies=None if config.wrappers else _rules_of(env.envs[0] if isinstance(env, GymVectorEnv) else env, "bodies", Bodies),
        mirror=None if config.wrappers else mirror_of(config.id, observation_space, action_space),
        mirrored=MIRRORED,
        reward_fn=rules.reward and of_rescaled(rules.reward, action_space),
        reward_unknown=rules.reward_unknown,
        termination_fn=rules.termination,
        never_terminates=rules.never_terminates,
        simulator=simulator and simulator_of_rescaled(simulator, action_space),
        simulated=tuple(SIMULATORS),
    )


def _rules_of(env: VectorEnv | gymnasium.Env[Any, Any], name: str, kind: type) -> Any:
    """An attribute of an environment, or None if it is not of this kind: other environments have a `grid` too, MiniGrid's for one."""
    found = getattr(env.unwrapped if isinstance(env, gymnasium.Env) else env, name, None)
    return found if isinstance(found, kind) else None


def spaces_of(env: VectorEnv | gymnasium.Env[Any, Any]) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
    """The spaces of observations and actions of an environment, or of one environment of a batch."""
    if isinstance(env, gymnasium.Env):
        return env.observation_space, env.action_space
    return env.single_observation_space, env.single_action_space


def spaces_in_words(env: VectorEnv | gymnasium.Env[Any, Any]) -> dict[str, str]:
    """Descriptions of the spaces for a checkpoint, which is refused if they have changed."""
    observation, action = spaces_of(env)
    return {"observation": describe_space(observation), "action": describe_space(action)}


def of_rescaled(reward: RewardFn, space: gymnasium.Space[Any]) -> RewardFn:
    """A reward function of the algorithm's rescaled actions, from one of the environment's own actions."""
    original = original_space(space)
    if original is space or not isinstance(original, gymnasium.spaces.Box):
        return reward
    constants = [torch.from_numpy(x.astype(np.float32)) for x in stretch(original)]

    def of_actions(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        if constants[0].device != action.device:  # moved once, because every copy waits for the device
            constants[:] = [x.to(action.device) for x in constants]
        centre, half = constants
        return reward(obs, centre + half * action, next_obs)

    return of_actions


def simulator_of_rescaled(simulator: Simulator, space: gymnasium.Space[Any]) -> Simulator:
    """A simulator under the algorithm's rescaled actions, from one under the environment's own."""
    original = original_space(space)
    if original is space or not isinstance(original, gymnasium.spaces.Box):
        return simulator
    centre, half = (x.astype(np.float32) for x in stretch(original))
    return lambda obs, action: simulator(obs, centre + half * action)


def image_notes(config: AlgoConfig, spec: EnvSpec) -> list[str]:
    """A warning where images are flattened."""
    if config.takes_images or not isinstance(spec.observation_space, gymnasium.spaces.Box):
        return []
    images = [
        " x ".join(map(str, space.shape))
        for _, space in space_leaves(original_space(spec.observation_space))
        if isinstance(space, gymnasium.spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3) and space.high.max() > 1
        and math.prod(space.shape) >= _IMAGE
    ]  # fmt: skip
    if not images:
        return []
    why = f"which are flattened into a vector, as {config.name} has no convolutions for them here: expect it to learn slowly or not at all"
    return [f"env={spec.id} observes images ({', '.join(images)}), {why}"]


def replay_notes(algo: Algorithm, config: RunConfig) -> list[str]:
    """How much memory the algorithm's replay will take in this run, if that is much.

    Raises:
        ConfigError: if it is more than there is: a replay takes memory only as it fills, so that it would end the run hours later.
    """
    if not isinstance(algo, KeepsReplay):
        return []
    setting = next(field.name for field in dataclasses.fields(config.algo) if field.name.endswith("replay_size"))
    length, budget = getattr(config.algo, setting), config.loop.total_env_steps
    filled = min(length, budget)
    num_bytes = algo.replay_bytes * filled / length
    if num_bytes < _MUCH:
        return []
    what = f"a replay of algo.{setting}={length:,} steps" if filled == length else f"a replay of loop.total_env_steps={budget:,} steps"
    advice = f"; algo.{setting}=%s fits"
    check_fits(num_bytes, what, share=_REPLAY_SHARE, advice=lambda part: advice % f"{_rounded(filled * part):_}")
    return [f"the replay takes {num_bytes / 1e9:.1f} GB once it is full; algo.{setting} sets its length"]


def run_notes(algo: Algorithm, spec: EnvSpec, config: RunConfig) -> list[str]:
    """Warnings about a run that are known before it starts, whatever the number of its ranks."""
    return image_notes(config.algo, spec) + replay_notes(algo, config) + budget_notes(config)


def budget_notes(config: RunConfig) -> list[str]:
    """A warning where the budget ends before learning begins."""
    first, budget = getattr(config.algo, "initial_steps", 0), config.loop.total_env_steps
    if first < budget:
        return []
    return [f"nothing is learned: loop.total_env_steps={budget:,} ends within the algo.initial_steps={first:,} random steps"]


def ranks_notes(algo: Algorithm, config: RunConfig, world: World) -> list[str]:
    """A warning where ranks spend much of their time on adding up gradients."""
    minibatches = getattr(config.algo, "num_minibatches", 1)
    rows = algo.rollout_length * config.env.num_envs // world.size // minibatches
    if world.size == 1 or minibatches == 1 or rows >= _ROWS:
        return []
    fewer = max(1, minibatches * rows // _ROWS)
    return [f"each of the {world.size} ranks has {rows} rows of a minibatch, and a gradient step of several ranks costs some 0.3 ms beside "
            f"its rows: a rank should have {_ROWS} rows or more; choose algo.num_minibatches={fewer}, "
            "more of env.num_envs, or fewer ranks"]  # fmt: skip


def _rounded(x: float) -> int:
    """A number with two digits that is at most x."""
    unit = 10 ** max(0, len(str(int(x))) - 2)
    return int(x) // unit * unit


def known_best(make_env: VectorEnvFactory | GameEnvFactory) -> tuple[Tree, NDArray[Any]] | None:
    """Observations [P, *] of positions and their best moves [P, A], if the environment is a game that `rlx.envs.games.solvers` solves."""
    if not isinstance(make_env, GameEnvFactory):
        return None
    from rlx.envs.games.solvers import probe  # imports numba, which most runs do without

    game = make_env.game
    known = probe(game)
    return known and (game.observe([game.state_of(history) for history in known.histories.tolist()]), known.optimal)


def build_algorithm(config: RunConfig, spec: EnvSpec, device: torch.device, *, num_envs: int | None = None) -> Algorithm:
    """The algorithm with its networks initialised from the seed.

    Args:
        config: of the run.
        spec: of its environment.
        device: of its networks.
        num_envs: environments that it acts in; by default all of the run.

    Raises:
        ConfigError: if it has no network for the env's spaces, or not enough memory.
    """
    num_envs = config.env.num_envs if num_envs is None else num_envs
    seed_everything(config.seed)
    if device.type == "cpu":  # 4 numbers of 4 bytes for each weight: itself, its gradient and Adam's two moments
        check_fits(4 * 4 * config.algo.least_weights(), f"the networks of algo={config.algo.name}")
    data = f"the networks and the data of algo={config.algo.name}"
    dtype = torch.bfloat16 if config.runtime.precision is Precision.bf16 else torch.float32
    with within_memory(data, limited=device.type == "cpu"), convolutions_in(dtype):
        algo: Algorithm = algo_registry.algorithm(config.algo.name).load()(config.algo, spec, num_envs, device)
    if config.runtime.precision is Precision.bf16 and not (isinstance(algo, ReportsNetwork) and algo.network_report()["bfloat16"]):
        raise ConfigError(f"runtime.precision=bf16 has no effect: it is for the convolutions of encoders, and algo={config.algo.name} on "
                          f"env={spec.id} has none; leave it out")  # fmt: skip
    steps = algo.rollout_length * num_envs
    arrays = leaves(create_empty_array(spec.observation_space, 1))
    size = 2 * steps * (16 + sum(array.nbytes for array in arrays))  # observations and their successors
    check_fits(size, f"a rollout of {algo.rollout_length:,} steps of env.num_envs={config.env.num_envs}")
    return algo


def check_ranks(config: RunConfig, num_ranks: int) -> None:
    """Raise a ConfigError if a run cannot be divided among so many ranks, for the reason that the most has to be changed for."""
    if num_ranks == 1:
        return
    name = config.algo.name
    if not issubclass(algo_registry.algorithm(name).load(), Distributes):
        able = ", ".join(f"algo={n}" for n in ("a2c", "ppo", "reinforce"))
        raise ConfigError(
            f"algo={name} learns in one process, so that it cannot be trained on {num_ranks} ranks: leave --ranks out, or use {able}"
        )
    if config.env.workers:
        raise ConfigError(
            f"env.workers={config.env.workers} has no place beside {num_ranks} ranks, each of which steps its environments in a process "
            "of its own: leave env.workers out, and use as many ranks"
        )
    if config.runtime.device.startswith("cuda:"):
        raise ConfigError(
            f"runtime.device={config.runtime.device} names one GPU for {num_ranks} ranks: say runtime.device=cuda, which gives each its own"
        )
    World(0, num_ranks).share(config.env.num_envs)
