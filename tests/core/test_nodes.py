"""Device nodes of a start: it waits for them, has them made, and a wall admits its own only."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arbiterd.act.launch.device_nodes import MODPROBE, commands
from arbiterd.core.backend import nodes
from arbiterd.core.backend.planning import launch_spec
from arbiterd.engines.base import LaunchContext
from arbiterd.model.actions import MakeNodes, StartBackend
from arbiterd.model.backend import Phase
from arbiterd.model.devices import Device
from arbiterd.model.events import EventName
from arbiterd.model.observation import HostFacts
from arbiterd.model.sandbox import SandboxSettings
from arbiterd.model.settings import BackendSettings, Settings
from tests.core.world import World, only

ALL = frozenset({"/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidia1"})


def _with(settings: Settings, **keys: object) -> Settings:
    """The same, vLLM with these keys."""
    mode = settings.active
    vllm = replace(mode.backends["vllm"], **keys)  # type: ignore[arg-type]
    changed = replace(mode, backends={**mode.backends, "vllm": vllm})
    return replace(settings, modes={**settings.modes, mode.name: changed})


def _asked(world: World) -> list[MakeNodes]:
    return [one for one in world.ordered if isinstance(one, MakeNodes)]


def test_a_start_waits_for_its_nodes_and_has_them_made() -> None:
    """The reason is in status, an incident tells of a long wait, nothing counts as a failure; once the
    nodes are there it starts.
    """
    lacking = HostFacts(driver=True, nodes=ALL - {"/dev/nvidia-uvm", "/dev/nvidia0"})
    world = World(only("vllm"), host=lacking)
    world.tick(8)
    assert world.phase("vllm") is Phase.WAITING
    reason = world.view("vllm").reason
    assert "/dev/nvidia-uvm, /dev/nvidia0 are not there" in reason
    assert "nvidia-modprobe is asked to make" in reason
    assert [one.nodes for one in _asked(world)] == [("/dev/nvidia-uvm", "/dev/nvidia0")]
    world.tick(400)
    assert 2 <= len(_asked(world)) <= 12, "asked now and then"
    assert world.told(EventName.BLOCKED_START) == 1
    assert world.view("vllm").restarts == 0
    world.host = replace(lacking, nodes=ALL)
    world.up()
    assert world.told(EventName.RECOVERED, "vllm") == 1


def test_why_nodes_cannot_be_made_is_in_the_reason() -> None:
    """nvidia-modprobe is missing, or failed."""
    world = World(only("vllm"), host=HostFacts(driver=True))
    world.fail_nodes = "cannot run nvidia-modprobe: it is not there"
    world.tick(8)
    assert "(cannot run nvidia-modprobe: it is not there)" in world.view("vllm").reason


@pytest.mark.parametrize(
    "host",
    [
        HostFacts(),
        HostFacts(nodes=frozenset({"/dev/nvidia-uvm"})),
        HostFacts(driver=True, nodes=ALL),
    ],
    ids=["no driver (AMD, simulated, direct launcher)", "a leftover node", "all there"],
)
def test_nobody_waits_where_there_is_nothing_to_wait_for(host: HostFacts) -> None:
    """A host without NVIDIA's kernel driver starts as before."""
    world = World(only("vllm"), host=host).up()
    assert _asked(world) == []


def test_the_nodes_of_every_card_are_waited_for_without_a_wall() -> None:
    """CUDA counts them all; behind a wall only its own matter."""
    lacking = HostFacts(driver=True, nodes=ALL - {"/dev/nvidia1"})
    world = World(only("vllm"), gpus=2, host=lacking)
    world.tick(8)
    assert "/dev/nvidia1 is not there" in world.view("vllm").reason
    walled = _with(only("vllm"), device_wall=True)
    World(walled, gpus=2, host=lacking).up()


def test_a_sandbox_without_a_device_policy_waits_for_no_node() -> None:
    """What is made later can be opened."""
    loose = _with(only("vllm"), sandbox=SandboxSettings(without=("DevicePolicy",)))
    World(loose, host=HostFacts(driver=True)).up()


