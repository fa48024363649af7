"""vLLM's own ``--config FILE``: read as vLLM reads it, so that its keys are known like flags.

vllm/utils/argparse_utils.py, load_config_file: YAML of one mapping; true is the bare option, false its
--no- twin where there is one, a list is several values, a mapping is JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from arbiterd.config.parse import KeyPath, Report
from arbiterd.engines.image import volume
from arbiterd.engines.vllm_command import full_name, model_of
from arbiterd.engines.vllm_command import read as command_of
from arbiterd.engines.vllm_flags import BARE
from arbiterd.engines.vllm_rules import lost_doors, owned_flags
from arbiterd.errors import one_line
from arbiterd.files import bounded
from arbiterd.model.settings import BackendSettings, Kind


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """``words``: its options as the command would have them. ``lines``: of each key, 1-based, by the
    full name of its option. ``wrong``: why it cannot be read, "" when it can.
    """

    path: str
    words: tuple[str, ...] = ()
    lines: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    wrong: str = ""


def config_of(backend: BackendSettings) -> ConfigFile | None:
    """The file that ``--config`` in its command names, None without one; within an image by the
    folder of ``volumes`` that it lies in.
    """
    name = command_of(backend.command).value("config")
    if not name:
        return None
    if not name.startswith("/"):
        why = "is no absolute path: vLLM would look for it in the home of its user"
        return ConfigFile(name, wrong=why)
    return replace(read(_outside(name, backend)), path=name)


def _outside(name: str, backend: BackendSettings) -> str:
    for text in backend.volumes if backend.image else ():
        found = volume(text)
        if found and name.startswith(found[1].rstrip("/") + "/") and found[0].startswith("/"):
            return found[0].rstrip("/") + name[len(found[1].rstrip("/")) :]
    return name


def read(path: str) -> ConfigFile:
    """Read the file; never raises."""
    if not path.endswith((".yaml", ".yml")):
        return ConfigFile(path, wrong="vLLM takes a file named .yaml or .yml only")
    import yaml  # noqa: PLC0415 - few files name such a file, and each start would pay for it

    try:
        text = bounded.regular(path, bounded.FILE_BYTES).decode("utf-8-sig")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except OSError as error:
        return ConfigFile(path, wrong=f"cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        return ConfigFile(path, wrong="cannot be read: it is not UTF-8")
    except RecursionError:
        return ConfigFile(path, wrong="cannot be read: it is nested too deeply")
    except (ValueError, OverflowError, TypeError) as error:  # of a constructor: a date of month 13
        return ConfigFile(path, wrong=f"cannot be read: {one_line(str(error))[:120]}")
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or "no YAML"
        return ConfigFile(path, wrong=f"cannot be read: {what}{where}")
    if not isinstance(content, dict) or not isinstance(node, yaml.MappingNode):
        return ConfigFile(path, wrong="holds no mapping of options, like port: 8000")
    words: list[str] = []
    for key, value in content.items():
        words += _words(str(key), value)
    lines = {
        full_name(f"--{key.value}"): (str(key.value), key.start_mark.line + 1)
        for key, _ in node.value
    }
    return ConfigFile(path, tuple(words), lines)


def _words(key: str, value: object) -> list[str]:
    if isinstance(value, bool):
        name = full_name(f"--{key}")
        return [f"--{key}"] if value else [f"--no-{key}"] if name in BARE else []
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)] if value else []
    return [f"--{key}", json.dumps(value) if isinstance(value, dict) else str(value)]


def check_config(backend: BackendSettings, at: KeyPath, report: Report) -> bool:
    """Problems of the ``--config`` file: owned keys are refused like flags, with file and line.
    Returns whether it is there and cannot be read.
    """
    config = config_of(backend) if backend.kind is Kind.VLLM else None
    if config is None:
        return False
    path = (*at, "command")
    if config.wrong:
        alone = not model_of(backend.command)
        wrong = f"--config {config.path}: {config.wrong}"
        right = "name a file that the arbiter can read, by its full path"
        if alone:
            right += ', or name the model: command = ["vllm", "serve", "MODEL", ...]'
        report.add(path, wrong, right, "error" if alone else "warning")
        return True
    for flag in owned_flags(backend):
        if flag.name in config.lines:
            key, line = config.lines[flag.name]
            wrong = f"{config.path} line {line}: {key} is set by the arbiter"
            report.add(path, wrong, f"take that line out; {flag.instead}")
    for found in lost_doors(command_of(("vllm", "serve", *config.words))):
        report.add(path, f"{config.path}: {found.wrong}", found.right, "warning")
    return False
