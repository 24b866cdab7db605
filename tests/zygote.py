"""A process that was forked before autograd began, and forks others from itself.

Autograd counts the devices when it first differentiates, and never again: a stand-in accelerator that is registered later, in a fork of
such a process, has no queue. Which tests ran before must not matter, so that children which differentiate on it come from here.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import socket
import struct
import traceback
from collections.abc import Callable
from typing import Any

_server: socket.socket | None = None


def start() -> None:
    """Fork the process that children come from; to be called before anything is differentiated."""
    global _server
    if _server is not None:
        return
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        try:
            _serve(theirs)
        finally:
            os._exit(0)
    theirs.close()
    _server = ours
    atexit.register(ours.close)


def in_child(function: Callable[[], Any], *, preload: tuple[str, ...] = ()) -> Any:
    """What a function returns in a new process, as JSON carries it; fails with what it raises.

    Args:
        function: closures are taken along by value.
        preload: modules that are imported once, for all children.
    """
    if _server is None:  # not under pytest, where conftest.py starts it
        answer: bytes | None = _fork(lambda: _answer(function))
    else:
        import cloudpickle

        _send(_server, cloudpickle.dumps((preload, cloudpickle.dumps(function))))
        answer = _receive(_server)
    well, found = json.loads(answer or b'[false, "the child died"]')
    assert well, found
    return found


def _serve(requests: socket.socket) -> None:
    import cloudpickle

    while (request := _receive(requests)) is not None:
        preload, function = cloudpickle.loads(request)
        for name in preload:
            importlib.import_module(name)
        _send(requests, _fork(lambda function=function: _answer(lambda: cloudpickle.loads(function)())))


def _fork(answer: Callable[[], bytes]) -> bytes:
    """What the function gives in a forked process; nothing if that dies."""
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reads)
        with os.fdopen(writes, "wb") as pipe:
            pipe.write(answer())
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        found = pipe.read()
    os.waitpid(pid, 0)
    return found


def _answer(function: Callable[[], Any]) -> bytes:
    try:
        return json.dumps([True, function()]).encode()
    except BaseException:
        return json.dumps([False, traceback.format_exc()]).encode()


def _send(to: socket.socket, data: bytes) -> None:
    to.sendall(struct.pack("!Q", len(data)) + data)


def _receive(source: socket.socket) -> bytes | None:
    header = _exactly(source, 8)
    return None if header is None else _exactly(source, struct.unpack("!Q", header)[0])


def _exactly(source: socket.socket, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        part = source.recv(size - len(data))
        if not part:
            return None
        data += part
    return data
