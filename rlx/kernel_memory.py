"""How kernels for `rlx.compiled_code` are compiled, and how they see memory: pointers, and arrays over them."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""Without numba's memory management and without exceptions, so that the machine code needs neither numba nor Python."""

FLOATS, DOUBLES, INTEGERS, BYTES = (types.CPointer(t) for t in (types.float32, types.float64, types.int64, types.uint8))
"""Types of pointers."""

_intrinsic: Any = intrinsic  # whose first argument callers do not give


def _pointer(pointer_type):
    """A function of an address, an integer, that gives a pointer of a type."""

    def lower(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    @_intrinsic
    def pointer(context, address):
        return pointer_type(types.int64), lower

    return pointer


floats, doubles, integers, bytes_at = (_pointer(t) for t in (FLOATS, DOUBLES, INTEGERS, BYTES))
"""Addresses to pointers."""


def _view(context, builder, signature, args):
    """Lower `vector` and `matrix`: an array over the pointer args[0] at offset args[1] with the shape that follows."""
    array_type, shape = signature.return_type, args[2:]
    array = make_array(array_type)(context, builder)
    itemsize = context.get_constant(types.intp, array_type.dtype.bitwidth // 8)
    strides = [itemsize] if len(shape) == 1 else [builder.mul(shape[1], itemsize), itemsize]
    data = builder.gep(args[0], [args[1]])
    populate_array(array, data=data, shape=shape, strides=strides, itemsize=itemsize, meminfo=None)
    return array._getvalue()


@_intrinsic
def vector(context, data, offset, size):
    """The numbers behind a pointer, from an offset, as an array [size]. numba's carray needs its memory management."""
    return types.Array(data.dtype, 1, "C")(data, types.int64, types.int64), _view


@_intrinsic
def matrix(context, data, offset, rows, columns):
    """The numbers behind a pointer, from an offset, as an array [rows, columns]."""
    return types.Array(data.dtype, 2, "C")(data, types.int64, types.int64, types.int64), _view
