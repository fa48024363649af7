"""One bounded walk through the folders where people put engines and models."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from arbiterd.linux.procfs import user_name
from arbiterd.model.settings import BackendSettings, Kind
from arbiterd.sense.versions import version_of
from arbiterd.survey.facts import SavedModel, Venv

ROOTS = ("/root", "/opt", "/srv", "/usr/local", "/var/lib", "/models", "/data", "/mnt")
DEPTH = 5  # a conda environment below a home: home/miniconda3/envs/NAME
MAX_FOLDERS = 20_000
MAX_S = 5.0
_SKIP = {
    *("site-packages", "node_modules", "__pycache__", ".git", ".cache", "blobs"),
    *("docker", "containers", "overlay2", "dpkg", "apt", "systemd"),
}
_FILE = "saved_model.pb"


@dataclass(slots=True)
class Found:
    """What the walk met. ``unseen``: folders that may not be read, or where it was cut short."""

    venvs: list[Venv] = field(default_factory=list)
    saved_models: dict[str, SavedModel] = field(default_factory=dict)
    unseen: list[str] = field(default_factory=list)


def people() -> tuple[str, ...]:
    """Home folders of people, and root's."""
    homes = sorted(str(p) for p in Path("/home").glob("*") if os.path.isdir(p))
    return (*homes, "/root")


def walk(roots: Sequence[str]) -> Found:
    """Look for environments with vLLM and for models that TensorFlow Serving can serve.

    Breadth first, links not followed, other file systems (a network mount that hangs) not entered.
    """
    found = Found()
    deadline = time.monotonic() + MAX_S
    queue = [(root, DEPTH, _device(root)) for root in roots]
    seen = 0
    for folder, left, device in queue:
        seen += 1
        if seen > MAX_FOLDERS or time.monotonic() > deadline:
            found.unseen.append(f"{folder} and later folders: there are too many")
            break
        names = _names(folder, found)
        if "pyvenv.cfg" in names or os.path.exists(f"{folder}/bin/vllm"):
            _take_venv(folder, found)
            continue  # nothing else lies in an environment
        model = _saved_model(folder, names)
        if model is not None:
            found.saved_models[model.path] = model
            continue
        if left:
            below = [f"{folder}/{name}" for name in sorted(names) if name not in _SKIP]
            queue += [(p, left - 1, device) for p in below if _enter(p, device)]
    return found


def _names(folder: str, found: Found) -> set[str]:
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        found.unseen.append(f"{folder}: {error.strerror}")
        return set()


def _device(path: str) -> int:
    try:
        return os.stat(path).st_dev
    except OSError:
        return -1


def _enter(path: str, device: int) -> bool:
    try:
        stat = os.lstat(path)
    except OSError:
        return False
    return (stat.st_mode & 0o170000) == 0o040000 and stat.st_dev == device


def _take_venv(folder: str, found: Found) -> None:
    """An environment counts when the vllm distribution lies in it, not by the script's name."""
    program = f"{folder}/bin/vllm"
    if not os.path.exists(program):
        return
    probe = BackendSettings("vllm", Kind.VLLM, (program,), 0, 0)
    version = version_of(probe)
    if version:
        owner = user_name(os.stat(folder).st_uid)
        tools = (f"{folder}/bin/hf", f"{folder}/bin/huggingface-cli")
        hf = next((one for one in tools if os.path.exists(one)), "")
        found.venvs.append(Venv(folder, program, version, owner, open_to_all(program), hf))


def open_to_all(path: str) -> bool:
    """Whether any user may reach and run this program: by the modes of it and of every folder above."""
    real = Path(os.path.realpath(path))
    try:
        return all(one.stat().st_mode & 0o001 for one in (real, *real.parents, *Path(path).parents))
    except OSError:
        return False


def _saved_model(folder: str, names: set[str]) -> SavedModel | None:
    versions = [name for name in names if name.isdigit()]
    if any(os.path.exists(f"{folder}/{version}/{_FILE}") for version in versions):
        return SavedModel(os.path.basename(folder), folder)
    return None
