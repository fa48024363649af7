"""The gateway's files: written whole, readable for HAProxy and the gate only, checked by HAProxy itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

from arbiterd.gateway.paths import GROUP
from arbiterd.store import atomic

_CHECK_S = 10.0


def put(path: Path, text: str, *, shared: bool) -> None:
    """Write it whole. ``shared``: for the common group of HAProxy and the gate."""
    atomic.write(path, text.encode(), group=GROUP if shared else "")


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


def holds(path: Path, text: str) -> bool:
    """Whether this file is what we would write."""
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False
