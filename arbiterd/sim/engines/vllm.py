"""A stand-in for ``vllm serve MODEL``: the API server; the memory is its EngineCore's.

Port bound at once, listening only when ready. SIGTERM: see ``_end``. When the core dies the server
ends with exit code 0, as the real one does (vllm #48966). Answers are those of 0.32 (vllm_api.py).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress

from arbiterd.sim.engines.common import Faults, Server, say
from arbiterd.sim.engines.vllm_api import Api
from arbiterd.sim.engines.vllm_options import options as read_options
from arbiterd.sim.engines.vllm_state import WATCHDOG_S, State

ABORT_S = 1.0  # what clients of aborted requests get to read their end; the real one ends in 0.7 s
LAST_CLIENT_S = 0.2  # from the last client's leaving to the end


def main() -> int:
    """Serve."""
    try:
        options = read_options(sys.argv[1:])
    except (ValueError, OSError) as error:
        say(f"{type(error).__name__}: {error}")
        return 1
    faults = Faults()
    faults.at_start()
    try:
        server = Server((options.host or "0.0.0.0", options.port), Api, listen=False)  # nosec B104 # as vLLM
    except OSError as error:
        say(f"OSError: [Errno {error.errno}] Address already in use")
        return 1
    state = Api.state = State(options)
    Api.keys = tuple(options.api_key or [os.environ.get("VLLM_API_KEY", "")])
    Api.keys = tuple(key for key in Api.keys if key)
    signal.signal(signal.SIGTERM, lambda *_: _stop(state))
    signal.signal(signal.SIGINT, lambda *_: _stop(state))
    state.ready.wait()
    if state.failed or state.dead:
        state.core.wait()
        say(
            "RuntimeError: Engine core initialization failed. See root cause above. "
            "Failed core proc(s): {'EngineCore': 1}"
        )
        return 1
    server.server_activate()
    print("INFO:     Application startup complete.", flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while not state.draining:
        if state.dead or state.core.poll() is not None:
            say("AsyncLLM output_handler failed: EngineDeadError: EngineCore encountered an issue.")
            state.dead = True
            time.sleep(WATCHDOG_S)
            return 0
        time.sleep(0.05)
    return _end(state, server)


def _stop(state: State) -> None:
    if not state.ready.is_set():
        _end_core(state)
        os._exit(0)
    state.draining = True


def _end(state: State, server: Server) -> int:
    """After SIGTERM. --shutdown-timeout 0: what runs is aborted. Else it may end until then; new
    requests get 500, /health says 200. Then the core is ended, the port closed, and the process stays
    until the last client that waits for an answer has left. The fault ``lingers``: idle it stays for
    the whole time as well, as the real one on the CPU does.
    """
    limit = float(state.options.shutdown_timeout)
    deadline = time.monotonic() + (limit or ABORT_S)
    if not limit:
        state.abort()
    while (state.outputs or _lingers(state, limit)) and time.monotonic() < deadline:
        time.sleep(0.02)
    state.cut = True
    _end_core(state)
    server.shutdown()
    server.server_close()
    if state.answering:
        while state.answering:
            time.sleep(0.02)
        time.sleep(LAST_CLIENT_S)
    return 0


def _lingers(state: State, limit: float) -> bool:
    return bool(limit and state.faults.get("lingers"))


def _end_core(state: State) -> None:
    with suppress(ProcessLookupError):
        state.core.kill()
        state.core.wait()


if __name__ == "__main__":
    sys.exit(main())
