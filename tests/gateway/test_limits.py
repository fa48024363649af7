"""Slots over several server lines: the sum never exceeds the limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from arbiterd.gateway.slot_split import Line, split

line = st.builds(
    Line, in_flight=st.integers(0, 12), queued=st.integers(0, 20), limit=st.integers(0, 12), old=st.integers(0, 6)
)  # fmt: skip


@given(st.integers(1, 16), line, line)
def test_two_lines_never_hold_more_than_the_limit_together(
    total: int, rest: Line, grpc: Line
) -> None:
    """What may be in flight after this step: old streams, running ones, and the new limits."""
    made = split(total, {"rest": rest, "grpc": grpc})
    old = rest.old + grpc.old
    most = max(made["rest"], rest.in_flight) + max(made["grpc"], grpc.in_flight)
    assert most <= max(total - old, rest.in_flight + grpc.in_flight)
    assert all(limit >= 0 for limit in made.values())


@given(st.integers(1, 16), line)
def test_one_line_gets_all_but_the_old_streams(total: int, one: Line) -> None:
    """0 means: none may enter now."""
    assert split(total, {"a": one}) == {"a": max(0, total - one.old)}


def test_free_slots_go_where_requests_wait() -> None:
    """Within a few ticks REST has all but one of the slots that gRPC does not use."""
    lines = {"rest": Line(4, 30, 4), "grpc": Line(0, 0, 4)}
    for _ in range(4):
        made = split(8, lines)
        lines = {"rest": Line(made["rest"], 30, made["rest"]), "grpc": Line(0, 0, made["grpc"])}
    assert made == {"rest": 7, "grpc": 1}


def test_nobody_is_shut_out_while_there_are_slots() -> None:
    """A first gRPC call must find one, or it could never ask for more."""
    made = split(8, {"rest": Line(7, 50, 7), "grpc": Line(0, 0, 1)})
    assert made["grpc"] >= 1
