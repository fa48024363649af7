"""Which requests of operators are refused, and why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arbiterd.core.backend.asking import refusal
from arbiterd.model.actions import OperatorRequest, Verb
from arbiterd.model.backend import Phase
from arbiterd.model.decision import Decision
from arbiterd.model.engine_options import VllmOptions
from arbiterd.model.pressure import LearnedCap
from arbiterd.model.settings import Mode, Settings
from tests.core.world import OLLAMA, VLLM, World, settings, share

SLEEPY = replace(VLLM, vllm=VllmOptions(sleep=True))


def two_modes() -> Settings:
    """vLLM may sleep; Ollama is in mode B only."""
    return settings(
        {
            "A": Mode("A", {"vllm": share("vllm")}, {"vllm": SLEEPY}),
            "B": Mode("B", {"ollama": share("ollama")}, {"ollama": OLLAMA}),
        }
    )


def code(verb: Verb, name: str, decision: Decision | None) -> str:
    """Of the refusal, "" for none."""
    found = refusal(OperatorRequest("r", verb, name, "uid 0"), two_modes(), decision)
    return found.code if found else ""


@pytest.fixture
def ready() -> Decision:
    """vLLM takes work."""
    world = World(two_modes()).up()
    assert world.decision is not None
    return world.decision


def shown(decision: Decision, phase: Phase, *, drained: bool = False, reason: str = "") -> Decision:
    """The same with vLLM in this phase."""
    view = replace(decision.backends["vllm"], phase=phase, drained=drained, reason=reason)
    return replace(decision, backends={"vllm": view})


@pytest.mark.parametrize("verb", [v for v in Verb if v not in (Verb.STOP_ALL, Verb.RESET_CAP)])
def test_the_active_mode_has_to_name_the_backend(verb: Verb, ready: Decision) -> None:
    """A backend of another mode is not found."""
    assert code(verb, "ollama", ready) == "not_found"
    assert code(verb, "", ready) == "not_found"


def test_all_may_be_stopped_at_any_time() -> None:
    """Before the first tick, too."""
    assert code(Verb.STOP_ALL, "", None) == ""


def test_what_is_ready_or_drained_can_be_put_to_sleep(ready: Decision) -> None:
    """What is neither cannot, nor what is not known yet."""
    assert code(Verb.SLEEP, "vllm", ready) == ""
    assert code(Verb.SLEEP, "vllm", shown(ready, Phase.DRAINING, drained=True)) == ""
    assert code(Verb.SLEEP, "vllm", shown(ready, Phase.DRAINING)) == "conflict"
    assert code(Verb.SLEEP, "vllm", None) == "conflict"


def test_a_refusal_to_sleep_has_the_phase_and_its_reason(ready: Decision) -> None:
    """Or that nothing is known yet."""
    asked = OperatorRequest("r", Verb.SLEEP, "vllm", "uid 0")
    told = refusal(asked, two_modes(), shown(ready, Phase.WAITING, reason="no room"))
    assert told is not None
    assert "waiting (no room)" in told.text
    assert refusal(asked, two_modes(), None) != told


def test_an_engine_without_sleep_is_told_so(ready: Decision) -> None:
    """sleep = true is missing."""
    asked = OperatorRequest("r", Verb.SLEEP, "vllm", "uid 0")
    plain = settings({"A": Mode("A", {"vllm": share("vllm")}, {"vllm": VLLM})})
    told = refusal(asked, plain, ready)
    assert told is not None
    assert told.code == "conflict"


def test_only_what_sleeps_wakes(ready: Decision) -> None:
    """A ready one and one that is not known are awake."""
    assert code(Verb.WAKE, "vllm", shown(ready, Phase.SLEEPING)) == ""
    assert code(Verb.WAKE, "vllm", ready) == "conflict"
    assert code(Verb.WAKE, "vllm", None) == "conflict"


def test_a_learned_cap_of_any_mode_may_be_reset(ready: Decision) -> None:
    """Without one it is a conflict for a backend of any mode, not found for any other name."""
    cap = LearnedCap("B", "ollama", "GPU-1", "m", "", 1, 2, 1, 0.0, "oom")
    learned = replace(ready, learned={"x": cap})
    assert code(Verb.RESET_CAP, "ollama", learned) == ""
    assert code(Verb.RESET_CAP, "vllm", learned) == "conflict"
    assert code(Verb.RESET_CAP, "ollama", None) == "conflict"
    assert code(Verb.RESET_CAP, "nobody", learned) == "not_found"
