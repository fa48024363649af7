"""The digest of what a backend was meant to be: remembered while its settings live, never longer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from weakref import ref

import pytest

from arbiterd.core.mode import intent as module
from arbiterd.core.mode.intent import digest, intent
from tests.core.world import VLLM, share


def test_a_digest_is_made_once_for_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tick asks."""
    made: list[str] = []

    def counted(*given: object) -> str:
        made.append(digest(*given))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(module, "digest", counted)
    backend, part = replace(VLLM), share("vllm", 0.5)
    assert {intent(backend, part) for _ in range(5)} == {digest(backend, part)}
    assert len(made) == 1
    other = share("vllm", 0.6)
    assert intent(backend, other) != made[0]


def test_settings_of_earlier_reloads_are_let_go() -> None:
    """Neither the backend nor the share of a reload lives on in the memory of digests."""
    before = len(module._known)
    gone: list[Callable[[], object]] = []
    for delay in range(300):
        backend, part = replace(VLLM, restart_delay_s=delay), share("vllm", 0.5)
        intent(backend, part)
        gone += [ref(backend), ref(part)]
    del backend, part
    assert [one for one in gone if one() is not None] == []
    assert len(module._known) == before
