"""The error tree.

ArbiterError
├── ConfigRefused        the file (or environment) cannot be used; carries every problem found
├── LaunchError          a launcher could not do what was asked; says why
└── AlreadyRunning       another arbiter holds the lock of this runtime_dir

Messages read "cannot X: why; what would be right" and carry the values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

EX_REFUSED = 1
EX_USAGE = 2
EX_UNAVAILABLE = 69
EX_CONFIG = 78


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the configuration.

    Printed as ``FILE:LINE: key.path: what is wrong; what would be right`` (contract, section 2).
    ``line`` is 1-based, 0 when the value came from the environment. A warning does not refuse.
    """

    file: str
    line: int
    key: str
    wrong: str
    right: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        """Render the one-line form of the contract."""
        right = f"; {self.right}" if self.right else ""
        return one_line(f"{self.file}:{self.line}: {self.key}: {self.wrong}{right}")


def one_line(text: str) -> str:
    r"""The text with every control character and line separator written out: '\n', '\x1b'."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


class Flaw(NamedTuple):
    """What is wrong, and what would be right ("" when nothing is known)."""

    wrong: str
    right: str = ""

    def __str__(self) -> str:
        """Both in one sentence."""
        return f"{self.wrong}; {self.right}" if self.right else self.wrong


class InvalidValue(ValueError):
    """A value that cannot be used, with its ``flaw``."""

    def __init__(self, wrong: str, right: str = "") -> None:
        self.flaw = Flaw(wrong, right)
        super().__init__(str(self.flaw))


class ArbiterError(Exception):
    """Root of everything this program raises on purpose."""


class ConfigRefused(ArbiterError):
    """The configuration cannot be used. ``problems``: every error, in the order of the file;
    ``warnings``: what is doubtful beside them; ``partial``: what could be read (a ``config.Loaded``),
    for further questions only, None when nothing could.
    """

    def __init__(
        self,
        problems: tuple[Problem, ...],
        warnings: tuple[Problem, ...] = (),
        partial: object = None,
    ) -> None:
        self.problems = problems
        self.warnings = warnings
        self.partial = partial
        super().__init__("\n".join(str(problem) for problem in problems))


class LaunchError(ArbiterError):
    """A launcher could not start, stop or look up a backend."""


class AlreadyRunning(ArbiterError):
    """Another arbiter holds the lock. ``pid`` is its process id, 0 when it cannot be read."""

    def __init__(self, path: str, pid: int) -> None:
        self.path = path
        self.pid = pid
        super().__init__(
            f"cannot start: another arbiter (pid {pid}) holds {path}; "
            "stop it first, or give this one its own runtime_dir"
        )
