"""``arbiterctl takeover ollama``: an installed unit's settings into the configuration, then off with it."""

from __future__ import annotations

import difflib
import os
import shlex
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import typer
from rich.markup import escape

from arbiterd.act.takeover import Record, apply, commands, read_record, record_path
from arbiterd.act.takeover import undo as undo_it
from arbiterd.cli.common import Globals, console, globals_of, inventory, polite, print_json
from arbiterd.cli.trial import trial
from arbiterd.config import check_devices, load
from arbiterd.errors import ArbiterError, ConfigRefused
from arbiterd.model.settings import Kind, Settings
from arbiterd.survey import access, listeners
from arbiterd.survey.facts import UnitFacts
from arbiterd.survey.handover import KEYS, Handover, edit, entry_of, handover, logical_lines
from arbiterd.survey.look import home_of
from arbiterd.survey.units import Units

DAEMON = "gpu-arbiter.service"
_SERVES_S = 10.0


@dataclass(frozen=True, slots=True)
class _Plan:
    """What will be done; nothing has been yet."""

    record: Record
    path: Path
    made: Handover
    daemon_runs: bool
    notes: tuple[str, ...]


def takeover(
    context: typer.Context,
    what: str = typer.Argument(help="what to take over: ollama"),
    *,
    undo: bool = typer.Option(False, "--undo", help="give it back as it was"),
    dry_run: bool = typer.Option(False, "--dry-run", help="show the change, do nothing"),
    unit: str = typer.Option("ollama.service", help="the installed unit, if it is named otherwise"),
) -> None:
    """Take over an installed unit: write its settings into the configuration, then disable it.

    Its user, environment and model folder are written; --undo restores both. The result is checked
    before anything changes; if disabling fails, the file is put back.

    Examples: arbiterctl takeover ollama --dry-run · arbiterctl takeover ollama ·
    arbiterctl takeover ollama --undo
    """
    own = globals_of(context)
    if what != "ollama":
        msg = f"{what!r} cannot be taken over; there is: ollama"
        raise typer.BadParameter(msg)
    with polite():
        if not os.path.isdir("/run/systemd/system"):
            msg = "systemd does not run here, so there is no unit to take over"
            raise ArbiterError(msg)
        units = Units()
        try:
            if undo:
                _undo(own, units, dry_run=dry_run)
            else:
                _take(own, units, unit, dry_run=dry_run)
        finally:
            units.close()


def _take(own: Globals, units: Units, unit: str, *, dry_run: bool) -> None:
    plan = _planned(own, units, unit)
    if not dry_run:
        _need_root("takeover ollama")
        apply(plan.record, plan.path, plan.made.env_text)
    after = "systemctl reload gpu-arbiter" if plan.daemon_runs else "arbiterctl doctor"
    _say(own, plan.record, plan.made, plan.notes, after, dry_run=dry_run)


def _planned(own: Globals, units: Units, name: str) -> _Plan:
    """Everything that can be refused is refused here."""
    loaded = load(own.path, dict(os.environ))
    settings = loaded.settings
    path = record_path(settings.arbiter.state_dir)
    earlier = read_record(path)
    if earlier is not None:
        state = "was taken over" if earlier.done else "was half taken over"
        msg = f"{earlier.unit} {state} at {earlier.at}; arbiterctl takeover ollama --undo gives it back"
        raise ArbiterError(msg)
    found = units.show(name)
    if not found.there:
        msg = f"there is no unit {name}; --unit names another one"
        raise ArbiterError(msg)
    if found.enabled.startswith("linked"):
        msg = f"{name} is linked: disabling would remove it; copy {found.fragment} to /etc/systemd/system"
        raise ArbiterError(msg)
    backend = _backend(settings)
    files = _env_files(found)
    env_path = str(own.path.with_name(f"{own.path.stem}.{backend}.env"))
    made = handover(loaded.text, backend, found, files, env_path)
    _accepted(made.text, own.path)
    notes = _reachable(made, found, files)
    if found.group and found.group != access.group_of(found.user or "root"):
        notes.append(f"Group={found.group} is not kept: engines run in their user's own group")
    entry = entry_of(loaded.text, backend)
    record = Record(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        config=os.path.realpath(own.path),
        backend=backend,
        unit=found.name,
        enabled=found.enabled,
        active=found.runs,
        original=loaded.text,
        written=made.text,
        env_path=made.env_path,
        before={key: entry.get(key) for key in KEYS},
    )
    return _Plan(record, path, made, units.show(DAEMON).runs, tuple(notes))


