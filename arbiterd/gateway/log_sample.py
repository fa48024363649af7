"""Which answers HAProxy logs. Pure text.

A line costs it a fifth of a small request. Of an engine's answers 200 every SAMPLE-th has one, and each
that comes EVERY_MS after the last line; it carries how many it stands for, so that counts stay exact.
Every other answer (refusals, 429, errors) has a line of its own: decisions count those.
"""

from __future__ import annotations

from typing import Final

SAMPLE: Final = 16
EVERY_MS: Final = 100


def sampled(name: str) -> list[str]:
    """Lines of the backend of an engine of this name."""
    own = name.replace("-", ".")  # a variable's name has no dash
    count, at, quiet = f"proc.n.{own}", f"proc.t.{own}", "{ var(txn.quiet) -m found }"
    skip = f"{{ var(txn.n) -m int lt {SAMPLE} }} {{ date(0,ms),sub({at}) lt {EVERY_MS} }}"
    return [
        f"http-response set-var(txn.n) var({count},0),add(1) if {{ status 200 }}",
        f"http-response set-var(txn.quiet) int(1) if {{ status 200 }} {skip} !{{ var(txn.odd) -m found }}",
        f"http-response set-var({count}) var(txn.n) if {quiet}",
        f"http-response set-log-level silent if {quiet}",
        f"http-response set-var({count}) int(0) if {{ status 200 }} !{quiet}",
        f"http-response set-var({at}) date(0,ms) if {{ status 200 }} !{quiet}",
    ]
