"""What a look at the host found, as frozen values. Pure functions make findings and texts of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

from arbiterd.config.vllm_config import ConfigFile
from arbiterd.model.devices import Device

EngineName = Literal["vllm", "ollama", "tensorflow"]
OURS = "gpu-arbiter"
# What starts an engine, anywhere in a command: behind conda, uv, numactl, env, in a script, an image.
_STARTS = re.compile(
    r"(?P<ollama>(?:^|[\s/])ollama (?:serve|start)\b|ollama/ollama\b)"
    r"|(?P<vllm>(?:^|[\s/])vllm serve\b|\bvllm\.entrypoints\.|\bvllm/vllm)"
    r"|(?P<tensorflow>(?:^|[\s/])tensorflow_model_server|\btensorflow/serving\b)"
)


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """One unit of the system's manager, in systemd's own words.

    ``enabled`` is UnitFileState, ``command`` the first ExecStart's argv with its variables put in.
    ``environment`` is what Environment= comes to over the unit file and its drop-ins;
    ``environment_files``: (path, optional). ``missing``: variables of the command whose values could
    not be read; ``secret``: those that stay as they are written. ``directives``: what the texts of
    unit and drop-ins set in [Service], as written: names for people, never values to act on.
    ``in_files``: the variables that the environment files set. ``config``: a vLLM's ``--config`` file.
    """

    name: str
    load: str = "loaded"
    active: str = "inactive"
    enabled: str = "disabled"
    fragment: str = ""
    drop_ins: tuple[str, ...] = ()
    user: str = ""
    group: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    environment_files: tuple[tuple[str, bool], ...] = ()
    command: tuple[str, ...] = ()
    main_pid: int = 0
    missing: tuple[str, ...] = ()
    secret: tuple[str, ...] = ()
    directives: tuple[tuple[str, str], ...] = ()
    in_files: frozenset[str] = frozenset()
    config: ConfigFile | None = None

    @property
    def there(self) -> bool:
        """Whether systemd knows a file for it."""
        return self.load not in ("not-found", "")

    @property
    def runs(self) -> bool:
        """Running, or about to: a unit in auto-restart is 'activating' and takes the port next."""
        return self.active in ("active", "activating", "reloading")

    @property
    def starts_at_boot(self) -> bool:
        """Enabled in any way that survives or begins with a boot."""
        return self.enabled in ("enabled", "enabled-runtime", "linked", "alias", "generated")

    def env(self, name: str) -> str:
        """One variable, "" when it is not set."""
        return dict(self.environment).get(name, "")


@dataclass(frozen=True, slots=True)
class Venv:
    """A Python environment with vLLM in it. ``owner`` is a login name, ``open`` whether any user may
    run it (a venv below a home folder mostly may not), ``hf`` its downloader.
    """

    folder: str
    program: str
    version: str
    owner: str
    open: bool = True
    hf: str = ""


@dataclass(frozen=True, slots=True)
class VllmRun:
    """A vLLM command line that somebody uses: of a running process or of a unit."""

    argv: tuple[str, ...]
    source: str


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model in a Hugging Face cache. ``servable``: it has a config.json, as an LLM's has."""

    name: str
    owner: str
    servable: bool = True


@dataclass(frozen=True, slots=True)
class OllamaModel:
    """A model in an Ollama store: its name as Ollama shows it, bytes of its layers, pull time."""

    name: str
    size_bytes: int
    pulled_at: float = 0.0


@dataclass(frozen=True, slots=True)
class OllamaStore:
    """A model folder of Ollama (OLLAMA_MODELS) that is there, and whose it is."""

    folder: str
    models: tuple[OllamaModel, ...]
    owner: str = ""


@dataclass(frozen=True, slots=True)
class SavedModel:
    """A folder that TensorFlow Serving can serve: NAME/VERSION/saved_model.pb."""

    name: str
    path: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image of a known engine in a container client's store."""

    client: str
    name: str
    engine: EngineName


@dataclass(frozen=True, slots=True)
class Container:
    """A running container. ``ports``: those it publishes on this host."""

    client: str
    name: str
    image: str
    ports: tuple[int, ...] = ()
    engine: EngineName | None = None


@dataclass(frozen=True, slots=True)
class Listener:
    """Who listens on a port of ours. ``pid`` 0: not to be seen (no right to look)."""

    port: int
    pid: int = 0
    unit: str = ""
    user: str = ""
    command: str = ""
    of_user_manager: bool = False
    ours: bool = False


@dataclass(frozen=True, slots=True)
class UserUnit:
    """A unit enabled in a person's own manager. ``linger``: it runs without a login."""

    name: str
    user: str
    linger: bool


@dataclass(frozen=True, slots=True)
class Survey:
    """Everything that was found. ``nvml``: "" when NVML answers, else why not.
    ``programs``: engines' programs on the PATH of units. ``unseen``: what could not be looked at.
    """

    devices: tuple[Device, ...] = ()
    nvml: str = ""
    units: tuple[UnitFacts, ...] = ()
    user_units: tuple[UserUnit, ...] = ()
    programs: tuple[tuple[EngineName, str], ...] = ()
    venvs: tuple[Venv, ...] = ()
    vllm_runs: tuple[VllmRun, ...] = ()
    cached: tuple[CachedModel, ...] = ()
    stores: tuple[OllamaStore, ...] = ()
    saved_models: tuple[SavedModel, ...] = ()
    images: tuple[Image, ...] = ()
    containers: tuple[Container, ...] = ()
    listeners: tuple[Listener, ...] = ()
    unseen: tuple[str, ...] = ()

    def program(self, engine: EngineName) -> str:
        """Its program on the PATH, "" for none."""
        return dict(self.programs).get(engine, "")

    def unit(self, engine: EngineName) -> UnitFacts | None:
        """The foreign unit that runs this engine: a running one before an installed one, one whose
        command says so before one whose name does.
        """
        mine = [one for one in self.units if engine_of_unit(one) == engine]

        def rank(one: UnitFacts) -> tuple[bool, bool, bool]:
            return not one.runs, not one.starts_at_boot, _engine_of_command(one) != engine

        return min(mine, key=rank, default=None)


def engine_of_unit(unit: UnitFacts) -> EngineName | None:
    """Which engine a foreign unit runs, by its command, else by its name; None for our own."""
    if unit.name.startswith(OURS):
        return None
    found = _engine_of_command(unit)
    if found is not None:
        return found
    named = re.sub(r"[-_.]", "", unit.name.lower())
    if "ollama" in named:
        return "ollama"
    if "vllm" in named:
        return "vllm"
    return "tensorflow" if "tensorflow" in named or "tfserving" in named else None


def _engine_of_command(unit: UnitFacts) -> EngineName | None:
    return starts_engine(" ".join(unit.command))


def starts_engine(text: str) -> EngineName | None:
    """Which engine a command line, or a unit's text, starts."""
    found = _STARTS.search(text)
    return cast("EngineName", found.lastgroup) if found else None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found. ``blocks``: it stands in the way; ``advice``: better mended;
    ``note``: good to know. ``mend`` is a command line for a root shell, "" when there is none.
    """

    code: str
    level: Literal["blocks", "advice", "note"]
    what: str
    why: str
    mend: str = ""
