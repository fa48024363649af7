"""Rules that need more than one key: commands, ports, failover, degrade."""

from __future__ import annotations

import re
from collections.abc import Mapping

from arbiterd.config.canary import check_canary
from arbiterd.config.containers import check_container
from arbiterd.config.doors import check_doors, check_token
from arbiterd.config.environment import check_environment
from arbiterd.config.parse import KeyPath, Report
from arbiterd.config.sandbox import check_launcher, check_sandbox
from arbiterd.config.schema import FileSettings
from arbiterd.config.vllm_config import check_config
from arbiterd.engines import engine_of
from arbiterd.engines.vllm_rules import served
from arbiterd.model.settings import BackendSettings, Failover, Kind, Mode

POLL_MIN_S, POLL_MAX_S = 0.05, 5.0
_PATH = re.compile(r"(?!.*(\.\.|//))/[A-Za-z0-9._~/:-]*\*?")
SOCKET_MAX = 107  # sun_path of unix(7), without its final zero


def check_file(settings: FileSettings, report: Report) -> None:
    """The tables that are not backends."""
    poll = settings.arbiter.poll_s
    if not POLL_MIN_S <= poll <= POLL_MAX_S:
        report.add(("arbiter", "poll"), f"{poll:g} s is out of range", "write 50ms to 5s")
    long = len(f"{settings.arbiter.runtime_dir}/gateway/runtime.sock".encode())
    if long > SOCKET_MAX:
        report.add(
            ("arbiter", "runtime_dir"),
            f"is too long: its socket's path would have {long} bytes",
            f"a unix socket's path has at most {SOCKET_MAX}",
        )
    if settings.modes and settings.mode not in settings.modes and not report.broken("mode"):
        report.nearest(("mode",), settings.mode, tuple(settings.modes), "mode")
    check_doors(settings, report)
    check_launcher(settings, report)
    check_token(settings, report)


def check_backend(backend: BackendSettings, at: KeyPath, report: Report) -> None:
    """One backend alone."""
    check_container(backend, at, report)
    check_environment(backend, at, report)
    check_canary(backend, at, report)
    check_sandbox(backend, at, report)
    _check_command(backend, at, report)
    if backend.kind is Kind.GENERIC:
        if not backend.health.startswith("/"):
            _add(report, at, ("health",), "a generic backend needs one", 'write health = "/path"')
        if not backend.port:
            _add(report, at, ("port",), "a generic backend needs one", "write port = 9000")
    for path in backend.allow_admin_paths:
        if not _PATH.fullmatch(path):
            wrong = f"{path!r} is no path of a route"
            right = 'write a path, like "/metrics", or its beginning, like "/v1/responses/*"'
            _add(report, at, ("allow_admin_paths",), wrong, right)
    if backend.grpc_port and backend.max_in_flight < 2:
        wrong = "REST and gRPC share it, and 1 leaves a door without any"
        _add(report, at, ("max_in_flight", "grpc_port"), wrong, "write 2 or more")
    if backend.restart_delay_max_s < backend.restart_delay_s:
        wrong = f"{backend.restart_delay_max_s:g} s is less than restart_delay"
        right = f"write at least {backend.restart_delay_s:g}s"
        _add(report, at, ("restart_delay_max", "restart_delay"), wrong, right)


def _check_command(backend: BackendSettings, at: KeyPath, report: Report) -> None:
    if any(report.broken(*at, key) for key in ("command", "image")):
        return
    if not backend.command and not (backend.image and backend.kind is Kind.GENERIC):
        if not report.broken(*at, "models"):
            report.add(at, "has no command", 'write command = ["PROGRAM", "ARGUMENT", ...]')
        return
    unread = check_config(backend, at, report)
    for found in engine_of(backend.kind).check_command(backend):
        if unread and not found.corrected and "names no model" in found.wrong:
            continue
        report.add((*at, "command"), found.wrong, found.right, found.severity)


