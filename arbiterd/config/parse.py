"""From the file's text and the environment to tables, or to every problem with its line."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsError,
)

from arbiterd.config.lines import Lines, flatten
from arbiterd.config.schema import FILE_TABLE, FileSettings, key_names, settings_of
from arbiterd.errors import ConfigRefused, InvalidValue, Problem, one_line

PREFIX = "GPU_ARBITER_"
_OURS = ("config",)  # GPU_ARBITER_CONFIG names the file, it is no key
MOST_MEANT = 100  # unknown keys that are compared with the known ones
MOST_TOLD = 1000  # problems of one file: no person reads so far, and a reload has to end
KeyPath = tuple[str, ...]


@dataclass(slots=True)
class Report:
    """Collects problems; knows where each key stands."""

    file: str
    lines: Lines
    from_env: frozenset[KeyPath] = frozenset()
    problems: list[Problem] = field(default_factory=list)
    unreadable: set[KeyPath] = field(default_factory=set)

    def add(
        self,
        path: Sequence[str],
        wrong: str,
        right: str = "",
        severity: Literal["error", "warning"] = "error",
    ) -> None:
        """One problem at this key path. Of a value that cannot be read nothing more is said."""
        where = tuple(path)
        if where in self.unreadable or len(self.problems) >= MOST_TOLD:
            return
        in_env = any(where[: len(env)] == env for env in self.from_env)
        file = f"environment {env_name(where)}" if in_env else self.file
        line = 0 if in_env else self.lines.of(where)
        key = one_line(".".join(where)) or "(file)"
        problem = Problem(file, line, key, one_line(wrong), one_line(right), severity)
        if problem not in self.problems:
            self.problems.append(problem)

    def nearest(self, path: Sequence[str], name: str, known: Sequence[str], what: str) -> None:
        """An unknown name, with the nearest known one."""
        self.add(path, f"unknown {what} {name!r}", suggestion(name, known))

    def bad(self, path: Sequence[str], wrong: str, right: str = "") -> None:
        """A value that cannot be read: what follows from it is not judged (``broken``)."""
        self.add(path, wrong, right)
        self.unreadable.add(tuple(path))

    def broken(self, *path: str) -> bool:
        """Whether this value, a part of it or the table it lies in cannot be read; for a key of a
        backend within a mode also the backend's own.
        """
        ways = [path]
        if path[0] == "modes" and len(path) > 3:
            ways.append(("backends", *path[2:]))
        return any(
            one == way[: len(one)] or one[: len(way)] == way
            for one in self.unreadable
            for way in ways
        )

    def lost(self, *path: str) -> bool:
        """Whether this value as a whole, or the table it lies in, cannot be read."""
        return any(one == path[: len(one)] for one in self.unreadable)

    def invalid(
        self, error: ValidationError, prefix: KeyPath, known: Sequence[str] | None = None
    ) -> None:
        """Everything pydantic found below ``prefix``. ``known``: the keys of that very table."""
        for detail in error.errors():
            self.detail(detail, prefix, known)

    def detail(
        self, detail: ErrorDetails, prefix: KeyPath, known: Sequence[str] | None = None
    ) -> None:
        """One thing that pydantic found."""
        path = (*prefix, *(str(part) for part in detail["loc"]))
        kind, given = detail["type"], detail.get("input")
        if kind == "extra_forbidden":
            keys = _known(path) if known is None else known
            if len(self.problems) >= MOST_MEANT:
                self.add(path, "unknown key", "")
                return
            self.nearest(path, path[-1], keys, "key")
            meant = difflib.get_close_matches(path[-1], keys, n=1, cutoff=0.6)
            self.unreadable |= {(*path[:-1], one) for one in meant}  # it is there, not missing
            return
        self._value(kind, detail, given, path)
        self.unreadable.add(path)

    def _value(self, kind: str, detail: ErrorDetails, given: object, path: KeyPath) -> None:
        if kind == "missing":
            self.add(path, "is missing", _EXAMPLES.get(path[-1], ""))
        elif kind == "value_error":
            found = detail["ctx"]["error"]
            self.add(path, *(found.flaw if isinstance(found, InvalidValue) else (str(found),)))
        elif kind.startswith("bool"):
            self.add(path, f"{_short(given)} is not accepted", "write true or false")
        elif kind == "string_type":
            self.add(path, f"{_short(given)} is not accepted", f'write "{_plain(given)}"')
        elif kind in ("dict_type", "model_type", "mapping_type"):
            self.add(path, f"{_short(given)} is not accepted", _table_line(path))
        elif kind == "list_type":
            self.add(
                path, f"{_short(given)} is not accepted", f"write [[{path[-1]}]] above its keys"
            )
        else:
            message = detail["msg"].removeprefix("Input should be ")
            self.add(path, f"{_short(given)} is not accepted", f"write {message}")

    @property
    def errors(self) -> tuple[Problem, ...]:
        """Errors in the order of the file."""
        return tuple(sorted((p for p in self.problems if p.severity == "error"), key=_order))

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """Warnings in the order of the file."""
        return tuple(sorted((p for p in self.problems if p.severity == "warning"), key=_order))


_EXAMPLES = {
    "mode": 'write mode = "A" as the first line',
    "backends": "write [backends] with one line per engine",
    "modes": "write [modes.A] with one line per backend",
    "model": 'write model = "NAME"',
    "from": 'write from = "vllm"',
    "to": 'write to = "ollama"',
    "advice": 'write advice = "llm-only"',
}


def _order(problem: Problem) -> tuple[int, str]:
    return problem.line, problem.key


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _table_line(path: KeyPath) -> str:
    """How a table is written."""
    if path in (("backends",), ("modes",)):
        return _EXAMPLES[path[0]]
    return f"write it as a table: [{'.'.join(path)}]"


def _plain(value: object) -> str:
    """A number, a switch or a lone text in brackets as the text that was meant."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return value[0]
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else "TEXT"


