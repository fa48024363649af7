"""Where a share lies, its cap there, and why it cannot be placed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arbiterd.core.memory.placement import headroom_bytes, place, sharing
from arbiterd.model.devices import Device
from arbiterd.model.settings import GpuRef, Mode, Share
from arbiterd.quantities import GIB, MIB

ONE = Device("GPU-1", 0, "card", "0000:01", 24 * GIB, 0)
TWO = Device("GPU-2", 1, "small card", "0000:02", 16 * GIB, 0)
SPLIT = replace(ONE, mig_enabled=True)
SLICE = Device("MIG-1", 0, "slice", "0000:01", 10 * GIB, 0, parent_uuid="GPU-1")
OTHER = Device("MIG-2", 1, "slice", "0000:02", 10 * GIB, 0, parent_uuid="GPU-2")


def ref(*indices: int) -> tuple[GpuRef, ...]:
    """GPUs by index."""
    return tuple(GpuRef("index", str(one)) for one in indices)


def mode(*shares: Share) -> Mode:
    """A mode of these shares alone."""
    return Mode("A", {one.backend: one for one in shares}, {})


@pytest.mark.parametrize(
    ("total", "found"),
    [(4 * GIB, 512 * MIB), (25 * GIB, GIB), (200 * GIB, 2 * GIB)],
)
def test_headroom_is_four_percent_within_bounds(total: int, found: int) -> None:
    """512 MiB to 2 GiB; what the file says is taken as it is."""
    card = replace(ONE, total_bytes=total)
    assert headroom_bytes(None, card) == found
    assert headroom_bytes(7, card) == 7


def test_a_share_without_a_gpu_takes_the_only_one() -> None:
    """Alone there it gets capacity less headroom."""
    found = place(mode(Share("a")), [ONE], GIB)["a"]
    assert (found.devices, found.cap_bytes, found.wrong) == (("GPU-1",), 23 * GIB, "")


@pytest.mark.parametrize(
    ("devices", "wrong"),
    [([ONE, TWO], "2 GPUs"), ([SPLIT, SLICE], "MIG mode"), ([], "0 GPUs")],
)
def test_without_an_only_gpu_one_has_to_be_named(devices: list[Device], wrong: str) -> None:
    """Two of them, none, or one that is split."""
    found = place(mode(Share("a")), devices, None)["a"]
    assert found.devices == ()
    assert wrong in found.wrong


def test_what_cannot_be_placed_holds_up_nobody() -> None:
    """The names of what is there are in the advice."""
    found = place(mode(Share("a", ref(4)), Share("b", ref(0), fraction=0.5)), [ONE, TWO], None)
    assert "no GPU 4" in found["a"].wrong
    assert "0 (card), 1 (small card)" in found["a"].right
    assert (found["b"].cap_bytes, found["b"].wrong) == (12 * GIB, "")
    assert "no GPU" in place(mode(Share("a", ref(4))), [], None)["a"].right


def test_the_cap_is_that_of_the_smallest_card() -> None:
    """Of a list of unequal ones."""
    assert (
        place(mode(Share("a", ref(0, 1), fraction=0.5)), [ONE, TWO], None)["a"].cap_bytes == 8 * GIB
    )
    assert place(mode(Share("a", ref(0), size_bytes=GIB)), [ONE], None)["a"].cap_bytes == GIB


def test_two_on_one_gpu_have_to_say_how_much() -> None:
    """A third on a card of its own need not."""
    shares = mode(Share("a", ref(0)), Share("b", ref(0), fraction=0.5), Share("c", ref(1)))
    found = place(shares, [ONE, TWO], GIB)
    assert "no memory" in found["a"].wrong
    assert found["c"].cap_bytes == 15 * GIB


def test_the_cpu_needs_no_device() -> None:
    """And no cap."""
    found = place(mode(Share("a", cpu=True)), [], None)["a"]
    assert (found.devices, found.cap_bytes, found.wrong) == ((), 0, "")


def test_a_split_gpu_takes_nothing_itself() -> None:
    """Its own slices are named, with their sizes; without any, where it is told how to make them."""
    found = place(mode(Share("a", ref(0))), [SPLIT, SLICE, OTHER], None)["a"]
    assert "MIG-1 (a MIG slice of GPU 0, 10.00 GiB)" in found.right
    assert "MIG-2" not in found.right
    assert "none yet" in place(mode(Share("a", ref(0))), [SPLIT], None)["a"].right


def test_a_process_uses_one_slice() -> None:
    """Two slices are refused, one is taken by its uuid."""
    refs = (GpuRef("mig", "MIG-1"), GpuRef("mig", "MIG-2"))
    devices = [SPLIT, SLICE, replace(TWO, mig_enabled=True), OTHER]
    assert "one MIG slice only" in place(mode(Share("a", refs)), devices, None)["a"].wrong
    assert place(mode(Share("a", refs[:1])), devices, GIB)["a"].devices == ("MIG-1",)


def test_a_mode_on_one_device_is_shared() -> None:
    """On two it is partitioned, also where a second one is named that is not there."""
    both = mode(Share("a", ref(0), fraction=0.2), Share("b", ref(0), fraction=0.2))
    apart = mode(Share("a", ref(0)), Share("b", ref(1)), Share("c", ref(5), cpu=True))
    assert sharing(both, place(both, [ONE], None)) == "shared"
    assert sharing(apart, place(apart, [ONE, TWO], None)) == "partitioned"
    assert sharing(apart, place(apart, [ONE], None)) == "partitioned"
