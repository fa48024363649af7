"""The gateway's files: written whole, readable for HAProxy and the gate only, checked by HAProxy itself."""

from __future__ import annotations

import grp
import os
import subprocess
from contextlib import suppress
from pathlib import Path

from arbiterd.gateway.paths import GROUP

_CHECK_S = 10.0


def put(path: Path, text: str, *, shared: bool) -> None:
    """Temporary name, then rename. ``shared``: for the common group of HAProxy and the gate."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    if shared:
        give(temporary, 0o640)
    temporary.replace(path)


def check(config: Path) -> str:
    """What ``haproxy -c`` holds against it, "" when it is content."""
    try:
        done = subprocess.run(
            ["/usr/sbin/haproxy", "-c", "-f", str(config)],
            capture_output=True,
            text=True,
            timeout=_CHECK_S,
            check=False,
        )
    except OSError as error:
        return f"/usr/sbin/haproxy: {error.strerror}; apt-get install haproxy"
    except subprocess.TimeoutExpired:
        return "haproxy -c did not end"
    alerts = [line for line in done.stderr.splitlines() if "ALERT" in line]
    return "" if done.returncode == 0 else f"haproxy refuses {config}: {' '.join(alerts)[:500]}"


def give(path: Path, mode: int) -> None:
    """Readable for HAProxy and the gate, by their common group; nobody else."""
    with suppress(KeyError, OSError):
        os.chown(path, -1, grp.getgrnam(GROUP).gr_gid)
    os.chmod(path, mode)
