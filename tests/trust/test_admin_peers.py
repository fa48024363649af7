"""Who may ask on the admin socket: by the kernel's word about the peer, whatever the socket's mode."""

from __future__ import annotations

import grp
import http.client
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from arbiterd.model.actions import OperatorRequest
from arbiterd.settings.reload import ReloadAnswer
from arbiterd.trace.recorder import Tap
from arbiterd.web import admin
from arbiterd.web.server import WebServer
from arbiterd.web.snapshot import Holder
from tests.support import PATIENCE_S, free_port
from tests.support.users import NOBODY, as_user

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
ROUTES = (
    ("POST", "/v1/admin/reload"),
    ("POST", "/v1/admin/stop-all"),
    ("POST", "/v1/admin/backends/vllm/restart"),
    ("GET", "/v1/admin/trace?seconds=0"),
    ("GET", "/v1/status"),
)


@pytest.fixture
def asked(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A daemon's web side in a folder that everybody may enter, its socket open for everybody; the
    operators' group is one that exists here. Yields what was really asked for.
    """
    seen: list[str] = []

    def submit(request: OperatorRequest) -> None:
        seen.append(f"{request.verb.value} by {request.by}")

    def reload() -> ReloadAnswer:
        seen.append("reload")
        return ReloadAnswer(accepted=True, mode="A")

    monkeypatch.setattr(admin, "GROUP", grp.getgrgid(1).gr_name)
    server = WebServer(
        Holder(),
        host="127.0.0.1",
        port=free_port(),
        socket_path=open_folder / "s",
        admin=admin.Admin(submit=submit, reload=reload),
        tap=Tap(),
    )
    server.start()
    (open_folder / "s").chmod(0o666)
    yield seen
    server.close()


def _statuses(path: Path, uid: int, gid: int, groups: Sequence[int]) -> list[int]:
    def ask() -> str:
        out = []
        for method, route in ROUTES:
            connection = http.client.HTTPConnection("localhost", timeout=PATIENCE_S)
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(str(path))
            connection.request(method, route)
            out.append(str(connection.getresponse().status))
            connection.close()
        return " ".join(out)

    said = as_user(uid, gid, groups, ask)
    assert not said.startswith("raised"), said
    return [int(one) for one in said.split()]


def test_a_stranger_is_refused_whatever_it_asks_for(asked: list[str], open_folder: Path) -> None:
    """403 for each route, reload and trace included; nothing reaches the daemon."""
    assert _statuses(open_folder / "s", NOBODY, NOBODY, []) == [403] * 5
    assert _statuses(open_folder / "s", 1, NOBODY, [NOBODY]) == [403] * 5, "by group, not by name"
    assert asked == []


@pytest.mark.parametrize(
    ("uid", "gid", "groups"),
    [
        (0, 0, []),
        (NOBODY, 1, []),
        (NOBODY, NOBODY, [NOBODY, 1]),
        (NOBODY, NOBODY, [1, *range(2000, 2400)]),
    ],
    ids=["root", "primary", "supplementary", "one of many"],
)
def test_root_and_members_of_the_group_are_heard(
    asked: list[str], open_folder: Path, uid: int, gid: int, groups: list[int]
) -> None:
    """By primary or supplementary group; the journal names the user."""
    found = _statuses(open_folder / "s", uid, gid, groups)
    assert (found[:3], 403 in found) == ([200, 202, 202], False)
    assert asked[0] == "reload"
    assert all(f"by uid {uid} (" in one for one in asked[1:])
