"""``arbiterctl check``: the file, then what this host says to it."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path

import typer

from arbiterd import procfs
from arbiterd.cli.client import Client
from arbiterd.cli.common import globals_of, inventory, polite, print_json, say_problems
from arbiterd.cli.plan_fit import fit_lines, fit_row
from arbiterd.cli.show import as_row, rows
from arbiterd.config import Loaded, check_devices, load
from arbiterd.config.fit import ModelFit, check_fit
from arbiterd.errors import EX_CONFIG, ArbiterError, ConfigRefused, Problem
from arbiterd.model.weights import Verdict
from arbiterd.sense.containers import image_problem
from arbiterd.sense.host import HostFactsSource

HOST_WAIT_S = 8.0


def check(
    context: typer.Context,
    file: Path | None = typer.Argument(None, help="another file than the one in force"),
    *,
    host: bool = typer.Option(True, help="also ask this host: GPUs, commands, ports"),
) -> None:
    """Check the configuration and this host; change nothing. Models that are on this disk are weighed
    against their caps.

    Problems go to stderr, one a line: FILE:LINE: key: what is wrong; what would be right.

    Examples: arbiterctl check · arbiterctl check ./new.toml --json
    """
    own = globals_of(context)
    path = file or own.path
    models: tuple[ModelFit, ...] = ()
    try:
        loaded = load(path, dict(os.environ))
    except ConfigRefused as refused:
        problems = refused.problems
    else:
        found, models = _host(loaded, own.client()) if host else ((), ())
        problems = (*loaded.warnings, *found)
    errors = [p for p in problems if p.severity == "error"]
    if own.json:
        answer: dict[str, object] = {"ok": not errors, "problems": [asdict(p) for p in problems]}
        if host:
            answer["models"] = [{"backend": one.backend, **fit_row(one.fit)} for one in models]
        print_json(answer)
    else:
        say_problems(problems)
        _say_models(models)
        if not errors:
            count = f", {len(problems)} warning(s)" if problems else ""
            print(f"{path}: good{count}")
    if errors:
        raise typer.Exit(EX_CONFIG)


def _say_models(models: tuple[ModelFit, ...]) -> None:
    """What cannot be told is a note, never a problem."""
    for one in models:
        if one.fit.verdict is Verdict.CANNOT_TELL:
            print(f"note: {one.backend}: {'; '.join(x.strip() for x in fit_lines(one.fit)[:2])}")


def _host(loaded: Loaded, daemon: Client) -> tuple[tuple[Problem, ...], tuple[ModelFit, ...]]:
    """What hardware, commands and ports say. Only GPUs that cannot hold the mode are errors."""
    settings = loaded.settings
    name = settings.source.path
    out: list[Problem] = []
    models: tuple[ModelFit, ...] = ()
    with polite():
        devices, why = inventory(Path(settings.arbiter.state_dir))
        if devices:
            out += check_devices(loaded, devices)
            problems, models = check_fit(loaded, devices)
            out += problems
        elif any(not share.cpu for share in settings.active.shares.values()):
            text = why
            right = "GPU backends will wait until NVML answers"
            out.append(Problem(name, 0, f"modes.{settings.mode}", text, right, "warning"))
        out += _facts(loaded, daemon)
    return tuple(out), models


def _own_ports(daemon: Client) -> frozenset[str]:
    """Backends that run under a daemon that answers: their ports are their own. Without root nobody
    can see which process listens; the daemon tells a taken port itself.
    """
    if os.geteuid() == 0:
        return frozenset()
    try:
        status = as_row(daemon.get("/v1/status"))
    except ArbiterError:
        return frozenset()
    return frozenset(str(row["name"]) for row in rows(status.get("backends")) if row.get("pids"))


def _facts(loaded: Loaded, daemon: Client) -> list[Problem]:
    settings = loaded.settings
    source = HostFactsSource(_ours)
    try:
        source.refresh(settings)
        deadline = time.monotonic() + HOST_WAIT_S
        while not source.fresh and time.monotonic() < deadline:
            time.sleep(0.02)
        facts = source.latest()
    finally:
        source.close()
    out = []
    for name, client in facts.containers.items():
        text = image_problem(client, settings.active.backends[name].image)
        if text:
            key = f"backends.{name}.image"
            out.append(Problem(settings.source.path, 0, key, text, "", "warning"))
    for backend, text in facts.missing_commands.items():
        key = f"backends.{backend}.{'image' if settings.active.backends[backend].image else 'command'}"
        out.append(Problem(settings.source.path, 0, key, text, "", "warning"))
    own = _own_ports(daemon) if facts.taken_ports else frozenset()
    for backend, text in facts.taken_ports.items():
        if backend in own:
            continue
        key = f"backends.{backend}.port"
        out.append(Problem(settings.source.path, 0, key, text, "", "warning"))
    return out


def _ours(pid: int) -> tuple[str, str] | None:
    """An engine of ours that runs already: by its unit, or by the direct launcher's tag."""
    unit = procfs.unit_of(pid)
    tag = procfs.environ(pid).get("GPU_ARBITER_BACKEND", "")
    return (tag, unit) if tag or unit.startswith("gpu-arbiter-backend-") else None
