"""Fitting an ensemble: a replay of transitions, a bootstrap for each member, held-out data and early stopping.

```
learner = EnsembleLearner(EnsembleConfig(...), num_features=4, num_actions=1, num_envs=8, device=device)
learner.add(rollout)  # every step joins members' bootstraps, or is held out
fitted = learner.fit(FitConfig(...))
model = EnsembleModel(frozen=FrozenEnsemble(learner.ensemble), obs_scale=learner.obs_scale, ...)
```

Chua et al. 2018 (PETS), https://arxiv.org/abs/1805.12114, section 4. Deviation: a fit stops early on held-out data, and each member keeps
its best weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rlx.columns import Column
from rlx.models.ensemble import Ensemble, moments
from rlx.models.termination import TerminationNetworks, fit_termination
from rlx.nn.optim import FlatAdam
from rlx.replay import TransitionReplay
from rlx.types import Rollout, State


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Settings of a fit."""

    learning_rate: float
    batch_size: int
    max_epochs: int
    patience: int  # epochs without progress on held-out data
    weight_decay: float


class Fitted(NamedTuple):
    """Results of a fit, as means over the members."""

    loss: float  # negative log-likelihood in the last epoch
    holdout_nll: float  # of the weights that were kept; NaN without held-out data
    holdout_mse: float  # squared error, where always predicting the mean change has 1
    epochs: int
    num_steps: int


_MIN_STEPS = 10
"""Fewest gradient steps of an epoch: with little data an epoch would change little, and patience would end the fit at once."""
_PROGRESS = 0.01
"""Smallest decrease of the held-out negative log-likelihood that counts as progress."""


def fit(
    ensemble: Ensemble, optimizer: FlatAdam, inputs: Tensor, targets: Tensor, counts: Tensor, holdout: Tensor, config: FitConfig
) -> Fitted:
    """Fit an ensemble further, with the scales of this data; returns the results.

    Args:
        ensemble: changed in place.
        optimizer: of the ensemble's parameters.
        inputs: [N, I].
        targets: [N, O].
        counts: [N, K] how often each row is in each member's bootstrap.
        holdout: [N] bool: rows that no member is trained on.
        config: learning rate, batch size and when to stop.
    """
    ensemble.standardise(inputs, targets)
    x, y = ensemble.scale_inputs(inputs), ensemble.scale_targets(targets)
    members = ensemble.num_members
    held = (x[holdout].expand(members, -1, -1), y[holdout].expand(members, -1, -1)) if bool(holdout.any()) else None
    rows = [torch.repeat_interleave(torch.arange(len(x), device=x.device), counts[:, k] * ~holdout) for k in range(members)]
    if min(map(len, rows)) == 0:  # with few rows a member's bootstrap may be empty
        rows = [torch.arange(len(x), device=x.device)] * members
    length = max(*map(len, rows), _MIN_STEPS * config.batch_size)
    best = _Best(ensemble, held)
    num_steps, loss, epoch = 0, float("nan"), 0
    for epoch in range(1, config.max_epochs + 1):
        order = _shuffle(rows, length)
        losses = []
        for index in order.split(config.batch_size, dim=1):
            with torch.enable_grad():
                nll, _ = ensemble.losses(x[index], y[index])
                total = nll.sum()
                if ensemble.learn_bounds:
                    total = total + 0.01 * (ensemble.high.sum() - ensemble.low.sum())
                optimizer.zero_grad()
                total.backward()
            optimizer.step(total.detach(), config.learning_rate)
            ensemble.decay(config.learning_rate * config.weight_decay)
            losses.append(nll.detach().mean())
        num_steps += len(losses)
        loss = torch.stack(losses).mean().item()
        optimizer.check()
        if best.compare(epoch) >= config.patience:
            break
    holdout_nll, holdout_mse = best.restore()
    return Fitted(loss, holdout_nll, holdout_mse, epoch, num_steps)


