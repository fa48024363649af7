"""A stand-in for ``tensorflow_model_server``: REST, and gRPC where ovmsclient is installed.

Takes its whole pool at the first load (total x fraction), a smaller one when there is less; ports
open only when every model is loaded; SIGTERM kills it at once, as the real one has no handler.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from arbiterd.sim.engines.common import CONTEXT_BYTES, Card, Faults, Handler, Server, say
from arbiterd.sim.engines.growth import Grower, leak
from arbiterd.sim.gpu import OutOfMemory
from arbiterd.units import MIB

_MODEL = re.compile(r'name:\s*"([^"]+)"\s+base_path:\s*"([^"]+)"')
_PATH = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?(?::(\w+)|(/metadata))?")
_GROW_FIRST = 256 * MIB
OOM_TEXT = (
    "OOM when allocating tensor with shape[64,1024,1024] and type float on "
    "/job:localhost/replica:0/task:0/device:GPU:0 by allocator GPU_0_bfc"
)
_CRASHES = {  # what some do instead of a 429, then SIGABRT
    "in_use": "F bfc_allocator.cc:519] Check failed: c->in_use() && (c->bin_num == kInvalidBinNum)",
    "bad_alloc": "terminate called after throwing an instance of 'std::bad_alloc'",
    "cudnn": "E cuda_dnn.cc:466] Could not create cudnn handle: CUDNN_STATUS_ALLOC_FAILED",
}


class State:
    """Models and counters."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.card = Card()
        self.models: dict[str, str] = {}
        self.requests = 0
        self.metrics_path = ""
        self.lock = threading.Lock()
        self.pool: Grower | None = None  # with memory growth

    def refuses(self) -> bool:
        """A predict finds no room: by fault, or because the growing pool cannot grow."""
        full = self.pool is not None and self.pool.full
        return self.faults.take("oom_next_request") or full


class Rest(Handler):
    """TensorFlow Serving's REST routes."""

    state: State
    routes: ClassVar[dict[tuple[str, str], str]] = {}

    def other(self, path: str) -> None:
        """Everything is matched by pattern, as there."""
        if path != self.state.metrics_path:
            with (
                self.state.lock
            ):  # status URLs and 400s count as well (model_servers/http_server.cc)
                self.state.requests += 1
        if self.state.metrics_path and path == self.state.metrics_path:
            self._metrics()
            return
        if path == "/v1/models":
            self.reply(400, {"error": "Missing model name in request."})
            return
        match = _PATH.fullmatch(path)
        if match is None:
            kind = "text/html"
            self.reply(
                400 if path.startswith("/v1/models/") else 404,
                "<html><body>Not Found</body></html>",
                kind,
            )
        elif match[4]:
            self._metadata(match[1])
        elif match[3]:
            self._predict(match[1])
        else:
            self._status(match[1])

    def _status(self, name: str) -> None:
        if name not in self.state.models:
            self.reply(404, {"error": f"Could not find any versions of model {name}"})
            return
        status = {"error_code": "OK", "error_message": ""}
        row = {"version": self.state.models[name], "state": "AVAILABLE", "status": status}
        self.reply(200, {"model_version_status": [row]})

    def _predict(self, name: str) -> None:
        body = self.body()
        faults = self.state.faults
        if name not in self.state.models:
            self.reply(404, {"error": f"Servable not found for request: Latest({name})"})
            return
        instances, inputs = body.get("instances"), body.get("inputs")
        if not inputs and (not isinstance(instances, list) or not instances):
            # refused before the session (util/json_tensor.cc)
            self.reply(400, {"error": "Failed to process element: No values in 'instances'"})
            return
        faults.wait_while_hung()  # the session alone: status URLs go on
        if self.state.refuses():
            say(OOM_TEXT)
            self.reply(429, {"error": OOM_TEXT})
            return
        time.sleep(float(faults.get("predict_s", 0.01)))
        if inputs:
            self.reply(200, {"outputs": [[0.1, 0.9]]})
            return
        self.reply(200, {"predictions": [[0.1, 0.9] for _ in instances or ()]})

    def _metadata(self, name: str) -> None:
        """One signature: x, float, any number of rows of four."""
        if name not in self.state.models:
            self.reply(404, {"error": f"Could not find any versions of model {name}"})
            return
        shape = {"dim": [{"size": "-1", "name": ""}, {"size": "4", "name": ""}]}
        tensor = {
            "dtype": "DT_FLOAT",
            "tensor_shape": {**shape, "unknown_rank": False},
            "name": "x:0",
        }
        one = {"inputs": {"x": tensor}, "outputs": {}, "method_name": "tensorflow/serving/predict"}
        spec = {"name": name, "signature_name": "", "version": self.state.models[name]}
        signatures = {"signature_def": {"serving_default": one}}
        self.reply(200, {"model_spec": spec, "metadata": {"signature_def": signatures}})

    def _metrics(self) -> None:
        names = self.state.models
        rows = "".join(
            f':tensorflow:serving:request_count{{model_name="{name}",status="OK"}} {self.state.requests}\n'
            for name in names
        )
        self.reply(200, f"# TYPE :tensorflow:serving:request_count counter\n{rows}", "text/plain")


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tensorflow_model_server", allow_abbrev=False)
    parser.add_argument("--port", type=int, default=8500)
    parser.add_argument("--rest_api_port", type=int, default=0)
    parser.add_argument("--per_process_gpu_memory_fraction", type=float, default=0.0)
    parser.add_argument("--model_config_file")
    parser.add_argument("--model_config_file_poll_wait_seconds", type=int, default=0)
    parser.add_argument("--model_name", default="default")
    parser.add_argument("--model_base_path")
    parser.add_argument("--monitoring_config_file")
    parser.add_argument("--batching_parameters_file")
    parser.add_argument("--enable_batching", default="false")
    parser.add_argument("--max_num_load_retries", type=int, default=5)
    parser.add_argument("--version", action="version", version="TensorFlow ModelServer: 2.19.1")
    return parser.parse_args(argv)