def _backend(settings: Settings) -> str:
    """The backend that gets the unit's settings: `ollama`, or the only one of its kind."""
    every = {name: one for mode in settings.modes.values() for name, one in mode.backends.items()}
    names = [name for name, one in every.items() if one.kind is Kind.OLLAMA]
    if "ollama" in names:
        return "ollama"
    if len(names) != 1:
        has = (
            f"has {len(names)} Ollama backends ({', '.join(names)})"
            if names
            else "has no Ollama backend"
        )
        msg = f"{settings.source.path} {has}; name the one in question ollama, or: arbiterctl init"
        raise ArbiterError(msg)
    return names[0]


def _env_files(unit: UnitFacts) -> dict[str, str]:
    """Contents of EnvironmentFile=; one that is optional and missing counts for nothing."""
    out: dict[str, str] = {}
    for path, optional in unit.environment_files:
        try:
            out[path] = Path(path).read_text(encoding="utf-8")
        except FileNotFoundError:
            if not optional:
                msg = f"{unit.name} reads {path}, which is not there"
                raise ArbiterError(msg) from None
        except (OSError, UnicodeDecodeError) as error:
            msg = f"cannot read {path} of {unit.name}: {error}; be root"
            raise ArbiterError(msg) from None
    return out


def _accepted(text: str, target: Path) -> None:
    """Raises ConfigRefused when the new file would not pass the check."""
    loaded = trial(text, target, dict(os.environ))
    devices, _ = inventory(Path(loaded.settings.arbiter.state_dir))
    problems = check_devices(loaded, devices) if devices else ()
    errors = tuple(one for one in problems if one.severity == "error")
    if errors:
        raise ConfigRefused(errors)


def _reachable(made: Handover, unit: UnitFacts, files: Mapping[str, str]) -> list[str]:
    """The user must reach program, home and models. Returns what could not be looked at."""
    user = str(made.values["user"])
    home = home_of(user)
    if not home:
        msg = f"there is no user {user!r}, as whom {unit.name} runs"
        raise ArbiterError(msg)
    env = made.values["env"] or {}
    folder = env.get("OLLAMA_MODELS") or f"{env.get('HOME') or home}/.ollama/models"
    for content in files.values():
        for line in logical_lines(content):
            key, _, value = line.strip().partition("=")
            if key.strip() == "OLLAMA_MODELS":
                folder = value.strip().strip("'\"")
    wants = [(str(made.values["command"][0]), "x"), (folder, "rwx")]
    found = access.obstacles(user, wants)
    if found is None:
        return [f"whether {user} may use {folder} was not looked at: be root"]
    notes = []
    for one in found:
        if one is None:
            continue
        if one.need == "?" and one.path == folder:
            notes.append(f"{folder} is not there yet: Ollama makes it")
            continue
        msg = f"cannot take over {unit.name}: {one.words}; {access.mend(one, whole=one.path == folder)}"
        raise ArbiterError(msg)
    return [*notes, f"models: {folder}"]


def _undo(own: Globals, units: Units, *, dry_run: bool) -> None:
    settings = load(own.path, dict(os.environ)).settings
    path = record_path(settings.arbiter.state_dir)
    record = read_record(path)
    if record is None:
        msg = f"nothing was taken over ({path} is not there)"
        raise ArbiterError(msg)
    unit = units.show(record.unit)
    if not unit.there:
        msg = f"{record.unit} is not installed any more; install it, or remove {path}"
        raise ArbiterError(msg)
    port = port_of(unit)
    if record.active:
        held = [one for one in listeners.look((port,), settings.arbiter.runtime_dir) if one.ours]
        if held:
            msg = (
                f"port {port} is the arbiter's own ({listeners.who(held[0])}), so {record.unit} "
                "could not start; systemctl stop gpu-arbiter, then again"
            )
            raise ArbiterError(msg)
    target = Path(record.config)
    try:
        text = target.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"cannot read {target}: {error}; {record.backup} is the file as it was"
        raise ArbiterError(msg) from None
    restored = record.original
    if text not in (record.written, record.original):  # edited since: only our keys go back
        restored = edit(text, record.backend, record.before)
    trial(restored, target, dict(os.environ))
    if not dry_run:
        _need_root("takeover ollama --undo")
        undo_it(record, path, restored)
        if record.active and not _serves(units, record.unit, port):
            print(
                f"arbiterctl: {record.unit} does not listen on port {port} yet: "
                f"journalctl -u {record.unit} -n 20",
                file=sys.stderr,
            )
    runs = units.show(DAEMON).runs
    after = "systemctl reload gpu-arbiter" if runs else ""
    _say_undone(own, record, text, restored, after, dry_run=dry_run)


