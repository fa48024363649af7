"""The bearer token of API and page: one line in a file of root's that nobody else may write or read."""

from __future__ import annotations

import os
import re
import stat

from arbiterd.files import bounded

_MOST = 4096
LEAST = 16  # characters: at 400 tries a second it is not guessed


def read_token(path: str) -> str:
    """The token in this file: its first line.

    Raises:
        OSError: it cannot be read.
        ValueError: the token, the file's owner or its mode will not do; the text says why and what to type.

    """
    info = bounded.stat(path)
    if not stat.S_ISREG(info.st_mode):
        msg = f"{path} is not a regular file"
        raise ValueError(msg)
    if info.st_uid not in (0, os.geteuid()):
        msg = f"{path} belongs to uid {info.st_uid}: chown root {path}"
        raise ValueError(msg)
    if info.st_mode & (stat.S_IWGRP | stat.S_IRWXO):
        msg = f"{path} can be written by its group or read by others: chmod 640 {path}"
        raise ValueError(msg)
    lines = bounded.read(path, _MOST).decode("ascii", "replace").split("\n")
    token = lines[0].strip()
    if len(token) < LEAST or not re.fullmatch(r"[!-~]+", token) or any(map(str.strip, lines[1:])):
        msg = (
            f"{path} does not hold one token of at least {LEAST} characters: "
            f"openssl rand -hex 32 > {path}"
        )
        raise ValueError(msg)
    return token
