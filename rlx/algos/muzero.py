"""MuZero: tree search in a learned latent model, for games and for any environment with discrete actions.

Schrittwieser et al. 2020, https://arxiv.org/abs/1911.08265. Networks for representation, latent dynamics and prediction are trained
together, unrolled over steps of the environment. The search is AlphaZero's, with latents instead of positions. Old steps are searched again
(Reanalyse, appendix H), which renews their policy targets in the replay. Gumbel search (Danihelka et al. 2022) is the default.
Deviations: Adam instead of momentum; value targets bootstrap from the network as it was before an update's gradient steps, instead of from
a target network that is renewed less often; steps beyond a truncation have no targets.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rlx.columns import Column
from rlx.config.algos.muzero_config import Layers, MuZeroConfig
from rlx.config.algos.search_config import SearchRule
from rlx.errors import ConfigError
from rlx.models.latent import Bins, FrozenLatent, LatentNet, make_net
from rlx.models.latent_images import ImageNet
from rlx.models.latent_inputs import LatentInputs, Roots
from rlx.models.latent_report import latent_report
from rlx.models.unroll import unroll
from rlx.nn.finite import FiniteWatch
from rlx.nn.resnet import adam, descend, squared_norm
from rlx.ops import n_step_returns
from rlx.planning.adapters.latent_tree import LatentAdapter
from rlx.planning.search import SearchConfig, SearchResult, search
from rlx.replay import SequenceReplay, Symmetries, gradient_steps_owed
from rlx.transfer import fetch, send
from rlx.tree_ops import map_tree
from rlx.types import EnvSpec, Explanation, Metrics, Mode, PolicyOutput, Progress, Rollout, State, Tree

_SMALL_BOARD = 16
"""Most cells of a board for which dense layers are the default: a convolution covers nearly all of it, at ten times the cost."""
_JUDGE_EVERY = 25
"""Gradient steps between two measurements of the model's errors on steps that it was not trained on."""


class Unroll(NamedTuple):
    """Targets of N windows: K steps of the model, and K + 1 predictions."""

    obs: Tensor  # [N, *] the first observation of each window
    action: Tensor  # [N, K]
    policy: Tensor  # [N, K + 1, A]
    value: Tensor  # [N, K + 1]
    reward: Tensor  # [N, K]
    has_policy: Tensor  # [N, K + 1] bool: the step lies within the episode
    has_value: Tensor  # [N, K + 1] bool: the step lies within the episode, or after a termination, where value and reward are 0


