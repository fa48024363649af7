"""What every launcher must do. The same tests hold for `direct` here and for `systemd` in the box
(tests/system/test_launcher.py runs this file there).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from arbiterd.act.launch.base import Launcher
from arbiterd.act.launch.direct import DirectLauncher
from arbiterd.act.launch.systemd import SystemdLauncher
from arbiterd.errors import LaunchError
from arbiterd.linux import procfs
from arbiterd.model.devices import ProcessRef
from arbiterd.model.launch import Exit, FileSpec, LaunchSpec, UnitObservation, UnitState
from tests.support import wait_until

IN_BOX = os.environ.get("GPU_ARBITER_LAUNCHERS", "direct").split(",")


@dataclass
class Bench:
    """A launcher, a folder, and the names that were started."""

    kind: str
    home: Path
    launcher: Launcher
    changed: threading.Event

    def again(self) -> Launcher:
        """Another launcher on the same folder, as after a crash of the daemon."""
        made = _make(self.kind, self.home / "run", self.changed)
        made.adopt()
        return made

    def spec(self, code: str, name: str = "probe", **over: object) -> LaunchSpec:
        """A backend that runs a piece of Python."""
        argv = (sys.executable, "-u", "-c", code, str(self.home))
        fields: dict[str, object] = {
            "env": {"A": "b c"},
            "intent": "i1",
            "user": "",
            "stop_grace_s": 5.0,
        }
        if self.kind == "systemd":
            fields["user"] = "root"
        return LaunchSpec(name, argv, **{**fields, **over})  # type: ignore[arg-type]

    def see(self, name: str = "probe") -> UnitObservation | None:
        """What it observes of one backend now."""
        from time import monotonic

        return self.launcher.observe(monotonic()).get(name)

    def wait(self, state: UnitState, name: str = "probe") -> UnitObservation:
        """Until the unit is in this state."""

        def there() -> UnitObservation | None:
            found = self.see(name)
            return found if found and found.state is state else None

        found = wait_until(there, 15, f"{name} to be {state}")
        assert found is not None
        return found


def _make(kind: str, folder: Path, changed: threading.Event) -> Launcher:
    if kind == "direct":
        return DirectLauncher(folder, changed.set)
    return SystemdLauncher(folder, changed.set)


@pytest.fixture(params=IN_BOX)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """A launcher; what it started is stopped at the end."""
    changed = threading.Event()
    tmp_path.chmod(0o755)
    launcher = _make(request.param, tmp_path / "run", changed)
    launcher.adopt()
    one = Bench(request.param, tmp_path, launcher, changed)
    yield one
    for name in ("probe", "other"):
        one.launcher.stop(name, 0.0)
    one.launcher.close()


SLEEP = "import time; print('up'); time.sleep(600)"
# main and child both note a SIGTERM in a file of their own; the child outlives the main process
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


def _family(bench: Bench) -> tuple[int, int]:
    wait_until(lambda: (bench.home / "child.up").exists() and (bench.home / "main.up").exists(), 10)
    wait_until((bench.home / "main.up").read_text, 5)
    wait_until((bench.home / "child.up").read_text, 5)
    return int((bench.home / "main.up").read_text()), int((bench.home / "child.up").read_text())


def test_a_started_backend_is_observed_with_its_processes(bench: Bench) -> None:
    """Running, main process by identity, an invocation, its intent."""
    bench.launcher.start(bench.spec(FAMILY))
    main, child = _family(bench)
    found = bench.wait(UnitState.RUNNING)
    assert found.main == procfs.ref(main)
    assert found.invocation
    assert found.intent == "i1"
    wait_until(lambda: set((bench.see() or found).pids) >= {main, child}, 5, "both processes")


def test_nothing_of_the_daemons_environment_reaches_an_engine(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the base, the spec's own and the launcher's tag."""
    monkeypatch.setenv("LD_LIBRARY_PATH", "/sim")
    monkeypatch.setenv("SECRET_OF_THE_DAEMON", "x")
    bench.launcher.start(bench.spec(SLEEP))
    found = bench.wait(UnitState.RUNNING)
    assert found.main is not None
    env = wait_until(lambda: procfs.environ(found.main.pid) if found.main else None, 5)
    assert env is not None
    assert env["A"] == "b c"
    assert "LD_LIBRARY_PATH" not in env
    assert "SECRET_OF_THE_DAEMON" not in env


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("raise SystemExit(3)", Exit(code=3)),
        ("pass", Exit(code=0)),
        ("import os; os.kill(os.getpid(), 9)", Exit(signal=9)),
    ],
)
def test_how_it_ended_is_kept_until_stop(bench: Bench, code: str, wanted: Exit) -> None:
    """Exit code, exit 0 too, or signal; the loop is woken."""
    bench.changed.clear()
    bench.launcher.start(bench.spec(f"import time; time.sleep(0.3); {code}"))
    found = bench.wait(UnitState.EXITED)
    assert found.exit == wanted
    assert bench.changed.is_set()
    bench.launcher.stop("probe", 0.0)
    wait_until(lambda: bench.see() is None, 5, "to be forgotten")


