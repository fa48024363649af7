"""Bodies and log lines at the doors: what the load gate makes of them never reaches an engine broken."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import zlib
from contextlib import suppress
from functools import cache

from aiohttp import web
from hypothesis import strategies as st

from arbiterd.gateway import live_map, runtime
from arbiterd.loadgate import incoming, json_scan, ollama_body, stream_end
from arbiterd.sense.gateway_log import GatewayLog
from arbiterd.web import bodies as api_bodies
from arbiterd.web.load_requests import LoadDesk
from arbiterd.web.replies import BadBody
from tests.fuzz import shapes
from tests.fuzz.files import folder
from tests.fuzz.target import Target

CLAMP = ollama_body.Clamp(4096, 300.0, warm="qwen2.5:3b")
CHAT = {
    "model": "qwen2.5:7b",
    "messages": [{"role": "user", "content": "hi"}],
    "stream": True,
    "keep_alive": "1h30m",
    "max_tokens": 5,
    "options": {
        "num_ctx": 1 << 20,
        "num_gpu": 99,
        "num_predict": 0,
        "temperature": 0.5,
        "stop": ["x"],
    },
    "format": {"type": "object", "properties": {"a": {"type": "string"}}},
}
GENERATE = {
    "model": "qwen2.5:3b",
    "prompt": "x",
    "keep_alive": 0,
    "Options": {"NUM_CTX": 9},
    "model ": 1,
}
EMBED = {"model": "qwen2.5:3b", "input": ["a", "b"], "truncate": True}
PATHS = (
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
)
FORM = (
    b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n'
    b'--XX\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n--XX--\r\n'
)
LINES = (
    b"16 200 0 35 120 be-vllm vllm - -",
    b"- 429 2 -1 3 be-tensorflow tensorflow - -\0",
    b"- 503 -1 -1 0 no-vllm vllm shed odd host:11434",
)
ASK = {"id": "a1", "backend": "ollama", "model": "qwen2.5:7b", "predicted_bytes": 5 << 30, "wait_s": 0,
       "shares": ["x"], "resident": [["qwen2.5:3b", 1 << 30]]}  # fmt: skip
STREAM = b'event: message_start\ndata: {"x":1}\n\ndata: [DONE]\n\n{"done":true}\n{"error":"x"}\n'
STAT = (
    "Pid: 12\n\n# pxname,svname,qcur,scur,slim,stot,hrsp_2xx,bout,econ,eresp,ttime,qtime,status\n"
    "be-vllm,engine,0,1,8,5,5,100,0,0,3,1,UP\nbe-vllm,BACKEND,0,1,8,5,5,100,0,0,3,1,UP\n\n0x55 st:vllm up\n"
)


def read_body(data: bytes) -> None:
    """A JSON body on each route: what goes on is strict JSON, once each key, and the clamp's own values."""
    body = ollama_body.parse(data)
    for path in PATHS:
        v1 = path.startswith("/v1/")
        ollama_body.unload(body, path)
        ollama_body.keeps(body, path)
        try:
            sent = b"".join(ollama_body.pieces(ollama_body.clamped(body, CLAMP, v1=v1, path=path)))
        except ollama_body.BadBody:
            continue
        found = shapes.strict(sent)
        assert found["model"] == body.model
        folded = [ollama_body.fold(key) for key in found]
        for name in ("model", "options", "keep_alive"):
            assert folded.count(name) <= 1, (name, folded)
        if v1:
            assert not {"options", "keep_alive"} & set(folded)
        else:
            options = [ollama_body.fold(key) for key in found["options"]]
            assert options.count("num_ctx") == options.count("num_gpu") == 1
            assert found["options"]["num_ctx"] == CLAMP.context_length
            seconds = ollama_body.go_seconds(found["keep_alive"])
            assert seconds is not None
            assert seconds == -1 or 0 <= seconds <= CLAMP.keep_alive_s


def read_scan(data: bytes) -> None:
    """The scanner beside Python's own parser: what it takes is strict JSON with the same members; what it
    refuses is none, or is beyond a bound that it names. UTF-8 is for its caller to check.
    """
    try:
        data.decode()
    except UnicodeDecodeError:
        return
    try:
        found = json_scan.members(data)
    except json_scan.NotJson as error:
        bounds = (
            "nested more than",
            "members",
            "a key of more",
            "too many values",
            "not an object",
            "out of range",
        )
        if not any(word in str(error) for word in bounds):
            with suppress(ValueError, RecursionError):
                shapes.strict(data)
                msg = f"valid JSON was refused: {error}"
                raise AssertionError(msg) from None
        return
    value = json.loads(data)
    assert value == {key: json.loads(data[start:end]) for key, start, end in found}


def read_packed(data: bytes) -> None:
    """A packed body: pieces of bounded size, whatever it unpacks to."""
    for encoding in ("gzip", "deflate"):
        unpacker = incoming.Unpacker(encoding)
        size = 0
        try:
            for start in range(0, len(data), 1000):
                for piece in unpacker.feed(data[start : start + 1000]):
                    assert 0 < len(piece) <= incoming._STEP
                    size += len(piece)
                    if size > 1 << 24:
                        return  # more than this the gate refuses by its size
            unpacker.end()
        except ollama_body.BadBody:
            continue


