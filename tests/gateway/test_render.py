"""HAProxy's configuration: the lines on which everything depends, and HAProxy's own opinion of it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from arbiterd.act.gateway.files import check
from arbiterd.gateway import render
from arbiterd.gateway.layout import doors_of, layout
from arbiterd.gateway.live_map import clean, live, parse, text
from arbiterd.gateway.paths import paths
from arbiterd.gateway.runtime import escape
from arbiterd.linux.ports import listener
from arbiterd.model.gateway import Admit, BackendWish, GatewayWish
from arbiterd.model.settings import Failover, Kind, Settings
from tests.core.world import backend, settings
from tests.gateway.conftest import FAILOVER, make, write
from tests.support import PATIENCE_S, free_port, wait_until
from tests.support.doors import made as on_free_ports
from tests.support.host import MODEL, Host

RULE = Failover("M", "vllm", "ollama", "qwen2.5:3b")


def made(**gateway: object) -> Settings:
    """Three engines and a failover rule."""
    base = settings()
    ports = {"tensorflow": {"grpc_port": 8500, "engine_grpc_port": 18500}}
    backends = {n: replace(b, **ports.get(n, {})) for n, b in base.active.backends.items()}  # type: ignore[arg-type]
    modes = {"A": replace(base.active, backends=backends)}
    return replace(
        base, modes=modes, failover=(RULE,), gateway=replace(base.gateway, **gateway)  # type: ignore[arg-type]
    )  # fmt: skip


def config(tmp_path: Path, *, systemd: bool = False, **gateway: object) -> str:
    """The text."""
    where = paths(str(tmp_path), systemd=systemd)
    return render.render(layout(made(**gateway)), where, systemd=systemd)


@pytest.mark.parametrize(
    "line",
    ["option http-no-delay", "option abortonclose", "option redispatch 1", "retry-on conn-failure",
     "timeout connect 200ms", "nbthread 1", "tune.bufsize 65536", "observe layer4 error-limit 1 on-error mark-down",
     "server standin unix@", "proto h2", "http-request del-header x-arbiter- -m beg"],
)  # fmt: skip
def test_decisive_lines_are_there(tmp_path: Path, line: str) -> None:
    """Without http-no-delay tokens come in 220 ms clumps; without abortonclose a GPU works for nobody."""
    assert line in config(tmp_path)


def test_host_is_rewritten_towards_ollama_only(tmp_path: Path) -> None:
    """A loopback Ollama refuses names that it does not know; the others may route by Host."""
    parts = config(tmp_path).split("\nbackend ")
    rewriting = [part.split()[0] for part in parts if "set-header Host localhost:" in part]
    assert rewriting == ["be-ollama", "probe-ollama"]


def test_no_limit_is_ever_zero(tmp_path: Path) -> None:
    """maxconn 0 means unlimited to HAProxy: 'none' is maintenance, never 0."""
    assert "maxconn 0" not in config(tmp_path)


def test_priority_headers_count_only_when_the_operator_trusts_them(tmp_path: Path) -> None:
    """And our own header cannot be brought along by a client."""
    assert "x-priority" not in config(tmp_path)
    assert "req.hdr(x-priority) -m str high" in config(tmp_path, trust_priority=True)


def test_ollamas_changing_routes_are_for_this_machine_only(tmp_path: Path) -> None:
    """By source address at the public door."""
    found = config(tmp_path)
    assert (
        "acl local-only path -m str /api/create /api/delete /api/push /api/copy /api/pull" in found
    )
    assert "acl from-here src 127.0.0.0/8 ::1" in found


@pytest.mark.parametrize("bind", ["127.0.0.1", "0.0.0.0", "::1"])
def test_haproxy_is_content_with_every_layout(tmp_path: Path, bind: str) -> None:
    """haproxy -c, for each way to bind, with and without the unified port and priorities."""
    for llm_port in (0, 8080):
        for trust in (False, True):
            where = paths(str(tmp_path), systemd=False)
            where.files.mkdir(exist_ok=True)
            content = config(tmp_path, bind=bind, llm_port=llm_port, trust_priority=trust)
            where.config.write_text(content)
            where.lua.write_text(render.lua(where))
            where.live.write_text("st:vllm up\nq:vllm 3\nwhy:vllm a b c\n")
            (where.files / "empty").write_text("")
            assert check(where.config) == ""


def test_a_mode_with_one_backend_opens_its_doors_only() -> None:
    """What the mode does not name has no door."""
    base = made()
    mode = replace(base.active, backends={"vllm": base.active.backends["vllm"]})
    one = replace(base, modes={"A": mode})
    assert [door.name for door in doors_of(one)] == ["vllm", "llm"]


def test_haproxy_is_content_with_generic_servers_alone(tmp_path: Path) -> None:
    """With models it is an LLM behind the unified port, without it has its own door only."""
    base = made()
    one = backend("llama", Kind.GENERIC, health="/health")
    for models, doors in ((("tiny",), ["llama", "llm"]), ((), ["llama"])):
        mode = replace(base.active, backends={"llama": replace(one, models=models)})
        alone = replace(base, modes={"A": mode}, failover=())
        assert [door.name for door in doors_of(alone)] == doors
        where = paths(str(tmp_path), systemd=False)
        where.files.mkdir(exist_ok=True)
        where.config.write_text(render.render(layout(alone), where, systemd=False))
        where.lua.write_text(render.lua(where))
        where.live.write_text("st:llama up\n")
        (where.files / "empty").write_text("")
        assert check(where.config) == ""


def test_haproxy_starts_where_it_may_open_few_files() -> None:
    """A container's systemd sets less than the unit says: doors are open all the same."""
    home = Path(tempfile.mkdtemp(prefix="gpua-f-", dir="/tmp"))
    given, where = on_free_ports(), paths(str(home), systemd=False)
    where.files.mkdir()
    where.config.write_text(render.render(layout(given), where, systemd=False))
    where.lua.write_text(render.lua(where))
    for path in (where.files / "empty", where.live):
        path.write_text("")
    argv = ["prlimit", "--nofile=2000:2000", "/usr/sbin/haproxy", "-W", "-f", str(where.config)]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: listener(given.gateway.llm_port), 20, "the door")
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(home)


