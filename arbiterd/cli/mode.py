"""``arbiterctl mode NAME``: edit the mode line, reload, follow the switch to its end."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
import tomllib
from contextlib import suppress
from pathlib import Path

import typer

from arbiterd.cli.client import Client, Refused, Unreachable
from arbiterd.cli.common import Globals, globals_of, inventory, polite, print_json
from arbiterd.cli.edit import Edit, NoRight, mode_in, put_back, set_mode
from arbiterd.cli.follow import End, follow
from arbiterd.cli.operate import problems_of
from arbiterd.cli.running import Running, running
from arbiterd.cli.show import Row, as_row
from arbiterd.config import Loaded, check_devices, load
from arbiterd.core.memory.placement import place
from arbiterd.errors import EX_CONFIG, EX_REFUSED, EX_UNAVAILABLE, ArbiterError, ConfigRefused
from arbiterd.model.settings import Settings
from arbiterd.model.switch import Change
from arbiterd.quantities import format_duration, format_size


def mode(
    context: typer.Context,
    name: str = typer.Argument(help="the mode to switch to"),
    *,
    dry_run: bool = typer.Option(False, "--dry-run", help="print what it would do; change nothing"),
    wait: bool = typer.Option(True, help="follow the switch to its end"),
    timeout: float = typer.Option(3600.0, help="seconds to follow it"),
) -> None:
    """Switch to another mode: edit the file's mode line (comments stay), reload, show the progress.

    When the new layout does not come up the old one comes back, and so does the line.

    Examples: arbiterctl mode B --dry-run · arbiterctl mode night
    """
    own = globals_of(context)
    with polite():
        settings = _checked(own.path, name)
        if dry_run:
            _dry_run(own, settings)
            return
        client = own.client()
        status = _status(client)
        _refuse_if_useless(own, status)
        if _in_force(status, settings, own.path):
            _say(own, End("in_force", name, settings.source.sha256, 0.0), already=True)
            return
        edit = _edit(own, name)
        accepted = _reload(client, own, edit)
        if not wait:
            _say_accepted(own, name)
            return
        end = follow(client, accepted, timeout, json=own.json)
        if end.outcome in ("rolled_back", "failed"):
            _take_back(client, own, edit, end)
        _say(own, end)


def _checked(path: Path, name: str) -> Settings:
    """The file as it would be loaded with this mode line; nothing is written for that.

    Raises:
        ConfigRefused: with every problem of the file.
        ArbiterError: it has no such mode.

    """
    with suppress(OSError, ValueError):  # load() says what is wrong with it
        modes = tomllib.loads(path.read_bytes().decode()).get("modes")
        if isinstance(modes, dict) and name not in modes:
            msg = f"there is no mode {name!r}; {path} has {', '.join(modes)}"
            raise ArbiterError(msg)
    return _loaded(path, name).settings


def _loaded(path: Path, name: str) -> Loaded:
    return load(path, {**os.environ, "GPU_ARBITER_MODE": name})


def _status(client: Client) -> Row:
    try:
        return as_row(client.get("/v1/status"))
    except Unreachable as error:
        msg = f"{error}; nothing was changed"
        raise Unreachable(msg) from None


def _refuse_if_useless(own: Globals, status: Row) -> None:
    """Editing the file must have an effect."""
    config = as_row(status.get("config"))
    if config.get("mode_from_env"):
        msg = (
            "GPU_ARBITER_MODE in the daemon's environment decides the mode, editing the file would do "
            "nothing: remove it there (systemctl edit gpu-arbiter), restart the daemon, try again"
        )
        raise ArbiterError(msg)
    theirs = str(config.get("path"))
    if os.path.realpath(theirs) != os.path.realpath(own.path):
        msg = f"the daemon runs on {theirs}, not on {own.path}: --config {theirs}"
        raise ArbiterError(msg)


def _in_force(status: Row, settings: Settings, path: Path) -> bool:
    """Nothing to do: the daemon has this text, and its mode line says so."""
    sha = as_row(status.get("config")).get("sha256")
    return (
        status.get("mode") == settings.mode == mode_in(path)
        and sha == settings.source.sha256
        and not status.get("switch")
    )


def _edit(own: Globals, name: str) -> Edit | None:
    try:
        return set_mode(own.path, name)
    except NoRight as error:
        where = f" --config {shlex.quote(str(own.path))}" if own.config else ""
        msg = f"{error}; run: sudo arbiterctl{where} mode {shlex.quote(name)}"
        raise ArbiterError(msg) from None


def _reload(client: Client, own: Globals, edit: Edit | None) -> Row:
    """The daemon takes the file, or the file is put back."""
    try:
        return as_row(client.post("/v1/admin/reload", timeout_s=60.0))
    except (Refused, Unreachable) as error:
        for problem in problems_of(error.body) if isinstance(error, Refused) else ():
            print(problem, file=sys.stderr)
        note = _put_back_note(own, edit)
        print(f"arbiterctl: {error}; {note}", file=sys.stderr)
        if isinstance(error, Refused):
            raise SystemExit(EX_CONFIG if error.status == 409 else EX_REFUSED) from None
        raise SystemExit(EX_UNAVAILABLE) from None


def _put_back_note(own: Globals, edit: Edit | None) -> str:
    """Undo our edit; what the file says now."""
    if edit is None:
        return f'{own.path} still says mode = "{mode_in(own.path)}"'
    try:
        done = put_back(edit)
    except (ArbiterError, OSError) as error:
        return f'{own.path} could not be put back ({error}) and says mode = "{mode_in(own.path)}"'
    if done:
        return f'{own.path} says mode = "{mode_in(own.path)}" again'
    return f'{own.path} was changed meanwhile, is left alone and says mode = "{mode_in(own.path)}"'


def _take_back(client: Client, own: Globals, edit: Edit | None, end: End) -> None:
    """After a rollback: our line goes as well, and the daemon is told, if that changes nothing else."""
    note = _put_back_note(own, edit)
    if edit is not None and hashlib.sha256(edit.path.read_bytes()).hexdigest() == end.sha256:
        with suppress(Refused, Unreachable):
            client.post("/v1/admin/reload", timeout_s=60.0)
    if not own.json:
        print(f"arbiterctl: {note}", file=sys.stderr)


def _say_accepted(own: Globals, name: str) -> None:
    if own.json:
        print_json({"mode": name, "outcome": "accepted", "file_mode": mode_in(own.path)})
    else:
        print(f"accepted: mode {name}; follow it: arbiterctl status")


def _say(own: Globals, end: End, *, already: bool = False) -> None:
    """The end, and the exit status that goes with it."""
    if own.json:
        print_json(
            {
                "mode": end.mode,
                "outcome": end.outcome,
                "reason": end.reason,
                "took_s": end.took_s,
                "file_mode": mode_in(own.path),
            }
        )
    elif already:
        print(f"mode {end.mode} is in force already")
    elif end.outcome == "in_force":
        print(f"mode {end.mode} is in force after {format_duration(end.took_s)}")
    elif end.outcome == "rolled_back":
        print(f"arbiterctl: rolled back to mode {end.mode}: {end.reason}", file=sys.stderr)
    elif end.outcome == "superseded":
        print(f"arbiterctl: {end.reason}", file=sys.stderr)
    else:
        print(f"arbiterctl: mode {end.mode} is not whole: {end.reason}", file=sys.stderr)
    if end.outcome != "in_force":
        raise SystemExit(EX_REFUSED)


def _dry_run(own: Globals, settings: Settings) -> None:
    found = running(own.client(), settings)
    devices, why = inventory(Path(settings.arbiter.state_dir))
    loaded = _loaded(own.path, settings.mode)
    errors = [
        p for p in (check_devices(loaded, devices) if devices else ()) if p.severity == "error"
    ]
    if errors:
        raise ConfigRefused(tuple(errors))
    placements = place(settings.active, devices, settings.arbiter.headroom_bytes)
    table: list[dict[str, object]] = []
    for name, change in found.changes(settings).items():
        placement = placements.get(name)
        table.append(
            {
                "name": name,
                "change": change.value,
                "why": found.why(name, change, settings),
                "cap_bytes": placement.cap_bytes if placement else None,
                "gpu": list(placement.devices) if placement else [],
                "problem": placement.problem if placement else "",
            }
        )
    seconds = found.estimate(settings)
    if own.json:
        print_json(
            {
                "mode": settings.mode,
                "estimated_s": round(seconds, 1),
                "backends": table,
                "nvml": why,
            }
        )
        return
    _print_plan(own, settings, found, table, seconds)


def _print_plan(
    own: Globals, settings: Settings, found: Running, table: list[dict[str, object]], seconds: float
) -> None:
    for row in table:
        cap = row["cap_bytes"]
        size = f", cap {format_size(cap)}" if isinstance(cap, int) and cap else ""
        problem = f"; {row['problem']}" if row["problem"] else ""
        print(f"{row['change']:<8} {row['name']}{size}: {row['why']}{problem}")
    touched = [row for row in table if row["change"] != Change.KEEP.value]
    before = (
        f"mode {found.before.mode} → {settings.mode}"
        if found.before
        else f"to mode {settings.mode}"
    )
    doing = f"about {format_duration(seconds)}" if touched else "nothing to do"
    print(f'{before}: {doing}; nothing was changed, {own.path} says mode = "{mode_in(own.path)}"')
