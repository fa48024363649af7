"""The sandbox of a backend's unit: directives by settings and by what the host has. No process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from arbiterd.linux import sandbox, sandbox_host
from arbiterd.linux.sandbox import Directive, Place, directives
from arbiterd.linux.sandbox_host import in_tmp, sandbox_of, writable, writes
from arbiterd.model.container import ContainerSpec
from arbiterd.model.launch import LaunchSpec
from arbiterd.model.sandbox import SandboxSettings

NEVER = {"MemoryDenyWriteExecute", "PrivateDevices", "ProcSubset", "PrivateUsers", "RemoveIPC"}
HOME = "/" + "home"


def _by_name(settings: SandboxSettings, place: Place) -> dict[str, Directive]:
    return {one.name: one for one in directives(settings, place)}


def test_no_directive_breaks_a_gpu_engine() -> None:
    """JIT compilers write code, libraries read /proc/driver/nvidia, the cards are in /dev."""
    assert not NEVER & set(sandbox.names())
    found = _by_name(SandboxSettings(), Place(nodes=("/dev/nvidia0", "/dev/nvidiactl")))
    assert found["DevicePolicy"].value == "closed"
    assert found["DeviceAllow"].dbus[1] == [("/dev/nvidia0", "rw"), ("/dev/nvidiactl", "rw")]
    assert "pidfd_getfd" in found["SystemCallFilter"].value
    assert "AF_NETLINK" in found["RestrictAddressFamilies"].value
    assert found["LimitCORE"].dbus == ("t", 0)
    assert found["CapabilityBoundingSet"].dbus == ("t", 0)


@pytest.mark.parametrize("name", sandbox.names())
def test_each_directive_can_be_left_out(name: str) -> None:
    """By its own name; nothing else goes with it save what would bring it back."""
    place = Place(write=("/usr/x",), tmp=("/tmp/x",), nodes=("/dev/nvidia0",))
    given = SandboxSettings(without=(name,), capabilities=("CAP_SYS_NICE",))
    whole = set(_by_name(SandboxSettings(capabilities=("CAP_SYS_NICE",)), place))
    gone = whole - set(_by_name(given, place))
    assert name in gone
    if name == "NoNewPrivileges":
        assert "SystemCallFilter" in gone
    elif name == "SystemCallFilter":
        assert gone == {name, "SystemCallErrorNumber"}
    else:
        assert gone == {name}


def test_lists_add_to_what_is_allowed() -> None:
    """As a further line of the same directive does in a unit file."""
    given = SandboxSettings(
        write=("/data",),
        syscalls=("perf_event_open",),
        families=("AF_PACKET",),
        capabilities=("CAP_SYS_NICE",),
    )
    found = _by_name(given, Place(write=(f"{HOME}/x",)))
    assert found["ReadWritePaths"].value == f"-{HOME}/x -/data"
    assert found["SystemCallFilter"].value.endswith("perf_event_open")
    assert "@system-service" in found["SystemCallFilter"].value
    assert found["RestrictAddressFamilies"].value.split()[-2:] == ["AF_PACKET", "AF_UNIX"]
    assert found["CapabilityBoundingSet"].dbus == ("t", 1 << 23)
    assert found["AmbientCapabilities"].dbus == ("t", 1 << 23)


def test_root_keeps_what_files_and_users_need() -> None:
    """user = "root" reads the files of others, as it did; it makes no node and loads no module."""
    bound = _by_name(SandboxSettings(), Place(root=True))["CapabilityBoundingSet"].value.split()
    assert {"CAP_DAC_OVERRIDE", "CAP_SETUID"} <= set(bound)
    assert not {"CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_SYS_MODULE", "CAP_SYS_PTRACE"} & set(bound)


def test_all_of_it_can_be_left_out() -> None:
    """One word."""
    assert directives(SandboxSettings(without=("all",)), Place(root=True)) == ()


def test_a_container_client_keeps_its_own_rules() -> None:
    """It mounts, makes namespaces and cgroups."""
    client = ContainerSpec("podman", "n", "image:1", "gpu-arbiter=x", "/run/x.cid")
    spec = LaunchSpec("x", ("podman", "run"), {}, "i", container=client)
    assert sandbox_of(spec, "root", "/root") == ()


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("OLLAMA_MODELS", True),
        ("HF_HOME", True),
        ("HF_HUB_CACHE", True),
        ("VLLM_CACHE_ROOT", True),
        ("TRITON_CACHE_DIR", True),
        ("CUDA_CACHE_PATH", True),
        ("PROMETHEUS_MULTIPROC_DIR", True),
        ("TMPDIR", True),
        ("XDG_DATA_HOME", True),
        ("CUDA_HOME", False),
        ("PATH", False),
        ("PYTHONPATH", False),
        ("LD_LIBRARY_PATH", False),
        ("SSL_CERT_DIR", False),
    ],
)
def test_variables_that_name_a_place_to_write(variable: str, expected: bool) -> None:
    """By name: engines and their libraries have dozens."""
    assert writes(variable) is expected


def test_what_protect_system_and_home_would_shut_stays_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A home, stores of models and caches; of one that is not there, the nearest folder that is."""
    there = {f"{HOME}/alice", "/usr/share/ollama", "/root"}
    monkeypatch.setattr(os.path, "exists", lambda path: path in there)
    env = {
        "OLLAMA_MODELS": "/usr/share/ollama/models",
        "HF_HOME": f"{HOME}/bob/hf",
        "PATH": "/usr/bin",
        "VLLM_CACHE_ROOT": "/srv/vllm",
    }
    argv = (f"{HOME}/alice/venv/bin/vllm", "serve", "--download-dir", "/root/hf", "--x=/etc/y/z")
    found = writable(f"{HOME}/alice", env, argv)
    assert found == [f"{HOME}/alice", "/usr/share/ollama", f"{HOME}/bob/hf", "/root/hf", "/etc/y/z"]
    assert writable("/var/lib/gpu-engines", {}, ("/usr/bin/ollama", "serve")) == []


