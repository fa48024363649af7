"""``arbiterctl init``: look at this host and write a short configuration that fits it."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

from arbiterd.act.files import replace_file
from arbiterd.cli.common import (
    console,
    globals_of,
    inventory,
    polite,
    print_json,
    say_problems,
)
from arbiterd.cli.doctor_print import print_findings
from arbiterd.cli.plan import model_fits, plan_rows, print_plan
from arbiterd.cli.trial import trial
from arbiterd.config import Loaded, check_devices
from arbiterd.config.check import check_backend
from arbiterd.config.lines import Lines
from arbiterd.config.parse import Report
from arbiterd.errors import ArbiterError, Problem
from arbiterd.model.settings import ArbiterSettings, BackendSettings, Kind
from arbiterd.quantities import format_size
from arbiterd.survey.draft import draft
from arbiterd.survey.facts import Finding, Survey
from arbiterd.survey.findings import findings
from arbiterd.survey.look import survey


@dataclass(frozen=True, slots=True)
class _Made:
    """The text and everything that is said about it."""

    text: str
    survey: Survey
    loaded: Loaded
    problems: tuple[Problem, ...]
    findings: tuple[Finding, ...]


def init(
    context: typer.Context,
    output: Path | None = typer.Option(
        None, "--output", "-o", help="write here; - prints it (default: the file of --config)"
    ),
    *,
    force: bool = typer.Option(False, "--force", help="replace a file that is there"),
) -> None:
    """Find GPUs, units, venvs, images and models; write a configuration and print its plan.

    Nothing but the file is written, and a file that is there only with --force (the old one is kept
    as FILE.before-init).

    Examples: arbiterctl init --output - · arbiterctl init --force · arbiterctl init -o ./new.toml
    """
    own = globals_of(context)
    target = output or own.path
    shown = str(target) == "-"
    with polite():
        if not shown and os.path.exists(target) and not force:
            msg = (
                f"{target} is there already; --output - shows what would be written, "
                "--force replaces it and keeps the old one"
            )
            raise ArbiterError(msg)
        made = _make(target)
        if not shown:
            _write(target, made.text)
    if own.json:
        print_json(_json(made, None if shown else str(target)))
        return
    if shown:
        sys.stdout.write(made.text)
    out = Console(stderr=True, highlight=False, width=200) if shown else console()
    _print(out, made, None if shown else target)


def _make(target: Path) -> _Made:
    devices, why = inventory(Path(ArbiterSettings().state_dir))
    seen = survey(devices, why)
    text = draft(seen, images_run=images_run()).text
    loaded = trial(text, target, {})
    problems = (*loaded.warnings, *(check_devices(loaded, devices) if devices else ()))
    return _Made(text, seen, loaded, problems, tuple(findings(seen)))


def images_run() -> bool:
    """Whether this version's own check accepts `image =`."""
    probe = BackendSettings(
        "tensorflow",
        Kind.TENSORFLOW,
        (),
        8501,
        18501,
        image="tensorflow/serving:2",
        container="docker",
    )
    report = Report("", Lines(""))
    check_backend(probe, ("backends", "tensorflow"), report)
    return not report.errors


def _write(target: Path, text: str) -> None:
    if os.path.exists(target):
        try:
            old = target.read_bytes()
        except OSError as error:
            msg = f"cannot keep {target}: {error.strerror}; name another file by --output"
            raise ArbiterError(msg) from None
        replace_file(target.with_name(f"{target.name}.before-init"), old)
    replace_file(target, text.encode())


def _json(made: _Made, written: str | None) -> dict[str, object]:
    rows, fits = plan_rows(made.loaded.settings, made.survey.devices)
    return {
        "written": written,
        "text": made.text,
        "found": asdict(made.survey),
        "findings": [asdict(one) for one in made.findings],
        "problems": [asdict(one) for one in made.problems],
        "plan": {"backends": rows, "fits": fits},
    }


def _print(out: Console, made: _Made, target: Path | None) -> None:
    for line in _found(made.survey):
        out.print(f"found {escape(line)}", soft_wrap=True)
    for text in made.survey.unseen:
        out.print(f"[yellow]not looked at[/yellow] {escape(text)}", soft_wrap=True)
    if target is not None:
        out.print(f"\n[bold]wrote {escape(str(target))}[/bold]\n")
    settings = made.loaded.settings
    rows, _ = plan_rows(settings, made.survey.devices)
    models = model_fits(settings, made.survey.devices)
    print_plan(out, settings, made.survey.devices, made.survey.nvml, rows, models)
    say_problems(made.problems)
    errors = [one for one in made.problems if one.severity == "error"]
    out.print(f"\ncheck: {'good' if not errors else f'{len(errors)} problem(s)'}")
    if made.findings:
        out.print("\n[bold]before the arbiter starts[/bold]")
        print_findings(out, made.findings)
    out.print("next: edit it if you like, then arbiterctl doctor says what is missing")


def _found(seen: Survey) -> list[str]:
    gpus = [
        f"GPU {one.index} {one.name}, {format_size(one.capacity_bytes)}"
        + (f", slice {one.uuid}" if one.parent_uuid else ", in MIG mode" if one.mig_enabled else "")
        for one in seen.devices
    ]
    units = [f"unit {u.name} ({u.enabled or 'not enabled'}, {u.active})" for u in seen.units]
    programs = [f"program {path}" for _, path in seen.programs]
    venvs = [f"vLLM {v.version} in {v.folder}, owner {v.owner}" for v in seen.venvs]
    cached = [f"model {one.name} in {one.owner}'s Hugging Face cache" for one in seen.cached]
    stores = [f"Ollama models in {s.folder}: {len(s.models)}" for s in seen.stores]
    saved = [f"SavedModel {one.name} in {one.path}" for one in seen.saved_models]
    images = [f"image {one.name} ({one.client})" for one in seen.images]
    return [*gpus, *units, *programs, *venvs, *cached, *stores, *saved, *images]
