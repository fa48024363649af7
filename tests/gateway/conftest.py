"""A host with open doors, one per module."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.host import MODEL, SHARED, Host
from tests.support.lending import Lender

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
def lender(request: pytest.FixtureRequest, sim_lib: Path) -> Iterator[Lender]:
    """One host for a module. A module with ``GRPC = True`` has TensorFlow's gRPC as well."""

    def written() -> Host:
        host = make(sim_lib)
        host.grpc = getattr(request.module, "GRPC", False)
        write(host)
        return host

    one = Lender(written)
    yield one
    one.close()


@pytest.fixture
def shared_host(lender: Lender) -> Host:
    """Up, all three accepting; tests leave it so."""
    return lender.ready()


@pytest.fixture
def host(lender: Lender, request: pytest.FixtureRequest) -> Iterator[Host]:
    """The module's, up; whatever a test does to it is put right afterwards."""
    with lender.lend(request.node) as one:
        yield one
