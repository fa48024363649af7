"""What both launchers owe a backend that runs in a container, with the real docker and podman.

Run inside the box (tests/system/test_containers.py): containers need root and cgroup v2.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

import pytest

from arbiterd.act.launch.base import Launcher
from arbiterd.act.launch.direct import DirectLauncher
from arbiterd.act.launch.systemd import SystemdLauncher
from arbiterd.core.backend.planning import launch_spec
from arbiterd.daemon.startup import engines_alive
from arbiterd.engines.base import CauseClass, LaunchContext
from arbiterd.engines.generic import GenericEngine
from arbiterd.errors import LaunchError
from arbiterd.linux import container_ids, procfs
from arbiterd.linux.cgroups import pids_of
from arbiterd.model.launch import Exit, LaunchSpec, UnitObservation, UnitState
from arbiterd.model.settings import Kind
from tests.core.world import backend
from tests.support import free_port, wait_until

IMAGE = "localhost/gpu-arbiter-probe:1"
ASKED = [word for word in os.environ.get("GPU_ARBITER_CONTAINERS", "").split(",") if word]
pytestmark = [
    pytest.mark.skipif(
        not ASKED,
        reason="run by tests/system/test_containers.py: containers need root and a systemd",
    )
]


@dataclass
class Bench:
    """A launcher, a client, a folder that the containers see, too."""

    launcher_name: str
    client: str
    home: Path
    launcher: Launcher
    port: int

    @property
    def folder(self) -> Path:
        """Records and id files."""
        return self.home / "run" / "backends"

    def again(self) -> None:
        """Another daemon takes over, as after a crash."""
        self.launcher.close()
        self.launcher = _make(self.launcher_name, self.home / "run")
        self.launcher.adopt()

    def spec(self, code: str, **over: object) -> LaunchSpec:
        """A container that runs a piece of Python; files it writes to the folder are ours to see."""
        fields: dict[str, object] = {
            "image": IMAGE,
            "command": ("/usr/bin/python3", "-u", "-c", code, str(self.home)),
            "volumes": (f"{self.home}:{self.home}",),
            "env": {"A": "b c", "HOME": "/tmp"},
        }
        context = LaunchContext(
            backend=backend("probe", Kind.GENERIC, **{**fields, **over}),
            devices=(),
            cap_bytes=0,
            headroom_bytes=0,
            others_caps_bytes=0,
            host="127.0.0.1",
            port=self.port,
            grpc_port=0,
            files_dir=str(self.folder / "probe"),
            intent="i1",
            container=self.client,
        )
        return replace(launch_spec(context), stop_grace_s=8.0)

    def see(self) -> UnitObservation | None:
        """What it observes now."""
        return self.launcher.observe(monotonic()).get("probe")

    def wait(self, state: UnitState) -> UnitObservation:
        """Until it is in this state."""

        def there() -> UnitObservation | None:
            found = self.see()
            return found if found and found.state is state else None

        found = wait_until(there, 20, f"{state}; {self.launcher.tail('probe', 5)}")
        assert found is not None
        return found

    def up(self, **over: object) -> list[int]:
        """Start the family and wait for it; host pids of its main process and its child."""
        self.launcher.start(self.spec(FAMILY, **over))
        names = [self.home / "main.up", self.home / "child.up"]
        wait_until(
            lambda: all(one.exists() and one.read_text() for one in names),
            20,
            f"the family; {self.launcher.tail('probe', 5)}",
        )
        one = container_ids.recorded(self.folder)["probe"]
        return wait_until(lambda: _python_in(container_ids.cgroup_of(one)), 10)

    def call(self, *words: str) -> str:
        """Ask the client itself."""
        done = subprocess.run(
            [f"/usr/bin/{self.client}", *words], capture_output=True, text=True, check=False
        )
        return (done.stdout + done.stderr).strip()

    def everything(self) -> list[str]:
        """Names of all containers of this client, stopped ones too."""
        return self.call("ps", "--all", "--format={{.Names}}").split()


def _python_in(cgroup: str) -> list[int]:
    """Host pids of the family, main process first."""
    found = [pid for pid in pids_of(cgroup) if "python3" in procfs.command(pid)]
    found = [pid for pid in found if "init" not in procfs.command(pid).split()[0]]
    return sorted(found) if len(found) == 2 else []


def _make(name: str, folder: Path) -> Launcher:
    changed = threading.Event()
    if name == "direct":
        return DirectLauncher(folder, changed.set)
    return SystemdLauncher(folder, changed.set)


@pytest.fixture(params=ASKED or [""])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """One launcher with one client; whatever was started is gone at the end."""
    name, _, client = str(request.param).partition("-")
    tmp_path.chmod(0o777)
    one = Bench(name, client, tmp_path, _make(name, tmp_path / "run"), free_port())
    one.launcher.adopt()
    yield one
    one.launcher.stop("probe", 0.0)
    one.launcher.close()
    assert one.everything() == []


FAMILY = """
import os, signal, sys, time
home = sys.argv[1]
def note(name):
    def handler(*_):
        open(f'{home}/{name}', 'w').close()
        os._exit(0)
    return handler
