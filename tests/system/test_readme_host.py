"""The README's setup on a newly installed host: its fifteen lines, its commands, every door, the end."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.system.conftest import PACKAGES, PYTHON, ROOT, Box
from tests.system.readme import MODEL, NAMES, PREDICT, ReadmeHost, commands, lines

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]
OLLAMA = {"model": "qwen2.5:3b", "prompt": "x", "stream": False, "options": {"num_predict": 2}}
COMPLETE = {"model": MODEL, "prompt": "x", "max_tokens": 2}
UNITS = "systemctl list-units --all --no-legend 'gpu-arbiter*' | grep -v sim.conf || true"


@pytest.fixture
def host(box: Box) -> Iterator[ReadmeHost]:
    """Installed, configured, not started."""
    one = ReadmeHost(box)
    try:
        one.build()
        yield one
    finally:
        one.clear()


def _serves(host: ReadmeHost) -> None:
    """Every public port answers its own kind of request."""
    box = host.box
    assert host.ask(8501, "/v1/models/resnet50:predict", {"instances": [[1]]})[0] == 200
    grpc = box.run("env", f"PYTHONPATH={PACKAGES}", PYTHON, "-c", PREDICT)
    assert "1.5" in grpc.stdout, grpc.stdout + grpc.stderr
    assert host.ask(8000, "/v1/completions", COMPLETE)[0] == 200
    assert host.ask(11434, "/api/generate", OLLAMA)[0] == 200
    for model in (MODEL, "qwen2.5:3b"):
        status, said = host.ask(8080, "/v1/completions", {**COMPLETE, "model": model})
        assert status == 200, said
    status, said = host.ask(9480, f"/v1/route?model={MODEL}")
    assert (status, '"vllm"' in said) == (200, True)


def _units(host: ReadmeHost) -> dict[str, int]:
    return {name: host.box.main_pid(name) for name in NAMES}


def test_the_readmes_lines_from_install_to_uninstall(host: ReadmeHost) -> None:
    """make install, the file, systemctl enable --now; all doors in mode A, in B, in A again, after a
    reload, after a reboot; make uninstall leaves configuration and state, and nothing else.
    """
    box = host.box
    assert len(lines().split("\n\n")) == 4, "the fifteen lines are not what they were"
    assert commands("Install")[-1] == "sudo systemctl enable --now gpu-arbiter"
    status, said = host.ctl("check")
    assert (status, said.splitlines()[-1]) == (0, "/etc/gpu-arbiter.toml: good"), said
    assert host.ctl("plan")[0] == 0
    box.sh("systemctl enable --now gpu-arbiter")
    host.wait_ready()
    _serves(host)
    for name in NAMES:
        assert box.sh(f"stat -c %U /proc/{box.main_pid(name)}") == "gpu-engines"

    for mode in ("B", "A"):
        status, said = host.ctl("mode", mode)
        assert status == 0, said
        assert f"mode {mode} is in force" in said
        host.wait_ready(mode)
        _serves(host)
    before = _units(host)
    box.sh("systemctl reload gpu-arbiter && systemctl reload gpu-arbiter-gateway")
    host.wait_ready()
    _serves(host)
    assert _units(host) == before
    assert host.ctl("incidents")[1].strip() in ("", "no incidents"), (
        "a planned switch is no incident"
    )

    done = box._call("reboot", timeout_s=180)
    assert done.returncode == 0, done.stdout + done.stderr
    host.wait_ready()
    _serves(host)

    versions, kept = box.tree / "opt/gpu-arbiter/versions", box.tree.parent / "kept"
    subprocess.run(["cp", "-al", str(versions), str(kept)], check=True)
    try:
        said = box.sh(f"make -C {ROOT} --no-print-directory uninstall")
        assert "/var/lib/gpu-engines" in said
        assert box.sh(UNITS) == ""
        assert host.leaves("/etc /opt /run /usr/local /usr/lib/systemd /var/lib") == {
            "/etc/gpu-arbiter.toml",
            "/etc/systemd/system/gpu-arbiter.service.d",  # the box's own
            "/opt/gpu-arbiter",  # a mount of the box, empty
            "/var/lib/gpu-arbiter",
        }
        assert box.sh("ls -A /opt/gpu-arbiter") == ""
        assert box.sh("cat /etc/gpu-arbiter.toml") == lines().strip()
    finally:
        subprocess.run(["cp", "-al", str(kept), str(versions)], check=True)
        shutil.rmtree(kept)
        said = box.install()
    assert "kept your /etc/gpu-arbiter.toml" in said


def test_nothing_surprises_a_new_user(host: ReadmeHost) -> None:
    """As root and as an operator: every command answers, nothing is a false alarm, and what the daemon
    reads back may be written by nobody else. ~ is /var/lib/gpu-engines for the three, theirs to write.
    """
    box = host.box
    box.sh("id opal >/dev/null 2>&1 || useradd -m -G gpu-arbiter opal")
    box.sh("systemctl start gpu-arbiter")
    host.wait_ready()
    for who in ("", "opal"):
        for command in ("check", "status", "plan", "plan --mode B", "doctor", "incidents", "caps"):
            status, said = host.ctl(command, user=who)
            assert status == 0, (who, command, said)
            for word in ("Traceback", "Errno", "is taken"):
                assert word not in said, (who, command, said)
        for about in (*NAMES, "gpu0"):
            assert host.ctl("why", about, user=who)[0] == 0
        for command in ("drain vllm", "resume vllm"):
            status, said = host.ctl(command, user=who)
            assert status == 0, (who, command, said)
    status, said = host.ctl("mode", "B", user="opal")
    assert status == 1
    assert "run: sudo arbiterctl mode B" in said
    for name in NAMES:
        enter = f"nsenter -t {box.main_pid(name)} -m runuser -u gpu-engines --"
        box.sh(f"{enter} sh -c 'mkdir -p ~/.cache/{name} && touch ~/.cache/{name}/x'")
    loose = box.sh("find /run/gpu-arbiter /var/lib/gpu-arbiter -perm /022 ! -type s ! -type l")
    assert loose == ""
    host.wait_ready()
    _serves(host)


def test_engines_of_other_users_read_what_is_theirs(host: ReadmeHost) -> None:
    """TensorFlow as somebody else, its model and files readable for it; Ollama's folder is where the
    file names it, made by the command that doctor prints, also below /usr; the daemon's umask decides
    nothing.
    """
    box = host.box
    box.sh("id tf >/dev/null 2>&1 || useradd -m tf; rm -rf /srv/store /usr/share/ollama")
    drop_in = "/run/systemd/system/gpu-arbiter.service.d/umask.conf"
    below_usr = "/usr/share/ollama/models"
    box.sh("install -d -o gpu-engines -g gpu-engines /usr/share/ollama")
    try:
        _with_store(host, "/srv/store")
        status, said = host.ctl("doctor")
        assert status == 1
        assert "user gpu-engines may not make it in /srv" in said
        line = next(row for row in said.splitlines() if "install -d" in row)
        box.sh(line.strip().removeprefix("$ "))
        assert box.sh("stat -c '%U %a' /srv/store") == "gpu-engines 750"
        status, said = host.ctl("doctor")
        assert status == 0, said
        for umask, store in (("0077", "/srv/store"), ("0007", below_usr)):
            _with_store(host, store)
            box.put(drop_in, f"[Service]\nUMask={umask}\n")
            box.sh("systemctl daemon-reload; systemctl start gpu-arbiter")
            host.wait_ready()
            _serves(host)
            assert box.sh(f"stat -c %U /proc/{box.main_pid('tensorflow')}") == "tf"
            pid = box.main_pid("ollama")
            environ = box.run("cat", f"/proc/{pid}/environ").stdout.split("\0")
            assert "HOME=/var/lib/gpu-engines" in environ
            assert f"OLLAMA_MODELS={store}" in environ
            box.sh(f"nsenter -t {pid} -m runuser -u gpu-engines -- mkdir -p {store}/x")
            box.sh("systemctl stop gpu-arbiter")
    finally:
        box.sh(
            f"systemctl stop gpu-arbiter; rm -rf {drop_in} /srv/store /usr/share/ollama;"
            " systemctl daemon-reload"
        )


def _with_store(host: ReadmeHost, store: str) -> None:
    text = lines().replace("tensorflow = { command", 'tensorflow = { user = "tf", command', 1)
    env = f'ollama     = {{ env = {{ OLLAMA_MODELS = "{store}" }}, models'
    host.box.put("/etc/gpu-arbiter.toml", text.replace("ollama     = { models", env, 1))
