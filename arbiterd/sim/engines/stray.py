"""A process that an engine has left behind: in a session of its own, deaf to SIGTERM, for ten minutes."""

from __future__ import annotations

import signal
import time

LIFE_S = 600.0

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(LIFE_S)
