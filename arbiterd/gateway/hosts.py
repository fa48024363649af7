"""Which names a door answers to, and which pages may read its answers. Pure text.

Ollama's own protection ends where Host is rewritten and Origin taken away, so that the door decides:
rebinding needs a DNS name, hence every IP literal is taken (ollama: server/routes.go, allowedHost).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from arbiterd.model.settings import Kind, Settings

_OCTET = "(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])"
_LABELS = r"([a-z0-9_-]+\.)"
_ALWAYS = (
    rf"({_OCTET}\.){{3}}{_OCTET}",
    r"\[[0-9a-f:.]+(%[^]/]*)?\]",
    "[0-9a-f]*:[0-9a-f:.]*:[0-9a-f.]*",  # IPv6 without brackets; no name has a colon
    rf"{_LABELS}*localhost",
    rf"{_LABELS}+(local|internal)",
)
# envconfig/config.go, AllowedOrigins
_OWN_ORIGINS = ("localhost", "127.0.0.1", "0.0.0.0", "[::1]")  # nosec B104 # a name in Host
_APPS = "(app|file|tauri|vscode-webview|vscode-file)://.*"


@dataclass(frozen=True, slots=True)
class Names:
    """``hosts``: own names in lower case; ``*.x``: every name below x; ``*``: every name.
    ``origins``: scheme://host[:port] in lower case, ``*`` for any text. ``closed``: bound to
    loopback, where no other name can be meant.
    """

    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    closed: bool = True


def names_of(settings: Settings, here: Iterable[str] = (), origins: Iterable[str] = ()) -> Names:
    """The names of the file, and ``here``: hostname and FQDN of this machine. ``origins``: those that
    OLLAMA_ORIGINS names in an env_file.
    """
    gateway = settings.gateway
    hosts = [*here, gateway.advertise, *gateway.hosts]
    allowed = [*gateway.cors, *origins]
    for one in settings.active.backends.values():
        if one.kind is Kind.OLLAMA:
            allowed += one.env.get("OLLAMA_ORIGINS", "").split(",")
    return Names(
        tidy(hosts),
        tidy(o.rstrip("/") for o in allowed),
        ipaddress.ip_address(gateway.bind).is_loopback,
    )


def tidy(words: Iterable[str]) -> tuple[str, ...]:
    """Names in lower case, each once, without what no name has."""
    kept = (re.sub(r"[^!-&(-~]", "", word).lower().rstrip(".") for word in words)
    return tuple(dict.fromkeys(word for word in kept if word))


def _named(host: str) -> str:
    if host == "*":
        return ".*"
    return f"{_LABELS}+{re.escape(host[2:])}" if host.startswith("*.") else re.escape(host)


def host_pattern(names: Names) -> str:
    """Regular expression of every Host that is answered, in lower case; no Host is one of them."""
    return rf"^({'|'.join([*_ALWAYS, *map(_named, names.hosts)])})?\.?(:[0-9]*)?$"


def origin_pattern(names: Names) -> str:
    """Regular expression of every Origin that may read answers, in lower case."""
    own = [re.escape(one) for one in _OWN_ORIGINS]
    own += [_named(one) for one in names.hosts if one != "*"]
    given = [re.escape(one).replace(r"\*", ".*") for one in names.origins]
    return f"^({'|'.join([f'https?://({chr(124).join(own)})(:[0-9]+)?', _APPS, *given])})$"
