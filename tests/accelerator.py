"""A stand-in accelerator: tensors that claim to be on another device and compute on the CPU, under a GPU's rules.

It refuses what CUDA refuses, and does what CUDA does where that differs from a CPU:

- an operation on tensors of two devices, but for 0-dimensional CPU tensors in elementwise operations and CPU indices of a device tensor;
- `.numpy()` and `np.asarray` of a device tensor, and a CPU generator in a device operation;
- matrix products of integers; operations that have no deterministic CUDA kernel while `torch.use_deterministic_algorithms(True)` holds, and
  matrix products under it without CUBLAS_WORKSPACE_CONFIG;
- what is random on the device is drawn from a generator of its own, which `torch.cuda`'s functions seed, save and restore;
- `.to(device)` keeps Parameters the objects that they are, as on a real device.

`METER` counts what makes a GPU wait: reads (device to host), writes (host to device; without non_blocking both wait for all that was
launched before), and operations whose result's shape must be known to the host; by the line of rlx that caused them.

Importing this registers a backend for as long as the process lives, and with one autograd starts a thread: a process that forks and then
differentiates must not have imported it. Tests therefore import it in a child (`zygote.in_child`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import fused_cells  # noqa: F401  (registers kernels)
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "standin"
PROJECT = f"{os.sep}rlx{os.sep}"
"""What is in the path of the project's files."""
torch.utils.backend_registration._setup_privateuseone_for_python_backend(NAME)
_module = getattr(torch, NAME)  # what torch asks of a backend that it does not know, for as long as the process lives
_module.manual_seed_all, _module._is_in_bad_fork = lambda seed: None, lambda: False
_module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
DEVICE = torch.device(NAME, 0)
CPU = torch.device("cpu")
aten = torch.ops.aten


# Counting


@dataclass
class Meter:
    """What was asked of the device since the last `reset`."""

    launches: int = 0
    counts: Counter[str] = field(default_factory=Counter)  # reads, writes, shapes
    bytes: Counter[str] = field(default_factory=Counter)
    places: Counter[tuple[str, str]] = field(default_factory=Counter)  # (kind, file:line of the project)

    def reset(self) -> None:
        self.launches = 0
        self.counts.clear()
        self.bytes.clear()
        self.places.clear()

    def wait(self, kind: str, of: torch.Tensor | None = None) -> None:
        self.counts[kind] += 1
        self.bytes[kind] += of.numel() * of.element_size() if of is not None else 0
        self.places[kind, _place()] += 1

    @property
    def waits(self) -> int:
        return sum(self.counts.values())


METER = Meter()


def _place() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if PROJECT in name:
            return f"{name.rpartition(PROJECT)[2]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "?"


# Tensors


class OnDevice(torch.Tensor):
    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> OnDevice:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype, device=DEVICE, requires_grad=False
        )

    def __init__(self, raw: torch.Tensor) -> None:
        self.raw = raw

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnDevice({self.raw})"

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def __deepcopy__(self, memo: dict[int, Any]) -> OnDevice:
        if id(self) in memo:
            return memo[id(self)]
        new = OnDevice(self.raw.detach().clone())
        if isinstance(self, nn.Parameter):
            new = nn.Parameter(new, requires_grad=self.requires_grad)  # type: ignore[assignment]
        if self.grad is not None:
            new.grad = self.grad.__deepcopy__(memo)
        memo[id(self)] = new
        return new

    def __reduce_ex__(self, protocol: Any) -> Any:
        METER.wait("reads", self.raw)
        return self.raw.detach().__reduce_ex__(protocol)

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, new: OnDevice) -> None:
        """What `x.data = y` does: x looks into y's memory."""
        torch.Tensor.data.__set__(self, new)  # type: ignore[attr-defined]
        self.raw = new.raw

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True would import the compiler at the first operation, which takes a second

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


# What operations may do

