"""The tables of the file for pydantic, made of the frozen settings; and settings made of such a table.

What needs two keys is in check.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from functools import cache
from types import NoneType
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic_settings import BaseSettings, SettingsConfigDict

from arbiterd.config.value_types import VALUES
from arbiterd.model.keys import Form, Key, Setting, inlined, keys_of
from arbiterd.model.settings import (
    ArbiterSettings,
    BackendSettings,
    Degrade,
    Failover,
    ForeignSettings,
    GatewaySettings,
    Kind,
)

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileSettings:
    """The whole file. Backends and modes are free tables here: their keys depend on kind and mode."""

    mode: Annotated[str, Key()]
    backends: Annotated[dict[str, dict[str, Any]], Key()]
    modes: Annotated[dict[str, dict[str, Any]], Key()]
    arbiter: Annotated[ArbiterSettings, Key()] = ArbiterSettings()
    gateway: Annotated[GatewaySettings, Key()] = GatewaySettings()
    foreign: Annotated[ForeignSettings, Key()] = ForeignSettings()
    failover: Annotated[tuple[Failover, ...], Key()] = ()
    degrade: Annotated[tuple[Degrade, ...], Key()] = ()


class Table(BaseModel):
    """A table whose keys are those of ``owner``."""

    model_config = ConfigDict(extra="forbid")
    owner: ClassVar[type]


class _Whole(BaseSettings):
    model_config = SettingsConfigDict(
        extra="forbid", env_prefix="GPU_ARBITER_", env_nested_delimiter="__"
    )


@cache
def table_of(owner: Any, kind: str = "") -> type[Table]:
    """The table of a dataclass with keys; of a backend, for its engine kind."""
    made = create_model(owner.__name__, __base__=Table, **_fields(owner, kind))
    made.owner = owner
    return made


def _fields(owner: Any, kind: str = "") -> dict[str, Any]:
    return {
        one.field: (
            _type(one),
            # a BaseSettings validates defaults, too: of a table within it that is an empty one
            Field(
                {} if is_dataclass(one.default) else one.default,
                alias=one.name if one.name != one.field else None,
                ge=one.key.least,
            ),
        )
        for one in keys_of(owner, kind)
    }


def _type(one: Setting) -> Any:
    """What pydantic is to read for it."""
    if one.form is Form.READ_APART:
        return Any
    inner = get_args(one.type)
    if one.form is not None:
        found = VALUES[one.form]
    elif is_dataclass(one.type):
        found = table_of(one.type)  # type: ignore[arg-type]
    elif get_origin(one.type) is tuple:
        found = list[table_of(inner[0])]  # type: ignore[misc]
    else:
        found = dict.__class_getitem__(inner) if get_origin(one.type) is Mapping else one.type
    return found | None if one.default is None or NoneType in inner else found


FILE_TABLE: type[_Whole] = create_model("FileTable", __base__=_Whole, **_fields(FileSettings))
KIND_TABLES: Mapping[str, type[Table]] = {
    kind.value: table_of(BackendSettings, kind) for kind in Kind
}


def settings_of(owner: type[T], table: BaseModel, engine: str = "", **given: Any) -> T:
    """The frozen settings that a validated table holds. ``given``: fields that follow from more than one
    key; a value that is read apart keeps its field's default otherwise.
    """
    own = owner.__dataclass_fields__.keys() - given.keys()  # type: ignore[attr-defined]
    values = {
        one.field: _frozen(getattr(table, one.field))
        for one in keys_of(owner, engine)
        if one.field in own and one.form is not Form.READ_APART
    }
    values |= {name: settings_of(type_, table) for name, type_ in inlined(owner, engine)}
    return owner(**values, **given)


def _frozen(value: object) -> object:
    if isinstance(value, Table):
        return settings_of(value.owner, value)
    return tuple(_frozen(one) for one in value) if isinstance(value, list) else value


def key_names(table: type[BaseModel]) -> tuple[str, ...]:
    """Keys of a table as the file writes them."""
    return tuple(field.alias or name for name, field in table.model_fields.items())
