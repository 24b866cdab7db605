"""What happened since the last line was logged, and the last hundred episodes."""

from __future__ import annotations

import math
from collections import deque

import torch
from torch import Tensor

from rlx.collect import Episode
from rlx.types import Metrics, State

WINDOW = 100

MEANINGS = {
    "episode/return": "undiscounted return of the training episodes that ended since the last line, mean",
    "episode/length": "their steps, mean",
    "episode/count": "how many they were",
    "episode/solve_rate": "share of them that was solved",
    "episode/return_mean_100": "mean return of the last hundred training episodes",
    "eval/return_mean": "undiscounted return of the evaluation's episodes, mean",
    "eval/return_iqm": "mean of their middle half",
    "eval/return_std": "their standard deviation",
    "eval/return_ci_low": "lower end of the 95 % interval of their mean",
    "eval/return_ci_high": "upper end of it",
    "eval/length_mean": "their steps, mean",
    "eval/solve_rate": "share of them that was solved",
    "eval/cut_episodes": "how many of them were cut at loop.eval_max_steps",
    "eval/optimal_moves": "share of labelled positions where the policy plays a move that a solver calls best",
    "loss/policy": "what the optimiser lowers for the policy, each algorithm its own",
    "loss/value": "what it lowers for the value, each algorithm its own",
    "loss/reward": "what it lowers for the rewards of a latent model",
    "loss/weights": "the penalty of the weights' squares",
    "loss/model": "what it lowers for a model of the environment",
    "loss/distill": "cross-entropy of a rollout policy with the policy that it imitates",
    "loss/rollout_policy": "cross-entropy of a rollout policy with experts' moves",
    "loss/supervised": "cross-entropy of a policy with experts' moves",
    "update/entropy": "entropy of the policy that is trained, nats",
    "update/approx_kl": "divergence of the policy from the one that acted, nats",
    "update/clip_fraction": "share of the probability ratios beyond the clip",
    "update/kl_coef": "weight of the divergence's penalty",
    "update/grad_norm": "norm of the gradient before it is clipped",
    "update/explained_variance": "share of the targets' variance that the values before the update explain",
    "update/learning_rate": "step size",
    "update/num_epochs": "passes over the data",
    "update/num_gradient_steps": "gradient steps since the last line, their sum",
    "update/num_reanalysed": "old steps that were searched again so far",
    "update/target_entropy": "entropy of the searches' policies, which the policy's cross-entropy cannot fall below",
    "replay/size": "steps to train on again",
    "replay/repeated": "share of a batch whose positions had been trained on before",
    "game/length": "plies of a game",
    "game/first_player_score": "score of who moves first, 1 for a win",
    "game/draws": "share of games that were drawn",
    "search/depth": "mean length of a descent",
    "search/root_value": "what searches think of the positions that they begin with",
    "search/duplicate_share": "share of leaves that had been evaluated before",
    "search/network_calls_per_simulation": "calls of the network, over simulations",
    "search/predicted_return": "values that searches found when they acted",
    "search/realised_return": "discounted returns that followed",
    "search/return_gap": "predicted less realised",
    "latent/unrolled_error": "of a latent after imagined steps against that of what was then observed, in deviations of the latents",
    "latent/reward_error": "mean difference of the rewards that were foreseen on the way and those that came",
    "latent/value_error": "mean difference of the values of the two latents",
    "model/changed_cell_accuracy": "share of the cells that changed that were foreseen",
    "model/frame_accuracy_*": "share of frames that are exact after so many steps of the model",
    "model/event_f1": "F1 of the events that do not always happen",
    "model/event_f1_*": "F1 of one event",
    "model/disagreement": "spread of what an ensemble's members predict along the chosen plans, in deviations of the observations",
    "model/k_step_error": "error of what a model foresees five steps ahead, in deviations of the observations",
    "model/holdout_nll": "negative log-likelihood of steps that no member of an ensemble is trained on",
    "model/holdout_mse": "squared error there; always predicting the mean change has 1",
    "model/known_reward_error": "mean difference of the reward function that is known and the environment's rewards",
    "plan/predicted_return": "what plans promised for the steps that they were for",
    "plan/realised_return": "the reward of those steps",
    "plan/exploitation_gap": "predicted minus realised",
    "plan/horizon": "steps of a plan that counted",
    "imagination/in_use": "1 once the agent imagines",
    "imagination/policy_shift": "divergence of the policy with imagination from that without, nats",
    "imagination/model_error": "share of cells that were imagined wrongly",
    "imagination/shift_error_correlation": "correlation of the two above",
    "train/phase": "number of the phase of a run that has several",
    "supervised/new_game_accuracy": "share of experts' moves foreseen in games that were not trained on",
    "value/new_game_mse": "squared error of the value in games that were not trained on",
    "reinforce/score_against_supervised": "score of the policy against the one it began as",
    "reinforce/score_against_pool": "score against its own past",
    "reinforce/pool_size": "how many past policies there are",
    "time/elapsed_s": "since the first env step, over resumes",
    "time/steps_per_s": "env steps per second since the line before",
    "time/*_s": "seconds of one phase of the loop, or of a fit, since the line before",
    "time/plan_ms": "of planning, per env step",
    "time/search_network_share": "share of the searches' time in networks",
    "time/search_tree_share": "share of it in trees",
    "time/simulations_per_s": "of searches",
    "time/evaluations_per_s": "positions that a network evaluated",
}
"""What each metric means, in every algorithm: who measures something else gives it a name of its own. `*` stands for what varies."""