def test_wsl_is_named_with_the_line_to_write() -> None:
    """There a GPU is reached by /dev/dxg, which has no NVIDIA node's name."""
    wsl = HostFacts(nodes=frozenset({"/dev/dxg"}))
    world = World(only("vllm"), host=wsl)
    world.tick(8)
    assert (
        'write sandbox = { devices = ["/dev/dxg"] } in backends.vllm' in world.view("vllm").reason
    )
    World(_with(only("vllm"), sandbox=SandboxSettings(devices=("/dev/dxg",))), host=wsl).up()


def _started(world: World) -> StartBackend:
    return next(one for one in world.ordered if isinstance(one, StartBackend))


def test_a_wall_admits_the_placement_by_uuid() -> None:
    """Its card's node and the driver's common ones; the card is named by its UUID."""
    world = World(
        _with(only("vllm"), device_wall=True), gpus=2, host=HostFacts(driver=True, nodes=ALL)
    ).up()
    spec = _started(world).spec
    assert spec.nodes == (
        "/dev/nvidia-uvm",
        "/dev/nvidia-uvm-tools",
        "/dev/nvidia0",
        "/dev/nvidiactl",
    )
    assert spec.env["CUDA_VISIBLE_DEVICES"] == "GPU-0"
    plain = World(only("vllm"), gpus=2, host=HostFacts(driver=True, nodes=ALL)).up()
    assert _started(plain).spec.nodes is None


def test_a_wall_is_refused_where_the_engine_takes_numbers() -> None:
    """vLLM before 0.25.1 maps the variable to numbers of its own."""
    facts = HostFacts(driver=True, nodes=ALL, versions={"vllm": "0.21.0"})
    world = World(_with(only("vllm"), device_wall=True), host=facts)
    world.tick(8)
    assert world.phase("vllm") is Phase.WAITING
    assert "device_wall needs GPUs named by UUID" in world.view("vllm").reason
    world.host = replace(facts, versions={"vllm": "0.32.0"})
    world.up()


def _context(backend: BackendSettings, *devices: Device) -> LaunchContext:
    return LaunchContext(backend, devices, 0, 0, 0, "127.0.0.1", 1, 0, "/run/x", "i")


def test_a_slice_brings_its_capability_nodes_and_the_cpu_none() -> None:
    """A MIG slice: its card, its two nodes in nvidia-caps."""
    backend = _with(only("vllm"), device_wall=True).active.backends["vllm"]
    slice_ = Device(
        "MIG-1", 0, "H200", "00", 1, 0, parent_uuid="GPU-0",
        nodes=("/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap12", "/dev/nvidia-caps/nvidia-cap13"),
    )  # fmt: skip
    found = nodes.walled(backend, (slice_,))
    assert found is not None
    assert {"/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap12", "/dev/nvidiactl"} < set(found)
    assert nodes.walled(backend, ()) == ()
    unknown = replace(slice_, nodes=())
    context = _context(backend, unknown)
    said = nodes.refusal(backend, launch_spec(context), (unknown,))
    assert said == "device_wall: the driver does not tell the device node of MIG-1"


def test_nvidia_modprobe_is_called_as_it_wants_to_be() -> None:
    """With -u the numbers of -c are the unified memory driver's: never in one call with a card's."""
    wanted = (
        "/dev/nvidia0", "/dev/nvidia10", "/dev/nvidiactl", "/dev/nvidia-uvm",
        "/dev/nvidia-caps/nvidia-cap12",
    )  # fmt: skip
    file = "/proc/driver/nvidia/capabilities/gpu0/mig/gi1/access"
    assert commands(wanted, {12: file}) == [
        [MODPROBE, "-c", "0", "-c", "10", "-c", "255", "-f", file],
        [MODPROBE, "-u", "-c", "0"],
    ]
    assert commands(("/dev/nvidia-uvm-tools",), {}) == [[MODPROBE, "-u", "-c", "0"]]
    assert commands(("/dev/nvidia-caps/nvidia-cap9",), {}) == []
