"""Probes and questions of the daemon from inside its hardened unit."""

from __future__ import annotations

import pytest

from tests.support import wait_until
from tests.system.conftest import PYTHON, Box

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]
GATE = "gpu-arbiter-gate.service"
PROGRAM = """\
#!/bin/sh
if [ "$1" = --version ]; then echo "Warning: client version is 0.33.7-$(id -un)"; exit; fi
exec {python} -m arbiterd.sim.engines.ollama "$@"
"""


def test_a_programs_version_is_asked_as_the_engines_user(box: Box) -> None:
    """The unit has no CAP_SETUID, and never runs as root what another user can write."""
    box.put("/sim/bin/ollama", PROGRAM.format(python=PYTHON))
    box.sh("chmod -R a+rwX /sim/bin && chmod a+x /sim/bin/ollama")
    text = box.config()
    old = f'command = ["{PYTHON}", "-m", "arbiterd.sim.engines.ollama", "serve"]'
    assert old in text
    new = text.replace(old, 'command = ["/sim/bin/ollama", "serve"]')
    box.config(new.replace('version = "0.33.0"\n', ""))
    box.start()
    wait_until(
        lambda: box.backends()["ollama"]["version"] == "0.33.7-gpu-engines",
        20,
        str(box.backends()["ollama"]["version"]),
    )


def test_the_second_probe_reaches_engines_by_haproxy_and_gate(box: Box) -> None:
    """Users, groups and modes let the daemon in; a stopped gate is found, and let go on it is over."""
    box.start()
    assert (
        box.sh("stat -c '%a %U %G' /run/gpu-arbiter-gateway/probe.sock")
        == "660 haproxy gpu-arbiter-gw"
    )
    pid = box.show(GATE, "MainPID")
    box.sh(f"kill -STOP {pid}")
    try:
        assert "not through its door" in box.event("door_broken", backend="ollama")["MESSAGE"]
        assert not box.backends()["ollama"]["accepting"]
        assert box.backends()["vllm"]["accepting"]
    finally:
        box.sh(f"kill -CONT {pid}")
    box.wait_ready()
