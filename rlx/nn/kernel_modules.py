"""The kernels of small networks as `rlx.compiled_code` loads them; without numba and torch."""

from __future__ import annotations

from rlx.compiled_code import KernelModule

_PARTS = ("rlx.nn.kernel_parts",)
ACTING = KernelModule("rlx.nn.kernels", (("forward", "pipiiipipip"), ("act", "p")), parts=_PARTS)
LEARNING = KernelModule(
    "rlx.nn.kernels", (("gradient_steps", "pipppipiiiiipippppippppiiifffffdddddpiippipi"),), parts=_PARTS, long=("gradient_steps",)
)
GRU_UNROLL = KernelModule(
    "rlx.nn.gru_kernels", (("gru_forward", "ppppppp" + "iiip"), ("gru_backward", "pppppppp" + "iiip")), parts=_PARTS,
    long=("gru_forward", "gru_backward"),
)  # fmt: skip
OFF_POLICY = KernelModule(
    "rlx.nn.off_policy_kernels", (("targets", "p"), ("values_step", "p"), ("policy_step", "p")), parts=_PARTS,
    long=("targets", "values_step", "policy_step"),
)  # fmt: skip
MOST_WEIGHTS = 2**15
"""Weights of a layer up to which `OFF_POLICY` is used: the products of wider ones are as fast in torch."""
