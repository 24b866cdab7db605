"""Everything that can be set, typed, with its rules. Defaults live here; YAML under conf/ holds what differs from them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from rlx.config.algos.base_config import require
from rlx.envs.grids.grid_settings import WORLDS, settings_of
from rlx.errors import ConfigError

MOST_ENVS = 2**20
"""Environments in arrays that can be stepped side by side."""
MOST_OBJECTS = 2**14
"""Environments that are an object each."""
GAME_PREFIX = "spiel:"
"""How the id of a two-player game begins; OpenSpiel's name of it follows."""


class WandbMode(Enum):
    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


class ConsoleMode(Enum):
    auto = "auto"
    live = "live"
    plain = "plain"
    quiet = "quiet"


class Precision(Enum):
    highest = "highest"
    high = "high"
    medium = "medium"


@dataclass(kw_only=True)
class EnvConfig:
    id: str = "CartPole-v1"
    """Gymnasium id, `my_module:MyEnv-v0` for one that `import my_module` registers, or `my_module:MyEnv` for a class of it."""
    num_envs: int = 8
    """Environments stepped side by side, B; 1 to 1,048,576, and to 16,384 where each is an object of its own."""
    workers: int = 0
    """Worker processes to step them in, at most num_envs; 0 steps them in the training process, which is faster for cheap envs."""
    worker_timeout_s: float = 60.0
    """Seconds after which a worker that does not answer ends the run; above 0."""
    native: bool = True
    """Use rlx's own vectorised implementation of the environment where there is one (see `rlx envs`)."""
    rescale_actions: bool = True
    """Bounded continuous actions come from [-1, 1] and are stretched to their bounds; false clips them to the bounds instead."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments for the environment's constructor, e.g. env.kwargs.max_episode_steps=200; parameters of a game, e.g. env.kwargs.rows=5.
    What the environment's own file lists can be written without kwargs, e.g. env.task=hunt."""
    opponent: str = "uct:1000"
    """Games: whom evaluations are played against: random, one_ply, uct:SIMULATIONS or solver."""
    opening_plies: int = 0
    """Games: random moves at the beginning of a game of an evaluation; at least 0."""

    @property
    def is_game(self) -> bool:
        return self.id.startswith(GAME_PREFIX)

    def __post_init__(self) -> None:
        require(self.num_envs >= 1, "env.num_envs", "at least 1", self.num_envs)
        require(self.num_envs <= MOST_ENVS, "env.num_envs", f"at most {MOST_ENVS:,}", self.num_envs)
        require(0 <= self.workers <= self.num_envs, "env.workers", f"between 0 and env.num_envs={self.num_envs}", self.workers)
        require(self.workers <= 1024, "env.workers", "at most 1024", self.workers)
        require(self.opening_plies >= 0, "env.opening_plies", "at least 0", self.opening_plies)
        require(0 < self.worker_timeout_s <= 1e6, "env.worker_timeout_s", "above 0 and at most 1e6", self.worker_timeout_s)
        if self.id in WORLDS:
            settings_of(self.id, self.kwargs)


@dataclass(kw_only=True)
class LoopConfig:
    """Budget and cadences, all in env steps."""

    total_env_steps: int = 200_000
    """Env steps, over all environments, after which the run is finished; at least 1."""
    target_return: float | None = None
    """Finish as soon as the mean return of the last 100 training episodes reaches this; null never does."""
    log_every: int = 10_000
    """Env steps between lines of metrics; at least 1."""
    eval_every: int = 50_000
    """Env steps between evaluations, which also follow the last step; 0 never evaluates."""
    eval_episodes: int = 10
    """Episodes per evaluation; at least 1."""
    eval_max_steps: int = 27_000
    """Env steps after which an episode of an evaluation is cut and counted as it stands; 0 waits for its end. The default is half an hour
    of an Atari game (Machado et al. 2018, https://arxiv.org/abs/1709.06009), and longer than episodes of the environments listed."""
    checkpoint_every: int = 50_000
    """Env steps between checkpoints, which are also taken before every evaluation and at the end; 0 takes only those."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep, beside the best; at least 1."""

    def __post_init__(self) -> None:
        require(self.total_env_steps >= 1, "loop.total_env_steps", "at least 1", self.total_env_steps)
        finite = self.target_return is None or abs(self.target_return) < float("inf")
        require(finite, "loop.target_return", "a finite number, or null", self.target_return)
        require(self.log_every >= 1, "loop.log_every", "at least 1", self.log_every)
        require(self.eval_every >= 0, "loop.eval_every", "at least 0 (0 never evaluates)", self.eval_every)
        require(1 <= self.eval_episodes <= 1_000_000, "loop.eval_episodes", "within [1, 1,000,000]", self.eval_episodes)
        require(self.eval_max_steps >= 0, "loop.eval_max_steps", "at least 0 (0 waits for the end of an episode)", self.eval_max_steps)
        require(self.checkpoint_every >= 0, "loop.checkpoint_every", "at least 0 (0 saves only at the end)", self.checkpoint_every)
        require(self.keep_checkpoints >= 1, "loop.keep_checkpoints", "at least 1", self.keep_checkpoints)


