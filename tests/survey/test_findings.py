"""Findings: what, why, and a command that mends it. Tables."""

from __future__ import annotations

import pytest

from arbiterd.errors import Problem
from arbiterd.model.devices import GpuProcess, ProcessRef
from arbiterd.model.reading import Known
from arbiterd.quantities import GIB, MIB
from arbiterd.survey.checkup import Checkup, Holder, Space
from arbiterd.survey.containers import ports_of
from arbiterd.survey.diagnosis import of_host, of_problems
from arbiterd.survey.facts import (
    Container,
    Listener,
    Survey,
    UnitFacts,
    UserUnit,
    engine_of_unit,
)
from arbiterd.survey.findings import findings

OLLAMA = UnitFacts(
    "ollama.service",
    active="active",
    enabled="enabled",
    user="ollama",
    command=("/b/ollama", "serve"),
)
EXCLUDE = (
    "printf '%s\\n' '$nrconf{override_rc}{qr(^gpu-arbiter)} = 0;' > "
    "/etc/needrestart/conf.d/gpu-arbiter.conf"
)
DAEMON = UnitFacts("gpu-arbiter.service", active="active", enabled="enabled")


def _mends(seen: Survey) -> dict[str, str]:
    return {one.what: one.mend for one in findings(seen) if one.level == "blocks"}


@pytest.mark.parametrize(
    ("nvml", "mend"),
    [
        ("NVML says: NVML Shared Library Not Found", "apt-get install nvidia-driver"),
        ("NVML says: Driver/library version mismatch", "systemctl reboot"),
        ("NVML says: Driver Not Loaded", "modprobe nvidia"),
        ("NVML says: Insufficient Permissions", "ls -l /dev/nvidiactl /dev/nvidia0"),
        ("hung for 5.1 s", "journalctl -k -g Xid -n 20"),
        ("NVML does not answer", "journalctl -k -g Xid -n 20"),
        ("NVML says: something new", "nvidia-smi"),
    ],
)
def test_each_way_nvml_fails_has_its_command(nvml: str, mend: str) -> None:
    """The driver's own words, then what to do."""
    (found,) = findings(Survey(nvml=nvml))
    assert (found.code, found.level, found.what, found.mend) == ("nvml", "blocks", nvml, mend)


def test_a_unit_and_its_port_are_one_finding() -> None:
    """Named by pid and unit; the takeover is the way."""
    seen = Survey(
        units=(OLLAMA,), listeners=(Listener(11434, 7, "ollama.service", "ollama", "ollama"),)
    )
    assert _mends(seen) == {
        "ollama.service is installed (enabled, active, as ollama, on port 11434 as pid 7)": (
            "arbiterctl takeover ollama"
        )
    }


@pytest.mark.parametrize(
    ("active", "enabled", "count"),
    [
        ("active", "disabled", 1),
        ("activating", "disabled", 1),
        ("inactive", "enabled", 1),
        ("failed", "enabled", 1),
        ("inactive", "disabled", 0),
        ("inactive", "masked", 0),
    ],
)
def test_a_unit_that_neither_runs_nor_will_is_in_nobodys_way(
    active: str, enabled: str, count: int
) -> None:
    """Running now, or at the next boot."""
    unit = UnitFacts("vllm.service", active=active, enabled=enabled, command=("/v/vllm", "serve"))
    assert (
        list(_mends(Survey(units=(unit,))).values())
        == ["systemctl disable --now vllm.service"] * count
    )


def test_a_differently_named_ollama_is_named_in_the_command() -> None:
    """Also one whose name a shell would read."""
    unit = UnitFacts(r"snap\x2dollama.service", active="active", command=("/b/ollama", "serve"))
    (mend,) = _mends(Survey(units=(unit,))).values()
    assert mend == r"arbiterctl takeover ollama --unit 'snap\x2dollama.service'"


