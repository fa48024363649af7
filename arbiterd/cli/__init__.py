"""``arbiterctl``, the operator's command. Exit: 0 done, 1 refused, 2 usage, 69 unreachable, 78 config."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from arbiterd import __version__

_VALUES = ("--config", "--socket")
_EPILOG = (
    "Every command also takes --json, --config FILE and --socket PATH, before or after its name. "
    "Exit status: 0 done; 1 the daemon said no; 2 usage; 69 daemon not reachable; 78 config."
)


def _app() -> typer.Typer:
    from arbiterd.cli.caps import caps, reset  # noqa: PLC0415 - --version stays instant
    from arbiterd.cli.check import check  # noqa: PLC0415
    from arbiterd.cli.common import Globals  # noqa: PLC0415
    from arbiterd.cli.doctor import doctor  # noqa: PLC0415
    from arbiterd.cli.init import init  # noqa: PLC0415
    from arbiterd.cli.mode import mode  # noqa: PLC0415
    from arbiterd.cli.operate import (  # noqa: PLC0415
        drain,
        reload,
        restart,
        resume,
        sleep,
        stop_all,
        stop_post,
        wake,
    )
    from arbiterd.cli.plan import plan  # noqa: PLC0415
    from arbiterd.cli.show import incidents, status  # noqa: PLC0415
    from arbiterd.cli.takeover import takeover  # noqa: PLC0415
    from arbiterd.cli.top import top  # noqa: PLC0415
    from arbiterd.cli.trace import record, replay_trace  # noqa: PLC0415
    from arbiterd.cli.why import why  # noqa: PLC0415

    app = typer.Typer(
        name="arbiterctl",
        help="Operate gpu-arbiter: check, plan, watch, change.",
        epilog=_EPILOG,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
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
        context.obj = Globals(json=json, config=config, socket=socket)

    plain = (check, plan, status, incidents, why, mode, reload, drain, resume, restart, sleep, wake)
    for command in plain:
        app.command(epilog=_EPILOG)(command)
    for command in (init, doctor, takeover, top):
        app.command(epilog=_EPILOG)(command)
    learned = typer.Typer(context_settings={"help_option_names": ["-h", "--help"]})
    learned.callback(invoke_without_command=True, epilog=_EPILOG)(caps)
    learned.command(epilog=_EPILOG)(reset)
    app.add_typer(learned, name="caps")
    app.command("stop-all", epilog=_EPILOG)(stop_all)
    app.command(epilog=_EPILOG)(record)
    app.command("replay", epilog=_EPILOG)(replay_trace)
    app.command("stop-post")(stop_post)
    return app


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
    try:
        _app()(args=_global_first(words), prog_name="arbiterctl")
    except BrokenPipeError:
        sys.stderr.close()