def wish(admit: Admit, why: str = "") -> GatewayWish:
    """One backend's wish."""
    one = BackendWish("vllm", admit, not why, why, 7, 3, 4, 8)
    return GatewayWish({"vllm": one}, {("vllm", "M"): "ollama"})


def test_the_live_map_round_trips_whatever_the_reason_says(tmp_path: Path) -> None:
    """Newlines, quotes, percent signs and umlauts of an engine's last words."""
    nasty = 'bad "quote"\n\\ back 100% ; set map x\tünï → end'
    entries = live(wish(Admit.SHED, nasty), layout(made()), made())
    assert parse(text(entries)) == entries
    assert "\n" not in entries["why:vllm"]
    assert entries["st:vllm"] == "shed"
    assert entries["fo:vllm:M"] == entries["fo:vllm:*"] == "ollama"
    assert ";" not in escape(clean(nasty)).replace("\\;", "")


def test_an_edge_node_routes_by_the_arbiters_word(sim_lib: Path) -> None:
    """etc/haproxy/edge.cfg as it is shipped, pointed at one host: up, drained, up again."""
    host: Host = make(sim_lib)
    write(host, extra=FAILOVER)
    from tests.support.host import running

    edge = {name: free_port() for name in ("vllm", "tensorflow", "ollama")}
    root = Path(__file__).resolve().parents[2]
    shipped = (root / "etc/haproxy/edge.cfg").read_text()
    public = {"8000": "vllm", "8501": "tensorflow", "11434": "ollama"}
    lines = [line for line in shipped.splitlines() if "gpu31" not in line]
    content = "\n".join(lines).replace("port 9480", f"port {host.listen}")
    for port, name in public.items():
        content = content.replace(f"192.0.2.30:{port}", f"127.0.0.1:{host.ports[name]}")
        content = content.replace(f"bind :{port}", f"bind 127.0.0.1:{edge[name]}")
    path = host.home / "edge.cfg"
    path.write_text(content + "\n")
    body = {"model": MODEL, "prompt": "x", "max_tokens": 1}
    with running(host):
        host.wait_ready()
        process = subprocess.Popen(
            ["/usr/sbin/haproxy", "-f", str(path)], stderr=subprocess.DEVNULL
        )
        try:
            url = f"http://127.0.0.1:{edge['vllm']}/v1/completions"

            def status() -> int:
                try:
                    return host.session.post(url, json=body, timeout=PATIENCE_S).status_code
                except OSError:
                    return 0

            wait_until(lambda: status() == 200, 10, "the edge")
            assert host.ctl("drain", "vllm").returncode == 0
            predict = f"http://127.0.0.1:{edge['tensorflow']}/v1/models/resnet50:predict"
            wait_until(lambda: status() == 503, 10, "no host")
            rows = {"instances": [1]}
            assert host.session.post(predict, json=rows, timeout=PATIENCE_S).status_code == 200
            assert host.ctl("resume", "vllm").returncode == 0
            wait_until(lambda: status() == 200, 15, "the host again")
        finally:
            process.kill()
            process.wait()
    shutil.rmtree(host.home, ignore_errors=True)