@pytest.mark.parametrize(
    ("listener", "mend"),
    [
        (Listener(8000, 9, "vllm-old.service", "u", "c"), "systemctl disable --now vllm-old.service"),
        (Listener(8000, 9, "session-3.scope", "u", "c"), "kill 9"),
        (Listener(8000, 9, "", "u", "c"), "kill 9"),
        (
            Listener(8000, 9, "web.service", "bob", "c", of_user_manager=True),
            "systemctl --user -M bob@ disable --now web.service",
        ),
        (Listener(8000), "sudo ss -ltnp 'sport = :8000'"),
        (Listener(8080, 9, "docker.service", "root", "docker-proxy"), "docker update --restart=no web && docker stop web"),
    ],
)  # fmt: skip
def test_a_taken_port_is_freed_the_way_its_holder_runs(listener: Listener, mend: str) -> None:
    """Never by stopping Docker itself."""
    boxes = (Container("docker", "web", "nginx:1", (8080,)),)
    ((what, found),) = _mends(Survey(listeners=(listener,), containers=boxes)).items()
    assert found == mend
    assert f"port {listener.port} is taken by" in what
    if listener.pid:
        assert f"pid {listener.pid}" in what


def test_our_own_ports_are_no_finding() -> None:
    """The doors of a running arbiter."""
    seen = Survey(listeners=(Listener(8000, 9, "gpu-arbiter-gateway.service", ours=True),))
    assert findings(seen) == []


def test_an_engine_in_a_container_and_one_of_a_person() -> None:
    """Each is ended for good, by the one who runs it."""
    seen = Survey(
        containers=(
            Container("podman", "tfs", "docker.io/tensorflow/serving:2", (8501,), "tensorflow"),
        ),
        listeners=(Listener(8501, 9, "user@1.service", "u", "rootlessport"),),
        user_units=(UserUnit("ollama.service", "bob", linger=True),),
    )
    assert list(_mends(seen).values()) == [
        "podman stop tfs",
        "systemctl --user -M bob@ disable --now ollama.service",
    ]


@pytest.mark.parametrize(
    ("unit", "engine"),
    [
        (UnitFacts("x.service", command=("/usr/bin/docker", "run", "ollama/ollama")), "ollama"),
        (UnitFacts("x.service", command=("/v/bin/python", "-m", "vllm.entrypoints.openai.api_server")), "vllm"),
        (UnitFacts("llm.service", command=("/v/bin/vllm", "serve", "m")), "vllm"),
        (UnitFacts("x.service", command=("/usr/bin/tensorflow_model_server",)), "tensorflow"),
        (UnitFacts("my-ollama.service", command=("/usr/bin/sh", "-c", "x")), "ollama"),
        (UnitFacts("nginx.service", command=("/usr/sbin/nginx",)), None),
        (UnitFacts("gpu-arbiter-backend-ollama.service", command=("/b/ollama", "serve")), None),
    ],
)  # fmt: skip
def test_units_are_known_by_their_command_then_by_name(unit: UnitFacts, engine: str | None) -> None:
    """Ours are not foreign."""
    assert engine_of_unit(unit) == engine


def test_published_ports_of_both_clients() -> None:
    """Ranges, both families, unpublished ones."""
    assert ports_of("0.0.0.0:8500-8501->8500-8501/tcp, [::]:8500-8501->8500-8501/tcp, 9/tcp") == (
        8500,
        8501,
    )
    assert ports_of("") == ()


def _host(**facts: object) -> dict[str, tuple[str, str]]:
    checked = Checkup(daemon=facts.pop("daemon", DAEMON), **facts)  # type: ignore[arg-type]
    return {one.code: (one.level, one.mend) for one in of_host(checked, Survey(), None)}


def test_a_host_in_order_has_no_finding() -> None:
    """Nothing is said for its own sake."""
    spaces = (Space("/var/lib/gpu-arbiter", "state", 10 * GIB, "/"),)
    assert _host(persistence=((0, True),), spaces=spaces, needrestart=True) == {}


