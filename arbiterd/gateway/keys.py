"""Keys of doors and engines as files that HAProxy reads; the configuration names the files only. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

DOORS, ENGINES, CERTIFICATE = "keys", "engine-keys.map", "door.pem"
KEYED = "x-arbiter-keyed"  # tells the gate whose key the client has shown; ALL: the door's own
ALL = "*"


@dataclass(frozen=True, slots=True)
class Keys:
    """``asked``: every door asks for a key. ``known``: backends that demand a key which is known.
    ``certificate``: the doors speak TLS. ``digest`` changes when any key or the certificate does.
    ``unknown``: backends that have answered 401 and whose key is not known: no client can show it.
    ``origins``: not secret, but read from the same env_files: what OLLAMA_ORIGINS names there.
    """

    asked: bool = False
    known: tuple[str, ...] = ()
    certificate: bool = False
    digest: str = ""
    unknown: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    @property
    def guarded(self) -> tuple[str, ...]:
        """Every backend that demands a key of its clients."""
        return (*self.known, *self.unknown)


def of_backend(name: str) -> str:
    """The file with all the keys that a backend takes."""
    return f"key-{name}"


def made(
    doors: Sequence[str] | None,
    engines: Mapping[str, Sequence[str]],
    certificate: str,
    refusing: Collection[str] = (),
) -> tuple[Keys, dict[str, str]]:
    """What the configuration has to know, and the files. ``doors``: None when no door asks.
    ``refusing``: backends that have answered 401.
    """
    known = {name: keys for name, keys in engines.items() if keys}
    files = {DOORS: _lines(doors or ())}
    files[ENGINES] = "".join(f"{name} {keys[0]}\n" for name, keys in known.items())
    files |= {of_backend(name): _lines(keys) for name, keys in known.items()}
    if certificate:
        files[CERTIFICATE] = certificate
    digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:12]
    unknown = tuple(name for name in engines if name in refusing and name not in known)
    return Keys(doors is not None, tuple(known), bool(certificate), digest, unknown), files


def _lines(keys: Sequence[str]) -> str:
    return "".join(f"{key}\n" for key in keys)
