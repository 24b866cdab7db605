"""The variance of the policy gradient under each estimator of `rlx.nn.advantages`, on one policy and one set of episodes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlx.build import build_algorithm, env_factory, env_spec, setup_torch
from rlx.config.schema import RunConfig
from rlx.errors import ConfigError
from rlx.evaluation.episodes import MAX_PARALLEL, Stopped, never
from rlx.evaluation.fitted_values import FittedValues
from rlx.evaluation.gradient_moments import NUM_BLOCKS, Estimate, GradientSums, Resampled
from rlx.evaluation.loading import choose_checkpoint, load_policy
from rlx.evaluation.whole_episodes import Episodes, collect_episodes
from rlx.nn.advantages import UNBIASED, Estimator, Outcomes
from rlx.nn.networks import Network
from rlx.nn.score_gradients import ScoreGradients
from rlx.rng import isolated_rng
from rlx.store.runs import RunDir
from rlx.tree_ops import pick
from rlx.types import Algorithm, VectorEnv

LEAST_EPISODES = 4 * NUM_BLOCKS
LAMBDAS, STEPS, BATCHES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98), (5, 20, 100), (1, 4, 16, 64)
_FIT, _MEASURED, _REFERENCE = 1, 2, 3
_NUM_HORIZONS = 6
_MANY_NUMBERS = 50_000_000
"""Numbers of all blocks' sums up to which gradients are kept: 400 MB."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """What was measured of one estimator; each number with a 95 % interval."""

    name: str
    kind: str
    unbiased: bool
    variance: dict[str, Estimate]
    """Trace of the covariance of one episode's gradient, by group of parameters; "all" is the whole policy."""
    relative: Estimate
    """Variance over that of the whole return."""
    bias: Estimate
    """|E g - E b| / |E b|, b the reference's estimator; negative where noise hides it."""
    episodes_for_snr_1: Estimate
    """Episodes in a batch whose noise is as large as its signal."""
    cosine: dict[int, Estimate]
    """To the reference, by episodes in a batch."""