def _shuffle(rows: list[Tensor], length: int) -> Tensor:
    """A permutation of each member's rows, repeated up to `length`, [K, length]."""
    orders = [of_member[torch.randperm(len(of_member), device=of_member.device)] for of_member in rows]
    return torch.stack([order.repeat(-(-length // len(order)))[:length] for order in orders])


class _Best:
    """The weights of every member with the lowest loss on held-out data so far."""

    def __init__(self, ensemble: Ensemble, held: tuple[Tensor, Tensor] | None) -> None:
        self._ensemble, self._held = ensemble, held
        self._parameters = [*ensemble.weights, *ensemble.biases]
        self._kept = [p.detach().clone() for p in self._parameters]
        self._nll, self._mse = self._measure()
        self._last_progress = 0

    @torch.no_grad()
    def _measure(self) -> tuple[Tensor, Tensor]:
        if self._held is None:
            nothing = torch.full((self._ensemble.num_members,), torch.nan)
            return nothing, nothing
        return self._ensemble.losses(*self._held)

    @torch.no_grad()
    def compare(self, epoch: int) -> int:
        """Keep an epoch's weights of members that improved; returns the number of epochs since any member did."""
        if self._held is None:
            return 0
        nll, mse = self._measure()
        better = nll < self._nll - _PROGRESS
        if better.any():
            self._last_progress = epoch
            self._nll, self._mse = torch.where(better, nll, self._nll), torch.where(better, mse, self._mse)
            for kept, now in zip(self._kept, self._parameters, strict=True):
                kept[better] = now[better]
        return epoch - self._last_progress

    @torch.no_grad()
    def restore(self) -> tuple[float, float]:
        """Put the best weights back; returns their negative log-likelihood and squared error."""
        if self._held is not None:
            for kept, now in zip(self._kept, self._parameters, strict=True):
                now.copy_(kept)
        return self._nll.mean().item(), self._mse.mean().item()


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """An ensemble and the data that it is fitted to."""

    num_members: int
    hidden_sizes: Sequence[int]
    learn_bounds: bool  # of the log-variance
    predict_reward: bool
    replay_size: int  # newest env steps that are kept
    bootstrap: bool  # False: all members are fitted to the same rows
    holdout_fraction: float
    predict_next: bool = False  # the next observation itself, not its change
    learn_termination: bool = False


class EnsembleLearner:
    """An ensemble with the env steps that it is fitted to.

    From observation [D] and action [A] the ensemble predicts the change of the observation, or the next observation, and, with
    `predict_reward`, the reward. With `learn_termination` there are networks that predict where episodes terminate.

    Args:
        config: sizes of the networks and of the replay.
        num_features: D.
        num_actions: A.
        num_envs: B.
        device: of the networks and of the replay.
    """

    def __init__(self, config: EnsembleConfig, *, num_features: int, num_actions: int, num_envs: int, device: torch.device) -> None:
        self.config, self.device = config, device
        self.ensemble = Ensemble(
            num_features + num_actions, num_features + config.predict_reward,
            num_members=config.num_members, hidden_sizes=config.hidden_sizes, learn_bounds=config.learn_bounds,
        ).to(device)  # fmt: skip
        self.optimizer = FlatAdam(self.ensemble, epsilon=1e-8, max_grad_norm=100.0)
        self.termination: TerminationNetworks | None = None
        if config.learn_termination:
            self.termination = TerminationNetworks(
                num_features, num_members=config.num_members, hidden_sizes=config.hidden_sizes
            ).to(device)  # fmt: skip
            self._termination_optimizer = FlatAdam(self.termination, epsilon=1e-8, max_grad_norm=100.0)
        vector, scalar, flags = Column(torch.float32, (num_features,)), Column(torch.float32), Column(torch.bool)
        self.replay = TransitionReplay(config.replay_size, num_envs, {
            "obs": vector, "action": Column(torch.float32, (num_actions,)), "change": vector, "reward": scalar, "is_last": flags,
            "holdout": flags, "counts": Column(torch.uint8, (config.num_members,)),
            **({"terminated": flags} if config.learn_termination else {}),
        }, device)  # fmt: skip
        self.obs_scale = torch.zeros(num_features, device=device)
        """[D] standard deviations of the observations at the last fit, 0 of a constant feature; zeros before the first fit."""
        self.num_fits = 0
        self._num_fitted = 0  # rows added before the last fit

    def state_dict(self) -> State:
        state = {
            "ensemble": self.ensemble.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "replay": self.replay.state_dict(),
            "obs_scale": self.obs_scale.clone(),
            "num_fits": self.num_fits,
            "num_fitted": self._num_fitted,
        }
        if self.termination is not None:
            state |= {"termination": self.termination.state_dict(), "termination_optimizer": self._termination_optimizer.state_dict()}
        return state

    def load_state_dict(self, state: State) -> None:
        self.ensemble.load_state_dict(state["ensemble"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.replay.load_state_dict(state["replay"])
        self.obs_scale = state["obs_scale"].to(self.device, copy=True)
        self.num_fits, self._num_fitted = state["num_fits"], state["num_fitted"]
        if self.termination is not None:
            self.termination.load_state_dict(state["termination"])
            self._termination_optimizer.load_state_dict(state["termination_optimizer"])

    def add(self, rollout: Rollout) -> None:
        """Add the steps of a rollout; which are held out, and how often each is in each bootstrap, is drawn here once."""
        config, obs, next_obs = self.config, rollout.obs.flatten(2), rollout.next_obs.flatten(2)
        shape = rollout.reward.shape
        counts = torch.ones(*shape, config.num_members, device=self.device)
        if config.bootstrap:
            counts = torch.poisson(counts)
        self.replay.add(
            obs=obs, action=rollout.action, change=next_obs.to(torch.float64) - obs.to(torch.float64), reward=rollout.reward,
            is_last=rollout.is_last, holdout=torch.rand(shape, device=self.device) < config.holdout_fraction, counts=counts,
            **({"terminated": rollout.terminated} if config.learn_termination else {}),
        )  # fmt: skip

    def since_last_fit(self, *names: str) -> list[Tensor]:
        """Columns of the replay [T, B, *]: the steps that were added after the last fit, in the order of time."""
        return [self.replay.newest(name, self.replay.added - self._num_fitted).to(self.device) for name in names]

    def count_as_fitted(self) -> None:
        """Count all steps so far as fitted to, for models that are not fitted at all."""
        self.obs_scale = moments(self.replay["obs"].to(self.device))[1].to(torch.float32)
        self.num_fits += 1
        self._num_fitted = self.replay.added

    def fit(self, config: FitConfig) -> Fitted:
        """Fit the ensemble further, to all steps in the replay; returns the results."""
        replay = self.replay
        obs, action, target = (replay[name].to(self.device) for name in ("obs", "action", "change"))
        if self.config.predict_next:
            target = obs + target
        if self.config.predict_reward:
            target = torch.cat([target, replay["reward"].to(self.device)[:, None]], dim=1)
        inputs, counts, holdout = torch.cat([obs, action], dim=1), replay["counts"].to(self.device).long(), replay["holdout"]
        fitted = fit(self.ensemble, self.optimizer, inputs, target, counts, holdout.to(self.device), config)
        if self.termination is not None:
            fit_termination(
                self.termination, self._termination_optimizer, obs + replay["change"].to(self.device), replay["terminated"].to(self.device),
                num_steps=fitted.num_steps, batch_size=config.batch_size, learning_rate=config.learning_rate,
                weight_decay=config.weight_decay,
            )  # fmt: skip
        self.count_as_fitted()
        return fitted
