"""The load gate's questions to the daemon, over its unix socket (web/load_requests.py answers)."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import aiohttp

from arbiterd.loadgate.library import Refused

_ASK_S = 65.0


class Arbiter:
    """Of one backend. ``socket``: where the daemon listens."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self.socket = ""

    async def grant(self, ask: dict[str, Any], hold_s: float) -> None:
        """Return when the load may begin. The daemon answers by long poll; away, it is asked again.

        ``ask``: id, model, predicted_bytes, shares, resident.

        Raises:
            Refused: no, or not within ``hold_s``.

        """
        deadline = time.monotonic() + hold_s
        why, retry = "the arbiter does not answer", 5
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                await self.done(ask["id"], "not granted in time")
                text = f"{self._backend}: loading {ask['model']} was held for {hold_s:g} s: {why}"
                raise Refused(text, retry_after_s=retry)
            said = await self._post("/v1/loads", {**ask, "wait_s": left}, min(left, _ASK_S) + 1.0)
            if said is None:
                await asyncio.sleep(min(0.25, max(0.01, left)))
                continue
            verdict = said.get("verdict")
            if verdict == "grant":
                return
            why, retry = str(said.get("reason") or why), int(said.get("retry_after_s") or 5)
            if verdict == "refuse":
                raise Refused(why, retry_after_s=retry)

    async def done(self, lease: str, detail: str) -> None:
        """A load has ended; ``detail`` "" when well."""
        await self._post("/v1/loads/done", {"id": lease, "detail": detail}, 2.0)

    async def unloaded(self, model: str) -> None:
        """A client has asked for this model to leave."""
        await self._post("/v1/loads/unloaded", {"model": model}, 2.0)

    async def _post(self, path: str, body: dict[str, Any], wait_s: float) -> dict[str, Any] | None:
        """The answer, None when none came."""
        with suppress(aiohttp.ClientError, TimeoutError, ValueError):
            async with aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(self.socket),
                timeout=aiohttp.ClientTimeout(total=wait_s),
            ) as session:
                sent = {"backend": self._backend, **body}
                async with session.post(f"http://arbiter{path}", json=sent) as reply:
                    found = await reply.json(content_type=None)
                    return found if isinstance(found, dict) else {}
        return None
