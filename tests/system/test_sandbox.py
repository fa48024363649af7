"""The sandboxes under a real systemd: what an engine can and cannot do."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support import wait_until
from tests.system.conftest import HERE, PYTHON, Box, Json
from tests.system.looks import exposure

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
SHARED = "/" + "home/shared"
PROBE = """\
mode = "A"

[arbiter]
poll = "100ms"

[backends.probe]
kind = "generic"
command = ["{python}", "{program}", "{{port}}", "--download-dir=/etc/cache-of-it"]
health = "/"
port = 9000
{more}
env = {{ {env} }}

[modes.A]
probe = {{ gpu = "cpu" }}
"""
WRITES = (
    "/var/lib/gpu-engines", f"{SHARED}/hf", "/usr/share/ollama", "/etc/cache-of-it", "/srv/store",
    "/tmp", "/dev/shm", SHARED, "/usr/share", "/etc",
)  # fmt: skip
OPENS = (
    "/dev/nvidia0",
    "/dev/nvidia7",
    "/dev/nvidia-caps/nvidia-cap1",
    "/dev/sim-disk",
    "/dev/null",
)


@pytest.fixture
def host(box: Box) -> Iterator[Box]:
    """Folders and nodes of a host with engines; no driver behind the nodes."""
    box.sh(
        "install -d -o gpu-engines /usr/share/ollama /etc/cache-of-it /srv/store /tmp/nvidia-mps-real"
        f" && install -d -m 755 {SHARED} && install -d -o gpu-engines {SHARED}/hf"
        " && install -d -m 755 /tmp/nvidia-mps && touch /tmp/nvidia-mps/control /tmp/of-a-neighbour"
        " && mkdir -p /dev/nvidia-caps && mknod -m 666 /dev/nvidia0 c 195 0"
        " && mknod -m 666 /dev/nvidia7 c 195 7 && mknod -m 666 /dev/nvidia-caps/nvidia-cap1 c 195 99"
        " && mknod -m 666 /dev/sim-disk b 7 77"
    )
    yield box
    box.run("systemctl", "stop", "gpu-arbiter.service", "gpu-arbiter.slice")
    box.sh(
        f"rm -rf /usr/share/ollama /etc/cache-of-it /srv/store {SHARED} /tmp/nvidia-mps*"
        " /tmp/of-a-neighbour /dev/nvidia* /dev/sim-disk /sim/probe.py"
    )


def _probe(box: Box, more: str = "") -> Json:
    """What the probe finds when it is started as a backend."""
    box.put("/sim/probe.py", (HERE / "sandbox_probe.py").read_text())
    pairs = {
        "HF_HOME": f"{SHARED}/hf",
        "OLLAMA_MODELS": "/usr/share/ollama/models",
        "PROBE_WRITES": json.dumps(WRITES),
        "PROBE_OPENS": json.dumps(OPENS),
    }
    env = ", ".join(f"{name} = '{text}'" for name, text in pairs.items())
    text = PROBE.format(python=PYTHON, program="/sim/probe.py", more=more, env=env)
    box.config(text)
    before = set(box.backends().get("probe", {}).get("pids", ())) if more else set()
    done = box.run("systemctl", "restart", "gpu-arbiter")
    assert done.returncode == 0, done.stderr + box.journal_text()

    def there() -> bool:  # not the one before it, which is adopted first
        now = box.backends().get("probe", {})
        return bool(now.get("accepting") and not set(now["pids"]) & before)

    try:
        wait_until(there, 40, "the probe")
    except AssertionError as error:
        own = box.sh("journalctl --no-pager -o cat -u gpu-arbiter-backend-probe | tail -30")
        msg = f"{error}\n{own}\n{box.journal_text()[-3000:]}"
        raise AssertionError(msg) from None
    found: Json = json.loads(box.sh("curl -sS http://127.0.0.1:19000/"))
    return found


def test_an_engine_can_what_it_needs_and_nothing_else(host: Box) -> None:
    """Caches and stores are writable wherever they are; cards open, disks do not; code may be written
    and run; the pipe of MPS is in /tmp, a neighbour's file is not; loosened by key.
    """
    found = _probe(host)
    assert found["write"] == {
        "/var/lib/gpu-engines": "ok",
        f"{SHARED}/hf": "ok",
        "/usr/share/ollama": "ok",
        "/etc/cache-of-it": "ok",
        "/srv/store": "ok",
        "/tmp": "ok",
        "/dev/shm": "ok",
        SHARED: "EROFS",
        "/usr/share": "EROFS",
        "/etc": "EROFS",
    }
    driverless = "ENXIO"  # let through: the node is there, nobody answers behind it
    assert found["open"] == {
        "/dev/nvidia0": driverless,
        "/dev/nvidia7": driverless,
        "/dev/nvidia-caps/nvidia-cap1": driverless,
        "/dev/sim-disk": "EPERM",
        "/dev/null": "ok",
    }
    for name in ("unshare", "mount", "ptrace"):
        assert found[name] == "EPERM", name
    assert found["packet"] == "EAFNOSUPPORT"
    assert found["netlink"] == found["execute"] == "ok"
    assert found["pidfd_getfd"] == "EBADF", "PyTorch passes CUDA memory by it"
    assert found["tmp"] == ["nvidia-mps"]
    assert "1" not in found["proc"]
    assert found["devices"] is True
    assert found["core"] == [0, 0]
    assert "NoNewPrivs:\t1" in found["status"]
    assert "CapBnd:\t0000000000000000" in found["status"]

    loose = _probe(
        host,
        'sandbox = { without = ["RestrictNamespaces", "PrivateTmp", "ProtectProc"],'
        ' devices = ["/dev/sim-disk"], families = ["AF_PACKET"], write = ["/usr/share"],'
        ' capabilities = ["CAP_NET_RAW", "CAP_DAC_OVERRIDE"] }',
    )
    assert loose["packet"] == "ok"
    assert loose["unshare"] == "ok"
    assert loose["open"]["/dev/sim-disk"] != "EPERM"
    assert {"nvidia-mps", "of-a-neighbour"} <= set(loose["tmp"])
    assert "1" in loose["proc"]
    assert loose["write"]["/usr/share"] == "ok"
    assert loose["write"]["/etc"] == "EROFS"
    bare = _probe(host, 'sandbox = { without = ["all"] }')
    assert bare["open"]["/dev/sim-disk"] != "EPERM"
    assert "of-a-neighbour" in bare["tmp"]
    plan = json.loads(host.sh("/opt/gpu-arbiter/bin/arbiterctl --json plan"))
    assert plan["backends"][0]["sandbox"] == "none: the file leaves all of it out"


def test_engines_of_a_version_without_a_sandbox_run_on(box: Box) -> None:
    """Adopted by their units, whatever these say; the sandbox comes with the next start."""
    old = "/run/systemd/system/gpu-arbiter-backend-.service.d/old.conf"
    box.put(
        old,
        "[Service]\nProtectHome=no\nPrivateTmp=no\nSystemCallFilter=\nRestrictNamespaces=no\n"
        "RestrictAddressFamilies=\nDevicePolicy=auto\nDeviceAllow=\nProtectProc=default\n"
        "CapabilityBoundingSet=~\n",
    )
    box.sh("systemctl daemon-reload")
    try:
        box.start()
        before = box.warm_pids()
        assert exposure(box, "gpu-arbiter-backend-vllm") > 4.0
        box.sh(f"rm {old}")
        box.sh("systemctl restart gpu-arbiter")
        box.wait_ready()
        box.kept(before)
        box.sh("systemctl daemon-reload; /opt/gpu-arbiter/bin/arbiterctl restart vllm")

        def sandboxed() -> bool:
            now = box.backends()["vllm"]
            return bool(now["accepting"] and not set(now["pids"]) & set(before["vllm"]))

        wait_until(sandboxed, 40, "vLLM's restart")
        assert exposure(box, "gpu-arbiter-backend-vllm") <= 4.0
    finally:
        box.sh(f"rm -f {old}; systemctl daemon-reload")


MODPROBE = """\
#!/bin/sh
# nvidia-modprobe's switches, with nodes of a driver that is not there; who ran it and how is kept
echo "$(id -u) $*" >> /dev/shm/modprobe.log
uvm=
for word in "$@"; do [ "$word" = -u ] && uvm=yes; done
while [ $# -gt 0 ]; do
    if [ "$1" = -c ]; then
        shift
        name=/dev/nvidia$1
        [ "$1" = 255 ] && name=/dev/nvidiactl
        if [ -n "$uvm" ]; then
            [ -e /dev/nvidia-uvm ] || mknod -m 666 /dev/nvidia-uvm c 195 200
        else
            [ -e "$name" ] || mknod -m 666 "$name" c 195 "$1"
        fi
    fi
    shift
done
"""


@pytest.fixture
def driver(box: Box) -> Iterator[Box]:
    """A host whose driver is loaded and whose nodes are still to be made; nvidia-modprobe is missing."""
    box.sh("mknod -m 666 /dev/nvidiactl c 195 255")
    yield box
    box.run("systemctl", "stop", "gpu-arbiter.service", "gpu-arbiter.slice")
    box.sh("rm -f /dev/nvidia* /usr/bin/nvidia-modprobe /dev/shm/modprobe.log")


def _open_in(box: Box, backend: str, node: str) -> str:
    """What comes of opening a node in this backend's cgroup: the device filter belongs to that."""
    group = box.show(f"gpu-arbiter-backend-{backend}", "ControlGroup")
    line = f"echo $$ > /sys/fs/cgroup{group}/cgroup.procs && exec head -c 1 {node}"
    return box.run("sh", "-c", line).stderr.strip().rsplit(": ", 1)[-1]


def test_a_start_waits_for_its_nodes_and_a_wall_admits_its_own(driver: Box) -> None:
    """The reason in status until nvidia-modprobe, which only root could have written, has made them; a
    node that is made later stays shut; device_wall shuts the neighbour's card.
    """
    box = driver
    done = box.run("systemctl", "start", "gpu-arbiter")
    assert done.returncode == 0, done.stderr + box.journal_text()

    def reason(*words: str) -> bool:
        found = box.backends().get("vllm", {})
        return found.get("phase") == "waiting" and all(one in found["reason"] for one in words)

    missing = "/dev/nvidia-uvm, /dev/nvidia0, /dev/nvidia1 are not there"
    wait_until(lambda: reason(missing, "install nvidia-modprobe"), 30, "the reason")
    box.put("/usr/bin/nvidia-modprobe", MODPROBE)
    box.sh("chmod 777 /usr/bin/nvidia-modprobe")
    wait_until(lambda: reason("not running", "others may write it"), 40, "the refusal")
    assert box.run("cat", "/dev/shm/modprobe.log").returncode != 0
    box.sh("chmod 755 /usr/bin/nvidia-modprobe")
    box.wait_ready()
    assert box.sh("sort -u /dev/shm/modprobe.log").splitlines() == ["0 -c 0 -c 1", "0 -u -c 0"]
    opened = "No such device or address"  # let through; no driver is behind the node
    for node in ("/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl", "/dev/nvidia-uvm"):
        assert _open_in(box, "vllm", node) == opened, node
    box.sh("mknod -m 666 /dev/nvidia9 c 195 9")
    assert _open_in(box, "vllm", "/dev/nvidia9") == "Operation not permitted"

    text = box.config()
    box.config(text.replace("max_model_len = 8192", "max_model_len = 8192\ndevice_wall = true"))
    before = box.pids()
    box.sh("systemctl reload gpu-arbiter")

    def moved() -> bool:
        now = box.backends()["vllm"]
        return bool(now["accepting"] and not set(now["pids"]) & set(before["vllm"]))

    wait_until(moved, 40, "vLLM behind its wall")
    assert _open_in(box, "vllm", "/dev/nvidia0") == opened
    assert _open_in(box, "vllm", "/dev/nvidia1") == "Operation not permitted"
    assert _open_in(box, "ollama", "/dev/nvidia1") == opened
    environ = box.run("cat", f"/proc/{box.main_pid('vllm')}/environ").stdout.split("\0")
    named = next(one for one in environ if one.startswith("CUDA_VISIBLE_DEVICES="))
    assert named.startswith("CUDA_VISIBLE_DEVICES=GPU-")
