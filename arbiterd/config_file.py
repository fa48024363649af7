"""Where the configuration file and the daemon's runtime_dir are, without loading the file.

Apart from ``config``, since commands that only ask the daemon need not load it (half of their time).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from arbiterd.files import bounded

DEFAULT = Path("/etc/gpu-arbiter.toml")
DEFAULT_RUNTIME_DIR = "/run/gpu-arbiter"
_RUNTIME_DIR = re.compile(r"""^\s*runtime_dir\s*=\s*["']([^"']+)["']""", re.MULTILINE)


def default_path(environ: Mapping[str, str]) -> Path:
    """GPU_ARBITER_CONFIG, else /etc/gpu-arbiter.toml."""
    return Path(environ.get("GPU_ARBITER_CONFIG") or DEFAULT)


def runtime_dir_of(path: Path, environ: Mapping[str, str]) -> Path:
    """The runtime_dir of a file that may be broken: whoever operates or guards a running daemon must
    find it although the edited file cannot be loaded.
    """
    named = environ.get("GPU_ARBITER_ARBITER__RUNTIME_DIR")
    if named:
        return Path(named)
    with suppress(OSError, UnicodeDecodeError):
        found = _RUNTIME_DIR.search(bounded.text(path, bounded.CONFIG_BYTES))
        if found:
            return Path(found[1])
    first = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    return Path(first or DEFAULT_RUNTIME_DIR)
