"""``arbiterctl plan``: what a start or a switch would do, with the arithmetic."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import typer
from rich.console import Console
from rich.markup import escape

from arbiterd.act.launch.containers import completed
from arbiterd.cli.common import console, globals_of, inventory, polite, print_json
from arbiterd.cli.plan_caps import applied, how_lowered, lowered
from arbiterd.cli.plan_fit import fit_lines, fit_row, slice_lines, slice_rows, wall_rows
from arbiterd.cli.plan_sandbox import sandbox_line, sandbox_rows
from arbiterd.cli.running import recorded, running
from arbiterd.config import load
from arbiterd.core.backend import nodes
from arbiterd.core.backend.planning import launch_context, launch_spec
from arbiterd.core.memory.placement import headroom_bytes, place, sharing
from arbiterd.engines import engine_of
from arbiterd.engines.flags import SECRET, shown
from arbiterd.errors import EX_CONFIG, ArbiterError
from arbiterd.fit.check import mode_fits
from arbiterd.fit.types import Fit
from arbiterd.fit.verdict import walls
from arbiterd.linux.init_system import use_systemd
from arbiterd.model.backend import Placement
from arbiterd.model.devices import Device
from arbiterd.model.pressure import LearnedCap
from arbiterd.model.settings import Settings
from arbiterd.model.switch import Change
from arbiterd.quantities import format_size
from arbiterd.sense.containers import client_of
from arbiterd.sense.versions import version_of
from arbiterd.store.learned_caps import LearnedStore


def plan(
    context: typer.Context,
    mode: str = typer.Option("", "--mode", help="another mode than the one in force"),
) -> None:
    """Show what a start or a switch would do, with the arithmetic.

    Caps, argv, environment, keep or restart; whether the models fit; which wall holds each cap.

    Examples: arbiterctl plan · arbiterctl plan --mode B --json
    """
    own = globals_of(context)
    with polite():
        settings = load(own.path, dict(os.environ)).settings
        if mode:
            if mode not in settings.modes:
                names = ", ".join(settings.modes)
                msg = f"there is no mode {mode!r}; {own.path} has {names}"
                raise ArbiterError(msg)
            settings = replace(settings, mode=mode)
        devices, why = inventory(Path(settings.arbiter.state_dir))
        learned, unread = LearnedStore(Path(settings.arbiter.state_dir)).look()
        found = running(own.client(), settings)
        settings = found.effective(settings)
        changes = found.changes(settings)
        rows, fits = plan_rows(settings, devices, learned, changes)
        models = model_fits(settings, devices)
        for row in rows:
            name = str(row["name"])
            row["why"] = found.why(name, changes[name], settings)
        stops = [name for name, change in changes.items() if change is Change.STOP]
        for row in rows:
            row["models"] = [fit_row(fit) for fit in models.get(str(row["name"]), [])]
        placements = place(settings.active, devices, settings.arbiter.headroom_bytes)
    if unread:
        print(f"warning: {unread}; configured caps are shown", file=sys.stderr)
    if own.json:
        print_json(
            {
                "mode": settings.mode,
                "nvml": why,
                "gpus": [_gpu_row(settings, device, rows) for device in devices],
                "mig_slices": slice_rows(devices, placements),
                "backends": rows,
                "stops": stops,
                "estimated_s": round(found.estimate(settings), 1),
                "fits": fits,
            }
        )
    else:
        print_plan(console(), settings, devices, why, rows, models)
        for name in stops:
            console().print(
                f"\n[bold]{escape(name)}[/bold]: stop; {found.why(name, Change.STOP, settings)}"
            )
    if not fits:
        raise SystemExit(EX_CONFIG)


def model_fits(settings: Settings, devices: tuple[Device, ...]) -> dict[str, list[Fit]]:
    """Whether the models of each backend fit, by backend."""
    models: dict[str, list[Fit]] = {}
    for one in mode_fits(settings, devices):
        models.setdefault(one.backend, []).append(one.fit)
    return models


def plan_rows(
    settings: Settings,
    devices: tuple[Device, ...],
    learned: Mapping[str, LearnedCap] = MappingProxyType({}),
    changes: Mapping[str, Change] | None = None,
) -> tuple[list[dict[str, object]], bool]:
    """One row per backend of the active mode, and whether all of it fits. ``changes``: by backend; by
    the records of the running invocations when not given.
    """
    if changes is None:
        changes = recorded(settings).changes(settings)
    configured = place(settings.active, devices, settings.arbiter.headroom_bytes)
    versions = {
        n: b.version or version_of(b, units=use_systemd(settings))
        for n, b in settings.active.backends.items()
    }
    placements = applied(settings, configured, versions, learned)
    by_uuid = {device.uuid: device for device in devices}
    rows = [
        _row(settings, name, placements, by_uuid, versions[name], changes[name].value)
        | lowered(settings, configured[name], placements[name], versions, learned)
        for name in settings.active.shares
    ]
    booked = {
        uuid: sum(p.cap_bytes for p in placements.values() if uuid in p.devices) for uuid in by_uuid
    }
    over = any(
        booked[uuid] + headroom_bytes(settings.arbiter.headroom_bytes, device)
        > device.capacity_bytes
        for uuid, device in by_uuid.items()
    )
    fits = not over and all(not p.problem for p in placements.values())
    return rows, fits


def _row(
    settings: Settings,
    name: str,
    placements: dict[str, Placement],
    devices: dict[str, Device],
    version: str,
    change: str,
) -> dict[str, object]:
    backend = settings.active.backends[name]
    placement = placements[name]
    row: dict[str, object] = {
        "name": name,
        "kind": backend.kind.value,
        "gpu": list(placement.devices),
        "cap_bytes": placement.cap_bytes,
        "problem": placement.problem,
    }
    if placement.problem:
        return {**row, "change": change}
    client = client_of(backend).client if backend.image else ""
    found = launch_context(settings, name, placements, devices, version=version, client=client)
    spec = launch_spec(found)
    refused = nodes.refusal(backend, spec, ())
    if refused:
        return {**row, "problem": refused, "change": change}
    if spec.container is not None:
        spec = completed(spec, systemd=use_systemd(settings), secrets=())
    return {
        **row,
        "version": version,
        "argv": shown(spec.argv),
        "env": {
            name: "..." if SECRET.search(name) else text
            for name, text in {**spec.base, **spec.env}.items()
        },
        "files": {one.name: one.content for one in spec.files},
        "walls": wall_rows(walls(found)),
        "sandbox": sandbox_rows(settings, spec),
        "knobs": [list(pair) for pair in engine_of(backend.kind).knobs(found)],
        "change": change,
    }


def _gpu_row(
    settings: Settings, device: Device, rows: list[dict[str, object]]
) -> dict[str, object]:
    caps = {
        str(row["name"]): row["cap_bytes"]
        for row in rows
        if isinstance(row["gpu"], list) and device.uuid in row["gpu"]
    }
    return {
        "uuid": device.uuid,
        "index": device.index,
        "name": device.name,
        "capacity_bytes": device.capacity_bytes,
        "headroom_bytes": headroom_bytes(settings.arbiter.headroom_bytes, device),
        "caps": caps,
    }


def print_plan(
    out: Console,
    settings: Settings,
    devices: tuple[Device, ...],
    why: str,
    rows: list[dict[str, object]],
    models: dict[str, list[Fit]],
) -> None:
    """The plan for people."""
    placements = place(settings.active, devices, settings.arbiter.headroom_bytes)
    how = sharing(settings.active, placements)
    out.print(f"[bold]mode {escape(settings.mode)}[/bold] ({how})")
    if why:
        out.print(f"[yellow]{escape(why)}[/yellow]")
    for device in devices:
        if device.mig_enabled:
            continue
        row = _gpu_row(settings, device, rows)
        caps = row["caps"]
        pairs = caps.items() if isinstance(caps, dict) else ()
        parts = [f"{name} {format_size(int(cap))}" for name, cap in pairs]
        head = headroom_bytes(settings.arbiter.headroom_bytes, device)
        booked = sum(int(cap) for _, cap in pairs) + head
        left = device.capacity_bytes - booked
        sign = "fits" if left >= 0 else "[red]does not fit[/red]"
        sums = " + ".join([*parts, f"headroom {format_size(head)}"])
        out.print(
            f"GPU {device.index} {escape(device.name)}: {sums} = {format_size(booked)} of "
            f"{format_size(device.capacity_bytes)}: {sign}, {format_size(left)} left"
        )
    for line in slice_lines(devices, placements):
        out.print(escape(line))
    for row in rows:
        out.print(
            f"\n[bold]{escape(str(row['name']))}[/bold] ({row['kind']}): {row['change']}"
            + (
                f" ({escape(str(row['why']))})"
                if row["change"] == "restart" and "why" in row
                else ""
            )
        )
        if row["problem"]:
            out.print(f"  [red]{escape(str(row['problem']))}[/red]")
            continue
        _print_backend(out, settings, row, models.get(str(row["name"]), []))


def _print_backend(
    out: Console, settings: Settings, row: dict[str, object], models: list[Fit]
) -> None:
    """Cap, walls, knobs, models, command line."""
    gpus = ", ".join(str(one) for one in row["gpu"]) if isinstance(row["gpu"], list) else ""
    cap = row["cap_bytes"]
    cap_text = format_size(cap if isinstance(cap, int) else 0)
    out.print(
        f"  on {gpus or 'cpu'}, cap {cap_text}{escape(how_lowered(settings, row))}", soft_wrap=True
    )
    walls_, knobs, argv, env = row["walls"], row["knobs"], row["argv"], row["env"]
    for wall in walls_ if isinstance(walls_, list) else ():
        out.print(f"  wall: {escape(wall['text'])}", soft_wrap=True)
    for knob in knobs if isinstance(knobs, list) else ():
        out.print(f"  {escape(knob[0])} {escape(knob[1])}")
    for line in (line for fit in models for line in fit_lines(fit)):
        out.print(f"  {escape(line)}", soft_wrap=True)
    out.print(f"  sandbox: {escape(sandbox_line(row['sandbox']))}", soft_wrap=True)
    if isinstance(argv, list):
        out.print(f"  $ {escape(' '.join(argv))}", soft_wrap=True)
    if isinstance(env, dict):
        pairs_text = " ".join(f"{key}={value}" for key, value in env.items())
        out.print(f"  env {escape(pairs_text)}", soft_wrap=True)
