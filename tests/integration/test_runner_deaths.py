"""A runner's death in the output of a running Ollama, followed by the real daemon."""

from __future__ import annotations

import sys

from tests.support.host import Host, settle

# What a real 0.33 writes (recorded), and its processes: a runner is killed, the next request finds it gone.
OLLAMA = """\
say() { echo "time=$(date +%FT%T.%NZ) level=$1 source=llama_server.go:$2" >&2; }
start='433 msg="starting llama-server" cmd="llama-server --model /b --port 1"'
gone='1196 msg="llama-server process no longer running" sys=9 string="signal: killed"'
say INFO "$start"
sleep 1000 &
sleep 1
kill -9 $!; wait $!
say WARN "$gone"; say WARN "$gone"
say INFO "$start"
sleep 1000 &
while true; do sleep 1; done
"""


def test_a_death_is_told_once_with_what_killed_it(host: Host) -> None:
    """Read from its log when its processes change; a daemon that takes over tells it no second time."""
    script = host.home / "ollama.sh"
    script.write_text(OLLAMA)
    host.write('[modes.A]\nollama = { gpu = 0, memory = "20%" }\n', only=("ollama",))
    text = host.config.read_text()
    command = f'"{sys.executable}", "-m", "arbiterd.sim.engines.ollama", "serve"'
    assert command in text
    host.config.write_text(text.replace(command, f'"/bin/bash", "{script}"'))
    host.start()
    told = host.wait_event("runner_died", "ollama")
    assert "signal: killed" in told["MESSAGE"]
    assert "llama-server process no longer running" in told["ARBITER_REASON"]
    host.kill()
    host.start()
    host.wait_event("adopted", "ollama")
    assert settle(lambda: len(host.events("runner_died")) == 1, 3)
