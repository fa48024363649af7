"""What this host has for a backend's sandbox: its folders, its device nodes. Reads, changes nothing."""

from __future__ import annotations

import glob
import os
import pwd
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from arbiterd.errors import Flaw
from arbiterd.files import env_text
from arbiterd.linux import sandbox
from arbiterd.linux.sandbox import READ_ONLY, SHARED_TMP, Place
from arbiterd.model.launch import LaunchSpec
from arbiterd.model.sandbox import ALL, SandboxSettings

TEGRA = "/dev/nvmap"  # of a board whose GPU is no PCI device and has no unified memory driver
# Every kind of node that the driver makes: nvidia0, nvidiactl, -modeset, -uvm, -uvm-tools, -nvswitch*,
# -nvlink, -fs*, and the folders -caps and -caps-imex-channels.
NVIDIA_NODES = (
    "/dev/nvidia*",
    "/dev/nvidia-caps/*",
    "/dev/nvidia-caps-imex-channels/*",
    *(TEGRA, "/dev/nvhost*", "/dev/nvgpu/**"),
)
AMD = "/dev/kfd"
DXG = "/dev/dxg"  # of Windows' subsystem for Linux
MPS_PIPE = "/tmp/nvidia-mps"  # nosec B108 # bound only when root made it
# Variables by which an engine, or a library of it, is told where to write; the others name programs.
_WRITES = re.compile(r".*(CACHE|HOME|MODELS|DIR|ROOT|BASE|TMP|WORKSPACE|DATA).*")
_READS = re.compile(
    r"(CUDA|CUDNN|JAVA|PYTHON|CONDA|ROCM|NCCL|TENSORRT)_?(HOME|ROOT|DIR)|SSL_CERT_DIR"
)
_OWN_DEPTH = 3  # /usr/share/ollama at most: what lies above is everybody's


def sandbox_of(spec: LaunchSpec, user: str, home: str) -> tuple[sandbox.Directive, ...]:
    """The directives of this start, () for a container's client: what its engine may do, the container
    says. ``home``: the user's. Variables of env_file count as far as it can be read.
    """
    if spec.container is not None:
        return ()
    return sandbox.directives(spec.sandbox, _place(spec, user, home))


def _place(spec: LaunchSpec, user: str, home: str) -> Place:
    env = {**spec.base, **_env_file(spec.env_file), **spec.env}
    named = [home, *words_with_paths(spec.argv), *_paths(env.values())]
    tmp, shared = in_tmp(named)
    pipe = env.get("CUDA_MPS_PIPE_DIRECTORY", "")
    if not pipe and not shared and _trusted(MPS_PIPE, user):
        tmp.append(MPS_PIPE)
    nodes = nvidia_nodes() if spec.nodes is None else spec.nodes
    return Place(
        root=user in ("root", "0"),
        write=tuple(writable(home, env, spec.argv)),
        tmp=tuple(dict.fromkeys(tmp)),
        shared_tmp=shared,
        nodes=tuple(dict.fromkeys((*nodes, *_nodes(spec.sandbox.devices)))),
    )


def _env_file(path: str) -> dict[str, str]:
    if path:
        with suppress(OSError, UnicodeDecodeError), open(path, encoding="utf-8") as file:
            return env_text.parse(file.read())
    return {}


# -- folders -------------------------------------------------------------------------------------
def words_with_paths(argv: Sequence[str]) -> list[str]:
    """Absolute paths of a command line: words, and values of --option=VALUE."""
    return _paths(one.partition("=")[2] if one.startswith("-") else one for one in argv)


def _paths(texts: Iterable[str]) -> list[str]:
    """Absolute paths among values, also in a list with colons."""
    parts = (part for text in texts for part in text.split(":"))
    return [os.path.normpath(part) for part in parts if part.startswith("/")]


def writable(home: str, env: Mapping[str, str], argv: Sequence[str]) -> list[str]:
    """Folders of the engine that ProtectSystem= and ProtectHome= would make read-only: Ollama's package
    keeps keys and models in /usr/share/ollama. Of one that is not there yet, the nearest that is.
    """
    told = (text for name, text in env.items() if writes(name))
    out = []
    for path in _paths((home, *told, *_values(argv))):
        there = path
        while there.count("/") > _OWN_DEPTH and not os.path.exists(there):
            there = os.path.dirname(there)
        if within(os.path.realpath(there), READ_ONLY):
            out.append(there)
    return list(dict.fromkeys(out))


