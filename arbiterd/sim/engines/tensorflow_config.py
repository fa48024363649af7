"""What the stand-in TensorFlow Serving reads of its files: models, versions, labels, monitoring."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_TEXT = r"""["']([^"']*)["']"""
_BATCHING = frozenset(
    {
        *("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads"),
        *("thread_pool_name", "allowed_batch_sizes", "pad_variable_length_inputs"),
        *("enable_large_batch_splitting", "max_execution_batch_size", "mixed_priority_policy"),
        *("low_priority_max_batch_size", "low_priority_batch_timeout_micros"),
        *("low_priority_max_enqueued_batches", "low_priority_allowed_batch_sizes"),
        "value",
    }
)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One model of --model_config_file. ``wanted``: its versions by policy; () the newest, None all."""

    name: str
    path: str
    wanted: tuple[int, ...] | None = ()
    labels: dict[str, int] = field(default_factory=dict)

    def versions(self) -> list[int]:
        """What is there of the wanted ones, oldest first; folders are numbers, leading zeros allowed."""
        folder = Path(self.path)
        there = (
            sorted(int(one.name) for one in folder.iterdir() if one.name.isdigit())
            if folder.is_dir()
            else []
        )
        if self.wanted is None:
            return there
        return [one for one in there if one in self.wanted] if self.wanted else there[-1:]


def models_of(text: str) -> list[ModelConfig]:
    """Of a ModelServerConfig in text form."""
    return [_model(block) for block in _blocks(text, "config")]


def _model(block: str) -> ModelConfig:
    def one(name: str) -> str:
        found = re.search(rf"\b{name}\s*:\s*{_TEXT}", block)
        return found[1] if found else ""

    wanted: tuple[int, ...] | None = ()
    for policy in _blocks(block, "model_version_policy"):
        wanted = tuple(int(number) for number in re.findall(r"\bversions\s*:\s*(\d+)", policy))
        if re.search(r"\ball\b", policy):
            wanted = None
    labels = {}
    for label in _blocks(block, "version_labels"):
        key = re.search(rf"\bkey\s*:\s*{_TEXT}", label)
        value = re.search(r"\bvalue\s*:\s*(\d+)", label)
        if key and value:
            labels[key[1]] = int(value[1])
    return ModelConfig(one("name"), one("base_path"), wanted, labels)


def _blocks(text: str, name: str) -> Iterator[str]:
    """What stands between the braces of every ``name {...}``."""
    for found in re.finditer(rf"\b{name}\s*:?\s*\{{", text):
        depth, at = 1, found.end()
        while depth and at < len(text):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        yield text[found.end() : at - 1]


def metrics_path(text: str) -> str:
    """Where the page of metrics is, "" for nowhere (util/prometheus_exporter.cc has the default)."""
    if not re.search(r"\benable\s*:\s*true", text):
        return ""
    found = re.search(rf"\bpath\s*:\s*{_TEXT}", text)
    return found[1] if found and found[1] else "/monitoring/prometheus/metrics"


def batching_problem(text: str, path: str) -> str:
    """Why a BatchingParameters file cannot be read, "" when it can."""
    for name in re.findall(r"(\w+)\s*(?::|\{)", re.sub(r"#.*", "", text)):
        if name not in _BATCHING:
            return f"INVALID_ARGUMENT: Invalid protobuf file: '{path}'"
    return ""
