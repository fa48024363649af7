"""init, doctor and takeover on a host that had Ollama's unit and a vLLM in a home before."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator

import pytest

from arbiterd.survey.unit_line import expanded
from tests.support import wait_until
from tests.system.conftest import PYTHON, Box
from tests.system.existing import HOMES, MODEL, STORE, UNIT, VENV, Existing

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


@pytest.fixture
def host(box: Box) -> Iterator[Existing]:
    """Such a host, without a configuration of ours."""
    one = Existing(box)
    try:
        one.build()
        yield one
    finally:
        one.clear()


def _init_finds_what_is_there(host: Existing) -> None:
    """Unit, venv in a home, cached model, image, SavedModel, two cards; a file there is kept."""
    status, out, err = host.ctl("init")
    assert status == 0, out + err
    assert "found unit ollama.service (enabled, active)" in out
    assert f"found vLLM 0.33.0 in {VENV}, owner alice" in out
    assert f"found model {MODEL} in alice's Hugging Face cache" in out
    assert f"found Ollama models in {STORE}: 1" in out
    assert "found SavedModel resnet50 in /srv/models/resnet50" in out
    assert "found image tensorflow/serving:2.20.0-gpu (docker)" in out
    assert "mode A (shared)" in out
    assert "$ arbiterctl takeover ollama" in out
    text = host.read()
    table = tomllib.loads(text)
    assert table["backends"]["vllm"] == {
        "command": [f"{VENV}/bin/vllm", "serve", MODEL],
        "user": "alice",
    }
    assert table["backends"]["ollama"] == {
        "command": ["/usr/local/bin/ollama", "serve"],
        "user": "ollama",
        "env": {"OLLAMA_MODELS": STORE, "OLLAMA_ORIGINS": "https://a.example,*"},
        "models": ["qwen2.5:3b"],
    }
    assert set(table["modes"]) == {"A", "B"}
    assert "tensorflow/serving:2.20.0-gpu" in text
    assert host.ctl("check")[0] == 0
    status, _, err = host.ctl("init")
    assert status == 1
    assert "/etc/gpu-arbiter.toml is there already; --output - shows" in err
    status, printed, _ = host.ctl("init", "--output", "-")
    assert (status, printed) == (0, text)
    assert host.ctl("init", "--force")[0] == 0
    assert host.read("/etc/gpu-arbiter.toml.before-init") == text


VLLM_UNIT = """\
[Unit]
Description=vLLM
[Service]
User=alice
EnvironmentFile=/etc/vllm.env
Environment=HF_HOME=/srv/hf
ExecStart=/opt/vllm/bin/vllm serve org/overridden
LimitNOFILE=65536
[Install]
WantedBy=multi-user.target
"""
VLLM_DROP_IN = """\
[Service]
ExecStart=
ExecStart=/opt/vllm/bin/vllm serve ${MODEL} --port ${PORT} $EXTRA --api-key ${VLLM_API_KEY}
"""
VLLM_ENV = """\
MODEL=org/from-the-file
PORT=8007
EXTRA=--dtype half --served-model-name "a name" b
VLLM_API_KEY=hush
"""


def _a_unit_with_variables_is_carried_over(host: Existing) -> None:
    """Its variables are put in as this systemd itself does; no secret and no other model is written."""
    box = host.box
    unit = "/etc/systemd/system/vllm.service"
    box.put(unit, VLLM_UNIT)
    box.put(f"{unit}.d/override.conf", VLLM_DROP_IN)
    box.put("/etc/vllm.env", VLLM_ENV)
    box.sh("chmod 600 /etc/vllm.env; systemctl daemon-reload")
    try:
        status, text, err = host.ctl("init", "--output", "-")
    finally:
        box.sh(f"rm -rf {unit} {unit}.d /etc/vllm.env; systemctl daemon-reload")
    assert status == 0, err
    assert "hush" not in text + err
    assert tomllib.loads(text)["backends"]["vllm"] == {
        "command": [
            *("/opt/vllm/bin/vllm", "serve", "org/from-the-file", "--dtype", "half"),
            *("--served-model-name", "a name", "b"),
        ],
        "user": "alice",
        "env": {"HF_HOME": "/srv/hf"},
        "env_file": "/etc/vllm.env",
        "port": 8007,
    }
    assert "# vllm: from vllm.service" in text
    assert "not carried over: LimitNOFILE=65536" in text

    env = {"MODEL": "org/m", "ARGS": '--dtype half "a b"', "PORT": "1", "EMPTY": ""}
    words = [
        "${MODEL}",
        "$ARGS",
        "--port=${PORT}",
        "cost$$5",
        "a$MODEL",
        "$EMPTY",
        "${NOWHERE}",
        "$NOWHERE",
    ]
    show = "import sys, json; print(json.dumps(sys.argv[1:]))"
    setting = [f"--setenv={name}={value}" for name, value in env.items()]
    done = box.run(
        "systemd-run", "--quiet", "--wait", "--pipe", *setting, PYTHON, "-c", show, *words
    )
    assert json.loads(done.stdout) == list(expanded(["x", *words], env, complete=True).words[1:])


def test_every_finding_of_doctor_is_mended_by_its_command(host: Existing) -> None:
    """The commands are run as they are printed; then nothing stands in the way, and it all starts."""
    box = host.box
    assert host.ctl("init")[0] == 0
    _, _, pid = host.state()
    box.put(
        "/etc/systemd/system/squatter.service",
        f"[Service]\nExecStart={PYTHON} -m http.server --bind 127.0.0.1 8080\n",
    )
    box.sh("systemctl daemon-reload; systemctl start squatter")
    squatter = int(box.show("squatter", "MainPID"))
    wait_until(
        lambda: (
            "8080" in box.sh("cut -c1-99 /proc/net/tcp | grep -io ':1F90 ' && echo 8080 || true")
        ),
        10,
    )
    status, found = host.doctor()
    assert status == 1
    rows = {one["code"]: one for one in found["findings"]}
    what = rows["foreign_unit"]["what"]
    assert (
        f"ollama.service is installed (enabled, active, as ollama, on port 11434 as pid {pid})"
        in what
    )
    assert rows["foreign_unit"]["mend"] == "arbiterctl takeover ollama"
    assert (
        f"the daemon (root without capabilities) may not enter {HOMES}/alice"
        in rows["access"]["what"]
    )
    assert rows["daemon"]["mend"] == "systemctl enable --now gpu-arbiter.service"
    taken = rows["port_taken"]
    assert f"port 8080 is taken by pid {squatter} of squatter.service" in taken["what"]
    assert taken["mend"] == "systemctl disable --now squatter.service"
    for one in found["findings"]:
        if one["level"] == "blocks":
            box.sh(one["mend"])
    status, found = host.doctor()
    assert status == 0, found
    box.sh("rm /etc/systemd/system/squatter.service; systemctl daemon-reload")
    box.sh("systemctl start gpu-arbiter")
    box.wait_ready()
    for name, user in (("ollama", "ollama"), ("vllm", "alice")):
        assert box.sh(f"stat -c %U /proc/{box.main_pid(name)}") == user
    status, found = host.doctor()
    assert (status, found["ok"]) == (0, True), found


def test_takeover_and_undo_are_exact(host: Existing) -> None:
    """User, environment and models go into the entry, comments stay; the arbiter's Ollama serves the
    same port from the same folder; undo gives file and unit back to the byte.
    """
    box = host.box
    assert host.ctl("init")[0] == 0
    box.sh(f"chmod 711 {HOMES}/alice")
    # as written by hand, or by an init that did not carry the unit over
    before = re.sub(r', user = "ollama", env = \{[^}]*\}', "", host.read())
    assert before != host.read()
    box.put("/etc/gpu-arbiter.toml", before)
    status, out, _ = host.ctl("takeover", "ollama", "--dry-run")
    assert status == 0
    assert '+ollama     = { command = ["/usr/local/bin/ollama", "serve"]' in out
    assert host.state()[:2] == ("enabled", "active")
    assert host.read() == before
    status, out, err = host.ctl("takeover", "ollama", "--json")
    assert status == 0, err
    said = json.loads(out)
    assert {one["name"]: one["by"] for one in said["replaced"]}.keys() == {
        "PATH", "OLLAMA_HOST", "OLLAMA_KEEP_ALIVE",
    }  # fmt: skip
    assert said["commands"] == ["systemctl disable --now ollama.service"]
    assert host.state() == ("disabled", "inactive", "0")
    text = host.read()
    entry = tomllib.loads(text)["backends"]["ollama"]
    assert entry == {
        "command": ["/usr/local/bin/ollama", "serve"],
        "models": ["qwen2.5:3b"],
        "user": "ollama",
        "env": {"OLLAMA_MODELS": STORE, "OLLAMA_ORIGINS": "https://a.example,*"},
    }
    assert [line for line in before.splitlines() if line.startswith("#")] == [
        line for line in text.splitlines() if line.startswith("#")
    ]
    assert host.read("/etc/gpu-arbiter.toml.before-takeover") == before
    status, _, err = host.ctl("takeover", "ollama")
    assert status == 1
    assert "--undo gives it back" in err
    box.sh("systemctl start gpu-arbiter")
    box.wait_ready()
    pid = box.main_pid("ollama")
    environ = host.read(f"/proc/{pid}/environ").split("\0")
    assert f"OLLAMA_MODELS={STORE}" in environ
    assert "OLLAMA_HOST=127.0.0.1:21434" in environ
    assert "version" in host.answers()
    wait_until(lambda: "qwen2.5:3b" in host.answers("/api/tags"), 10, "the door to answer")
    written = box.sh(f"nsenter -t {pid} -m findmnt -n -o OPTIONS -T /usr/share/ollama")
    assert written.split(",")[0] == "rw"
    status, _, err = host.ctl("takeover", "ollama", "--undo")
    assert status == 1
    assert "port 11434 is the arbiter's own" in err
    assert host.read() == text
    box.sh("systemctl stop gpu-arbiter")
    status, out, err = host.ctl("takeover", "ollama", "--undo")
    assert status == 0, out + err
    assert err == ""
    assert host.read() == before
    assert host.state()[:2] == ("enabled", "active")
    assert "version" in host.answers()
    for gone in (
        "/etc/gpu-arbiter.toml.before-takeover",
        "/var/lib/gpu-arbiter/takeover-ollama.json",
    ):
        assert box.run("test", "-e", gone).returncode == 1
    assert host.ctl("takeover", "ollama", "--undo")[0] == 1


def _undo_keeps_what_was_edited_since(host: Existing) -> None:
    """Only the entry's keys go back."""
    box = host.box
    before = tomllib.loads(host.read())
    assert host.ctl("takeover", "ollama")[0] == 0
    box.sh('sed -i \'s/^mode = "A"/mode = "B" # tonight/\' /etc/gpu-arbiter.toml')
    status, out, err = host.ctl("takeover", "ollama", "--undo")
    assert status == 0, out + err
    assert tomllib.loads(host.read()) == {**before, "mode": "B"}
    assert "# tonight" in host.read()
    host.wait_serves()
    assert host.ctl("init", "--force")[0] == 0


