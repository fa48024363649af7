"""The rule of the engine ports, in a network namespace of its own: who gets through, by which way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from arbiterd.gateway.port_rules import engine_ports, text
from tests.world.scenario import settings_of

CONFIG = """\
mode = "A"
[backends]
tensorflow = { command = ["tensorflow_model_server"], models = { r = "/srv/r" } }
vllm = { command = ["vllm", "serve", "M"] }
ollama = { models = ["m"], engine_port = 7000 }
[modes.A]
vllm = { gpu = 0 }
[modes.B]
tensorflow = { gpu = 0, memory = "20%", engine_port = 7001 }
ollama = { gpu = 0, memory = "20%" }
"""
ENGINE, OTHER, HAPROXY, GATE, STRANGER = 18000, 18001, 1503, 1504, 1505

# Runs as root in the namespace: a listener on every address, then one connection for each question.
PROBE = """
import json, os, socket, subprocess, sys
rules, engine, other = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for argv in (["ip", "link", "set", "lo", "up"], ["ip", "addr", "add", "192.0.2.7/32", "dev", "lo"]):
    subprocess.run(argv, check=True)
held = []
for port in (engine, other):
    one = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
    held.append(one)
def may(user, host, port):
    pid = os.fork()
    if pid:
        return {0: True, 1: False}[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]
    try:
        os.setuid(user)  # first: a socket is its maker's, whoever uses it later
        one = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        one.settimeout(5)
        one.connect((host, port))
        os._exit(0)
    except ConnectionRefusedError:
        os._exit(1)
    except BaseException:
        os.abort()
def nft(*argv):
    return subprocess.run(["/usr/sbin/nft", *argv], capture_output=True, text=True)
users = [int(one) for one in sys.argv[4:]]
out = {"before": may(users[-1], "127.0.0.1", engine)}
first = nft("-f", rules)
out["first"], out["again"] = first.returncode, nft("-f", rules).returncode
out["said"] = first.stderr
for host in ("127.0.0.1", "127.9.9.9", "::1", "192.0.2.7"):
    for user in users:
        out[f"{host} {user}"] = may(user, host, engine)
out["other"] = may(users[-1], "127.0.0.1", other)
nft("add", "table", "inet", "theirs")
nft("flush", "ruleset")
out["flushed"] = may(users[-1], "127.0.0.1", engine)
out["back"] = nft("-f", rules).returncode
out["closed"] = not may(users[-1], "127.0.0.1", engine)
print(json.dumps(out))
"""


def _cannot() -> str:
    if os.geteuid() != 0:
        return "needs root: a network namespace, and other users' sockets"
    if not os.path.exists("/usr/sbin/nft"):
        return "nftables is not installed"
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    tried = subprocess.run(
        ["unshare", "--net", "/usr/sbin/nft", "list", "tables"], capture_output=True, check=False
    )
    return (
        ""
        if tried.returncode == 0
        else f"no nftables in a namespace here: {tried.stderr.decode()[:200]}"
    )


def test_the_ports_are_those_of_every_mode_and_none_without_doors() -> None:
    """A switch opens no port that the rule does not know yet."""
    settings = settings_of(CONFIG)
    assert engine_ports(settings) == {18000, 7000, 7001, 18500}
    assert engine_ports(settings_of(CONFIG + "[gateway]\nenabled = false\n")) == set()


def test_the_rule_is_one_transaction_and_names_root_always() -> None:
    """Numbers only: nothing of the configuration's text comes into it."""
    made = text({18000, 8}, {104, 7})
    assert made.splitlines()[:2] == ["add table inet gpu_arbiter", "delete table inet gpu_arbiter"]
    assert "elements = { 8, 18000 }" in made
    assert 'oifname "lo" tcp dport @engine_ports meta skuid != { 0, 7, 104 }' in made


def test_only_root_the_doors_and_the_gate_reach_an_engine(tmp_path: Path) -> None:
    """Over every address of the host, IPv6 too; other ports stay open; after a flush it is loaded again."""
    why = _cannot()
    if why:
        pytest.skip(why)
    rules = tmp_path / "ports.nft"
    rules.write_text(text({ENGINE}, {HAPROXY, GATE}))
    users = [0, HAPROXY, GATE, STRANGER]
    argv = [sys.executable, "-c", PROBE, str(rules), *map(str, (ENGINE, OTHER, *users))]
    done = subprocess.run(
        ["unshare", "--net", *argv], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["first"], found["again"]) == (0, 0), found["said"]
    assert found["before"]
    for host in ("127.0.0.1", "127.9.9.9", "::1", "192.0.2.7"):
        assert [found[f"{host} {user}"] for user in users] == [True, True, True, False], host
    assert found["other"]
    assert found["flushed"]
    assert (found["back"], found["closed"]) == (0, True)
