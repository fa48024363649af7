"""The gateway's keeper looks by itself: a `poll` of 5 s leaves no door without counters."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from arbiterd.act.gateway import reconciler
from arbiterd.act.gateway.reconciler import LOOK_S, STALE_S, GatewayKeeper
from arbiterd.gateway.paths import paths
from arbiterd.model.gateway import GatewayObservation, GatewayWish
from tests.core.world import settings
from tests.gateway.test_late_files import Services
from tests.support import PATIENCE_S


def test_one_order_is_looked_after_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the counters of the look before are too old, and with no other order."""
    assert 2 * LOOK_S <= STALE_S
    monkeypatch.setattr(reconciler, "LOOK_S", 0.01)
    keeper = GatewayKeeper(
        paths(str(tmp_path), systemd=False), Services(), lambda: None, systemd=False
    )
    third, looks = threading.Event(), list[GatewayWish]()

    def turn(wish: GatewayWish, _: object) -> GatewayObservation:
        looks.append(wish)
        if len(looks) == 3:
            third.set()
        return GatewayObservation(enabled=True)

    monkeypatch.setattr(keeper, "_turn", turn)
    keeper.order(wish := GatewayWish(), settings())
    keeper.start()
    try:
        assert third.wait(PATIENCE_S)
    finally:
        keeper.close()
    assert looks[:3] == [wish] * 3
