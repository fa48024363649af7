"""The form of the worker's lines: what the worker says arrives, whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arbiterd.sense import nvml_child
from arbiterd.sense.nvml_answers import parsed
from arbiterd.sim.gpu import SimGpu
from tests.sense.watching import by_index, until, watching


def test_no_key_of_a_line_is_lost(
    sim_lib: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that the form does not have would vanish without a word: whole cards, slices, lost ones."""
    lines: list[str] = []

    def kept(line: str) -> dict[str, object] | None:
        lines.append(line)
        return parsed(line)

    monkeypatch.setattr(nvml_child, "parsed", kept)
    gpu = SimGpu.create(tmp_path / "gpu", sim_lib, ("rtx4090-24g", "h100-80g"))
    gpu.set_mig(1, ("3g.40gb",))
    with watching(gpu, monkeypatch) as source:
        seen = by_index(until(source, lambda s: len(s.devices) == 3))
        assert all(one.device.nodes for one in seen.values())
        gpu.lose(0, 15)
        until(source, lambda s: any("error" in line for line in lines))
    gpu.close()
    for line in lines:
        answer = parsed(line)
        assert answer is not None, line
        for told, taken in zip(
            json.loads(line).get("devices", ()), answer.get("devices", ()), strict=True
        ):
            assert told.keys() == taken.keys()