def test_starting_what_is_there_already_is_refused(bench: Bench) -> None:
    """One unit per backend."""
    bench.launcher.start(bench.spec(SLEEP))
    bench.wait(UnitState.RUNNING)
    with pytest.raises(LaunchError, match="probe"):
        bench.launcher.start(bench.spec(SLEEP))


def test_a_missing_program_is_an_error_with_a_sentence(bench: Bench) -> None:
    """Nothing is left of it."""
    spec = LaunchSpec(
        "probe", ("/nowhere/engine",), {}, "i", user="root" if bench.kind == "systemd" else ""
    )
    with pytest.raises(LaunchError, match="/nowhere/engine: it is not there"):
        bench.launcher.start(spec)
    assert bench.see() is None


def test_stop_terminates_the_main_process_only_then_kills_the_rest(bench: Bench) -> None:
    """EngineCore must not get a SIGTERM: it has to drain."""
    bench.launcher.start(bench.spec(FAMILY))
    main, child = _family(bench)
    bench.wait(UnitState.RUNNING)
    bench.launcher.stop("probe", 5.0)
    assert (bench.home / "main").exists()
    assert not (bench.home / "child").exists()
    assert procfs.ref(main) is None
    assert procfs.ref(child) is None
    wait_until(lambda: bench.see() is None, 5, "to be forgotten")


def test_what_ignores_sigterm_is_killed_after_the_grace(bench: Bench) -> None:
    """stop() returns when nothing is left."""
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(600)"
    bench.launcher.start(bench.spec(code, stop_grace_s=30.0))
    found = bench.wait(UnitState.RUNNING)
    assert found.main is not None
    wait_until(lambda: any("up" in line for line in bench.launcher.tail("probe", 5)), 10)
    bench.launcher.stop("probe", 0.5)
    assert procfs.ref(found.main.pid) is None


def test_stop_without_a_unit_is_success(bench: Bench) -> None:
    """Idempotent."""
    bench.launcher.stop("probe", 1.0)
    assert bench.see() is None


def test_an_orphan_is_seen_and_goes_with_stop(bench: Bench) -> None:
    """The main process is killed; its child stays in the unit until stop (or systemd's own KILL)."""
    bench.launcher.start(bench.spec(FAMILY))
    main, child = _family(bench)
    bench.wait(UnitState.RUNNING)
    os.kill(main, signal.SIGKILL)
    found = bench.wait(UnitState.EXITED)
    assert found.exit in (Exit(signal=9), Exit())
    bench.launcher.stop("probe", 0.0)
    assert procfs.ref(child) is None


def test_another_daemon_adopts_what_runs(bench: Bench) -> None:
    """Same process, same invocation, same intent."""
    bench.launcher.start(bench.spec(SLEEP))
    before = bench.wait(UnitState.RUNNING)
    bench.launcher.close()
    bench.launcher = bench.again()
    after = bench.wait(UnitState.RUNNING)
    assert (after.main, after.invocation, after.intent) == (before.main, before.invocation, "i1")


def test_an_owner_is_named_by_its_processes(bench: Bench) -> None:
    """Main and child are ours, we and strangers are not."""
    bench.launcher.start(bench.spec(FAMILY))
    main, child = _family(bench)
    bench.wait(UnitState.RUNNING)
    for pid in (main, child):
        owner = bench.launcher.owner_of(pid)
        assert owner is not None
        assert owner[0] == "probe"
    assert bench.launcher.owner_of(os.getpid()) is None
    assert bench.launcher.owner_of(1) is None


def test_the_last_lines_of_output_can_be_read(bench: Bench) -> None:
    """Both streams, oldest first."""
    code = (
        "import sys, time; print('one'); sys.stderr.write('two\\n'); sys.stderr.flush();"
        " time.sleep(0.2); sys.exit(1)"
    )
    bench.launcher.start(bench.spec(code))
    bench.wait(UnitState.EXITED)

    def words() -> list[str]:
        return [line for line in bench.launcher.tail("probe", 10) if line in ("one", "two")]

    assert wait_until(lambda: len(words()) >= 2 and words(), 10) == ["one", "two"]


