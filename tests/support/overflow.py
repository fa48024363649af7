"""What tests and the benchmark of an overflowing card need: a stranger, a witness of the card's free
memory, a stream that must stay whole, the doors as HAProxy tells them.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import requests

from arbiterd.gateway import live_map, runtime
from arbiterd.gateway.paths import paths
from arbiterd.sim.gpu import SimGpu
from tests.support import PATIENCE_S, wait_until
from tests.support.host import Host

# A notebook's kernel: it takes memory when told to, and writes down every signal it gets and from whom.
NOTEBOOK = """\
import os, signal, sys, threading
from pathlib import Path
from arbiterd.sim.gpu import SimGpu
wanted = set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}
signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
def witness():
    while True:
        found = signal.sigwaitinfo(wanted)
        with open(sys.argv[3], "a") as log:
            log.write(f"{found.si_signo} from {found.si_pid}\\n")
threading.Thread(target=witness, daemon=True).start()
gpu = SimGpu.attach(Path(sys.argv[1]), Path(sys.argv[2]))
handles = []
print("ready", flush=True)
for line in sys.stdin:
    if line.startswith("free"):
        while handles:
            gpu.free(handles.pop())
    else:
        device, size = line.split()
        handles.append(gpu.alloc(int(device), int(size)))
    print("done", flush=True)
"""


class Stranger:
    """A process that is none of the arbiter's, under a command of its own."""

    def __init__(self, home: Path, gpu: Path, lib: Path) -> None:
        script = home / "notebook.py"
        script.write_text(NOTEBOOK)
        self.log = home / "notebook.signals"
        self.log.touch()
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(gpu), str(lib), str(self.log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._heard()

    def _heard(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() in ("ready", "done")

    def _tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        self._heard()

    def grab(self, size: int, device: int = 0) -> None:
        """Take so many bytes at one stroke."""
        self._tell(f"{device} {size}")

    def leave(self) -> None:
        """Give all of them back; the process lives on."""
        self._tell("free")

    def unharmed(self) -> bool:
        """Alive, not stopped, and no signal was ever sent to it."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        state = next(line for line in status.splitlines() if line.startswith("State:"))
        return self.process.poll() is None and state.split()[1] in "RS" and not self.log.read_text()

    def close(self) -> None:
        """End it: it blocks everything that can be blocked."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def stranger(host: Host) -> Iterator[Stranger]:
    """One for a test."""
    one = Stranger(host.home, host.home / "gpu", host.lib)
    try:
        yield one
    finally:
        one.close()


class LowWater(threading.Thread):
    """The least free memory of a card while it looks, each 2 ms."""

    def __init__(self, gpu: SimGpu, device: int = 0) -> None:
        super().__init__(daemon=True)
        self._gpu, self._device = gpu, device
        self._ended = threading.Event()
        self.free = gpu.memory(device)[3]

    def run(self) -> None:
        """Look until stopped."""
        while not self._ended.wait(0.002):
            self.free = min(self.free, self._gpu.memory(self._device)[3])

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


class Stream(threading.Thread):
    """One long answer through a door, read as it comes."""

    def __init__(self, host: Host, backend: str, tokens: int) -> None:
        super().__init__(daemon=True)
        if backend == "ollama":
            path, self._end = "/api/generate", '"done":true'
            body: dict[str, object] = {"model": "qwen2.5:3b", "prompt": "x"}
            body["options"] = {"num_predict": tokens}
        else:
            path, self._end = "/v1/completions", "[DONE]"
            body = {"model": "Qwen/Qwen2.5-3B-Instruct", "prompt": "x", "stream": True}
            body["max_tokens"] = tokens
        self._ask = (host.door(backend, path), body)
        self.status, self.text, self.error, self.parts = 0, "", "", 0
        self.start()
        wait_until(lambda: self.parts > 3 or self.error, 15, f"a stream from {backend}")

    def run(self) -> None:
        """Read."""
        url, body = self._ask
        try:
            with requests.Session() as session:
                session.trust_env = False
                with session.post(url, json=body, stream=True, timeout=PATIENCE_S) as reply:
                    self.status = reply.status_code
                    for line in reply.iter_lines():
                        self.text += line.decode() + "\n"
                        self.parts += bool(line)
        except requests.RequestException as error:
            self.error = f"{type(error).__name__}: {error}"

    def whole(self, timeout_s: float = 90.0) -> bool:
        """Whether it came to its end by itself."""
        self.join(timeout_s)
        return not self.error and self.status == 200 and self._end in self.text


class Doors:
    """The doors of a host, as HAProxy has them now."""

    def __init__(self, host: Host) -> None:
        self._paths = paths(str(host.home / "run"), systemd=False)

    def states(self) -> dict[str, str]:
        """up, hold, shed or away, by backend."""
        said = runtime.ask(self._paths.runtime, f"show map {self._paths.live}")
        return {k[3:]: v for k, v in live_map.parse(said).items() if k.startswith("st:")}

    def shut(self, name: str) -> bool:
        """Whether new requests are refused or held."""
        return self.states().get(name) in ("hold", "shed")

    def limit(self, name: str) -> int:
        """Requests in flight that HAProxy lets through to this engine, REST and gRPC together."""
        rows = runtime.look(self._paths.runtime, self._paths.live).rows
        own = (f"be-{name}", f"be-{name}-grpc")
        return sum(r.number("slim") for r in rows if r.proxy in own and r.name == "engine")


def said_oom(host: Host, *names: str) -> list[str]:
    """Lines of these engines' logs that tell of memory that was refused."""
    out = []
    for name in names:
        for file in sorted((host.home / "run/logs").glob(f"{name}.log*")):
            lines = file.read_text(errors="replace").splitlines()
            out += [one for one in lines if "out of memory" in one.lower() or "OUT_OF_MEM" in one]
    return out
