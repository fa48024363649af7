"""Which doors there are and who stands behind them: settings in, plain values out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from arbiterd.core.backend.planning import engine_grpc_port, engine_port
from arbiterd.engines import engine_of, ollama_names, vllm_command
from arbiterd.engines.base import Routes
from arbiterd.gateway.hosts import Names, names_of
from arbiterd.gateway.keys import Keys
from arbiterd.model.settings import BackendSettings, Kind, Settings

LLM_DOOR = "llm"
LLM_KINDS = (Kind.VLLM, Kind.OLLAMA)
ANY_MODEL = "*"
FILES = 65536  # LimitNOFILE of gpu-arbiter-gateway.service
HERE = ("127.0.0.0/8", "::1")  # this host


@dataclass(frozen=True, slots=True)
class Door:
    """A public port. ``backend`` is "" for the unified LLM port."""

    name: str
    port: int
    backend: str
    grpc: bool = False


@dataclass(frozen=True, slots=True)
class Behind:
    """A backend behind doors. ``gated``: its bodies pass the load gate. ``inner``: the gate reaches
    it by an inner door. ``standin``: some failover rule leads away from it. ``metrics``: its
    metrics page, where the file opens it. ``pages``: origins whose pages may read its answers (vLLM).
    """

    name: str
    kind: Kind
    port: int
    grpc_port: int
    max_in_flight: int
    queue_timeout_s: float
    request_timeout_s: float
    max_queue: int
    routes: Routes
    admin_paths: tuple[str, ...]
    gated: bool
    inner: bool
    standin: bool
    metrics: str = ""
    pages: tuple[str, ...] = ()

    @property
    def websockets(self) -> bool:
        """Whether a route of its door may be one."""
        return self.routes.everything or bool(self.admin_paths)


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything a rendered configuration depends on, besides its paths. ``sharing``: LLM backends
    that serve a model which another one serves, too. ``trusted``: sources that no count applies to.
    ``files``: file descriptors that HAProxy may have.
    """

    bind: str
    trust_priority: bool
    doors: tuple[Door, ...]
    backends: tuple[Behind, ...]
    names: Names = Names()
    keys: Keys = Keys()
    sharing: tuple[str, ...] = ()
    trusted: tuple[str, ...] = HERE
    files: int = FILES

    def behind(self, name: str) -> Behind:
        """The backend of this name."""
        return next(one for one in self.backends if one.name == name)


def layout(
    settings: Settings,
    without: Collection[str] = (),
    here: Collection[str] = (),
    keys: Keys | None = None,
    files: int = FILES,
) -> Layout:
    """The doors of the active mode. ``without``: names of doors to leave out (their port is taken).
    ``here``: names of this machine.
    """
    active = settings.active.backends
    backends = tuple(_behind(settings, one) for one in active.values())
    doors = [door for door in doors_of(settings) if door.name not in without]
    gateway, names = settings.gateway, names_of(settings, here, keys.origins if keys else ())
    several = {name for names in owners(settings).values() if len(names) > 1 for name in names}
    return Layout(
        bind=gateway.bind,
        trust_priority=gateway.trust_priority,
        doors=tuple(doors),
        backends=backends,
        names=names,
        keys=keys or Keys(),
        sharing=tuple(name for name in active if name in several),
        trusted=(*HERE, *gateway.trusted_proxies),
        files=files,
    )


def doors_of(settings: Settings) -> tuple[Door, ...]:
    """All of them, the unified port last."""
    out = []
    for one in settings.active.backends.values():
        out.append(Door(one.name, one.port, one.name))
        if one.grpc_port:
            out.append(Door(f"{one.name}-grpc", one.grpc_port, one.name, grpc=True))
    if settings.gateway.llm_port and models(settings):
        out.append(Door(LLM_DOOR, settings.gateway.llm_port, ""))
    return tuple(out)


def is_llm(one: BackendSettings) -> bool:
    """Whether the unified port and the gate know it: a server of another kind when it names models."""
    return one.kind in LLM_KINDS or (one.kind is not Kind.TENSORFLOW and bool(one.models))


def _behind(settings: Settings, one: BackendSettings) -> Behind:
    routes = engine_of(one.kind).routes(one)
    opened = any(opens(path, routes.metrics) for path in one.allow_admin_paths)
    return Behind(
        name=one.name,
        kind=one.kind,
        port=engine_port(settings, one),
        grpc_port=engine_grpc_port(settings, one) if one.grpc_port else 0,
        max_in_flight=one.max_in_flight,
        queue_timeout_s=one.queue_timeout_s,
        request_timeout_s=one.request_timeout_s,
        max_queue=one.max_queue,
        routes=routes,
        admin_paths=one.allow_admin_paths,
        gated=one.kind is Kind.OLLAMA,
        inner=is_llm(one),
        standin=any(rule.from_backend == one.name for rule in settings.failover),
        metrics=routes.metrics if opened or routes.everything else "",
        pages=vllm_command.pages(one.command) if one.kind is Kind.VLLM else (),
    )


def opens(entry: str, path: str) -> bool:
    """Whether an entry of allow_admin_paths (a path, or its beginning and ``*``) lets a path through."""
    return path.startswith(entry[:-1]) if entry.endswith("*") else path == entry


def models(settings: Settings) -> dict[str, str]:
    """Model name → backend, for the unified port. ANY_MODEL: an Ollama without an allow-list.

    The first backend of the file that has a name keeps it; a name that failover adds comes last.
    """
    return {model: names[0] for model, names in owners(settings).items()}


def owners(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Model name → every backend that serves it, in the order of the file. Where there are several,
    the unified port takes the one with the most free slots. A backend that has a model by failover
    only is its owner where it has no other.
    """
    out: dict[str, tuple[str, ...]] = {}
    active = settings.active.backends
    for one in active.values():
        if one.kind is Kind.TENSORFLOW:
            continue
        names = engine_of(one.kind).served_models(one)
        for name in names:
            if name in one.served_also:
                continue  # it answers to it for another's sake: below, by failover
            out[name] = (*out.get(name, ()), one.name)
        if one.kind is Kind.OLLAMA and not names:
            out.setdefault(ANY_MODEL, (one.name,))
    for rule in settings.failover:
        if rule.to_backend in active:
            out.setdefault(rule.model, (rule.to_backend,))
            if rule.source:
                out.setdefault(rule.source, (rule.to_backend,))
    return out


def spelled(models: Mapping[str, str], ollamas: Collection[str]) -> dict[str, str]:
    """The list with what HAProxy may be asked for as well: of a model in one of ``ollamas`` the key
    that all its spellings have in common, and that without ':latest'.
    """
    out = dict(models)
    for name, backend in models.items():
        if backend in ollamas and name != ANY_MODEL:
            key = ollama_names.key(name)
            out.setdefault(key, backend)
            out.setdefault(key.removesuffix(":latest"), backend)
    return out


def owner_of(models: Mapping[str, str], ollamas: Collection[str], model: str) -> str:
    """The backend of a model by this list, "" for none: by its very name, then as Ollama compares
    names, else an Ollama that takes any.
    """
    if model in models:
        return models[model]
    key = ollama_names.key(model)
    same = (b for name, b in models.items() if b in ollamas and ollama_names.key(name) == key)
    return next(same, models.get(ANY_MODEL, ""))