@pytest.mark.parametrize(
    ("code", "sign"),
    [
        ("import time; print('up', flush=True); time.sleep(5); print('on'); time.sleep(60)", "log_bytes"),
        ("f = open('/dev/null', 'wb')\nwhile True: f.write(bytes(1 << 16))", "io_bytes"),
        ("import time; time.sleep(1); held = bytes(range(256)) * (1 << 18); time.sleep(60)", "memory_bytes"),
        ("while True: pass", "cpu_s"),
    ],
)  # fmt: skip
def test_signs_of_progress_are_numbers(bench: Bench, code: str, sign: str) -> None:
    """Output, I/O, memory and CPU of what is watched, and nothing is measured of others."""
    bench.launcher.watch({"probe"})
    bench.launcher.start(bench.spec(code))
    first = bench.wait(UnitState.RUNNING)

    def grew() -> bool:
        now = bench.see()
        return now is not None and getattr(now, sign) > getattr(first, sign)

    wait_until(grew, 60, f"{sign} to grow")
    bench.launcher.watch(set())
    unwatched = bench.see()
    assert unwatched is not None
    assert unwatched.io_bytes == unwatched.memory_bytes == 0


def test_files_are_there_before_the_engine(bench: Bench) -> None:
    """In runtime_dir/backends/NAME."""
    spec = bench.spec(SLEEP, files=(FileSpec("x.config", "hello"),))
    bench.launcher.start(spec)
    assert (bench.home / "run" / "backends" / "probe" / "x.config").read_text() == "hello"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to run an engine as another user")
@pytest.mark.parametrize("umask", [0o007, 0o077], ids=oct)
def test_its_files_can_be_read_by_the_engines_user(bench: Bench, umask: int) -> None:
    """Whoever that is, and whatever the daemon's umask: TensorFlow names its files on its command line."""
    folder = Path(tempfile.mkdtemp(prefix="gpua-", dir="/run"))
    folder.chmod(0o755)
    old = os.umask(umask)
    launcher = _make(bench.kind, folder / "run", bench.changed)
    try:
        at = folder / "run" / "backends" / "probe" / "models.config"
        spec = LaunchSpec(
            "probe", ("/bin/sh", "-c", f"id -un; cat {at}; sleep 600"), {}, "i1",
            files=(FileSpec("models.config", "served\n"),), user="nobody",
        )  # fmt: skip
        launcher.start(spec)
        wait_until(lambda: launcher.tail("probe", 9) == ("nobody", "served"), 10, "its words")
    finally:
        os.umask(old)
        launcher.stop("probe", 0.0)
        launcher.close()
        shutil.rmtree(folder)


def test_killing_is_by_identity(bench: Bench) -> None:
    """A pid with another start time is somebody else."""
    with subprocess.Popen([sys.executable, "-c", SLEEP], stdout=subprocess.DEVNULL) as process:
        ref = wait_until(lambda: procfs.ref(process.pid), 5)
        assert ref is not None
        bench.launcher.kill_processes([ProcessRef(ref.pid, ref.start_time + 1)])
        assert process.poll() is None
        bench.launcher.kill_processes([ref])
        assert process.wait(5) == -signal.SIGKILL


def test_two_backends_do_not_touch_each_other(bench: Bench) -> None:
    """Stop of one leaves the other."""
    bench.launcher.start(bench.spec(SLEEP))
    bench.launcher.start(bench.spec(SLEEP, "other"))
    other = bench.wait(UnitState.RUNNING, "other")
    bench.wait(UnitState.RUNNING)
    bench.launcher.stop("probe", 1.0)
    assert other.main is not None
    assert procfs.alive(other.main)


def test_secrets_come_by_file_only(bench: Bench) -> None:
    """env_file reaches the engine; argv does not show it."""
    secrets = bench.home / "secrets"
    secrets.write_text('# a comment\nTOKEN="s3cret"\n')
    bench.launcher.start(bench.spec(SLEEP, env_file=str(secrets)))
    found = bench.wait(UnitState.RUNNING)
    assert found.main is not None
    main = found.main
    wait_until(lambda: procfs.environ(main.pid).get("TOKEN") == "s3cret", 5)
    assert "s3cret" not in procfs.command(main.pid)


# What systemd's own reading of such a file gives, in the box; the direct launcher reads alike.
ENV_FILE = r"""# a comment \
CONTINUED=in the comment
; another
PLAIN=a b
export EXPORTED=1
QUOTED="a \"b\" $HOME \$x `y` \n"
SINGLE='a "b" \n'
JOINED='a' "b"c
MIDDLE=a"b"
LINES="one
two"
FOLDED=a\
b
EMPTY=
SPACED = x
NO_VALUE
9BAD=1
LAST=1
LAST=2
UNICODE=hé 漢"""


