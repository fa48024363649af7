"""A host that had engines before the arbiter came: Ollama's packaged unit, vLLM in somebody's home."""

from __future__ import annotations

import json
from typing import Any

from tests.support import wait_until
from tests.system.conftest import PYTHON, Box

HOMES = "/home"
CTL = "/opt/gpu-arbiter/bin/arbiterctl"
SIM = "GPU_SIM_STATE=/sim/gpu GPU_SIM_LIB=/sim/lib"
MODEL = "Qwen/Qwen2.5-3B-Instruct"
VENV = f"{HOMES}/alice/vllm"
STORE = "/srv/ollama"
UNIT = "/etc/systemd/system/ollama.service"
# what Ollama's install.sh writes
UNIT_TEXT = """\
[Unit]
Description=Ollama Service
After=network-online.target

[Service]
ExecStart=/usr/local/bin/ollama serve
User=ollama
Group=ollama
Restart=always
RestartSec=3
Environment="PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

[Install]
WantedBy=default.target
"""
DROP_IN = f"""\
[Service]
Environment="OLLAMA_MODELS={STORE}"
Environment="OLLAMA_HOST=0.0.0.0:11434" "OLLAMA_KEEP_ALIVE=-1"
Environment="OLLAMA_ORIGINS=https://a.example,*"
"""
WRAPPER = f"""\
#!/bin/sh
export {SIM}
exec {PYTHON} -m arbiterd.sim.engines.NAME "$@"
"""
MANIFEST = {
    "schemaVersion": 2,
    "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "size": 486},
    "layers": [{"mediaType": "application/vnd.ollama.image.model", "size": 1929902912}],
}
DOCKER = """\
#!/bin/sh
case $1 in
images) printf 'tensorflow/serving:2.20.0-gpu\\nredis:8\\n' ;;
esac
"""


class Existing:
    """The box with all that in it, and no configuration of ours."""

    def __init__(self, box: Box) -> None:
        self.box = box

    def build(self) -> None:
        """As the owners of the host would have left it."""
        box = self.box
        box.sh(
            "id ollama >/dev/null 2>&1 || useradd -r -s /bin/false -U -m -d /usr/share/ollama ollama;"
            "install -d -o ollama -g ollama /usr/share/ollama;"
            "id alice >/dev/null 2>&1 || useradd -m -s /bin/sh alice; rm -f /etc/gpu-arbiter.*"
        )
        for name, path in (("ollama", "/usr/local/bin/ollama"), ("vllm", f"{VENV}/bin/vllm")):
            box.put(path, WRAPPER.replace("NAME", name))
            box.sh(f"chmod 755 {path}")
        box.put(UNIT, UNIT_TEXT)
        box.put(f"{UNIT}.d/override.conf", DROP_IN)
        tags = f"{STORE}/manifests/registry.ollama.ai/library/qwen2.5"
        box.put(f"{tags}/3b", json.dumps(MANIFEST))
        box.put(f"{VENV}/pyvenv.cfg", "home = /usr/bin\n")
        box.put(
            f"{VENV}/lib/python3.11/site-packages/vllm-0.33.0.dist-info/METADATA", "Name: vllm\n"
        )
        snapshot = (
            f"{HOMES}/alice/.cache/huggingface/hub/models--Qwen--Qwen2.5-3B-Instruct/snapshots/1"
        )
        box.put(f"{snapshot}/config.json", "{}")
        box.put(f"{snapshot}/model.safetensors", "weights")
        box.put("/srv/models/resnet50/1/saved_model.pb", "graph")
        box.put("/usr/local/sbin/docker", DOCKER)
        box.sh(
            f"chown -R ollama:ollama {STORE}; chmod 750 {STORE}; chown -R alice: {HOMES}/alice;"
            f" chmod 700 {HOMES}/alice; chmod 755 /usr/local/sbin/docker;"
            " systemctl daemon-reload; systemctl enable --now ollama"
        )
        self.wait_serves()

    def clear(self) -> None:
        """Nothing of it is left for the other tests."""
        self.box.run("systemctl", "stop", "gpu-arbiter.service", "gpu-arbiter.slice")
        self.box.run("systemctl", "disable", "--now", "ollama")
        self.box.sh(
            f"rm -rf {UNIT} {UNIT}.d {HOMES}/alice {STORE} /srv/models /usr/local/sbin/docker"
            " /usr/local/bin/ollama /etc/gpu-arbiter.* /var/lib/gpu-arbiter/takeover-ollama.json;"
            " systemctl daemon-reload; userdel -f ollama; userdel -f alice; rm -rf /usr/share/ollama"
        )

    def ctl(self, *argv: str, user: str = "") -> tuple[int, str, str]:
        """arbiterctl on the simulated GPU: (exit status, stdout, stderr)."""
        who = ("runuser", "-u", user, "--") if user else ()
        env = ("env", *SIM.split(), "LD_LIBRARY_PATH=/sim/lib")
        done = self.box.run(*who, *env, CTL, *argv)
        return done.returncode, done.stdout, done.stderr

    def doctor(self) -> tuple[int, dict[str, Any]]:
        """Its findings."""
        status, out, err = self.ctl("doctor", "--json")
        assert out, err
        return status, json.loads(out)

    def read(self, path: str = "/etc/gpu-arbiter.toml") -> str:
        """A file of the box, whole."""
        return self.box.run("cat", path).stdout

    def state(self) -> tuple[str, str, str]:
        """(enabled, active, main pid) of Ollama's unit."""
        out = self.box.run(
            "systemctl", "show", "ollama", "-p", "UnitFileState,ActiveState,MainPID"
        ).stdout
        found = dict(line.split("=", 1) for line in out.splitlines())
        return found["UnitFileState"], found["ActiveState"], found["MainPID"]

    def wait_serves(self) -> None:
        """Until the packaged Ollama answers on its port."""
        wait_until(self.answers, 20, "ollama.service to answer")

    def answers(self, path: str = "/api/version") -> str:
        """Body of a GET on 11434, "" for none."""
        return self.box.run(
            "curl", "-sS", "-m", "5", f"http://127.0.0.1:11434{path}"
        ).stdout.strip()