def _a_takeover_that_was_killed_is_ended_by_undo(host: Existing) -> None:
    """The record is written first: whatever was not done is left as it is, by the same process."""
    box, record = host.box, "/var/lib/gpu-arbiter/takeover-ollama.json"
    before = host.read()
    assert host.ctl("takeover", "ollama")[0] == 0
    cut_off = json.dumps({**json.loads(host.read(record)), "done": False})
    assert host.ctl("takeover", "ollama", "--undo")[0] == 0
    host.wait_serves()
    state = host.state()
    box.put(record, cut_off)
    status, _, err = host.ctl("takeover", "ollama")
    assert status == 1
    assert "ollama.service was half taken over at" in err
    assert host.ctl("takeover", "ollama", "--undo")[0] == 0
    assert host.read() == before
    assert host.state() == state
    assert box.run("test", "-e", record).returncode == 1


def _a_unit_that_will_not_stop_leaves_everything(host: Existing) -> None:
    """Disabling worked, stopping did not: enabled again, still running, file put back."""
    box = host.box
    box.put(f"{UNIT}.d/stay.conf", "[Unit]\nRefuseManualStop=yes\n")
    box.sh("systemctl daemon-reload")
    before, state = host.read(), host.state()
    status, _, err = host.ctl("takeover", "ollama")
    assert status == 1
    assert "systemctl disable --now ollama.service failed" in err
    assert "the configuration and the unit are as before" in err
    assert host.read() == before
    assert host.state() == state
    assert box.run("test", "-e", "/var/lib/gpu-arbiter/takeover-ollama.json").returncode == 1
    box.sh(f"rm {UNIT}.d/stay.conf; systemctl daemon-reload")


