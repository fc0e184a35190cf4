"""Writes down what a process opens for writing and connects to; Python imports this file by itself at its start."""

import os
import sys

_LOG = os.environ["AMDET_AUDIT"]
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _note(event: str, what: object) -> None:
    handle = os.open(_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(handle, f"{event}\t{what}\n".encode(errors="replace"))
    os.close(handle)


def _hook(event: str, args: tuple) -> None:
    if event == "open" and isinstance(args[0], str | bytes | os.PathLike) and os.fspath(args[0]) != _LOG:
        mode, flags = args[1], args[2]
        if (isinstance(mode, str) and set(mode) & set("wax+")) or (mode is None and flags & _WRITING):
            _note("write", os.fsdecode(args[0]))
    elif event in ("os.mkdir", "os.rename", "os.remove"):
        _note("write", os.fsdecode(args[1 if event == "os.rename" else 0]))
    elif event == "socket.connect":
        _note("connect", args[1])


sys.addaudithook(_hook)
