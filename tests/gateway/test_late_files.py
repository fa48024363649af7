"""Files that change while HAProxy starts: which of them it has read is known only once it answers."""

from __future__ import annotations

import time
from pathlib import Path

from arbiterd.act.gateway.reconciler import DOORS_EVERY_S, GatewayKeeper
from arbiterd.gateway.layout import layout
from arbiterd.gateway.paths import paths
from arbiterd.gateway.runtime import GatewayGone
from tests.core.world import settings


class Services:
    """Notes what is asked for; starts nothing."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def start(self, name: str) -> None:
        """Noted."""
        self.asked.append(f"start {name}")

    def reload(self, name: str) -> None:
        """Noted."""
        self.asked.append(f"reload {name}")

    def stop(self, name: str) -> None:
        """Noted."""
        self.asked.append(f"stop {name}")

    def replace(self, name: str) -> None:
        """Noted."""
        self.asked.append(f"replace {name}")

    def words(self, name: str) -> str:
        """None."""
        return ""


def test_a_file_written_while_haproxy_starts_is_reloaded_once_it_answers(tmp_path: Path) -> None:
    """A door whose port became free in that moment stayed shut for good: HAProxy had read the file
    without it, and nobody reloaded what was not known to run.
    """
    where = paths(str(tmp_path), systemd=False)
    where.files.mkdir(parents=True)
    for name in ("live.map", "engine-keys.map"):
        (where.files / name).touch()
    services = Services()
    keeper = GatewayKeeper(where, services, lambda: None, systemd=False)
    made = settings()
    keeper._write_config(layout(made, {"vllm": "port 8000 is taken by pid 7"}))
    assert keeper._seen.refused == ""
    keeper._begin(GatewayGone("runtime.sock: Connection refused"), made)
    assert services.asked == ["start gateway"]
    whole = layout(made, {})
    keeper._write_config(whole)
    assert "frontend door-vllm" in where.config.read_text()
    assert services.asked == ["start gateway"]
    keeper._seen.pid = 7
    keeper._write_config(whole)
    keeper._write_config(whole)
    assert services.asked == ["start gateway", "reload gateway"]


def test_a_door_that_is_still_shut_is_opened_by_a_reload(tmp_path: Path) -> None:
    """HAProxy was slow to start and a second start was ordered, which read nothing: its file names a door
    that it has not opened. One reload each DOORS_EVERY_S, until it has.
    """
    where = paths(str(tmp_path), systemd=False)
    where.files.mkdir(parents=True)
    for name in ("live.map", "engine-keys.map"):
        (where.files / name).touch()
    services = Services()
    keeper = GatewayKeeper(where, services, lambda: None, systemd=False)
    whole = layout(settings(), {})
    keeper._write_config(whole)
    keeper._begin(GatewayGone("runtime.sock: Connection refused"), settings())
    services.asked.clear()
    seen = keeper._seen
    seen.pid, seen.config, seen.rendered = 7, where.config.read_text(), whole
    every = frozenset(f"door-{one.name}" for one in whole.doors)
    seen.bound = every - {"door-vllm"}
    for late_s in (0.0, 0.1, DOORS_EVERY_S + 0.2):
        assert keeper._opening(whole, time.monotonic() + late_s) == {"vllm"}
        keeper._write_config(whole)
    assert services.asked == ["reload gateway", "reload gateway"]
    seen.bound = every
    assert keeper._opening(whole, time.monotonic() + 60) == frozenset()
    keeper._write_config(whole)
    assert len(services.asked) == 2
