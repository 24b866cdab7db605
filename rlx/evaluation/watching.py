"""An agent at play, step by step, with what it saw and what its decisions were based on."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from rlx.config.schema import RunConfig
from rlx.envs.control.spaceship_picture import Imagined, draw
from rlx.envs.control.spaceship_settings import SPACESHIP
from rlx.envs.grids.grid_env import GridVectorEnv, make_grid
from rlx.envs.grids.grid_settings import WORLDS, settings_of
from rlx.envs.grids.gridworld import Grid
from rlx.envs.meanings import choice_names, quantity_names
from rlx.errors import ConfigError
from rlx.evaluation.capabilities import ablated, check_ablation
from rlx.evaluation.episodes import Begun, episode_seeds, play_steps
from rlx.evaluation.evaluate import EVAL_STREAM
from rlx.evaluation.inputs import Input, inputs_of, plain_path
from rlx.evaluation.loading import choose_checkpoint, load_policy
from rlx.evaluation.rendering import Camera
from rlx.rng import seed_everything
from rlx.spaces import ACTION_MASK, ProductSpace, choices_of, is_masked, original_space, space_leaves
from rlx.store.runs import RunDir
from rlx.tree_ops import map_tree
from rlx.types import Explains, Explanation, Mode, Policy, PolicyOutput, Tree, VectorEnv

_BOARD_FPS = 3.0


class Decision(NamedTuple):
    """The explanation of one decision: the fields of `rlx.types.Explanation` without those of a batch, and but for its inputs."""

    probs: NDArray[np.float32] | None  # [M]
    value: float | None = None
    probs_without: NDArray[np.float32] | None = None  # [M]
    planes: NDArray[np.uint8] | None = None  # [A, D, C, H, W]
    reward: NDArray[np.float32] | None = None  # [A, D]
    saliency: NDArray[np.float32] | None = None  # [A]
    q_value: NDArray[np.float32] | None = None  # [A]
    mean: NDArray[np.float32] | None = None  # [C]
    std: NDArray[np.float32] | None = None  # [C]
    imagined: NDArray[np.float32] | None = None  # [K, D]
    imagined_from: NDArray[np.int64] | None = None  # [K]

    @property
    def shift(self) -> float | None:
        """KL(policy || policy without imagination), in nats."""
        if self.probs is None or self.probs_without is None:
            return None
        p, q = (x.astype(np.float64).clip(1e-12) for x in (self.probs, self.probs_without))
        return max(0.0, float((p * np.log(p / q)).sum()))

    @property
    def depth(self) -> int:
        """Frames of each imagined rollout."""
        return 0 if self.planes is None else self.planes.shape[1]


class Part(NamedTuple):
    """One number of an action: a choice among options, or a quantity."""

    name: str
    """Empty where an action is a single choice."""
    options: tuple[str, ...] = ()
    """Of a choice; empty for a quantity."""
    low: float = -np.inf
    high: float = np.inf


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A state, the step that led to it, and the decision that follows."""

    episode: int
    """From 1."""
    step: int
    """Env steps of the episode before it."""
    planes: NDArray[np.uint8] | None = None
    """[C, H, W] of a grid world."""
    frame: NDArray[np.uint8] | None = None
    """[h, w, 3], rendered; None in a grid world, and where there is none."""
    inputs: tuple[Input, ...] = ()
    """Of the network; empty where the episode has ended."""
    reward: float | None
    """Of the step that led here; None where an episode begins."""
    events: tuple[str, ...] = ()
    """Of that step."""
    return_: float
    """Undiscounted, until here."""
    action: NDArray[Any] | None
    """[K] the one that is taken, choices counted from 0; None where the episode has ended."""
    mask: NDArray[np.bool_] | None = None
    """[M] True for the choices that are allowed; None where all are."""
    decision: Decision | None
    """None where the episode has ended, or the algorithm explains nothing."""
    terminated: bool = False

    @property
    def when(self) -> str:
        """The episode, the number of the step, and the return so far."""
        number = f"after {self.step} steps" if self.action is None else f"step {self.step + 1}"
        precise = "+.1f" if self.return_ == 0.0 or abs(self.return_) >= 1.0 else "+.2g"
        return f"episode {self.episode}, {number}, return {self.return_:{precise}}"


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Episodes of a run, which are played while `moments` is consumed."""

    title: str
    grid: Grid | None
    """The world, where it is one of rlx's grid worlds."""
    depth: int
    """Frames of each imagined rollout; 0 where nothing is imagined."""
    parts: tuple[Part, ...]
    """The numbers of an action."""
    fps: float
    """Steps a second of real time."""
    why_no_frame: Callable[[], str | None]
    """The reason why moments have no frame; None where they have one."""
    moments: Iterator[Moment]


