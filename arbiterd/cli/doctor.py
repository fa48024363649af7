"""``arbiterctl doctor``: what stands in the way on this host, and the command that mends it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import typer
from rich.markup import escape

from arbiterd.cli import ports
from arbiterd.cli.client import Client
from arbiterd.cli.common import console, globals_of, inventory, print_json
from arbiterd.cli.doctor_print import print_findings
from arbiterd.config import Loaded, check_devices, load
from arbiterd.core.backend.planning import engine_grpc_port, engine_port
from arbiterd.errors import EX_REFUSED, ConfigRefused, LaunchError
from arbiterd.linux import procfs
from arbiterd.linux.init_system import use_systemd
from arbiterd.model.settings import ArbiterSettings, Kind, Settings
from arbiterd.sense.host import missing
from arbiterd.survey import access, engine_check
from arbiterd.survey.checkup import checkup
from arbiterd.survey.diagnosis import of_host, of_problems
from arbiterd.survey.facts import Finding, Survey, UnitFacts
from arbiterd.survey.findings import findings
from arbiterd.survey.look import PORTS, home_of, survey
from arbiterd.survey.models import hub_folder
from arbiterd.survey.units import Units
from arbiterd.survey.writers import writable

DAEMON = "gpu-arbiter.service"
_ORDER = {"blocks": 0, "advice": 1, "note": 2}


def doctor(context: typer.Context) -> None:
    """Say what stands in the way of the arbiter on this host, each with the command that mends it.

    Looks only. Exit 0 when nothing stands in the way (advice may be left), 1 otherwise. Without root
    it says what it could not look at.

    Examples: arbiterctl doctor · arbiterctl doctor --json | jq -r '.findings[].mend'
    """
    own = globals_of(context)
    try:
        loaded: Loaded | None = load(own.path, dict(os.environ))
        problems = loaded.warnings if loaded else ()
    except ConfigRefused as refused:
        loaded, problems = None, refused.problems
    settings = loaded.settings if loaded else None
    arbiter = settings.arbiter if settings else ArbiterSettings()
    devices, why = inventory(Path(arbiter.state_dir))
    if loaded is not None and devices:
        problems = (*problems, *check_devices(loaded, devices))
    seen = survey(devices, why, ports=_ports(settings), runtime_dir=arbiter.runtime_dir)
    daemon, persistenced, unread = _units()
    if daemon.active == "active":
        seen, dark = _without_hidden(seen)
        unread += dark
    checked = checkup(daemon, _folders(settings), persistenced=persistenced)
    found = [*of_problems(problems), *findings(seen), *of_host(checked, seen, settings)]
    unseen = [*seen.unseen, *unread]
    if settings is not None:
        engines, more = _engines(settings, seen, own.client())
        found += engines
        unseen += more
    if loaded is not None:
        found += _writable(loaded)
    found = sorted(dict.fromkeys(found), key=lambda one: _ORDER[one.level])
    blocks = [one for one in found if one.level == "blocks"]
    if own.json:
        rows = [asdict(one) for one in found]
        print_json({"ok": not blocks, "findings": rows, "not_looked_at": unseen})
    else:
        _print(found, unseen, len(blocks))
    if blocks:
        raise SystemExit(EX_REFUSED)


def _print(found: list[Finding], unseen: list[str], blocks: int) -> None:
    out = console()
    print_findings(out, found)
    for text in unseen:
        out.print(f"[yellow]not looked at[/yellow] {escape(text)}", soft_wrap=True)
    if blocks:
        out.print(f"\n[red]{blocks} thing(s) stand in the way[/red]")
    else:
        out.print("\n[green]nothing stands in the way[/green]")


def _ports(settings: Settings | None) -> list[int]:
    """Every port of the active mode: doors, engines, our own."""
    if settings is None:
        return list(PORTS)
    out = {settings.arbiter.listen_port}
    if settings.gateway.enabled and settings.gateway.llm_port:
        out.add(settings.gateway.llm_port)
    for one in settings.active.backends.values():
        out |= {
            one.port,
            one.grpc_port,
            engine_port(settings, one),
            engine_grpc_port(settings, one),
        }
    return sorted(out - {0})


def _without_hidden(seen: Survey) -> tuple[Survey, list[str]]:
    """While the daemon runs, a listener that only root can see may well be an engine or a door of ours."""
    hidden = [one.port for one in seen.listeners if not one.pid]
    if not hidden:
        return seen, []
    text = f"who listens on {', '.join(map(str, hidden))}: run it as root"
    return replace(seen, listeners=tuple(one for one in seen.listeners if one.pid)), [text]


def _units() -> tuple[UnitFacts, bool, list[str]]:
    """The daemon's unit, whether nvidia-persistenced is installed, what could not be asked."""
    nothing = UnitFacts(DAEMON, load="not-found")
    if not os.path.isdir("/run/systemd/system"):
        return nothing, False, []
    units = Units()
    try:
        return units.show(DAEMON), units.show("nvidia-persistenced.service").there, []
    except LaunchError as error:
        return UnitFacts(DAEMON, active="active", enabled="enabled"), False, [f"{DAEMON}: {error}"]
    finally:
        units.close()


