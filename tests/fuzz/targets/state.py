"""State that a run has left: whatever stands there, the daemon starts, and its first ticks go through."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from itertools import islice
from typing import Any

from arbiterd.act.launch.direct import DirectLauncher
from arbiterd.act.takeover import read_record
from arbiterd.core.backend.carry import pack
from arbiterd.daemon import startup
from arbiterd.errors import ArbiterError
from arbiterd.linux import container_ids
from arbiterd.linux.procfs import boot_id
from arbiterd.model.devices import Device
from arbiterd.model.events import ActionRecord, EventName, Incident, Severity
from arbiterd.model.pressure import LearnedCap
from arbiterd.report.api import status
from arbiterd.report.metrics.counters import Counts
from arbiterd.report.metrics.exposition import render
from arbiterd.sense.numbering import Numbering, Seen
from arbiterd.settings.history import ConfigFiles
from arbiterd.store.gpu_inventory import Inventory
from arbiterd.store.handoff import CarryStore
from arbiterd.store.handoff_formats import FORMAT
from arbiterd.store.incidents import IncidentStore
from arbiterd.store.learned_caps import LearnedStore
from arbiterd.trace.codec import encode
from arbiterd.trace.lines import Reader, Tick, Writer
from arbiterd.trace.replay import replay
from tests.core.world import World, settings
from tests.fuzz import shapes
from tests.fuzz.files import file, folder
from tests.fuzz.target import Target
from tests.web.site import published

DEVICE = Device("GPU-1", 0, "RTX", "00000000:10:00.0", 24 << 30, 512 << 20)
CAP = LearnedCap(
    "A", "tensorflow", "GPU-0", "m", "2.19", 1 << 30, 1 << 28, 2, 1.7e9, "OOM", on_cpu=False
)


INCIDENT = Incident(
    "run-1", EventName.GPU_LOST, Severity.ERROR, 1.7e9, "GPU 0 is lost", "vllm", "GPU-1", None, (1, 2),
    (("exit", "code 1"),), (ActionRecord("a1", "restart", "vllm", "x", 1.7e9, 5.0, 1, 1, "done"),),
)  # fmt: skip


def _first_ticks(**state: Any) -> None:
    """A host with this past: three ticks, and everything that is published."""
    world = World(settings())
    world.state = world.state.__class__(run="abc", **state)
    for _ in range(3):
        world.tick()
    seen = published(world)
    json.dumps(status.status(seen, "h"), allow_nan=False)
    render(seen, Counts())


def read_inventory(data: bytes) -> None:
    """gpus.json: numbers that numbering can work with, and a file that is put aside or read."""
    where = folder("inventory")
    file("inventory", "gpus.json", data)
    one = Inventory(where)
    known = one.known()
    made = Numbering(known).number([Seen("GPU-1", "00000000:10:00.0", 0, "RTX", counted=True)])
    assert isinstance(made["GPU-1"], int)
    for device in known:
        assert device.total_bytes >= 0
        f"{device.total_bytes / 2**30:.1f}"
    one.learn([DEVICE])
    one.store.close()
    assert DEVICE.uuid in {device.uuid for device in Inventory(where).known()}


def read_incidents(data: bytes) -> None:
    """incidents.json."""
    file("incidents", "incidents.json", data)
    _first_ticks(incidents=IncidentStore(folder("incidents")).load())


def read_learned(data: bytes) -> None:
    """learned.json."""
    file("learned", "learned.json", data)
    _first_ticks(learned=LearnedStore(folder("learned")).load())


def read_carry(data: bytes) -> None:
    """carry.json, of this boot: the first word of it is replaced by the boot's id."""
    file("carry", "carry.json", data.replace(b"BOOT", boot_id().encode()))
    found = CarryStore(folder("carry")).load()
    if found is not None:
        _first_ticks(carried=found)


