"""Who may read the API over TCP: which names it answers to, which token it asks for, what it leaves out.

The unix socket has none of this: who may open it may operate the host (web/admin.py).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import re
import time
from collections.abc import Callable, Iterable
from functools import lru_cache

from aiohttp import web

from arbiterd.gateway.hosts import Names, host_pattern, tidy
from arbiterd.model.settings import ArbiterSettings, Settings
from arbiterd.secrets.token_file import LEAST, read_token
from arbiterd.web.replies import Handler, error, shown
from arbiterd.web.snapshot import Holder

_LOOK_EVERY_S = 1.0
_FREE = ("/livez",)
# What every browser sends and no page can leave out. Origin and Sec-Fetch-* are not enough here: a page
# that reads by GET over plain HTTP, from the name that it came from, is sent with neither.
_BROWSER = ("origin", "accept-language")
# what a proxy adds: then the other end of the connection is not the one who reads
_FORWARDED = ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via")
OUTSIDER: web.RequestKey[bool] = web.RequestKey("outsider", bool)


class Token:
    """The token of a file, read again when the file has changed; never on the web thread itself."""

    def __init__(self) -> None:
        self._path = ""
        self._token = ""  # nosec B105 # empty: none
        self._looked_at = -1e9
        self.problem = ""

    async def known(self, path: str) -> str:
        """The token, "" while the file will not do: then nobody has it."""
        now = time.monotonic()
        if path != self._path or now - self._looked_at >= _LOOK_EVERY_S:
            self._path, self._looked_at = path, now
            try:
                found = await asyncio.get_running_loop().run_in_executor(None, read_token, path)
                self._token, self.problem = found, ""
            except (OSError, ValueError) as failed:
                self._token, self.problem = "", str(failed)
        return self._token


class Guard:
    """The middleware of the TCP side. ``here``: hostname and FQDN of this machine. ``heard``: told each
    name that a program was answered by though it is none of ours.
    """

    def __init__(
        self, holder: Holder, here: Callable[[], Iterable[str]], heard: Callable[[str], None]
    ) -> None:
        self._holder = holder
        self._heard = heard
        self._here = here
        self._token = Token()

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """403 for a name that is not ours, 401 without the token; then what outsiders are shown."""
        published = self._holder.get()
        if published is None:
            return await handler(request)
        settings = published.settings
        refused = self._named(request, settings) or await self._asked(request, settings.arbiter)
        if refused is not None:
            return refused
        request[OUTSIDER] = outsider(request, settings.arbiter)
        return await handler(request)

    def _named(self, request: web.Request, settings: Settings) -> web.Response | None:
        """DNS rebinding: a page of evil.example, whose name now leads here, reads what is here. Beyond
        loopback programs come by names that only the router knows: as at the doors, only browsers are
        refused there (gateway/guards.py).
        """
        hosts = request.headers.getall("Host", [])
        if len(hosts) > 1:
            return error(400, "bad_request", "the request has more than one Host")
        gateway = settings.gateway
        names = tidy((*self._here(), gateway.advertise, *gateway.hosts, _listen(settings.arbiter)))
        if not hosts or _pattern(names).fullmatch(hosts[0].lower()):
            return None
        name = shown(re.sub(r":[0-9]*$", "", hosts[0]), 60)
        if not (is_loopback(settings.arbiter.listen_host) or _of_browser(request)):
            self._heard(name.lower())
            return None
        text = f'this host is not known as {name}; if it is: [gateway] hosts = ["{name}"]'
        return error(403, "unknown_host", text)

    async def _asked(self, request: web.Request, arbiter: ArbiterSettings) -> web.Response | None:
        if not arbiter.token_file or request.path in _FREE:
            return None
        token = await self._token.known(arbiter.token_file)
        given = _shown_token(request.headers.get("Authorization", ""))
        # Compared also where there is none: both take the same time.
        right = (token or "-" * LEAST).encode()
        same = hmac.compare_digest(given.encode(errors="surrogateescape"), right)
        if token and same:
            return None
        text = "send the token: Authorization: Bearer TOKEN, or as password with any user name"
        reply = error(401, "unauthorized", text)
        reply.headers["WWW-Authenticate"] = 'Basic realm="gpu-arbiter", Bearer'
        return reply


def _shown_token(header: str) -> str:
    """What the client offers; browsers know no Bearer, and ask for a password."""
    scheme, _, rest = header.strip().partition(" ")
    rest = rest.strip()
    if scheme.lower() == "bearer":
        return rest
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


def _of_browser(request: web.Request) -> bool:
    names = [key.lower() for key in request.headers]
    agent = request.headers.get("User-Agent", "")
    return agent.startswith("Mozilla/") or any(
        one in _BROWSER or one.startswith("sec-fetch-") for one in names
    )


def outsider(request: web.Request, arbiter: ArbiterSettings) -> bool:
    """Whether other users' processes are left out: the API faces a network, itself or by a proxy."""
    if arbiter.expose == "full":
        return False
    return not is_loopback(arbiter.listen_host) or any(
        name in request.headers for name in _FORWARDED
    )


def is_loopback(host: str) -> bool:
    """Of an address or name as ``listen`` has it."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def _listen(arbiter: ArbiterSettings) -> str:
    """A name in ``listen`` is one of ours; an address is taken anyway."""
    return arbiter.listen_host if re.search("[a-z]", arbiter.listen_host) else ""


@lru_cache(maxsize=8)
def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(host_pattern(Names(names)))
