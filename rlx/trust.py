"""Whether a run or sweep was started by this user: what rlx starts is signed with a key that is kept outside of every run.

A directory that was copied from another user, or changed, has no valid signature. Its settings are used as data; code that it names
(the modules of an algorithm, an environment or wrappers, a directory of configuration files) is run only with --trust. A signature also
covers the files that the modules came from: another user's checkout with a module of the same name is another module.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import json
import os
import secrets
import sys
from collections.abc import Iterable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlx.errors import ConfigError
from rlx.files import UnreadableError, read_file

if TYPE_CHECKING:
    from rlx.config.schema import RunConfig

_KEY_BYTES = 32


def key_path() -> Path | None:
    """Where this user's key is kept; None for a user without a home."""
    state = os.environ.get("XDG_STATE_HOME")
    if state and os.path.isabs(state):
        return Path(state) / "rlx" / "key"
    try:
        return Path.home() / ".local" / "state" / "rlx" / "key"
    except RuntimeError:
        return None


def sign(content: Any) -> str | None:
    """A signature of plain data; None where no key can be kept."""
    key = _read_key() or _make_key()
    return None if key is None else _mac(key, content)


def is_signed(content: Any, signature: object) -> bool:
    """Whether this user signed the content."""
    key = _read_key()
    return key is not None and isinstance(signature, str) and signature.isascii() and hmac.compare_digest(_mac(key, content), signature)


def why_unsigned() -> str:
    """An addition to a message where no key can be kept; "" where one can."""
    return "" if _read_key() or _make_key() else f" ({key_path() or 'a key'} cannot be kept, so that rlx cannot tell which runs are yours)"


def _mac(key: bytes, content: Any) -> str:
    return hmac.new(key, json.dumps(content, sort_keys=True).encode(), hashlib.sha256).hexdigest()


def _read_key() -> bytes | None:
    path = key_path()
    try:
        key = read_file(path, limit=_KEY_BYTES) if path is not None else b""
    except UnreadableError:
        return None
    return key if len(key) == _KEY_BYTES else None


def _make_key() -> bytes | None:
    """Make the key, unless another process has made it meanwhile."""
    path = key_path()
    if path is None:
        return None
    temporary = path.with_name(f"key.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # which replaces nothing
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            temporary.rename(path)
        temporary.unlink(missing_ok=True)
    except OSError:
        return None
    return _read_key()


def module_of(reference: str) -> str | None:
    """The module that `module:Name` names, to be imported before it is used; None for the name of something that rlx has itself."""
    module, colon, _ = reference.rpartition(":")
    return module if colon and not reference.startswith("spiel:") else None


def code_named(config: RunConfig) -> list[tuple[str, str]]:
    """The settings of a configuration that name code in a module, with their values."""
    named = [("algo", config.algo.name), ("env", config.env.id), *(("env.wrappers", target) for target in config.env.wrapper_targets())]
    return [(key, reference) for key, reference in named if module_of(reference)]


def refuse_module(key: str, reference: str, path: Path, *, kind: str) -> None:
    """Raise a ConfigError if a setting of an untrusted run or sweep (the `kind`) would import a module."""
    if module := module_of(reference):
        raise ConfigError(
            f"{path} uses {key}={reference}, which imports the module {module!r} and so runs its code; "
            f"if you trust where this {kind} comes from, say --trust{why_unsigned()}"
        )


def origins(*configs: RunConfig) -> dict[str, str | None]:
    """The file of the package of every module that configurations name, found without importing it."""
    return origins_of(module for config in configs for _, reference in code_named(config) if (module := module_of(reference)))


def origins_of(modules: Iterable[str]) -> dict[str, str | None]:
    """The file of the package of each module."""
    return {module: _origin(module) for module in modules}


def _origin(module: str) -> str | None:
    package = module.partition(".")[0]
    loaded = getattr(sys.modules.get(package), "__file__", None)
    if loaded:
        return os.path.realpath(loaded)
    try:
        found = PathFinder.find_spec(package, [*sys.path, os.getcwd()]) or importlib.util.find_spec(package)
    except (ImportError, ValueError, AttributeError, OSError):
        return None
    if found is None:
        return None
    return os.path.realpath(found.origin or next(iter(found.submodule_search_locations or []), "")) or None