def _folders(settings: Settings | None) -> Mapping[str, str]:
    """Folders that need room."""
    arbiter = settings.arbiter if settings else ArbiterSettings()
    out = {arbiter.state_dir: "state"}
    for one in settings.active.backends.values() if settings else ():
        home = one.env.get("HOME") or home_of(one.user or engine_check.ENGINES_USER)
        if one.kind is Kind.OLLAMA and home:
            out[engine_check.ollama_folder(one, home)] = "models"
        elif one.kind is Kind.VLLM and home:
            out[hub_folder(one.env, home)] = "models"
    return out


def _hidden(program: str) -> bool:
    """Whether we, not being root, may not even see if it is there."""
    if os.geteuid() == 0 or not program.startswith("/"):
        return False
    found = access.obstacles(procfs.user_name(os.geteuid()), [(program, "x")])
    return bool(found and found[0] and found[0].need == "x" and found[0].path != program)


def _writable(loaded: Loaded) -> list[Finding]:
    """Programs, files and folders of the configuration that others may change."""
    settings = loaded.settings
    out = []
    for one in writable(loaded.text, settings, direct=not use_systemd(settings)):
        what = f"{'.'.join(one.watched.key)}: {one.words}"
        why = (
            f"whoever changes it decides what {one.watched.backend or 'the daemon'} runs and reads"
        )
        out.append(Finding("writable", "advice", what, why, one.mend))
    return out


def _engines(settings: Settings, seen: Survey, client: Client) -> tuple[list[Finding], list[str]]:
    """Commands, users, folders and models of the active mode's backends."""
    found: list[Finding] = []
    unseen: list[str] = []
    config = settings.source.path
    for name, flaw in missing(settings).items():
        program = settings.active.backends[name].command[0]
        if _hidden(program):
            unseen.append(f"{name}: {program} lies where only root may look")
            continue
        mend = flaw.right if flaw.right.startswith("chmod") else f"sudoedit {config}"
        why = flaw.right or "the backend waits until it is there"
        found.append(Finding("command", "blocks", f"{name}: {flaw.wrong}", why, mend))
    if settings.arbiter.launcher == "direct" or not os.path.isdir("/run/systemd/system"):
        return found, unseen  # engines run as the daemon's own user there
    seen_ports = ports.guard(settings, client)
    if not seen_ports.closed and settings.arbiter.local_users != "trusted":
        what = f"every local user can open the engines' own ports: {seen_ports.problem}"
        why = (
            "they go past keys, limits and allow-lists of the doors; vLLM is started without sleep"
        )
        found.append(Finding("engine_ports", "advice", what, why, ports.mend(settings)))
    for backend in settings.active.backends.values():
        more, dark = engine_check.check(backend, config, seen.venvs)
        found += more
        unseen += dark
    return found, unseen
