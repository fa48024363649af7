"""A live daemon is recorded; its trace replays to identical decisions."""

from __future__ import annotations

import gzip
import json
import os
import signal

from arbiterd.trace.lines import Reader
from arbiterd.trace.replay import replay
from tests.support import PATIENCE_S, wait_until
from tests.support.host import SHARED, Host, running


def test_a_live_daemon_is_recorded_and_replays_to_identical_decisions(host: Host) -> None:
    """Starts, a killed engine and its restart: every decision comes out the same."""
    host.write(SHARED)
    with running(host):
        host.wait_ready("tensorflow")
        path = host.home / "one.jsonl.gz"
        command = host.ctl_process("record", str(path))
        wait_until(path.exists, 10, "the trace begins")
        host.wait_ready()
        pid = host.status()["backends"][1]["pids"][0]
        os.kill(pid, signal.SIGKILL)
        host.wait_event("recovered", "vllm")
        tick = host.status()["loop"]["tick"]  # the journal is ahead of the stream: let it come
        wait_until(lambda: host.status()["loop"]["tick"] > tick + 4, 10, "a few more ticks")
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=PATIENCE_S)
        assert command.returncode == 0, err
        assert "ticks in" in out
        lines = gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True)
        found = list(replay(Reader(lines)))
        assert len(found) > 20
        differing = [one for one in found if not one.same]
        assert not differing
        told = {e.name.value for one in found for e in one.decision.events}
        assert {"exit", "cleanup", "released", "ready", "recovered"} <= told

        done = host.ctl("replay", str(path))
        assert done.returncode == 0, done.stderr
        assert "every decision is the same" in done.stdout
        assert "→ StopBackend" in done.stdout
        report = json.loads(host.ctl("replay", str(path), "--json").stdout)
        assert report["identical"] is True
        assert report["ticks"] == len(found)

        assert host.get("/v1/admin/trace").status_code == 404, "on the admin socket only"
        limited = host.ctl("record", "-", "--seconds", "1")
        assert limited.returncode == 0, limited.stderr
        assert len(list(Reader(limited.stdout.splitlines(keepends=True)).ticks())) >= 5


def test_record_and_replay_refuse_in_sentences(host: Host) -> None:
    """No daemon: 69; no trace: 1; a folder that is not there: 1."""
    host.write(SHARED)
    path = host.home / "x.jsonl"
    done = host.ctl("record", str(path))
    assert done.returncode == 69, done.stderr
    assert "no daemon answers" in done.stderr or "does not answer" in done.stderr
    assert host.ctl("replay", str(path)).returncode == 1
    path.write_text("hello\n")
    wrong = host.ctl("replay", str(path))
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("arbiterctl: line 1: this is no line of a trace")
