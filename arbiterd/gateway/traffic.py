"""HAProxy's counters as evidence. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from arbiterd.gateway import rules, runtime
from arbiterd.gateway.layout import Layout
from arbiterd.gateway.slot_split import Line, split
from arbiterd.model.gateway import Admit, GatewayWish, Traffic


def line_of(row: runtime.Row | None, whole: runtime.Row | None, old: int) -> Line:
    """A server line as the arithmetic of slots takes it."""
    if row is None:
        return Line(0, 0, 0, old)
    queued = row.number("qcur") + (whole.number("qcur") if whole else 0)
    return Line(row.number("scur"), queued, row.number("slim"), old)


def traffic_of(
    name: str,
    rows: Mapping[str, runtime.Row],
    old: Mapping[str, int],
    limits: Mapping[str, str],
) -> Traffic:
    """All lines of one backend together, streams of old workers included."""
    mine = [
        r
        for grpc in (False, True)
        if (r := rows.get(f"{rules.backend_of(name, grpc=grpc)}/engine"))
    ]
    whole = [
        r
        for grpc in (False, True)
        if (r := rows.get(f"{rules.backend_of(name, grpc=grpc)}/BACKEND"))
    ]
    streams = sum(old.get(f"{r.proxy}/engine", 0) for r in mine)
    return Traffic(
        in_flight=sum(r.number("scur") for r in mine) + streams,
        queued=sum(r.number("qcur") for r in (*mine, *whole)),
        limit=sum(int(limits.get(f"lim:{r.proxy}", "0")) for r in mine) + streams,
        requests=sum(r.number("stot") for r in mine),
        responses={digit: sum(r.number(f"hrsp_{digit}xx") for r in mine) for digit in "2345"},
        bytes_out=sum(r.number("bout") for r in mine),
        connect_errors=sum(r.number("econ") + r.number("eresp") for r in mine),
        latency_ms=float(max((r.number("ttime") for r in mine), default=0)),
        engine_up=any(r.values.get("status", "").startswith("UP") for r in mine),
        engine_down=any(r.values.get("status", "").startswith("DOWN") for r in mine),
    )


def states(wish: GatewayWish, made: Layout, changed: Mapping[str, str]) -> list[str]:
    """maint or ready for every backend whose state has just changed: shed and maint in one step."""
    out = []
    for one in made.backends:
        state = changed.get(f"st:{one.name}")
        if state is None:
            continue
        down = wish.backends[one.name].admit in (Admit.HOLD, Admit.SHED)
        for grpc in (False, True) if one.grpc_port else (False,):
            name = rules.engine(one, grpc=grpc)
            out.append(f"set server {name} state {'maint' if down else 'ready'}")
    return out


def wanted_limits(
    wish: GatewayWish,
    made: Layout,
    rows: Mapping[str, runtime.Row],
    old: Mapping[str, int],
) -> tuple[list[str], dict[str, str]]:
    """Commands that bring maxconn and maint to what they should be; the map's lim: entries."""
    lower: list[str] = []
    higher: list[str] = []
    limits: dict[str, str] = {}
    for one in made.backends:
        wanted = wish.backends.get(one.name)
        if wanted is None:
            continue
        names = [rules.engine(one)] + ([rules.engine(one, grpc=True)] if one.grpc_port else [])
        lines = {
            n: line_of(rows.get(n), rows.get(f"{n.split('/')[0]}/BACKEND"), old.get(n, 0))
            for n in names
        }
        for name, limit in split(wanted.max_in_flight, lines).items():
            row = rows.get(name)
            if row is None:
                continue
            limits[f"lim:{name.split('/')[0]}"] = str(limit)
            down = limit == 0 or wanted.admit in (Admit.HOLD, Admit.SHED)
            if down != (row.values.get("status", "").startswith("MAINT")):
                state = "maint" if down else "ready"
                (lower if down else higher).append(f"set server {name} state {state}")
            if limit and limit != lines[name].limit:
                some = lower if limit < lines[name].limit else higher
                some.append(f"set maxconn server {name} {limit}")
    return [*lower, *higher], limits
