"""What starts the engines on this host: systemd or the daemon itself."""

from __future__ import annotations

import os

from arbiterd.model.settings import Settings


def use_systemd(settings: Settings) -> bool:
    """Launcher = auto: systemd when PID 1 is systemd and we are root."""
    asked = settings.arbiter.launcher
    if asked != "auto":
        return asked == "systemd"
    return os.path.isdir("/run/systemd/system") and os.geteuid() == 0