_MOVES = {aten._to_copy.default, aten.copy_.default, aten.copy.default}
_GETS = {aten.index.Tensor}
_SETS = {aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
_SHAPES = {
    aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
}  # fmt: skip
_PRODUCTS = {
    aten.mm.default, aten.addmm.default, aten.addmm_.default, aten.bmm.default, aten.baddbmm.default, aten.mv.default, aten.addmv.default,
    aten.dot.default,
}  # fmt: skip
_UNREPEATABLE = {  # torch.use_deterministic_algorithms' documentation, and alertNotDeterministic in torch's CUDA sources
    "median.dim", "median.dim_values", "nanmedian.dim", "nanmedian.dim_values", "kthvalue", "kthvalue.values", "histc", "put_",
    "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "adaptive_max_pool2d_backward", "avg_pool3d_backward",
    "fractional_max_pool2d_backward", "fractional_max_pool3d_backward", "max_unpool2d", "max_unpool3d", "upsample_linear1d_backward",
    "upsample_bilinear2d_backward", "upsample_bicubic2d_backward", "upsample_trilinear3d_backward", "reflection_pad1d_backward",
    "reflection_pad2d_backward", "reflection_pad3d_backward", "nll_loss2d_forward", "nll_loss2d_backward", "_ctc_loss_backward",
    "grid_sampler_2d_backward", "grid_sampler_3d_backward", "index_reduce_",
}  # fmt: skip


_kernels = torch.library.Library("aten", "IMPL")
_kernels.impl("silu_backward", lambda *_: _refuse("unreachable"), "PrivateUse1")  # without one its derivative is computed in another way


def _refuse(text: str) -> None:
    raise RuntimeError(text)


def _check_index(func: Any, args: Any) -> None:
    """Indices may be on the CPU or with what is indexed; values only with it, or 0-dimensional."""
    target, indices = args[0], [x for x in args[1] if x is not None]
    on_device = isinstance(target, OnDevice)
    for index in indices:
        if isinstance(index, OnDevice) and not on_device:
            _refuse(f"indices should be either on cpu or on the same device as the indexed tensor (cpu), got {NAME} in {func.name()}")
        if on_device and not isinstance(index, OnDevice):
            METER.wait("writes", index)
    if func in _SETS:
        value, accumulate = args[2], len(args) > 3 and args[3]
        if isinstance(value, OnDevice) != on_device and value.dim() > 0:
            _refuse(f"Expected all tensors to be on the same device, but the values of {func.name()} are on {value.device} and not "
                    f"on {target.device}: {tuple(value.shape)}")  # fmt: skip
        fills = value.numel() == 1 and not accumulate and len(indices) == 1  # becomes masked_fill
    else:
        fills = False
    if on_device and not fills:
        for index in indices:
            if index.dtype in (torch.bool, torch.uint8):
                METER.wait("shapes")


def _check_devices(func: Any, about: _About, mine: list[OnDevice], others: list[torch.Tensor]) -> None:
    if mine and others and (wrong := [x for x in others if x.dim() > 0 or not about.elementwise]):
        shapes = ", ".join(str(tuple(x.shape)) for x in wrong)
        _refuse(f"Expected all tensors to be on the same device, but found {NAME} and cpu in {func.name()}: {shapes} on the cpu")


def _check_kernel(about: _About, args: Any) -> None:
    """Refuse what has no CUDA kernel, or none that is deterministic where it has to be."""
    if not (about.is_product or about.refused or about.may_be_refused):
        return
    first = next((x for x in args if isinstance(x, OnDevice)), None)
    if about.is_product:
        if first is not None and not (first.is_floating_point() or first.is_complex()):
            _refuse(f'"addmm_cuda" not implemented for {first.dtype}')
        if torch.are_deterministic_algorithms_enabled() and os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in (":4096:8", ":16:8"):
            _refuse("Deterministic behavior was enabled, but this operation is not deterministic because it uses CuBLAS: set "
                    "CUBLAS_WORKSPACE_CONFIG=:4096:8")  # fmt: skip
    elif torch.are_deterministic_algorithms_enabled():
        floats = first is not None and first.is_floating_point()  # cumsum
        weighted = len(args) > 1 and isinstance(args[1], torch.Tensor)  # bincount
        if about.refused or floats or weighted:
            _refuse(f"{about.refused or 'cumsum or bincount'} does not have a deterministic implementation, but you set "
                    "'torch.use_deterministic_algorithms(True)'")  # fmt: skip


_generator_state = torch.Generator().manual_seed(0).get_state()
_draws_alone = True


def _drawing(func: Any, args: Any, kwargs: Any) -> Any:
    """Call what is random under the device's own generator."""
    global _generator_state
    outer = torch.get_rng_state()
    torch.set_rng_state(_generator_state)
    try:
        return func(*args, **kwargs)
    finally:
        _generator_state = torch.get_rng_state()
        torch.set_rng_state(outer)


@dataclass(frozen=True)
class _About:
    """What is known of an operation."""

    is_composite: bool  # it is others on every device; arrives whole in inference mode
    draws: bool
    elementwise: bool
    is_view: bool
    is_product: bool
    moves: bool
    refused: str | None  # its name, if there is no deterministic kernel
    may_be_refused: bool
    needs_shape: bool


@functools.cache
def _about(func: Any) -> _About:
    name, has_kernel = func.name().removeprefix("aten::"), torch._C._dispatch_has_kernel_for_dispatch_key
    return _About(
        is_composite=has_kernel(func.name(), "CompositeImplicitAutograd") and not has_kernel(func.name(), "CPU"),
        draws=torch.Tag.nondeterministic_seeded in func.tags,
        elementwise=torch.Tag.pointwise in func.tags or name.partition(".")[0] in ("where", "fill", "fill_", "masked_fill", "masked_fill_"),
        is_view=func.is_view, is_product=func in _PRODUCTS, moves=func in _MOVES, refused=name if name in _UNREPEATABLE else None,
        may_be_refused=name.startswith(("cumsum", "bincount")), needs_shape=func in _SHAPES,
    )  # fmt: skip


class _Found:
    """What is among an operation's arguments."""

    __slots__ = ("mine", "others", "place")

    def __init__(self) -> None:
        self.mine: list[OnDevice] = []
        self.others: list[torch.Tensor] = []
        self.place: torch.device | None = None


def _lower(x: Any, found: _Found) -> Any:
    """An argument as the CPU is to see it."""
    kind = type(x)
    if kind is OnDevice:
        found.mine.append(x)
        return x.raw
    if kind is list or kind is tuple:
        return kind(_lower(each, found) for each in x)
    if isinstance(x, torch.Tensor):
        found.others.append(x)
    elif kind is torch.device:
        found.place = x
        return CPU if x.type == NAME else x
    return x


def _lift(x: Any, func: Any, mine: list[OnDevice], stays: bool) -> Any:
    """A result as the project is to see it; what an operation changes in place stays the object that it is."""
    kind = type(x)
    if kind is list or kind is tuple:
        return kind(_lift(each, func, mine, stays) for each in x)
    if not isinstance(x, torch.Tensor) or kind is OnDevice:
        return x
    for same in mine:
        if same.raw is x:
            if same.shape != x.shape or same.stride() != x.stride():
                raise NotImplementedError(f"{func.name()} changes a tensor's shape in place")
            return same
    return OnDevice(x) if stays else x


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    found = _Found()
    raw_args = [_lower(x, found) for x in args]
    raw_kwargs = {name: _lower(x, found) for name, x in kwargs.items()} if kwargs else {}
    mine, to_device = found.mine, found.place is not None and found.place.type == NAME
    if not mine and not to_device:
        return func(*args, **kwargs)
    about = _about(func)
    if about.is_composite:
        with _Mode():
            return func.decompose(*args, **kwargs)
    if func in _GETS or func in _SETS:
        _check_index(func, args)
    elif not about.moves:
        _check_devices(func, about, mine, found.others)
        _check_kernel(about, args)
    if kwargs and kwargs.get("generator") is not None:
        _refuse(f"Expected a '{NAME}' device type for generator but found 'cpu' in {func.name()}")
    _count(func, about, args, kwargs, mine, reads=bool(mine) and found.place is not None and not to_device)
    out = _drawing(func, raw_args, raw_kwargs) if about.draws and _draws_alone else func(*raw_args, **raw_kwargs)
    if func is aten.copy_.default:
        return args[0]
    return _lift(out, func, mine, to_device if found.place is not None else bool(mine))


def _count(func: Any, about: _About, args: Any, kwargs: Any, mine: list[OnDevice], *, reads: bool) -> None:
    if func is aten._local_scalar_dense.default or func is aten.equal.default:
        METER.wait("reads")
    elif func is aten._to_copy.default:
        if reads:
            METER.wait("reads", args[0].raw)
        elif not mine:
            METER.wait("writes", args[0])
        else:
            METER.launches += 1
    elif func is aten.copy_.default and isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice):
        METER.wait("writes" if isinstance(args[0], OnDevice) else "reads", args[0])
    else:
        if about.needs_shape and not (func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is not None):
            METER.wait("shapes")
        METER.launches += not about.is_view


