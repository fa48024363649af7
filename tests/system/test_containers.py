"""Backends in containers, by the real docker and the real podman inside the box.

`scripts/setup` installs both (Debian's packages) as root; without them these tests are skipped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest

from tests.support import wait_until
from tests.support.rootfs import make_root
from tests.system.conftest import HERE, PYTHON, Box, Json

PROGRAMS = {"podman": ("podman", "runc", "catatonit"), "docker": ("dockerd", "runc", "docker-init")}
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(900),
]


def _there(client: str) -> pytest.MarkDecorator:
    """Skipped with its reason where this machine does not have the client."""
    missing = [name for name in PROGRAMS[client] if not shutil.which(name, path=PATH)]
    why = f"{client} cannot be tried here: {', '.join(missing)} missing; apt-get install podman docker.io"
    return pytest.mark.skipif(bool(missing), reason=why)


CLIENTS = pytest.mark.parametrize(
    "client", [pytest.param(one, marks=_there(one)) for one in PROGRAMS]
)


@pytest.fixture(scope="module")
def ready(installed: Box) -> Iterator[Box]:
    """The box with docker running and an image, made from this machine's files, in both stores."""
    make_root(installed.sim / "root.tar")
    installed.sh(f"{HERE}/container-host /sim/root.tar")
    yield installed
    installed.run("systemctl", "stop", "docker.service", "docker.socket", "containerd.service")


@pytest.mark.parametrize(
    ("launcher", "client"),
    [
        pytest.param("direct", "podman", marks=_there("podman")),
        pytest.param("systemd", "docker", marks=_there("docker")),
        pytest.param("systemd", "podman", marks=[_there("podman"), pytest.mark.every]),
        pytest.param("direct", "docker", marks=[_there("docker"), pytest.mark.every]),
    ],
)
def test_both_launchers_keep_the_contract_with_both_clients(
    ready: Box, launcher: str, client: str
) -> None:
    """tests/containers/test_contract.py, every test of it. Each launcher and each client once in `make
    test`, the other two pairs in `make test-all`.
    """
    ready.fresh()
    pair = f"{launcher}-{client}"
    done = ready.pytest(
        f"GPU_ARBITER_CONTAINERS={pair}",
        "tests/containers/test_contract.py",
        name=f"contract-{pair}",
    )
    assert done >= 20


CONFIG = """\
mode = "A"

[arbiter]
poll = "100ms"

[backends.engine]
kind = "generic"
image = "localhost/gpu-arbiter-probe:1"
container = "{client}"
command = ["/usr/bin/python3", "-u", "-m", "http.server", "--bind", "0.0.0.0", "{{port}}"]
health = "/"
port = 9000
restart_delay = "200ms"

[modes.A]
engine = {{ gpu = 0, memory = "20%" }}
"""
CDI = """\
{{"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": [{{"name": "{uuid}",
  "containerEdits": {{"env": ["GIVEN={uuid}"]}}}}]}}
"""


def _engine(box: Box) -> Json:
    found = box.backends().get("engine", {})
    return found if found.get("phase") == "ready" else {}


def _ready(box: Box, restarts: int = 0) -> Json:
    """The backend, once it accepts."""

    def there() -> Json:
        found = _engine(box)
        return found if found.get("accepting") and found["restarts"] == restarts else {}

    try:
        return wait_until(there, 40, "the engine to accept")
    except AssertionError as error:
        msg = f"{error}\n{box.status()}\n{box.journal_text()[-5000:]}"
        raise AssertionError(msg) from None


def _python(box: Box, pids: list[int]) -> int:
    """The engine itself among the backend's processes."""
    out = box.sh(
        "grep -lz http.server $(printf '/proc/%s/cmdline ' " + " ".join(map(str, pids)) + ")"
    )
    engines = [
        pid
        for pid in (int(line.split("/")[2]) for line in out.splitlines())
        if box.sh(f"readlink /proc/{pid}/exe").endswith("python3.real")
    ]
    assert len(engines) == 1, out
    return engines[0]


