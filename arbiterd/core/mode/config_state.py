"""Which accepted settings are in force, and what a restart must find of them on disk.

One value with one owner: the loop's thread changes it, other threads post what has happened. Each change
returns the writes that belong to it, in their order; a daemon that dies between two of them starts on the
old layout or on the new one, never between, and does not try again by itself what was rolled back.

last-good.toml     the configuration accepted last, for a start on a bad file
previous.toml      the one before, while a switch is under way: the way back survives our death
rolled-back.json   the digest of a file whose layout did not come up, and why: only a reload tries it again
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from arbiterd.core.mode.diff import same
from arbiterd.errors import Problem
from arbiterd.model.settings import Settings


class File(StrEnum):
    """The files, in runtime_dir."""

    LAST_GOOD = "last-good.toml"
    PREVIOUS = "previous.toml"
    ROLLED_BACK = "rolled-back.json"


class Write(NamedTuple):
    """A file's new text; None: the file goes."""

    file: File
    text: str | None


class Kept(NamedTuple):
    """A configuration's text and its digest; both "" for none."""

    sha: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Disk:
    """What the files hold. ``refused_sha``: of the file that was rolled back, ``reason``: why."""

    good: Kept = Kept()
    previous: Kept = Kept()
    refused_sha: str = ""
    reason: str = ""

    def instead(self, sha: str) -> Kept:
        """What a start uses instead of the file of this digest: nothing (Kept()) when it may be tried."""
        if not sha or sha != self.refused_sha:
            return Kept()
        return self.good if self.good.sha != sha else self.previous


@dataclass(frozen=True, slots=True)
class ConfigState:
    """All that is known of the configuration.

    ``in_force``: what decide is given; ``text``: its text, "" when not known. ``newest``: accepted last,
    which a further reload is compared with. ``queued``: accepted, and waits for the end of the switch; of
    several the latest wins. ``switching``: a switch is under way, or was when the daemon before us died;
    ``taken``: new ones are in force and no tick has seen them. ``file_sha``: of the file as last looked at,
    "" before; ``told_sha``: of the one that operators were told to be pending. ``refused``: problems of the
    file that could not be taken; ``rolled_back``: they are of a layout, not of a text.
    """

    in_force: Settings
    newest: Settings
    text: str = ""
    queued: Settings | None = None
    queued_text: str = ""
    switching: bool = False
    taken: bool = False
    file_sha: str = ""
    told_sha: str = ""
    refused: tuple[str, ...] = ()
    rolled_back: bool = False
    disk: Disk = Disk()

    @property
    def pending(self) -> bool:
        """The file was edited, and is not in force."""
        return self.file_sha not in ("", self.newest.source.sha256)


Changed = tuple[ConfigState, tuple[Write, ...]]


def started(state: ConfigState, *, alive: bool) -> Changed:
    """The daemon starts on its file. ``alive``: beside engines of another text it is a switch."""
    differs = state.disk.good.sha not in ("", state.in_force.source.sha256)
    return _keep(state, state.in_force, state.text, keep_previous=alive and differs)


def guarding(state: ConfigState) -> Changed:
    """The daemon starts on what was good before its file: the writes of a rollback that its death cut
    short are ended.
    """
    here = Kept(state.in_force.source.sha256, state.text)
    writes = () if here.sha == state.disk.good.sha else (Write(File.LAST_GOOD, here.text),)
    return replace(state, disk=replace(state.disk, good=here)), writes


def accept(state: ConfigState, settings: Settings, text: str) -> Changed:
    """A reload. Until it has come through, what was good before is kept beside it."""
    now = replace(
        state,
        newest=settings,
        queued=settings,
        queued_text=text,
        file_sha=settings.source.sha256,
        refused=(),
        rolled_back=False,
    )
    now, writes = _keep(now, settings, text, keep_previous=True)
    now = replace(now, disk=replace(now.disk, refused_sha="", reason=""))
    return now, (*writes, Write(File.ROLLED_BACK, None))


def _keep(state: ConfigState, settings: Settings, text: str, *, keep_previous: bool) -> Changed:
    disk, writes = state.disk, []
    if keep_previous and not disk.previous.sha and disk.good.sha:
        disk = replace(disk, previous=disk.good)
        writes.append(Write(File.PREVIOUS, disk.good.text))
    disk = replace(disk, good=Kept(settings.source.sha256, text))
    return replace(state, disk=disk), (*writes, Write(File.LAST_GOOD, text))


def refuse(state: ConfigState, problems: tuple[str, ...]) -> ConfigState:
    """The file cannot be taken; all else stays."""
    return replace(state, refused=problems, rolled_back=False)


def file_changed(state: ConfigState, sha: str) -> ConfigState:
    """The file has this digest. What differs from the newest is pending, and told once."""
    now = replace(state, file_sha=sha)
    if now.pending:
        return replace(now, told_sha=sha)
    return replace(now, refused=(), rolled_back=False) if state.rolled_back else now


def take(state: ConfigState) -> ConfigState:
    """Before a tick: what waits comes into force, unless a switch to something else is under way."""
    newer = state.queued
    if newer is None or (state.switching and not same(newer, state.in_force)):
        return state
    taken = state.taken or not state.switching  # else it is what the switch goes to
    text = state.queued_text
    return replace(state, in_force=newer, text=text, queued=None, queued_text="", taken=taken)


def switch_ended(
    state: ConfigState, good: Settings | None, why: str, *, under_way: bool, back: Settings | None
) -> Changed:
    """After each tick: has a switch ended in it? ``good``: came through last. ``back``: settings that come
    back, ``why`` they do.
    """
    now = replace(state, switching=under_way, taken=back is not None)
    if back is not None:
        return _rolled_back(now, back, why)
    if (state.switching or state.taken) and not under_way:
        through = good is not None and same(good, state.in_force)
        # what failed while a newer file waits has not come through: the way back stays
        if through or state.queued is None:
            return _settled(now)
    return now, ()


def _settled(state: ConfigState) -> Changed:
    """The settings in force have come through. When a newer file waits, they are now the ones before it."""
    here = Kept(state.in_force.source.sha256, state.text)
    waits = here.text and state.disk.good.sha != here.sha
    disk = replace(state.disk, previous=here if waits else Kept())
    return replace(state, disk=disk), (Write(File.PREVIOUS, here.text if waits else None),)


def _rolled_back(state: ConfigState, back: Settings, why: str) -> Changed:
    """The file of the layout that did not come up is pending again, with the reason."""
    failed, previous = state.in_force.source.sha256, state.disk.previous
    row = json.dumps({"sha256": failed, "reason": why})
    writes = [Write(File.ROLLED_BACK, row)]
    disk = replace(state.disk, refused_sha=failed, reason=why)
    if previous.sha:
        writes.append(Write(File.LAST_GOOD, previous.text))
        disk = replace(disk, good=previous)
    return replace(
        state,
        in_force=back,
        newest=back,
        text=previous.text if previous.sha == back.source.sha256 else "",
        told_sha="",
        refused=(str(problem_of_rollback(back.source.path, why)),),
        rolled_back=True,
        disk=disk,
    ), tuple(writes)


def problem_of_rollback(path: str, reason: str) -> Problem:
    """What is said of a file whose layout was rolled back."""
    wrong = f"its layout did not come up and was rolled back: {reason}"
    right = "mend it, or try it again: systemctl reload gpu-arbiter"
    return Problem(path, 0, "mode", wrong, right)