child = os.fork()
who = 'main' if child else 'child'
signal.signal(signal.SIGTERM, note(who))
open(f'{home}/{who}.up', 'w').write(str(os.getpid()))
time.sleep(600)
"""


def test_every_process_of_the_container_is_the_backends(bench: Bench) -> None:
    """Observed by host pid, owned by name for the ledger, in cgroups that hold nobody else."""
    main, child = bench.up()
    found = bench.wait(UnitState.RUNNING)
    assert found.main is not None
    assert found.intent == "i1"
    assert set(found.pids) >= {main, child, found.main.pid}
    for pid in (main, child):
        owner = bench.launcher.owner_of(pid)
        assert owner is not None
        assert owner[0] == "probe"
    assert bench.launcher.owner_of(os.getpid()) is None
    assert bench.launcher.owner_of(1) is None
    inside = [pid for path in bench.launcher.cgroups("probe") for pid in pids_of(path)]
    assert {main, child} <= set(inside) <= set(found.pids)


def test_its_cgroups_can_be_frozen_whole(bench: Bench) -> None:
    """What cgroups() names is the handle for whoever freezes: the engine stands still, and goes on."""
    main, child = bench.up()
    folders = [Path(f"/sys/fs/cgroup{path}") for path in bench.launcher.cgroups("probe")]
    assert folders
    for folder in folders:
        (folder / "cgroup.freeze").write_text("1")
    wait_until(lambda: all("frozen 1" in (one / "cgroup.events").read_text() for one in folders), 5)
    held = {
        pid for folder in folders for pid in pids_of(str(folder).removeprefix("/sys/fs/cgroup"))
    }
    for folder in folders:
        (folder / "cgroup.freeze").write_text("0")
    assert {main, child} <= held
    bench.launcher.stop("probe", 8.0)
    assert (bench.home / "main").exists()


def test_stop_reaches_the_main_process_and_leaves_nothing(bench: Bench) -> None:
    """TERM through the init to the engine alone; no process, no container, no id file is left."""
    main, child = bench.up()
    bench.wait(UnitState.RUNNING)
    bench.launcher.stop("probe", 8.0)
    assert (bench.home / "main").exists(), "the engine did not see the SIGTERM"
    assert not (bench.home / "child").exists()
    assert procfs.ref(main) is None
    assert procfs.ref(child) is None
    assert bench.everything() == []
    assert not list(bench.folder.glob("*.cid"))
    wait_until(lambda: bench.see() is None, 5, "to be forgotten")
    bench.launcher.stop("probe", 1.0)


def test_what_ignores_sigterm_is_killed_after_the_grace(bench: Bench) -> None:
    """And stop() returns only then."""
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(600)"
    bench.launcher.start(bench.spec(code))
    found = bench.wait(UnitState.RUNNING)
    wait_until(lambda: "up" in bench.launcher.tail("probe", 5), 20, "its first line")
    bench.launcher.stop("probe", 0.5)
    assert found.main is not None
    assert procfs.ref(found.main.pid) is None
    assert bench.everything() == []


def test_stop_without_grace_kills_at_once(bench: Bench) -> None:
    """No handler runs."""
    main, child = bench.up()
    bench.launcher.stop("probe", 0.0)
    assert not (bench.home / "main").exists()
    assert (procfs.ref(main), procfs.ref(child)) == (None, None)
    assert bench.everything() == []


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("raise SystemExit(3)", Exit(code=3)),
        ("pass", Exit(code=0)),
        ("import os; os.kill(os.getpid(), 9)", Exit(signal=9)),
    ],
)
def test_how_the_engine_ended_is_told_as_without_a_container(
    bench: Bench, code: str, wanted: Exit
) -> None:
    """The client's 137 is signal 9."""
    bench.launcher.start(bench.spec(f"import time; time.sleep(0.2); print('bye'); {code}"))
    found = bench.wait(UnitState.EXITED)
    assert found.exit == wanted
    wait_until(lambda: "bye" in bench.launcher.tail("probe", 10), 5, "its last line")


