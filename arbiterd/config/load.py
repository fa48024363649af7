"""The file as Settings, or every problem at once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from arbiterd.config.backends import kind_of, read, read_any
from arbiterd.config.check import check_backend, check_failover, check_file, check_ports
from arbiterd.config.modes import check_mode, read_mode
from arbiterd.config.parse import Report, parse
from arbiterd.config.remote_paths import check_remote
from arbiterd.config.salvage import salvage
from arbiterd.config.schema import FileSettings
from arbiterd.errors import ConfigRefused, Problem
from arbiterd.files import bounded
from arbiterd.model.settings import (
    BackendSettings,
    Failover,
    Kind,
    Mode,
    Settings,
    Source,
)


@dataclass(frozen=True, slots=True)
class Loaded:
    """An accepted file. ``text`` is what was read, ``report`` knows the lines of its keys."""

    settings: Settings
    warnings: tuple[Problem, ...]
    text: str
    report: Report


def load(path: Path, environ: Mapping[str, str]) -> Loaded:
    """Read, parse and check.

    Raises:
        ConfigRefused: with every problem, each at its line.

    """
    text = read_text(path)
    file, raw, report = parse(path, text, environ)
    if file is None:
        # All the rest is checked all the same: all problems at once (contract, section 2).
        file = salvage(raw)
    made = Loaded(_build(file, path, text, environ, report), report.warnings, text, report)
    if report.errors:
        raise ConfigRefused(report.errors, report.warnings, made)
    return replace(made, warnings=report.warnings)


def read_text(path: Path) -> str:
    """The file as it is: its digest is that of the file.

    Raises:
        ConfigRefused: it cannot be read, with the next command.

    """
    try:
        text = bounded.read(path, bounded.CONFIG_BYTES).decode()
    except FileNotFoundError:
        wrong, right = "there is no such file", f"write one: arbiterctl --config {path} init"
    except IsADirectoryError:
        wrong, right = (
            "cannot be read: it is a folder",
            f"name a file: --config {path}/gpu-arbiter.toml",
        )
    except PermissionError:
        wrong, right = "may not be read", f"run it as root, or: sudo chmod o+r {path}"
    except OSError as error:
        wrong, right = f"cannot be read: {error.strerror}", "name a file that can be read"
    except UnicodeDecodeError as error:
        at = f"byte {error.start + 1} is {error.object[error.start]:#04x}"
        wrong = f"is not UTF-8: {at}"
        right = f"convert it: iconv -f latin1 -t utf-8 {path} -o NEW.toml"
    else:
        if not text.startswith("\ufeff"):
            return text
        wrong, right = (
            "begins with a byte order mark",
            f"take it out: sed -i '1s/^\\xef\\xbb\\xbf//' {path}",
        )
    raise ConfigRefused((Problem(str(path), 1, "(file)", wrong, right),))


def _build(
    file: FileSettings, path: Path, text: str, environ: Mapping[str, str], report: Report
) -> Settings:
    check_file(file, report)
    timeout = file.gateway.request_timeout_s
    kinds: dict[str, Kind] = {}
    base: dict[str, BackendSettings] = {}
    for name, table in file.backends.items():
        at = ("backends", name)
        if report.lost(*at):
            continue
        kind = kind_of(name, table, report)
        if kind is None:
            read_any(table, at, report)
            continue
        kinds[name] = kind
        base[name] = read(name, kind, table, at, report, None, timeout)
        check_backend(base[name], at, report)
        if _alone(file):
            check_remote(base[name], at, report)
    modes: dict[str, Mode] = {}
    for name, raw in file.modes.items():
        mode = modes[name] = read_mode(name, raw, kinds, file.backends, report, timeout)
        check_mode(mode, report)
        check_ports(file, mode, report)
        for backend, one in mode.backends.items():
            if one != base[backend]:
                _check_override(one, ("modes", name, backend), report)
                if _alone(file) and one.command != base[backend].command:
                    check_remote(one, ("modes", name, backend), report)
    if not file.modes and not report.broken("modes"):
        report.add(("modes",), "names no mode", "write [modes.A] with one line per backend")
    _check_named(file, report)
    check_failover(file, base, tuple(file.backends), report)
    return _settings(file, modes, path, text, environ)


def _alone(file: FileSettings) -> bool:
    """Whether TensorFlow's unit gets IPAddressDeny=: under systemd, behind the doors."""
    return file.gateway.enabled and file.arbiter.launcher != "direct"


def _check_named(file: FileSettings, report: Report) -> None:
    """A backend that no mode names; a misspelt name is told at its own line."""
    named = {name for mode in file.modes.values() for name in mode}
    meant = {
        near[0]
        for name in named - file.backends.keys()
        if (near := get_close_matches(name, file.backends, n=1))
    }
    for name in file.backends.keys() - named - meant:
        if file.modes and not any(report.lost("modes", mode) for mode in file.modes):
            wrong = "no mode names it: it never runs"
            report.add(("backends", name), wrong, "name it in a mode", "warning")


def _check_override(one: BackendSettings, at: tuple[str, ...], report: Report) -> None:
    """A mode's own values: only what differs from the backend can be wrong here."""
    before = {(p.wrong, p.right) for p in report.problems}
    probe = replace(report, problems=[])
    check_backend(one, at, probe)
    report.problems += [p for p in probe.problems if (p.wrong, p.right) not in before]


def _also(mode: Mode, failover: tuple[Failover, ...]) -> Mode:
    """A vLLM that stands in for others answers to their models' names, too."""
    backends = {
        name: replace(one, served_also=names)
        if (names := tuple(r.model for r in failover if r.to_backend == name))
        and one.kind is Kind.VLLM
        else one
        for name, one in mode.backends.items()
    }
    return replace(mode, backends=backends)


def _settings(
    file: FileSettings,
    modes: Mapping[str, Mode],
    path: Path,
    text: str,
    environ: Mapping[str, str],
) -> Settings:
    modes = {name: _also(mode, file.failover) for name, mode in modes.items()}
    return Settings(
        mode=file.mode,
        arbiter=file.arbiter,
        gateway=file.gateway,
        foreign_allow_bytes=file.foreign.allow_bytes,
        modes=modes,
        failover=file.failover,
        degrade=file.degrade,
        source=Source(
            path=str(path),
            sha256=hashlib.sha256(text.encode()).hexdigest(),
            loaded_at=time.time(),
            mode_from_env=any(name.upper() == "GPU_ARBITER_MODE" for name in environ),
        ),
    )
