"""Faults of files: state that is corrupt, folders that vanish, disks that are full or read-only, and
configuration replaced in every broken way while reloads run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.faults.by_hand import both, serves, ticks_go_on
from tests.faults.direct import DirectStage
from tests.faults.row import Fault
from tests.faults.stage import Missing, Stage, until

DEEP = b"[" * 100_000 + b"]" * 100_000
BROKEN: dict[str, bytes] = {
    "empty": b"",
    "words": b"this is no JSON",
    "cut": b'{"version": 1, "at": ',
    "binary": bytes(range(256)) * 16,
    "wrong-types": b'{"version": {"a": []}, "gpus": 7, "carry": "x", "incidents": {"id": 5}, "backend": [], "pid": "x", "uuid": null}',
    "list": b'[1, "x", null, {"uuid": 5, "index": "zero", "pci_bus_id": []}]',
    "deep": DEEP,
    "numbers": b'{"version": 1e400, "at": NaN, "pid": 99999999999999999999, "start_time": -1}',
}
STATE = ("carry.json", "incidents.json", "gpus.json", "learned.json", "backends/vllm.json", "backends/ollama.json", "last-good.toml",
         "gateway/gate.json", "gateway/gateway.pid.json", "gateway/gate.pid.json")  # fmt: skip
# Without its record an engine is a stranger with our tag: it is stopped, and started anew.
_RECORDS = {"backends/vllm.json": ("vllm",), "backends/ollama.json": ("ollama",)}


def _place(stage: Stage, name: str) -> Path:
    """Where this file is; in the state folder where there is none yet."""
    found = [folder / name for folder in (stage.state, stage.run) if (folder / name).exists()]
    return found[0] if found else stage.state / name


def _corrupt(name: str, data: bytes) -> Callable[[Stage], None]:
    """The daemon dies; its file is broken; the next one starts."""

    def inject(stage: Stage) -> None:
        assert isinstance(stage, DirectStage)
        place = _place(stage, name)
        stage.kill_daemon()
        place.write_bytes(data)

    return inject


def _instead(name: str, make: Callable[[Path], None]) -> Callable[[Stage], None]:
    def inject(stage: Stage) -> None:
        assert isinstance(stage, DirectStage)
        place = _place(stage, name)
        stage.kill_daemon()
        if place.exists():
            place.unlink()
        make(place)

    return inject


def _clean(name: str) -> Any:
    """Take away what stands in a file's place: that is an operator's work."""

    def undo(stage: Stage, _: Any) -> None:
        stage.revive()
        for folder in (stage.state, stage.run):
            place = folder / name
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)

    return undo


def _state_rows() -> list[Fault]:
    out = []
    for name in STATE:
        for how, data in BROKEN.items():
            if name.startswith(("backends", "last", "gateway")) and how in (
                "list",
                "numbers",
                "words",
                "cut",
            ):
                continue
            moves = _RECORDS.get(name, ())
            out.append(Fault(f"state-{name.replace('/', '-')}-{how}", "state", "direct", _corrupt(name, data),
                             "corrupt state never keeps the daemon from starting; engines are adopted",
                             restarts_daemon=True, tells=("adopted",), moves=moves))  # fmt: skip
    return out


def _odd_state_rows() -> list[Fault]:
    promise = "what stands in a file's place is not followed, and keeps nothing from starting"
    kinds: dict[str, Callable[[Path], None]] = {
        "folder": lambda p: p.mkdir(),
        "fifo": os.mkfifo,
        "dangling-link": lambda p: p.symlink_to("/nonexistent/x"),
        "link-to-zero": lambda p: p.symlink_to("/dev/zero"),
        "missing": lambda p: None,
    }
    return [
        Fault(
            f"state-{name}-{how}",
            "state",
            "direct",
            _instead(name, make),
            promise,
            undo=_clean(name),
            tells=("adopted",),
        )
        for name in ("carry.json", "incidents.json", "gpus.json")
        for how, make in kinds.items()
    ]


# -- configuration -----------------------------------------------------------------------------------
def _configs() -> dict[str, Callable[[str, Path], None]]:
    """Each breaks the file (its good text, its place)."""

    def text(change: Callable[[str], str]) -> Callable[[str, Path], None]:
        def write(good: str, place: Path) -> None:
            place.write_text(change(good))

        return write

    def raw(data: bytes) -> Callable[[str, Path], None]:
        def write(_: str, place: Path) -> None:
            place.write_bytes(data)

        return write

    def instead(make: Callable[[Path], None]) -> Callable[[str, Path], None]:
        def change(_: str, place: Path) -> None:
            place.unlink()
            make(place)

        return change

    return {
        "empty": raw(b""),
        "cut": text(lambda good: good[: len(good) // 2]),
        "binary": raw(bytes(range(256)) * 64),
        "nul": text(lambda good: good.replace("mode", "mo\0de", 1)),
        "latin-1": raw(b'mode = "\xe4\xf6"\n'),
        "bom-utf16": text(lambda good: good.encode("utf-16").decode("latin-1")),
        "deep": raw(b"x = " + b"[" * 20_000 + b"]" * 20_000),
        "deep-tables": raw(b"[" + b".".join([b"a"] * 5000) + b"]\n"),
        "huge": raw(b"# a comment\n" * 3_000_000),
        "many-keys": raw(b"".join(b"key%d = 1\n" % n for n in range(20_000))),
        "kind-list": text(lambda good: good.replace("[backends.vllm]\n", '[backends.vllm]\nkind = ["vllm"]\n')),
        "mode-table": text(lambda good: good.replace('mode = "A"', "mode = { a = 1 }")),
        "unknown-mode": text(lambda good: good.replace('mode = "A"', 'mode = "Z"')),
        "port-text": text(lambda good: good.replace("llm_port = ", 'llm_port = "x" #')),
        "port-negative": text(lambda good: good.replace("llm_port = ", "llm_port = -")),
        "port-huge": text(lambda good: good.replace("llm_port = ", "llm_port = 99999999999999999999999 #")),
        "date": text(lambda good: good.replace("max_model_len = 8192", "max_model_len = 1979-05-27")),
        "nan": text(lambda good: good.replace("max_model_len = 8192", "max_model_len = nan")),
        "over-capacity": text(lambda good: good.replace('memory = "55%"', 'memory = "95%"')),
        "no-backends": text(lambda good: good[: good.index("[backends.")]),
        "twice": text(lambda good: good + good),
        "command-empty": text(lambda good: good.replace("command = [", "command = [[]]\nx = [", 1)),
        "env-number": text(lambda good: good.replace("env = {", "env = { A = 5, B = [1],", 1)),
        "fifo": instead(os.mkfifo),
        "folder": instead(lambda p: p.mkdir()),
        "zero": instead(lambda p: p.symlink_to("/dev/zero")),
        "random": instead(lambda p: p.symlink_to("/dev/urandom")),
        "dangling": instead(lambda p: p.symlink_to("/nonexistent/gpu-arbiter.toml")),
        "loop": instead(lambda p: p.symlink_to(p)),
        "missing": instead(lambda p: None),
        "socket": instead(_socket),
    }  # fmt: skip


def _socket(place: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(place))


def _replace(change: Callable[[str, Path], None]) -> Callable[[Stage], str]:
    """Broken, then SIGHUP while the file goes on changing."""

    def inject(stage: Stage) -> str:
        good = stage.config.read_text()
        change(good, stage.config)
        for _ in range(3):
            stage.hup()
            time.sleep(0.05)
        return good

    return inject


def _refused(stage: Stage, _: Any) -> None:
    until(
        lambda: (
            stage.events(stage.began, "reload_refused")
            or stage.events(stage.began, "config_refused")
        ),
        "the refusal",
    )
    ticks_go_on(0.5)(stage, None)


def _good_again(stage: Stage, good: str) -> None:
    place = stage.config
    if place.is_dir() and not place.is_symlink():
        place.rmdir()
    new = place.with_suffix(".again")
    new.write_text(good)
    new.replace(place)
    stage.hup()
    until(lambda: stage.events(stage.began, "reload"), "the good file to be taken")


def _config_rows() -> list[Fault]:
    return [
        Fault(f"config-{how}", "config", "direct", _replace(change), "the old one stays in force, the refusal says why; no tick is late",
              seen=_refused, undo=_good_again, tells=("reload_refused|config_refused", "reload"))
        for how, change in _configs().items()
    ]  # fmt: skip


# -- disks -------------------------------------------------------------------------------------------
def _folder(name: str) -> Callable[[Stage], Path]:
    def found(stage: Stage) -> Path:
        assert isinstance(stage, DirectStage)
        return {"run": stage.run, "state": stage.state, "logs": stage.logs, "etc": stage.etc}[name]

    return found


def _full(name: str) -> Callable[[Stage], Path]:
    def inject(stage: Stage) -> Path:
        filler = _folder(name)(stage) / "filler"
        with filler.open("wb", buffering=0) as out, suppress(OSError):
            for size in (1 << 20, 4096, 1):
                with suppress(OSError):
                    while out.write(b"\0" * size) == size:
                        continue
        return filler

    return inject


def _room(stage: Stage, filler: Path) -> None:
    filler.unlink(missing_ok=True)


def _read_only(name: str) -> Callable[[Stage], Path]:
    def inject(stage: Stage) -> Path:
        """By a mount over it: what is open for writing goes on, as after `errors=remount-ro`."""
        folder = str(_folder(name)(stage))
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        return Path(folder)

    return inject


def _writable(stage: Stage, folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], check=True)


def _drains(stage: Stage, _: Any) -> None:
    """The door of a drained backend shuts, and opens again, whatever the disk says."""
    if stage.events(stage.began, "start", "vllm"):
        return
    stage.order("vllm", "drain")
    until(lambda: stage.ask("vllm") != (200, "vllm"), "the door to shut", 20)
    stage.order("vllm", "resume")
    until(lambda: stage.ask("vllm") == (200, "vllm"), "the door to open", 20)


def _engine_back(stage: Stage, _: Any) -> None:
    """An engine dies meanwhile: it comes back now, or when there is room."""
    stage.kill(stage.main_pid("ollama"))
    time.sleep(2.0)


def _restart_meanwhile(stage: Stage, _: Any) -> None:
    assert isinstance(stage, DirectStage)
    stage.kill_daemon()
    with suppress(Missing):  # a daemon that cannot write may refuse to start; its engines go on
        stage.start()
    serves("vllm", "tensorflow", for_s=1.0)(stage, None)


def _room_and_daemon(how: Any) -> Any:
    def undo(stage: Stage, made: Path) -> None:
        how(stage, made)
        stage.revive()

    return undo


def _disk_rows() -> list[Fault]:
    out = []
    meets = {
        "drain": (_drains, ()),
        "engine-dies": (_engine_back, ("ollama",)),
        "daemon-dies": (_restart_meanwhile, ()),
    }
    for word, make, undo in (("full", _full, _room), ("read-only", _read_only, _writable)):
        for name in ("run", "state", "logs", "etc"):
            for meet, (look, moves) in meets.items():
                if name in ("logs", "etc") and meet != "engine-dies":
                    continue
                again = _room_and_daemon(undo) if meet == "daemon-dies" else undo
                out.append(Fault(f"disk-{word}-{name}-{meet}", "disk", "disk", make(name),
                                 "doors and orders work on a full or read-only disk; files catch up later",
                                 seen=both(ticks_go_on(1.0), look), undo=again, moves=moves))  # fmt: skip
    return out


def _vanish(name: str) -> Callable[[Stage], None]:
    def inject(stage: Stage) -> None:
        shutil.rmtree(_folder(name)(stage), ignore_errors=True)

    return inject


def _made_anew(name: str) -> Any:
    """Who starts the daemon makes the folder, as systemd does with RuntimeDirectory."""

    def undo(stage: Stage, _: Any) -> None:
        assert isinstance(stage, DirectStage)
        with suppress(Missing):
            until(lambda: stage.daemon_pid() == 0, "the daemon to end", 20)
        _folder(name)(stage).mkdir(exist_ok=True)
        if stage.daemon_pid():
            stage.kill_daemon()
        stage.revive()

    return undo


def _vanish_rows() -> list[Fault]:
    return [
        Fault("folder-state-deleted", "disk", "direct", _vanish("state"), "made anew; nothing is touched", seen=both(ticks_go_on(2.0), serves("vllm")), undo=_made_anew("state")),
        Fault("folder-run-deleted", "disk", "direct", _vanish("run"), "the daemon ends, the next one starts; no engine is lost unguarded",
              undo=_made_anew("run"), moves=("tensorflow", "vllm", "ollama")),
    ]  # fmt: skip


def rows() -> list[Fault]:
    """The table."""
    return [*_state_rows(), *_odd_state_rows(), *_config_rows(), *_vanish_rows(), *_disk_rows()]
