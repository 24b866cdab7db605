"""Everything that can be set, typed, with its rules. Defaults live here; YAML under conf/ holds what differs from them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from rlx.config.algos.base_config import AlgoConfig, Suits
from rlx.config.cadence import Cadence, cadences_of, usual_cadence
from rlx.config.setting import ATARI, GAME, NO_GAME, check_ranges, require, setting
from rlx.envs.atari.atari_settings import AtariProtocol, atari_settings, game_of, usual_protocol
from rlx.envs.control.recall_settings import RECALL, recall_settings
from rlx.envs.control.spaceship_settings import SPACESHIP, spaceship_settings
from rlx.envs.grids.grid_settings import WORLDS, settings_of
from rlx.envs.mujoco.course_settings import COURSES, course_settings
from rlx.errors import ConfigError

MOST_ENVS = 2**20
"""Largest batch of an environment that is implemented as arrays."""
MOST_OBJECTS = 2**14
"""Largest batch of environments that are one Python object each."""
GAME_PREFIX = "spiel:"
"""Prefix of a two-player game's id, before its name in OpenSpiel."""
_EVALUATED_GAME = GAME, "loop.eval_every is above 0"


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
    bf16 = "bf16"


@dataclass(kw_only=True)
class EnvConfig:
    id: str = "CartPole-v1"
    """Gymnasium id, `my_module:MyEnv-v0` for one that `import my_module` registers, or `my_module:MyEnv` for a class of it."""
    num_envs: int = setting(8, at_least=1, at_most=MOST_ENVS)
    """Environments stepped side by side, B; at most 16,384 where each is a Python object."""
    workers: int = setting(0, at_least=0, at_most=1024, used_if=NO_GAME, neutral=0)
    """Worker processes to step them in, at most num_envs; 0 steps them in the training process, which is faster for cheap envs."""
    worker_timeout_s: float = setting(60.0, above=0, at_most=1_000_000, used_if="env.workers is above 0")
    """Seconds after which a worker that does not answer ends the run."""
    threads: int = setting(1, at_least=1, at_most=1024, used_if=(NO_GAME, "env.native=true"), neutral=1)
    """Threads to step rlx's own batches of MuJoCo in; the results are the same with any number. A thread pays where a step of all
    environments takes more than about 0.5 ms and there are cores to spare."""
    native: bool = setting(True, used_if=NO_GAME)
    """Use rlx's own implementation of the environment where there is one (see `rlx envs`)."""
    protocol: AtariProtocol | None = setting(None, used_if=(ATARI, "env.native=true"), neutral=None)
    """How an Atari game is played: v5 (an action sticks with probability 0.25) or v4 (no sticky actions, 1 to 30 frames without an action
    at the start, FIRE is pressed, a lost life ends a return in training). null is v5 for ALE/X-v5, v4 for XNoFrameskip-v4."""
    rescale_actions: bool = setting(True, used_if=NO_GAME)
    """Rescale bounded continuous actions from [-1, 1] to their bounds; false clips them to the bounds instead."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments for the environment's constructor, e.g. env.kwargs.max_episode_steps=200; parameters of a game, e.g. env.kwargs.rows=5.
    What the environment's own file lists can be written without kwargs, e.g. env.task=hunt."""
    wrappers: list[Any] = setting([], used_if=NO_GAME, neutral=[])
    """Gymnasium wrappers of your own, innermost first: [my_module:Wrap] or '[{target: my_module:Wrap, kwargs: {k: 4}}]'."""
    opponent: str = setting("uct:1000", used_if=_EVALUATED_GAME)
    """The opponent in evaluations: random, one_ply, uct:SIMULATIONS or solver."""
    opening_plies: int = setting(0, at_least=0, used_if=_EVALUATED_GAME)
    """Random moves at the start of each game of an evaluation."""

    def wrapper_targets(self) -> list[str]:
        """What `wrappers` names, as `module:Wrapper`. Raises a ConfigError where an entry names nothing."""
        found = []
        for number, entry in enumerate(self.wrappers):
            given = {"target": entry} if isinstance(entry, str) else entry
            target = given.get("target") if isinstance(given, dict) and not given.keys() - {"target", "kwargs"} else None
            named = isinstance(target, str) and ":" in target.strip(":") and isinstance(given.get("kwargs", {}), dict)
            expected = "my_module:Wrapper or {target: my_module:Wrapper, kwargs: {…}}"
            require(named, f"env.wrappers[{number}]", expected, entry)
            found.append(str(target))
        return found

    def wrapper_kwargs(self) -> list[dict[str, Any]]:
        """The arguments of each of the wrappers."""
        return [{} if isinstance(entry, str) else dict(entry.get("kwargs", {})) for entry in self.wrappers]

    @property
    def is_game(self) -> bool:
        return self.id.startswith(GAME_PREFIX)

    @property
    def is_atari(self) -> bool:
        return game_of(self.id) is not None

    def __post_init__(self) -> None:
        check_ranges(self, "env")
        self.wrapper_targets()
        require(self.threads <= self.num_envs, "env.threads", f"between 1 and env.num_envs={self.num_envs}", self.threads)
        require(self.workers <= self.num_envs, "env.workers", f"between 0 and env.num_envs={self.num_envs}", self.workers)
        if self.id in WORLDS:
            settings_of(self.id, self.kwargs)
        if self.id == RECALL:
            recall_settings(self.kwargs)
        if self.id == SPACESHIP:
            spaceship_settings(self.kwargs)
        if self.id in COURSES:
            course_settings(self.id, self.kwargs)
        if self.is_atari and self.native:
            self.protocol = self.protocol or usual_protocol(self.id)
            atari_settings(self.id, self.kwargs)