def read_form(data: bytes) -> None:
    """A multipart form and its header: the first line is the header."""
    kind, _, raw = data.partition(b"\n")
    found = incoming.form_model(kind.decode("latin-1"), raw)
    assert isinstance(found, str)


@cache
def _log() -> GatewayLog:
    return GatewayLog(folder("log") / "log.sock")


def read_log(data: bytes) -> None:
    """A datagram at HAProxy's log socket."""
    one = _log()
    one._take(data)
    for name, requests in one.latest().items():
        assert name
        assert math.isfinite(requests.total_sum_s)
        assert math.isfinite(requests.first_byte_sum_s)
    assert len(one.unknown_hosts()) <= 20
    if len(one._sums) > 50:
        one._sums.clear()


class _Request:
    """As much of a request as the desk looks at."""

    def __init__(self, data: bytes) -> None:
        self.headers: dict[str, str] = {}
        self._left = [data]

    @property
    def content(self) -> _Request:
        """The stream of its body."""
        return self

    async def read(self, count: int) -> bytes:
        """The next bytes."""
        left = self._left[0]
        self._left[0] = left[count:]
        return left[:count]


def read_admin(data: bytes) -> None:
    """A body of the API: strict JSON, an object."""
    found = api_bodies.parse(data)
    assert found == shapes.strict(data)


def read_ask(data: bytes) -> None:
    """What the load gate asks the daemon: an answer, whatever it sends; and asks that core can add up."""
    desk = LoadDesk(lambda: None)

    async def run() -> None:
        for handler in (desk.done, desk.unloaded, desk.ask):
            asked = asyncio.ensure_future(handler(_Request(data)))  # type: ignore[arg-type]
            for _ in range(3):
                await asyncio.sleep(0)
            for ask in desk.asks():
                assert ask.predicted_bytes + 1 > ask.predicted_bytes
                assert all(isinstance(size, int) for _, size in ask.resident or ())
            if asked.done():
                assert isinstance(asked.result(), web.Response)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)

    _loop().run_until_complete(run())


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def read_stream(data: bytes) -> None:
    """An engine's stream, in pieces: told or not, in bounded memory."""
    for path in PATHS:
        kind = "text/event-stream" if path.startswith("/v1/") else "application/x-ndjson"
        end = stream_end.watch("POST", path, 200, {"Content-Type": kind})
        if end is not None:
            for start in range(0, len(data), 7):
                end.feed(data[start : start + 7])
            end.told()
            assert len(end._last) <= 3 * 64 * 1024


def read_runtime(data: bytes) -> None:
    """HAProxy's answers, and a map that somebody has edited."""
    text = data.decode("utf-8", "replace")
    for row in runtime.stat_rows(text):
        for key in row.values:
            row.number(key)
    entries = live_map.parse(text)
    assert live_map.parse(live_map.text(entries)).keys() <= entries.keys()


_forms = shapes.edited((FORM,)).flatmap(
    lambda raw: st.sampled_from((
        b"multipart/form-data; boundary=XX\n", b'multipart/form-data; boundary="XX"\n', b"multipart/form-data\n",
        b"multipart/form-data; boundary*=utf-8''XX\n", b"multipart/form-data; boundary=\xff\n", b"x\n",
        b"multipart/form-data; boundary*0=X; boundary*1=X\n", b"multipart/form-data; boundary*=x'y'%ff\n",
    )).map(lambda kind: kind + raw)
)  # fmt: skip
_PACKED = (
    gzip.compress(shapes.write(CHAT), mtime=0), gzip.compress(b"a" * 100_000, mtime=0) * 3,
    zlib.compress(shapes.write(CHAT)), zlib.compress(bytes(1 << 16)), b"",
)  # fmt: skip
TARGETS = (
    Target("door body", read_body, shapes.documents(CHAT, GENERATE, EMBED), (ollama_body.BadBody,),
           tuple(map(shapes.write, (CHAT, GENERATE, EMBED)))),
    Target("JSON scan", read_scan, shapes.documents(CHAT, GENERATE, EMBED), seeds=tuple(map(shapes.write, (CHAT, GENERATE)))),
    Target("packed body", read_packed, shapes.edited(_PACKED), seeds=_PACKED, bound_s=2.0),
    Target("door form", read_form, _forms, (ollama_body.BadBody,), (b"multipart/form-data; boundary=XX\n" + FORM,)),
    Target("gateway log line", read_log, shapes.edited(LINES), seeds=LINES),
    Target("admin body", read_admin, shapes.documents(ASK), (BadBody,), (shapes.write(ASK),)),
    Target("load gate's question", read_ask, shapes.documents(ASK), (BadBody,), seeds=(shapes.write(ASK),)),
    Target("engine stream", read_stream, shapes.texts(STREAM), seeds=(STREAM,)),
    Target("HAProxy's answers", read_runtime, shapes.texts(STAT), seeds=(STAT.encode(),)),
)  # fmt: skip
