"""Real access checks: what stands in a user's way to a path, and the command that mends it."""

from __future__ import annotations

import grp
import json
import os
import pwd
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from arbiterd.files.trust import own_environ

_TIMEOUT_S = 20.0  # a folder on a network mount that hangs
_WORDS = {"r": "read", "w": "write", "x": "enter", "?": "find"}


@dataclass(frozen=True, slots=True)
class Obstacle:
    """``need``: r, w or x that is missing at ``path``; "?": nothing is there. ``wanted``: all that is
    needed at this path, so that one command mends it.
    """

    user: str
    path: str
    need: str
    wanted: str = "x"

    @property
    def words(self) -> str:
        """'user ollama may not enter /srv/private'."""
        if self.need == "?":
            return f"{self.path} is not there"
        return f"user {self.user} may not {_WORDS[self.need]} {self.path}"


def obstacles(
    user: str, wants: Sequence[tuple[str, str]], *, bare: bool = False
) -> list[Obstacle | None] | None:
    """For each (path, "rwx"): what stands in the way, None for nothing. None for the whole: it cannot
    be asked (no such user, or we are neither root nor that user). ``bare``: without capabilities.
    """
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return None
    me = os.geteuid()
    if me not in (0, entry.pw_uid):
        return None
    gid, groups = entry.pw_gid, os.getgrouplist(user, entry.pw_gid)
    if bare:
        gid, groups = _daemon_groups()
    asked = {
        "uid": entry.pw_uid,
        "gid": gid,
        "groups": groups,
        "bare": bare and me == 0,
        "wants": [list(one) for one in wants],
    }
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-m", "arbiterd.survey.access_worker"],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=True,
            env=own_environ(),
        )
        rows = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return [
        Obstacle(user, row[0], row[1], needs if row[0] == path else "x") if row else None
        for row, (path, needs) in zip(rows, wants, strict=True)
    ]


def _daemon_groups() -> tuple[int, list[int]]:
    """Group= and SupplementaryGroups= of gpu-arbiter.service; nobody's where it is not installed."""
    found = []
    for name in ("gpu-arbiter", "gpu-arbiter-gw"):
        try:
            found.append(grp.getgrnam(name).gr_gid)
        except KeyError:
            return 65534, []
    return found[0], found


def mend(one: Obstacle, *, whole: bool = False) -> str:
    """The command that opens the way. ``whole``: the need is of everything below the path."""
    path, user = shlex.quote(one.path), shlex.quote(one.user)
    if one.need == "?":
        return f"install -d -o {user} -g {group_of(one.user)} -m 0750 {path}"
    deep = "-R " if whole else ""
    enter = "X" if whole else "x"  # X: of folders only
    right = one.wanted.replace("x", enter)
    if shutil.which("setfacl"):
        return f"setfacl {deep}-m u:{user}:{right} {path}"
    if "w" in one.wanted:
        return f"chown {deep}{user} {path}"
    return f"chmod {deep}o+{right} {path}"


def group_of(user: str) -> str:
    """A user's own group, the user's name when it cannot be told."""
    try:
        return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name
    except KeyError:
        return user
