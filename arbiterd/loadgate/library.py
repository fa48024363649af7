"""What one Ollama answers about its models: what it has, what each is like, what is resident."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import aiohttp

from arbiterd.engines import ollama_names as names
from arbiterd.engines.ollama_models import About, about, runner_of
from arbiterd.files import strict_json
from arbiterd.fit import from_ollama_api

LISTED_S = 2.0  # how long a list of what it has is believed
_ASK_S, _PS_S = 5.0, 6.0  # its scheduler may hold its lock for 5 s while a runner ends


class Refused(Exception):
    """No, in one sentence."""

    def __init__(self, text: str, *, status: int = 503, retry_after_s: int = 5) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Known:
    """A model of the library. ``runner``: equal for all names that share one."""

    name: str
    digest: str
    shape: from_ollama_api.Shape
    about: About

    @property
    def runner(self) -> str:
        """Equal for all names that share a runner."""
        return runner_of(self.name, self.digest, self.about)


@dataclass(frozen=True, slots=True)
class Resident:
    """A row of /api/ps. ``context``: 0 when not told; ``leaves_at``: monotonic seconds, in the past
    while requests overlap (it is renewed when the last one ends).
    """

    known: Known
    context: int
    leaves_at: float
    vram_bytes: int


class Library:
    """``engine``: its base URL. Raises aiohttp.ClientError or TimeoutError where it does not answer."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.engine = ""
        self._rows: dict[str, dict[str, Any]] = {}
        self._listed_at = -1e9
        self._listing: asyncio.Task[None] | None = None
        self._shown: dict[str, Known] = {}

    def forget(self) -> None:
        """Ask everything anew."""
        self._rows, self._shown = {}, {}
        self._listed_at = -1e9

    async def known(self, model: str) -> Known:
        """What it tells of a model, asked once per digest.

        Raises:
            Refused: it has no such model.

        """
        row = await self._row(names.key(model))
        if row is None:
            msg = f"model {model!r} not found in {self._name}; ollama pull {model}"
            raise Refused(msg, status=404)
        name = str(row["name"])
        digest, size = str(row.get("digest") or ""), int(row.get("size") or 0)
        found = self._shown.get(name)
        if found is None or (found.digest, found.shape.weights_bytes) != (digest, size):
            show = await self.post("/api/show", {"model": name}, _ASK_S)
            found = Known(name, digest, from_ollama_api.shape_of(size, show), about(show))
            if "error" not in show:
                self._shown[name] = found
        return found

    async def _row(self, key: str) -> dict[str, Any] | None:
        """The model's row of /api/tags: from the last list, when it is young or none comes."""
        if time.monotonic() - self._listed_at > LISTED_S:
            if self._listing is None or self._listing.done():
                self._listing = asyncio.create_task(self._list())
            try:
                await asyncio.shield(self._listing)
            except (aiohttp.ClientError, TimeoutError):
                if key not in self._rows:
                    raise
        return self._rows.get(key)

    async def _list(self) -> None:
        began = time.monotonic()
        found = await self.get("/api/tags", _ASK_S)
        rows = [one for one in found.get("models") or [] if isinstance(one, dict)]
        self._rows = {names.key(str(one.get("name"))): one for one in rows if one.get("name")}
        self._listed_at = began

    async def resident(self) -> tuple[Resident, ...]:
        """What is resident: all that /api/ps lists, also what expired while requests overlap."""
        found = await self.get("/api/ps", _PS_S)
        now = time.monotonic()
        out = []
        for row in found.get("models") or []:
            with suppress(Refused):  # deleted while it runs
                known = await self.known(str(row["name"]))
                leaves = now + left(str(row.get("expires_at", "")))
                context, vram = row.get("context_length"), row.get("size_vram")
                out.append(Resident(known, int(context or 0), leaves, int(vram or 0)))
        return tuple(out)

    async def get(self, path: str, timeout_s: float) -> dict[str, Any]:
        """The JSON object of an answer."""
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as session,
            session.get(self.engine + path) as reply,
        ):
            found = await reply.json(content_type=None)
            return found if isinstance(found, dict) else {}

    async def post(self, path: str, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The JSON object of an answer; ``error`` in it when there was none."""
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as session,
            session.post(self.engine + path, json=body) as reply,
        ):
            text = await reply.text(errors="replace")
            with suppress(ValueError):
                found = strict_json.loads(text)
                if isinstance(found, dict):
                    return found
            return {} if reply.status == 200 else {"error": f"HTTP {reply.status}: {text[:200]}"}


def left(expires_at: str) -> float:
    """Seconds until a time of /api/ps; an unreadable one and Ollama's zero time are far away."""
    cut = re.sub(r"(\.\d{6})\d+", r"\1", expires_at)
    try:
        moment = datetime.fromisoformat(cut)
    except ValueError:
        return 3600.0
    return 3600.0 if moment.year < 2000 else moment.timestamp() - time.time()
