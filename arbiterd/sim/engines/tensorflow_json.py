"""JSON of a predict request as TensorFlow Serving reads it, and the words of what it refuses
(tensorflow_serving/util/json_tensor.cc, master 9d981c5c). The model is half plus two: y = x / 2 + 2.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

_DEBUG_MOST = 256
_WORDS = {  # Python's words for RapidJSON's
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Expecting ',' delimiter": "Missing a comma or } after an object member.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
}
_NUMBERS = ("DT_FLOAT", "DT_DOUBLE")
_NAMES = {"DT_FLOAT": "float", "DT_DOUBLE": "double", "DT_STRING": "string", "DT_INT64": "int64"}
_NAMES |= {"DT_INT32": "int32", "DT_BOOL": "bool"}


class Invalid(Exception):
    """INVALID_ARGUMENT, with its words."""


def parse(raw: bytes) -> dict[str, Any]:
    """The document; what follows it is not looked at.

    Raises:
        Invalid: it is empty, no JSON, or no object.
    """
    text = raw.decode(errors="replace").lstrip()
    if not raw:
        raise Invalid("JSON Parse error: The document is empty")
    try:
        found, _ = json.JSONDecoder().raw_decode(text)
    except ValueError as error:
        words = _WORDS.get(getattr(error, "msg", ""), "Invalid value.")
        at = getattr(error, "pos", 0)
        raise Invalid(f"JSON Parse error: {words} at offset: {at}") from None
    if not isinstance(found, dict):
        raise Invalid(f"JSON Value: {debug(found)} Is not object")
    return found


def debug(value: Any) -> str:
    """As the real one quotes it: indented by four, lists on one line, at most 256 bytes."""
    return _pretty(value, "")[:_DEBUG_MOST]


def debug_all(value: Any) -> str:
    """The same whole: how answers are written."""
    return _pretty(value, "") + "\n"


def _pretty(value: Any, indent: str) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_pretty(one, indent) for one in value) + "]"
    if not isinstance(value, dict) or not value:
        return json.dumps(value)
    inner = indent + "    "
    rows = [f"{inner}{json.dumps(name)}: {_pretty(one, inner)}" for name, one in value.items()]
    return "{\n" + ",\n".join(rows) + f"\n{indent}}}"


def signature_name(document: Mapping[str, Any]) -> str:
    """Of the request, "" for the default.

    Raises:
        Invalid: it is no text.
    """
    found = document.get("signature_name", "")
    if not isinstance(found, str):
        raise Invalid(
            f"JSON Value: {debug(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return found


def inputs_of(document: Mapping[str, Any], types: Mapping[str, str]) -> tuple[bool, Any]:
    """(row format, the tensors by name). ``types``: data type of each input.

    Raises:
        Invalid: it is neither rows nor columns, or a value does not fit.
    """
    both = "inputs" in document and "instances" in document
    if both:
        raise Invalid(
            f"JSON Value: {debug(document)} Not formatted correctly expecting only one of "
            "'inputs' or 'instances' keys to exist "
        )
    if "instances" in document:
        rows = document["instances"]
        if not isinstance(rows, list):
            raise Invalid(
                f"JSON Value: {debug(document)} Expecting 'instances' to be an list/array"
            )
        if not rows:
            raise Invalid(f"JSON Value: {debug(document)} No values in 'instances' array")
        return True, _rows(rows, types)
    if "inputs" in document:
        return False, _columns(document["inputs"], types)
    raise Invalid("Missing 'inputs' or 'instances' key")


def _is_bytes(value: Any) -> bool:
    return isinstance(value, dict) and list(value) == ["b64"] and isinstance(value["b64"], str)


def _rows(rows: list[Any], types: Mapping[str, str]) -> dict[str, list[Any]]:
    if not isinstance(rows[0], dict) and len(types) > 1:
        raise Invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    named = isinstance(rows[0], dict) and not _is_bytes(rows[0])
    made: dict[str, list[Any]] = {name: [] for name in types}
    for number, row in enumerate(rows):
        is_object = isinstance(row, dict) and not _is_bytes(row)
        if named and not is_object:
            raise Invalid(f"Expecting object but got list at item {number} of input list")
        if not named and is_object:
            raise Invalid(f"Expecting value/list but got object at item {number} of input list")
        where = f"Failed to process element: {number}"
        for name, value in row.items() if named else [(next(iter(types)), row)]:
            key = f" key: {name}" if named else ""
            try:
                _add(made, types, name, value)
            except Invalid as error:
                told = f"{where}{key} of 'instances' list. Error: INVALID_ARGUMENT: {error}"
                raise Invalid(told) from None
        if named and set(row) != set(types):
            raise Invalid(
                f"{where} of 'instances' list. JSON object: {debug(row)} keys must be equal to: "
                + ",".join(sorted(types))
            )
    return made


def _add(made: dict[str, list[Any]], types: Mapping[str, str], name: str, value: Any) -> None:
    if name not in types:
        raise Invalid(f"JSON object: does not have named input: {name}")
    made[name].append(_tensor(value, types[name]))
    _same_shape(made[name])


def _same_shape(values: list[Any]) -> None:
    first, last = _shape(values[0]), _shape(values[-1])
    if _size(first) != _size(last):
        raise Invalid(f"Expecting tensor size: {_size(first)} but got: {_size(last)}")
    if first != last:
        raise Invalid(f"Expecting shape {_shown(first)} but got: {_shown(last)}")


def _shown(shape: list[int]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _size(shape: list[int]) -> int:
    size = 1
    for one in shape:
        size *= one
    return size


def _columns(value: Any, types: Mapping[str, str]) -> dict[str, Any]:
    if not isinstance(value, dict) or _is_bytes(value):
        if len(types) > 1:
            raise Invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        name = next(iter(types))
        return {name: _tensor(value, types[name])}
    for name in types:
        if name not in value:
            raise Invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: _tensor(value[name], kind) for name, kind in types.items()}


def _shape(value: Any) -> list[int]:
    return [len(value), *(_shape(value[0]) if value else [])] if isinstance(value, list) else []


def _tensor(value: Any, kind: str) -> Any:
    """Every list as long as its shape says, every value of the type."""
    _fill(value, 0, _shape(value), kind)
    return value


def _fill(value: Any, level: int, shape: list[int], kind: str) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise Invalid(
                f"JSON Value: {debug(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        _value(value, kind)
        return
    if level >= len(shape):
        raise Invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise Invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    for one in value:
        _fill(one, level + 1, shape, kind)


def _value(value: Any, kind: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    whole = isinstance(value, int) and not isinstance(value, bool)
    fits = {"DT_STRING": isinstance(value, str) or _is_bytes(value)}
    fits |= {"DT_BOOL": isinstance(value, bool)}
    if number if kind in _NUMBERS else fits.get(kind, whole):
        return
    names = {dict: "Object", str: "String", bool: str(value), type(None): "Null"}
    said = names.get(type(value), "Number")
    raise Invalid(
        f"JSON Value: {debug(value)} Type: {said} is not of expected type: {_NAMES.get(kind, kind)}"
    )


def examples(document: Mapping[str, Any]) -> list[Any]:
    """Of classify and regress.

    Raises:
        Invalid: there are none.
    """
    if "examples" not in document:
        raise Invalid(
            f"JSON Value: {debug(document)} When method is classify, key 'examples' is expected and "
            "was not found"
        )
    found = document["examples"]
    if not isinstance(found, list):
        raise Invalid(
            f"JSON Value: {debug(document)} Expecting 'examples' value to be an list/array"
        )
    if not found:
        raise Invalid(f"JSON Value: {debug(document)} 'examples' value is an empty array")
    return found


def mapped(value: Any, change: Callable[[float], float]) -> Any:
    """Every number of nested lists changed."""
    if isinstance(value, list):
        return [mapped(one, change) for one in value]
    return change(float(value)) if isinstance(value, int | float) else change(0.0)


def half_plus_two(value: float) -> float:
    """The test model of TensorFlow Serving's own tests."""
    return value / 2 + 2
