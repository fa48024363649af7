"""Lists of models at the load gate: what may be used through a door now, not what lies on a disk."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

import aiohttp

from arbiterd.engines import ollama_names
from arbiterd.gateway.layout import ANY_MODEL, LLM_DOOR
from arbiterd.loadgate.admission import Loads, Refused

ONE = "/v1/models/"
_NATIVE = {"/api/tags": True, "/api/ps": False}  # whether the allow-list filters it
Json = dict[str, Any]


class Lists:
    """Answers for one request. ``live``: the map that HAProxy has, too. ``locked``: backends whose key
    the client has not shown; they guard their lists. ``shown``: the client's key as a header.
    """

    def __init__(
        self,
        config: Json,
        inner: Mapping[str, aiohttp.ClientSession],
        loads: Mapping[str, Loads],
        live: Mapping[str, str],
        locked: frozenset[str] = frozenset(),
        shown: Mapping[str, str] | None = None,
    ) -> None:
        self._shown = shown
        self._locked = locked
        self._config = config
        self._inner = inner
        self._loads = loads
        self._live = live

    async def answer(self, path: str, door: str, want: str) -> Json:
        """The JSON of /v1/models, /v1/models/NAME, /api/tags or /api/ps.

        Raises:
            Refused: nobody to ask, or no such model.

        """
        if path in _NATIVE:
            return await self._native(path, door)
        rows = await self._rows(door, want)
        if path == "/v1/models":
            return {"object": "list", "data": rows}
        name = unquote(path.removeprefix(ONE))
        for row in rows:
            if name == row["id"] or ollama_names.same_model(name, str(row["id"])):
                return row
        msg = f"the model {name!r} does not exist"
        raise Refused(msg, status=404)

    async def _rows(self, door: str, want: str) -> list[Json]:
        """As OpenAI lists them."""
        created = int(self._config.get("created", 0))
        if door == LLM_DOOR:
            out: dict[str, Json] = {}
            for model, owner in self._config["models"].items():
                if (
                    model != ANY_MODEL and owner not in self._locked
                ):  # of the spellings of one name, the file's own
                    out.setdefault(ollama_names.key(model), _row(model, owner, created))
            for key, owner in self._live.items():  # adapters that an engine has told of
                model = key.removeprefix("m:")
                if model != key and owner not in self._loads and owner not in self._locked:
                    out.setdefault(ollama_names.key(model), _row(model, owner, created))
            for name in self._loads:
                if not self._config["backends"][name]["models"]:
                    with suppress(Refused):
                        for row in await self._of(name, "/v1/models", "data"):
                            key = ollama_names.key(str(row.get("id", "")))
                            out.setdefault(key, {**row, "owned_by": name})
            return list(out.values())
        if want and want != door and door in self._locked:
            msg = f"the list of {door} needs its key: Authorization: Bearer KEY"
            raise Refused(msg, status=401)
        if want and want != door:  # failed over: what its substitute answers for
            names = [
                k.removeprefix(f"fo:{door}:") for k in self._live if k.startswith(f"fo:{door}:")
            ]
            return [_row(m, self._live[f"fo:{door}:{m}"], created) for m in names if m != ANY_MODEL]
        rows = await self._of(door, "/v1/models", "data")
        loads = self._loads.get(door)
        kept = [r for r in rows if loads is None or loads.is_allowed(str(r.get("id", "")))]
        return [{"object": "model", "created": created, **row} for row in kept]

    async def _native(self, path: str, door: str) -> Json:
        """As Ollama lists them; at the unified door of every Ollama that answers."""
        names = [door] if door in self._loads else list(self._loads)
        if not names:
            msg = "no Ollama in this mode"
            raise Refused(msg, status=404)
        out: list[Json] = []
        refused = []
        for name in names:
            try:
                rows = await self._of(name, path, "models")
            except Refused as no:
                refused.append(no)
                continue
            allowed = self._loads[name].is_allowed
            out += [r for r in rows if not _NATIVE[path] or allowed(str(r.get("name", "")))]
        if len(refused) == len(names):
            raise refused[0]
        return {"models": out}

    async def _of(self, name: str, path: str, key: str) -> list[Json]:
        """An engine's own list, by its inner door."""
        if name not in self._inner:
            msg = f"there is no list of {name}"
            raise Refused(msg, status=404)
        async with self._inner[name].get(f"http://localhost{path}", headers=self._shown) as reply:
            if reply.status == 401:
                msg = f"the list of {name} needs its key: Authorization: Bearer KEY"
                raise Refused(msg, status=401)
            if reply.status != 200:
                wait = int(reply.headers.get("Retry-After", "5") or 5)
                why = self._live.get(f"why:{name}") or f"HTTP {reply.status}"
                msg = f"{name} does not list its models now: {why}"
                raise Refused(msg, retry_after_s=wait)
            found = await reply.json(content_type=None)
        rows = found.get(key) if isinstance(found, dict) else None
        return [row for row in rows or [] if isinstance(row, dict)]


def _row(model: str, owner: str, created: int) -> Json:
    return {"id": model, "object": "model", "created": created, "owned_by": owner}
