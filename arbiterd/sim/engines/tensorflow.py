"""A stand-in for ``tensorflow_model_server``: REST, and gRPC where ovmsclient is installed.

Takes its whole pool at the first load (total x fraction), a smaller one when there is less; ports
open only when every model is loaded; SIGTERM kills it at once, as the real one has no handler.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from arbiterd.engines.serving_flags import SWITCHES, VALUED
from arbiterd.quantities import MIB
from arbiterd.sim.engines.common import CONTEXT_BYTES, Server, say
from arbiterd.sim.engines.growth import Grower, leak
from arbiterd.sim.engines.tensorflow_config import (
    ModelConfig,
    batching_problem,
    metrics_path,
    models_of,
)
from arbiterd.sim.engines.tensorflow_rest import Rest
from arbiterd.sim.engines.tensorflow_state import Model, State
from arbiterd.sim.gpu import OutOfMemory

_GROW_FIRST = 256 * MIB
_CRASHES = {  # what some do instead of a 429, then SIGABRT
    "in_use": "F bfc_allocator.cc:519] Check failed: c->in_use() && (c->bin_num == kInvalidBinNum)",
    "bad_alloc": "terminate called after throwing an instance of 'std::bad_alloc'",
    "cudnn": "E cuda_dnn.cc:466] Could not create cudnn handle: CUDNN_STATUS_ALLOC_FAILED",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """The usage on stdout, and -1."""
        del message
        print(self.format_usage(), end="", flush=True)
        sys.exit(255)


def _options(argv: list[str]) -> argparse.Namespace:
    """Flags as TensorFlow's own parser takes them: ``--name=value``, ``--name`` for a switch. Another
    word is told, with the usage, and serving goes on (model_servers/main.cc); a value that is none of
    its flag's kind ends it.
    """
    parser = _Parser(prog="tensorflow_model_server", allow_abbrev=False)
    parser.add_argument("--port", type=int, default=8500)
    parser.add_argument("--rest_api_port", type=int, default=0)
    parser.add_argument("--per_process_gpu_memory_fraction", type=float, default=0.0)
    parser.add_argument("--model_config_file")
    parser.add_argument("--model_config_file_poll_wait_seconds", type=int, default=0)
    parser.add_argument("--model_name", default="default")
    parser.add_argument("--model_base_path")
    parser.add_argument("--monitoring_config_file")
    parser.add_argument("--batching_parameters_file")
    parser.add_argument("--enable_batching", nargs="?", const="true", default="false")
    parser.add_argument("--max_num_load_retries", type=int, default=5)
    parser.add_argument("--version", action="version", version="TensorFlow ModelServer: 2.19.1")
    parser.add_argument("--rest_api_enable_cors_support", nargs="?", const="true", default="false")
    own = {action.dest for action in parser._actions}  # noqa: SLF001 - there is no other way to ask
    for name in sorted((SWITCHES | VALUED) - own):
        parser.add_argument(f"--{name}", nargs="?", const="true")
    bare = {f"--{name}" for name in SWITCHES}
    found, unknown = parser.parse_known_args([word for word in argv if "=" in word or word in bare])
    unknown = [word for word in argv if "=" not in word and word not in bare] + unknown
    if unknown:
        print(f"unknown argument: {unknown[0]}\n{parser.format_usage()}", end="", flush=True)
    return found


def _load(state: State, options: argparse.Namespace) -> str:
    """Load every model; returns the error, "" when all are there."""
    if not options.model_config_file and not options.model_base_path:
        return (
            "INVALID_ARGUMENT: Both server_options.model_base_path and "
            "server_options.model_config_file are empty!"
        )
    batching = str(options.enable_batching).lower() == "true"
    if options.batching_parameters_file and not batching:
        return (
            "INVALID_ARGUMENT: server_options.batching_parameters_file is set without setting "
            "server_options.enable_batching to true."
        )
    if options.batching_parameters_file:
        path = options.batching_parameters_file
        problem = batching_problem(Path(path).read_text(), path)
        if problem:
            return problem
    wanted = [ModelConfig(options.model_name, options.model_base_path or "")]
    if options.model_config_file:
        wanted = models_of(Path(options.model_config_file).read_text())
    missing = []
    for one in wanted:
        versions = one.versions()
        if versions:
            state.models[one.name] = Model(Path(one.path), versions, one.labels)
        else:
            missing.append(f"{{Name: {one.name} Version: 1}} due to error: NOT_FOUND: {one.path}")
    if missing:
        told = f"{len(missing)} model(s) did not become available: {{{'; '.join(missing)}}}"
        return f"UNKNOWN: {told}"
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
        state.metrics_path = metrics_path(Path(options.monitoring_config_file).read_text())
    state.cors = options.rest_api_enable_cors_support == "true"
    error = _load(state, options)
    if error:
        say(error)
        say(f"Failed to start server. Error: {error}")
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
            server = Server(("0.0.0.0", options.rest_api_port), Rest, listen=True)  # nosec B104 # as the real one
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
    """The gRPC server. Without its library, or with GPU_SIM_GRPC=off (it takes 0.25 CPU s to import), the
    port closes what connects.
    """
    if os.environ.get("GPU_SIM_GRPC") == "off":
        return _listen(port)
    try:
        from arbiterd.sim.engines.tensorflow_grpc import serve  # noqa: PLC0415 - an extra
    except ImportError:
        return _listen(port)
    return serve(state, port)


def _listen(port: int) -> socket.socket | None:
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        one.bind(("0.0.0.0", port))  # nosec B104 # as the real one
        one.listen(16)
    except OSError:
        one.close()
        return None
    threading.Thread(target=_close_each, args=(one,), daemon=True).start()
    return one


def _close_each(port: socket.socket) -> None:
    while True:
        port.accept()[0].close()


if __name__ == "__main__":
    sys.exit(main())
