"""A GPU keeps its number when others fall off the bus; CUDA's count is kept beside."""

from __future__ import annotations

from pathlib import Path

import pytest

from arbiterd.core.memory.placement import place
from arbiterd.engines.devices import device_env
from arbiterd.model.devices import Device, GpuState
from arbiterd.model.settings import BackendSettings, GpuRef, Kind, Mode, Share
from arbiterd.quantities import GIB
from arbiterd.sense import nvml
from arbiterd.sense.numbering import Numbering, Seen
from arbiterd.sense.nvml import NvmlSnapshot
from arbiterd.sim.gpu import SimGpu
from arbiterd.store.gpu_inventory import Inventory
from tests.sense.watching import by_index, until, watching

A, B, C = Seen("GPU-a", "00:10", 0), Seen("GPU-b", "00:20", 1), Seen("GPU-c", "00:30", 2)
BY_INDEX = BackendSettings("x", Kind.GENERIC, ("x",), 9000, 19000, device_id="index")


def _device(uuid: str, index: int, bus: str) -> Device:
    return Device(uuid, index, "card", bus, 24 * GIB, 0)


def test_numbers_are_places_when_all_is_new() -> None:
    """In PCI order, whatever NVML's order."""
    numbering = Numbering()
    assert numbering.number([C, A, B]) == {"GPU-a": 0, "GPU-b": 1, "GPU-c": 2}
    assert numbering.cuda([C, A, B]) == {"GPU-a": 0, "GPU-b": 1, "GPU-c": 2}
    assert numbering.said == []


def test_a_fallen_card_moves_cudas_count_only() -> None:
    """Said once, both numbers named."""
    numbering = Numbering()
    numbering.number([A, B])
    moved = Seen("GPU-b", "00:20", 0, "card")
    for _ in range(3):
        assert numbering.number([moved]) == {"GPU-b": 1}
        assert numbering.cuda([moved]) == {"GPU-b": 0}
    assert len(numbering.said) == 1
    assert "count GPU 1 (card, GPU-b) as 0 now; gpu = 1 still means this card" in numbering.said[0]


def test_a_hole_counts_on_a_first_start() -> None:
    """NVML lists two, the first answers to nothing: the second is number 1, not 0."""
    assert Numbering().number([B], holes=[0]) == {"GPU-b": 1}


def test_numbers_of_earlier_runs_hold() -> None:
    """The inventory's; a doubled number in it belongs to the first."""
    known = [_device("GPU-b", 1, "00:20"), _device("GPU-z", 1, "00:40")]
    assert Numbering(known).number([Seen("GPU-b", "00:20", 0)]) == {"GPU-b": 1}
    assert Numbering(known).number([Seen("GPU-z", "00:40", 0)]) == {"GPU-z": 0}


def test_a_card_in_anothers_slot_takes_its_number() -> None:
    """A replaced card; a card in a new slot gets a free number and moves nobody."""
    numbering = Numbering([_device("GPU-a", 0, "00:10"), _device("GPU-b", 1, "00:20")])
    new = Seen("GPU-new", "00:10", 0, "card")
    assert numbering.number([new, B]) == {"GPU-new": 0, "GPU-b": 1}
    assert "sits where GPU-a was" in numbering.said[0]
    between = Seen("GPU-m", "00:18", 1)
    assert numbering.number([new, between, B])["GPU-m"] == 2


def test_a_lost_card_that_is_still_listed_is_not_counted_by_cuda() -> None:
    """Before the new session."""
    numbering = Numbering()
    numbering.number([A, B])
    lost = Seen("GPU-a", "00:10", 0, counted=False)
    assert numbering.cuda([lost, B]) == {"GPU-b": 0}


def test_the_inventory_forgets_a_replaced_card(tmp_path: Path) -> None:
    """Its number and slot are another's now; a lost one in its own slot stays. No moment is kept."""
    inventory = Inventory(tmp_path)
    inventory.learn([_device("GPU-a", 0, "00:10"), _device("GPU-b", 1, "00:20")])
    inventory.learn([_device("GPU-new", 0, "00:10")])
    inventory.store.close()
    again = Inventory(tmp_path)
    assert [one.uuid for one in again.known()] == ["GPU-b", "GPU-new"]
    shifted = Device("GPU-b", 1, "card", "00:20", 24 * GIB, 0, cuda_index=0)
    before = again.known()
    again.learn([shifted])
    assert again.known() == before


def _where(snapshot: NvmlSnapshot, number: int) -> tuple[str, ...]:
    share = Share("x", (GpuRef("index", str(number)),))
    mode = Mode("B", {"x": share}, {"x": BY_INDEX})
    return place(mode, [one.device for one in snapshot.devices.values()], None)["x"].devices


@pytest.fixture
def pair(sim_lib: Path, tmp_path: Path) -> SimGpu:
    """Two cards."""
    return SimGpu.create(tmp_path / "pair", sim_lib, ("rtx4090-24g", "rtx4090-24g"))


@pytest.mark.parametrize("how", ["hole", "gone"])
def test_no_backend_moves_to_another_card(
    pair: SimGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    """GPU 0 falls off, NVML is opened anew: gpu = 1 is the same card, gpu = 0 is the lost one; an
    engine that takes indices gets the one that CUDA counts now. Also in a daemon started meanwhile.
    """
    monkeypatch.setattr(nvml, "LOST_REINIT_S", 0.2)
    first, second = pair.uuids()
    inventory = Inventory(tmp_path)

    def lost(snapshot: NvmlSnapshot) -> bool:
        return by_index(snapshot)[0].detail == "no longer listed by NVML"

    with watching(pair, monkeypatch) as source:
        whole = until(source, lambda s: len(s.devices) == 2)
        inventory.learn(one.device for one in whole.devices.values())
        assert (_where(whole, 0), _where(whole, 1)) == ((first,), (second,))
        pair.lose(0, 999 if how == "hole" else 15, gone=how == "gone")
        after = until(source, lost)
        assert (_where(after, 0), _where(after, 1)) == ((first,), (second,))
        assert after.devices[first].state is GpuState.LOST
        device = after.devices[second].device
        assert (device.index, device.cuda_index) == (1, 0)
        named = device_env(BY_INDEX, [device], uuid_works=False)["CUDA_VISIBLE_DEVICES"]
        if how == "gone":
            assert pair.visible(named) == [(1, -1)]
        assert any("gpu = 1 still means this card" in one.message for one in source.said())
    with watching(pair, monkeypatch, known=inventory.known()) as later:
        alone = until(later, lambda s: s.devices)
        assert _where(alone, 1) == (second,)
        assert _where(alone, 0) == ()
        pair.restore(0)
    with watching(pair, monkeypatch, known=inventory.known()) as back:
        whole = until(back, lambda s: len(s.devices) == 2)
        assert {u: one.device.index for u, one in whole.devices.items()} == {first: 0, second: 1}
