"""Models that lie on this host: Ollama's stores, Hugging Face caches. By their files, no engine asked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from arbiterd.files import strict_json
from arbiterd.linux.procfs import user_name
from arbiterd.survey.facts import CachedModel, OllamaModel, OllamaStore

# Ollama's own rule for showing a name: the default registry and its library are left out
# (ollama types/model/name.go, DisplayShortest).
REGISTRY, LIBRARY = "registry.ollama.ai", "library"
PACKAGED = "/usr/share/ollama/.ollama/models"  # $HOME of the user that install.sh makes


def ollama_store(folder: str) -> OllamaStore | None:
    """The store in this folder, None when there is none or it may not be read.

    Layout: manifests/HOST/NAMESPACE/MODEL/TAG, each a JSON manifest with its layers' sizes.
    """
    root = Path(folder, "manifests")
    try:
        if not root.is_dir():
            return None
        files = sorted(p for p in root.glob("*/*/*/*") if p.is_file())
        owner = user_name(root.stat().st_uid)
    except OSError:
        return None
    found = []
    for path in files:
        host, space, model, tag = path.relative_to(root).parts
        if host != REGISTRY:
            model = f"{host}/{space}/{model}"
        elif space != LIBRARY:
            model = f"{space}/{model}"
        with suppress(OSError, ValueError, TypeError, AttributeError):
            manifest = strict_json.loads(path.read_text())
            size = sum(int(layer.get("size", 0)) for layer in manifest.get("layers") or [])
            found.append(OllamaModel(f"{model}:{tag}", size, path.stat().st_mtime))
    return OllamaStore(folder, tuple(found), owner)


def hub_folder(env: Mapping[str, str], home: str) -> str:
    """Where huggingface_hub keeps models, by its own order of variables."""
    if env.get("HF_HUB_CACHE"):
        return env["HF_HUB_CACHE"]
    if env.get("HF_HOME"):
        return f"{env['HF_HOME']}/hub"
    cache = env.get("XDG_CACHE_HOME") or f"{home}/.cache"
    return f"{cache}/huggingface/hub"


def cached_models(hub: str) -> Iterator[CachedModel]:
    """Models in a Hugging Face cache: hub/models--ORG--NAME/snapshots/REVISION/."""
    with suppress(OSError):
        for folder in sorted(Path(hub).glob("models--*")):
            with suppress(OSError):
                if snapshot_of(folder):
                    name = folder.name.removeprefix("models--").replace("--", "/")
                    servable = any(folder.glob("snapshots/*/config.json"))
                    yield CachedModel(name, user_name(folder.stat().st_uid), servable)


def in_cache(hub: str, model: str) -> bool:
    """Whether weights of this model are there (a folder alone may be a download that broke off).
    False, too, where the cache may not be read.
    """
    return snapshot_of(Path(hub, "models--" + model.replace("/", "--")))


def snapshot_of(folder: Path) -> bool:
    """Whether a snapshot with weights is there; links into blobs/ that lead nowhere do not count."""
    kinds = ("*.safetensors", "*.bin", "*.gguf", "*.pt")
    return any(
        os.path.exists(path)  # follows the link
        for kind in kinds
        for path in folder.glob(f"snapshots/*/{kind}")
    )
