"""Where the gateway's files and sockets are.

Under systemd every service owns its RuntimeDirectory (HAProxy and the gate run as users of their
own); under the direct launcher all of it lies in runtime_dir.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

GROUP = "gpu-arbiter-gw"


@dataclass(frozen=True, slots=True)
class Paths:
    """``files``: written by the daemon, read by HAProxy and gate. ``run``: HAProxy's own sockets.
    ``gate_run``: the gate's.
    """

    files: Path
    run: Path
    gate_run: Path

    @property
    def config(self) -> Path:
        """HAProxy's configuration."""
        return self.files / "haproxy.cfg"

    @property
    def live(self) -> Path:
        """The one map: states, limits, failover, models."""
        return self.files / "live.map"

    @property
    def lua(self) -> Path:
        """HAProxy's two actions."""
        return self.files / "arbiter.lua"

    @property
    def gate_config(self) -> Path:
        """What the load gate reads."""
        return self.files / "gate.json"

    @property
    def loads(self) -> Path:
        """Where the load gate asks the daemon."""
        return self.files / "loads.sock"

    @property
    def log(self) -> Path:
        """Where HAProxy sends its log lines (datagrams)."""
        return self.files / "log.sock"

    @property
    def runtime(self) -> Path:
        """HAProxy's Runtime API."""
        return self.run / "runtime.sock"

    @property
    def master(self) -> Path:
        """HAProxy's master CLI."""
        return self.run / "master.sock"

    @property
    def gate(self) -> Path:
        """The load gate listens here."""
        return self.gate_run / "gate.sock"

    @property
    def probe(self) -> Path:
        """HAProxy's way in for the daemon's own probes; no client reaches it."""
        return self.run / "probe.sock"

    def inner(self, backend: str) -> Path:
        """HAProxy's inner door of an LLM backend: the gate's way to the engine."""
        return self.run / f"in-{backend}.sock"


def paths(runtime_dir: str, *, systemd: bool) -> Paths:
    """The paths of this launcher."""
    base = Path(runtime_dir)
    if systemd:
        return Paths(
            base / "gateway", Path("/run/gpu-arbiter-gateway"), Path("/run/gpu-arbiter-gate")
        )
    return Paths(base / "gateway", base / "gateway", base / "gateway")