def test_a_killed_engine_takes_its_children_along(bench: Bench) -> None:
    """kill_processes by host pid; the pid namespace ends with the main process, no orphan is left."""
    main, child = bench.up()
    bench.wait(UnitState.RUNNING)
    ref = procfs.ref(main)
    assert ref is not None
    bench.launcher.kill_processes([ref])
    assert bench.wait(UnitState.EXITED).exit == Exit(signal=9)
    wait_until(lambda: procfs.ref(child) is None, 5, "the child to go, too")


def test_a_container_whose_client_was_killed_is_seen_and_stopped(bench: Bench) -> None:
    """The engine lives on without its client: still ours in the ledger, and stop empties it."""
    main, child = bench.up()
    found = bench.wait(UnitState.RUNNING)
    assert found.main is not None
    os.kill(found.main.pid, signal.SIGKILL)
    after = bench.wait(UnitState.EXITED)
    assert after.exit == Exit(signal=9)
    if procfs.ref(main) is not None:  # systemd ends podman's with the unit
        owner = bench.launcher.owner_of(main)
        assert owner is not None
        assert owner[0] == "probe"
    bench.launcher.stop("probe", 8.0)
    assert (procfs.ref(main), procfs.ref(child)) == (None, None)
    assert bench.everything() == []


def test_another_daemon_adopts_it_by_its_id(bench: Bench) -> None:
    """The same processes, the same intent; it is alive to a start on a bad file, too."""
    main, child = bench.up()
    before = bench.wait(UnitState.RUNNING)
    bench.again()
    after = bench.wait(UnitState.RUNNING)
    assert (after.main, after.invocation, after.intent) == (before.main, before.invocation, "i1")
    assert set(after.pids) >= {main, child}
    owner = bench.launcher.owner_of(child)
    assert owner is not None
    assert owner[0] == "probe"
    assert engines_alive(bench.home / "run")
    bench.launcher.stop("probe", 8.0)
    assert not engines_alive(bench.home / "run")


def test_a_leftover_with_our_label_is_removed_before_a_start(bench: Bench) -> None:
    """From before a power cut: no record, no id file, but the name is taken."""
    label = bench.spec("pass").container
    assert label is not None
    bench.call(
        "run", "--detach", "--name=gpu-arbiter-probe", f"--label={label.label}", IMAGE, "/bin/sh", "-c", "while :; do :; done"
    )  # fmt: skip
    assert bench.everything() == ["gpu-arbiter-probe"]
    bench.up()
    assert bench.everything() == ["gpu-arbiter-probe"]


def test_a_strangers_container_of_that_name_is_left_alone(bench: Bench) -> None:
    """It is no leftover of ours: the start fails, and the client's own words tell why."""
    bench.call("create", "--name=gpu-arbiter-probe", IMAGE, "/bin/sh")
    try:
        bench.launcher.start(bench.spec("pass"))
        found = bench.wait(UnitState.EXITED)
        assert found.exit == Exit(code=125)
        cause = GenericEngine().classify(
            bench.launcher.tail("probe", 20), found.exit, was_ready=False
        )
        assert "another container has its name" in cause.summary
        bench.launcher.stop("probe", 0.0)
        assert bench.everything() == ["gpu-arbiter-probe"]
    finally:
        bench.call("rm", "gpu-arbiter-probe")


def test_a_missing_image_is_told_and_not_tried_again(bench: Bench) -> None:
    """Nothing is pulled by a start."""
    bench.launcher.start(bench.spec("pass", image="localhost/nothing-here:1"))
    found = bench.wait(UnitState.EXITED)
    assert found.exit == Exit(code=125)
    cause = GenericEngine().classify(bench.launcher.tail("probe", 20), found.exit, was_ready=False)
    assert (cause.cause, cause.retry) == (CauseClass.CONFIG, False)
    assert "its image is not here" in cause.summary


