"""Run as an engine in the box: tries what the sandbox allows and refuses, answers with what came of it."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import resource
import socket
import sys
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)


def attempt(do: Callable[[], object]) -> str:
    """'ok', or the name of the error."""
    try:
        do()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "ok"


def call(name: str, *args: object) -> None:
    """A function of the C library that fails by errno."""
    if getattr(LIBC, name)(*args) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def syscall(number: int, *args: object) -> None:
    """A system call without a wrapper."""
    call("syscall", number, *args)


def write(path: str) -> None:
    """A file made and removed."""
    Path(path).write_text("x")
    os.unlink(path)


def read(path: str) -> None:
    """A device or a file opened."""
    os.close(os.open(path, os.O_RDONLY))


def executable_memory() -> None:
    """Written, then run: what a JIT compiler does."""
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page[0:1] = b"\xc3"
    ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()


def in_a_child(do: Callable[[], object]) -> None:
    """What would change the caller, tried by a process of its own."""
    child = os.fork()
    if not child:
        try:
            do()
        except OSError as error:
            os._exit(error.errno or 255)
        os._exit(0)
    number = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if number:
        raise OSError(number, os.strerror(number))


def found() -> dict[str, object]:
    """Every attempt with its end."""
    places, nodes = json.loads(os.environ["PROBE_WRITES"]), json.loads(os.environ["PROBE_OPENS"])
    return {
        "write": {one: attempt(partial(write, f"{one}/x")) for one in places},
        "open": {one: attempt(partial(read, one)) for one in nodes},
        "unshare": attempt(partial(in_a_child, partial(call, "unshare", 0x10000000))),
        "mount": attempt(lambda: call("mount", b"none", b"/mnt", b"tmpfs", 0, None)),
        "ptrace": attempt(lambda: call("ptrace", 16, 1, 0, 0)),
        "pidfd_getfd": attempt(lambda: syscall(438, -1, 0, 0)),
        "packet": attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()),
        "netlink": attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()),
        "execute": attempt(executable_memory),
        "tmp": sorted(os.listdir("/tmp")),
        "proc": sorted(one for one in os.listdir("/proc") if one.isdigit()),
        "devices": Path("/proc/devices").exists(),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "status": Path("/proc/self/status").read_text(),
    }


class Handler(BaseHTTPRequestHandler):
    """Every path answers."""

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        """What was found at the start."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)


if __name__ == "__main__":
    ANSWER = json.dumps(found()).encode()
    HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