def _add(report: Report, at: KeyPath, keys: tuple[str, ...], wrong: str, right: str) -> None:
    """A problem of the first of these keys, unless one of them cannot be read."""
    if not any(report.broken(*at, key) for key in keys):
        report.add((*at, keys[0]), wrong, right)


def check_ports(settings: FileSettings, mode: Mode, report: Report) -> None:
    """No port twice among what listens at the same time: this mode's backends and ourselves."""
    taken: dict[int, tuple[str, int]] = {}
    if not report.broken("arbiter", "listen"):
        taken[settings.arbiter.listen_port] = ("arbiter.listen", 0)
    if settings.gateway.enabled and settings.gateway.llm_port:
        taken.setdefault(settings.gateway.llm_port, ("gateway.llm_port", 0))
    for name, backend in mode.backends.items():
        at = ("modes", mode.name, name)
        ports = [("port", backend.port, 0), ("grpc_port", backend.grpc_port, 0)]
        if settings.gateway.enabled:
            ports.append(("engine_port", backend.engine_port, backend.port))
            ports.append(("grpc_port", backend.engine_grpc_port, backend.grpc_port))
        for key, port, public in ports:
            if not port or report.broken(*at, key) or report.broken(*at, "port"):
                continue
            here = f"backends.{name}.{key}"
            other, twin = taken.setdefault(port, (here, public))
            if other == here or (public and public == twin):
                continue  # two engine ports meet because their public ports do: told already
            entry = settings.modes[mode.name].get(name)
            own = isinstance(entry, Mapping) and key in entry
            report.add(
                (*at, key) if own else ("backends", name, key),
                f"port {port} is used by {other} too",
                "give one of them another port",
            )


def check_failover(
    settings: FileSettings,
    backends: Mapping[str, BackendSettings],
    names: tuple[str, ...],
    report: Report,
) -> None:
    """Every failover and degrade rule names backends that are there and models they have. ``names``:
    all that the file names, those that cannot be read included.
    """
    for index, rule in enumerate(settings.failover):
        _check_rule(rule, ("failover", str(index)), backends, names, report)
    for index, degrade in enumerate(settings.degrade):
        at = ("degrade", str(index))
        if report.lost("backends"):
            continue
        if degrade.from_backend not in names and not report.broken(*at, "from"):
            report.nearest((*at, "from"), degrade.from_backend, names, "backend")
        for name in degrade.to_backends if not report.broken(*at, "to") else ():
            if name not in names:
                report.nearest((*at, "to"), name, names, "backend")


def _check_rule(
    rule: Failover,
    at: KeyPath,
    backends: Mapping[str, BackendSettings],
    names: tuple[str, ...],
    report: Report,
) -> None:
    told = {key: not report.broken(*at, key) for key in ("from", "to", "model", "source")}
    for key, name in (("from", rule.from_backend), ("to", rule.to_backend)):
        if told[key] and name not in names and not report.lost("backends"):
            report.nearest((*at, key), name, names, "backend")
    if told["from"] and told["to"] and rule.from_backend == rule.to_backend:
        report.add(
            (*at, "to"), f"{rule.to_backend} cannot stand in for itself", "name another backend"
        )
    target = backends.get(rule.to_backend)
    if target is not None and target.kind is Kind.OLLAMA and told["source"] and not rule.source:
        report.add((*at, "source"), "is missing", 'write Ollama\'s own name, like "qwen2.5:3b"')
    source = backends.get(rule.from_backend)
    if source is None or source.kind is not Kind.VLLM or not told["model"]:
        return
    path = ("backends", rule.from_backend)
    if any(report.broken(*path, key) for key in ("command", "image", "models", "kind")):
        return
    if rule.model in source.vllm.lora_names:
        wrong = f"{rule.model!r} is a LoRA adapter of {rule.from_backend}: no other backend has it"
        report.add((*at, "model"), wrong, "take this failover out")
        return
    names_ = served(source)
    if names_ and rule.model not in names_:
        shown = ", ".join(repr(name) for name in names_)
        report.add(
            (*at, "model"), f"{rule.from_backend} serves {shown}", f'write model = "{names_[0]}"'
        )
