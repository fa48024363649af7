"""Rules that need more than one key: commands, ports, failover, degrade."""

from __future__ import annotations

import re
from collections.abc import Mapping

from arbiterd.config.containers import check_container
from arbiterd.config.parse import KeyPath, Report
from arbiterd.config.schema import FileSettings
from arbiterd.engines import engine_of
from arbiterd.engines.vllm import model_of
from arbiterd.model.settings import BackendSettings, Kind, Mode

POLL_MIN_S, POLL_MAX_S = 0.05, 5.0
_PATH = re.compile(r"/[A-Za-z0-9._~/-]*")
SOCKET_MAX = 107  # sun_path of unix(7), without its final zero


def check_file(settings: FileSettings, report: Report) -> None:
    """The tables that are not backends."""
    poll = settings.arbiter.poll
    if not POLL_MIN_S <= poll <= POLL_MAX_S:
        report.add(("arbiter", "poll"), f"{poll:g} s is out of range", "write 50ms to 5s")
    long = len(f"{settings.arbiter.runtime_dir}/gateway/runtime.sock".encode())
    if long > SOCKET_MAX:
        report.add(
            ("arbiter", "runtime_dir"),
            f"is too long: its socket's path would have {long} bytes",
            f"a unix socket's path has at most {SOCKET_MAX}",
        )
    if settings.mode not in settings.modes:
        names = tuple(settings.modes)
        report.nearest(("mode",), settings.mode, names, "mode")


def check_backend(backend: BackendSettings, at: KeyPath, report: Report) -> None:
    """One backend alone."""
    check_container(backend, at, report)
    if not backend.command and not (backend.image and backend.kind is Kind.GENERIC):
        report.add(at, "has no command", 'write command = ["PROGRAM", "ARGUMENT", ...]')
    else:
        for found in engine_of(backend.kind).check_command(backend):
            report.add((*at, "command"), found.wrong, found.right)
    if backend.kind is Kind.GENERIC:
        if not backend.health.startswith("/"):
            report.add((*at, "health"), "a generic backend needs one", 'write health = "/path"')
        if not backend.port:
            report.add((*at, "port"), "a generic backend needs one", "write port = 9000")
    for path in backend.allow_admin_paths:
        if not _PATH.fullmatch(path):
            wrong = f"{path!r} is no path of a route"
            report.add((*at, "allow_admin_paths"), wrong, 'write exact paths, like "/metrics"')
    if backend.grpc_port and backend.max_in_flight < 2:
        report.add(
            (*at, "max_in_flight"),
            "REST and gRPC share it, and 1 leaves a door without any",
            "write 2 or more",
        )
    if backend.restart_delay_max_s < backend.restart_delay_s:
        report.add(
            (*at, "restart_delay_max"),
            f"{backend.restart_delay_max_s:g} s is less than restart_delay",
            f"write at least {backend.restart_delay_s:g}s",
        )


def check_ports(settings: FileSettings, mode: Mode, report: Report) -> None:
    """No port twice among what listens at the same time: this mode's backends and ourselves."""
    taken: dict[int, str] = {int(settings.arbiter.listen.rpartition(":")[2]): "arbiter.listen"}
    if settings.gateway.enabled and settings.gateway.llm_port:
        taken.setdefault(settings.gateway.llm_port, "gateway.llm_port")
    for name, backend in mode.backends.items():
        ports = {"port": backend.port, "grpc_port": backend.grpc_port}
        if settings.gateway.enabled:
            ports |= {"engine_port": backend.engine_port}
        for key, port in ports.items():
            if not port:
                continue
            here = f"backends.{name}.{key}"
            other = taken.setdefault(port, here)
            if other != here:
                report.add(
                    ("backends", name, key),
                    f"port {port} is used by {other} too",
                    "give one of them another port",
                )


def check_failover(
    settings: FileSettings, backends: Mapping[str, BackendSettings], report: Report
) -> None:
    """Every failover and degrade rule names backends that are there and models they have."""
    names = tuple(backends)
    for index, rule in enumerate(settings.failover):
        at = ("failover", str(index))
        for key, name in (("from", rule.from_), ("to", rule.to)):
            if name not in backends:
                report.nearest((*at, key), name, names, "backend")
        if rule.from_ == rule.to:
            report.add((*at, "to"), f"{rule.to} cannot stand in for itself", "name another backend")
        target = backends.get(rule.to)
        if target is not None and target.kind is Kind.OLLAMA and not rule.source:
            report.add((*at, "source"), "is missing", 'write Ollama\'s own name, like "qwen2.5:3b"')
        source = backends.get(rule.from_)
        served = model_of(source.command) if source and source.kind is Kind.VLLM else ""
        if served and served != rule.model:
            report.add(
                (*at, "model"), f"{rule.from_} serves {served!r}", f'write model = "{served}"'
            )
    for index, degrade in enumerate(settings.degrade):
        at = ("degrade", str(index))
        if degrade.from_ not in backends:
            report.nearest((*at, "from"), degrade.from_, names, "backend")
        for name in degrade.to:
            if name not in backends:
                report.nearest((*at, "to"), name, names, "backend")