@dataclass(kw_only=True)
class LogConfig:
    wandb: WandbMode = WandbMode.auto
    """Mirror metrics to Weights & Biases: auto is online where a login exists, else offline; online without a login is refused."""
    wandb_project: str | None = None
    """W&B project; null is $WANDB_PROJECT, or else rlx."""
    console: ConsoleMode = ConsoleMode.auto
    """What the terminal shows: auto is a live view on a terminal and plain lines elsewhere."""


@dataclass(kw_only=True)
class RuntimeConfig:
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps. auto is a CUDA GPU, if there is any, where that was measured to be faster: for convolutions of at
    least 32 channels, and for dense layers of at least 512 units but in pets; else the CPU."""
    threads: int = 1
    """Threads of one torch operation; 1 is the fastest for small networks. Another number gives other rounding."""
    precision: Precision = Precision.highest
    """torch.set_float32_matmul_precision, and whether convolutions may use TF32 (not at highest): lower is faster and less exact."""
    deterministic: bool = True
    """Use only kernels that give the same result every time."""

    def __post_init__(self) -> None:
        kind, _, index = self.device.partition(":")
        valid = kind in ("auto", "cpu", "cuda", "mps") and (not index or (kind == "cuda" and index.isdigit()))
        require(valid and not self.device.endswith(":"), "runtime.device", "auto, cpu, cuda, cuda:N or mps", self.device)
        cores = os.cpu_count() or 1
        require(1 <= self.threads <= max(cores, 64), "runtime.threads", f"at least 1 and at most the {cores} cores here", self.threads)


@dataclass(kw_only=True)
class RunConfig:
    """One run, completely."""

    algo: Any = None
    """An AlgoConfig; which one is chosen by algo=NAME."""
    env: EnvConfig = field(default_factory=EnvConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    log: LogConfig = field(default_factory=LogConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    seed: int = 0
    """Every source of randomness follows from it; at least 0."""

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "seed", "within [0, 2**63)", self.seed)
        if hasattr(self.algo, "check_num_envs"):
            self.algo.check_num_envs(self.env.num_envs)
            self._check_kind()

    @property
    def gains_from_gpu(self) -> bool:
        """Whether a GPU was measured to train this faster than a CPU."""
        on_board = self.env.id in WORLDS or (self.env.is_game and self.env.id != f"{GAME_PREFIX}tic_tac_toe")
        return bool(self.algo.gains_from_gpu(on_board=on_board))

    def _check_kind(self) -> None:
        """Raise a ConfigError if the algorithm plays games and the environment is none, or the other way round."""
        name, env = self.algo.name, self.env
        if not self.algo.plays_others and not env.is_game:
            raise ConfigError(f"algo={name} plays two-player games, and env={env.id} is none; try env=connect_four, or algo=ppo")
        if env.is_game and not self.algo.plays_games:
            raise ConfigError(f"env={env.id} is a two-player game, which algo={name} cannot play; try algo=alphazero")


RESUMABLE = ("loop", "log", "runtime.device")
"""What a resumed run may change: budget, cadences, logging and device. Anything else would make it another run."""