@dataclass(kw_only=True)
class LoopConfig:
    """Budget and cadences, all in env steps."""

    total_env_steps: int = setting(200_000, at_least=1)
    """Env steps, over all environments, after which the run is finished."""
    target_return: float | None = None
    """Finish as soon as the mean return of the last 100 training episodes reaches this; null never does."""
    log_every: int | None = setting(None, at_least=1)
    """Env steps between lines of metrics; null is 10,000, or a 2,000th of a budget above 20 million."""
    eval_every: int | None = setting(None, at_least=0, expected="at least 0 (0 never evaluates)")
    """Env steps between evaluations, which also follow the last step; 0 never evaluates. null is 50,000, or a hundredth of a budget
    above 5 million."""
    eval_episodes: int = setting(10, within="[1, 1,000,000]", used_if="loop.eval_every is above 0")
    """Episodes per evaluation."""
    eval_max_steps: int = setting(27_000, at_least=0, expected="at least 0 (0 waits for the end of an episode)")
    """Env steps after which an episode of an evaluation is cut and its return so far counted; 0 waits for its end. The default is
    half an hour of an Atari game (Machado et al. 2018, https://arxiv.org/abs/1709.06009), and longer than episodes of the environments
    listed."""
    checkpoint_every: int | None = setting(None, at_least=0, expected="at least 0 (0 saves only at the end)")
    """Env steps between checkpoints, which are also taken before every evaluation and at the end; 0 takes only those. null is 50,000, or
    a hundredth of a budget above 5 million."""
    keep_checkpoints: int = setting(2, at_least=1)
    """Newest checkpoints to keep, beside the best."""

    def __post_init__(self) -> None:
        check_ranges(self, "loop")
        finite = self.target_return is None or abs(self.target_return) < float("inf")
        require(finite, "loop.target_return", "a finite number, or null", self.target_return)

    @property
    def cadence(self) -> Cadence:
        """Budget and cadences as numbers; those that are null follow from the budget."""
        given = cadences_of(self)
        every = {name: usual_cadence(name, self.total_env_steps) if steps is None else steps for name, steps in given.items()}
        return Cadence(total_env_steps=self.total_env_steps, target_return=self.target_return, eval_max_steps=self.eval_max_steps, **every)


@dataclass(kw_only=True)
class LogConfig:
    wandb: WandbMode = WandbMode.auto
    """Mirror metrics to Weights & Biases: auto is online where a login exists, else offline; online without a login is refused."""
    wandb_project: str | None = None
    """W&B project; null is $WANDB_PROJECT, or else rlx."""
    wandb_entity: str | None = None
    """W&B user or team that the project belongs to; null is $WANDB_ENTITY, or else the login's default."""
    tensorboard: bool = False
    """Also write event files for TensorBoard, into the run's tensorboard/; takes the extra `tensorboard`."""
    console: ConsoleMode = ConsoleMode.auto
    """What the terminal shows: auto is a live view on a terminal and plain lines elsewhere."""


@dataclass(kw_only=True)
class RuntimeConfig:
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps. auto is a CUDA GPU, if there is any, where that was measured to be faster: for convolutions of at
    least 32 channels, and for dense layers of at least 512 units except in pets; else the CPU."""
    threads: int = 1
    """Threads of one torch operation; 1 is the fastest for small networks. Another number gives other rounding."""
    precision: Precision = Precision.highest
    """torch.set_float32_matmul_precision, and whether convolutions may use TF32 (not at highest): lower is faster and less exact. bf16
    computes the convolutions of encoders in bfloat16 and the rest at highest: about twice as fast on a processor with instructions for
    it (see `rlx doctor`)."""
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
    """Seed from which every random stream is derived."""

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "seed", "within [0, 2**63)", self.seed)
        if isinstance(self.algo, AlgoConfig):
            self.algo.check_num_envs(self.env.num_envs)
            self._check_suits()

    @classmethod
    def defaults(cls, algo: AlgoConfig) -> RunConfig:
        """The defaults with the settings of an algorithm, whether or not it suits the default environment."""
        config = cls()
        config.algo = algo
        return config

    @property
    def gains_from_gpu(self) -> bool:
        """Whether a GPU was measured to train this faster than a CPU."""
        on_board = self.env.id in WORLDS or (self.env.is_game and self.env.id != f"{GAME_PREFIX}tic_tac_toe")
        return bool(self.algo.gains_from_gpu(on_board=on_board or self.env.is_atari))

    def _check_suits(self) -> None:
        """Raise a ConfigError if the algorithm plays only two-player games and the environment is none, or plays none and it is one."""
        name, env, suits = self.algo.name, self.env, self.algo.suits
        if not env.is_game and all(kind is Suits.games for kind in suits):
            raise ConfigError(f"algo={name} plays two-player games, and env={env.id} is none; try env=connect_four, or algo=ppo")
        if env.is_game and Suits.games not in suits:
            raise ConfigError(f"env={env.id} is a two-player game, which algo={name} cannot play; try algo=alphazero")


RESUMABLE = ("loop", "log", "runtime.device")
"""What a resumed run may change: budget, cadences, logging and device. Anything else would make it another run."""


def is_resumable(key: str) -> bool:
    """Whether a resumed run may change a key."""
    return any(key == allowed or key.startswith(allowed + ".") for allowed in RESUMABLE)
