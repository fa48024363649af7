"""A host with open doors. One per module for tests that leave it as they found it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.host import MODEL, SHARED, Host, running

FAILOVER = f"""
[[failover]]
model = "{MODEL}"
from = "vllm"
to = "ollama"
source = "qwen2.5:3b"

[[failover]]
model = "qwen2.5:3b"
from = "ollama"
to = "vllm"

[[degrade]]
from = "tensorflow"
advice = "llm-only"
to = ["vllm", "ollama"]
"""


def make(lib: Path) -> Host:
    """Not started."""
    return Host(Path(tempfile.mkdtemp(prefix="gpua-gw-", dir="/tmp")), lib, gateway=True)


def write(host: Host, extra: str = FAILOVER, **keys: str) -> None:
    """Small limits, so that tests reach them."""
    base = 'max_in_flight = 4\nmax_queue = 8\nqueue_timeout = "3s"\n'
    own = {name: base + keys.get(name, "") for name in ("tensorflow", "vllm", "ollama")}
    host.write(SHARED, extra=extra, keys=own)


@pytest.fixture(scope="module")
def shared_host(request: pytest.FixtureRequest, sim_lib: Path) -> Iterator[Host]:
    """Up, all three accepting; tests leave it so."""
    host = make(sim_lib)
    host.grpc = getattr(request.module, "GRPC", False)
    write(host)
    with running(host):
        host.wait_ready()
        yield host
    shutil.rmtree(host.home, ignore_errors=True)


@pytest.fixture
def host(request: pytest.FixtureRequest, sim_lib: Path) -> Iterator[Host]:
    """One of the test's own, up. A module with ``GRPC = True`` has TensorFlow's gRPC as well."""
    one = make(sim_lib)
    one.grpc = getattr(request.module, "GRPC", False)
    write(one)
    with running(one):
        one.wait_ready()
        yield one
    shutil.rmtree(one.home, ignore_errors=True)