def writes(variable: str) -> bool:
    """Whether a variable names a place to write, by its name."""
    return bool(_WRITES.fullmatch(variable)) and not _READS.fullmatch(variable)


def _values(argv: Sequence[str]) -> Iterable[str]:
    """What long options give (--download-dir /x, --download-dir=/x): never the program or a script."""
    for before, word in zip(("", *argv), argv, strict=False):
        if word.startswith("--") and "=" in word:
            yield word.partition("=")[2]
        elif before.startswith("--") and "=" not in before:
            yield word


def within(path: str, folders: Iterable[str]) -> bool:
    """Whether a path lies below one of these folders, or is a home itself."""
    return any(path.startswith(f"{one}/") or path == one == "/root" for one in folders)


def in_tmp(named: Iterable[str]) -> tuple[list[str], bool]:
    """(entries of /tmp and /var/tmp that these paths lie in, whether one of them is not there yet).
    Whole entries: beside the program that is named lies the rest of its virtual environment.
    """
    out: list[str] = []
    shared = False
    for path in (one for name in named for one in (name, os.path.realpath(name))):
        folder = next((one for one in SHARED_TMP if path.startswith(f"{one}/")), "")
        if not folder:
            continue
        entry = f"{folder}/{path.removeprefix(folder).split('/')[1]}"
        if os.path.lexists(_of_host(entry)):
            out.append(entry)
        else:
            shared = True
    return out, shared


def _of_host(path: str) -> str:
    """A path in /tmp as the host has it: the daemon's own /tmp is private."""
    host = "/proc/1/root"
    return host + path if os.access(f"{host}/tmp", os.X_OK) else path  # nosec B108 # looked at


def _trusted(path: str, user: str) -> bool:
    """A folder of root's or of this user's: anybody can make one in /tmp."""
    owners = {0}
    with suppress(KeyError):
        owners.add(pwd.getpwnam(user).pw_uid)
    try:
        found = os.lstat(_of_host(path))
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid in owners


# -- devices -------------------------------------------------------------------------------------
def nvidia_nodes() -> tuple[str, ...]:
    """Every NVIDIA device node of this host."""
    found = (path for pattern in NVIDIA_NODES for path in glob.glob(pattern, recursive=True))
    return tuple(sorted(path for path in found if _is_char(path)))


def driver_here() -> bool:
    """Whether NVIDIA's kernel driver for cards is loaded: a simulated NVML, WSL and Tegra have none."""
    if os.path.exists(TEGRA):
        return False
    if os.path.exists("/dev/nvidiactl"):
        return True
    with suppress(OSError), open("/proc/devices", encoding="ascii", errors="replace") as file:
        return any(line.split()[1:2] and line.split()[1].startswith("nvidia") for line in file)
    return False


def shut_amd(sandbox_: SandboxSettings) -> Flaw | None:
    """Why an engine on an AMD GPU would run on the CPU, None elsewhere: its node is opened by key."""
    left_out = {"DevicePolicy", ALL} & set(sandbox_.without)
    opened = any(one.startswith((AMD, "char-kfd")) for one in sandbox_.devices)
    if left_out or opened or not os.path.exists(AMD) or driver_here():
        return None
    wrong = f"an AMD GPU is there ({AMD}), and the sandbox keeps engines from it"
    return Flaw(wrong, f'to use it write sandbox = {{ devices = ["{AMD}", "/dev/dri"] }}')


def gpu_nodes() -> frozenset[str]:
    """Device nodes by which an engine of this host reaches a GPU."""
    found = {*nvidia_nodes(), *(one for one in (DXG,) if _is_char(one))}
    return frozenset(found)


def _nodes(given: Iterable[str]) -> Iterable[str]:
    """Nodes as the file names them: a folder stands for the nodes in it."""
    for name in given:
        if os.path.isdir(name):
            yield from sorted(
                os.path.join(folder, one)
                for folder, _, files in os.walk(name)
                for one in files
                if _is_char(os.path.join(folder, one))
            )
        else:
            yield name


def _is_char(path: str) -> bool:
    try:
        return stat.S_ISCHR(os.stat(path).st_mode)
    except OSError:
        return False