def suggestion(name: str, known: Sequence[str]) -> str:
    """The nearest known name, or all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known)}" if known else ""


def _known(path: KeyPath) -> tuple[str, ...]:
    """Keys of the table that ``path`` lies in."""
    table: Any = FILE_TABLE
    for part in path[:-1]:
        if part.isdigit():
            continue
        info = table.model_fields.get(part)
        inner = info.annotation if info else None
        args = getattr(inner, "__args__", ())
        table = args[0] if args else inner
        if not (isinstance(table, type) and issubclass(table, BaseModel)):
            return ()
    return key_names(table)


def env_name(path: Sequence[str]) -> str:
    """The variable that sets this key."""
    return PREFIX + "__".join(part.upper() for part in path)


def parse(
    path: Path, text: str, environ: Mapping[str, str]
) -> tuple[FileSettings | None, dict[str, Any], Report]:
    """Parse text and environment.

    Returns (settings or None, the raw merged tables, the report so far).

    Raises:
        ConfigRefused: the text is no TOML at all.

    """
    try:
        raw = tomllib.loads(text)
        lines = Lines(text)
    except RecursionError:
        right = "no key of ours needs more than four tables or lists within one another"
        raise ConfigRefused(
            (Problem(str(path), 1, "(file)", "tables or lists are nested too deeply", right),)
        ) from None
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        where, line = message.rpartition("(at ")[0].strip(), _toml_line(message, text)
        right = "TOML needs strings in quotes and every bracket closed"
        raise ConfigRefused(
            (Problem(str(path), line, "(file)", where or message, right),)
        ) from None
    except ValueError:  # Python reads no whole number of more than 4,300 digits
        wrong = "holds a number that is too large"
        right = "write it as docs/configuration.md has it"
        raise ConfigRefused((Problem(str(path), 1, "(file)", wrong, right),)) from None
    unread = _unreadable_env(environ)
    environ = {name: value for name, value in environ.items() if name not in unread}
    override = _from_environ(environ, raw)
    report = Report(str(path), lines, frozenset(_leaves(override)))
    report.problems += unread.values()
    merged = _merge(raw, override)
    _unknown_env(environ, report)
    try:
        return _settings(merged), merged, report
    except ValidationError as error:
        report.invalid(error, ())
        return None, merged, report


def _settings(merged: dict[str, Any]) -> FileSettings:
    """Validate what file and environment say together."""

    class Fixed(FILE_TABLE):  # type: ignore[misc,valid-type]
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            # Environment and file are merged already, spelled as the file spells them.
            del init_settings, env_settings, dotenv_settings, file_secret_settings
            return (InitSettingsSource(settings_cls, init_kwargs=merged),)

    return settings_of(FileSettings, Fixed())


class _Environ(EnvSettingsSource):
    """pydantic-settings' own reading of nested variables, from a mapping instead of os.environ."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._given = environ
        super().__init__(FILE_TABLE)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in self._given.items()}


def _from_environ(environ: Mapping[str, str], raw: Mapping[str, Any]) -> dict[str, Any]:
    ours = {k: v for k, v in environ.items() if k.upper().startswith(PREFIX)}
    found = _Environ(ours)()
    return _recase({k: v for k, v in found.items() if k not in _OURS}, raw)


def _unreadable_env(environ: Mapping[str, str]) -> dict[str, Problem]:
    """Variables of ours that cannot be read at all: no text, or no JSON where a table is meant."""
    out = {}
    for name, value in environ.items():
        if not name.upper().startswith(PREFIX):
            continue
        wrong = ""
        try:
            (name + value).encode()
            _Environ({name: value})()
        except UnicodeEncodeError:
            wrong = "is not UTF-8"
        except (SettingsError, ValueError, RecursionError):
            wrong = "is not a table in JSON"
        if wrong:
            shown = name.encode(errors="replace").decode()
            key = shown.upper().removeprefix(PREFIX).lower().replace("__", ".")
            right = f"unset {shown}, or set one key: {PREFIX}ARBITER__POLL=1s"
            out[name] = Problem(f"environment {shown}", 0, key, wrong, right)
    return out


def _recase(given: Mapping[str, Any], like: object) -> dict[str, Any]:
    """Variables are read without case; write names as the file does ('modes.A', not 'modes.a')."""
    spelled = {key.lower(): key for key in like} if isinstance(like, Mapping) else {}
    out: dict[str, Any] = {}
    for key, value in given.items():
        name = spelled.get(key.lower(), key)
        below = like.get(name) if isinstance(like, Mapping) else None
        out[name] = _recase(value, below) if isinstance(value, Mapping) else value
    return out


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        below = out.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        out[key] = _merge(below, value) if both else value  # type: ignore[arg-type]
    return out


def _leaves(given: Mapping[str, Any]) -> set[KeyPath]:
    paths = flatten(given)
    return {one for one in paths if not any(o != one and o[: len(one)] == one for o in paths)}


def _unknown_env(environ: Mapping[str, str], report: Report) -> None:
    known = (*FILE_TABLE.model_fields, *_OURS)
    for name in environ:
        if not name.upper().startswith(PREFIX):
            continue
        first = name.upper().removeprefix(PREFIX).split("__")[0].lower()
        if first not in known:
            report.problems.append(
                Problem(
                    f"environment {name}",
                    0,
                    first,
                    "is no key of the configuration",
                    suggestion(first, known),
                    "warning",
                )
            )


def _toml_line(message: str, text: str) -> int:
    digits = message.rpartition("(at line ")[2].split(",")[0]
    return int(digits) if digits.isdigit() else text.count("\n") + 1
