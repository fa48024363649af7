"""A real llama.cpp (xllamacpp) as a `generic` backend: its streams pass its door and the unified port."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.client import crowd
from tests.support.host import Host

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]
ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-llama" / "bin" / "python"
CHAT = {"model": "tiny", "prompt": "w1 w2", "max_tokens": 64, "stream": True, "ignore_eos": True}


@pytest.fixture(scope="module")
def host(sim_lib: Path) -> Iterator[Host]:
    """The daemon, its doors, one llama.cpp."""
    if not PYTHON.exists():
        pytest.skip("no .venv-llama here: make test-real builds it")
    home = Path(tempfile.mkdtemp(prefix="gpua-llama-", dir="/tmp"))
    one = Host(home, sim_lib, gateway=True)
    script = ROOT / "tests/real_engines/llama_server.py"
    backend = f"""
[backends.llama]
kind = "generic"
command = ["{PYTHON}", "{script}", "{{port}}", "{home}"]
port = {one.ports["other"]}
health = "/health"
models = ["tiny"]
max_in_flight = 8
env = {{ GPU_SIM_FAULTS = "{home}/none" }}
"""
    one.write('[modes.A]\nllama = { gpu = "cpu" }', only=(), backends=backend)
    one.start()
    yield one
    one.close()
    shutil.rmtree(home, ignore_errors=True)


def test_its_tokens_pass_unbuffered_through_both_doors(host: Host) -> None:
    """SSE to [DONE], in about as many pieces as direct: a tiny model puts several tokens into one."""
    host.wait_ready()
    direct = f"http://127.0.0.1:{host.ports['other'] + 10000}/v1/completions"
    alone = max(len(crowd(direct, CHAT, 1)[0].chunks) for _ in range(3))
    for door in ("other", "llm"):
        answers = [crowd(host.door(door, "/v1/completions"), CHAT, 1)[0] for _ in range(5)]
        assert {a.status for a in answers} == {200}, answers[0].body[:300]
        assert all(a.body.rstrip().endswith(b"data: [DONE]") for a in answers)
        pieces = max(len(a.chunks) for a in answers)
        print(f"\nfigure: pieces direct {alone}, through {door} {pieces}")
        assert pieces >= alone / 2


def test_a_crowd_is_queued_and_served_within_the_limit(host: Host) -> None:
    """8 in flight, 32 queued: all 30 are answered."""
    host.wait_ready()
    answers = crowd(host.door("other", "/v1/completions"), CHAT, 30)
    assert {a.status for a in answers} == {200}
