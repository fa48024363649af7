"""No descriptor left: nobody is gone, no engine is dead for it."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import os, resource, sys
from arbiterd import procfs
from arbiterd.model.health import HttpProbe
from arbiterd.sense.http import NO_DESCRIPTOR, ask, session
me = procfs.ref(os.getpid())
via = session()
procfs.keep_spares()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
assert procfs.stat(os.getpid()) is not None
assert procfs.alive(me), "read by a descriptor held back"
assert procfs.ref(2 ** 22 + 5) is None, "who is gone is gone"
reply = ask(via, "http://127.0.0.1:9", HttpProbe("GET", "/"))
assert reply.error == NO_DESCRIPTOR, reply
procfs._spares.clear()
assert procfs.alive(me), "nothing says otherwise"
try:
    procfs.stat(os.getpid())
except OSError:
    print("fine")
"""


def test_no_descriptor_left_makes_nobody_gone() -> None:
    """In a process of its own: /proc by the spares, then by its folder; a probe says what it is."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "fine"
