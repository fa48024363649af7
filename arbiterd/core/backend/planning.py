"""From a placement to what is started: the engine's launch line, its ports, its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from arbiterd.core.backend import nodes
from arbiterd.core.memory.placement import headroom_bytes
from arbiterd.core.mode.intent import intent
from arbiterd.engines import container, engine_of
from arbiterd.engines.base import LaunchContext
from arbiterd.engines.owned_env import owned
from arbiterd.model.backend import Placement
from arbiterd.model.devices import Device
from arbiterd.model.launch import LaunchSpec
from arbiterd.model.settings import BackendSettings, Settings

ANY_HOST = ("0.0.0.0", "::")  # nosec B104 # compared with


def engine_host(settings: Settings) -> str:
    """Where engines listen: loopback behind the gateway, else the public address themselves."""
    return "127.0.0.1" if settings.gateway.enabled else settings.gateway.bind


def engine_port(settings: Settings, backend: BackendSettings) -> int:
    """The engine's own port: public + 10000 behind the gateway, else the public one."""
    return backend.engine_port if settings.gateway.enabled else backend.port


def engine_grpc_port(settings: Settings, backend: BackendSettings) -> int:
    """The engine's own gRPC port, 0 for none."""
    return backend.engine_grpc_port if settings.gateway.enabled else backend.grpc_port


def engine_url(settings: Settings, backend: BackendSettings) -> str:
    """Where the arbiter itself reaches the engine."""
    host = engine_host(settings)
    if host in ANY_HOST:
        host = "127.0.0.1"
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{engine_port(settings, backend)}"


def launch_context(
    settings: Settings,
    name: str,
    placements: Mapping[str, Placement],
    devices: Mapping[str, Device],
    *,
    version: str = "",
    client: str = "",
) -> LaunchContext:
    """Everything the engine's file needs to render its knobs. The placement has no problem."""
    backend = settings.active.backends[name]
    placement = placements[name]
    mine = tuple(devices[uuid] for uuid in placement.devices)
    others = 0
    headroom = 0
    for device in mine:
        theirs = sum(
            other.cap_bytes
            for other in placements.values()
            if other.backend != name and device.uuid in other.devices
        )
        others = max(others, theirs)
        headroom = max(headroom, headroom_bytes(settings.arbiter.headroom_bytes, device))
    return LaunchContext(
        backend=backend,
        devices=mine,
        cap_bytes=placement.cap_bytes,
        headroom_bytes=headroom,
        others_caps_bytes=others,
        host=engine_host(settings),
        port=engine_port(settings, backend),
        grpc_port=engine_grpc_port(settings, backend),
        files_dir=f"{settings.arbiter.runtime_dir}/backends/{name}",
        intent=intent(backend, settings.active.shares[name]),
        version=backend.version or version,
        container=client or backend.container,
    )


def launch_spec(context: LaunchContext) -> LaunchSpec:
    """The launch line: the engine's own, then the operator's env beneath the arbiter's; for an image
    the client's line around it.
    """
    backend = context.backend
    where = container.inside(context) if backend.image else context
    spec = engine_of(backend.kind).launch(where)
    decided = owned(backend).keys()
    given = {name: text for name, text in backend.env.items() if name not in decided}
    env = {**given, **spec.env}
    whole = replace(
        spec,
        env=env,
        unset=tuple(sorted(decided - env.keys())),
        env_file=backend.env_file,
        user=backend.user,
        intent=context.intent,
        sandbox=backend.sandbox,
        nodes=nodes.walled(backend, context.devices),
        ports=tuple(port for port in (context.port, context.grpc_port) if port),
    )
    return container.wrap(context, whole) if backend.image else whole
