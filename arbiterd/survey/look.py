"""Look at the whole host once: seconds, read only, without root as far as it goes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from arbiterd.act.launch.base import BASE_PATH
from arbiterd.errors import LaunchError
from arbiterd.linux import procfs
from arbiterd.model.devices import Device
from arbiterd.survey import containers, folders, listeners, models
from arbiterd.survey.facts import EngineName, OllamaStore, Survey, UnitFacts, VllmRun
from arbiterd.survey.units import Units, of_people

PORTS = (8500, 8501, 8000, 11434, 8080, 9480)  # what the contract gives to engines and arbiter
_PROGRAMS: tuple[tuple[EngineName, str], ...] = (
    ("ollama", "ollama"),
    ("tensorflow", "tensorflow_model_server"),
    ("vllm", "vllm"),
)


def survey(
    devices: tuple[Device, ...],
    nvml: str,
    *,
    ports: Sequence[int] = PORTS,
    runtime_dir: str = "/run/gpu-arbiter",
    roots: Sequence[str] = (),
) -> Survey:
    """Everything, with the GPUs the caller has read. ``roots``: folders to walk instead of the usual."""
    unseen: list[str] = []
    heard = listeners.look(ports, runtime_dir)
    serving = _vllm_processes()
    holders = {one.unit for one in heard if not (one.of_user_manager or one.ours)}
    units = _units({*holders, *(procfs.unit_of(pid) for pid in serving)}, unseen)
    homes = folders.people()
    found = folders.walk(roots or (*(h for h in homes if h != "/root"), *folders.ROOTS))
    images, running, unasked = containers.look()
    if not listeners.is_root():
        unseen.append(
            "other users' processes: run it as root to see whose ports and memory are whose"
        )
    return Survey(
        devices=devices,
        nvml=nvml,
        units=units,
        user_units=tuple(of_people(homes)),
        programs=tuple(_programs()),
        venvs=tuple(found.venvs),
        vllm_runs=tuple(_vllm_runs(serving, units)),
        cached=tuple(one for home in _caches(homes) for one in models.cached_models(home)),
        stores=tuple(_stores(units, homes)),
        saved_models=tuple(found.saved_models.values()),
        images=images,
        containers=running,
        listeners=heard,
        unseen=(*unseen, *found.unseen, *unasked),
    )


def _units(named: Iterable[str], unseen: list[str]) -> tuple[UnitFacts, ...]:
    """Engines' units by their names' patterns, and those seen at work whatever their name."""
    if not os.path.isdir("/run/systemd/system"):
        return ()
    source = Units()
    try:
        unseen += [
            f"{name}: a template without an instance; write its entry, or start an instance first"
            for name in source.templates()
        ]
        return source.of_engines(named)
    except LaunchError as error:
        unseen.append(f"systemd's units: {error}")
        return ()
    finally:
        source.close()


def _programs() -> Iterable[tuple[EngineName, str]]:
    for engine, program in _PROGRAMS:
        path = shutil.which(program, path=BASE_PATH)
        if path is not None:
            yield engine, path


def _vllm_processes() -> dict[int, tuple[str, ...]]:
    """`vllm serve` of others, by pid: the words from the program on."""
    out: dict[int, tuple[str, ...]] = {}
    for pid in procfs.pids():
        argv = _argv(pid)
        start = next((i for i, w in enumerate(argv[:2]) if w.rsplit("/", 1)[-1] == "vllm"), None)
        if start is None or argv[start + 1 : start + 2] != ["serve"]:
            continue
        if not procfs.unit_of(pid).startswith("gpu-arbiter"):
            out[pid] = tuple(argv[start:])
    return out


def _vllm_runs(
    serving: Mapping[int, tuple[str, ...]], units: Sequence[UnitFacts]
) -> Iterable[VllmRun]:
    """vLLM's command lines in use: processes first, then units that stand still."""
    for pid, argv in serving.items():
        yield VllmRun(argv, f"pid {pid}")
    for unit in units:
        if unit.command and unit.command[0].rsplit("/", 1)[-1] == "vllm":
            yield VllmRun(unit.command, unit.name)


def _argv(pid: int) -> list[str]:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return raw.decode(errors="replace").rstrip("\0").split("\0")


def _caches(homes: Sequence[str]) -> list[str]:
    engines_home = "/var/lib/gpu-engines"
    return [models.hub_folder({}, home) for home in (engines_home, *homes)]


def _stores(units: Sequence[UnitFacts], homes: Sequence[str]) -> Iterable[OllamaStore]:
    """The unit's store first: it is the one in use."""
    named = [store_of(unit) for unit in units if unit.command[:1]]
    usual = [models.PACKAGED, "/var/lib/ollama/models", "/var/lib/gpu-engines/.ollama/models"]
    own = [f"{home}/.ollama/models" for home in homes]
    for folder in dict.fromkeys(one for one in (*named, *usual, *own) if one):
        store = models.ollama_store(folder)
        if store is not None:
            yield store


def store_of(unit: UnitFacts) -> str:
    """Ollama's model folder by a unit's environment: OLLAMA_MODELS, else below its user's home.
    "" when it is no Ollama, or its user is not there.
    """
    if unit.command[0].rsplit("/", 1)[-1] != "ollama":
        return ""
    named = unit.env("OLLAMA_MODELS")
    if named:
        return named
    home = unit.env("HOME") or home_of(unit.user or "root")
    return f"{home}/.ollama/models" if home else ""


def home_of(user: str) -> str:
    """A user's home folder, "" when there is no such user."""
    import pwd  # noqa: PLC0415 - nss may load libraries; only those who ask pay

    with suppress(KeyError):
        return str(Path(pwd.getpwnam(user).pw_dir))
    return ""
