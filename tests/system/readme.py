"""A host as the README has it: its own fifteen lines, its own commands, programs where it says they are.

Nothing of the text is changed. What the box forces is put around it: stand-ins under the engines' names
and paths, a simulated pair of GPUs, a model folder, and ports that nobody else has.
"""

from __future__ import annotations

import json
import re

from tests.support import wait_until
from tests.system.conftest import PACKAGES, PYTHON, ROOT, Box

SIM = "GPU_SIM_STATE=/sim/gpu GPU_SIM_LIB=/sim/lib LD_LIBRARY_PATH=/sim/lib"
NAMES = ("tensorflow", "vllm", "ollama")
MODEL = "Qwen/Qwen2.5-3B-Instruct"
WRAPPER = """\
#!/bin/sh
export GPU_SIM_STATE=/sim/gpu GPU_SIM_LIB=/sim/lib GPU_SIM_FAULTS=/sim/{name}.json
# the stand-in's gRPC side needs packages that an installed gpu-arbiter does not
export PYTHONPATH={packages}
exec {python} -m arbiterd.sim.engines.{name} "$@"
"""
PROGRAMS = {
    "tensorflow": "/usr/local/bin/tensorflow_model_server",
    "vllm": "/opt/vllm/bin/vllm",
    "ollama": "/usr/local/bin/ollama",
}
PREDICT = """
import numpy
from ovmsclient import make_grpc_client
client = make_grpc_client("127.0.0.1:8500")
print(client.predict({"x": numpy.array([1.5], "float32")}, "resnet50", model_version=1))
"""


def lines() -> str:
    """The configuration in the README, as it is printed there."""
    found = re.search(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def commands(title: str) -> list[str]:
    """The indented commands of a section, without their comments."""
    text = (ROOT / "README.md").read_text()
    section = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return [
        line.split(" # ")[0].strip() for line in section.splitlines() if line.startswith("    ")
    ]


class ReadmeHost:
    """The box with the README's host in it."""

    def __init__(self, box: Box) -> None:
        self.box = box

    def build(self) -> None:
        """The programs, the model; a configuration as a new user writes it."""
        box = self.box
        for name, path in PROGRAMS.items():
            box.put(path, WRAPPER.format(name=name, python=PYTHON, packages=PACKAGES))
            box.sh(f"chmod 755 {path}")
        box.put("/srv/models/resnet50/1/saved_model.pb", "graph")
        box.put("/etc/gpu-arbiter.toml", lines())

    def clear(self) -> None:
        """Nothing of it is left for the other tests."""
        box = self.box
        box.run("systemctl", "disable", "--now", "gpu-arbiter.service")
        box.run("systemctl", "stop", "gpu-arbiter.slice")
        paths = " ".join(PROGRAMS.values())
        box.sh(f"rm -rf {paths} /srv/models /var/lib/gpu-engines/.[a-z]* /etc/gpu-arbiter.toml")

    def wait_ready(self, mode: str = "A") -> None:
        """All three accept in this mode."""

        def there() -> bool:
            found = self.box.status()
            accepting = {one["name"]: one["accepting"] for one in found["backends"]}
            whole = found.get("mode") == mode and found.get("switch") is None
            return whole and accepting == dict.fromkeys(NAMES, True)

        try:
            wait_until(there, 60, f"mode {mode} with all three engines")
        except AssertionError as error:
            msg = f"{error}\n{self.box.journal_text()[-4000:]}"
            raise AssertionError(msg) from None

    def ctl(self, *argv: str, user: str = "") -> tuple[int, str]:
        """arbiterctl as somebody types it: (exit status, everything printed)."""
        who = f"runuser -u {user} -- " if user else ""
        line = " ".join(argv)
        done = self.box.run("sh", "-c", f"{who}env {SIM} arbiterctl {line} 2>&1")
        return done.returncode, done.stdout

    def ask(self, port: int, path: str, body: object = None) -> tuple[int, str]:
        """One request at a public port: (status, body)."""
        url = f"http://127.0.0.1:{port}{path}"
        given = (
            [] if body is None else ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
        )
        done = self.box.run("curl", "-sS", "-m", "30", "-w", "\n%{http_code}", *given, url)
        assert done.returncode == 0, done.stderr
        text, _, status = done.stdout.rpartition("\n")
        return int(status), text

    def leaves(self, path: str) -> set[str]:
        """What `make install` has put below this folder, and what is left of it."""
        found = self.box.sh(
            f"find {path} -xdev -name '*gpu-arbiter*' -o -xdev -name 'arbiter*' || true"
        )
        return set(found.split())
