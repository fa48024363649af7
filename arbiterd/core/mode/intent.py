"""What a backend was meant to be, as a digest: the config that concerns it, never the argv.

Only values that differ from their defaults take part, so a new version of ours that learns a new
key restarts nothing (design, section 7).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import TypeAlias
from weakref import ref

from arbiterd.model.keys import arbiter_only
from arbiterd.model.settings import BackendSettings, Share

Plain: TypeAlias = "str | int | float | bool | list[Plain] | dict[str, Plain] | None"

ARBITER_ONLY = arbiter_only(BackendSettings)
_known: dict[tuple[int, int], tuple[ref[BackendSettings], ref[Share], str]] = {}


def intent(backend: BackendSettings, share: Share) -> str:
    """Digest of what the operator wants of this backend in this mode.

    Remembered by identity, for as long as both live: settings are frozen, and every tick asks. A number of
    remembered ones would either hold settings of earlier reloads or be too small for a long file.
    """
    if backend.digest:
        return backend.digest
    key = (id(backend), id(share))
    known = _known.get(key)
    if known is not None and known[0]() is backend and known[1]() is share:
        return known[2]
    found = digest(backend, share)

    def forget(gone: ref[BackendSettings] | ref[Share]) -> None:
        kept = _known.get(key)
        # not where another pair has got the same ids
        if kept is not None and (gone is kept[0] or gone is kept[1]):
            _known.pop(key, None)

    _known[key] = (ref(backend, forget), ref(share, forget), found)
    return found


def digest(backend: BackendSettings, share: Share) -> str:
    """Sixteen hex digits over every non-default value that an engine is started with."""
    text = json.dumps([_plain(backend), _plain(share)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: object) -> Plain:
    if is_dataclass(value) and not isinstance(value, type):
        out: dict[str, Plain] = {}
        for one in fields(value):
            item = getattr(value, one.name)
            default = one.default if one.default is not MISSING else None
            if one.name in ARBITER_ONLY or item == default or item in ((), {}):
                continue
            out[one.name] = _plain(item)
        return out
    if isinstance(value, Mapping):
        return {str(key): _plain(value[key]) for key in sorted(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)
