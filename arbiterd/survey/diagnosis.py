"""From the facts of a host and the configuration to findings. Pure."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterable, Sequence

from arbiterd.errors import Problem
from arbiterd.model.settings import Settings
from arbiterd.quantities import GIB, MIB, format_size
from arbiterd.survey.checkup import NEEDRESTART, Checkup, Holder, Space
from arbiterd.survey.engine_check import SYSUSERS
from arbiterd.survey.facts import Finding, Survey

HAPROXY_LEAST = (2, 6)  # the version its configuration was tried with (facts/gateway.md)
_LITTLE = {"state": (64 * MIB, 512 * MIB), "models": (0, 10 * GIB)}  # below: blocks, advice
_EXCLUDE = "$nrconf{override_rc}{qr(^gpu-arbiter)} = 0;"


def of_problems(problems: Sequence[Problem]) -> Iterable[Finding]:
    """The configuration's own problems, each at its line."""
    for one in problems:
        level = "blocks" if one.severity == "error" else "advice"
        what = f"{one.file}:{one.line}: {one.key}: {one.wrong}"
        missing = "there is no such file" in one.wrong
        mend = "arbiterctl init" if missing else f"sudoedit {shlex.quote(one.file)}"
        yield Finding("config", level, what, one.right, mend)  # type: ignore[arg-type]


def of_host(checked: Checkup, survey: Survey, settings: Settings | None) -> list[Finding]:
    """Driver settings, strangers on the card, packages, our own installation, room on the disks."""
    allow = settings.foreign_allow_bytes if settings else 512 * MIB
    gateway = settings is None or settings.gateway.enabled
    return [
        *_persistence(checked),
        *_holders(checked, survey, allow),
        *(_haproxy(checked) if gateway else ()),
        *_needrestart(checked),
        *_spaces(checked.spaces),
        *_installation(checked),
    ]


def _persistence(checked: Checkup) -> Iterable[Finding]:
    off = [str(index) for index, on in checked.persistence if not on]
    if off:
        service = "systemctl enable --now nvidia-persistenced"
        yield Finding(
            "persistence",
            "advice",
            f"persistence mode is off on GPU {', '.join(off)}",
            "whenever nobody uses the card the driver unloads, and each first use takes seconds more",
            service if checked.persistenced else "nvidia-smi -pm 1",
        )


def _holders(checked: Checkup, survey: Survey, allow: int) -> Iterable[Finding]:
    """Strangers over foreign.allow. Those of units that have a finding of their own are left out."""
    known = {unit.name for unit in survey.units}
    by_gpu: dict[int, list[Holder]] = defaultdict(list)
    for one in checked.holders:
        by_gpu[one.gpu].append(one)
    for gpu, held in by_gpu.items():
        whole = sum(one.used_bytes for one in held)
        if whole <= allow:
            continue
        for one in sorted(held, key=lambda holder: -holder.used_bytes):
            process = one.process
            if process.unit in known:
                continue
            where = f" of {process.unit}" if process.unit else ""
            user = f", user {process.user}" if process.user else ""
            command = f" ({process.command[:80]})" if process.command else ""
            service = process.unit.endswith(".service") and not process.unit.startswith("user@")
            mend = f"kill {process.pid}"
            if service:
                mend = f"systemctl disable --now {shlex.quote(process.unit)}"
            if process.ref is None:
                mend = "systemctl reboot"
            yield Finding(
                "foreign_memory",
                "blocks",
                f"GPU {gpu}: pid {process.pid}{where}{command}{user} holds "
                f"{format_size(one.used_bytes)}",
                f"strangers hold {format_size(whole)}; foreign.allow is {format_size(allow)}, and the "
                "caps count on the rest",
                mend,
            )


def _haproxy(checked: Checkup) -> Iterable[Finding]:
    if checked.haproxy is None:
        why = "the doors are HAProxy: without it no port opens"
        yield Finding(
            "haproxy", "blocks", "HAProxy is not installed", why, "apt-get install haproxy"
        )
    elif checked.haproxy and checked.haproxy < HAPROXY_LEAST:
        found = ".".join(str(part) for part in checked.haproxy)
        least = ".".join(str(part) for part in HAPROXY_LEAST)
        what = f"HAProxy {found} is too old: {least} or newer is needed"
        why = "it does not understand the doors' configuration"
        yield Finding("haproxy", "blocks", what, why, "apt-get install --only-upgrade haproxy")


def _needrestart(checked: Checkup) -> Iterable[Finding]:
    if checked.needrestart and not checked.needrestart_knows:
        line = f"printf '%s\\n' {shlex.quote(_EXCLUDE)} > {NEEDRESTART}/conf.d/gpu-arbiter.conf"
        why = "an unattended upgrade of a library would restart a loaded engine"
        yield Finding(
            "needrestart", "advice", "needrestart does not leave our units alone", why, line
        )


def _spaces(spaces: Sequence[Space]) -> Iterable[Finding]:
    for one in spaces:
        blocks, advice = _LITTLE[one.what]
        if one.free_bytes >= advice:
            continue
        level = "blocks" if one.free_bytes < blocks else "advice"
        yield Finding(
            "disk",
            level,  # type: ignore[arg-type]
            f"{format_size(one.free_bytes)} are free where {one.path} lies ({one.mount})",
            "records and incidents are kept there"
            if one.what == "state"
            else "models are put there",
            f"du -xh --max-depth=3 {shlex.quote(one.mount)} | sort -h | tail -20",
        )


def _installation(checked: Checkup) -> Iterable[Finding]:
    if not checked.systemd:
        why = "the launcher is `direct`: for development only"
        yield Finding("systemd", "note", "systemd does not run here", why)
        return
    if checked.missing_names:
        what = f"missing: {', '.join(checked.missing_names)}"
        why = "sockets and files are shared by them"
        yield Finding("no_user", "blocks", what, why, f"systemd-sysusers {SYSUSERS}")
    if not checked.catalogue:
        why = "journalctl -x does not explain the arbiter's entries"
        mend = "journalctl --update-catalog"
        yield Finding("catalogue", "advice", "the journal catalogue is not installed", why, mend)
    unit = checked.daemon
    if not unit.there:
        why = "nothing starts the daemon"
        yield Finding("daemon", "blocks", f"{unit.name} is not installed", why, "make install")
    elif unit.active == "failed":
        why = "its journal says why"
        mend = f"journalctl -u {unit.name} -n 50; systemctl reset-failed {unit.name}"
        yield Finding("daemon", "blocks", f"{unit.name} has failed", why, mend)
    elif not unit.runs or not unit.starts_at_boot:
        state = f"{unit.active}, {unit.enabled or 'not enabled'}"
        why = "start it when nothing else is left here"
        mend = f"systemctl enable --now {unit.name}"
        yield Finding("daemon", "advice", f"{unit.name} is {state}", why, mend)
