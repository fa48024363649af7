"""Questions of the daemon from inside its hardened unit."""

from __future__ import annotations

import pytest

from tests.support import wait_until
from tests.system.conftest import PYTHON, Box

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
PROGRAM = """\
#!/bin/sh
if [ "$1" = --version ]; then
    echo "$(id -u)/$(id -G)" >>/sim/probe/ids
    [ -e /sim/probe/asked ] || cut -d' ' -f1 /proc/uptime >/sim/probe/asked
    grep -E '^(NoNewPrivs|Seccomp|CapBnd):' /proc/self/status >/sim/probe/status
    cat /proc/self/cgroup >/sim/probe/cgroup
    if [ -e /sim/probe/hang ]; then trap '' TERM; sleep 1000 & echo $! >/sim/probe/child; wait; wait; fi
    echo "Warning: client version is 0.33.7-$(id -un)"
    exit
fi
exec {python} -m arbiterd.sim.engines.ollama "$@"
"""


def _asks(box: Box) -> None:
    """Ollama's program belongs to the engines' user, and its version is not in the file."""
    box.sh("rm -rf /sim/probe /sim/bin; install -d -m 1777 /sim/probe")
    box.put("/sim/bin/ollama", PROGRAM.format(python=PYTHON))
    box.sh("chmod a+x /sim/bin/ollama && chown -R gpu-engines:gpu-engines /sim/bin")
    text = box.config()
    old = f'command = ["{PYTHON}", "-m", "arbiterd.sim.engines.ollama", "serve"]'
    assert old in text
    new = text.replace(old, 'command = ["/sim/bin/ollama", "serve"]')
    box.config(new.replace('version = "0.33.0"\n', ""))


def test_a_programs_version_is_asked_as_the_engines_user_in_a_sandbox(box: Box) -> None:
    """Whoever asks (the daemon, check, plan, doctor, each by root): never uid 0, no new privileges, no
    capability, system calls filtered, in a unit that is no part of the daemon's. check and doctor name
    the program, which another user can change.
    """
    _asks(box)
    box.start()
    wait_until(
        lambda: box.backends()["ollama"]["version"] == "0.33.7-gpu-engines",
        20,
        str(box.backends()["ollama"]["version"]),
    )
    ctl = "/opt/gpu-arbiter/bin/arbiterctl"
    said = {name: box.run(ctl, name) for name in ("check", "doctor", "plan")}
    init = box.run(ctl, "init", "--output", "-")
    assert init.returncode in (0, 1), init.stderr
    asked = box.sh("cat /sim/probe/ids").split("\n")
    engines = box.sh("id -u gpu-engines")
    assert {one.partition("/")[0] for one in asked} == {engines}
    assert not any("0" in one.partition("/")[2].split() for one in asked), "none of root's groups"
    status = dict(line.split() for line in box.sh("cat /sim/probe/status").splitlines())
    assert status == {"NoNewPrivs:": "1", "Seccomp:": "2", "CapBnd:": "0" * 16}
    assert "gpu-arbiter.service" not in box.sh("cat /sim/probe/cgroup")
    assert "/sim/bin/ollama can be changed by user gpu-engines" in said["check"].stderr
    assert "/sim/bin/ollama can be changed by user gpu-engines" in " ".join(
        said["doctor"].stdout.split()
    )


def test_a_version_that_is_never_told_holds_up_no_start(box: Box) -> None:
    """It ignores TERM and leaves a child: engines start all the same, and systemd ends both."""
    _asks(box)
    box.sh("touch /sim/probe/hang")
    box.start()
    asked = float(box.sh("cat /sim/probe/asked"))
    began = int(box.show("gpu-arbiter-backend-vllm", "ExecMainStartTimestampMonotonic")) / 1e6
    assert began < asked + 5.0, "the first engine, before the question was over"
    assert box.backends()["ollama"]["version"] == ""
    child = box.sh("cat /sim/probe/child")
    wait_until(lambda: not box.alive(int(child)), 20, f"the end of {child}")
    box.sh("rm /sim/probe/hang")
