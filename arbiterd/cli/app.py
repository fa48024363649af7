"""What typer is told: the global options, and the asked command."""

from __future__ import annotations

from pathlib import Path

import typer

from arbiterd.cli import COMMANDS, PLAIN, command_of
from arbiterd.cli.common import globals_of, known

_EPILOG = (
    "Every command also takes --json, --config FILE and --socket PATH, before or after its name. "
    "Exit status: 0 done; 1 the daemon said no; 2 usage; 69 daemon not reachable; 78 config."
)
_HELP = {"help_option_names": ["-h", "--help"]}


def app_of(asked: str | None) -> typer.Typer:
    """With the asked command; without one that is known, with the names and summaries of all."""
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
        context.obj = known(json=json, config=config, socket=socket)

    if asked is None:
        for name, entry in COMMANDS.items():
            app.command(name, help=entry.summary)(_unasked)
    elif asked == PLAIN:

        def plain(context: typer.Context) -> None:
            command_of(COMMANDS[PLAIN].path)(globals_of(context))

        plain.__doc__ = command_of(COMMANDS[PLAIN].path).__doc__
        app.command(PLAIN, epilog=_EPILOG)(plain)
    elif asked == "caps":
        learned = typer.Typer(context_settings=_HELP)
        learned.callback(invoke_without_command=True, epilog=_EPILOG)(command_of("caps:caps"))
        learned.command(epilog=_EPILOG)(command_of("caps:reset"))
        app.add_typer(learned, name="caps")
    else:
        app.command(asked, epilog=_EPILOG)(command_of(COMMANDS[asked].path))
    return app


def _unasked() -> None:
    """Placeholder of a command whose module is not imported in this run."""
