"""``arbiterctl``, the operator's command. Exit: 0 done, 1 refused, 2 usage, 69 unreachable, 78 config."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import typer

from arbiterd import __version__
from arbiterd.imports import cheaper

_VALUES = ("--config", "--socket")
_EPILOG = (
    "Every command also takes --json, --config FILE and --socket PATH, before or after its name. "
    "Exit status: 0 done; 1 the daemon said no; 2 usage; 69 daemon not reachable; 78 config."
)


# In the order of --help. Only the asked command's module is imported: all of them take 0.4 s.
_COMMANDS = {
    "check": "check:check",
    "plan": "plan:plan",
    "status": "show:status",
    "incidents": "show:incidents",
    "why": "why:why",
    "mode": "mode:mode",
    "reload": "operate:reload",
    "drain": "operate:drain",
    "resume": "operate:resume",
    "restart": "operate:restart",
    "sleep": "operate:sleep",
    "wake": "operate:wake",
    "init": "init:init",
    "doctor": "doctor:doctor",
    "takeover": "takeover:takeover",
    "top": "top:top",
    "stop-all": "operate:stop_all",
    "record": "trace:record",
    "replay": "trace:replay_trace",
    "stop-post": "operate:stop_post",
}
_HELP = {"help_option_names": ["-h", "--help"]}


def _command(path: str) -> Callable[..., None]:
    module, _, name = path.partition(":")
    found: Callable[..., None] = getattr(import_module(f"arbiterd.cli.{module}"), name)
    return found


def _app(asked: str | None) -> typer.Typer:
    """Every command; where ``asked`` names one, that one alone (--help needs no other)."""
    app = typer.Typer(
        name="arbiterctl",
        help="Operate gpu-arbiter: check, plan, watch, change.",
        epilog=_EPILOG,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings=_HELP,
    )

    @app.callback()
    def everywhere(
        context: typer.Context,
        *,
        json: bool = typer.Option(False, "--json", help="print JSON"),
        config: Path | None = typer.Option(None, "--config", help="configuration file"),
        socket: Path | None = typer.Option(None, "--socket", help="the daemon's admin.sock"),
    ) -> None:
        """Operate gpu-arbiter: check, plan, watch, change."""
        from arbiterd.cli.common import Globals  # noqa: PLC0415 - --version stays instant
        from arbiterd.cli.screen import know  # noqa: PLC0415

        context.obj = Globals(json=json, config=config, socket=socket)
        know(context.obj.path)

    for name, path in _COMMANDS.items():
        if asked in {None, name}:
            app.command(name, epilog=_EPILOG)(_command(path))
    if asked in {None, "caps"}:
        learned = typer.Typer(context_settings=_HELP)
        learned.callback(invoke_without_command=True, epilog=_EPILOG)(_command("caps:caps"))
        learned.command(epilog=_EPILOG)(_command("caps:reset"))
        app.add_typer(learned, name="caps")
    return app


def _asked(words: Sequence[str]) -> str | None:
    """The command's name, where the words (global options first) have one that is known."""
    rest = iter(words)
    for word in rest:
        if word in _VALUES:
            next(rest, None)
        elif not word.startswith("-"):
            return word if word in _COMMANDS or word == "caps" else None
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


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["--version"]:
        print(f"arbiterctl {__version__}")
        return
    from arbiterd.cli.screen import screened  # noqa: PLC0415 - --version stays instant

    try:
        with screened():
            ordered = _global_first(words)
            with cheaper():
                app = _app(_asked(ordered))
            app(args=ordered, prog_name="arbiterctl")
    except BrokenPipeError:
        sys.stderr.close()
