"""The last words of an engine, as the journal has them."""

from __future__ import annotations

import json
from pathlib import Path

from arbiterd.act.launch.output import MOST, files_tail, own_lines


def _row(message: object, invocation: str = "") -> bytes:
    entry = {"MESSAGE": message, **({"_SYSTEMD_INVOCATION_ID": invocation} if invocation else {})}
    return json.dumps(entry).encode()


def test_words_that_came_after_the_units_end_are_its_own() -> None:
    """journald had no invocation for them any more; those of the start before are not taken."""
    rows = [
        _row("of before", "a"),
        _row("late, of before"),
        _row("up", "b"),
        _row("Unable to find image"),
    ]
    assert own_lines(rows, "b") == ("up", "Unable to find image")
    assert own_lines([_row("Unable to find image")], "b") == ("Unable to find image",)


def test_bytes_that_are_no_text_are_read() -> None:
    """journald writes them as numbers; an empty message as null."""
    rows = [_row(list(b"\x1b[1mOOM\xff"), "b"), _row(None, "b")]
    assert own_lines(rows, "b") == ("\x1b[1mOOM\ufffd", "")


def test_a_line_that_begins_before_the_part_looked_at_is_left_out(tmp_path: Path) -> None:
    """What is left of it may be the rest of a secret. A file of one endless line is shown by its end."""
    path = tmp_path / "a.log"
    path.write_text("planted-" + "s" * MOST + "\nlast\n")
    assert files_tail([path], 5) == ("last",)
    path.write_text("x" * (MOST + 5))
    assert files_tail([path], 5) == ("x" * MOST,)
