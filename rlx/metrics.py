"""Metrics since the last logged line, the returns of the last hundred episodes, and the meaning of every metric."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from rlx.collect import Episode
from rlx.types import Metrics, State

WINDOW = 100
_FOLD = 256
"""Updates whose metrics are kept as they are."""
_LONGEST = 2**16
"""Values of a metric, tensors, that are kept as numbers."""

MEANINGS = {
    "episode/return": "mean undiscounted return of the training episodes that ended since the last line",
    "episode/length": "mean length of these training episodes, steps",
    "episode/count": "number of these training episodes",
    "episode/solve_rate": "share of these training episodes that were solved",
    "episode/return_mean_100": "mean return of the last hundred training episodes",
    "eval/return_mean": "mean undiscounted return of the evaluation's episodes",
    "eval/return_iqm": "interquartile mean of these returns",
    "eval/return_std": "standard deviation of these returns",
    "eval/return_ci_low": "lower end of the 95 % interval of the mean return",
    "eval/return_ci_high": "upper end of that interval",
    "eval/length_mean": "mean length of the evaluation's episodes, steps",
    "eval/solve_rate": "share of the evaluation's episodes that were solved",
    "eval/distance": "metres along a course at the end of the evaluation's episodes, mean",
    "eval/obstacles_passed": "obstacles of a course that were passed in the evaluation's episodes, mean",
    "eval/cut_episodes": "episodes that were cut at loop.eval_max_steps",
    "eval/optimal_moves": "share of labelled positions where the policy chooses a move that is optimal by a solver",
    "loss/policy": "loss of the policy, as each algorithm defines it",
    "loss/value": "loss of the value, as each algorithm defines it",
    "loss/q_value": "loss of a learned Q(s, a) beside the value",
    "loss/reward": "loss of the rewards of a latent model",
    "loss/weights": "sum of the squared weights, times its coefficient",
    "loss/model": "loss of a model of the environment",
    "loss/controller": "cost of the task whose gradient a controller follows",
    "loss/manager": "REINFORCE loss of the manager's decisions",
    "loss/distill": "cross-entropy of a rollout policy with the policy that it imitates",
    "loss/rollout_policy": "cross-entropy of a rollout policy with experts' moves",
    "loss/supervised": "cross-entropy of a policy with experts' moves",
    "update/entropy": "entropy of the policy that is trained, nats",
    "update/entropy_coef": "weight of the entropy in SAC's objective, alpha",
    "update/log_std": "mean logarithm of the policy's standard deviation, before it is squashed",
    "update/q_value": "mean value of the actions in a batch",
    "update/epsilon": "probability of a random action in training",
    "update/approx_kl": "divergence of the policy from the one that acted, nats",
    "update/clip_fraction": "clip fraction: share of the probability ratios beyond the clip",
    "update/kl_coef": "weight of the divergence's penalty",
    "update/grad_norm": "norm of the gradient before it is clipped",
    "update/explained_variance": "explained variance: share of the targets' variance that the values before the update explain",
    "update/learning_rate": "step size of the last pass",
    "update/num_epochs": "passes over the data",
    "update/num_gradient_steps": "sum of the gradient steps since the last line",
    "update/num_reanalysed": "reanalysed steps (old steps that were searched again) so far",
    "update/target_entropy": "entropy of the searches' policies, a lower bound of the policy's cross-entropy",
    "replay/size": "steps in the replay",
    "replay/repeated": "share of a batch whose positions had been trained on before",
    "game/length": "plies of a game",
    "game/first_player_score": "score of the player that moves first, 1 for a win",
    "game/draws": "share of games that were drawn",
    "search/depth": "mean length of a descent",
    "search/root_value": "mean value of the roots after the search",
    "search/duplicate_share": "share of leaves whose network evaluation was cached",
    "search/network_calls_per_simulation": "calls of the network divided by simulations",
    "search/predicted_return": "values of the roots when the agent acted",
    "search/realised_return": "realised discounted returns from these roots",
    "search/return_gap": "predicted minus realised discounted return",
    "latent/unrolled_error": "distance of unrolled latents to those of the observations, in deviations of the latents",
    "latent/reward_error": "mean absolute error of the rewards predicted along the unrolled steps",
    "latent/value_error": "mean absolute difference between the values of unrolled and observed latents",
    "model/changed_cell_accuracy": "share of the changed cells that were predicted correctly",
    "model/frame_accuracy_*": "share of frames that are exact after so many steps of the model",
    "model/event_f1": "F1 of the events that do not always happen",
    "model/event_f1_*": "F1 of one event",
    "model/disagreement": "spread of the members' predictions along the chosen plans, in deviations of the observations",
    "model/k_step_error": "error of predictions five steps ahead, in deviations of the observations",
    "model/holdout_nll": "negative log-likelihood of held-out steps",
    "model/holdout_mse": "squared error of held-out steps; always predicting the mean change has 1",
    "model/position_error": "median distance of predicted and real positions, before the model was fitted to them",
    "model/known_reward_error": "mean absolute difference of the known reward function and the environment's rewards",
    "trust/w_*": "weight of the target that looks so many imagined steps ahead, as a mean over a batch",
    "trust/use": "share of trust in the model: 1 minus the weight of no imagined step, or imagined steps kept per step that was allowed",
    "trust/rollout_length": "steps of an imagined rollout that were kept",
    "trust/threshold": "doubt above which imagined rollouts end",
    "trust/doubt": "doubt about steps that the model was not fitted to, in units of algo.model.measure",
    "trust/error": "error one step ahead on these steps, in standard deviations of the changes of observations",
    "trust/spearman": "rank correlation of that doubt and error: 1 if more doubt always means a larger error",
    "trust/spearman_5": "the same five steps ahead",
    "trust/model_calls": "predictions of one member of the model per env step",
    "plan/predicted_return": "predicted return of plans, over their horizon",
    "plan/realised_return": "sum of the rewards over that horizon",
    "plan/exploitation_gap": "predicted minus realised return of plans",
    "plan/horizon": "steps of a plan before it was truncated",
    "imagination/in_use": "1 once the agent imagines",
    "imagination/calls": "imagined steps before an action, mean",
    "imagination/paid": "price of what was imagined in an episode, mean",
    "imagination/entropy": "entropy of the manager's decisions, nats",
    "imagination/from_last": "share of the imagined steps that began in the last imagined state",
    "imagination/policy_shift": "divergence of the policy with imagination from that without, nats",
    "imagination/model_error": "share of imagined cells that were predicted wrongly",
    "imagination/shift_error_correlation": "correlation of policy_shift and model_error",
    "train/phase": "number of the phase of a run that has several",
    "supervised/new_game_accuracy": "share of experts' moves predicted in held-out games",
    "value/new_game_mse": "squared error of the value in held-out games",
    "reinforce/score_against_supervised": "score of the policy against the one that it started from",
    "reinforce/score_against_pool": "score of the policy against its own past versions",
    "reinforce/pool_size": "number of past policies in the pool",
    "time/elapsed_s": "seconds since the first env step, over resumes",
    "time/steps_per_s": "env steps per second since the last line",
    "time/*_s": "seconds of one phase of the loop, or of a fit, since the last line",
    "time/plan_ms": "milliseconds of planning per env step",
    "time/search_network_share": "share of the searches' time in networks",
    "time/search_tree_share": "share of the searches' time in trees",
    "time/simulations_per_s": "simulations of searches per second",
    "time/evaluations_per_s": "positions per second that a network evaluated",
}
"""The meaning of each metric, the same in every algorithm. `*` stands for any text."""


class MetricBuffer:
    """Means of episodes and of the metrics of updates until they are flushed into one line; its size does not grow with their number."""

    def __init__(self) -> None:
        self._episodes = EpisodeSums()
        self._updates: list[dict[str, Tensor | float]] = []
        self._folded: dict[str, _Values] = {}
        self._recent: deque[float] = deque(maxlen=WINDOW)

    def add_episodes(self, episodes: list[Episode]) -> None:
        self._episodes.add(episodes)
        self._recent.extend(e.return_ for e in episodes)

    def add_update(self, metrics: Metrics) -> None:
        """Add the metrics of one update.

        Raises:
            TypeError: if one is not a number.
        """
        for name, value in metrics.items():
            if type(value) is not float and not (value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, Real)):
                got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.60} ({type(value).__name__})"
                raise TypeError(f"update() returned {got} as the metric {name!r}, expected a number")
        self._updates.append(dict(metrics))
        if len(self._updates) == _FOLD:
            self._fold()

    @property
    def return_mean_100(self) -> float | None:
        """Mean return of the last 100 training episodes; None before there were 100."""
        return sum(self._recent) / WINDOW if len(self._recent) == WINDOW else None

    def flush(self) -> dict[str, float]:
        """Means since the last flush, as numbers; values that are not finite are left out."""
        line = self._episodes.means()
        if self._recent:
            line["episode/return_mean_100"] = sum(self._recent) / len(self._recent)
        self._fold()
        means: dict[str, Tensor] = {}
        for name, values in self._folded.items():
            if name.endswith("/num_gradient_steps"):
                line[name] = float(values.sum)
            elif values.tensors and not values.num_folded:
                line[name] = math.nan  # the key keeps its place in the line
                means[name] = values.joined().mean()
            else:
                line[name] = values.mean()
        line |= _read(means)
        self._episodes, self._folded = EpisodeSums(), {}
        return {name: value for name, value in line.items() if math.isfinite(value)}

    def _fold(self) -> None:
        """Replace the metrics of updates by sums of numbers and vectors of tensors' values."""
        for name in dict.fromkeys(name for metrics in self._updates for name in metrics):
            values = [metrics[name] for metrics in self._updates if name in metrics]
            if name not in self._folded:
                self._folded[name] = _Values(are_tensors=isinstance(values[0], Tensor) and not name.endswith("/num_gradient_steps"))
            self._folded[name].add(values)
        self._updates = []

    def state_dict(self) -> State:
        return {
            "episode_sums": tuple(vars(self._episodes).values()),
            "updates": [dict(u) for u in self._updates],
            "folded": {name: values.state_dict() for name, values in self._folded.items()},
            "recent": list(self._recent),
        }

    def load_state_dict(self, state: State) -> None:
        self._episodes = EpisodeSums(*state.get("episode_sums", ()))
        self._episodes.add([Episode(*e) for e in state.get("episodes", ())])  # what checkpoints had before there were sums
        self._updates = [dict(u) for u in state["updates"]]
        self._folded = {name: _Values(**saved) for name, saved in state.get("folded", {}).items()}
        self._recent = deque(state["recent"], maxlen=WINDOW)


