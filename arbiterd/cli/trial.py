"""Would this text be accepted? Asked before a file is written."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from arbiterd.config import Loaded, load
from arbiterd.errors import ConfigRefused


def trial(text: str, target: Path, environ: Mapping[str, str]) -> Loaded:
    """The text as the daemon would read it from ``target``.

    Raises:
        ConfigRefused: with every problem, as if it stood in ``target``.

    """
    with tempfile.TemporaryDirectory(prefix="arbiterctl-") as folder:
        path = Path(folder, "gpu-arbiter.toml")
        path.write_text(text, encoding="utf-8")
        try:
            loaded = load(path, environ)
        except ConfigRefused as refused:
            problems = tuple(
                replace(one, file=str(target)) if one.file == str(path) else one
                for one in refused.problems
            )
            raise ConfigRefused(problems) from None
    source = replace(loaded.settings.source, path=str(target))
    return replace(
        loaded,
        settings=replace(loaded.settings, source=source),
        report=replace(loaded.report, file=str(target)),
        warnings=tuple(replace(one, file=str(target)) for one in loaded.warnings),
    )
