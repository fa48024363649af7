"""HAProxy's lines for the daemon's second probe: a client's way to each engine, past slots, queues and
states. It comes in by a socket of its own, so that no client can ask for it: the public doors take
every x-arbiter- header away from bodies that the gate sees. Pure text.
"""

from __future__ import annotations

from arbiterd.gateway import routes
from arbiterd.gateway.layout import Behind, Layout
from arbiterd.gateway.paths import GROUP, Paths

HEADER = "x-arbiter-probe"  # names the backend; sense/health.py sends it


def backend_of(name: str) -> str:
    """Name of HAProxy's backend for probes."""
    return f"probe-{name}"


def pass_by(one: Behind) -> list[str]:
    """At an inner door: the gate's probe waits for nothing and is not counted. A ``why`` that is set
    already ends the door's own questions (rules.admit).
    """
    marked = f"{{ req.hdr({HEADER}) -m found }}"
    return [
        f"http-request set-var(txn.why) str(probe) if {marked}",
        f"http-request set-log-level silent if {marked}",
        f"use_backend {backend_of(one.name)} if {{ var(txn.why) -m str probe }}",
    ]


def render(layout: Layout, paths: Paths, *, systemd: bool) -> str:
    """The frontend, and one backend for each engine."""
    group = f" group {GROUP}" if systemd else ""
    uses = [
        f"    use_backend {'gate' if one.gated else backend_of(one.name)}"
        f" if {{ req.hdr({HEADER}) -m str {one.name} }}"
        for one in layout.backends
    ]
    front = [
        "frontend probe",
        f"    bind unix@{paths.probe} mode 660{group}",
        "    http-request set-log-level silent",
        *uses,
    ]
    return "\n".join([*front, "", *(_backend(one) for one in layout.backends)])


def _backend(one: Behind) -> str:
    lines = [
        f"backend {backend_of(one.name)}",
        "    retries 0",
        "    timeout server 10s",
        "    http-request del-header x-arbiter- -m beg",
        *(f"    {line}" for line in routes.own_host(one)),
        f"    server probe 127.0.0.1:{one.port}",
    ]
    return "\n".join(lines) + "\n"