def test_a_missing_program_is_told_and_not_tried_again(bench: Bench) -> None:
    """The image is there, what it shall start is not."""
    bench.launcher.start(bench.spec("pass", command=("/nowhere/engine",)))
    found = bench.wait(UnitState.EXITED)
    assert found.exit in (Exit(code=127), Exit(code=1)), "tini's, catatonit's"
    cause = GenericEngine().classify(bench.launcher.tail("probe", 20), found.exit, was_ready=False)
    assert (cause.cause, cause.retry) == (CauseClass.CONFIG, False)
    assert "cannot be executed in its image" in cause.summary


def test_environment_and_secrets_reach_the_engine_and_no_command_line(bench: Bench) -> None:
    """Values go through the client's environment; quotes mean in env_file what they mean without a
    container. What the client itself reads is given by value.
    """
    secrets = bench.home / "secrets"
    secrets.write_text('# a comment\nTOKEN="s3cret"\n')
    code = (
        "import json, os, sys, time\n"
        "open(sys.argv[1] + '/env.new', 'w').write(json.dumps(dict(os.environ)))\n"
        "os.rename(sys.argv[1] + '/env.new', sys.argv[1] + '/env')\ntime.sleep(600)"
    )
    bench.launcher.start(bench.spec(code, env_file=str(secrets)))
    wait_until((bench.home / "env").exists, 20, "the engine's environment")
    seen = json.loads((bench.home / "env").read_text())
    assert (seen["A"], seen["TOKEN"], seen["HOME"]) == ("b c", "s3cret", "/tmp")
    assert seen["CUDA_VISIBLE_DEVICES"] == ""
    assert seen["NVIDIA_VISIBLE_DEVICES"] == "void"
    found = bench.wait(UnitState.RUNNING)
    for pid in found.pids:
        assert "s3cret" not in procfs.command(pid)


def test_a_secret_that_the_client_would_take_is_refused(bench: Bench) -> None:
    """PATH in env_file would hide podman's own helpers from it."""
    secrets = bench.home / "secrets"
    secrets.write_text("PATH=/opt/bin\n")
    with pytest.raises(LaunchError, match="env_file sets PATH"):
        bench.launcher.start(bench.spec("pass", env_file=str(secrets)))
    assert bench.see() is None


def test_its_port_is_open_on_loopback_and_nowhere_else(bench: Bench) -> None:
    """The engine binds everything in its own network; the port map is all that leads to it."""
    code = f"import http.server as h; h.test(h.SimpleHTTPRequestHandler, port={bench.port}, bind='0.0.0.0')"
    bench.launcher.start(bench.spec(code))

    def answers(host: str) -> bool:
        try:
            with socket.create_connection((host, bench.port), 2) as one:
                one.settimeout(2)
                one.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return b"200" in one.recv(64)
        except OSError:
            return False

    wait_until(lambda: answers("127.0.0.1"), 20, "the engine behind its port map")
    bridges = [
        one["addr_info"][0]["local"]
        for one in json.loads(subprocess.check_output(["ip", "-j", "-4", "addr"]))
        if one["ifname"] != "lo" and one["addr_info"]
    ]
    assert bridges
    assert not any(answers(host) for host in bridges)


def test_user_is_the_containers_not_the_clients(bench: Bench) -> None:
    """The client runs as root all the same."""
    main, _ = bench.up(user="1234:1234")
    assert procfs.uid(main) == 1234
    found = bench.wait(UnitState.RUNNING)
    assert found.main is not None
    assert procfs.uid(found.main.pid) == 0


def test_starting_what_is_there_already_is_refused(bench: Bench) -> None:
    """And leaves it alone: preparing a start must not remove what runs."""
    main, _ = bench.up()
    with pytest.raises(LaunchError, match="probe"):
        bench.launcher.start(bench.spec(FAMILY))
    assert procfs.ref(main) is not None
    assert set((bench.see() or bench.wait(UnitState.RUNNING)).pids) >= {main}


def test_a_stop_while_it_is_being_made_leaves_nothing(bench: Bench) -> None:
    """TERM may reach the client before there is a container."""
    bench.launcher.start(bench.spec("import time; time.sleep(600)"))
    bench.launcher.stop("probe", 3.0)
    wait_until(lambda: bench.see() is None, 5, "to be forgotten")
    bench.up()
    bench.launcher.stop("probe", 8.0)
    assert bench.everything() == []
