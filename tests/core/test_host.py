"""What the daemon sees of its own files and doors: incidents for as long as it lasts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from arbiterd.core.decide import decide
from arbiterd.model.events import EventName
from arbiterd.model.gateway import GatewayObservation
from arbiterd.model.reading import Known
from tests.core.world import TICK_S, World, only


class Host(World):
    """A world of which single fields of the observation are told."""

    def see(self, gateway: dict[str, Any] | None = None, **fields: Any) -> None:
        """One tick of it."""
        self.now += TICK_S
        seen = self.observation()
        seen = replace(seen, gateway=replace(seen.gateway, **(gateway or {})), **fields)
        self.decision, self.state = decide(seen, self.state, self.settings)
        self.events += [(one.name, one.backend) for one in self.decision.events]

    def open(self) -> list[EventName]:
        """Events of open incidents."""
        return [one.event for one in self.state.incidents if one.closed_at is None]


def host() -> Host:
    """With vLLM and Ollama up."""
    made = Host(only("vllm", "ollama"))
    made.up()
    return made


def test_a_file_that_cannot_be_written_is_one_incident() -> None:
    """From the first to the last of them; the first is named."""
    world = host()
    for behind in (("carry.json: disk full", "gpus.json: disk full"), ("gpus.json: disk full",)):
        world.see(unwritten=behind)
    assert world.open() == [EventName.STATE_UNWRITABLE]
    (one,) = world.state.incidents
    assert one.summary.startswith("carry.json: disk full")
    assert dict(one.evidence)["files"] == "carry.json: disk full; gpus.json: disk full"
    world.see()
    assert world.open() == []
    assert world.told(EventName.STATE_UNWRITABLE) == 1


def test_a_door_whose_port_is_taken_stays_shut_under_one_incident_each() -> None:
    """Closed once the port is free; its backend tells why it takes nothing."""
    world = host()
    taken = {"vllm": "pid 7 (nginx)", "ollama": "pid 8 (caddy)"}
    for _ in range(2):
        world.see({"taken_doors": taken})
    assert world.open() == [EventName.PORT_TAKEN, EventName.PORT_TAKEN]
    assert "pid 7 (nginx)" in world.view("vllm").reason
    world.see({"taken_doors": {"vllm": "pid 7 (nginx)"}})
    assert world.open() == [EventName.PORT_TAKEN]
    world.see()
    assert world.open() == []


def test_a_door_that_is_not_open_yet_takes_nothing() -> None:
    """And it is told."""
    world = host()
    assert world.view("vllm").accepting
    world.see({"opening": frozenset({"vllm"})})
    assert not world.view("vllm").accepting
    assert "being opened" in world.view("vllm").reason
    assert world.view("ollama").accepting


def test_without_a_gateway_no_door_is_judged() -> None:
    """What it would tell is held against nobody."""
    world = host()
    world.see({"enabled": False, "problem": "down", "taken_doors": {"vllm": "pid 7"}})
    assert world.open() == []
    assert world.view("vllm").accepting
    assert not GatewayObservation().enabled


def test_the_load_gate_concerns_ollama_alone() -> None:
    """The other doors do not need it."""
    world = host()
    world.see({"gate_problem": "no answer"})
    assert "load gate" in world.view("ollama").reason
    assert "load gate" not in world.view("vllm").reason


def test_adapters_loaded_at_run_time_are_routed() -> None:
    """Names that an engine lists and no settings have; its own name is none."""
    world = host()
    health = world.observation().health
    names: tuple[str, ...] = ("M", "adapter")
    served = Known(names, world.now)
    world.see(health={**health, "vllm": replace(health["vllm"], served=served)})
    assert world.decision is not None
    assert world.decision.gateway.adapters == {"adapter": "vllm"}
