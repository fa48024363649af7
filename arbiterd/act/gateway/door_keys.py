"""Keys and certificate for the doors: read now and then, written where HAProxy reads them."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import replace

from arbiterd.act.gateway.files import put
from arbiterd.files import bounded
from arbiterd.gateway import keys
from arbiterd.gateway.paths import Paths
from arbiterd.model.settings import Kind, Settings
from arbiterd.secrets.keyring import Keyring

LOOK_EVERY_S = 1.0


def _pem(path: str) -> str:
    text = bounded.regular(path, bounded.FILE_BYTES).decode("ascii")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    bounded.aside(path, lambda: context.load_cert_chain(path, password=_no_password))
    return text


def _no_password() -> str:
    """An encrypted key cannot be opened by anybody here; without this OpenSSL would ask a terminal."""
    return ""


class DoorKeys:
    """One gateway's. ``problem``: why the doors let nobody in, "" when they do."""

    def __init__(self, where: Paths, ring: Keyring, *, shared: bool) -> None:
        self._where = where
        self._ring = ring
        self._shared = shared
        self._settings: Settings | None = None
        self._looked_at = 0.0
        self._keys = keys.Keys()
        self._files: Mapping[str, str] = {}
        self.problem = ""

    def of(self, settings: Settings, now: float) -> keys.Keys:
        """What the configuration has to know, read again when the settings are others, else once a
        second: a renewed certificate and a new key need no reload by hand.
        """
        if self._settings is settings and now - self._looked_at < LOOK_EVERY_S:
            return self._keys
        self._settings, self._looked_at = settings, now
        gateway = settings.gateway
        doors = self._ring.doors(gateway.key_file) if gateway.key_file else None
        engines = {one.name: self._ring.engine(one) for one in settings.active.backends.values()}
        pem, missing = self._certificate(gateway.certificate)
        found, self._files = keys.made(doors, engines, pem, self._ring.refusing)
        self._keys = replace(found, origins=self._origins(settings))
        self.problem = missing
        if doors == ():
            self.problem = f"{gateway.key_file} has no key or cannot be read: every client gets 401"
        return self._keys

    def _origins(self, settings: Settings) -> tuple[str, ...]:
        """OLLAMA_ORIGINS of env_files: init leaves an EnvironmentFile's variables there."""
        ollamas = [one for one in settings.active.backends.values() if one.kind is Kind.OLLAMA]
        return tuple(
            origin
            for one in ollamas
            for origin in self._ring.value(one, "OLLAMA_ORIGINS").split(",")
            if origin
        )

    def write(self) -> None:
        """The files that the configuration names; before HAProxy is asked about it."""
        for name, text in self._files.items():
            put(self._where.files / name, text, shared=self._shared)

    def _certificate(self, path: str) -> tuple[str, str]:
        """(its text, why there is none). A file that cannot be read keeps the one in force."""
        if not path:
            return "", ""
        try:
            return _pem(path), ""
        except (OSError, ValueError) as error:  # SSLError is an OSError
            why = "no certificate with its private key is in it"
            if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
                why = str(error.strerror)
            kept = self._files.get(keys.CERTIFICATE, "") or self._kept()
            return kept, f"cannot read the certificate {path}: {why}"

    def _kept(self) -> str:
        try:
            return (self._where.files / keys.CERTIFICATE).read_text(encoding="ascii")
        except (OSError, ValueError):
            return ""