def _what_cannot_work_is_refused(host: Existing) -> None:
    """A folder its user cannot enter, a command in a container, no such unit, no file: sentences."""
    box = host.box
    status, _, err = host.ctl("takeover", "ollama")
    assert status == 78
    assert "there is no such file" in err
    assert host.ctl("init")[0] == 0
    before, state = host.read(), host.state()

    def refused(*argv: str) -> str:
        status, out, err = host.ctl("takeover", "ollama", *argv)
        assert status in (1, 78), out
        assert "Traceback" not in err
        assert host.read() == before
        assert host.state() == state
        return err

    box.sh(f"chown -R root: {STORE}; chmod 700 {STORE}")
    err = refused()
    assert f"user ollama may not write {STORE}" in err or f"user ollama may not read {STORE}" in err
    box.sh(err.strip().rpartition("; ")[2])  # the command it prints mends it
    assert host.ctl("takeover", "ollama", "--dry-run")[0] == 0
    assert "there is no unit nowhere.service; --unit names another one" in refused(
        "--unit", "nowhere.service"
    )
    box.put(
        f"{UNIT}.d/docker.conf", "[Service]\nExecStart=\nExecStart=/usr/local/sbin/docker run x/y\n"
    )
    box.sh("systemctl daemon-reload")
    assert "docker cannot be the command" in refused()
    box.sh(f"rm {UNIT}.d/docker.conf; systemctl daemon-reload")
    status, _, err = host.ctl("takeover", "ollama", user="alice")
    assert status == 1
    assert "only root may do this: sudo arbiterctl takeover ollama" in err
    assert host.state() == state


