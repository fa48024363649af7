"""The load gate: ``python -m arbiterd.loadgate FILE``. Its own process and unit (server.py)."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from arbiterd.imports import cheaper
from arbiterd.linux import heap

_SWITCH_S = 0.001  # the parser's thread gives way to the loop so often


def main() -> int:
    """Run."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m arbiterd.loadgate GATE.JSON\n")
        return 2
    heap.bound()
    with cheaper():
        import uvloop  # noqa: PLC0415

        from arbiterd.loadgate.server import serve  # noqa: PLC0415
    sys.setswitchinterval(_SWITCH_S)
    # as the unit has it; under the direct launcher it would be the daemon's 1024
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        uvloop.run(serve(Path(sys.argv[1])))
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"gate: {sys.argv[1]}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
