"""Ollama's model names, compared as Ollama compares them. Pure; the only place that does.

A name is ``[scheme://][HOST/][NAMESPACE/]MODEL[:TAG]``: blanks around it are cut off, the host is
registry.ollama.ai, the namespace library, the tag latest unless given, letter case never counts,
neither does the scheme (ollama types/model/name.go, internal/modelref/modelref.go,
getExistingName in server/routes.go; recorded on 0.33).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG = "registry.ollama.ai", "library", "latest"
# What Go's strings.TrimSpace cuts off; Python's own strip() takes more.
_BLANKS = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    chr(one) for one in range(0x2000, 0x200B)
)
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_CLOUD = "~cloud"  # no part of a name can have a tilde: never equal to a model on this disk


@dataclass(frozen=True, slots=True)
class ModelName:
    """A valid name, all parts filled in, letter case as given. ``cloud``: it asks for ollama.com's."""

    host: str
    namespace: str
    model: str
    tag: str
    cloud: bool = False

    @property
    def key(self) -> str:
        """What two spellings of one model have in common: lower case, defaults other than the tag
        left out, as in /api/ps: ``qwen2.5:3b``, ``llama3.2:latest``, ``hf.co/org/model:q4_0``.
        """
        out = f"{self.model}:{self.tag}"
        if self.host.lower() != DEFAULT_HOST:
            out = f"{self.host}/{self.namespace}/{out}"
        elif self.namespace.lower() != DEFAULT_NAMESPACE:
            out = f"{self.namespace}/{out}"
        return out.lower() + (_CLOUD if self.cloud else "")


@lru_cache(maxsize=256)
def parse(name: str) -> ModelName | None:
    """The name as Ollama reads it; None for one that it answers with 'invalid model name'."""
    base, source = _without_source(name.strip(_BLANKS))
    if source and _without_source(base)[1]:
        return None  # ':local' and ':cloud' at once
    whole, colon, tag = base.rpartition(":")
    if not colon or "/" in tag:
        whole, tag = base, DEFAULT_TAG
    before, slash, model = whole.rpartition("/")
    if not slash:
        host, namespace = DEFAULT_HOST, DEFAULT_NAMESPACE
    else:
        before, slash, namespace = before.rpartition("/")
        host = before.split("://", 1)[-1] if slash else DEFAULT_HOST
    valid = (
        _HOST.fullmatch(host)
        and _NAMESPACE.fullmatch(namespace)
        and _PART.fullmatch(model)
        and _PART.fullmatch(tag)
    )
    return ModelName(host, namespace, model, tag, source == "cloud") if valid else None


def _without_source(name: str) -> tuple[str, str]:
    """The name without ':cloud', ':local' or '-cloud' behind a tag, and which of the two it was."""
    whole, colon, suffix = name.rpartition(":")
    suffix = suffix.strip(_BLANKS)
    low = suffix.lower()
    if colon and low in ("cloud", "local"):
        return whole, low
    if colon and "/" not in suffix and low.endswith("-cloud"):
        return f"{whole}:{suffix[: -len('-cloud')]}", "cloud"
    return name, ""


@lru_cache(maxsize=256)
def key(name: str) -> str:
    """Equal for all spellings of one model (``ModelName.key``). An invalid name is only equal to
    itself: it comes back as it is.
    """
    found = parse(name)
    return name if found is None else found.key


def same_model(left: str, right: str) -> bool:
    """Whether both names mean one model."""
    return key(left) == key(right)


def is_listed(model: str, names: Iterable[str]) -> bool:
    """Whether one of these names means this model."""
    wanted = key(model)
    return any(key(one) == wanted for one in names)
