"""Whether a streamed answer has ended, or only stopped.

Ollama closes a stream cleanly when its runner dies or a generation breaks off (recorded on
0.33.0-rc2): a client cannot tell that from an end. The API's own last word can: ``done`` (native
NDJSON), ``[DONE]`` (OpenAI), ``message_stop`` (Anthropic), ``response.completed`` and its like.
Only the last record is kept, so a stream costs one search per chunk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_KEPT_BYTES = 64 * 1024  # of the last record; its kind stands at its beginning
_DONE = re.compile(rb'"done"\s*:\s*true')
_ERROR = re.compile(rb'^\s*\{\s*"error"\s*:')
_NATIVE = ("/api/generate", "/api/chat")
_EVENTS: Mapping[str, re.Pattern[bytes]] = {
    "/v1/chat/completions": re.compile(rb"^data:\s*\[DONE\]", re.MULTILINE),
    "/v1/completions": re.compile(rb"^data:\s*\[DONE\]", re.MULTILINE),
    "/v1/messages": re.compile(rb"^event:\s*(?:message_stop|error)\b", re.MULTILINE),
    # openai's event types of a response that is over; vLLM sends [DONE] after them
    "/v1/responses": re.compile(
        rb"^event:\s*(?:response\.(?:completed|incomplete|failed)|error)\b|^data:\s*\[DONE\]",
        re.MULTILINE,
    ),
}


_SSE = (b"\n\n", b"\r\n\r\n", b"\r\r")
_LINES = (b"\n",)


class End:
    """Watches one stream. ``feed`` every chunk, then ask ``told``."""

    def __init__(self, patterns: tuple[re.Pattern[bytes], ...], between: tuple[bytes, ...]) -> None:
        self._patterns = patterns
        self._between = between
        self._last = bytearray()

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the body."""
        last = self._last
        last += chunk
        whole = len(last.rstrip(b"\r\n"))
        ends = [at + len(one) for one in self._between if (at := last.rfind(one, 0, whole)) >= 0]
        del last[: max(ends, default=0)]
        if len(last) > 2 * _KEPT_BYTES:  # its beginning, and a separator that may be cut in two
            del last[_KEPT_BYTES:-4]

    def told(self) -> bool:
        """Whether the last record says that the answer is whole, or why it is not."""
        return any(one.search(self._last) for one in self._patterns)


def watch(method: str, path: str, status: int, headers: Mapping[str, str]) -> End | None:
    """The watch on this answer, None where its status and length say all there is: whole answers,
    errors, answers to HEAD, lists, and encoded bodies (the gate asks for none).
    """
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    plain = headers.get("Content-Encoding", "identity").lower() == "identity"
    if method == "HEAD" or status != 200 or not plain:
        return None
    if kind == "application/x-ndjson" and path in _NATIVE:
        return End((_DONE, _ERROR), _LINES)
    if kind == "text/event-stream" and path in _EVENTS:
        return End((_EVENTS[path],), _SSE)
    return None