def watch_run(
    run: RunDir,
    *,
    checkpoint: str = "latest",
    episodes: int = 1,
    steps: int | None = None,
    stochastic: bool = False,
    ablation: Mapping[str, str] | None = None,
    seed: int = 0,
    trust: bool = False,
    warn: Callable[[str], None] = warnings.warn,
) -> Watch:
    """Play the first episodes of `rlx eval` step by step.

    Args:
        run: on anything but a game.
        checkpoint: `best`, `latest`, or the env steps of one.
        episodes: how many are played.
        steps: stop after so many decisions.
        stochastic: sample actions as in training, instead of taking the most likely one.
        ablation: choices of `Ablatable.ablate`.
        seed: draws other episodes than the usual ones.
        trust: run the code that somebody else's run names.
        warn: is called with a message where a damaged checkpoint is passed over.

    Raises:
        ConfigError: if an argument does not fit the run, or it is on a game.
        CheckpointError: if there is no such checkpoint.
    """
    config, ablation = run.config(trust=trust), ablation or {}
    if config.env.is_game:
        raise ConfigError(f"{run.reference} is algo={config.algo.name} on env={config.env.id}, a game: rlx play {run.reference} shows it")
    check_ablation(ablation, algo=config.algo.name, run=run.reference)
    chosen = choose_checkpoint(run, checkpoint, warn=warn)
    mode: Mode = "train" if stochastic else "eval"
    board = _board(config)
    camera = Camera(config) if board is None else None
    env: VectorEnv = board or camera.env  # type: ignore[union-attr]
    algo = ablated(load_policy(config, chosen, env), ablation, mode=mode)
    seed_everything(seed)
    seeds = episode_seeds(episodes, stream=[*EVAL_STREAM, seed])
    moments = play(env, algo, seeds, mode=mode, steps=steps, max_steps=config.loop.eval_max_steps, camera=camera,
                   scene=_spaceship if config.env.id == SPACESHIP and not config.env.wrappers else None, env_id=config.env.id)  # fmt: skip
    first = next(moments)
    changes = "".join(f", {name} {choice}" for name, choice in ablation.items())
    return Watch(
        title=f"{run.name} at {chosen.env_steps:,} env steps{changes}",
        grid=board.rules if board else None,
        depth=first.decision.depth if first.decision else 0,
        parts=action_parts(env.single_action_space, config.env.id, camera.env.envs[0] if camera else board),
        fps=(camera.fps if camera else None) or _BOARD_FPS,
        why_no_frame=lambda: camera.problem if camera else None,
        moments=itertools.chain([first], moments),
    )


def _board(config: RunConfig) -> GridVectorEnv | None:
    """One board of the world that a run is on; None if that is no grid world, or one that wrappers change."""
    if config.env.id not in WORLDS or config.env.wrappers:
        return None
    return make_grid(settings_of(config.env.id, config.env.kwargs), 1, split="evaluation")


def action_parts(space: gymnasium.Space[Any], env_id: str, env: Any) -> tuple[Part, ...]:
    """The numbers of an action with their names.

    Args:
        space: of actions, as the algorithm sees it.
        env_id: the environment's id.
        env: one environment, which may know names.
    """
    if isinstance(space, spaces.Discrete):
        return (Part("", choice_names(env, env_id, int(space.n))),)
    if isinstance(space, ProductSpace):
        named = zip(space_leaves(original_space(space)), space.parts, strict=True)
        return tuple(p._replace(name=plain_path(path, p.name)) for (path, _), part in named for p in action_parts(part, "", None))
    if isinstance(space, spaces.Box):
        low, high = space.low.ravel().tolist(), space.high.ravel().tolist()
        return tuple(Part(*part) for part in zip(quantity_names(env, env_id, len(low)), itertools.repeat(()), low, high, strict=False))
    kind = "bit" if isinstance(space, spaces.MultiBinary) else "choice"
    return tuple(Part(f"{kind} {i}", tuple(map(str, range(n)))) for i, n in enumerate(choices_of(space)))