def read_records(data: bytes) -> None:
    """backends/NAME.json of either launcher, and all who look into that folder."""
    home = folder("records")
    (home / "backends").mkdir(exist_ok=True)
    (home / "backends" / "vllm.json").write_bytes(data)
    startup.engines_alive(home)
    container_ids.recorded(home / "backends")
    launcher = DirectLauncher(home, lambda: None)
    try:
        launcher.adopt()
        launcher.observe(1.0)
    finally:
        launcher.close()


def read_layouts(data: bytes) -> None:
    """rolled-back.json and the takeover's record."""
    home = folder("layouts")
    file("layouts", "rolled-back.json", data)
    assert isinstance(ConfigFiles(home).read().reason, str)
    path = file("layouts", "takeover.json", data)
    with suppress(ArbiterError):
        read_record(path)


@cache
def _trace() -> str:
    world = World(settings())
    writer = Writer()
    lines: list[str] = []
    for _ in range(6):
        before = world.state
        seen = world.observation()
        world.tick()
        assert world.decision is not None
        lines += writer.lines(Tick(seen, before, world.decision, world.settings))
    return "".join(lines)


def read_trace(data: bytes) -> None:
    """A recorded trace, edited: read, and run through core again."""
    lines = data.decode("utf-8", "replace").splitlines(keepends=True)
    for one in islice(replay(Reader(lines)), 8):
        assert one.same in (True, False)


@cache
def _trace_rows() -> tuple[Any, ...]:
    return tuple(json.loads(line) for line in _trace().splitlines())


def _carries() -> list[dict[str, Any]]:
    """Of today's format, and of the first."""
    kept = pack(World(settings()).up().state)
    old = json.loads(json.dumps(asdict(kept), default=str))
    today = {"boot_id": "BOOT", "format": FORMAT, "carry": json.loads(json.dumps(encode(kept)))}
    return [today, {"boot_id": "BOOT", "carry": old}]


def _records() -> dict[str, Any]:
    return {"backend": "vllm", "pid": 1, "start_time": 5, "boot_id": "x", "invocation": "i", "intent": "{}",
            "started_wall": 1.7e9, "container": ""}  # fmt: skip


ROLLED = {"sha256": "0" * 64, "reason": "vllm did not come up"}
TAKEOVER = {
    "unit": "ollama.service",
    "config": "/etc/gpu-arbiter.toml",
    "was_active": True,
    "was_enabled": True,
}
_KEPT = {
    "inventory": [asdict(DEVICE)],
    "incidents": json.loads(json.dumps([asdict(INCIDENT)])),
    "learned": [asdict(CAP)],
}
_trace_lines = shapes.damaged((_trace_rows(),)).map(
    lambda rows: b"\n".join(map(shapes.write, rows if isinstance(rows, list | tuple) else [rows])) + b"\n"
)  # fmt: skip
TARGETS = (
    Target("gpus.json", read_inventory, shapes.documents(_KEPT["inventory"]), seeds=(shapes.write(_KEPT["inventory"]),)),
    Target("incidents.json", read_incidents, shapes.documents(_KEPT["incidents"]), seeds=(shapes.write(_KEPT["incidents"]),), coverage=False),
    Target("learned.json", read_learned, shapes.documents(_KEPT["learned"]), seeds=(shapes.write(_KEPT["learned"]),), coverage=False),
    Target("carry.json", read_carry, shapes.documents(*_carries()), coverage=False),
    Target("backends/NAME.json", read_records, shapes.documents(_records()), seeds=(shapes.write(_records()),), coverage=False),
    Target("rolled-back.json, takeover.json", read_layouts, shapes.documents(ROLLED, TAKEOVER), seeds=(shapes.write(ROLLED), shapes.write(TAKEOVER))),
    Target("trace", read_trace, _trace_lines, (ArbiterError,), coverage=False, bound_s=5.0),
    Target("trace text", read_trace, shapes.texts(_trace()), (ArbiterError,), (_trace().encode(),), bound_s=5.0),
)  # fmt: skip
