"""Editing the mode line of the configuration file: that line only, all or nothing."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

import tomlkit
from tomlkit.exceptions import TOMLKitError

from arbiterd.errors import ArbiterError
from arbiterd.store import atomic


class NoRight(ArbiterError):
    """This user may not write the file."""


@dataclass(frozen=True, slots=True)
class Edit:
    """An edit that was made. ``path``: the file itself, links followed."""

    path: Path
    before: bytes
    after: bytes


def mode_in(path: Path) -> str:
    """What the mode line of the file says, "" when that cannot be told."""
    try:
        found = tomllib.loads(path.read_bytes().decode()).get("mode")
    except (OSError, ValueError):
        return ""
    return found if isinstance(found, str) else ""


def set_mode(path: Path, mode: str) -> Edit | None:
    """Write ``mode`` into the file; comments, order and everything else stay as they are. None: it
    says so already.

    Raises:
        NoRight: this user may not write it, or could not keep its owner.
        ArbiterError: it has no mode line, or cannot be written.

    """
    real = Path(os.path.realpath(path))
    try:
        before = real.read_bytes()
    except PermissionError:
        msg = f"you may not read {path}"
        raise NoRight(msg) from None
    text = before.decode()
    old = tomllib.loads(text)
    if old.get("mode") == mode:
        return None
    if "mode" not in old:
        msg = f'{path} has no mode line; write as its first: mode = "{mode}"'
        raise ArbiterError(msg)
    try:
        document = tomlkit.parse(text)
        document["mode"] = mode
        after = tomlkit.dumps(document)
    except TOMLKitError as error:
        msg = f"{path} cannot be edited: {error}; edit its mode line yourself"
        raise ArbiterError(msg) from None
    if tomllib.loads(after) != {**old, "mode": mode}:
        msg = f"{path} cannot be edited without changing more; edit its mode line yourself"
        raise ArbiterError(msg)
    edit = Edit(real, before, after.encode())
    _write(real, edit.after)
    return edit


def put_back(edit: Edit) -> bool:
    """Undo; False when somebody else has changed the file since, which is then left alone."""
    if edit.path.read_bytes() != edit.after:
        return False
    _write(edit.path, edit.before)
    return True


def _write(path: Path, text: bytes) -> None:
    try:
        atomic.rewrite(path, text)
    except PermissionError:
        msg = f"you may not write {path}"
        raise NoRight(msg) from None
    except OSError as error:
        msg = f"{path} cannot be written: {error.strerror}; nothing was changed"
        raise ArbiterError(msg) from None
