"""``make run``: the daemon for real on a GPU host, else the demo on the simulated GPU.

For real only as root, with a GPU, with /etc/gpu-arbiter.toml, and with no other arbiter holding the
lock of its runtime_dir (then it says who, exit 1).
"""

from __future__ import annotations

import glob
import os
import sys
from pathlib import Path

from arbiterd.config import load
from arbiterd.config_file import default_path
from arbiterd.daemon.lock import holder
from arbiterd.errors import EX_CONFIG, EX_REFUSED, ConfigRefused


def for_real(environ: dict[str, str], config: Path) -> str:
    """Why this cannot be for real, "" when it can."""
    if os.geteuid() != 0:
        return "you are not root"
    if not glob.glob("/dev/nvidia[0-9]*"):
        return "this machine has no NVIDIA GPU"
    if not config.exists():
        return f"there is no {config}"
    del environ
    return ""


def main() -> int:
    """Decide and run."""
    environ = dict(os.environ)
    config = default_path(environ)
    why_not = for_real(environ, config)
    if why_not:
        from arbiterd.sim.demo import Demo  # noqa: PLC0415 - builds the simulated GPU

        print(f"make run: the demo on a simulated GPU, because {why_not}", flush=True)
        return Demo().run()
    try:
        settings = load(config, environ).settings
    except ConfigRefused as refused:
        for problem in refused.problems:
            print(problem, file=sys.stderr)
        return EX_CONFIG
    found = holder(Path(settings.arbiter.runtime_dir))
    if found is not None:
        pid, command = found
        print(
            f"make run: an arbiter runs already: pid {pid} ({command}); "
            "look at it with: arbiterctl status",
            file=sys.stderr,
        )
        return EX_REFUSED
    from arbiterd.daemon.main import run  # noqa: PLC0415

    print(f"make run: for real on {config}; Ctrl-C stops it", flush=True)
    return run(config, environ)


if __name__ == "__main__":
    sys.exit(main())
