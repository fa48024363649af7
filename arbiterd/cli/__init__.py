"""``arbiterctl``, the operator's command. Exit: 0 done, 1 refused, 2 usage, 69 unreachable, 78 config."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from arbiterd import __version__
from arbiterd.imports import cheaper

_VALUES = ("--config", "--socket")


class Entry(NamedTuple):
    """Where a command is, and its docstring's first sentence: --help and completion import no command."""

    path: str
    summary: str


# In the order of --help. Only the asked command's module is imported: all of them take 0.4 s.
COMMANDS = {
    "check": Entry("check:check", "Check the configuration and this host; change nothing."),
    "plan": Entry("plan:plan", "Show what a start or a switch would do, with the arithmetic."),
    "status": Entry(
        "show:status", "Show mode, GPUs with their ledgers, backends and open incidents."
    ),
    "incidents": Entry("incidents:incidents", "List incidents, newest first."),
    "why": Entry(
        "why:why",
        "Tell the story of a backend, a GPU or an incident: state, numbers, evidence, actions.",
    ),
    "mode": Entry(
        "mode:mode",
        "Switch to another mode: edit the file's mode line (comments stay), reload, show the progress.",
    ),
    "reload": Entry("operate:reload", "Read the configuration again; a bad file changes nothing."),
    "drain": Entry("operate:drain", "Let nothing new in; what runs goes on. Undo: resume."),
    "resume": Entry(
        "operate:resume",
        "Take work again; also brings back what was stopped by hand or has failed for good.",
    ),
    "restart": Entry("operate:restart", "Drain, stop, wait for the memory, start."),
    "sleep": Entry(
        "operate:sleep",
        "Drain, then give its GPU memory back without ending it (vLLM with sleep = true). Undo: wake.",
    ),
    "wake": Entry(
        "operate:wake",
        "Bring a sleeping backend back: it waits for room, wakes, and takes work once it has answered.",
    ),
    "init": Entry(
        "init:init",
        "Find GPUs, units, venvs, images and models; write a configuration and print its plan.",
    ),
    "doctor": Entry(
        "doctor:doctor",
        "Say what stands in the way of the arbiter on this host, each with the command that mends it.",
    ),
    "takeover": Entry(
        "takeover:takeover",
        "Take over an installed unit: write its settings into the configuration, then disable it.",
    ),
    "top": Entry(
        "top:top",
        "Show live status; q or Ctrl-C to quit. Without a terminal, print it once.",
    ),
    "stop-all": Entry(
        "operate:stop_all", "Stop every backend; each stays stopped until it is resumed."
    ),
    "record": Entry(
        "trace:record", "Write what the daemon sees and decides, tick by tick, until Ctrl-C."
    ),
    "replay": Entry(
        "trace:replay_trace",
        "Run a trace through the decision core of this version, and compare with what was decided then.",
    ),
    "stop-post": Entry(
        "operate:stop_post",
        "For the unit's ExecStopPost=: on a `stop` job, stop the slice, should the daemon have died.",
    ),
    "caps": Entry(
        "caps:caps",
        "Show the caps that out-of-memory deaths have lowered; caps reset NAME undoes it.",
    ),
}
PLAIN = "status"  # takes the global options alone, as Globals
_COMPLETE = "_ARBITERCTL_COMPLETE"


def command_of(path: str) -> Callable[..., Any]:
    """The function that an entry names."""
    module, _, name = path.partition(":")
    found: Callable[..., Any] = getattr(import_module(f"arbiterd.cli.{module}"), name)
    return found


def _plain(words: Sequence[str]) -> dict[str, Any] | None:
    """The global options before ``status``, which is all there is; None: typer has to look.

    typer, and the pydantic validators that it builds for every option, cost as much as all the rest.
    """
    given: dict[str, Any] = {}
    rest = list(words)
    while rest and rest[0].startswith("--"):
        key, equals, value = rest.pop(0).partition("=")
        if key == "--json" and not equals:
            given["json"] = True
        elif key in _VALUES and (equals or rest):
            given[key[2:]] = Path(value if equals else rest.pop(0))
        else:
            return None
    return given if rest == [PLAIN] else None


def _completed() -> bool:
    """Whether bash wanted the name of a command, which is printed then. The rest is typer's."""
    words = os.environ.get("COMP_WORDS", "").split()
    if os.environ.get(_COMPLETE) != "complete_bash" or os.environ.get("COMP_CWORD") != "1":
        return False
    begin = words[1] if len(words) > 1 else ""
    if begin.startswith("-"):
        return False
    print("\n".join(name for name in COMMANDS if name.startswith(begin)))
    return True


def _asked(words: Sequence[str]) -> str | None:
    """The command's name, where the words (global options first) have one that is known."""
    rest = iter(words)
    for word in rest:
        if word in _VALUES:
            next(rest, None)
        elif not word.startswith("-"):
            return word if word in COMMANDS else None
    return None


def _global_first(argv: Sequence[str]) -> list[str]:
    """Move the global options before the command, so that they may stand on either side."""
    front: list[str] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word == "--json" or word.startswith(tuple(f"{one}=" for one in _VALUES)):
            front.append(word)
        elif word in _VALUES:
            front += [word, *(value for value in [next(words, None)] if value is not None)]
        else:
            rest.append(word)
    return [*front, *rest]


def _complete_words() -> list[str]:
    """What stands on the line that a shell wants completed, behind arbiterctl."""
    for name in ("COMP_WORDS", "_TYPER_COMPLETE_ARGS"):
        if name in os.environ:
            return os.environ[name].split()[1:]
    return []


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["--version"]:
        print(f"arbiterctl {__version__}")
        return
    completes = _COMPLETE in os.environ
    if completes and _completed():
        return
    from arbiterd.cli.screen import screened  # noqa: PLC0415 - --version stays instant

    try:
        with screened():
            ordered = _global_first(words)
            plain = None if completes else _plain(ordered)
            with cheaper():
                if plain is not None:
                    from arbiterd.cli import common, show  # noqa: PLC0415
                else:
                    from arbiterd.cli.app import app_of  # noqa: PLC0415

                    app = app_of(_asked(_complete_words() if completes else ordered))
            if plain is not None:
                show.status(common.known(**plain))
            else:
                app(args=ordered, prog_name="arbiterctl")
    except BrokenPipeError:
        sys.stderr.close()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
