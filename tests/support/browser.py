"""A headless Chromium for a test, driven over its own DevTools socket (one page, loopback only)."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--remote-debugging-port=0", "--window-size=1280,900", "--disable-dev-shm-usage",
)  # fmt: skip


class Browser:
    """One page. ``errors``: what its console has complained about."""

    def __init__(self) -> None:
        self._home = tempfile.mkdtemp(prefix="gpu-arbiter-chromium-")
        self._loop = asyncio.new_event_loop()
        self._process = subprocess.Popen(
            [CHROMIUM, *_FLAGS, f"--user-data-dir={self._home}", "about:blank"],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        self.errors: list[str] = []
        self._number = 0
        self._loop.run_until_complete(self._connect(self._port()))

    def _port(self) -> int:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            found = re.search(r"DevTools listening on ws://[^:]+:(\d+)/", line)
            if found:
                return int(found[1])
        msg = "chromium ended before it listened"
        raise AssertionError(msg)

    async def _connect(self, port: int) -> None:
        self._session = aiohttp.ClientSession(trust_env=False)
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as reply:
            pages = await reply.json(content_type=None)
        url = next(one["webSocketDebuggerUrl"] for one in pages if one["type"] == "page")
        self._socket = await self._session.ws_connect(url, max_msg_size=0)
        for domain in ("Page", "Runtime", "Log"):
            await self._ask(f"{domain}.enable")

    async def _ask(self, method: str, **params: object) -> dict[str, Any]:
        self._number += 1
        mine = self._number
        await self._socket.send_json({"id": mine, "method": method, "params": params})
        while True:
            message = json.loads((await self._socket.receive(60)).data)
            if message.get("id") == mine:
                found: dict[str, Any] = message.get("result", {})
                return found
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(message["params"]["exceptionDetails"])[:500])

    def open(self, url: str) -> None:
        """Go there."""
        self._loop.run_until_complete(self._ask("Page.navigate", url=url))

    def eval(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self._loop.run_until_complete(
            self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        )
        return found.get("result", {}).get("value")

    def text(self) -> str:
        """What is to be read, hidden parts left out."""
        return str(self.eval("document.body.innerText"))

    def picture(self, path: Path) -> None:
        """A screenshot."""
        found = self._loop.run_until_complete(self._ask("Page.captureScreenshot", format="png"))
        path.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        """End it and remove its folder."""
        self._loop.run_until_complete(self._session.close())
        self._loop.close()
        self._process.kill()
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()
        shutil.rmtree(self._home, ignore_errors=True)
