"""Secrets planted in every place of a configuration, and an engine that dies with all of them on its lips:
no surface of the arbiter has them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

from arbiterd.secrets.redact import HIDDEN
from tests.support import PATIENCE_S, wait_until
from tests.support.host import MODEL, Host, running

KEY, TOKEN, LISTED, DOOR = (
    "planted-in-command",
    "planted+in/env-file",
    'planted"inline',
    "planted-listed",
)
PLANTED = (KEY, TOKEN, LISTED, DOOR)
MODES = '[modes.A]\nvllm = { gpu = 0, memory = "45%" }\n'
# what a function needs: the configuration's copy, the engine's own output and environment, keys of doors
KEEPS = (
    "last-good.toml",
    "previous.toml",
    "logs/",
    "gateway/key-",
    "gateway/keys",
    "gateway/engine-keys.map",
    ".env",
)


def _write(host: Host) -> None:
    file = host.home / "vllm.env"
    file.write_text(f"OF_FILE_TOKEN={TOKEN}\n")
    env = host.env_line("vllm")[:-2] + f""", HF_SECRET = '{LISTED}', DSN = "{DOOR}" }}"""
    backend = f"""\
[backends.vllm]
command = ["{sys.executable}", "-m", "arbiterd.sim.engines.vllm", "serve", "{MODEL}", "--api-key", "{KEY}"]
port = {host.ports["vllm"]}
restart_delay = "1min"
restart_delay_max = "1min"
env_file = "{file}"
secrets = ["DSN"]
{env}
"""
    host.write(MODES, only=(), backends=backend)
    said = f"key {KEY}, url http://x/?t={quote(TOKEN, safe='')}, {json.dumps(LISTED)}, dsn {DOOR}"
    host.fault("vllm", exit_on_start=1, last_words=f"RuntimeError: {said}\n{KEY[:9]}\n{KEY[9:]}")


def _found(text: str) -> list[str]:
    forms = {one: (one, quote(one, safe=""), json.dumps(one)[1:-1]) for one in PLANTED}
    return [one for one, spelt in forms.items() if any(form in text for form in spelt)]


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def test_no_surface_has_a_planted_secret(sim_lib: Path) -> None:
    """API, metrics, journal, state, runtime files, door bodies, and each command as text and JSON."""
    host = Host(Path(tempfile.mkdtemp(prefix="gpua-s-", dir="/tmp")), sim_lib, gateway=True)
    _write(host)
    with running(host):
        host.wait_phase("vllm", "backoff", "failed")
        host.wait_event("exit", "vllm")
        wait_until(
            lambda: HIDDEN in json.dumps(host.incidents()), 30, "the last words in an incident"
        )
        paths = (
            "/v1/status", "/v1/backends/vllm", "/v1/backends/vllm/ready", "/v1/incidents", "/v1/caps",
            "/v1/route?backend=vllm", "/metrics", "/v1/gpus", "/openapi.json",
        )  # fmt: skip
        for path in paths:
            assert not _found(host.get(path).text), path
        assert HIDDEN in host.get("/v1/backends/vllm").json()["reason"]
        body = {"model": MODEL, "prompt": "x"}
        for door in ("vllm", "llm"):
            url = host.door(door, "/v1/completions")
            reply = host.session.post(url, json=body, timeout=PATIENCE_S)
            assert reply.status_code == 503
            assert not _found(reply.text + str(reply.headers)), door

        trace = host.home / "trace.jsonl"
        commands = (
            ("status",), ("incidents",), ("why", "vllm"), ("caps",), ("check",), ("plan",),
            ("mode", "A", "--dry-run"), ("record", str(trace), "--seconds", "1"), ("replay", str(trace)),
        )  # fmt: skip
        for command in commands:
            for extra in ((), ("--json",)):
                done = host.ctl(*command, *extra)
                assert not _found(done.stdout + done.stderr), (command, extra)
                if extra and done.stdout.startswith("{"):
                    json.loads(done.stdout)
        assert not _found(trace.read_text())
        assert trace.stat().st_mode & 0o777 == 0o600

        broken = host.config.read_text().replace('env_file = "', f'env_file = 3 # "{KEY}')
        good = host.config.read_text()
        host.config.write_text(broken)
        assert host.ctl("reload").returncode != 0
        assert not _found(host.ctl("check").stderr)
        host.config.write_text(good)
        assert host.stop() == 0
    assert not _found(host.log.read_text())
    assert HIDDEN in host.log.read_text()
    for folder in ("run", "state"):
        for name, raw in _files(host.home / folder).items():
            if not any(keep in name for keep in KEEPS):
                assert not _found(raw.decode(errors="replace")), name
