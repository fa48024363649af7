"""What other settings mean for a backend, in the keys that differ."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arbiterd.core.mode.diff import differences, estimate, reason
from arbiterd.model.engine_options import VllmOptions
from arbiterd.model.settings import BackendSettings, Mode, Settings, Share
from arbiterd.model.switch import Change
from arbiterd.quantities import GIB
from tests.core.world import VLLM, only, settings, share

AT = share("vllm", 0.5)


@pytest.mark.parametrize(
    ("new", "at", "told"),
    [
        (VLLM, AT, ()),
        (VLLM, share("vllm", 0.5, gpu=1), ("gpu 0 → 1",)),
        (VLLM, Share("vllm", fraction=0.5), ("gpu 0 → the only one",)),
        (VLLM, Share("vllm", cpu=True), ("gpu 0 → cpu", "memory 50% → all")),
        (VLLM, Share("vllm", AT.gpus, size_bytes=2 * GIB), ("memory 50% → 2.00 GiB",)),
        (replace(VLLM, port=1), AT, ("port 8000 → 1",)),
        (replace(VLLM, start_timeout_s=5.0), AT, ("start_timeout 60.0 → 5.0",)),
        (replace(VLLM, version="1"), AT, ("version - → 1",)),
        (replace(VLLM, volumes=("/a:/a",)), AT, ("volumes [] → [/a:/a]",)),
        (replace(VLLM, vllm=VllmOptions(max_model_len=8)), AT, ("max_model_len - → 8",)),
        (replace(VLLM, env={"B": "1", "A": "x"}), AT, ("env.A", "env.B")),
        (replace(VLLM, command=("vllm", "--api-key", "k")), AT, ("command",)),
        (replace(VLLM, env_file="/x"), AT, ("env_file",)),
        (replace(VLLM, priority=1, max_queue=1, drain_timeout_s=1.0), AT, ()),
    ],
)
def test_the_keys_that_an_engine_notices(
    new: BackendSettings, at: Share, told: tuple[str, ...]
) -> None:
    """With their values, but for those that may hold a secret; keys of the arbiter alone are left out."""
    assert differences((VLLM, AT), (new, at)) == told


def _with(backend: BackendSettings) -> Settings:
    return settings({"A": Mode("A", {"vllm": AT}, {"vllm": backend})})


def test_every_change_has_its_reason() -> None:
    """Also where the layout in force is not known, or nothing differs that the file tells."""
    now, none = _with(VLLM), only("ollama")
    unknown = "its configuration differs from what it was started with"
    assert reason("vllm", Change.KEEP, now, now) == "nothing that concerns it differs"
    assert reason("vllm", Change.STOP, now, none) == "mode A does not name it"
    assert reason("vllm", Change.START, none, now) == "mode A does not name it"
    assert reason("vllm", Change.START, now, now) == "it does not run"
    assert reason("vllm", Change.START, None, now) == "it does not run"
    assert reason("vllm", Change.RESTART, None, now) == unknown
    assert reason("vllm", Change.RESTART, none, now) == unknown
    assert reason("vllm", Change.RESTART, now, now) == unknown
    assert reason("vllm", Change.RESTART, now, _with(replace(VLLM, port=1))) == "port 8000 → 1"


def test_a_switch_takes_as_long_as_its_slowest_device() -> None:
    """After what leaves the mode: it may hold up any of them."""
    shares = {"a": share("a"), "b": share("b"), "c": share("c", gpu=1)}
    made = settings({"A": Mode("A", shares, {})})
    times = {"a": (4.0, 1.0), "b": (8.0, 2.0), "c": (11.0, 1.0), "old": (1.0, 3.0)}
    changes = {"a": Change.RESTART, "b": Change.START, "c": Change.START, "old": Change.STOP}
    assert estimate(made, times, changes) == 3.0 + (1.0 + 4.0 + 8.0)
    assert estimate(made, times, {"a": Change.KEEP}) == 0.0
    assert estimate(made, {}, {}) == 0.0
