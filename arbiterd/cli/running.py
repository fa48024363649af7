"""What runs now, for commands that compare it with a file: as the daemon tells it, else by the records
of the running invocations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from arbiterd.cli.client import Client, Json, Unreachable
from arbiterd.cli.ports import guard
from arbiterd.cli.show import Row, as_row, rows
from arbiterd.config import load
from arbiterd.core.backend.backend_state import BackendState, known
from arbiterd.core.mode import diff
from arbiterd.core.mode.config_state import File
from arbiterd.daemon.engine_ports import granted
from arbiterd.errors import ConfigRefused
from arbiterd.files import strict_json
from arbiterd.model.backend import Phase
from arbiterd.model.settings import Settings
from arbiterd.model.switch import Change


@dataclass(frozen=True, slots=True)
class Running:
    """``backends``: by name. ``before``: the settings in force, None when they cannot be told.
    ``times``: (start, stop) in seconds. ``closed``: the engine ports are, to local users.
    """

    backends: dict[str, BackendState]
    before: Settings | None = None
    times: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    closed: bool = True

    def effective(self, settings: Settings) -> Settings:
        """As the daemon would use them: no sleep while local users reach the engines' ports."""
        return granted(settings, closed=self.closed)

    def changes(self, settings: Settings) -> dict[str, Change]:
        """What these settings would do, by the same function that the daemon uses."""
        return diff.plan(self.effective(settings), self.backends)

    def why(self, name: str, change: Change, settings: Settings) -> str:
        """Which keys differ."""
        return diff.reason(name, change, self.before, self.effective(settings))

    def estimate(self, settings: Settings) -> float:
        """Seconds that a switch to these settings would take."""
        changes = {n: c for n, c in self.changes(settings).items() if c is not Change.KEEP}
        return diff.estimate(settings, self.times, changes)


def running(client: Client, settings: Settings) -> Running:
    """Ask the daemon; without one, the records in runtime_dir tell."""
    closed = guard(settings, client).closed
    try:
        status = as_row(client.get("/v1/status"))
    except Unreachable:
        return recorded(settings, closed=closed)
    backends = {}
    for row in rows(status.get("backends")):
        name = str(row.get("name"))
        backends[name] = known(
            name,
            Phase(str(row.get("phase"))),
            str(row.get("intent") or ""),
            str(row.get("reason") or ""),
        )
    times = {
        name: (_seconds(as_row(one).get("start_s")), _seconds(as_row(one).get("stop_s")))
        for name, one in as_row(status.get("times")).items()
    }
    before = _in_force(status, settings)
    return Running(backends, before and granted(before, closed=closed), times, closed)


def recorded(settings: Settings, *, closed: bool = True) -> Running:
    """By the records that both launchers keep of the running invocations."""
    return Running(dict(_records(Path(settings.arbiter.runtime_dir) / "backends")), closed=closed)


def _in_force(status: Row, settings: Settings) -> Settings | None:
    """The settings of the daemon: its copy of the accepted file, if that is the one in force."""
    try:
        found = load(Path(settings.arbiter.runtime_dir) / File.LAST_GOOD, {}).settings
    except ConfigRefused:
        return None
    mode = str(status.get("mode"))
    if found.source.sha256 != as_row(status.get("config")).get("sha256"):
        return None
    return replace(found, mode=mode) if mode in found.modes else None


def _records(folder: Path) -> Iterator[tuple[str, BackendState]]:
    for path in sorted(folder.glob("*.json")):
        try:
            intent = str(strict_json.loads(path.read_text())["intent"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        yield path.stem, known(path.stem, Phase.READY, intent)


def _seconds(value: Json) -> float | None:
    return float(value) if isinstance(value, int | float) else None