def _load(state: State, options: argparse.Namespace) -> str:
    """Load every model; returns the error, "" when all are there."""
    pairs: list[tuple[str, str]] = []
    if options.model_config_file:
        pairs = _MODEL.findall(Path(options.model_config_file).read_text())
    elif options.model_base_path:
        pairs = [(options.model_name, options.model_base_path)]
    missing = []
    for name, path in pairs:
        folder = Path(path)
        found = (
            sorted(p.name for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []
        )
        if found:
            state.models[name] = found[-1]
        else:
            missing.append(f"{{Name: {name} Version: 1}} due to error: NOT_FOUND: {path}")
    if missing:
        return f"{len(missing)} model(s) did not become available: {{{'; '.join(missing)}}}"
    return ""


def _take_pool(state: State, fraction: float) -> None:
    """Context, then the pool: whole unless growth is allowed; x0.9 until it fits."""
    card = state.card
    if not card.present:
        say("failed call to cuInit: CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected")
        return
    card.alloc(CONTEXT_BYTES)
    free, total = card.sizes()
    wanted = int(total * fraction) if fraction else max(0, free - 500 * MIB)
    if os.environ.get("TF_FORCE_GPU_ALLOW_GROWTH") == "true":
        _grow(state, wanted - _GROW_FIRST)
        wanted = min(wanted, _GROW_FIRST)
    size = wanted
    while size > MIB:
        try:
            card.alloc(size)
            break
        except OutOfMemory:
            say(
                f"failed to allocate {size / 2**30:.2f}GiB ({size} bytes) from device: CUDA_ERROR_OUT_OF_MEMORY: out of memory"
            )
            size = int(size * 0.9)
    say(
        "Created device /job:localhost/replica:0/task:0/device:GPU:0 with "
        f"{size // MIB} MB memory:  -> device: 0, name: simulated"
    )


def _grow(state: State, room: int) -> None:
    """With memory growth the pool grows by grow_mib_per_s, within the fraction; it never shrinks."""
    state.pool = Grower(
        state.card,
        lambda: float(state.faults.get("grow_mib_per_s", 0)) * MIB,
        most=lambda: max(0, room),
        on_oom=lambda error: _full(state, error),
    )
    state.pool.start()


def _full(state: State, error: OutOfMemory) -> None:
    """The device is full: a warning and 429s to come, or one of the crashes."""
    say(
        f"failed to allocate {error.asked_bytes / 2**30:.2f}GiB ({error.asked_bytes} bytes) from "
        "device: CUDA_ERROR_OUT_OF_MEMORY: out of memory"
    )
    crash = _CRASHES.get(str(state.faults.get("oom_crash", "")))
    if crash is not None:
        say(crash)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), signal.SIGABRT)


def main() -> int:
    """Serve until killed."""
    options = _options(sys.argv[1:])
    state = Rest.state = State()
    state.faults.at_start()
    if options.monitoring_config_file:
        text = Path(options.monitoring_config_file).read_text()
        found = re.search(r'path:\s*"([^"]+)"', text)
        state.metrics_path = found[1] if found else ""
    error = _load(state, options)
    if error:
        say(error)
        say(f"Failed to start server. Error: UNKNOWN: {error}")
        return 255
    time.sleep(float(state.faults.get("load_s", 0.4)))
    _take_pool(state, options.per_process_gpu_memory_fraction)
    grpc = _grpc(state, options.port)
    if grpc is None:
        say("Failed to start server. Error: INVALID_ARGUMENT: Failed to BuildAndStart gRPC server")
        return 255
    say(f"Running gRPC ModelServer at 0.0.0.0:{options.port} ...")
    if options.rest_api_port:
        try:
            server = Server(("0.0.0.0", options.rest_api_port), Rest, listen=True)
        except OSError:
            say(f"Failed to start HTTP Server at localhost:{options.rest_api_port}")
        else:
            say(f"Exporting HTTP/REST API at:localhost:{options.rest_api_port} ...")
            run: Callable[[], None] = server.serve_forever
            threading.Thread(target=run, daemon=True).start()
    leak(state.card, state.faults, lambda error: _full(state, error))
    while True:
        signal.pause()


def _grpc(state: State, port: int) -> object:
    """The gRPC server; without its library the port is only held open."""
    try:
        from arbiterd.sim.engines.tensorflow_grpc import serve  # noqa: PLC0415 - an extra
    except ImportError:
        return _listen(port)
    return serve(state, port)


def _listen(port: int) -> socket.socket | None:
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        one.bind(("0.0.0.0", port))
        one.listen(16)
    except OSError:
        one.close()
        return None
    return one


if __name__ == "__main__":
    sys.exit(main())
