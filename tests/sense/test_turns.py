"""Which resident model a canary asks."""

from __future__ import annotations

from arbiterd.model.health import LoadedModel
from arbiterd.sense.turns import Turns

FOR_EVER = 292 * 365 * 86400.0


def model(name: str, expires_in_s: float | None) -> LoadedModel:
    """A row of /api/ps."""
    return LoadedModel(name, 1, 1, expires_in_s)


def ask(turns: Turns, loaded: list[LoadedModel], wall: float, *, ok: bool = True) -> str:
    """One canary, after which the model stays as long as before; the name that was asked."""
    one = turns.choose(loaded, wall)
    if one is None:
        return ""
    turns.done(one, loaded, wall, ok=ok)
    return one.name


def test_every_resident_model_gets_its_turn() -> None:
    """One after the other, whatever their keep-alive."""
    turns, loaded = Turns(), [model("a", FOR_EVER), model("b", FOR_EVER), model("c", None)]
    assert {ask(turns, loaded, 0.0) for _ in range(3)} == {"a", "b", "c"}
    assert {ask(turns, loaded, 1.0) for _ in range(3)} == {"a", "b", "c"}


def test_a_model_that_leaves_by_itself_is_asked_once_after_each_use() -> None:
    """A canary counts its stay anew: asked again and again it would never leave."""
    turns = Turns()
    assert ask(turns, [model("b", 60.0)], 0.0) == "b"
    assert ask(turns, [model("b", 45.0)], 15.0) == ""
    assert ask(turns, [model("b", 60.0)], 30.0) == "b"  # a client has used it
    assert ask(turns, [model("b", 30.0)], 60.0) == ""


def test_one_that_leaves_now_or_is_in_use_is_not_asked() -> None:
    """It could be gone when the canary comes, and be loaded by it."""
    assert Turns().choose([model("b", 1.0)], 0.0) is None
    assert Turns().choose([model("b", -5.0)], 0.0) is None
    assert Turns().choose([], 0.0) is None


def test_one_that_failed_is_asked_again_at_once() -> None:
    """Two of one model in a row are evidence; a healthy neighbour must not hide it."""
    turns, loaded = Turns(), [model("a", 60.0), model("b", FOR_EVER)]
    first = ask(turns, loaded, 0.0, ok=False)
    assert ask(turns, loaded, 1.0, ok=False) == first
    assert ask(turns, loaded, 2.0) == first
    assert ask(turns, loaded, 3.0) != first
