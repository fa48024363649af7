"""``env`` and ``env_file`` of a backend: what the arbiter decides itself has no place in them."""

from __future__ import annotations

from arbiterd.config.parse import KeyPath, Report
from arbiterd.engines.owned_env import owned
from arbiterd.engines.shell_line import assignments
from arbiterd.engines.vllm_rules import ENV_FILE
from arbiterd.files import bounded, env_text
from arbiterd.model.settings import BackendSettings, Kind
from arbiterd.secrets.redact import LEAST
from arbiterd.secrets.values import is_secret

_TOLD = ("api-key", "hf-token")


def check_environment(backend: BackendSettings, at: KeyPath, report: Report) -> None:
    """Owned variables, and variables that systemd would leave out."""
    decided = owned(backend)
    for name, text in backend.env.items():
        path = (*at, "env", name)
        if name in decided:
            report.add(path, f"{name} is set by the arbiter", decided[name].instead(text))
        elif not backend.image and not env_text.VARIABLE.fullmatch(name):
            wrong = f"{name!r} is no variable's name: systemd leaves it out"
            report.add(path, wrong, "use A-Z, 0-9 and _", "warning")
        elif not env_text.usable(name, text):
            wrong = f"{name} holds a control character: systemd leaves it out"
            report.add(path, wrong, "take it out", "warning")
        elif text and is_secret(name, backend.secrets):
            wrong = f"{name} is a secret, and whoever may read this file reads it"
            short = (
                ""
                if len(text) >= LEAST
                else f", with fewer than {LEAST} characters it is not hidden"
            )
            right = (
                f'write {name}=THE VALUE into {ENV_FILE} (mode 0600), and env_file = "{ENV_FILE}"'
            )
            report.add(path, wrong + short, right, "warning")
    _check_command(backend, at, report)
    for name, text in assignments(backend.command).items():
        if name in decided and not report.broken(*at, "command"):
            wrong = f"{name} is set by the arbiter, and env in the command would override it"
            right = f"take {name}=... out of the command; {decided[name].instead(text)}"
            report.add((*at, "command"), wrong, right)
    if backend.env_file:
        _check_file(backend, (*at, "env_file"), report)


def _check_command(backend: BackendSettings, at: KeyPath, report: Report) -> None:
    """Secrets that stand in argv. vLLM's own two options are told with the line to write."""
    if report.broken(*at, "command"):
        return
    for word in backend.command:
        name, given, value = word.partition("=")
        flag = name.startswith("-")
        known = backend.kind is Kind.VLLM and name.lstrip("-").replace("_", "-") in _TOLD
        if not (flag or (given and value)) or known or not is_secret(name, backend.secrets):
            continue
        wrong = f"the value of {name} can be read by every user of this host in /proc/PID/cmdline"
        right = f'if the program takes it from a variable, put that into env_file = "{ENV_FILE}"'
        report.add((*at, "command"), wrong, right, "warning")


def _check_file(backend: BackendSettings, path: KeyPath, report: Report) -> None:
    """By name only: values of env_file are shown nowhere."""
    name = backend.env_file
    if not name.startswith("/"):
        report.add(path, f"{name!r} is no absolute path", "write it in full", "warning")
        return
    try:
        found = env_text.parse(bounded.regular(name, bounded.FILE_BYTES).decode())
    except PermissionError:
        report.add(
            path, f"{name} may not be read by you: not looked at", "check as root", "warning"
        )
        return
    except OSError as error:
        wrong = f"{name} cannot be read: {error.strerror}, {backend.name} will not start"
        report.add(path, wrong, "write it, or take the key out", "warning")
        return
    except UnicodeDecodeError:
        report.add(path, f"{name} cannot be read: it is not UTF-8", "write it in UTF-8", "warning")
        return
    decided = owned(backend)
    for one in found:
        if one in decided and one not in backend.env:
            wrong = f"{name} sets {one}: the arbiter decides that, its own value counts"
            report.add(
                path, wrong, f"take it out of the file; {decided[one].instead('')}", "warning"
            )
