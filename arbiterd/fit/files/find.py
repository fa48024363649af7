"""The models a backend names, wherever its engine would look for them."""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from pathlib import Path

from arbiterd.engines.flags import value_of
from arbiterd.engines.vllm_command import model_of
from arbiterd.fit.files import ollama_store, saved_model
from arbiterd.fit.files.gguf import read_metadata
from arbiterd.fit.files.huggingface import (
    NotHere,
    Wanted,
    hub_cache,
    is_repository,
    read_folder,
    snapshot,
)
from arbiterd.fit.files.read import Unreadable
from arbiterd.fit.kv_cache import MAX_CONTEXT, gguf_layers
from arbiterd.fit.types import ModelFacts, NoFacts
from arbiterd.model.settings import BackendSettings, Kind, Settings

ENGINE_USER = "gpu-engines"
_SYSTEMD = "/run/systemd/system"
_ENV_FILE = "; env_file is not read here: where it moves the models, write that in env"


def engine_home(settings: Settings, backend: BackendSettings) -> tuple[str, Path]:
    """(user, home) an engine runs with. Under systemd gpu-engines or ``user``; under the direct
    launcher, or where that user is not there yet, whoever asks.
    """
    launcher = settings.arbiter.launcher
    systemd = launcher == "systemd" or (launcher == "auto" and os.path.isdir(_SYSTEMD))
    wanted = backend.user or (ENGINE_USER if systemd else "")
    try:
        entry = pwd.getpwnam(wanted) if wanted else pwd.getpwuid(os.geteuid())
    except KeyError:
        return "", Path(os.path.expanduser("~"))
    home = Path(entry.pw_dir)
    return (entry.pw_name if wanted else ""), home if home.is_dir() else Path("/")


def models_of(settings: Settings, backend: BackendSettings) -> tuple[ModelFacts | NoFacts, ...]:
    """Facts of each model, or why there are none. Never raises for what a file holds."""
    user, home = engine_home(settings, backend)
    if backend.kind is Kind.VLLM:
        return (_vllm(backend, user, home),)
    if backend.kind is Kind.OLLAMA:
        return _ollama(settings, backend, home)
    if backend.kind is Kind.TENSORFLOW:
        return _tensorflow(backend)
    return (NoFacts(backend.name, "nothing is known of a generic server's memory"),)


def _vllm(backend: BackendSettings, user: str, home: Path) -> ModelFacts | NoFacts:
    model = model_of(backend.command, backend.vllm.config_words)
    if not model:
        return NoFacts(backend.name, "its command names no model")
    wanted = Wanted(
        model,
        value_of(backend.command, "dtype") or "auto",
        value_of(backend.command, "revision") or "main",
    )
    local = Path(os.path.expanduser(model) if model.startswith("/") else home / model)
    download = value_of(backend.command, "download-dir")
    cache = Path(download) if download else hub_cache(backend.env, home)
    late = _ENV_FILE if backend.env_file else ""
    try:
        if model.endswith(".gguf") and local.is_file():
            return _gguf(model, local)
        if local.is_dir():
            return read_folder(local, wanted)
        if not is_repository(model):
            return NoFacts(model, f"{model} is neither a folder here nor a repository's name")
        if backend.env.get("VLLM_USE_MODELSCOPE", "").lower() in ("1", "true"):
            return NoFacts(model, "ModelScope's cache is not known here")
        return read_folder(snapshot(cache, model, wanted.revision), wanted)
    except NotHere as error:
        fetch = "" if local.is_dir() else _prefetch(backend.command, model, user, cache)
        return NoFacts(model, f"not here yet: {error}{late}", fetch)
    except PermissionError as error:
        return NoFacts(model, f"{error.filename} cannot be read: {error.strerror}{late}")
    except (Unreadable, OSError, ValueError) as error:
        return NoFacts(model, f"{error}{late}")


def _prefetch(command: Sequence[str], model: str, user: str, cache: Path) -> str:
    """With the hub's own command, from vLLM's environment where the command names it in full."""
    program = Path(command[0])
    hf = str(program.with_name("hf")) if program.is_absolute() else "hf"
    sudo = f"sudo -u {user} " if user else ""
    return f"{sudo}{hf} download {model} --cache-dir {cache}"


def _gguf(model: str, path: Path) -> ModelFacts:
    info, size = read_metadata(path)
    arch = str(info.get("general.architecture", ""))
    context = info.get(f"{arch}.context_length")
    sane = isinstance(context, int) and 0 < context <= MAX_CONTEXT
    return ModelFacts(
        name=model,
        weight_bytes=size,
        weights_text="a GGUF file, quantised",
        quantised=True,
        layers=gguf_layers(info),
        context=context if sane and isinstance(context, int) else 0,
    )


def _ollama(
    settings: Settings, backend: BackendSettings, home: Path
) -> tuple[ModelFacts | NoFacts, ...]:
    """The allow-list, and what stands in for others."""
    store = ollama_store.store_of(backend.env, home)
    late = _ENV_FILE if backend.env_file else ""
    sources = [r.source for r in settings.failover if r.to_backend == backend.name and r.source]
    names = list(dict.fromkeys((*backend.models, *sources)))
    if not backend.models:
        text = "any model may load (models = []): the load gate looks at each before it does"
        return (NoFacts(backend.name, text),)
    out: list[ModelFacts | NoFacts] = []
    for name in names:
        try:
            out.append(ollama_store.read_model(store, name))
        except NotHere as error:
            fetch = f"OLLAMA_HOST=127.0.0.1:{backend.port} ollama pull {name}"
            out.append(NoFacts(name, f"not here yet: {error}{late}", fetch))
        except (Unreadable, OSError, ValueError) as error:
            out.append(NoFacts(name, f"{error}{late}"))
    return tuple(out)


def _tensorflow(backend: BackendSettings) -> tuple[ModelFacts | NoFacts, ...]:
    paths = dict(backend.model_paths)
    base = value_of(backend.command, "model-base-path")
    if not paths and base:
        paths = {value_of(backend.command, "model-name") or "default": base}
    if not paths:
        text = (
            'its command names the models; write models = { NAME = "/PATH" } to have them weighed'
        )
        return (NoFacts(backend.name, text),)
    out: list[ModelFacts | NoFacts] = []
    for name, path in paths.items():
        try:
            out.append(saved_model.read_model(name, Path(path)))
        except NotHere as error:
            out.append(NoFacts(name, f"not here yet: {error}"))
        except (Unreadable, OSError, ValueError) as error:
            out.append(NoFacts(name, str(error)))
    return tuple(out)
