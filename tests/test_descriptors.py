"""No descriptor left: nobody is gone, no engine is dead for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os, resource, sys
from arbiterd.linux import procfs
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
procfs._kept.clear()
procfs._spares.clear()
assert procfs.alive(me), "nothing says otherwise"
try:
    procfs.stat(os.getpid())
except OSError:
    print("fine")
"""


HELD = """
import errno, os, resource, signal, subprocess, sys
from pathlib import Path
from types import SimpleNamespace
from arbiterd.linux import procfs
from arbiterd.linux import cgroups
from arbiterd.linux.cgroups import pids_of
from arbiterd.act.gateway.gate_keeper import GateKeeper
from arbiterd.act.gateway.services import DirectServices
from arbiterd.act.launch.base import signal_exactly
from arbiterd.gateway import runtime
from arbiterd.gateway.paths import Paths
from arbiterd.daemon.loop import Loop
from arbiterd.model.devices import ProcessRef

def sleeper():
    none = subprocess.DEVNULL
    child = subprocess.Popen(["sleep", "60"], stdin=none, stdout=none, stderr=none)
    return child, procfs.ref(child.pid)

children = [sleeper() for _ in range(3)]
folder = Path(sys.argv[1], "here")
folder.mkdir()
(folder / "cgroup.procs").write_text("5\\n")
cgroups._CGROUP_ROOTS = (sys.argv[1],)
assert cgroups.pids_of("/here") == (5,)
services = DirectServices(Paths(*[Path(sys.argv[1])] * 3))
_ = procfs.pids(), signal.Signals.SIGKILL, runtime.socket.AF_UNIX
procfs.keep_spares()
held = []
def hold():
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        assert error.errno == errno.EMFILE
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
hold()

# signals go out, by a descriptor held back
signal_exactly(children[0][1], signal.SIGKILL)
assert children[0][0].wait(20) == -9
procfs.stat(os.getpid())
signal_exactly(ProcessRef(children[1][0].pid, 1), signal.SIGKILL)
assert procfs.alive(children[1][1]), "a pid that has changed hands is left alone"
assert os.getpid() in set(procfs.pids())

# only one spare: the start time can be read, the pid has to do
real = procfs.pidfd
def no_pidfd(pid):
    raise OSError(errno.EMFILE, "short")
procfs.pidfd = no_pidfd
services._started["gate"] = children[1][1]
services.stop("gate")
assert children[1][0].wait(20) == -15
signal_exactly(ProcessRef(children[2][0].pid, 1), signal.SIGKILL)
assert procfs.alive(children[2][1])
procfs.pidfd = real

# none at all: who cannot be looked at is not gone
procfs._kept.clear()
procfs._spares.clear()
assert procfs.alive(children[2][1])
for look in (procfs.pids, lambda: procfs.stat(os.getpid()), lambda: procfs.pidfd(os.getpid()),
             lambda: procfs.environ(os.getpid()), lambda: pids_of("/here")):
    try:
        list(look() or ())
    except OSError as error:
        assert error.errno == errno.EMFILE
        continue
    raise AssertionError("it told something")
signal_exactly(children[2][1], signal.SIGKILL)
assert procfs.alive(children[2][1]), "never a signal to a process that cannot be told from another"

# a question to HAProxy or to the gate that could not be asked is no silence and no end
try:
    runtime.ask(Path("/nowhere"), "show info")
except runtime.GatewayGone as gone:
    assert gone.ours and not gone.silent, gone
keeper = GateKeeper(Path("/nowhere"), None)
gone = runtime.GatewayGone("x"); gone.ours = True
assert keeper._judge(gone) == "", "nothing is started, nothing replaced"

# the tick keeps what it saw last
def short(now):
    raise OSError(errno.EMFILE, "short")
loop = SimpleNamespace(_parts=SimpleNamespace(launcher=SimpleNamespace(observe=short)), _units={"a": 1})
assert Loop._units_now(loop, 1.0) == {"a": 1}
for fd in held:
    os.close(fd)
children[2][0].kill()
print("fine")
"""


def _fine(script: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "fine"


def test_no_descriptor_left_makes_nobody_gone() -> None:
    """In a process of its own: /proc by the spares, then by its folder; a probe says what it is."""
    _fine(SCRIPT)


def test_signals_go_out_and_nothing_is_called_gone(tmp_path: Path) -> None:
    """Signals reach the right process by a spare descriptor or by its pid and start time; what could not
    be looked at, neither a process, a cgroup, HAProxy nor the gate, is not gone; a tick keeps what it saw.
    """
    _fine(HELD, str(tmp_path))
