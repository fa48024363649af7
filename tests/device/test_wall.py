"""The sandbox of a backend and ``device_wall`` on a real GPU, in a real systemd (`make test-device`).

PyTorch computes within the default sandbox and behind the wall, named by UUID; a card whose node the
wall keeps out cannot be used. Skipped with its reason where there is no GPU, or no right to boot.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pynvml
import pytest

from arbiterd.linux.sandbox_host import nvidia_nodes
from tests.device.test_device import TORCH, _why_not
from tests.system.conftest import HERE, ROOT, _cannot_boot

pytestmark = [pytest.mark.device, pytest.mark.timeout(600)]
NAME = f"wall-{os.getpid()}"
COMMON = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"]
# What the engine does: a kernel that PyTorch compiles at run time where it can, else a plain sum.
PROBE = """
import torch
held = torch.ones(1 << 20, device="cuda")
print("figure:", torch.cuda.device_count(), float((held * 2).sum()), flush=True)
"""
# Run in the box: the launcher itself starts the probe and waits for its end.
START = """
import json, sys, time
from pathlib import Path
from arbiterd.act.launch.systemd import SystemdLauncher
from arbiterd.act.launch.output import journal_tail
from arbiterd.model.launch import LaunchSpec, UnitState
given = json.loads(sys.argv[1])
launcher = SystemdLauncher(Path("/run/wall"), lambda: None)
env = {"CUDA_VISIBLE_DEVICES": given["uuid"], "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
nodes = None if given["nodes"] is None else tuple(given["nodes"])
launcher.start(LaunchSpec("wall", tuple(given["argv"]), env, "i", user="root", nodes=nodes))
end = time.monotonic() + 240
while time.monotonic() < end:
    seen = launcher.observe(time.monotonic()).get("wall")
    if seen is not None and seen.state is UnitState.EXITED:
        break
    time.sleep(0.2)
print(json.dumps({"exit": str(seen.exit), "lines": launcher.tail("wall", 40)}))
launcher.stop("wall", 0.0)
launcher.close()
"""


@dataclass(frozen=True)
class Card:
    """A GPU by its UUID and its node."""

    uuid: str
    node: str


def _box(*argv: str) -> subprocess.CompletedProcess[str]:
    line = [str(HERE.parent / "system" / "systemd-box"), "-n", NAME, *argv]
    return subprocess.run(line, capture_output=True, text=True, timeout=400, check=False)


@pytest.fixture(scope="module")
def cards() -> Iterator[list[Card]]:
    """The cards, with a booted box that has the nodes of this host."""
    why = _why_not() or _cannot_boot()
    if why:
        pytest.skip(why)
    pynvml.nvmlInit()
    found = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        node = f"/dev/nvidia{pynvml.nvmlDeviceGetMinorNumber(handle)}"
        found.append(Card(pynvml.nvmlDeviceGetUUID(handle), node))
    pynvml.nvmlShutdown()
    done = _box("up", "--bind-ro", str(ROOT))
    assert done.returncode == 0, done.stdout + done.stderr
    try:
        for node in nvidia_nodes():
            number = os.stat(node).st_rdev
            make = f"mkdir -p $(dirname {node}); mknod -m 666 {node} c {os.major(number)} {os.minor(number)}"
            assert _box("exec", "--", "sh", "-c", make).returncode == 0
        yield found
    finally:
        _box("down")


def _run(card: Card, nodes: list[str] | None) -> dict[str, object]:
    given = json.dumps({"uuid": card.uuid, "nodes": nodes, "argv": [TORCH, "-c", PROBE]})
    done = _box("exec", "-C", str(ROOT), "--", sys.executable, "-c", START, given)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    print(f"\nfigure: {found}")
    return found


def test_cuda_computes_in_the_default_sandbox(cards: list[Card]) -> None:
    """Every NVIDIA node, @system-service, no capability: PyTorch sees the card it is given."""
    found = _run(cards[0], None)
    assert found["exit"] == "exit code 0", found
    assert "figure: 1 2097152.0" in str(found["lines"])


def test_cuda_computes_behind_the_wall(cards: list[Card]) -> None:
    """Its own node and the common ones are enough when the card is named by UUID."""
    found = _run(cards[0], [cards[0].node, *COMMON])
    assert found["exit"] == "exit code 0", found
    assert "figure: 1 2097152.0" in str(found["lines"])


def test_a_card_behind_the_wall_cannot_be_used(cards: list[Card]) -> None:
    """Without its node the card is not there, whatever CUDA_VISIBLE_DEVICES says."""
    others = [one.node for one in cards[1:]]
    found = _run(cards[0], [*others, *COMMON])
    assert found["exit"] != "exit code 0", found