@CLIENTS
def test_the_daemon_keeps_a_container_as_it_keeps_a_plain_engine(ready: Box, client: str) -> None:
    """Started on its GPU, in the ledger by name, adopted after a SIGKILL of the daemon, brought back
    after a SIGKILL of its own, gone after stop; all from within the daemon's sandbox.
    """
    box = ready
    box.fresh()
    box.config(CONFIG.format(client=client))
    sim = (
        "from pathlib import Path; from arbiterd.sim.gpu import SimGpu;"
        ' g = SimGpu.attach(Path("/sim/gpu"), Path("/sim/lib"));'
    )
    uuid = box.sh(f"cd / && {PYTHON} -c '{sim} print(g.uuids()[0])'")
    box.put("/etc/cdi/nvidia.json", CDI.format(uuid=uuid))
    done = box.run("systemctl", "start", "gpu-arbiter")
    assert done.returncode == 0, done.stderr + box.journal_text()
    first = _ready(box)
    assert box.sh("curl -sS -o /dev/null -w '%{http_code}' http://127.0.0.1:9000/") == "200"

    engine = _python(box, first["pids"])
    environ = box.sh(f"tr '\\0' '\\n' </proc/{engine}/environ")
    named = "GIVEN" if client == "podman" else "NVIDIA_VISIBLE_DEVICES"
    assert f"{named}={uuid}" in environ.splitlines()
    assert "CUDA_VISIBLE_DEVICES=0" in environ.splitlines()

    box.sh(f"cd / && {PYTHON} -c '{sim} g.alloc(0, 2**30, pid={engine})'")

    def attributed() -> bool:
        rows = {row["holder"]: row for row in box.status()["gpus"][0]["ledger"]}
        return bool(rows["engine"]["used"] == 2**30 and rows["foreign"]["used"] == 0)

    wait_until(attributed, 10, "the container's memory in the backend's row")

    box.sh("systemctl kill -s KILL gpu-arbiter.service")
    box.event("adopted")
    again = _ready(box)
    assert again["pids"] == first["pids"]
    wait_until(attributed, 10, "the same row after adoption")

    box.sh(f"kill -9 {engine}")
    second = _ready(box, restarts=1)
    assert _python(box, second["pids"]) != engine
    assert not set(second["pids"]) & set(first["pids"])
    names = box.sh(f"{client} ps --all --format='{{{{.Names}}}}'").split()
    assert names == ["gpu-arbiter-engine"]

    box.sh("systemctl stop gpu-arbiter.service")
    assert box.sh(f"{client} ps --all --quiet") == ""
    assert box.run("sh", "-c", f"kill -0 {second['pids'][0]}").returncode != 0


@CLIENTS
def test_check_and_plan_speak_of_containers(ready: Box, client: str) -> None:
    """The whole run line is shown; an image that is not there is named with the line that mends it."""
    box = ready
    box.fresh()
    config = CONFIG.replace('gpu = 0, memory = "20%"', 'gpu = "cpu"')
    box.config(config.format(client=client))
    plan = json.loads(box.sh("/opt/gpu-arbiter/bin/arbiterctl --json plan"))
    argv = plan["backends"][0]["argv"]
    where = {"podman": "--cgroups=split", "docker": "--cgroup-parent=gpu-arbiter.slice"}
    assert argv[:3] == [client, "run", where[client]]
    assert "localhost/gpu-arbiter-probe:1" in argv
    good = box.run("/opt/gpu-arbiter/bin/arbiterctl", "check")
    assert "engine" not in good.stderr, good.stderr
    box.config(config.format(client=client).replace("probe:1", "other:1"))
    told = box.run("/opt/gpu-arbiter/bin/arbiterctl", "check")
    assert told.returncode == 0
    assert (
        f"backends.engine.image: {client} does not have image localhost/gpu-arbiter-other:1; "
        f"{client} pull localhost/gpu-arbiter-other:1" in told.stderr
    )
