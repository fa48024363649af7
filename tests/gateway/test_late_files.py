"""Files that change while HAProxy starts: which of them it has read is known only once it answers."""

from __future__ import annotations

from pathlib import Path

from arbiterd.act.gateway import GatewayKeeper
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
