"""Proxies in front of the doors: nginx as it comes, nginx that passes its name on, our edge.cfg."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import free_port, wait_until
from tests.support.doors import OLLAMA_ANSWERS, OLLAMA_MODEL, Doors, Reply, doors, made

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
ROOT = Path(__file__).resolve().parents[2]
CHAT = {"model": OLLAMA_MODEL, "prompt": "x"}


@pytest.fixture
def behind() -> Iterator[Doors]:
    """Doors on loopback that know one public name; Ollama's completions are streams."""
    with doors(made(hosts=("llm.example.com",))) as one:
        one.engines["ollama"].answers.update(OLLAMA_ANSWERS)
        one.engines["ollama"].streams = {"/v1/completions"}
        yield one


@contextmanager
def front(one: Doors, *argv: str) -> Iterator[None]:
    """The proxy, until the test's end."""
    log = (one.home / "front.log").open("ab")
    with log, subprocess.Popen(argv, stdout=log, stderr=log) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait()


def up(one: Doors, door: str) -> None:
    """Wait until the proxy listens."""

    def listens() -> bool:
        try:
            return one.ask(door, "/", host="localhost").status > 0
        except OSError:
            return False

    wait_until(listens, 15, "the proxy in front")


def ask_all(one: Doors, door: str, host: str, *, version: str = "1.1") -> Iterator[Reply]:
    """What an Ollama client does through a proxy: look, list, stream."""
    yield one.ask(door, "/", host=host, version=version)
    yield one.ask(door, "/api/tags", host=host, version=version)
    yield one.post(door, "/v1/completions", {**CHAT, "stream": True}, host=host, version=version)


@pytest.mark.skipif(NGINX is None, reason="no nginx: apt-get install nginx-light")
@pytest.mark.parametrize("named", [False, True])
def test_an_nginx_in_front_is_served(behind: Doors, named: bool) -> None:
    """As it comes (HTTP/1.0 upstream, Host is the upstream's address), and with its public name passed on."""
    port = free_port()
    header = "proxy_set_header Host $host;" if named else ""
    folder = behind.home / "nginx"
    folder.mkdir()
    temporary = "\n".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log stderr;\nevents {{}}\nhttp {{ access_log off; {temporary}\n"
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{behind.ports['ollama']}; {header} }} }} }}\n"
    )
    behind.extra["front"] = port
    with front(behind, str(NGINX), "-p", str(folder), "-c", str(folder / "nginx.conf")):
        up(behind, "front")
        for reply in ask_all(behind, "front", "llm.example.com"):
            assert reply.status == 200, reply
            assert reply.headers["x-arbiter-served-by"]
        assert reply.body == b"data: 1\n\ndata: [DONE]\n\n"
        unknown = behind.ask("front", "/", host="evil.com")
        assert unknown.status == (403 if named else 200), (
            "nginx answers to every name unless it is told"
        )


def test_our_edge_is_served(behind: Doors) -> None:
    """etc/haproxy/edge.cfg as it is shipped, its health checks aside; a browser by its name as well."""
    port = free_port()
    kept = [
        line for line in (ROOT / "etc/haproxy/edge.cfg").read_text().splitlines()
        if "gpu31" not in line and "default-server" not in line and "httpchk" not in line
    ]  # fmt: skip
    text = "\n".join(kept) + "\n"
    for public, name in ((8000, "vllm"), (8501, "tensorflow"), (11434, "ollama")):
        text = text.replace(f"192.0.2.30:{public}", f"127.0.0.1:{behind.ports[name]}")
        text = text.replace(
            f"bind :{public}", f"bind 127.0.0.1:{port if name == 'ollama' else free_port()}"
        )
    path = behind.home / "edge.cfg"
    path.write_text(text)
    behind.extra["front"] = port
    with front(behind, "/usr/sbin/haproxy", "-db", "-f", str(path)):
        up(behind, "front")
        for host in ("llm.example.com:11434", "192.0.2.1"):
            for reply in ask_all(behind, "front", host):
                assert reply.status == 200, reply
        origin = {"Origin": "http://llm.example.com"}
        page = behind.ask("front", "/api/tags", host="llm.example.com:11434", headers=origin)
        assert page.status == 200
        assert json.loads(page.body)["models"]
        assert behind.ask("front", "/", host="evil.com").status == 403
