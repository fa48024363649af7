"""Lines of the NVML worker, held against their form before anything is done with them.

The worker is ours, its standard output is not only ours: a vendor's library prints there as well, and a
worker that is killed leaves half a line. A line of another form is no answer: the deadline of the order
sees to the worker, and the thread that reads goes on.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypeAlias

from pydantic import Discriminator, Field, Tag, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from arbiterd.files import strict_json

_Index = Annotated[int, Field(ge=0)]
_Size = Annotated[int, Field(ge=0)]


class _Identity(TypedDict):
    i: _Index
    nodes: NotRequired[list[str]]
    mig: NotRequired[bool]
    recovery: NotRequired[int]
    parent: NotRequired[str]
    instance: NotRequired[tuple[int, int]]
    processes: NotRequired[list[tuple[_Index, _Size | None]]]
    processes_error: NotRequired[str]
    sm: NotRequired[list[tuple[int, int]]]
    used_before: NotRequired[_Size]


class _Read(_Identity):
    """A device whose memory was read."""

    uuid: Annotated[str, Field(min_length=1)]
    name: str
    bus: str
    at: float
    mig: bool  # type: ignore[misc]
    memory: tuple[_Size, _Size, _Size, _Size]


class _Failed(_Identity):
    """One that NVML refuses."""

    state: Literal["lost", "fault", "unknown"]
    error: str
    uuid: str
    name: str
    bus: str


class _Hole(_Identity):
    """An index that names nobody."""

    state: Literal["lost", "fault", "unknown"]
    error: str


def _row(found: Any) -> str:
    if isinstance(found, dict) and "memory" in found:
        return "read"
    return "failed" if isinstance(found, dict) and "uuid" in found else "hole"


_Row = Annotated[
    Annotated[_Read, Tag("read")]
    | Annotated[_Failed, Tag("failed")]
    | Annotated[_Hole, Tag("hole")],
    Discriminator(_row),
]


class _Sample(TypedDict):
    seq: int
    again: bool
    wake: bool
    devices: list[_Row]


class _Xid(TypedDict):
    xid: Annotated[int, Field(ge=0)]
    uuid: str
    gpu: str
    at: float


class _Events(TypedDict):
    events: bool


class _Fatal(TypedDict):
    fatal: str


_FORMS: dict[str, TypeAdapter[Any]] = {
    "xid": TypeAdapter(_Xid),
    "events": TypeAdapter(_Events),
    "fatal": TypeAdapter(_Fatal),
    "seq": TypeAdapter(_Sample),
}
Answer: TypeAlias = "dict[str, Any]"


def parsed(line: str) -> Answer | None:
    """An answer of the worker, None for a line that is none."""
    try:
        found = strict_json.loads(line)
        form = next((one for key, one in _FORMS.items() if key in found), None)
        answer: Answer | None = form.validate_python(found) if form else None
    except (ValueError, TypeError, ValidationError):
        return None
    rows = answer.get("devices", ()) if answer else ()
    whole = {row["uuid"] for row in rows if "uuid" in row and "parent" not in row}
    return answer if all(row.get("parent", "") in {*whole, ""} for row in rows) else None
