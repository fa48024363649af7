"""``canary`` of a TensorFlow Serving backend: the operator's own request, as far as it may be read here."""

from __future__ import annotations

import json
from pathlib import Path

from arbiterd.config.parse import KeyPath, Report
from arbiterd.engines.tf_canary import MAX_BYTES
from arbiterd.model.settings import BackendSettings


def check_canary(backend: BackendSettings, at: KeyPath, report: Report) -> None:
    """Warn of a body that cannot be sent: the model would have no canary, and its hangs no proof."""
    name = backend.canary
    if not name or report.broken(*at, "canary"):
        return
    wrong = right = ""
    try:
        with Path(name).open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            wrong, right = "is larger than 1 MiB", "write a smaller one: a batch of one is enough"
        elif not isinstance(json.loads(raw), dict):
            wrong, right = "is not a JSON object", 'write a :predict body: {"instances": [...]}'
    except PermissionError:
        wrong, right = "may not be read by you: not looked at", "check as root"
    except OSError as error:
        wrong, right = f"cannot be read: {error.strerror}", "write it, or take the key out"
    except ValueError:
        wrong, right = "is not JSON", 'write a :predict body: {"instances": [...]}'
    if wrong:
        report.add((*at, "canary"), f"{name} {wrong}", right, "warning")
