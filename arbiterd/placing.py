"""Files and folders that the daemon makes for another process, with the mode and group that their
reader needs.

The mode is set on the file itself: the umask of a unit (or of a shell that runs the daemon) decides
nothing, and no other thread's change of it does. Without CAP_CHOWN, root may hand a file to a group of
its own only (SupplementaryGroups= of the unit).
"""

from __future__ import annotations

import grp
import os
from contextlib import suppress
from pathlib import Path

# Every user's: engines run as gpu-engines or as the operator's choice, container images as their own.
EVERYONE_FOLDER, EVERYONE_FILE = 0o755, 0o644
# The daemon's alone, and operators may read it.
OWN_FILE = 0o640


def make_folder(path: Path, mode: int = EVERYONE_FOLDER, group: str = "") -> None:
    """Make ``path`` with exactly this mode; an older one is corrected if it is ours. Parents that are
    missing become passable for everyone: a reader must get through them.

    Raises:
        OSError: it cannot be made.

    """
    missing = [one for one in path.parents if not one.exists()]
    for one in reversed(missing):
        one.mkdir(exist_ok=True)
        one.chmod(EVERYONE_FOLDER)
    path.mkdir(exist_ok=True)
    if path.stat().st_uid == os.geteuid():
        hand_over(path, mode, group)


def put_file(path: Path, text: str, mode: int, group: str = "") -> None:
    """Write ``text`` under a temporary name that nobody else can read, hand it over, rename.

    Raises:
        OSError: it cannot be written.

    """
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    made = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(made, "w") as file:
        file.write(text)
    hand_over(temporary, mode, group)
    temporary.replace(path)


def hand_over(path: Path, mode: int, group: str = "") -> None:
    """Give ``path`` this mode, and this group where the group exists and is one of ours."""
    if group:
        with suppress(KeyError, OSError):
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
    path.chmod(mode)
