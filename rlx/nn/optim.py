"""Adam over all parameters of a module as one vector, so that a step with clipping is a few operations in all."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlx.distributed import ALONE, World
from rlx.nn.finite import FiniteWatch
from rlx.types import State

NUM_LOSSES = 3
"""Most losses that are added up over ranks together with the gradient."""


class FlatAdam:
    """Adam (Kingma and Ba 2015, algorithm 1) over the concatenated parameters of `module`, with clipping by global norm.

    Parameters and their gradients become views of two vectors. The step is that of `torch.optim.Adam` over the separate tensors,
    without the overhead per tensor, which is a third of a small network's update.

    Args:
        module: already on its device; must not be moved afterwards.
        epsilon: Adam's epsilon; 1e-5 in every published PPO.
        max_grad_norm: clip the gradient to this norm.
        betas: decay of the running means of the gradient and of its square.
    """

    def __init__(
        self, module: nn.Module, *, epsilon: float = 1e-5, max_grad_norm: float, betas: tuple[float, float] = (0.9, 0.999)
    ) -> None:
        parameters = list(module.parameters())
        self._parameters = torch.cat([p.detach().reshape(-1) for p in parameters])
        self._sent = self._parameters.new_zeros(len(self._parameters) + NUM_LOSSES)
        self._grad, self._tail = self._sent[:-NUM_LOSSES], self._sent[-NUM_LOSSES:]
        self.world: World = ALONE
        self._mean, self._square = torch.zeros_like(self._grad), torch.zeros_like(self._grad)
        self.num_steps = 0
        self._finite = FiniteWatch()
        self.epsilon, self.max_grad_norm, self.betas = epsilon, max_grad_norm, betas
        offset = 0
        for p in parameters:
            end = offset + p.numel()
            p.data = self._parameters[offset:end].view_as(p)
            p.grad = self._grad[offset:end].view_as(p)
            offset = end

    @property
    def parameters(self) -> Tensor:
        """All parameters as one vector, which the module's parameters are views of."""
        return self._parameters

    def join(self, world: World) -> None:
        """Learn together with other ranks, from the parameters of rank 0: `reduce` then adds up the gradients of all ranks."""
        self.world = world
        world.broadcast_(self._parameters)

    def reduce(self, share: float, losses: Tensor) -> Tensor:
        """Replace the gradient of the mean loss over this rank's rows by that over the rows of all ranks.

        Args:
            share: of all rows that are this rank's.
            losses: at most NUM_LOSSES means over this rank's rows.

        Returns:
            These means over the rows of all ranks.
        """
        self._tail[: len(losses)].copy_(losses)
        self.world.sum_(self._sent.mul_(share))
        return self._tail[: len(losses)].clone()

    def zero_grad(self) -> None:
        self._grad.zero_()

    @torch.no_grad()
    def step(self, loss: Tensor, learning_rate: float) -> Tensor:
        """Clip the accumulated gradient of `loss` and step; returns the gradient's norm before clipping.

        Raises:
            NonFiniteError: if the loss or the gradient is not finite: on a CPU before anything is changed, on an accelerator by `check`.
        """
        grad = self._grad
        norm = torch.linalg.vector_norm(grad)
        self._finite.look(loss, norm)
        if norm.device.type != "cpu":
            exact = norm if norm.device.type == "mps" else norm.double()  # as the CPU divides
            grad.mul_((self.max_grad_norm / exact).clamp(max=1.0).to(grad.dtype))
        elif (norm_value := norm.item()) > self.max_grad_norm:
            grad.mul_(self.max_grad_norm / norm_value)
        beta1, beta2 = self.betas
        self.num_steps += 1
        self._mean.lerp_(grad, 1.0 - beta1)
        self._square.mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
        scale = (1.0 - beta2**self.num_steps) ** 0.5
        denominator = self._square.sqrt().div_(scale).add_(self.epsilon)
        self._parameters.addcdiv_(self._mean, denominator, value=-learning_rate / (1.0 - beta1**self.num_steps))
        return norm

    def arrays(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """The gradient and Adam's two moments as views, on a CPU; callers that change them count their steps in `num_steps`."""
        return self._grad.numpy(), self._mean.numpy(), self._square.numpy()

    def check(self) -> None:
        """Raise a NonFiniteError if a step since the last `check` was not finite; for the end of every update."""
        self._finite.check()

    def state_dict(self) -> State:
        self.check()
        return {"mean": self._mean.clone(), "square": self._square.clone(), "num_steps": self.num_steps}

    def load_state_dict(self, state: State) -> None:
        self._mean.copy_(state["mean"])
        self._square.copy_(state["square"])
        self.num_steps = state["num_steps"]
