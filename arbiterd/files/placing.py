"""Folders and sockets that the daemon makes for another process, with the mode and group that their
reader needs (files: store/atomic.py).

The mode is set on the file itself: the umask of a unit (or of a shell that runs the daemon) decides
nothing, and no other thread's change of it does. Without CAP_CHOWN, root may hand a file to a group of
its own only (SupplementaryGroups= of the unit).
"""

from __future__ import annotations

import grp
import os
from contextlib import suppress
from pathlib import Path

from arbiterd.files.owned import NotTrusted, open_folder, why_not

# Every user's: engines run as gpu-engines or as the operator's choice, container images as their own.
EVERYONE_FOLDER, EVERYONE_FILE = 0o755, 0o644


def make_folder(path: Path, mode: int = EVERYONE_FOLDER, group: str = "") -> None:
    """Make ``path`` with exactly this mode; an older one is corrected if it is ours. Parents that are
    missing become passable for everyone: a reader must get through them.

    Raises:
        NotTrusted: it is a symbolic link, or another user's.
        OSError: it cannot be made.

    """
    missing = [one for one in path.parents if not one.exists()]
    for one in reversed(missing):
        one.mkdir(exist_ok=True)
        one.chmod(EVERYONE_FOLDER)
    with suppress(FileExistsError):
        path.mkdir()
    fd = open_folder(path)
    try:
        found = os.fstat(fd)
        if found.st_uid == os.geteuid():
            if group:
                with suppress(KeyError, OSError):
                    os.fchown(fd, -1, grp.getgrnam(group).gr_gid)
            os.fchmod(fd, mode)
        elif why := why_not(found):
            msg = f"{path} is not trusted: {why}"
            raise NotTrusted(msg)
    finally:
        os.close(fd)


def hand_over(path: Path, mode: int, group: str = "") -> None:
    """Give a socket that we have just bound this mode, and this group where it is one of ours. The
    folder is root's alone: nobody puts another file under its name meanwhile.
    """
    if group:
        with suppress(KeyError, OSError):
            os.chown(path, -1, grp.getgrnam(group).gr_gid, follow_symlinks=False)
    path.chmod(mode)
