"""What clients of the doors read of this host, and what a keeper without descriptors concludes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from arbiterd.act.gateway.reconciler import GatewayKeeper
from arbiterd.gateway import runtime
from arbiterd.gateway.layout import layout
from arbiterd.gateway.live_map import parse
from arbiterd.gateway.paths import paths
from arbiterd.model.gateway import Admit, BackendWish, GatewayWish, LoadAnswer, LoadAsk, LoadVerdict
from arbiterd.model.strangers import HIDDEN, listener, named
from arbiterd.web.load_requests import LoadDesk
from tests.core.world import settings
from tests.gateway.test_late_files import Services

WHY = f"{named(4711, '/srv/bob/train.py --secret', 'bob', 'session-3.scope')} holds 9 GiB"
PORT = f"port 8000 is taken by {listener(7, 'nc -l 8000', 'bobs.service')}"


@pytest.mark.parametrize(("expose", "shown"), [("own", False), ("full", True)])
def test_doors_name_no_other_users_process(
    tmp_path: Path, expose: Literal["own", "full"], shown: bool
) -> None:
    """Neither the reasons in live.map nor those of the load gate, unless expose = "full"."""
    where = paths(str(tmp_path), systemd=False)
    where.files.mkdir(parents=True)
    keeper = GatewayKeeper(where, Services(), lambda: None, systemd=False)
    base = settings()
    made = replace(base, arbiter=replace(base.arbiter, expose=expose))
    one = BackendWish("vllm", Admit.SHED, False, WHY, 7, 3, 4, 8, advice=PORT)
    keeper._write_live(GatewayWish({"vllm": one}, {}), layout(made), made)
    entries = parse(where.live.read_text())
    desk = LoadDesk(lambda: None)
    desk._asks["a"] = LoadAsk("a", "ollama", "m", 1, 0.0)  # nothing is kept for who does not ask
    desk.answered((LoadAnswer("a", LoadVerdict.WAIT, WHY),), full=shown)
    for text in (entries["why:vllm"], entries["adv:vllm"], desk._forget("a").reason):
        assert (HIDDEN not in text) is shown
        for word in ("4711", "bob", "train.py", "nc -l"):
            assert shown or word not in text
    assert shown or entries["why:vllm"] == f"{HIDDEN} holds 9 GiB"


def test_a_keeper_without_descriptors_starts_and_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it saw last stays; a HAProxy that really does not answer is started."""
    where = paths(str(tmp_path), systemd=False)
    where.files.mkdir(parents=True)
    services = Services()
    keeper = GatewayKeeper(where, services, lambda: None, systemd=False)
    gone = runtime.GatewayGone("runtime.sock: Too many open files")
    gone.ours = True

    def look(*_: object) -> runtime.Look:
        raise gone

    monkeypatch.setattr(runtime, "look", look)
    monkeypatch.setattr(keeper._gate, "keep", lambda *_, **__: "")
    before = keeper._latest
    assert keeper._turn(GatewayWish({}, {}), settings()) is before
    assert services.asked == []
    gone.ours = False
    assert keeper._turn(GatewayWish({}, {}), settings()) is not before
    assert services.asked == ["start gateway"]
