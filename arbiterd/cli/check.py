"""``arbiterctl check``: the file, then what this host says to it."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import typer

from arbiterd.cli.check_keys import check_keys
from arbiterd.cli.client import Client
from arbiterd.cli.common import globals_of, inventory, polite, print_json, say_problems
from arbiterd.cli.plan_fit import fit_lines, fit_row
from arbiterd.cli.ports import guard
from arbiterd.cli.ports import mend as mend_ports
from arbiterd.cli.screen import know
from arbiterd.cli.show import as_row, rows
from arbiterd.config import Loaded, check_devices, load
from arbiterd.config.parse import Report
from arbiterd.core.backend.planning import engine_grpc_port, engine_port
from arbiterd.daemon.engine_ports import sleepers, sleepless
from arbiterd.engines.batching import memory
from arbiterd.errors import EX_CONFIG, ArbiterError, ConfigRefused, Flaw, Problem
from arbiterd.fit.check import ModelFit, check_fit
from arbiterd.fit.types import Verdict
from arbiterd.gateway.layout import owners
from arbiterd.linux import procfs
from arbiterd.linux.container_ids import any_alive
from arbiterd.linux.init_system import use_systemd
from arbiterd.linux.sandbox_host import shut_amd
from arbiterd.model.settings import Settings
from arbiterd.sense.containers import client_of, image_problem, proxied_port
from arbiterd.sense.host import missing
from arbiterd.survey.listeners import look, mend, who
from arbiterd.survey.writers import writable


def check(
    context: typer.Context,
    file: Path | None = typer.Argument(None, help="another file than the one in force"),
    *,
    host: bool = typer.Option(True, help="also ask this host: GPUs, commands, ports"),
) -> None:
    """Check the configuration and this host; change nothing.

    Models that are on this disk are weighed against their caps. Problems go to stderr, one a
    line: FILE:LINE: key: what is wrong; what would be right.

    Examples: arbiterctl check · arbiterctl check ./new.toml --json
    """
    own = globals_of(context)
    path = file or own.path
    know(path)
    models: tuple[ModelFit, ...] = ()
    loaded: Loaded | None = None
    try:
        loaded = load(path, dict(os.environ))
    except ConfigRefused as refused:
        problems = (*refused.problems, *refused.warnings)
        if host and isinstance(refused.partial, Loaded):  # all problems at once, the GPUs' too
            problems = (*problems, *_host(refused.partial, own.client())[0])
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
        if loaded is not None:
            _say_batching(loaded.settings)
            _say_replicas(loaded.settings)
        if not errors:
            count = f", {len(problems)} warning(s)" if problems else ""
            print(f"{path}: good{count}")
    if errors:
        raise SystemExit(EX_CONFIG)


def _say_models(models: tuple[ModelFit, ...]) -> None:
    """What cannot be told is a note, never a problem."""
    for one in models:
        if one.fit.verdict is Verdict.CANNOT_TELL:
            print(f"note: {one.backend}: {'; '.join(x.strip() for x in fit_lines(one.fit)[:2])}")


def _say_batching(settings: Settings) -> None:
    """What TensorFlow Serving's batching parameters mean for memory."""
    for name, one in settings.active.backends.items():
        if one.tensorflow.batching is not None:
            print(f"note: {name}: batching: {memory(one.tensorflow.batching)}")


def _say_replicas(settings: Settings) -> None:
    """Models that several backends serve, and how one of them is chosen."""
    for model, names in owners(settings).items():
        if len(names) > 1:
            several = " and ".join((", ".join(names[:-1]), names[-1]))
            port = settings.gateway.llm_port
            print(
                f"note: {model} is served by {several}: port {port} takes the one with the most free slots"
            )


def _host(loaded: Loaded, daemon: Client) -> tuple[tuple[Problem, ...], tuple[ModelFit, ...]]:
    """What hardware, commands and ports say. Only GPUs that cannot hold the mode are errors."""
    settings = loaded.settings
    report = replace(loaded.report, problems=[])
    out: list[Problem] = []
    models: tuple[ModelFit, ...] = ()
    if settings.mode not in settings.modes:
        return (), ()  # nobody knows what shall run
    with polite():
        devices, why = inventory(Path(settings.arbiter.state_dir))
        if devices:
            out += check_devices(loaded, devices)
            if not loaded.report.errors:
                problems, models = check_fit(loaded, devices)
                out += problems
        elif any(not share.cpu for share in settings.active.shares.values()):
            right = "GPU backends will wait until NVML answers"
            report.add(("modes", settings.mode), why, right, "warning")
        _facts(loaded, daemon, report)
    return (*out, *report.warnings), models