def test_an_env_file_is_read_alike_by_every_launcher(bench: Bench) -> None:
    """Quotes, comments, continued lines, names that are none: systemd's rules (env-file.c)."""
    secrets = bench.home / "secrets"
    blanks = ENV_FILE.replace("PLAIN=a b", "PLAIN=a b \t")
    secrets.write_text(blanks, encoding="utf-8")
    bench.launcher.start(bench.spec(SLEEP, env_file=str(secrets)))
    main = bench.wait(UnitState.RUNNING).main
    assert main is not None
    env = _environ(main.pid, "LAST")
    wanted = {
        "PLAIN": "a b",
        "QUOTED": 'a "b" $HOME $x `y` \\n',
        "SINGLE": 'a "b" \\n',
        "JOINED": "abc",
        "MIDDLE": 'a"b"',
        "LINES": "one\ntwo",
        "FOLDED": "ab",
        "EMPTY": "",
        "SPACED": "x",
        "LAST": "2",
        "UNICODE": "hé 漢",
    }
    assert {name: env.get(name) for name in wanted} == wanted
    assert not {"EXPORTED", "export EXPORTED", "NO_VALUE", "9BAD"} & env.keys()


def _environ(pid: int, name: str) -> dict[str, str]:
    """Its environment, once it has come to its exec and has this variable."""
    wait_until(lambda: name in procfs.environ(pid), 10, name)
    return dict(procfs.environ(pid))


AWKWARD = "a 'b' \"c\" $HOME ${x} `y` \\ \\n #no ;no\nnext line\t= hé 漢 "


def test_what_the_arbiter_decides_beats_env_file(bench: Bench) -> None:
    """base, then env_file, then env and the arbiter's own; what it leaves unset stays unset."""
    secrets = bench.home / "secrets"
    secrets.write_text("OWNED=theirs\nGIVEN=theirs\nGONE=theirs\nBASE=theirs\nKEPT=theirs\n")
    spec = bench.spec(
        SLEEP,
        env={"OWNED": "ours", "GIVEN": AWKWARD, "EMPTY": ""},
        base={"BASE": "ours", "DEFAULT": "ours"},
        unset=("GONE",),
        env_file=str(secrets),
    )
    bench.launcher.start(spec)
    main = bench.wait(UnitState.RUNNING).main
    assert main is not None
    env = _environ(main.pid, "KEPT")
    assert {k: env.get(k) for k in ("OWNED", "GIVEN", "EMPTY", "BASE", "DEFAULT", "KEPT")} == {
        "OWNED": "ours",
        "GIVEN": AWKWARD,
        "EMPTY": "",
        "BASE": "theirs",
        "DEFAULT": "ours",
        "KEPT": "theirs",
    }
    assert "GONE" not in env


def test_env_is_shown_to_nobody(bench: Bench) -> None:
    """Neither argv nor, under systemd, a property of the unit, which anybody may read."""
    bench.launcher.start(bench.spec(SLEEP, env={"INLINE": "s3cret"}))
    main = bench.wait(UnitState.RUNNING).main
    assert main is not None
    wait_until(lambda: procfs.environ(main.pid).get("INLINE") == "s3cret", 5)
    assert "s3cret" not in procfs.command(main.pid)
    if bench.kind == "systemd":
        unit = "gpu-arbiter-backend-probe.service"
        shown = subprocess.run(
            ["systemctl", "show", unit], capture_output=True, text=True, check=True
        )
        assert "EnvironmentFiles=" in shown.stdout
        assert "s3cret" not in shown.stdout
        assert "INLINE" not in shown.stdout
        file = bench.home / "run" / "backends" / "probe.env"
        assert file.stat().st_mode & 0o777 == 0o600
        bench.launcher.stop("probe", 0.0)
        assert not file.exists()


def test_freeze_is_offered_or_refused_with_a_sentence(bench: Bench) -> None:
    """With systemd: tests/act/test_freezing.py. Thawing what is not frozen is always fine."""
    bench.launcher.start(bench.spec(SLEEP))
    assert not bench.wait(UnitState.RUNNING).frozen
    bench.launcher.thaw("probe")
    if bench.launcher.can_freeze:
        bench.launcher.freeze("probe", 0.1)
    else:
        with pytest.raises(LaunchError, match="cannot freeze probe: the direct launcher"):
            bench.launcher.freeze("probe", 0.1)
    assert bench.wait(UnitState.RUNNING).main is not None
