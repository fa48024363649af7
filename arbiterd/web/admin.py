"""What changes something: over the unix socket only, peer credentials named in the journal."""

from __future__ import annotations

import asyncio
import grp
import os
import socket
import struct
import uuid
from collections.abc import Callable

from aiohttp import web

from arbiterd.linux import procfs
from arbiterd.model.actions import OperatorRequest, Refusal, Verb
from arbiterd.report.api import common
from arbiterd.settings.reload import ReloadAnswer
from arbiterd.web import bodies
from arbiterd.web.replies import Handler, answer, error

GROUP = "gpu-arbiter"
_VERBS = (Verb.DRAIN, Verb.RESUME, Verb.RESTART, Verb.SLEEP, Verb.WAKE, Verb.RESET_CAP)
_SO_PEERGROUPS = getattr(socket, "SO_PEERGROUPS", 59)  # Linux 4.13; Python 3.11 has no name for it
_MOST_GROUPS = 256  # getsockopt of Python takes 1,024 bytes at most
_STATUS = {"not_found": 404, "conflict": 409}


class Admin:
    """Handlers of the admin socket. ``submit`` returns why a request is not taken, None when it is."""

    def __init__(
        self,
        submit: Callable[[OperatorRequest], Refusal | None],
        reload: Callable[[], ReloadAnswer],
    ) -> None:
        self._submit = submit
        self._reload = reload

    def add_to(self, app: web.Application) -> None:
        """Register every route, and the question who asks: before all of them."""
        app.middlewares.append(only_operators)
        post = app.router.add_post
        post("/v1/admin/reload", self.reload)
        post("/v1/admin/stop-all", self.stop_all)
        for verb in _VERBS:
            post(f"/v1/admin/backends/{{name}}/{verb.value}", self.backend)

    async def reload(self, request: web.Request) -> web.Response:
        """Read the file again; all or nothing."""
        await bodies.read(request)  # nothing is asked for in it, and nonsense is not passed over
        found = await asyncio.get_running_loop().run_in_executor(None, self._reload)
        if found.accepted:
            warnings = [{"text": str(one)} for one in found.warnings]
            return answer(
                {
                    "accepted": True,
                    "mode": found.mode,
                    "sha256": found.sha256,
                    "loaded_at": common.iso(found.loaded_at),
                    "warnings": warnings,
                }
            )
        problems = [{"text": str(one)} for one in found.problems]
        body = {
            "error": {"code": "config", "message": f"{len(problems)} problem(s); nothing changed"},
            "mode": found.mode,
            "problems": problems,
        }
        return answer(body, 409)

    async def stop_all(self, request: web.Request) -> web.Response:
        """Stop every backend; they stay stopped until resume."""
        await bodies.read(request)
        return self._ask(request, Verb.STOP_ALL, "")

    async def backend(self, request: web.Request) -> web.Response:
        """drain, resume, restart, sleep, wake, reset-cap."""
        await bodies.read(request)
        verb = Verb(request.path.rsplit("/", 1)[-1])
        return self._ask(request, verb, request.match_info["name"])

    def _ask(self, request: web.Request, verb: Verb, backend: str) -> web.Response:
        asked = OperatorRequest(f"req-{uuid.uuid4().hex[:8]}", verb, backend, peer(request))
        refused = self._submit(asked)
        if refused is not None:
            return error(_STATUS[refused.code], refused.code, refused.text)
        return answer({"accepted": True, "id": asked.id}, 202)


@web.middleware
async def only_operators(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever is asked on the admin socket, reload and traces included: of root and operators only.
    The socket's mode says the same; who changes the mode opens nothing.
    """
    if not peer(request):
        return error(403, "forbidden", f"be root or a member of group {GROUP}")
    return await handler(request)


def peer(request: web.Request) -> str:
    """'uid 0 (root)' of an allowed peer, "" for one that is not allowed (SO_PEERCRED)."""
    transport = request.transport
    sock = transport.get_extra_info("socket") if transport else None
    if sock is None or sock.family != socket.AF_UNIX:
        return ""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    pid, uid, gid = struct.unpack("iII", raw)
    allowed = uid in (0, os.geteuid()) or _in_group(sock, pid, gid)
    return f"uid {uid} ({procfs.user_name(uid)})" if allowed else ""


def _in_group(sock: socket.socket, pid: int, gid: int) -> bool:
    """By the groups that the peer had as it connected, told by the kernel: no name is looked up, and
    one who was added or removed meanwhile is treated as the socket's own mode treats them.
    """
    try:
        wanted = grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return False
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_GROUPS * 4)
    except OSError:  # in more groups than Python's buffer holds (ERANGE)
        return wanted in (gid, *procfs.groups(pid))
    return wanted in (gid, *struct.unpack(f"{len(raw) // 4}I", raw))
