"""A server over real sockets for tests of the API, and the schema that answers are held against."""

from __future__ import annotations

import http.client
import json
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from arbiterd.model.actions import OperatorRequest
from arbiterd.model.published import LoopFacts, Published
from arbiterd.settings.reload import ReloadAnswer
from arbiterd.web.openapi import document
from arbiterd.web.server import WebServer
from arbiterd.web.snapshot import Holder
from tests.core.world import World
from tests.support import PATIENCE_S


def published(world: World) -> Published:
    """The world's last decision as a finished tick."""
    assert world.decision is not None
    seen = replace(world.observation(), wall=time.time())
    fresh = (
        time.monotonic() + 3600
    )  # no loop runs here: on a busy machine a real time would come to be late
    loop = LoopFacts(7, 250, 1.5, fresh, "direct")
    return Published("0.1.0", world.settings, seen, world.decision, loop)


@dataclass
class Site:
    """A server, and what reached its admin side."""

    server: WebServer
    holder: Holder
    port: int
    socket_path: Path
    asked: list[OperatorRequest]
    answer: ReloadAnswer

    def get(self, path: str, method: str = "GET") -> tuple[int, dict[str, str], Any]:
        """One request over TCP."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            return _finish(connection, method, path)
        finally:
            connection.close()

    def admin(self, path: str, method: str = "POST") -> tuple[int, dict[str, str], Any]:
        """One request over the unix socket."""
        connection = http.client.HTTPConnection("localhost", timeout=PATIENCE_S)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self.socket_path))
        try:
            return _finish(connection, method, path)
        finally:
            connection.close()


def _finish(
    connection: http.client.HTTPConnection, method: str, path: str
) -> tuple[int, dict[str, str], Any]:
    connection.request(method, path)
    reply = connection.getresponse()
    raw = reply.read()
    kind = reply.getheader("Content-Type") or ""
    body = json.loads(raw) if raw and "json" in kind else raw.decode()
    return reply.status, dict(reply.getheaders()), body


def fits(value: Any, schema: dict[str, Any], where: str = "$") -> None:
    """Hold a value against the subset of JSON schema we use."""
    if "anyOf" in schema:
        null = {"type": "null"}
        assert null in schema["anyOf"], where
        if value is None:
            return
        schema = next(one for one in schema["anyOf"] if one != null)
    if "$ref" in schema:
        schema = document()["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    names = {
        dict: "object",
        list: "array",
        str: "string",
        bool: "boolean",
        int: "integer",
        float: "number",
        type(None): "null",
    }
    got = names[type(value)]
    assert got in kinds or (got == "integer" and "number" in kinds), (
        f"{where}: {got} not in {kinds}"
    )
    if "enum" in schema:
        assert value in schema["enum"], where
    if isinstance(value, dict):
        for name in schema.get("required", []):
            assert name in value, f"{where}.{name} is missing"
        for name, inner in schema.get("properties", {}).items():
            if name in value:
                fits(value[name], inner, f"{where}.{name}")
    if isinstance(value, list) and "items" in schema:
        for number, item in enumerate(value):
            fits(item, schema["items"], f"{where}[{number}]")
