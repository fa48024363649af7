"""Load on every door and on the API, open loop: a slow answer does not slow the arrivals down.

``python -m tests.soak.load PORTS.JSON SEED`` runs until SIGTERM and prints its counts as JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import aiohttp
import grpc
import numpy as np
from ovmsclient.tfs_compat.protos.tensorflow_serving.apis import predict_pb2

CHAT_MODEL = "Qwen/Qwen2.5-3B-Instruct"
OLLAMA_MODELS = ("qwen2.5:3b", "qwen2.5:3b", "qwen2.5:7b")
TIMEOUT_S = 60.0
IN_FLIGHT_MAX = 400  # beyond it an arrival is counted as skipped: the load must not be what grows
VIEWERS = 8  # pages open in a browser: status each second
PREDICT = "/tensorflow.serving.PredictionService/Predict"


class Load:
    """``ports``: by door name, and ``api``."""

    def __init__(self, ports: dict[str, int], seed: int) -> None:
        self.ports = ports
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.running: set[asyncio.Task[None]] = set()
        self._channel: grpc.aio.Channel | None = None
        # (arrivals a second, what arrives)
        self.kinds: tuple[tuple[float, str, Callable[[], Awaitable[str]]], ...] = (
            (3.0, "tensorflow predict", self._predict),
            (1.0, "tensorflow gRPC", self._grpc),
            (1.0, "vllm completion", self._completion),
            (1.0, "vllm chat stream", lambda: self._stream("vllm")),
            (1.0, "ollama chat stream", self._ollama_chat),
            (0.5, "ollama generate", self._ollama_generate),
            (1.0, "llm chat stream", lambda: self._stream("llm")),
            (0.3, "stream left by its client", lambda: self._stream("llm", leave=True)),
            (0.1, "ollama unload", self._unload),
            (0.5, "health and lists", self._lists),
            (0.5, "garbage body", self._garbage),
            (1.0, "API reads", self._api),
            (0.2, "idle connection", self._idle),
        )

    def url(self, door: str, path: str) -> str:
        """Of a door or the API."""
        return f"http://127.0.0.1:{self.ports[door]}{path}"

    async def run(self) -> None:
        """Until cancelled."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        connector = aiohttp.TCPConnector(limit=0)
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.ports['grpc']}")
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as self.via:
            jobs = [self._arrivals(*kind) for kind in self.kinds]
            jobs += [self._viewer() for _ in range(VIEWERS)]
            try:
                await asyncio.gather(*jobs)
            finally:
                for task in tuple(self.running):
                    task.cancel()
                await self._channel.close()

    async def _arrivals(self, rate: float, name: str, ask: Callable[[], Awaitable[str]]) -> None:
        while True:
            await asyncio.sleep(self.random.expovariate(rate))
            if len(self.running) >= IN_FLIGHT_MAX:
                self.counts[f"{name}: skipped"] += 1
                continue
            task = asyncio.create_task(self._count(name, ask))
            self.running.add(task)
            task.add_done_callback(self.running.discard)

    async def _count(self, name: str, ask: Callable[[], Awaitable[str]]) -> None:
        try:
            said = await ask()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            said = "timeout" if isinstance(error, TimeoutError) else "cut"
        except grpc.aio.AioRpcError as error:
            said = error.code().name
        self.counts[f"{name}: {said}"] += 1

    async def _post(self, door: str, path: str, body: object) -> str:
        async with self.via.post(self.url(door, path), json=body) as reply:
            await reply.read()
            return str(reply.status)

    async def _predict(self) -> str:
        rows = [[self.random.random() for _ in range(4)]]
        return await self._post("tensorflow", "/v1/models/resnet50:predict", {"instances": rows})

    async def _grpc(self) -> str:
        assert self._channel is not None
        asked = predict_pb2.PredictRequest()
        asked.model_spec.name = "resnet50"
        tensor = asked.inputs["x"]
        tensor.dtype = 1  # DT_FLOAT
        tensor.tensor_shape.dim.add().size = 4
        tensor.tensor_content = np.zeros(4, np.float32).tobytes()
        call = self._channel.unary_unary(PREDICT, predict_pb2.PredictRequest.SerializeToString)
        await call(asked, timeout=TIMEOUT_S)
        return "OK"

    async def _completion(self) -> str:
        body = {"model": CHAT_MODEL, "prompt": "hello " * 20, "max_tokens": 16}
        return await self._post("vllm", "/v1/completions", body)

    async def _stream(self, door: str, *, leave: bool = False) -> str:
        model = CHAT_MODEL if door == "vllm" or self.random.random() < 0.5 else OLLAMA_MODELS[0]
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}],
                "max_tokens": self.random.randrange(8, 64), "stream": True}  # fmt: skip
        async with self.via.post(self.url(door, "/v1/chat/completions"), json=body) as reply:
            async for _ in reply.content.iter_any():
                if leave:
                    reply.close()
                    break
            return str(reply.status)

    async def _ollama_chat(self) -> str:
        body = {"model": self.random.choice(OLLAMA_MODELS),
                "messages": [{"role": "user", "content": "hello"}],
                "options": {"num_predict": self.random.randrange(8, 64)}}  # fmt: skip
        return await self._post("ollama", "/api/chat", body)

    async def _ollama_generate(self) -> str:
        body = {"model": OLLAMA_MODELS[0], "prompt": "x" * self.random.randrange(1, 100_000),
                "stream": False, "options": {"num_predict": 8}}  # fmt: skip
        return await self._post("ollama", "/api/generate", body)

    async def _unload(self) -> str:
        return await self._post(
            "ollama", "/api/generate", {"model": OLLAMA_MODELS[-1], "keep_alive": 0}
        )

    async def _lists(self) -> str:
        door, path = self.random.choice((
            ("vllm", "/health"), ("ollama", "/api/tags"), ("llm", "/v1/models"), ("ollama", "/api/ps"),
            ("tensorflow", "/v1/models/resnet50"), ("llm", "/v1/models/unknown"),
        ))  # fmt: skip
        async with self.via.get(self.url(door, path)) as reply:
            await reply.read()
            return str(reply.status)

    async def _garbage(self) -> str:
        door = self.random.choice(("ollama", "llm", "vllm", "tensorflow"))
        raw = self.random.randbytes(self.random.randrange(1, 5000))
        headers = {"Content-Type": "application/json"}
        if self.random.random() < 0.3:
            headers["Content-Encoding"] = "gzip"
        async with self.via.post(self.url(door, "/api/chat"), data=raw, headers=headers) as reply:
            await reply.read()
            return str(reply.status)

    async def _api(self) -> str:
        path = self.random.choice((
            "/metrics", "/v1/incidents?limit=200", f"/v1/route?model={CHAT_MODEL}", "/v1/caps",
            "/v1/backends/vllm/ready", "/openapi.json", "/", "/v1/incidents?since=yesterday",
        ))  # fmt: skip
        async with self.via.get(self.url("api", path)) as reply:
            await reply.read()
            return str(reply.status)

    async def _idle(self) -> str:
        """A connection that asks for nothing for a while, then goes."""
        door = self.random.choice(("api", "vllm", "ollama", "tensorflow"))
        _, writer = await asyncio.open_connection("127.0.0.1", self.ports[door])
        await asyncio.sleep(self.random.uniform(1, 30))
        writer.close()
        return "closed"

    async def _viewer(self) -> None:
        """The page as a browser keeps it: one connection, status each second."""
        async with aiohttp.ClientSession() as own:
            while True:
                try:
                    async with own.get(self.url("api", "/v1/status")) as reply:
                        await reply.read()
                        self.counts[f"page: {reply.status}"] += 1
                except (aiohttp.ClientError, TimeoutError, OSError):
                    self.counts["page: cut"] += 1
                await asyncio.sleep(1)


async def _main(ports: dict[str, int], seed: int) -> Counter[str]:
    load = Load(ports, seed)
    task = asyncio.ensure_future(load.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with suppress(asyncio.CancelledError):
        await task
    return load.counts


if __name__ == "__main__":
    done = asyncio.run(_main(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])))
    print(json.dumps(done))