@pytest.mark.parametrize(
    ("facts", "code", "level", "mend"),
    [
        ({"haproxy": None}, "haproxy", "blocks", "apt-get install haproxy"),
        ({"haproxy": (2, 2, 9)}, "haproxy", "blocks", "apt-get install --only-upgrade haproxy"),
        ({"persistence": ((0, True), (1, False))}, "persistence", "advice", "nvidia-smi -pm 1"),
        (
            {"persistence": ((0, False),), "persistenced": True},
            *("persistence", "advice", "systemctl enable --now nvidia-persistenced"),
        ),
        (
            {"needrestart": True, "needrestart_knows": False},
            *("needrestart", "advice", EXCLUDE),
        ),
        ({"catalogue": False}, "catalogue", "advice", "journalctl --update-catalog"),
        (
            {"missing_names": ("group gpu-arbiter",)},
            *("no_user", "blocks", "systemd-sysusers /usr/local/lib/sysusers.d/gpu-arbiter.conf"),
        ),
        ({"daemon": UnitFacts("gpu-arbiter.service", load="not-found")}, "daemon", "blocks", "make install"),
        (
            {"daemon": UnitFacts("gpu-arbiter.service", active="inactive", enabled="disabled")},
            *("daemon", "advice", "systemctl enable --now gpu-arbiter.service"),
        ),
        (
            {"daemon": UnitFacts("gpu-arbiter.service", active="failed", enabled="enabled")},
            *("daemon", "blocks"),
            "journalctl -u gpu-arbiter.service -n 50; systemctl reset-failed gpu-arbiter.service",
        ),
        (
            {"spaces": (Space("/var/lib/gpu-arbiter", "state", 10 * MIB, "/var"),)},
            *("disk", "blocks", "du -xh --max-depth=3 /var | sort -h | tail -20"),
        ),
        (
            {"spaces": (Space("/srv/a b", "models", 1 * GIB, "/srv/a b"),)},
            *("disk", "advice", "du -xh --max-depth=3 '/srv/a b' | sort -h | tail -20"),
        ),
        ({"systemd": False}, "systemd", "note", ""),
    ],
)  # fmt: skip
def test_each_lack_of_the_host_has_its_command(
    facts: dict[str, object], code: str, level: str, mend: str
) -> None:
    """One finding, nothing else."""
    assert _host(**facts) == {code: (level, mend)}


def _holder(pid: int, used: int, unit: str = "", *, ghost: bool = False) -> Holder:
    ref = None if ghost else ProcessRef(pid, 1)
    return Holder(
        0, GpuProcess(pid, ref, Known(used, 0.0), "", unit, "bob", "python train.py"), used
    )


def test_strangers_on_the_card_count_together() -> None:
    """Under foreign.allow nobody is named; over it everybody, largest first, by pid, user and unit."""
    assert _host(holders=(_holder(1, 200 * MIB), _holder(2, 300 * MIB))) == {}
    holders = (
        _holder(1, 200 * MIB),
        _holder(2, 3 * GIB, "jupyter.service"),
        _holder(3, 100 * MIB, ghost=True),
        _holder(4, 100 * MIB, "ollama.service"),
    )
    found = of_host(Checkup(holders=holders, daemon=DAEMON), Survey(units=(OLLAMA,)), None)
    assert [one.mend for one in found] == [
        "systemctl disable --now jupyter.service",
        "kill 1",
        "systemctl reboot",
    ]
    assert found[0].what == (
        "GPU 0: pid 2 of jupyter.service (python train.py), user bob holds 3.00 GiB"
    )
    assert "strangers hold 3.39 GiB; foreign.allow is 512 MiB" in found[0].why


def test_problems_of_the_file_keep_their_line() -> None:
    """An error blocks, a warning is advice, a missing file is init's business."""
    problems = (
        Problem("/etc/x.toml", 3, "mode", "unknown mode 'Z'", "write A"),
        Problem("/etc/x.toml", 4, "backends.a", "never runs", "name it", "warning"),
        Problem("/etc/x.toml", 1, "(file)", "there is no such file", "write it"),
    )
    found = list(of_problems(problems))
    assert [(one.level, one.mend) for one in found] == [
        ("blocks", "sudoedit /etc/x.toml"),
        ("advice", "sudoedit /etc/x.toml"),
        ("blocks", "arbiterctl init"),
    ]
    assert found[0].what == "/etc/x.toml:3: mode: unknown mode 'Z'"
