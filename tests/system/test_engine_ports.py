"""Engine ports and secrets under a real systemd: who reaches an engine, what systemd shows of one."""

from __future__ import annotations

import json
import time

import pytest

from arbiterd.act.port_unit import PORTS
from tests.support import wait_until
from tests.system.conftest import PYTHON, Box
from tests.system.looks import CHAT, COMPLETE, CTL, GENERATE, OLLAMA, ask

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]
TABLE = "nft list table inet gpu_arbiter"
CONNECT = """
import os, pwd, socket, sys
os.setuid(pwd.getpwnam(sys.argv[1]).pw_uid)
one = socket.socket()
one.settimeout(10)
sys.exit(one.connect_ex(("127.0.0.1", int(sys.argv[2]))))
"""
REFUSED = 111
PLANTED = ("planted-inline-one", "planted-of-file")
KEPT = "/run /var/lib/gpu-arbiter /etc/systemd /usr/local/lib/systemd"
TELLING = ("status --json", "plan --json", "plan", "check", "check --json", "why vllm", "incidents")


def _connects(box: Box, user: str, port: int) -> int:
    """0, or the error that this user gets."""
    box.put("/run/connect.py", CONNECT)
    return box.run(PYTHON, "/run/connect.py", user, str(port)).returncode


def _with_secrets(box: Box) -> None:
    text = box.config()
    first = text.index("env = {")
    text = (
        text[:first]
        + f'sleep = true\nenv_file = "/etc/vllm.env"\nenv = {{ HF_TOKEN = "{PLANTED[0]}",'
        + text[first + 7 :]
    )
    box.put("/etc/vllm.env", f"OF_FILE_SECRET={PLANTED[1]}\n")
    box.sh("chmod 600 /etc/vllm.env")
    box.config(text)


def _argv(box: Box) -> str:
    return box.sh(f"tr '\\0' ' ' </proc/{box.main_pid('vllm')}/cmdline")


def test_only_the_doors_reach_an_engine_and_systemd_shows_no_secret(box: Box) -> None:
    """From the first start on; after a flush; through a restart of the daemon; until it is stopped."""
    _with_secrets(box)
    box.start()
    status = box.status()["engine_ports"]
    assert status == {"closed": True, "ports": [18000, 21434], "problem": ""}, box.journal_text()[
        -3000:
    ]
    assert not any("engine" in note for note in box.status()["notes"])
    for user, expected in (("root", 0), ("haproxy", 0), ("gpu-arbiter-gate", 0),
                           ("gpu-engines", REFUSED), ("nobody", REFUSED)):  # fmt: skip
        assert _connects(box, user, 18000) == expected, user
    assert _connects(box, "nobody", 8000) == 0, "the doors are open to everybody"
    assert ask(box, COMPLETE, CHAT) == 200
    assert ask(box, GENERATE, OLLAMA) == 200
    assert "--enable-sleep-mode" in _argv(box)

    # -- no secret: what systemd shows and keeps, what the arbiter keeps and tells -------------------
    unit = "gpu-arbiter-backend-vllm.service"
    shown = box.sh(f"systemctl show --all {unit}; systemctl cat {unit}; systemctl status --no-pager {unit}; "
                   "busctl get-property org.freedesktop.systemd1 "
                   "/org/freedesktop/systemd1/unit/gpu_2darbiter_2dbackend_2dvllm_2eservice "
                   "org.freedesktop.systemd1.Service Environment || true")  # fmt: skip
    environ = box.sh(f"tr '\\0' '\\n' </proc/{box.main_pid('vllm')}/environ")
    assert all(word in environ for word in PLANTED), "the engine has them all the same"
    words = " ".join(f"-e {word}" for word in PLANTED)
    found = box.sh(
        f"find {KEPT} -fstype proc -prune -o -type f -print0 | xargs -0 -r grep -lsF {words} || true"
    )
    own = {"/run/gpu-arbiter/last-good.toml", "/run/gpu-arbiter/backends/vllm.env"}
    assert set(found.split()) <= own, found
    for path in found.split():
        assert box.sh(f"stat -c %a:%U {path}") == "600:root", path
    told = {command: box.run(CTL, *command.split()) for command in TELLING}
    told["journal"] = box.run("journalctl", "-o", "json", "--no-pager")
    for name, done in told.items():
        for word in PLANTED:
            assert word not in done.stdout + done.stderr, name
    assert not any(word in shown for word in PLANTED)

    # -- the rule is looked at, and told when it was gone --------------------------------------------
    since, pids = time.time() - 0.5, box.warm_pids()
    box.sh("nft flush ruleset")
    assert _connects(box, "nobody", 18000) == 0
    assert box.run("systemctl", "restart", "gpu-arbiter").returncode == 0
    assert "was gone, and is back" in box.event("ports_open", since)["MESSAGE"]
    assert _connects(box, "nobody", 18000) == REFUSED
    box.wait_ready()
    box.kept(pids)  # a restart of the daemon restarts no engine

    # -- its unit ------------------------------------------------------------------------------------
    assert box.run("systemd-analyze", "verify", PORTS).stderr == ""
    level = box.sh(f"systemd-analyze security --no-pager {PORTS} | tail -1")
    assert float(level.split(": ")[1].split()[0]) <= 1.5, level
    box.sh("systemctl stop gpu-arbiter")
    assert box.run("sh", "-c", TABLE).returncode != 0, "nothing is left of it"


def test_without_nft_the_daemon_starts_and_says_so_and_nothing_sleeps(box: Box) -> None:
    """The reason is in the journal, status, check and doctor; it is mended without a restart."""
    _with_secrets(box)
    box.sh("mv /usr/sbin/nft /usr/sbin/nft.away")
    try:
        box.start()
        assert not box.status()["engine_ports"]["closed"]
        assert "nft cannot be run; apt-get install nftables" in box.event("ports_open")["MESSAGE"]
        assert any("every local user can open" in note for note in box.status()["notes"])
        assert "--enable-sleep-mode" not in _argv(box)
        assert "vllm: sleep = true is not used" in box.journal_text()
        checked = box.run(CTL, "check")
        assert checked.returncode == 0
        assert "apt-get install nftables" in checked.stderr
        assert "backends.vllm.sleep: is not used" in checked.stderr
        assert "apt-get install nftables" in box.run(CTL, "doctor").stdout
        plan = json.loads(box.run(CTL, "plan", "--json").stdout)
        row = next(one for one in plan["backends"] if one["name"] == "vllm")
        assert row["change"] == "keep"
        assert "--enable-sleep-mode" not in row["argv"]
    finally:
        box.sh("mv /usr/sbin/nft.away /usr/sbin/nft")
    wait_until(lambda: box.status()["engine_ports"]["closed"], 60, "the rule comes with nft")
    assert _connects(box, "nobody", 18000) == REFUSED
