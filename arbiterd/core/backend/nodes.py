"""Device nodes of a start: which a backend's unit may open, and which must be there before it starts.

systemd resolves DeviceAllow= once, when the unit starts: a node that is made later stays EPERM for that
unit (tried on systemd 252). So a start waits for its nodes, and nvidia-modprobe is asked to make them.
"""

from __future__ import annotations

from collections.abc import Iterable

from arbiterd.model.devices import Device, GpuState
from arbiterd.model.launch import LaunchSpec
from arbiterd.model.observation import HostFacts, Observation
from arbiterd.model.sandbox import ALL
from arbiterd.model.settings import BackendSettings

CONTROL, UVM, TOOLS = "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"
DXG = "/dev/dxg"
ASK_EVERY_S = 10.0


def walled(backend: BackendSettings, devices: Iterable[Device]) -> tuple[str, ...] | None:
    """The GPU nodes that the unit of a backend with ``device_wall`` may open; None: every one."""
    if not backend.device_wall:
        return None
    own = [node for device in devices for node in device.nodes]
    return tuple(sorted({CONTROL, UVM, TOOLS, *own})) if own else ()


def refusal(backend: BackendSettings, spec: LaunchSpec, devices: Iterable[Device]) -> str:
    """Why ``device_wall`` cannot hold for this start, "" when it can. ``devices``: those of which the
    driver must tell the nodes.

    Behind a wall CUDA counts the devices that it can open, so only a UUID names the same one on both
    sides. CUDA reads UUIDs itself, hence TensorFlow and any other CUDA program; Ollama passes them on
    (its discover/runner_test.go); vLLM maps the variable to numbers before 0.25.1 (facts/engines.md).
    """
    if not backend.device_wall:
        return ""
    for device in devices:
        if not device.nodes:
            return f"device_wall: the driver does not tell the device node of {device.uuid}"
    named = [one for one in spec.env.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    if all(one.startswith(("GPU-", "MIG-")) for one in named):
        return ""
    return (
        f"device_wall needs GPUs named by UUID, and this {backend.kind.value} takes numbers; "
        f"update the engine, or take device_wall out of backends.{backend.name}"
    )


def missing(backend: BackendSettings, placed: Iterable[str], seen: Observation) -> tuple[str, ...]:
    """Nodes that the start of this backend needs and that are not there; (): it may start.

    ``placed``: uuids of its placement. Without a wall every GPU's: CUDA counts them all.
    """
    facts, mine = seen.host, set(placed)
    if not facts.driver or not mine or _free(backend):
        return ()
    well = [one.device for one in seen.devices.values() if one.state is GpuState.OK]
    needed = {CONTROL, UVM}
    for device in well:
        if device.uuid in mine or not (backend.device_wall or device.parent_uuid):
            needed.update(device.nodes)
    return tuple(sorted(needed - facts.nodes))


def waits_for(backend: BackendSettings, lacking: tuple[str, ...]) -> str:
    """The reason of a start that waits for nodes, as status shows it."""
    names = ", ".join(lacking)
    return (
        f"{names} {'are' if len(lacking) > 1 else 'is'} not there: {backend.name} could not open "
        "what is made after its start; nvidia-modprobe is asked to make it"
    )


def shut_dxg(backend: BackendSettings, placed: Iterable[str], facts: HostFacts) -> str:
    """Why an engine on WSL would find no GPU, "" elsewhere: there the one node is /dev/dxg, by key."""
    if facts.driver or DXG not in facts.nodes or not list(placed) or _free(backend):
        return ""
    if any(one in (DXG, "/dev") for one in backend.sandbox.devices):
        return ""
    return (
        f"the GPU is reached by {DXG}, which the sandbox shuts; "
        f'write sandbox = {{ devices = ["{DXG}"] }} in backends.{backend.name}'
    )


def _free(backend: BackendSettings) -> bool:
    """Whether nothing keeps it from opening a node later: a container, or no DevicePolicy."""
    return bool(backend.image) or bool({"DevicePolicy", ALL} & set(backend.sandbox.without))
