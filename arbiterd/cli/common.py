"""What commands share: the global options, output, the host's inventory."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from arbiterd.cli import screen
from arbiterd.cli.client import Client, Json, Refused, Unreachable
from arbiterd.config_file import default_path, runtime_dir_of
from arbiterd.errors import (
    EX_CONFIG,
    EX_REFUSED,
    EX_UNAVAILABLE,
    ArbiterError,
    ConfigRefused,
    Problem,
)

if TYPE_CHECKING:
    import typer

    from arbiterd.model.devices import Device

NVML_WAIT_S = 3.0


@dataclass(slots=True)
class Globals:
    """The options every command takes, before or after its name."""

    json: bool = False
    config: Path | None = None
    socket: Path | None = None

    @property
    def path(self) -> Path:
        """The configuration file."""
        return self.config or default_path(os.environ)

    def client(self) -> Client:
        """The daemon: by --socket, else by the runtime_dir of the file, else the default place."""
        if self.socket is not None:
            return Client(self.socket)
        if self.config is not None:
            self._say_if_unreadable(self.config)
        return Client(runtime_dir_of(self.path, os.environ) / "admin.sock")

    @staticmethod
    def _say_if_unreadable(path: Path) -> None:
        """A file that was asked for and cannot be read is said as that."""
        try:
            begin = path.read_bytes().decode()[:1]
        except (OSError, UnicodeDecodeError):
            begin = "\ufeff"
        if begin == "\ufeff":
            from arbiterd.config.load import read_text  # noqa: PLC0415 - it finds the words

            read_text(path)


def known(*, json: bool = False, config: Path | None = None, socket: Path | None = None) -> Globals:
    """The options of this call; what its configuration hides is hidden from here on."""
    found = Globals(json=json, config=config, socket=socket)
    screen.know(found.path)
    return found


def globals_of(context: typer.Context) -> Globals:
    """The options of this call."""
    found = context.find_object(Globals)
    return found if found is not None else Globals()


def console() -> Console:
    """Output for people: colours only on a terminal, NO_COLOR honoured (by rich)."""
    wide = None if sys.stdout.isatty() else 200
    return Console(highlight=False, width=wide, soft_wrap=False)


def print_json(value: Json | Mapping[str, object] | Sequence[object]) -> None:
    """Output for programs."""
    screen.plain().write(json.dumps(screen.document(value), indent=2) + "\n")


def say_problems(problems: Sequence[Problem]) -> None:
    """Problems go to stderr, one a line (contract, section 2)."""
    for problem in problems:
        prefix = "warning: " if problem.severity == "warning" else ""
        print(f"{prefix}{problem}", file=sys.stderr)


@contextmanager
def polite() -> Iterator[None]:
    """Turn every error of ours into a sentence and the right exit status."""
    try:
        yield
    except ConfigRefused as refused:
        say_problems(refused.problems)
        raise SystemExit(EX_CONFIG) from None
    except Unreachable as error:
        print(f"arbiterctl: {error}", file=sys.stderr)
        raise SystemExit(EX_UNAVAILABLE) from None
    except (Refused, ArbiterError) as error:
        print(f"arbiterctl: {error}", file=sys.stderr)
        raise SystemExit(EX_REFUSED) from None


def inventory(state_dir: Path) -> tuple[tuple[Device, ...], str]:
    """(devices, "") as NVML lists them now; else those of the daemon's last run, and why so."""
    from arbiterd.sense.nvml import NvmlSource  # noqa: PLC0415
    from arbiterd.store.gpu_inventory import shown  # noqa: PLC0415 - most commands list no device

    source = NvmlSource()
    source.start()
    try:
        deadline = time.monotonic() + NVML_WAIT_S
        while True:
            now = time.monotonic()
            source.request(now, processes=False)
            snapshot = source.latest(now)
            if snapshot.devices or snapshot.nvml or now >= deadline:
                break
            time.sleep(0.02)
    finally:
        source.close()
    if snapshot.devices:
        return tuple(seen.device for seen in snapshot.devices.values()), ""
    why = f"the GPUs cannot be read: {snapshot.nvml or 'NVML does not answer'}"
    known = shown(state_dir)
    if known:
        return known, f"{why}; shown with those of the daemon's last run"
    return (), why