# The device


def _seed(seed: int) -> None:
    global _generator_state
    _generator_state = torch.Generator().manual_seed(int(seed) ^ 0x5DEECE66D).get_state()


def _state() -> torch.Tensor:
    return _generator_state.clone()


def _set_state(state: torch.Tensor) -> None:
    global _generator_state
    _generator_state = state.clone()


_apply, _tensor, _as_tensor = nn.Module._apply, torch.tensor, torch.as_tensor


def _apply_in_place(self: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    """`.to(device)` that leaves every Parameter the object that it is: on a real device its data is exchanged, here its contents are."""
    if recurse:
        for child in self.children():
            child._apply(fn)
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return _apply(self, fn, recurse=False)
    except RuntimeError:  # something else, a view say, looks into a parameter: a new object takes its place
        torch.__future__.set_swap_module_params_on_conversion(False)
        return _apply(self, fn, recurse=False)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def _make(make: Any) -> Any:
    """torch.tensor and torch.as_tensor, which reach for a device's memory below where operations can be intercepted."""

    def on_device(data: Any, *, device: Any = None, requires_grad: bool = False, **kwargs: Any) -> torch.Tensor:
        if device is None or torch.device(device).type != NAME:
            return make(data, device=device, **({"requires_grad": True} if requires_grad else {}), **kwargs)
        return make(data, **kwargs).to(device).requires_grad_(requires_grad)

    return on_device


def _set_deterministic(mode: bool, *, warn_only: bool = False) -> None:
    """`torch.use_deterministic_algorithms` without the second of imports for compiled code."""
    torch._C._set_deterministic_algorithms(mode, warn_only=warn_only)


@contextlib.contextmanager
def accelerator(*, own_generator: bool = True) -> Iterator[torch.device]:
    """Within the block there is a device, and `torch.cuda` says what it would say of a card whose generator is this device's.

    Args:
        own_generator: False draws from the CPU's, for the numbers of a run on the CPU.
    """
    global _draws_alone
    _draws_alone = own_generator
    patches = [
        mock.patch.object(nn.Module, "_apply", _apply_in_place),
        mock.patch.object(torch, "tensor", _make(_tensor)),
        mock.patch.object(torch, "as_tensor", _make(_as_tensor)),
        mock.patch.object(torch, "use_deterministic_algorithms", _set_deterministic),
        mock.patch.object(torch.cuda, "is_initialized", return_value=True),
        mock.patch.object(torch.cuda, "device_count", return_value=1),
        mock.patch.object(torch.cuda, "get_rng_state", _state),
        mock.patch.object(torch.cuda, "set_rng_state", _set_state),
        mock.patch.object(torch.cuda, "manual_seed_all", _seed),
    ]
    deterministic = torch.are_deterministic_algorithms_enabled()
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        stack.callback(_set_deterministic, deterministic)
        stack.enter_context(_Mode())
        yield DEVICE