class MetricBuffer:
    """Collects episodes and the updates' metrics until they are flushed into one line."""

    def __init__(self) -> None:
        self._episodes: list[Episode] = []
        self._updates: list[dict[str, Tensor | float]] = []
        self._recent: deque[float] = deque(maxlen=WINDOW)

    def add_episodes(self, episodes: list[Episode]) -> None:
        self._episodes += episodes
        self._recent.extend(e.return_ for e in episodes)

    def add_update(self, metrics: Metrics) -> None:
        self._updates.append(dict(metrics))

    @property
    def return_mean_100(self) -> float | None:
        """Mean return of the last 100 training episodes; None before there were 100."""
        return sum(self._recent) / WINDOW if len(self._recent) == WINDOW else None

    def flush(self) -> dict[str, float]:
        """Means over what was added since the last flush, as numbers; what is not defined is left out."""
        line: dict[str, float] = {}
        if self._episodes:
            n = len(self._episodes)
            line["episode/return"] = sum(e.return_ for e in self._episodes) / n
            line["episode/length"] = sum(e.length for e in self._episodes) / n
            line["episode/count"] = n
            solved = [e.solved for e in self._episodes if e.solved is not None]
            if solved:
                line["episode/solve_rate"] = sum(solved) / len(solved)
        if self._recent:
            line["episode/return_mean_100"] = sum(self._recent) / len(self._recent)
        means: dict[str, Tensor] = {}
        names = dict.fromkeys(name for metrics in self._updates for name in metrics)
        for name in names:
            values = [metrics[name] for metrics in self._updates if name in metrics]
            if name.endswith("/num_gradient_steps"):
                line[name] = float(sum(values))
            elif isinstance(values[0], Tensor):
                line[name] = math.nan  # keeps its place
                where = values[-1].device if isinstance(values[-1], Tensor) else None
                means[name] = torch.stack([v.to(where) for v in values if isinstance(v, Tensor)]).mean()
            else:
                line[name] = float(sum(values)) / len(values)
        line |= _read(means)
        self._episodes, self._updates = [], []
        return {name: value for name, value in line.items() if math.isfinite(value)}

    def state_dict(self) -> State:
        return {"episodes": [tuple(e) for e in self._episodes], "updates": [dict(u) for u in self._updates], "recent": list(self._recent)}

    def load_state_dict(self, state: State) -> None:
        self._episodes = [Episode(*e) for e in state["episodes"]]
        self._updates = [dict(u) for u in state["updates"]]
        self._recent = deque(state["recent"], maxlen=WINDOW)


def _read(means: dict[str, Tensor]) -> dict[str, float]:
    """The numbers, of each device in one transfer."""
    found: dict[str, float] = {}
    for device in {x.device for x in means.values()}:
        names = [name for name, x in means.items() if x.device == device]
        found |= zip(names, torch.stack([means[name] for name in names]).tolist(), strict=True)
    return found
