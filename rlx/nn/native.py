"""The kernels of `rlx.nn.kernels` as machine code: compiled by numba once for each machine, and loaded without numba afterwards.

Importing numba and looking up its own cache would take 0.6 s of every start; loading machine code through llvmlite takes 0.03 s. The code
is kept in `$XDG_CACHE_HOME/rlx` (by default `~/.cache/rlx`), in a file whose name is a digest of the kernels' source, the versions of numba
and llvmlite, and the processor. It is loaded only if nobody else can write it; where it cannot be kept, every process compiles for itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from llvmlite import binding as llvm

Kernel = Callable[..., int]
_TYPES: dict[str, Any] = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float, "d": ctypes.c_double}
_ARGUMENTS = {
    "forward": "pipiiipipip",
    "act": "pipiiiipippfpipippp",
    "gradient_steps": "pipppipiiiiipippppipppp" + "iiifffffdddpiipp",
}
"""p: pointer, i: int64, f: float32, d: float64; see the signatures in `rlx.nn.kernels`."""


class Kernels(NamedTuple):
    """Functions of addresses and numbers. They hold on to nothing, so that the caller keeps the arrays behind the addresses alive."""

    forward: Kernel
    act: Kernel
    gradient_steps: Kernel


@functools.cache
def load_kernels() -> Kernels:
    """The kernels, from the cache or compiled, which takes some seconds."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    file = _cache_directory() / f"kernels-{_digest()}.o"
    code = _read(file)
    if code is None:
        code = _compile()
        _write(file, code)
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return Kernels(*(_function(engine, name, arguments) for name, arguments in _ARGUMENTS.items()))


def _function(engine: Any, name: str, arguments: str) -> Kernel:
    """A kernel under numba's calling convention: the addresses of the result and of an exception come before the arguments."""
    # Without the GIL for what takes long; giving it up and taking it back would cost as much as acting does.
    make = ctypes.CFUNCTYPE if name == "gradient_steps" else ctypes.PYFUNCTYPE
    prototype = make(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *(_TYPES[letter] for letter in arguments))
    function = prototype(engine.get_function_address(f"rlx_{name}"))
    result, exception = ctypes.c_int64(), ctypes.c_void_p()
    addresses = ctypes.addressof(result), ctypes.addressof(exception)

    def call(*args: Any, _alive: Any = (engine, exception)) -> int:
        function(*addresses, *args)
        return result.value

    return call


def _compile() -> bytes:
    """One object file with all kernels, named rlx_*."""
    from rlx.nn import kernels

    whole = None
    for kernel, signature in kernels.SIGNATURES.items():
        kernel.compile(signature)
        compiled = kernel.overloads[signature.args]
        module = compiled.library._final_module.clone()
        module.get_function(compiled.fndesc.llvm_func_name).name = f"rlx_{kernel.py_func.__name__}"
        if whole is None:
            whole, machine = module, compiled.library.codegen._tm
        else:
            whole.link_in(module)
    code: bytes = machine.emit_object(whole)
    return code


def _digest() -> str:
    source = b"".join(Path(__file__).with_name(name).read_bytes() for name in ("kernels.py", "kernel_parts.py"))
    where = f"{version('numba')} {llvm.get_default_triple()} {llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}"
    return hashlib.sha256(source + where.encode() + version("llvmlite").encode()).hexdigest()[:32]


def _cache_directory() -> Path:
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "rlx"


def _read(file: Path) -> bytes | None:
    """The machine code in a file, followed there by its SHA-256; None if there is none that is whole and only ours to write."""
    with contextlib.suppress(OSError):
        for path in (file.parent, file):
            status = path.lstat()
            if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
                return None
        code, digest = (content := file.read_bytes())[:-32], content[-32:]
        return code if hashlib.sha256(code).digest() == digest else None
    return None


def _write(file: Path, code: bytes) -> None:
    with contextlib.suppress(OSError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=file.parent)
        with open(descriptor, "wb") as out:
            out.write(code + hashlib.sha256(code).digest())
        os.replace(name, file)
