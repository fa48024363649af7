"""What the daemon does not import: it would hold the memory for months."""

import subprocess
import sys

_LOADED = """
import sys
import arbiterd.config_file, arbiterd.daemon.main
print(*sorted({one.partition(".")[0] for one in sys.modules}))
"""
# Of use to a terminal, to a client of its own kind, or to tests: 7 to 14 MiB each.
_ELSEWHERE = {"requests", "rich", "pygments", "structlog", "typer", "tomlkit", "uvloop", "pytest"}


def test_the_daemon_imports_nothing_that_others_need() -> None:
    """structlog draws lines on a terminal, and is imported there only (report/journal.py)."""
    run = subprocess.run(
        [sys.executable, "-c", _LOADED], capture_output=True, text=True, check=True
    )
    loaded = set(run.stdout.split())
    assert {"arbiterd", "aiohttp", "pydantic"} <= loaded
    assert not _ELSEWHERE & loaded
