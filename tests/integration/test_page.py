"""What people see when something is gone: a GPU, the daemon. Real daemon, real Chromium."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import wait_until
from tests.support.browser import CHROMIUM, Browser
from tests.support.host import Host

VLLM_ONLY = '[modes.A]\nvllm = { gpu = 0, memory = "55%" }\n'


@pytest.fixture
def browser() -> Iterator[Browser]:
    """One page."""
    one = Browser()
    yield one
    one.close()


@pytest.mark.skipif(not CHROMIUM, reason="needs chromium (scripts/setup installs it as root)")
def test_what_cannot_be_read_is_unknown_and_a_dead_daemon_is_said(
    host: Host, browser: Browser, tmp_path: Path
) -> None:
    """A lost GPU's bytes are unknown in API, CLI, metrics and page, never 0; once the daemon is dead the
    page says so in red and greys what it showed.
    """
    host.write(VLLM_ONLY, only=("vllm",))
    host.start()
    host.wait_ready()
    browser.open(host.url("/"))
    wait_until(lambda: "GiB free" in browser.text(), 30, "the page shows the GPU")

    host.gpu.lose(0)
    host.wait(lambda: host.gpu_row()["state"] == "lost", "the card to be lost")
    row = host.gpu_row()
    assert (row["memory"]["used"], row["memory"]["free"]) == (None, None)
    held = {one["holder"]: one["used"] for one in row["ledger"] if "used" in one}
    assert held == {"vllm": None, "foreign": None, "unattributed": None}
    assert host.backend("vllm")["used_bytes"] is None

    done = host.ctl("status")
    assert done.returncode == 0, done.stderr
    card, table = done.stdout.split("\nbackend")
    assert "unknown of 23.99 GiB free" in card
    assert "0 B" not in done.stdout.replace("10 B", "")
    assert "unknown" in next(line for line in table.splitlines() if line.startswith("vllm"))

    text = host.get("/metrics").text
    uuid = row["uuid"]
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert not [x for x in lines if x.startswith("gpu_arbiter_backend_used_bytes")]
    assert not [x for x in lines if x.startswith("gpu_arbiter_ledger_used_bytes") and uuid in x]
    assert not [
        x for x in lines if "gpu_memory_bytes" in x and ('kind="used"' in x or 'kind="free"' in x)
    ]

    wait_until(lambda: "free unknown" in browser.text(), 30, "the page says that it is unknown")
    shown = browser.eval("document.querySelector('#gpus').innerText")
    assert "0 MiB" not in shown, shown
    assert browser.eval("document.querySelectorAll('#gpus .cap.unknown').length") >= 1
    assert "unknown / " in browser.eval("document.querySelector('#backends').innerText")

    assert browser.eval("document.body.classList.contains('dead')") is False
    host.kill()
    wait_until(lambda: browser.eval("document.body.classList.contains('dead')"), 60, "it is dead")
    assert "The daemon does not answer" in browser.text()
    assert "systemctl status gpu-arbiter" in browser.text()
    look = "getComputedStyle(document.querySelector('{}')).{}"
    assert browser.eval(look.format("#dead", "backgroundColor")) == "rgb(179, 38, 30)"
    assert "grayscale" in browser.eval(look.format("main", "filter"))
    if "PICTURES" in os.environ:
        browser.picture(Path(os.environ["PICTURES"]) / "dead.png")
    host.start()
    wait_until(lambda: not browser.eval("document.body.classList.contains('dead')"), 60, "it lives")
    assert browser.errors == []
