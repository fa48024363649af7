"""What can still be judged of a file with values that cannot be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from arbiterd.config.schema import FileSettings, settings_of, table_of
from arbiterd.model.keys import keys_of
from arbiterd.model.settings import (
    ArbiterSettings,
    Degrade,
    Failover,
    ForeignSettings,
    GatewaySettings,
)

T = TypeVar("T")


def salvage(raw: Mapping[str, object]) -> FileSettings:
    """The file's settings with defaults where a value cannot be read; everything wrong is reported
    already. Backends and modes that are no tables are empty, so that their names are known.
    """
    mode = raw.get("mode")
    modes = _tables(raw.get("modes"))
    return FileSettings(
        mode=mode if isinstance(mode, str) else next(iter(modes), ""),
        arbiter=_table(ArbiterSettings, raw.get("arbiter")),
        gateway=_table(GatewaySettings, raw.get("gateway")),
        foreign=_table(ForeignSettings, raw.get("foreign")),
        backends=_tables(raw.get("backends")),
        modes=modes,
        failover=_rules(Failover, raw.get("failover")),
        degrade=_rules(Degrade, raw.get("degrade")),
    )


def _tables(given: object) -> dict[str, dict[str, Any]]:
    if not isinstance(given, dict):
        return {}
    return {name: one if isinstance(one, dict) else {} for name, one in given.items()}


def _rules(owner: type[T], given: object) -> tuple[T, ...]:
    """One for each entry, so that their numbers stay those of the file."""
    return tuple(_table(owner, one) for one in given) if isinstance(given, list) else ()


def _table(owner: type[T], given: object) -> T:
    """The table without what cannot be read: a key that it needs is empty, any other one is not there."""
    values = dict(given) if isinstance(given, dict) else {}
    empty = {one.name: one.type() for one in keys_of(owner) if one.default is ...}
    table = table_of(owner)  # type: ignore[arg-type]
    while True:
        try:
            return settings_of(owner, table.model_validate(values))
        except ValidationError as error:
            for key in {str(detail["loc"][0]) for detail in error.errors()}:
                if key in empty:
                    values[key] = empty[key]
                else:
                    del values[key]
