"""The page in a real Chromium, on answers that lack what it knows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import wait_until
from tests.support.browser import CHROMIUM, Browser
from tests.web.site import Site

pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="needs chromium (scripts/setup installs it as root)"
)
# Every part of a status is drawn once without each of its fields, nested ones included.
ONE_FIELD_LESS = """
(async () => {
  const status = await (await fetch("v1/status")).json();
  const broken = [];
  let drawn = 0;
  function* less(whole) {
    for (const [name, value] of Object.entries(whole)) {
      const rest = structuredClone(whole);
      delete rest[name];
      yield [name, rest];
      const inner = Array.isArray(value) ? value[0] : value;
      if (inner === null || typeof inner !== "object") continue;
      for (const [path, one] of less(inner)) {
        const changed = structuredClone(whole);
        changed[name] = Array.isArray(value) ? [one] : one;
        yield [`${name}.${path}`, changed];
      }
    }
  }
  function all(draw, whole) {
    for (const [path, one] of less(whole)) {
      drawn += 1;
      try { draw(one); } catch (error) { broken.push(`${draw.name} without ${path}: ${error.message}`); }
    }
  }
  const { gpus, backends, ...top } = status;
  all(header, top);
  all(gpu, gpus[0]);
  all(backend, backends[0]);
  return { drawn, broken };
})()
"""
OLDER = """
(() => {
  const now = window.fetch.bind(window);
  window.fetch = async (path, options) => {
    if (!path.startsWith("v1/stream")) return now(path, options);
    const { backends, mode } = await (await now("v1/status", options)).json();
    const line = { status: { backends, mode, gpus: [{ index: 0, ledger: [null] }] } };
    return new Response(JSON.stringify(line) + "\\n");
  };
})()
"""


@pytest.fixture
def browser() -> Iterator[Browser]:
    """One page."""
    one = Browser()
    yield one
    one.close()


def test_a_field_that_is_missing_blanks_nothing(site: Site, browser: Browser) -> None:
    """The daemon may be older than the page that a browser kept: what is missing is unknown, and the daemon
    is not called dead for it.
    """
    browser.open(f"http://127.0.0.1:{site.port}/")
    wait_until(lambda: "tick" in browser.text(), 30, "the page to be drawn")
    found = browser.eval(ONE_FIELD_LESS)
    assert found["drawn"] > 50, found
    assert found["broken"] == []

    browser.eval(OLDER)
    wait_until(lambda: "cannot be read" in browser.text(), 30, "an answer of an older daemon")
    text = browser.text()
    assert browser.eval("document.body.classList.contains('dead')") is False
    assert "vllm" in text
    assert "tick unknown" in text
    assert "cannot be shown" in text  # its GPU row, which is none
    assert browser.errors == []