@dataclass
class EpisodeSums:
    """Sums over episodes, added in their order."""

    return_: float = 0.0
    length: int = 0
    count: int = 0
    solved: int = 0
    num_solvable: int = 0

    def add(self, episodes: list[Episode]) -> None:
        for episode in episodes:
            self.return_ += episode.return_
            self.length += episode.length
            self.count += 1
            if episode.solved is not None:
                self.solved += episode.solved
                self.num_solvable += 1

    def means(self) -> dict[str, float]:
        if not self.count:
            return {}
        line = {"episode/return": self.return_ / self.count, "episode/length": self.length / self.count, "episode/count": self.count}
        return line | ({"episode/solve_rate": self.solved / self.num_solvable} if self.num_solvable else {})


class _Values:
    """All values of one metric since the last line: a sum of numbers, or vectors of tensors' values, which are averaged in one operation.

    Of more than `_LONGEST` tensors, the older ones become a sum too, so that memory is bounded; the mean then differs by rounding from
    that of all of them in one operation.
    """

    def __init__(self, *, are_tensors: bool, tensors: Sequence[Tensor] = (), sum: float | Tensor = 0, num_folded: int = 0) -> None:
        self.are_tensors = are_tensors
        self.tensors = list(tensors)
        self.sum = sum
        self.num_folded = num_folded

    def add(self, values: list[Tensor | float]) -> None:
        if not self.are_tensors:
            self.sum = sum(values, self.sum)
            self.num_folded += len(values)
            return
        where = values[-1].device if isinstance(values[-1], Tensor) else None
        if found := [v.to(where) for v in values if isinstance(v, Tensor)]:
            self.tensors.append(torch.stack(found).flatten())
        if sum(map(len, self.tensors)) >= _LONGEST:
            joined = self.joined()
            self.sum, self.num_folded, self.tensors = self.sum + float(joined.mean()) * len(joined), self.num_folded + len(joined), []

    def joined(self) -> Tensor:
        return torch.cat([x.to(self.tensors[-1].device) for x in self.tensors])

    def mean(self) -> float:
        """Of more values than are kept, or of numbers."""
        recent = self.joined() if self.tensors else torch.empty(0)
        added = float(recent.mean()) * len(recent) if len(recent) else 0.0
        return (float(self.sum) + added) / (self.num_folded + len(recent))

    def state_dict(self) -> State:
        return {"are_tensors": self.are_tensors, "tensors": list(self.tensors), "sum": self.sum, "num_folded": self.num_folded}


def _read(means: dict[str, Tensor]) -> dict[str, float]:
    """The numbers, of each device in one transfer."""
    found: dict[str, float] = {}
    for device in {x.device for x in means.values()}:
        names = [name for name, x in means.items() if x.device == device]
        found |= zip(names, torch.stack([means[name] for name in names]).tolist(), strict=True)
    return found
