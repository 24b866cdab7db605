"""Kernels as machine code: compiled by numba once for each machine, and loaded without numba afterwards.

Importing numba and looking up its own cache would take 0.6 s of every start; loading machine code through llvmlite takes 0.03 s. The code
is kept in `$XDG_CACHE_HOME/rlx` (by default `~/.cache/rlx`), in files whose names are digests of the kernels' source, the versions of numba
and llvmlite, and the processor. A file is loaded only if no other user can write it. Without a cache, every process compiles anew.

Nothing here imports torch, so that environments can use it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from rlx.errors import StorageError

Kernel = Callable[..., int]
"""A function of addresses and numbers. It keeps no references: the caller keeps the arrays behind the addresses alive."""

_TYPES: dict[str, Any] = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float, "d": ctypes.c_double}


@dataclass(frozen=True)
class KernelModule:
    """Kernels of a module, which are compiled together.

    Its attribute SIGNATURES maps every kernel to the numba signature it is compiled for. The kernels may neither raise nor allocate: see
    `rlx.kernel_memory`.
    """

    name: str
    arguments: tuple[tuple[str, str], ...]
    """Names of kernels and their arguments, a letter for each: p pointer, i int64, f float32, d float64."""
    parts: tuple[str, ...] = ()
    """Other modules whose source the kernels are made of."""
    long: tuple[str, ...] = ()
    """Kernels that run without the GIL. Releasing and retaking it costs as much as a short kernel."""


@functools.cache
def load(module: KernelModule) -> tuple[Kernel, ...]:
    """The kernels of a module in the order of `arguments`, from the cache or compiled, which takes some seconds."""
    llvm = _initialised_llvm()
    code = _read(_file(module))
    if code is None and module in _BEGUN:  # waits for it
        _BEGUN[module].wait()
        code = _read(_file(module))
    if code is None:
        code = compile_into_cache(module)
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return tuple(_function(engine, name, arguments, name in module.long) for name, arguments in module.arguments)


_BEGUN: dict[KernelModule, subprocess.Popen[bytes]] = {}


def begin_compiling(module: KernelModule) -> None:
    """Compile a module that is not in the cache in another process, while this one imports what it needs; `load` waits for it."""
    if module not in _BEGUN and _is_writable(_cache_directory()) and _read(_file(module)) is None:
        source = f"from rlx.compiled_code import *; compile_into_cache({module!r})"
        search_path = os.pathsep.join(filter(None, (str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH"))))
        with contextlib.suppress(OSError):
            _BEGUN[module] = subprocess.Popen(  # -P: nothing is imported from the working directory
                [sys.executable, "-P", "-c", source], env=os.environ | {"PYTHONPATH": search_path}, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip


def _is_writable(directory: Path) -> bool:
    with contextlib.suppress(OSError):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.access(directory, os.W_OK)


def compile_into_cache(module: KernelModule) -> bytes:
    """The object file of a module, compiled now and kept in the cache if it can be written."""
    _initialised_llvm()
    file = _file(module)
    code = _compile(module)
    if _digest.__wrapped__(module) == _digest(module):  # else the source was edited meanwhile: nobody knows which one was compiled
        _write(file, code)
    return code


def _initialised_llvm() -> Any:
    from llvmlite import binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


def _function(engine: Any, name: str, arguments: str, is_long: bool) -> Kernel:
    """A kernel under numba's calling convention: the addresses of the result and of an exception come before the arguments."""
    make = ctypes.CFUNCTYPE if is_long else ctypes.PYFUNCTYPE
    prototype = make(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *(_TYPES[letter] for letter in arguments))
    function = prototype(engine.get_function_address(f"rlx_{name}"))
    result, exception = ctypes.c_int64(), ctypes.c_void_p()
    addresses = ctypes.addressof(result), ctypes.addressof(exception)

    def call(*args: Any, _alive: Any = (engine, exception)) -> int:
        function(*addresses, *args)
        return result.value

    return call


def with_arguments(kernel: Kernel, *arrays_and_integers: Any) -> Callable[[], int]:
    """A call of a kernel whose one argument is a block of addresses and integers [*] int64; the arrays stay alive with it.

    Converting an argument takes ctypes longer than reading it from memory takes the kernel.
    """
    block = np.array([x.ctypes.data if isinstance(x, np.ndarray) else int(x) for x in arrays_and_integers], dtype=np.int64)
    call = functools.partial(kernel, block.ctypes.data)
    call.alive = block, arrays_and_integers  # type: ignore[attr-defined]
    return call


def _compile(module: KernelModule) -> bytes:
    """One object file with all kernels, named rlx_*."""
    whole = None
    names = {name for name, _ in module.arguments}
    for kernel, signature in importlib.import_module(module.name).SIGNATURES.items():
        if kernel.py_func.__name__ not in names:
            continue
        _check_arguments(kernel.py_func.__name__, dict(module.arguments)[kernel.py_func.__name__], signature)
        kernel.compile(signature)
        compiled = kernel.overloads[signature.args]
        part = compiled.library._final_module.clone()
        part.get_function(compiled.fndesc.llvm_func_name).name = f"rlx_{kernel.py_func.__name__}"
        if whole is None:
            whole, machine = part, compiled.library.codegen._tm
        else:
            whole.link_in(part)
    code: bytes = machine.emit_object(whole)
    return code


def _check_arguments(name: str, letters: str, signature: Any) -> None:
    """Refuse a kernel whose arguments are others than its caller knows: called with the wrong ones, it would compute nonsense silently."""
    kinds = ["p" if hasattr(kind, "dtype") else {"int64": "i", "float32": "f", "float64": "d"}[str(kind)] for kind in signature.args]
    if "".join(kinds) != letters:
        raise StorageError(f"the arguments of kernel {name} are {''.join(kinds)} in its source and {letters} where it is called: the files "
                          "of rlx were changed while this process ran, or do not belong together; start again")  # fmt: skip


def _file(module: KernelModule) -> Path:
    names = "-".join(name for name, _ in module.arguments)
    return _cache_directory() / f"{module.name.rpartition('.')[2]}-{names}-{_digest(module)}.o"


@functools.cache  # of the source that this process will import, or has imported
def _digest(module: KernelModule) -> str:
    from llvmlite import binding as llvm

    source = b"".join(_source(name) for name in (module.name, "rlx.kernel_memory", *module.parts))
    where = f"{version('numba')} {llvm.get_default_triple()} {llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}"
    return hashlib.sha256(source + where.encode() + version("llvmlite").encode()).hexdigest()[:32]


def _source(name: str) -> bytes:
    return (Path(__file__).parent.parent / f"{name.replace('.', '/')}.py").read_bytes()


def _cache_directory() -> Path:
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "rlx"


def _read(file: Path) -> bytes | None:
    """The machine code in a file, which ends with its SHA-256; None if the file is missing, damaged, or writable by others."""
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