class MuZero:
    """An agent that learns a latent model and acts by tree search in it."""

    def __init__(self, config: MuZeroConfig, spec: EnvSpec, num_envs: int, device: torch.device) -> None:
        self.config, self.device, self.game = config, device, spec.game
        self.rollout_length, self.weight_parts = 1, ("net",)
        self._inputs = LatentInputs(spec, algo=config.name)
        self.num_actions = self._inputs.num_actions
        in_game = self.game is not None
        gamma = config.discount if config.discount is not None else (1.0 if in_game else 0.997)
        self._discount = -gamma if in_game else gamma
        self._td_steps = config.td_steps or (self.game.max_length if self.game is not None else 10)
        self._plies = (config.exploration_plies if config.exploration_plies is not None else 15) if in_game else None
        self.bins = Bins(config.value_limit or (1.0 if in_game else 300.0), config.num_bins, device)
        self.net = _make_net(config, spec, self._inputs).to(device)
        self.optimizer = adam(self.net, config.learning_rate, config.weight_decay)
        scalar, flag, actions = Column(torch.float32), Column(torch.bool), (self.num_actions,)
        columns = {
            "obs": self._inputs.column, "action": Column(torch.long), "legal": Column(torch.bool, actions), "reward": scalar,
            "policy": Column(torch.float32, actions, renewed=config.reanalyse > 0), "value": scalar, "terminated": flag, "is_last": flag,
        }  # fmt: skip
        self.replay = SequenceReplay(
            config.replay_size, num_envs, columns, ahead=config.num_unroll_steps + self._td_steps, exponent=config.priority_exponent,
            correction=config.priority_correction,
        )  # fmt: skip
        self.replay_bytes = self.replay.num_bytes
        self._symmetries = Symmetries(self.game.symmetries) if self.game is not None and config.symmetries else None
        self._frozen = FrozenLatent(self.net, self.bins)
        self._steps = 0  # gradient steps
        self._finite = FiniteWatch()
        self._reanalysed = 0  # old steps that were searched again so far
        self._length = torch.zeros(num_envs, dtype=torch.long)  # of the open episodes

    # Saving

    def state_dict(self) -> State:
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "replay": self.replay.state_dict(),
            "steps": self._steps,
            "reanalysed": self._reanalysed,
            "length": self._length.clone(),
        }

    def load_state_dict(self, state: State) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.replay.load_state_dict(state["replay"])
        self._steps, self._reanalysed, self._length = state["steps"], state["reanalysed"], state["length"].clone()
        self._frozen = FrozenLatent(self.net, self.bins)

    # Acting

    def initial_carry(self, batch_size: int) -> Tree:
        return ()

    def act(self, obs: Tree, carry: Tree, is_first: Tensor, *, mode: Mode) -> PolicyOutput:
        """Search from obs [B, *], and choose an action in each."""
        rng = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
        seen = self._inputs(obs)
        found, model = self._search(seen.obs, seen.legal, mode=mode, rng=rng, explore=self._exploring(obs))
        action = found.best()
        if mode == "train":
            action = self._explore(found, action, seen, obs, rng)
        total_s = sum(found.times.values())
        extras = {
            "obs": seen.obs,
            "legal": torch.from_numpy(seen.legal),
            "player": torch.from_numpy(seen.player),
            "policy": torch.from_numpy(found.policy(self.num_actions)),
            "root_value": self._root_value(found),
            "depth": torch.from_numpy(found.depth),
            "spent": torch.tensor([model.network_s, found.times["tree"], total_s, model.calls]).expand(len(action), -1) / len(action),
        }
        return PolicyOutput(torch.from_numpy(action).to(self.device), (), extras)

    def explain(self, obs: Tree, carry: Tree, is_first: Tensor, *, mode: Mode) -> tuple[PolicyOutput, Explanation]:
        """The result of `act` for the same arguments, and the search's policy and value."""
        out = self.act(obs, carry, is_first, mode=mode)
        return out, Explanation(out.extras["policy"], out.extras["root_value"])

    def network_report(self) -> dict[str, Any]:
        return latent_report(self.net, self._inputs)

    def search(self, obs: Tree, *, mode: Mode, rng: np.random.Generator) -> tuple[SearchResult, LatentAdapter]:
        """Search from observations [B, *] that are arrays."""
        obs = map_tree(torch.from_numpy, obs)
        seen = self._inputs(obs)
        return self._search(seen.obs, seen.legal, mode=mode, rng=rng, explore=self._exploring(obs))

    def _search(
        self, obs: Tensor, legal: NDArray[np.bool_], *, mode: Mode, rng: np.random.Generator, explore: NDArray[np.bool_] | None = None
    ) -> tuple[SearchResult, LatentAdapter]:
        config = self.search_config(mode)
        num_nodes = config.num_simulations + config.num_leaves + 1
        model = LatentAdapter(self._frozen, obs.to(self.device), legal, discount=self._discount, num_nodes=num_nodes)
        return search(model, config, rng, explore=explore if config.gumbel else None), model  # Dirichlet noise is at every root

    def search_config(self, mode: Mode) -> SearchConfig:
        config = self.config
        num_simulations = (config.search.num_eval_simulations if mode == "eval" else None) or config.search.num_simulations
        settings = config.search.arguments(explore=mode == "train")
        return SearchConfig(
            **settings, num_simulations=num_simulations, q_range=1.0, track_bounds=self.game is None,
            min_range=config.search.min_return_range,
        )  # fmt: skip

    def _root_value(self, found: SearchResult) -> Tensor:
        """Values of the roots [B] after the search, for the player to move."""
        value = found.improved_value() if self.config.search.rule is SearchRule.gumbel else found.value()
        return torch.from_numpy(value.astype(np.float32))

    def _exploring(self, obs: Tree) -> NDArray[np.bool_] | None:
        """Mask [B] of observations within the exploration plies of their games, where moves are sampled; None where all are."""
        return None if self._plies is None else (obs["history"] >= 0).sum(dim=1).cpu().numpy() < self._plies

    def _explore(
        self, found: SearchResult, best: NDArray[np.int64], seen: Roots, obs: Tree, rng: np.random.Generator
    ) -> NDArray[np.int64]:  # fmt: skip
        """Actions [B] of training: uniform before the first gradient step, then sampled by visits under PUCT; Gumbel's noise explores."""
        action = best
        if self._steps == 0:
            chances = seen.legal / seen.legal.sum(axis=1, keepdims=True)
            return np.array([rng.choice(self.num_actions, p=p) for p in chances])
        if self.config.search.rule is SearchRule.puct:
            visits = found.visits(self.num_actions)
            drawn = np.array([rng.choice(self.num_actions, p=v / v.sum()) for v in visits])
            early = self._exploring(obs)
            action = drawn if early is None else np.where(early, drawn, best)
        return action

    # Learning

    def update(self, rollout: Rollout, progress: Progress) -> Metrics:
        expected = self._add_to_replay(rollout)
        extras = rollout.extras
        metrics: dict[str, Tensor | float] = {
            "search/root_value": extras["root_value"].mean(),
            "search/depth": extras["depth"].mean(),
            **_timing(extras["spent"], len(rollout.reward) * self.config.search.num_simulations),
            **self._compare_with_returns(rollout, expected),
        }
        self._reanalyse()
        return metrics | self._train(self.config.learning_rate_at(progress.fraction_before(rollout)))

    def _add_to_replay(self, rollout: Rollout) -> Tensor:
        """Add a rollout to the replay; returns the values [T, B] of observations at truncations, 0 elsewhere."""
        extras = rollout.extras
        action, reward, terminated, truncated, final_t, final_b = map(torch.from_numpy, fetch(
            rollout.action, rollout.reward, rollout.terminated, rollout.truncated, rollout.final_t, rollout.final_b
        ))  # fmt: skip
        expected = torch.zeros(reward.shape)
        cut = truncated[final_t, final_b]
        beyond: dict[tuple[int, int], Tensor] = {}
        if cut.any():
            obs, t, b = self._inputs(map_tree(lambda x: x.cpu()[cut], rollout.final_obs)).obs, final_t[cut], final_b[cut]
            expected[t, b] = self._expected(obs)
            beyond = dict(zip(zip(t.tolist(), b.tolist(), strict=True), obs, strict=True))
        rows = {
            "obs": extras["obs"], "action": action, "legal": extras["legal"], "policy": extras["policy"],
            "value": extras["root_value"], "terminated": terminated, "is_last": terminated | truncated,
            "reward": torch.where(extras["player"].cpu() == 1, -reward, reward),  # for the player who acted
        }  # fmt: skip
        self.replay.add(beyond, **{name: column.cpu() for name, column in rows.items()})
        return expected

    def _expected(self, obs: Tensor) -> Tensor:
        """The current network's values [n] of observations [n, *]."""
        return torch.from_numpy(self._frozen.root(obs.to(self.device))[2]).float()

    def _compare_with_returns(self, rollout: Rollout, expected: Tensor) -> dict[str, float]:
        """Metrics that compare the searches' root values with the discounted returns that followed, over the episodes that ended."""
        self._length += 1
        predicted, realised = list[float](), list[float]()
        for t, b in zip(rollout.final_t.tolist(), rollout.final_b.tolist(), strict=True):
            num = min(int(self._length[b]), self.replay.size // self.replay.num_envs)
            self._length[b] = 0
            first = torch.tensor([self.replay.rows.added - self.replay.num_envs * num + b]) % self.replay.rows.capacity
            reward, value = (self.replay.windows(name, first, num)[0].numpy() for name in ("reward", "value"))
            g = float(expected[t, b])
            for step in reversed(range(num)):
                g = float(reward[step]) + self._discount * g
                realised.append(g)
            predicted += value.tolist()
        if not predicted or self._steps == 0:
            return {}
        p, r = float(np.mean(predicted)), float(np.mean(realised))
        return {"search/predicted_return": p, "search/realised_return": r, "search/return_gap": p - r}

    def _reanalyse(self) -> None:
        """Search old steps again with the current network, and renew their policies. Value targets bootstrap from it anyway."""
        if self._steps == 0:
            return
        added, batch = self.replay.rows.added - self.config.replay_start, self.replay.num_envs
        while self._reanalysed + batch <= added * self.config.reanalyse:
            index = torch.randint(self.replay.size, (batch,))
            rng = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
            rows = self.replay.rows
            found, _ = self._search(rows.take("obs", index), rows["legal"][index].numpy(), mode="train", rng=rng)
            rows["policy"][index] = torch.from_numpy(found.policy(self.num_actions))
            self._reanalysed += batch

    def _train(self, learning_rate: float) -> dict[str, Tensor | float]:
        """Take the gradient steps that the replay ratio requires; returns their metrics."""
        config, added = self.config, self.replay.rows.added
        num_added = added - config.replay_start
        owed = gradient_steps_owed(num_added, replay_ratio=config.replay_ratio, batch_size=config.batch_size, taken=self._steps)
        if owed < config.steps_per_update or added < config.replay_start or self.replay.num_ready < config.batch_size:
            return {}
        total: dict[str, Tensor] = {}
        judged = self._judge_model() if self._steps and self._steps // _JUDGE_EVERY != (self._steps + owed) // _JUDGE_EVERY else {}
        self.net.train()
        for _ in range(owed):
            for name, value in self._step(learning_rate).items():
                total[name] = total.get(name, torch.zeros(())) + value / owed
        self._finite.check()
        self._steps += owed
        self._frozen = FrozenLatent(self.net, self.bins)
        total["loss/weights"] = self.config.weight_decay * squared_norm(self.net)
        counts = {"update/num_gradient_steps": float(owed), "update/num_reanalysed": float(self._reanalysed)}
        return {**total, **judged, **counts, "update/learning_rate": learning_rate, "replay/size": float(self.replay.size)}

    def _step(self, learning_rate: float) -> dict[str, Tensor]:
        index, weight = self.replay.draw(self.config.batch_size)
        unroll = self.targets(index)
        losses, value = self.losses(unroll)
        entropy = losses.pop("entropy")
        loss = losses["policy"] + losses["reward"] + self.config.value_coef * losses["value"] - self.config.entropy_coef * entropy
        descend(self.optimizer, (weight.to(self.device) * loss).mean(), learning_rate,
                max_grad_norm=self.config.max_grad_norm, finite=self._finite)  # fmt: skip
        if self.config.priority_exponent > 0.0:
            self.replay.prioritise(index, (value - unroll.value[:, 0]).cpu())
        target_entropy = -torch.xlogy(unroll.policy[:, 0], unroll.policy[:, 0]).sum(dim=1).mean()
        means = {f"loss/{name}": each.mean().detach() for name, each in losses.items()}
        return means | {"update/target_entropy": target_entropy}

    def targets(self, index: Tensor) -> Unroll:
        """Targets of the windows that begin at rows `index` [N] of the replay."""
        k, n, replay = self.config.num_unroll_steps, self._td_steps, self.replay
        reward, terminated, is_last = (replay.windows(name, index, k + n + 1) for name in ("reward", "terminated", "is_last"))
        value, next_value = self._bootstraps(replay.following(index, k + n + 1), terminated, is_last)
        returns = n_step_returns(reward, value, next_value, terminated, is_last & ~terminated, num_steps=n, discount=self._discount)
        going = torch.cat([torch.ones(len(index), 1, dtype=torch.bool), (~is_last[:, :k]).cumprod(1).bool()], dim=1)  # [N, K + 1]
        over = (terminated[:, :k] & going[:, :k]).cumsum(1) > 0  # [N, K] a termination at or before the step
        over = torch.cat([torch.zeros(len(index), 1, dtype=torch.bool), over], dim=1)
        action = replay.windows("action", index, k)
        action = torch.where(going[:, :k], action, torch.randint(self.num_actions, action.shape))  # random after the end
        obs, policy = replay.rows.take("obs", index), replay.windows("policy", index, k + 1)
        if self._symmetries is not None:
            which = torch.randint(len(self._symmetries), (len(index),))
            one_hot = F.one_hot(action, self.num_actions).float()
            obs, turned = self._symmetries.turn(obs, torch.cat([policy, one_hot], dim=1), which)
            policy, action = turned[:, : k + 1], turned[:, k + 1 :].argmax(-1)
        unroll = Unroll(
            obs, action, policy, torch.where(going, returns[:, : k + 1], 0.0), torch.where(going[:, :k], reward[:, :k], 0.0),
            has_policy=going, has_value=going | over,
        )  # fmt: skip
        return Unroll(*send(self.device, *unroll))

    def _bootstraps(self, rows: Tensor, terminated: Tensor, is_last: Tensor) -> tuple[Tensor, Tensor]:
        """Values [N, L] of the steps in `rows` of the replay and of their successors, where `targets` uses them; 0 elsewhere.

        They are predicted by the current network. The root values of the searches that played these steps belong to older policies.
        """
        n = self._td_steps
        going = torch.cat([torch.ones(len(rows), 1, dtype=torch.bool), (~is_last[:, :-1]).cumprod(1).bool()], dim=1)
        ahead = torch.zeros_like(going)
        ahead[:, n:] = going[:, n:]  # the steps that n-step returns bootstrap from, in the same episode
        cut = going & is_last & ~terminated
        value, next_value = torch.zeros(rows.shape), torch.zeros(rows.shape)
        (now, at_now), (after, at_after) = (rows[where].unique(return_inverse=True) for where in (ahead, cut))
        seen = [self.replay.rows.take("obs", now), *([self.replay.beyond(after)] if len(after) else [])]
        if len(now) + len(after):
            expected = self._expected(torch.cat(seen))  # one call: every call waits for the device
            value[ahead], next_value[cut] = expected[: len(now)][at_now], expected[len(now) :][at_after]
        return value, next_value

    def losses(self, unroll: Unroll) -> tuple[dict[str, Tensor], Tensor]:
        """Losses of policy, value and reward and the policy's entropy [N], summed over the model's steps (eq. 1); and values of `obs` [N].

        The steps of the model weigh 1 / K, and the gradient into each latent is halved (appendix G).
        """
        n, k = unroll.action.shape
        latents = [self.net.represent(unroll.obs)]
        for i in range(k):
            latents.append(self.net.step(0.5 * latents[-1] + 0.5 * latents[-1].detach(), unroll.action[:, i]))
        logits, value = (x.unflatten(0, (n, k + 1)) for x in self.net.predict(torch.stack(latents, dim=1).flatten(0, 1)))
        reward = self.net.reward_after(torch.stack(latents[1:], dim=1).flatten(0, 1)).unflatten(0, (n, k))
        scale = torch.full((k + 1,), 1.0 / k, device=self.device)
        scale[0] = 1.0
        losses = {
            "policy": (scale * unroll.has_policy * _cross_entropy(logits, unroll.policy)).sum(1),
            "entropy": (scale * unroll.has_policy * _cross_entropy(logits, logits.softmax(-1))).sum(1),
            "value": (scale * unroll.has_value * _cross_entropy(value, self.bins.encode(unroll.value))).sum(1),
            "reward": (scale[1:] * unroll.has_value[:, 1:] * _cross_entropy(reward, self.bins.encode(unroll.reward))).sum(1),
        }
        return losses, self.bins.decode(value[:, 0].detach())

    def _judge_model(self) -> dict[str, Tensor | float]:
        """Errors of K steps of the model on the newest steps, which it was not trained on."""
        k, b = self.config.num_unroll_steps, self.replay.num_envs
        if self.replay.size < (k + 1) * b:
            return {}
        first = (self.replay.rows.added - (k + 1) * b + torch.arange(b)) % self.replay.rows.capacity
        whole = ~self.replay.windows("is_last", first, k).any(dim=1)
        first = first[whole]
        if len(first) < 2:
            return {}
        rows = self.replay.following(first, k + 1)
        action, reward = (self.replay.rows.take(name, rows).to(self.device) for name in ("action", "reward"))
        obs, obs_after = (self.replay.rows.take("obs", rows[:, i]).to(self.device) for i in (0, k))
        imagined = unroll(self._frozen, self._frozen.initial(obs), action[:, :k].t(), k)
        latent, true = imagined.states[-1], self._frozen.initial(obs_after)
        predicted, earned, value, true_value = fetch(
            imagined.reward, reward[:, :k].t(), self._frozen.value(latent), self._frozen.value(true)
        )
        spread = true.std(dim=0).square().mean().sqrt().clamp(min=1e-6)
        return {
            "latent/unrolled_error": (latent - true).square().mean().sqrt() / spread,  # in standard deviations of the latents
            "latent/reward_error": float(np.mean([np.abs(p - r).mean() for p, r in zip(predicted, earned, strict=True)])),
            "latent/value_error": float(np.abs(value - true_value).mean()),  # after K steps of the model, against the observation's
        }


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropies [*] of distributions [*, D]."""
    return -(target * logits.log_softmax(-1)).sum(-1)


def _timing(spent: Tensor, num_simulations: int) -> dict[str, float]:
    """How the search's time divides into network and tree, from extras [T, B, 4]."""
    network_s, tree_s, total_s, calls = spent.sum(dim=(0, 1)).tolist()
    return {
        "search/network_calls_per_simulation": calls / num_simulations,
        "time/search_network_share": network_s / total_s,
        "time/search_tree_share": tree_s / total_s,
        "time/simulations_per_s": num_simulations * spent.shape[1] / total_s,
    }


def _make_net(config: MuZeroConfig, spec: EnvSpec, inputs: LatentInputs) -> LatentNet:
    """The network for the environment's observations.

    Raises:
        ConfigError: if `algo.layers=conv` and observations are no planes or images.
    """
    if config.layers is Layers.conv and inputs.sides is None:
        raise ConfigError(
            f"algo.layers=conv needs boards or images, and env={spec.id} has observations of shape {inputs.shape}; use algo.layers=dense"
        )
    sizes = {"num_channels": config.num_channels, "num_blocks": config.num_blocks}
    is_large = inputs.sides is not None and math.prod(inputs.sides) > _SMALL_BOARD
    convolve = config.layers is Layers.conv or (config.layers is Layers.auto and is_large)
    if convolve and inputs.image is not None:
        return ImageNet(inputs.image, inputs.num_actions, config.num_bins, **sizes)
    return make_net(inputs.shape, inputs.num_actions, config.num_bins, convolve=convolve, **sizes)