@dataclass(frozen=True, kw_only=True)
class AtHorizon:
    """Variance where an episode's gradient is of its first steps only; what follows them is V in every estimator."""

    horizon: int
    variance: dict[str, Estimate]
    """By the name of the estimator."""


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The result of `rlx variance`."""

    title: str
    env: str
    discount: float
    num_episodes: int
    """Measured; the reference has as many others, and the fit half as many, but at least 64."""
    num_env_steps: int
    """Of all episodes."""
    mean_length: float
    value_explained: float
    """Explained variance of the fitted V on the measured episodes."""
    gain_explained: float
    """Of the fitted Q - V, of what V leaves of the returns."""
    reference: str
    reference_quality: float
    """Expected cosine of the reference to the exact gradient."""
    factor: Estimate
    """Variance of R(tau) over that of GAE(0.95)."""
    rungs: list[Rung]
    horizons: list[AtHorizon]

    def as_dict(self) -> dict[str, Any]:
        """As plain data; None in place of what is not finite."""
        return _plain(asdict(self))


def _plain(x: Any) -> Any:
    if isinstance(x, dict):
        return {str(k): _plain(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [_plain(v) for v in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def ladder(discount: float) -> dict[str, Estimator]:
    """The estimators that are measured, by name."""
    make = lambda kind, **more: Estimator(kind=kind, discount=discount, **more)  # noqa: E731
    return {
        "R(τ)": make("return"),
        "to go": make("to_go"),
        "to go - V": make("baseline"),
        "Q - V": make("q"),
        **{f"{n} steps": make("nstep", num_steps=n) for n in reversed(STEPS)},
        **{f"GAE({lam:g})": make("gae", lam=lam) for lam in reversed(LAMBDAS)},
    }


_SHOWN_BY_HORIZON = ("R(τ)", "to go", "to go - V", "GAE(0.95)")


def evaluate_variance(
    source: RunDir | RunConfig,
    *,
    checkpoint: str = "latest",
    episodes: int = 256,
    discount: float | None = None,
    seed: int = 0,
    trust: bool = False,
    should_stop: Callable[[], bool] = never,
    warn: Callable[[str], None] = warnings.warn,
) -> Ladder:
    """Measure the ladder of a run's policy, or of an untrained one.

    Args:
        source: a run, or the settings of an untrained policy.
        checkpoint: of a run: `best`, `latest`, or the env steps of one.
        episodes: measured; rounded up to a multiple of 64, which are played side by side.
        discount: gamma; by default the algorithm's.
        seed: draws other episodes, fits and resamples.
        trust: run the code that somebody else's run names.
        should_stop: is asked now and then.
        warn: is called with a message where a damaged checkpoint is passed over.

    Raises:
        ConfigError: if the algorithm has no policy gradient, or its network is not supported.
        CheckpointError: if there is no such checkpoint.
        Stopped: when `should_stop` returns True.
    """
    if episodes < LEAST_EPISODES:
        raise ConfigError(f"--episodes {episodes}: intervals need at least {LEAST_EPISODES} episodes")
    config = source.config(trust=trust) if isinstance(source, RunDir) else source
    if config.env.is_game:
        raise ConfigError(f"rlx variance is for environments of one player, and {config.env.id} is a game of two")
    env = env_factory(config)(MAX_PARALLEL)
    try:
        if isinstance(source, RunDir):
            chosen = choose_checkpoint(source, checkpoint, warn=warn)
            algo, env_steps = load_policy(config, chosen, env, device=torch.device("cpu")), chosen.env_steps
            title = f"{source.name} at {env_steps:,} env steps"
        else:
            setup_torch(config, torch.device("cpu"))
            algo, env_steps = build_algorithm(config, env_spec(config.env, env), torch.device("cpu")), 0
            title = f"untrained algo={config.algo.name}, seed {config.seed}"
        gamma = float(getattr(config.algo, "discount", 1.0)) if discount is None else discount
        _check(algo, config)
        with isolated_rng(seed, env_steps):
            return measure(algo, env, title=title, env_id=config.env.id, num_episodes=episodes, discount=gamma, seed=seed,
                           sign_reward=bool(getattr(config.algo, "sign_reward", False)), should_stop=should_stop)  # fmt: skip
    finally:
        env.close()


def _check(algo: Algorithm, config: RunConfig) -> None:
    net = getattr(algo, "net", None)
    if not isinstance(net, Network):
        raise ConfigError(f"algo={config.algo.name} follows no policy gradient of whole episodes; rlx variance is for algo=reinforce, a2c "
                          "and ppo")  # fmt: skip
    if net.records:
        raise ConfigError(f"rlx variance fits V and Q to vectors, and the encoder or the memory of this policy on {config.env.id} has "
                          "weights; choose an environment that observes numbers, and algo.memory=none")  # fmt: skip


def measure(
    algo: Algorithm,
    env: VectorEnv,
    *,
    title: str,
    env_id: str,
    num_episodes: int,
    discount: float,
    seed: int = 0,
    sign_reward: bool = False,
    should_stop: Callable[[], bool] = never,
) -> Ladder:
    """As `evaluate_variance`, of a policy in environments."""
    net: Network = algo.net  # type: ignore[attr-defined]

    def collect(purpose: int, number: int) -> Episodes:
        number = -(-number // env.num_envs) * env.num_envs
        own = int(np.random.SeedSequence([seed, purpose]).generate_state(1)[0])
        return collect_episodes(env, algo, number, seed=own, sign_reward=sign_reward, should_stop=should_stop)

    to_fit = collect(_FIT, max(64, num_episodes // 2))
    fitted = FittedValues(net, to_fit, discount=discount)
    estimators, gradients = ladder(discount), ScoreGradients(net)
    names, groups = list(estimators), {"all": slice(None), **gradients.groups}
    kept = NUM_BLOCKS * 2 * (len(names) + len(_SHOWN_BY_HORIZON) * _NUM_HORIZONS) * gradients.num_parameters
    if kept > _MANY_NUMBERS:
        raise ConfigError(f"the policy has {gradients.num_parameters:,} parameters, of whose gradients {kept / 1e6:,.0f} million numbers "
                          f"would be kept, more than {_MANY_NUMBERS / 1e6:.0f}; measure smaller algo.hidden_sizes")  # fmt: skip

    of_reference = collect(_REFERENCE, num_episodes)
    weights = _weights(of_reference, fitted, [(e, None) for e in estimators.values()])
    reference = GradientSums(len(of_reference.length), (len(weights), gradients.num_parameters), groups)
    _add_all(reference, gradients, net, of_reference, weights, should_stop)
    baseline = names.index("to go - V")

    measured = collect(_MEASURED, num_episodes)
    horizons = _horizons(int(measured.length.max()))
    columns: list[tuple[Estimator, int | None]] = [(e, None) for e in estimators.values()]
    columns += [(estimators[name], horizon) for horizon in horizons for name in _SHOWN_BY_HORIZON]
    weights = _weights(measured, fitted, columns)
    batches = [size for size in BATCHES if num_episodes // size >= 4]
    sums = GradientSums(len(measured.length), (len(weights), gradients.num_parameters), groups,
                        reference=reference.mean[baseline], batch_sizes=batches)  # fmt: skip
    _add_all(sums, gradients, net, measured, weights, should_stop)

    found = Resampled(sums, reference, seed=seed)
    signal = found.signal(baseline, group="all")
    whole, gae = (found.variance(names.index(name), "all") for name in ("R(τ)", "GAE(0.95)"))
    rungs = []
    for k, name in enumerate(names):
        variance = found.variance(k, "all")
        bias = found.signal(k, minus=baseline, group="all") / np.maximum(signal, np.finfo(float).tiny)
        rungs.append(Rung(
            name=name, kind=estimators[name].kind, unbiased=estimators[name].kind in UNBIASED,
            variance={group: Estimate.of(found.variance(k, group)) for group in groups},
            relative=Estimate.of(variance / whole),
            bias=Estimate.of(np.sign(bias) * np.sqrt(np.abs(bias))),
            episodes_for_snr_1=_inverse(Estimate.of(found.signal(k, group="all") / np.maximum(variance, np.finfo(float).tiny))),
            cosine={size: found.cosine(k, size) for size in batches},
        ))  # fmt: skip
    at = len(names)
    by_horizon = []
    for i, horizon in enumerate(horizons):
        first = at + i * len(_SHOWN_BY_HORIZON)
        by_horizon.append(AtHorizon(horizon=horizon, variance={
            name: Estimate.of(found.variance(first + j, "all")) for j, name in enumerate(_SHOWN_BY_HORIZON)
        }))  # fmt: skip
    true_signal = max(0.0, float(signal[0]))
    noise = found.variance(baseline, "all")[0] / len(of_reference.length)
    explained = fitted.explained_variance(measured)
    return Ladder(
        title=title, env=env_id, discount=discount, num_episodes=len(measured.length),
        num_env_steps=to_fit.num_steps + of_reference.num_steps + measured.num_steps,
        mean_length=float(measured.length.double().mean()), value_explained=explained[0], gain_explained=explained[1],
        reference=f"the mean of {names[baseline]} over {len(of_reference.length):,} other episodes",
        reference_quality=math.sqrt(true_signal / (true_signal + noise)) if true_signal + noise > 0.0 else math.nan,
        factor=Estimate.of(whole / gae), rungs=rungs, horizons=by_horizon,
    )  # fmt: skip


def _inverse(x: Estimate) -> Estimate:
    value, low, high = (1.0 / y if y > 0.0 else math.inf for y in (x.value, x.high, x.low))
    return Estimate(value, low, high)


def _horizons(longest: int) -> list[int]:
    """Up to _NUM_HORIZONS lengths in equal ratios, the last of which is the longest episode."""
    return sorted({max(2, round(longest / 2**i)) for i in range(_NUM_HORIZONS)})


@torch.no_grad()
def _weights(episodes: Episodes, fitted: FittedValues, columns: Sequence[tuple[Estimator, int | None]]) -> Tensor:
    """[K, N]: what each column multiplies the score of each step by; a column is an estimator of the first `horizon` steps, or of all."""
    outcomes = episodes.outcomes(*fitted.of(episodes))
    return torch.stack([episodes.rows(_of_first(estimator, outcomes, horizon)) for estimator, horizon in columns])


def _of_first(estimator: Estimator, x: Outcomes, horizon: int | None) -> Tensor:
    """Advantages [L, E] as if all episodes had been truncated after `horizon` steps; 0 for the steps behind."""
    if horizon is None or horizon >= len(x.reward):
        return estimator(x)
    cut = Outcomes(*(column[:horizon] for column in x))  # type: ignore[index]
    is_last = cut.is_last.clone()
    is_last[-1] = True
    out = torch.zeros_like(x.reward)
    out[:horizon] = estimator(cut._replace(is_last=is_last))
    return out


@torch.no_grad()
def _add_all(
    sums: GradientSums, gradients: ScoreGradients, net: Network, episodes: Episodes, weights: Tensor, should_stop: Callable[[], bool]
) -> None:
    """Add the gradients of all episodes under all weights [K, N]."""
    inputs, end = net.preprocess(episodes.obs), 0
    for length in episodes.length.tolist():
        if should_stop():
            raise Stopped
        part, end = slice(end, end + length), end + length
        sums.add(gradients(pick(inputs, part), episodes.action[part], weights[:, part]).double().numpy())
