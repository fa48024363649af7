"""``arbiterd [--config FILE]``: the daemon in the foreground. SIGHUP reloads."""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from arbiterd import __version__
from arbiterd.imports import cheaper


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        prog="arbiterd",
        description="Keeps TensorFlow Serving, vLLM and Ollama at peace on one GPU. "
        "Runs in the foreground; SIGHUP reloads the configuration.",
        epilog="example: arbiterd --config /etc/gpu-arbiter.toml   (operate it with arbiterctl)",
    )
    parser.add_argument("--config", type=Path, help="configuration file (/etc/gpu-arbiter.toml)")
    parser.add_argument("--version", action="version", version=f"arbiterd {__version__}")
    given = parser.parse_args(argv)
    faulthandler.enable()  # SIGABRT of the watchdog: every thread's stack goes to the journal
    with cheaper():
        from arbiterd.config_file import (  # noqa: PLC0415 - --help and --version stay instant
            default_path,
        )
        from arbiterd.daemon.main import run  # noqa: PLC0415
        from arbiterd.linux.heap import bound  # noqa: PLC0415
    bound()
    environ = dict(os.environ)
    return run(given.config or default_path(environ), environ)


if __name__ == "__main__":
    sys.exit(main())
