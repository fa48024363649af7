"""A site for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from arbiterd.core.backend.asking import refusal
from arbiterd.model.actions import OperatorRequest, Refusal
from arbiterd.settings.reload import ReloadAnswer
from arbiterd.web.admin import Admin
from arbiterd.web.server import WebServer
from arbiterd.web.snapshot import Holder
from tests.core.world import World, settings
from tests.support import free_port
from tests.web.site import Site, published


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Three engines ready, published."""
    holder = Holder()
    holder.put(published(World(settings()).up()))
    asked: list[OperatorRequest] = []
    port = free_port()
    one: Site

    def submit(request: OperatorRequest) -> Refusal | None:
        asked.append(request)
        published = holder.get()
        assert published is not None
        return refusal(request, published.settings, published.decision)

    admin = Admin(submit=submit, reload=lambda: one.answer)
    path = tmp_path / "admin.sock"
    server = WebServer(holder, host="127.0.0.1", port=port, socket_path=path, admin=admin)
    one = Site(server, holder, port, path, asked, ReloadAnswer(accepted=True, mode="A"))
    server.start()
    yield one
    server.close()
