"""A stand-in for ``ollama serve`` (0.33): it holds no memory itself, its runners do.

As strict as the real one: tests/conformance/ollama.json is played on both. Placement is a margin, not
a ceiling: a model gets what is free less LLAMA_ARG_FIT_TARGET (MiB), the rest of its layers goes to
the CPU silently and shows only as size_vram < size.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from fnmatch import fnmatchcase

import psutil

from arbiterd.sim.engines import ollama_cli
from arbiterd.sim.engines.common import LISTENERS, Faults, say
from arbiterd.sim.engines.go_words import Refused, access, log
from arbiterd.sim.engines.ollama_env import Settings, read
from arbiterd.sim.engines.ollama_more import More, anthropic_error
from arbiterd.sim.engines.ollama_native import JSON, Native, packed
from arbiterd.sim.engines.ollama_scheduler import Scheduler
from arbiterd.sim.engines.ollama_v1 import JSON as BARE_JSON
from arbiterd.sim.engines.ollama_v1 import Early, OpenAi, error_body
from arbiterd.sim.engines.wire import Request, listen

Route = Callable[[Request], Awaitable[None]]
_CORS_HEADERS = (
    "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Arch,"
    "X-Stainless-Async,X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,"
    "X-Stainless-Os,X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,"
    "X-Stainless-Runtime,X-Stainless-Runtime-Version,X-Stainless-Timeout"
)


class Api:
    """Routes, and what stands before them: origins, then hosts."""

    def __init__(self, settings: Settings, scheduler: Scheduler) -> None:
        self._settings = settings
        native = Native(scheduler)
        openai, more = OpenAi(native), More(scheduler)
        self._openai, self._native = openai, native
        self._routes: dict[str, dict[str, Route]] = {
            "/": {"HEAD": native.root, "GET": native.root},
            "/api/version": {"HEAD": native.version, "GET": native.version},
            "/api/tags": {"HEAD": native.tags, "GET": native.tags},
            "/api/ps": {"GET": native.ps},
            "/api/status": {"GET": native.status},
            "/api/me": {"POST": native.me},
            "/api/generate": {"POST": native.generate},
            "/api/chat": {"POST": native.chat},
            "/api/copy": {"POST": native.copy},
            "/api/create": {"POST": native.create},
            "/api/delete": {"DELETE": native.delete},
            "/api/show": {"POST": native.show},
            "/api/embed": {"POST": native.embed},
            "/api/embeddings": {"POST": native.embeddings},
            "/v1/models": {"GET": openai.models},
            "/v1/completions": {"POST": openai.completions},
            "/v1/chat/completions": {"POST": openai.chat},
            "/v1/embeddings": {"POST": openai.embeddings},
            "/v1/audio/transcriptions": {"POST": openai.transcriptions},
            "/v1/responses": {"POST": more.responses},
            "/v1/messages": {"POST": more.messages},
        }

    def _methods(self, path: str) -> Mapping[str, Route]:
        if path.startswith("/v1/models/") and len(path) > len("/v1/models/"):
            return {"GET": self._openai.model}
        if path.startswith("/api/blobs/"):
            return {"POST": self._native.blob, "HEAD": self._native.blob_there}
        return self._routes.get(path, {})

    async def __call__(self, request: Request) -> None:
        """Answer, and write the access line."""
        try:
            await self._answer(request)
        finally:
            took_s = time.monotonic() - request.began
            access(request.status or 499, took_s, request.method, request.path)

    async def _answer(self, request: Request) -> None:
        methods = self._methods(request.path)
        route = methods.get(request.method)
        if methods and route is None:
            request.header("Allow", ", ".join(methods))
        if await self._stopped_by_origin(request) or await self._stopped_by_host(request):
            return
        if route is None:
            await self._no_route(request, found=bool(methods))
            return
        compatible = request.path.startswith("/v1/")
        zstd = compatible and request.headers.get("content-encoding") == "zstd"
        if zstd and not (await request.read()).startswith(_ZSTD):
            error = {"error": "invalid input: magic number mismatch"}
            await request.reply(400, packed(error), JSON)
            return
        try:
            await route(request)
        except Refused as error:
            await _refuse(request, error, compatible=compatible)

    async def _no_route(self, request: Request, *, found: bool) -> None:
        """404, 405, or where it is without a slash too many."""
        path, plain = request.path, "text/plain"
        clean = "/" + "/".join(word for word in path.split("/") if word)
        if not found and clean != path and self._methods(clean):
            status = 307 if "//" in path or request.method not in {"GET", "HEAD"} else 301
            words = "Temporary Redirect" if status == 307 else "Moved Permanently"
            body = f'<a href="{clean}">{words}</a>.\n\n'.encode()
            await request.reply(status, body, "text/html; charset=utf-8", Location=clean)
        elif found:
            await request.reply(405, b"405 method not allowed", plain)
        else:
            await request.reply(404, b"404 page not found", plain)

    async def _stopped_by_origin(self, request: Request) -> bool:
        """gin-contrib/cors: an Origin that is neither the Host asked for nor on the list is 403."""
        origin = request.headers.get("origin", "")
        if not origin or origin in {f"http://{request.host}", f"https://{request.host}"}:
            return False
        every = "*" in self._settings.origins
        if not every and not any(fnmatchcase(origin, one) for one in self._settings.origins):
            await request.reply(403)
            return True
        preflight = request.method == "OPTIONS"
        request.header("Access-Control-Allow-Origin", "*" if every else origin)
        if preflight:
            request.header("Access-Control-Allow-Methods", "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS")
            request.header("Access-Control-Allow-Headers", _CORS_HEADERS)
            request.header("Access-Control-Max-Age", "43200")
        if not every:
            asked = "\nAccess-Control-Request-Method\nAccess-Control-Request-Headers"
            request.header("Vary", f"Origin{asked if preflight else ''}")
        if preflight:
            await request.reply(204)
        return preflight

    async def _stopped_by_host(self, request: Request) -> bool:
        """routes.go, allowedHostsMiddleware: asked only where the listener is on loopback."""
        if not ipaddress.ip_address(_address(self._settings.host)).is_loopback:
            return False
        host = _without_port(request.host)
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            if not _named_here(host):
                await request.reply(403)
                return True
            if request.method == "OPTIONS":
                await request.reply(204)
            return request.method == "OPTIONS"
        private = isinstance(address, ipaddress.IPv6Address) and address in _ULA
        private = private or any(address in one for one in _PRIVATE)
        mine = address.is_loopback or address.is_unspecified or private or host in _own_addresses()
        if not mine:
            await request.reply(403)
        return not mine


_ZSTD = b"\x28\xb5\x2f\xfd"
_PRIVATE = [ipaddress.ip_network(one) for one in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]
_ULA = ipaddress.ip_network("fc00::/7")


def _address(host: str) -> str:
    return "127.0.0.1" if host == "localhost" else host


def _without_port(host: str) -> str:
    """net.SplitHostPort; what it cannot split stays whole, so [::1] without a port is no address."""
    name, colon, _ = host.rpartition(":")
    if not colon or (":" in name and not (name.startswith("[") and name.endswith("]"))):
        return host
    return name.removeprefix("[").removesuffix("]")


def _named_here(host: str) -> bool:
    name = host.lower()
    if name in {"", "localhost", socket.gethostname().lower()}:
        return True
    return name.endswith((".localhost", ".local", ".internal"))


def _own_addresses() -> set[str]:
    return {one.address for rows in psutil.net_if_addrs().values() for one in rows}


async def _refuse(request: Request, error: Refused, *, compatible: bool) -> None:
    cloud = error.status == 403
    if not compatible or cloud:
        await request.reply(error.status, packed({"error": str(error)}), JSON)
        return
    kind = JSON if isinstance(error, Early) else BARE_JSON
    anthropic = request.path == "/v1/messages"
    body = anthropic_error(error) if anthropic else error_body(error)
    await request.reply(error.status, packed(body), kind)


async def _serve() -> int:
    settings = read()
    scheduler = Scheduler(settings)
    address = f"{settings.host}:{settings.port}"
    try:
        server = await listen(settings.host, settings.port, Api(settings, scheduler))
    except OSError as error:
        why = os.strerror(error.errno or 0).lower()
        say(f"Error: listen tcp {address}: bind: {why}")
        return 1
    log("INFO", "routes.go:1951", "server config", env=f"map[OLLAMA_HOST:http://{address}]")
    failed = ollama_cli.models_folder_fails()
    if failed:
        say(failed)
        return 1
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, scheduler.stop)
    await server.start_serving()
    words = f"Listening on {address} (version {scheduler.version()})"
    log("INFO", "routes.go:2004", words)

    def shut() -> None:
        loop.call_soon_threadsafe(server.close)

    LISTENERS.append(shut)
    await asyncio.Event().wait()  # serve_forever would end with a port that a fault has closed
    return 0


def main() -> int:
    """``serve``, or one of the small commands."""
    if sys.argv[1:] != ["serve"]:
        return ollama_cli.main(sys.argv[1:])
    if not os.environ.get("HOME"):
        say("Error: $HOME is not defined")
        return 1
    Faults().at_start()
    return asyncio.run(_serve())


if __name__ == "__main__":
    sys.exit(main())
