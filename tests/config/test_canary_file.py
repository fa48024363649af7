"""What ``check`` says of TensorFlow Serving's ``canary`` file."""

from __future__ import annotations

from pathlib import Path

import pytest

from arbiterd.config import load

BASE = """\
mode = "A"
[backends.tensorflow]
models = {{ m = "/srv/m" }}
canary = "{}"
[modes.A]
tensorflow = {{ gpu = 0 }}
"""


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (b'{"instances": [[0.0]]}', ""),
        (None, "cannot be read: No such file or directory; write it"),
        (b"{", "is not JSON; write a :predict body"),
        (b"[1]", "is not a JSON object"),
        (b"\xff\xfe", "is not JSON"),
        (b"1" * (1024 * 1024 + 1), "is larger than 1 MiB"),
    ],
)
def test_a_canary_that_cannot_be_sent_is_a_warning_at_its_line(
    tmp_path: Path, raw: bytes | None, wanted: str
) -> None:
    """The server starts without it: then this model has no canary."""
    body, file = tmp_path / "request.json", tmp_path / "f.toml"
    if raw is not None:
        body.write_bytes(raw)
    file.write_text(BASE.format(body))
    said = [str(one) for one in load(file, {}).warnings]
    assert len(said) == bool(wanted)
    for one in said:
        assert f"{file}:4: backends.tensorflow.canary: " in one
        assert wanted in one