def test_what_lies_in_tmp_is_found_there(tmp_path: Path) -> None:
    """Its whole entry of /tmp: beside a program lies its virtual environment. Of what is still to be made
    in /tmp itself, others would see nothing: then /tmp is shared.
    """
    assert str(tmp_path).startswith("/tmp/"), "these tests keep their files in /tmp"
    entry = "/tmp/" + str(tmp_path).split("/")[2]
    assert set(in_tmp([f"{tmp_path}/venv/bin/python", "/srv/x"])[0]) == {entry}
    assert in_tmp([f"{tmp_path}/venv/bin/python", "/srv/x"])[1] is False
    assert in_tmp([f"/tmp/not-there-{os.getpid()}/cache"]) == ([], True)
    link = tmp_path / "link"
    link.symlink_to("/srv")
    spec = LaunchSpec("x", ("/usr/bin/true", f"--uds=/tmp/new-{os.getpid()}.sock"), {}, "i")
    found = {one.name for one in sandbox_of(spec, "root", "/root")}
    assert "PrivateTmp" not in found


def test_the_pipe_of_mps_is_shared_where_it_can_be_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA's default, made by root or the engine's user; anybody else may make a folder in /tmp."""
    pipe = tmp_path / "nvidia-mps"
    monkeypatch.setattr(sandbox_host, "MPS_PIPE", str(pipe))
    spec = LaunchSpec("x", ("/usr/bin/true",), {}, "i")

    def bound() -> str:
        found = {one.name: one.value for one in sandbox_of(spec, "root", "/root")}
        return found.get("BindPaths", "")

    assert bound() == ""
    pipe.mkdir()
    assert bound() == f"-{pipe}"
    pipe.rmdir()
    pipe.symlink_to(tmp_path)
    assert bound() == ""
    if os.geteuid() == 0:
        pipe.unlink()
        pipe.mkdir()
        os.chown(pipe, 12345, 12345)
        assert bound() == ""
    elsewhere = LaunchSpec("x", spec.argv, {"CUDA_MPS_PIPE_DIRECTORY": "/run/mps"}, "i")
    assert "BindPaths" not in {one.name for one in sandbox_of(elsewhere, "root", "/root")}


def test_devices_by_key_may_be_folders(tmp_path: Path) -> None:
    """/dev/infiniband stands for the nodes in it; what is no folder is passed on as it is."""
    spec = LaunchSpec(
        "x", ("/usr/bin/true",), {}, "i", nodes=(),
        sandbox=SandboxSettings(devices=("/dev/pts/../null", "char-drm", "/dev/nowhere")),
    )  # fmt: skip
    found = {one.name: one.value for one in sandbox_of(spec, "root", "/root")}
    assert found["DeviceAllow"] == "/dev/pts/../null rw char-drm rw /dev/nowhere rw"


def test_the_page_on_security_has_each_directive_with_its_value() -> None:
    """docs/security.md and the code are one table."""
    text = (Path(__file__).resolve().parents[2] / "docs/security.md").read_text()
    table = text.split("| directive | value | reason |")[1].split("\n\n")[0]
    rows = {}
    for line in table.splitlines()[2:]:
        name, value, reason, key = (cell.strip() for cell in line.strip("|").split("|"))
        assert reason
        assert key.startswith("without")
        rows[name] = value
    assert tuple(sorted(rows)) == tuple(sorted(sandbox.names()))
    place = Place(nodes=("/dev/nvidia0",))
    for one in directives(SandboxSettings(), place):
        if one.name not in ("SystemCallFilter", "DeviceAllow", "CapabilityBoundingSet"):
            assert rows[one.name] == one.value, one.name
    assert len(sandbox.SYSCALLS) - 1 == int(rows["SystemCallFilter"].split()[2])


def test_an_amd_gpu_is_named_with_the_line_that_opens_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """0.2.0 let an engine find it by itself."""
    node = tmp_path / "kfd"
    monkeypatch.setattr(sandbox_host, "AMD", str(node))
    monkeypatch.setattr(sandbox_host, "driver_here", lambda: False)
    assert sandbox_host.shut_amd(SandboxSettings()) is None
    node.touch()
    assert f'devices = ["{node}", "/dev/dri"]' in str(sandbox_host.shut_amd(SandboxSettings()))
    assert sandbox_host.shut_amd(SandboxSettings(devices=(str(node),))) is None
    assert sandbox_host.shut_amd(SandboxSettings(without=("DevicePolicy",))) is None
    monkeypatch.setattr(sandbox_host, "driver_here", lambda: True)
    assert sandbox_host.shut_amd(SandboxSettings()) is None
