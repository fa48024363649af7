"""``canary`` of a TensorFlow Serving backend: the operator's own request, as far as it may be read here."""

from __future__ import annotations

import errno

from arbiterd.config.parse import KeyPath, Report
from arbiterd.engines.tf_canary import MAX_BYTES
from arbiterd.files import bounded, strict_json
from arbiterd.model.settings import BackendSettings


def check_canary(backend: BackendSettings, at: KeyPath, report: Report) -> None:
    """Warn of a body that cannot be sent: the model would have no canary, and its hangs no proof."""
    name = backend.canary
    if not name or report.broken(*at, "canary"):
        return
    wrong = right = ""
    try:
        raw = bounded.regular(name, MAX_BYTES)
        if not isinstance(strict_json.loads(raw), dict):
            wrong, right = "is not a JSON object", 'write a :predict body: {"instances": [...]}'
    except PermissionError:
        wrong, right = "may not be read by you: not looked at", "check as root"
    except OSError as error:
        wrong, right = f"cannot be read: {error.strerror}", "write it, or take the key out"
        if error.errno == errno.EFBIG:
            wrong, right = "is larger than 1 MiB", "write a smaller one: a batch of one is enough"
    except (ValueError, RecursionError):
        wrong, right = "is not JSON", 'write a :predict body: {"instances": [...]}'
    if wrong:
        report.add((*at, "canary"), f"{name} {wrong}", right, "warning")