def test_secrets_stay_in_an_environment_file_and_a_shut_home_stays_shut(host: Existing) -> None:
    """OLLAMA_HOST in it would move the engine from its port: a copy without it, for root alone.
    The daemon is root without capabilities: vLLM in a shut home waits and its reason is told, Ollama is
    served all the same.
    """
    box = host.box
    assert host.ctl("init")[0] == 0
    box.put("/etc/default/ollama", "TOKEN=hush\nOLLAMA_HOST=0.0.0.0:11434\n")
    box.put(f"{UNIT}.d/env.conf", "[Service]\nEnvironmentFile=-/etc/default/ollama\n")
    box.sh("systemctl daemon-reload")
    status, out, err = host.ctl("takeover", "ollama")
    assert status == 0, err
    assert "hush" not in out + host.read()
    env_file = tomllib.loads(host.read())["backends"]["ollama"]["env_file"]
    assert env_file == "/etc/gpu-arbiter.ollama.env"
    assert host.read(env_file) == "TOKEN=hush\n"
    assert box.sh(f"stat -c '%a %U' {env_file}") == "600 root"
    box.sh("systemctl start gpu-arbiter")
    wait_until(lambda: box.backends().get("ollama", {}).get("accepting"), 40, "Ollama to be ready")
    found = box.backends()["vllm"]
    assert found["phase"] == "waiting"
    assert f"the arbiter may not enter a folder above {VENV}/bin/vllm" in found["reason"]
    environ = host.read(f"/proc/{box.main_pid('ollama')}/environ").split("\0")
    assert "TOKEN=hush" in environ
    assert "OLLAMA_HOST=127.0.0.1:21434" in environ
    box.sh("systemctl stop gpu-arbiter")
    assert host.ctl("takeover", "ollama", "--undo")[0] == 0
    assert box.run("test", "-e", env_file).returncode == 1
    box.sh(f"rm {UNIT}.d/env.conf /etc/default/ollama; systemctl daemon-reload")


def _doctor_without_root_says_what_it_could_not_see(host: Existing) -> None:
    """And nothing wrong about it."""
    status, out, err = host.ctl("doctor", "--json", user="ollama")
    assert out, err
    found = json.loads(out)
    assert status == 1
    dark = "\n".join(found["not_looked_at"])
    assert "other users' processes: run it as root" in dark
    assert f"vllm: {VENV}/bin/vllm lies where only root may look" in dark
    assert not [one for one in found["findings"] if one["code"] == "command"]


def test_init_and_doctor_on_a_host_that_had_engines(host: Existing) -> None:
    """What they find; nothing is started and nothing of the owners' changed."""
    _init_finds_what_is_there(host)
    _doctor_without_root_says_what_it_could_not_see(host)
    _a_unit_with_variables_is_carried_over(host)


def test_a_takeover_that_is_refused_fails_or_is_killed_changes_nothing(host: Existing) -> None:
    """Each leaves unit and file to the next as it found them."""
    _what_cannot_work_is_refused(host)
    _a_unit_that_will_not_stop_leaves_everything(host)
    _undo_keeps_what_was_edited_since(host)
    _a_takeover_that_was_killed_is_ended_by_undo(host)