def play(
    env: VectorEnv,
    policy: Policy,
    seeds: NDArray[np.int64],
    *,
    mode: Mode = "eval",
    steps: int | None = None,
    max_steps: int = 0,
    camera: Callable[[], NDArray[np.uint8] | None] | None = None,
    scene: Callable[[Any, Decision], NDArray[np.uint8]] | None = None,
    env_id: str = "",
) -> Iterator[Moment]:
    """The moments of one episode for every seed, each with the state where it ended, until so many decisions were taken.

    Args:
        env: a single environment.
        policy: is asked for explanations if it has any.
        seeds: of the episodes.
        mode: "train" samples actions.
        steps: decisions in all; None for no limit.
        max_steps: an episode that has not ended after so many env steps is cut; 0 sets no limit.
        camera: the rendered frame of the environment; unused in a grid world.
        scene: draws an observation and what was imagined, in place of the rendered frame.
        env_id: its id, which may tell the names of what is observed.
    """
    taken = 0
    explaining = _Explaining(policy)
    space, choices = env.single_observation_space, choices_of(env.single_action_space)
    masked = is_masked(space, env.single_action_space)
    starts = np.asarray(getattr(env.single_action_space, "start", 0))
    board = env if isinstance(env, GridVectorEnv) else None

    def look() -> dict[str, Any]:
        return {"planes": board.planes()[0].copy()} if board else {"frame": camera() if camera else None}

    for step in play_steps(env, explaining, seeds, mode=mode, max_steps=max_steps):
        if isinstance(step, Begun):
            before: dict[str, Any] = {"step": 0, "reward": None, "events": (), "return_": 0.0, **look()}
            if taken == steps:
                return
            continue
        episode = int(step.episode[0]) + 1
        obs = explaining.obs
        mask = None
        if masked:
            obs = dict(obs)
            mask = np.asarray(obs.pop(ACTION_MASK)).astype(bool)
        action = (step.action[0] - starts).ravel() if choices else np.ravel(step.action[0])
        if scene is not None and explaining.decision is not None:
            before["frame"] = scene(obs, explaining.decision)
        yield Moment(episode=episode, action=action, decision=explaining.decision, mask=mask,
                     inputs=() if board else inputs_of(space, env_id, obs, explaining.inputs), **before)  # fmt: skip
        taken += 1
        events = () if board is None else tuple(
            name for name, happened in zip(board.rules.events, step.info["events"][0], strict=True) if happened
        )  # fmt: skip
        before = {
            "step": int(step.length[0]), "reward": float(step.reward[0]), "events": events, "return_": float(step.return_[0]), **look(),
        }  # fmt: skip
        if step.is_last[0]:
            yield Moment(episode=episode, action=None, decision=None, terminated=bool(step.terminated[0]), **before)
        elif taken == steps:
            return


def _spaceship(obs: Any, decision: Decision) -> NDArray[np.uint8]:
    """A spaceship's scene, with a line for everything that was imagined."""
    if decision.imagined is None or decision.imagined_from is None:
        return draw(obs)
    places = [obs[:2], *decision.imagined[:, :2]]
    lines = [Imagined(places[begin], places[k]) for k, begin in enumerate(decision.imagined_from.tolist(), start=1) if begin >= 0]
    return draw(obs, lines)


class _Explaining:
    """A policy for one environment that keeps what its last decision was based on."""

    def __init__(self, policy: Policy) -> None:
        self._policy, self.device, self.initial_carry = policy, policy.device, policy.initial_carry
        self.decision: Decision | None = None
        self.obs: Tree = ()
        self.inputs: dict[str, Tree] | None = None

    def act(self, obs: Any, carry: Tree, is_first: torch.Tensor, *, mode: Mode) -> PolicyOutput:
        self.obs = _first(obs)
        if isinstance(self._policy, Explains):
            output, explanation = self._policy.explain(obs, carry, is_first, mode=mode)
            self.decision, self.inputs = _decision(explanation), _first(explanation.inputs)
            return output
        return self._policy.act(obs, carry, is_first, mode=mode)


def _first(tree: Tree | None) -> Tree | None:
    """The first of a batch, as arrays."""

    def array(leaf: torch.Tensor) -> NDArray[Any]:
        one = leaf[0].cpu()
        return (one.float() if one.is_floating_point() else one).numpy().copy()  # NumPy has no bfloat16

    return None if tree is None else map_tree(array, tree)


def _decision(explanation: Explanation) -> Decision:
    """The explanation of the first of a batch."""
    probs, value, without, planes, *rest = (_first(x) for x in explanation[:-1])
    return Decision(probs, None if value is None else float(value), without, None if planes is None else planes.astype(np.uint8), *rest)