def port_of(unit: UnitFacts) -> int:
    """The port of an Ollama unit by its OLLAMA_HOST, whose parts may all be left out."""
    host = unit.env("OLLAMA_HOST").strip().strip("'\"")
    scheme, _, rest = host.rpartition("://")
    tail = rest.split("/", 1)[0].rpartition(":")[2]
    if tail.isdigit() and ":" in rest:
        return int(tail)
    return {"http": 80, "https": 443}.get(scheme, 11434)


def _serves(units: Units, name: str, port: int) -> bool:
    """Whether the unit's process comes to listen: Type=simple says 'started' at once."""
    deadline = time.monotonic() + _SERVES_S
    while time.monotonic() < deadline:
        with suppress(ArbiterError):
            if any(one.unit == name for one in listeners.look((port,), "/run/gpu-arbiter")):
                return True
            if not units.show(name).runs:
                return False
        time.sleep(0.1)
    return False


def _need_root(what: str) -> None:
    if os.geteuid() != 0:
        words = " ".join(shlex.quote(word) for word in sys.argv[1:]) or what
        msg = f"only root may do this: sudo arbiterctl {words}"
        raise ArbiterError(msg)


def _diff(old: str, new: str, name: str) -> list[str]:
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), name, f"{name} (new)", n=1, lineterm=""
    )
    return list(lines)


def _say(
    own: Globals,
    record: Record,
    made: Handover,
    notes: tuple[str, ...],
    after: str,
    *,
    dry_run: bool,
) -> None:
    diff = _diff(record.original, record.written, record.config)
    if own.json:
        print_json(
            {
                "done": not dry_run,
                "unit": record.unit,
                "backend": record.backend,
                "diff": diff,
                "commands": commands(record),
                "replaced": [asdict(one) for one in made.replaced],
                "env_file": made.env_path,
                "notes": list(notes),
                "next": after,
            }
        )
        return
    out = console()
    for line in diff:
        out.print(escape(line), soft_wrap=True)
    for one in made.replaced:
        value = f"={one.value}" if one.value else ""
        out.print(
            f"not kept: {escape(one.name + value)}; decided by {escape(one.by)}", soft_wrap=True
        )
    if made.env_path:
        out.print(f"secrets: {escape(made.env_path)}, mode 0600", soft_wrap=True)
    for note in notes:
        out.print(escape(note), soft_wrap=True)
    for line in commands(record):
        out.print(f"$ {escape(line)}", soft_wrap=True)
    if dry_run:
        out.print("nothing was done (--dry-run)")
        return
    out.print(f"{escape(record.unit)} is taken over; back: arbiterctl takeover ollama --undo")
    out.print(f"next: {after}")


def _say_undone(
    own: Globals, record: Record, text: str, restored: str, after: str, *, dry_run: bool
) -> None:
    diff = _diff(text, restored, record.config)
    lines = commands(record, undo=True)
    if own.json:
        print_json(
            {
                "done": not dry_run,
                "unit": record.unit,
                "diff": diff,
                "commands": lines,
                "next": after,
            }
        )
        return
    out = console()
    for line in diff:
        out.print(escape(line), soft_wrap=True)
    for line in lines:
        out.print(f"$ {escape(line)}", soft_wrap=True)
    out.print(
        "nothing was done (--dry-run)" if dry_run else f"{escape(record.unit)} is back as it was"
    )
    if after and not dry_run:
        out.print(f"next: {after}")
