"""Taking a unit out of service for the arbiter, and giving it back exactly.

What was done is recorded in state_dir before it is done, so that --undo can end what a kill or a power
cut left half done. The configuration goes first: a unit is disabled only once its settings are kept.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from arbiterd.act.files import replace_file
from arbiterd.errors import ArbiterError
from arbiterd.files import strict_json
from arbiterd.files.owned import top
from arbiterd.files.trust import environ, tool
from arbiterd.files.typed import build
from arbiterd.store.json_store import JsonStore

_TIMEOUT_S = 180.0  # longer than a unit's own stop timeout (90 s)
ENABLED = ("enabled", "enabled-runtime")


@dataclass(frozen=True, slots=True)
class Record:
    """What a takeover did. ``enabled``, ``active``: the unit as it was; ``before``: the entry's keys
    as they were (None: not there); ``original``, ``written``: the file before and after.
    """

    at: str
    config: str
    backend: str
    unit: str
    enabled: str
    active: bool
    original: str
    written: str
    env_path: str = ""
    before: Mapping[str, Any] = field(default_factory=dict)
    done: bool = False

    @property
    def backup(self) -> Path:
        """The copy of the file as it was."""
        return Path(f"{self.config}.before-takeover")


def record_path(state_dir: str) -> Path:
    """Where it is kept."""
    return top(Path(state_dir)) / "takeover-ollama.json"


def _store(path: Path) -> JsonStore[Record | None]:
    return JsonStore(
        path,
        lambda row: build(Record, row),
        lambda one: asdict(one) if one else None,
        absent=None,
        loads=strict_json.loads,
        mode=0o600,
        sync=True,
    )


def read_record(path: Path) -> Record | None:
    """The record, None when nothing was taken over.

    Raises:
        ArbiterError: it is there and cannot be read.

    """
    record, problem = _store(path).look()
    if problem:
        msg = f"{problem}; it tells how to undo, so nothing is done without it"
        raise ArbiterError(msg)
    return record


def commands(record: Record, *, undo: bool = False) -> list[str]:
    """What is run, for people."""
    if not undo:
        return [f"systemctl disable --now {record.unit}"]
    out = []
    if record.enabled in ENABLED:
        runtime = " --runtime" if record.enabled == "enabled-runtime" else ""
        out.append(f"systemctl enable{runtime} {record.unit}")
    if record.active:
        out.append(f"systemctl start {record.unit}")
    return out


def apply(record: Record, path: Path, env_text: str) -> None:
    """Write the file, then disable the unit; put everything back when that fails.

    Raises:
        ArbiterError: it was not done, and nothing has changed (or, said so, what could not be undone).

    """
    _save(path, record)
    try:
        if env_text:
            replace_file(Path(record.env_path), env_text.encode(), 0o600)
        replace_file(record.backup, record.original.encode(), _mode(record.config))
        replace_file(Path(record.config), record.written.encode())
        for line in commands(record):
            _systemctl(line)
    except BaseException as error:
        left = _put_back(record, path)
        if not isinstance(error, ArbiterError):
            raise
        msg = f"{error}; {left or 'the configuration and the unit are as before'}"
        raise ArbiterError(msg) from None
    _save(path, replace(record, done=True))


def undo(record: Record, path: Path, restored: str) -> None:
    """Write the restored text, enable and start the unit as it was, forget the takeover.

    Raises:
        ArbiterError: a step failed; the record is kept, so that it can be tried again.

    """
    config = Path(record.config)
    try:
        if config.read_text(encoding="utf-8") != restored:
            replace_file(config, restored.encode())
        for line in commands(record, undo=True):
            _systemctl(line)
        if record.env_path:
            Path(record.env_path).unlink(missing_ok=True)
        if restored == record.original:
            record.backup.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    except OSError as error:
        msg = f"cannot undo: {error}; when that is mended: arbiterctl takeover ollama --undo"
        raise ArbiterError(msg) from None


def _put_back(record: Record, path: Path) -> str:
    """As it was; returns what could not be restored."""
    left: list[str] = []
    try:
        undo(record, path, record.original)
    except (ArbiterError, OSError) as error:
        left.append(str(error))
    return f"not all could be put back: {'; '.join(left)}" if left else ""


def _save(path: Path, record: Record) -> None:
    try:
        _store(path).put(record)
    except OSError as error:
        msg = f"cannot write {path}: {error.strerror}; be root, or name another file"
        raise ArbiterError(msg) from None


def _mode(config: str) -> int:
    return os.stat(config).st_mode & 0o7777


def _systemctl(line: str) -> None:
    name, *rest = line.split(" ")
    argv = [tool(name) or f"/usr/bin/{name}", *rest]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env=environ()
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        msg = f"{line}: {error}"
        raise ArbiterError(msg) from None
    if done.returncode != 0:
        words = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        msg = f"{line} failed: {words}"
        raise ArbiterError(msg)