def _facts(loaded: Loaded, daemon: Client, report: Report) -> None:
    """Images, commands and ports, each at the line of its key."""
    settings = loaded.settings
    backends = settings.active.backends
    clients = {name: client_of(one) for name, one in backends.items() if one.image}
    for name, client in clients.items():
        unloaded = image_problem(client.client, backends[name].image) if client.client else None
        if unloaded:
            _warn(report, settings.mode, name, "image", unloaded)
    for name, flaw in missing(settings, clients).items():
        _warn(report, settings.mode, name, "image" if backends[name].image else "command", flaw)
    for found in writable(loaded.text, settings, direct=not use_systemd(settings)):
        key = found.watched.key
        if not report.broken(*key):
            report.add(key, found.words, found.mend, "warning")
    for name, backend in backends.items():
        shut = None if backend.image else shut_amd(backend.sandbox)
        if shut:
            _warn(report, settings.mode, name, "sandbox", shut)
    _ports(settings, daemon, report)
    check_keys(settings, partial(_warn, report, settings.mode))
    _guard(settings, daemon, report)


def _guard(settings: Settings, daemon: Client, report: Report) -> None:
    """Engine ports that local users can open, and the sleep that is therefore not used."""
    if settings.arbiter.local_users == "trusted":
        return
    seen = guard(settings, daemon)
    if seen.closed:
        return
    command = mend_ports(settings)
    if command:  # else nothing on this host would close them: the launcher says so at its start
        wrong = f"every local user can open the engines' own ports: {seen.problem}"
        report.add(("arbiter", "local_users"), wrong, command, "warning")
    for name in sleepers(settings):
        report.add(("backends", name, "sleep"), *sleepless(seen.problem), "warning")


def _warn(report: Report, mode: str, backend: str, key: str, flaw: Flaw) -> None:
    """At the mode's own value, else at the backend's."""
    at = ("modes", mode, backend, key)
    path = at if report.lines.has(at) else ("backends", backend, key)
    if not report.broken(*at):
        report.add(path, *flaw, "warning")


def _own_ports(daemon: Client) -> frozenset[str]:
    """What listens under a daemon that answers: its doors, and its backends that run. Without root
    nobody can see which process listens; the daemon tells a taken port itself.
    """
    if os.geteuid() == 0:
        return frozenset()
    try:
        status = as_row(daemon.get("/v1/status"))
    except ArbiterError:
        return frozenset()
    running = (str(row["name"]) for row in rows(status.get("backends")) if row.get("pids"))
    return frozenset({"arbiter", "gateway", *running})


def _ports(settings: Settings, daemon: Client, report: Report) -> None:
    """Every port of the active mode that somebody else listens on, and the command that frees it."""
    keys: dict[int, tuple[str, str]] = {settings.arbiter.listen_port: ("arbiter", "listen")}
    if settings.gateway.enabled and settings.gateway.llm_port:
        keys[settings.gateway.llm_port] = ("gateway", "llm_port")
    for name, one in settings.active.backends.items():
        for key, port in (
            ("port", one.port),
            ("grpc_port", one.grpc_port),
            ("engine_port", engine_port(settings, one)),
            ("grpc_port", engine_grpc_port(settings, one)),
        ):
            keys.setdefault(port, (name, key))
    keys.pop(0, None)
    folder = Path(settings.arbiter.runtime_dir) / "backends"
    heard = look(keys, settings.arbiter.runtime_dir)
    own = _own_ports(daemon) if heard else frozenset()
    for found in heard:
        table, key = keys[found.port]
        if table in own and not found.pid:
            continue
        if found.ours or (found.pid and _ours(found.pid)):
            continue
        if found.pid and proxied_port(found.pid) == found.port and any_alive(folder, table):
            continue  # docker's forwarder of our own container
        wrong = f"port {found.port} is taken by {who(found)}"
        right = f"{mend(found)}, or write another {key}"
        if table in ("arbiter", "gateway"):
            report.add((table, key), wrong, right, "warning")
        else:
            _warn(report, settings.mode, table, key, Flaw(wrong, right))


def _ours(pid: int) -> tuple[str, str] | None:
    """An engine of ours that runs already: by its unit, or by the direct launcher's tag."""
    unit = procfs.unit_of(pid)
    tag = procfs.environ(pid).get("GPU_ARBITER_BACKEND", "")
    return (tag, unit) if tag or unit.startswith("gpu-arbiter-backend-") else None
