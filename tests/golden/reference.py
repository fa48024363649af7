"""What of the docs is generated: the configuration's keys, of the settings' metadata, and the table of events."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from arbiterd.engines import ENGINES
from arbiterd.engines.base import Defaults
from arbiterd.model.keys import Form, Setting, keys_of
from arbiterd.model.settings import (
    ArbiterSettings,
    BackendSettings,
    Degrade,
    Failover,
    ForeignSettings,
    GatewaySettings,
    Kind,
)
from arbiterd.quantities import GIB, KIB, MIB
from arbiterd.report.catalogue import table

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "configuration.md"
INCIDENTS = ROOT / "docs" / "incidents.md"
CATALOG = ROOT / "units" / "catalog" / "gpu-arbiter.catalog"
BEGIN, END = "<!-- keys: written by python -m tests.golden -->\n", "<!-- end of keys -->\n"
COLUMN, WIDTH = 33, 120


def page() -> str:
    """The page with the reference as the settings have it."""
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}```toml\n{reference()}```\n{END}{rest.partition(END)[2]}"


def incidents() -> str:
    """The page of the incidents; the table at its end is the catalogue's."""
    head = table().partition("\n")[0]
    return INCIDENTS.read_text(encoding="utf-8").partition(head)[0] + table()


def reference() -> str:
    """Every key with its default or an example, and what it means."""
    out = _line('mode = "A"', "the mode in force: a table [modes.NAME]")
    for head, note, keys in _tables():
        out += "\n" + _line(head, note)
        out += "".join(_line(f"{one.name} = {_value(one)}", _meaning(one)) for one in keys)
    return out


def _tables() -> Iterator[tuple[str, str, Sequence[Setting]]]:
    yield "[arbiter]", "", keys_of(ArbiterSettings)
    yield "[gateway]", "", keys_of(GatewaySettings)
    yield "[foreign]", "", keys_of(ForeignSettings)
    names = ", ".join(
        kind.defaults.backend_name for kind in ENGINES.values() if kind.defaults.backend_name
    )
    every = keys_of(BackendSettings)
    yield "[backends.NAME]", f"{names}: the name gives the kind", every
    for kind in Kind:
        name = ENGINES[kind].defaults.backend_name or "NAME"
        own = [one for one in keys_of(BackendSettings, kind) if one not in every]
        yield f"[backends.{name}]", f"further keys of kind {kind.value}", own
    note = "when `from` cannot serve this model, `to` does: at the doors and in /v1/route"
    yield "[[failover]]", note, keys_of(Failover)
    yield "[[degrade]]", "advised when a backend without a substitute is out", keys_of(Degrade)


def _meaning(one: Setting) -> str:
    """What it means, and the defaults that are of the engine kind."""
    of_kind = [
        (engine.defaults.backend_name, getattr(engine.defaults, one.field))
        for engine in ENGINES.values()
        if one.default is None and not one.key.only and one.field in Defaults.__dataclass_fields__
    ]
    told = [f"{name} {_plain(one, value)}" for name, value in of_kind if name and value]
    return "; ".join(part for part in (one.key.meaning, ", ".join(told)) if part)


def _value(one: Setting) -> str:
    if one.key.shown:
        return one.key.shown
    if one.form in (Form.SIZE, Form.DURATION, Form.KEEP_ALIVE):
        return f'"{_plain(one, one.default)}"'
    assert one.default not in (None, ...), f"{one.name} needs an example: Key(shown=...)"
    return json.dumps(one.default, ensure_ascii=False)


def _plain(one: Setting, value: Any) -> str:
    if one.form is Form.SIZE:
        unit, name = next(
            row for row in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")) if value % row[0] == 0
        )
        return f"{value // unit}{name}"
    if one.form in (Form.DURATION, Form.KEEP_ALIVE):
        if value < 1:
            return f"{value * 1000:g}ms"
        return f"{value / 60:g}min" if value > 60 else f"{value:g}s"
    return " ".join(value) if isinstance(value, tuple) else str(value)


def _line(left: str, note: str) -> str:
    """``left`` and its comment, which goes on below itself."""
    if not note:
        return f"{left}\n"
    column = max(COLUMN, len(left) + 1)
    first, *more = textwrap.wrap(note, WIDTH - column - 2, break_on_hyphens=False)
    lines = [f"{left:<{column}}# {first}", *(f"{'':<{column}}# {one}" for one in more)]
    return "\n".join(lines) + "\n"
