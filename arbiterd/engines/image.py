"""What the words of an image's configuration mean: its name, its tag, a volume."""

from __future__ import annotations

import re
from typing import Final

from arbiterd.model.settings import Kind

VERSION_MATTERS: Final = frozenset({Kind.VLLM, Kind.OLLAMA})  # their launch lines depend on it
IMAGE: Final = re.compile(r"[A-Za-z0-9][\w./:@-]*")
_VOLUME = re.compile(r"((?:/[^:]*)|(?:[A-Za-z0-9][\w.-]*)):(/[^:]*)(?::(ro|rw))?")
_TAG = re.compile(r"(?<![\d.])v?(\d+\.\d+(?:\.\d+)?)(?![\d.])")


def image_version(image: str) -> str:
    """The version told by an image's tag: 'vllm/vllm-openai:v0.30.0' → '0.30.0'; "" when none is.

    A digest is cut off first; a registry's port is no tag.
    """
    name = image.partition("@")[0].rpartition("/")[2]
    found = _TAG.match(name.partition(":")[2])
    return found[1] if found else ""


def volume(text: str) -> tuple[str, str, bool] | None:
    """'SOURCE:TARGET[:ro]' as (source, target, read only); None when it is none."""
    found = _VOLUME.fullmatch(text)
    return (found[1], found[2], found[3] == "ro") if found else None
