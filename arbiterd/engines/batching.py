"""TensorFlow Serving's batching parameters: the file's text form, and what they mean for memory.

Fields of tensorflow/serving, servables/tensorflow/session_bundle_config.proto, BatchingParameters;
what is not given is as in TensorFlow's batching_util/basic_batch_scheduler.h.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Final

from arbiterd.model.engine_options import Batching

PLAIN: Final = frozenset(
    {"allowed_batch_sizes", "pad_variable_length_inputs"}
)  # no wrapper message
NAMES: Final = tuple(one.name for one in fields(Batching) if one.name not in ("text", "path"))
DEFAULT_BATCH, DEFAULT_QUEUE = 1000, 10
_WORDS = frozenset({"thread_pool_name"})
_SWITCHES = frozenset({"pad_variable_length_inputs", "enable_large_batch_splitting"})
_TOKEN = re.compile(
    r"\s+|\#[^\n]*|(?P<token>[A-Za-z_][\w]*|-?\d+|\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|[{}<>\[\]:,;])"
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a text: its line, what, and what would be right."""

    line: int
    wrong: str
    right: str


def render(batching: Batching) -> str:
    """The file: the operator's own text, or the table in text form."""
    if batching.text:
        return batching.text
    rows = []
    for name in NAMES:
        value = getattr(batching, name)
        if value is None or value == ():
            continue
        for one in value if isinstance(value, tuple) else (value,):
            text = json.dumps(one)
            rows.append(f"{name}: {text}\n" if name in PLAIN else f"{name} {{ value: {text} }}\n")
    return "".join(rows)


def contradictions(batching: Batching) -> Iterator[tuple[str, str, str]]:
    """(field, what is wrong, what would be right): rules of batching_session.cc, which ends the server."""
    sizes = batching.allowed_batch_sizes
    if any(left >= right for left, right in pairwise(sizes)):
        yield "allowed_batch_sizes", "are not in increasing order", "sort them"
    elif sizes:
        name, most = "max_batch_size", batching.max_batch_size or DEFAULT_BATCH
        if batching.enable_large_batch_splitting and batching.max_execution_batch_size:
            name, most = "max_execution_batch_size", batching.max_execution_batch_size
        if sizes[-1] != most:
            wrong = f"end with {sizes[-1]}, but {name} is {most}"
            yield (
                "allowed_batch_sizes",
                wrong,
                f"let the last one be {most}, or write {name} = {sizes[-1]}",
            )


def memory(batching: Batching) -> str:
    """What these parameters mean for memory, one sentence."""
    size = batching.max_batch_size or DEFAULT_BATCH
    if batching.enable_large_batch_splitting:
        size = batching.max_execution_batch_size or size
    threads, queue = batching.num_batch_threads, batching.max_enqueued_batches or DEFAULT_QUEUE
    count = (
        f"{threads} batches" if threads else "one batch per CPU core (num_batch_threads is not set)"
    )
    total = f", {threads * size} examples" if threads else ""
    return (
        f"{count} of up to {size} examples at a time{total}: their activations must fit into the cap "
        f"beside the weights; {queue} batches per model wait in host memory"
    )


def parse(text: str) -> tuple[Batching, tuple[Fault, ...]]:
    """Read a BatchingParameters text; what cannot be read is a fault and left out."""
    reader = _Reader(text)
    values: dict[str, Any] = {}
    sizes: list[int] = []
    for name, line, tokens in reader.fields():
        if name not in NAMES:
            close = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.6)
            right = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(NAMES)}"
            reader.faults.append(Fault(line, f"unknown field {name!r}", right))
            continue
        found = [_value(name, token) for token in tokens]
        if not found or None in found or (len(found) > 1 and name != "allowed_batch_sizes"):
            wrong = f"{name} has no value that it takes: {' '.join(tokens) or 'none'}"
            reader.faults.append(Fault(line, wrong, f"write {_example(name)}"))
        elif name == "allowed_batch_sizes":
            sizes += [one for one in found if isinstance(one, int)]
        else:
            values[name] = found[0]
    made = Batching(text=text, **values, allowed_batch_sizes=tuple(sizes))
    return made, tuple(reader.faults)


def _example(name: str) -> str:
    if name in PLAIN:
        return f"{name}: {'true' if name in _SWITCHES else '8'}"
    inner = '"NAME"' if name in _WORDS else "true" if name in _SWITCHES else "32"
    return f"{name} {{ value: {inner} }}"


def _value(name: str, token: str) -> object:
    if name in _WORDS:
        return token[1:-1] if token[:1] in "\"'" else None
    if name in _SWITCHES:
        return {"true": True, "false": False, "1": True, "0": False, "t": True, "f": False}.get(
            token
        )
    return int(token) if re.fullmatch(r"-?\d+", token) else None


class _Reader:
    """Protobuf's text form, as far as this message needs it."""

    def __init__(self, text: str) -> None:
        self.faults: list[Fault] = []
        self._tokens: list[tuple[str, int]] = []
        at, line = 0, 1
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                self.faults.append(
                    Fault(line, f"cannot be read at {text[at : at + 20]!r}", "see the proto")
                )
                break
            if match["token"]:
                self._tokens.append((match["token"], line))
            line += match[0].count("\n")
            at = match.end()

    def fields(self) -> Iterator[tuple[str, int, list[str]]]:
        """(name, line, tokens of its value) of every field."""
        tokens = self._tokens
        at = 0
        while at < len(tokens):
            name, line = tokens[at]
            at += 1
            if name in (",", ";"):
                continue
            if at < len(tokens) and tokens[at][0] == ":":
                at += 1
            inner: list[str] = []
            if at < len(tokens) and tokens[at][0] in "{<[":
                close = {"{": "}", "<": ">", "[": "]"}[tokens[at][0]]
                at += 1
                while at < len(tokens) and tokens[at][0] != close:
                    inner.append(tokens[at][0])
                    at += 1
                at += 1
                inner = [one for one in inner if one not in (",", ":", ";", "value")]
            elif at < len(tokens):
                inner = [tokens[at][0]]
                at += 1
            yield name, line, inner
