"""What can still be judged of a file with values that cannot be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from arbiterd.config.schema import (
    ArbiterTable,
    DegradeTable,
    FailoverTable,
    FileSettings,
    ForeignTable,
    GatewayTable,
)

T = TypeVar("T", bound=BaseModel)


def salvage(raw: Mapping[str, object]) -> FileSettings:
    """The file's settings with defaults where a value cannot be read; everything wrong is reported
    already. Backends and modes that are no tables are empty, so that their names are known.
    """
    mode = raw.get("mode")
    modes = _tables(raw.get("modes"))
    return FileSettings.model_construct(
        mode=mode if isinstance(mode, str) else next(iter(modes), ""),
        arbiter=_table(ArbiterTable, raw.get("arbiter")),
        gateway=_table(GatewayTable, raw.get("gateway")),
        foreign=_table(ForeignTable, raw.get("foreign")),
        backends=_tables(raw.get("backends")),
        modes=modes,
        failover=_rules(FailoverTable, raw.get("failover")),
        degrade=_rules(DegradeTable, raw.get("degrade")),
    )


def _tables(given: object) -> dict[str, dict[str, Any]]:
    if not isinstance(given, dict):
        return {}
    return {name: one if isinstance(one, dict) else {} for name, one in given.items()}


def _rules(table: type[T], given: object) -> list[T]:
    """One for each entry, so that their numbers stay those of the file."""
    return [_table(table, one) for one in given] if isinstance(given, list) else []


def _table(table: type[T], given: object) -> T:
    """The table without what cannot be read: a key that it needs is empty, any other one is not there."""
    values = dict(given) if isinstance(given, dict) else {}
    needed = {
        field.alias or key for key, field in table.model_fields.items() if field.is_required()
    }
    while True:
        try:
            return table.model_validate(values)
        except ValidationError as error:
            for key in {str(detail["loc"][0]) for detail in error.errors()}:
                if key in needed:
                    values[key] = [] if table is DegradeTable and key == "to" else ""
                else:
                    del values[key]
