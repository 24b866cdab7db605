"""The cross-entropy method for a linear policy: rlx train algo=my_algo:MyAlgo env=cartpole env.num_envs=32

Every environment tries one candidate; the next candidates are drawn around the best of them (Rubinstein 1999).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from gymnasium.spaces import Discrete

from rlx.errors import ConfigError
from rlx.plugins import AlgoConfig, Suits, setting
from rlx.types import PolicyOutput


@dataclass(kw_only=True)
class Settings(AlgoConfig):
    suits: ClassVar = (Suits.discrete,)
    rollout_length: int = setting(200, at_least=1)
    """Env steps in which each candidate is judged."""
    elite_fraction: float = setting(0.2, within="(0, 1]")
    """Share of the candidates that the next ones are drawn around."""
    min_std: float = setting(0.1, at_least=0)
    """Lower bound of the standard deviation of the candidates."""


class MyAlgo:
    """Cross-entropy method for a linear policy."""

    Config = Settings
    device = torch.device("cpu")

    def __init__(self, config: Settings, spec: Any, num_envs: int, device: torch.device) -> None:
        if not isinstance(spec.action_space, Discrete):
            raise ConfigError(f"algo={config.name} needs discrete actions, and env={spec.id} has {spec.action_space}; try env=cartpole")
        self.config, self.rollout_length = config, config.rollout_length
        self.mean = torch.zeros(spec.observation_space.shape[0], int(spec.action_space.n))
        self.std = torch.ones_like(self.mean)
        self.candidates = self.mean + self.std * torch.randn(num_envs, *self.mean.shape)

    def initial_carry(self, batch_size: int) -> dict[str, torch.Tensor]:
        return {}  # no memory

    def act(self, obs: torch.Tensor, carry: Any, is_first: torch.Tensor, *, mode: str) -> PolicyOutput:
        weights = self.candidates if mode == "train" else self.mean
        return PolicyOutput((obs.float()[:, None] @ weights)[:, 0].argmax(1), carry, extras={})

    def update(self, rollout: Any, progress: Any) -> dict[str, float]:
        score = rollout.reward.sum(0) / (1 + rollout.is_last.sum(0))  # of each candidate: reward per episode
        best = self.candidates[score.topk(max(1, round(self.config.elite_fraction * len(score)))).indices]
        self.mean, self.std = best.mean(0), best.std(0, correction=0).clamp(min=self.config.min_std)
        self.candidates = self.mean + self.std * torch.randn_like(self.candidates)
        return {"cem/best_score": float(score.max()), "cem/std": float(self.std.mean())}

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"mean": self.mean, "std": self.std, "candidates": self.candidates}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.mean, self.std, self.candidates = state["mean"], state["std"], state["candidates"]
