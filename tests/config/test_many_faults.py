"""k independent faults in one file are k problems, each at its own line: none hidden, none invented."""

from __future__ import annotations

import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arbiterd.config import Loaded, check_devices, load
from arbiterd.config.lines import Lines
from arbiterd.errors import ConfigRefused, Problem
from arbiterd.model.devices import Device
from arbiterd.quantities import GIB, MIB

GOOD = """\
mode = "A"
[arbiter]
poll = "250ms"
headroom = "auto"
[gateway]
bind = "127.0.0.1"
request_timeout = "15min"
[backends.tensorflow]
command = ["tensorflow_model_server"]
models = { resnet50 = "/srv/models/resnet50" }
batching = { max_batch_size = 32 }
start_timeout = "5min"
[backends.vllm]
command = ["vllm", "serve", "Org/M"]
max_queue = 8
priority = 30
[backends.ollama]
models = ["qwen2.5:3b"]
keep_alive = "10m"
env = { OLLAMA_FLASH_ATTENTION = "1" }
context_length = 8192
[[failover]]
model = "Org/M"
from = "vllm"
to = "ollama"
source = "qwen2.5:3b"
[[degrade]]
from = "tensorflow"
advice = "llm-only"
to = ["vllm", "ollama"]
[modes.A]
tensorflow = { gpu = 0, memory = "20%" }
vllm = { gpu = 0, memory = "50%", drain_timeout = "30s" }
ollama = { gpu = 0, memory = "20%" }
[modes.B]
sharing = "partitioned"
tensorflow = { gpu = 0 }
vllm = { gpu = 1, memory = "75%" }
ollama = { gpu = 1, memory = "20%" }
"""
GPUS = [
    Device(f"GPU-{n}", n, "NVIDIA GeForce RTX 4090", f"0{n}", 24 * GIB, 482 * MIB) for n in (0, 1)
]


@dataclass(frozen=True)
class Fault:
    """``old`` becomes ``new``: one problem at ``key``, whose sentence holds ``says``."""

    old: str
    new: str
    key: str
    says: str


FAULTS = [
    Fault('mode = "A"\n', 'mode = "C"\n', "mode", "unknown mode 'C'"),
    Fault('poll = "250ms"', "poll = 250", "arbiter.poll", "has no unit"),
    Fault('headroom = "auto"', 'hedroom = "auto"', "arbiter.hedroom", "did you mean 'headroom'?"),
    Fault('bind = "127.0.0.1"', 'bind = "lan"', "gateway.bind", "is no IP address"),
    Fault('request_timeout = "15min"', 'request_timeout = "x"', "gateway.request_timeout", "is no duration"),
    Fault('resnet50 = "/srv', 'resnet50 = "srv', "backends.tensorflow.models.resnet50", "no absolute path"),
    Fault("max_batch_size", "max_bach_size", "backends.tensorflow.batching.max_bach_size", "did you mean 'max_batch_size'?"),
    Fault('start_timeout = "5min"', "start_timeout = 5", "backends.tensorflow.start_timeout", "has no unit"),
    Fault('"Org/M"]\nmax', '"Org/M", "--port", "1"]\nmax', "backends.vllm.command", "--port is set by the arbiter"),
    Fault("max_queue = 8", "max_queue = -1", "backends.vllm.max_queue", "is not accepted"),
    Fault("priority = 30", "priorty = 30", "backends.vllm.priorty", "did you mean 'priority'?"),
    Fault('["qwen2.5:3b"]\nkeep', '"qwen2.5:3b"\nkeep', "backends.ollama.models", "is no list of models"),
    Fault('keep_alive = "10m"', 'keep_alive = "soon"', "backends.ollama.keep_alive", "is no duration"),
    Fault('OLLAMA_FLASH_ATTENTION = "1"', 'OLLAMA_NUM_PARALLEL = "4"', "backends.ollama.env.OLLAMA_NUM_PARALLEL", "write parallel = 4"),
    Fault("context_length = 8192", "memory_growth = true", "backends.ollama.memory_growth", "is a key of tensorflow-serving backends"),
    Fault('to = "ollama"', 'to = "olama"', "failover.0.to", "did you mean 'ollama'?"),
    Fault('from = "tensorflow"', 'from = "tensorflw"', "degrade.0.from", "did you mean 'tensorflow'?"),
    Fault('advice = "llm-only"\n', "", "degrade.0.advice", "is missing"),
    Fault('memory = "50%"', "memory = 0.5", "modes.A.vllm.memory", 'write "50%"'),
    Fault('drain_timeout = "30s"', 'drain_timout = "30s"', "modes.A.vllm.drain_timout", "did you mean 'drain_timeout'?"),
    Fault("ollama = { gpu = 0, memory", "ollama = { gpu = 0, memroy", "modes.A.ollama.memroy", "did you mean 'memory'?"),
    Fault("tensorflow = { gpu = 0, ", "tensorflow = { gpu = 5, ", "modes.A.tensorflow.gpu", "there is no GPU 5"),
    Fault('sharing = "partitioned"', 'sharing = "dedicated"', "modes.B.sharing", "is not accepted"),
    Fault('vllm = { gpu = 1, memory = "75%" }', 'vlm = { gpu = 1, memory = "75%" }', "modes.B.vlm", "did you mean 'vllm'?"),
]  # fmt: skip


def _problems(path: Path, text: str) -> list[Problem]:
    """Everything that ``arbiterctl check`` says with two GPUs in the host."""
    path.write_text(text)
    try:
        loaded: object = load(path, {})
        problems: tuple[Problem, ...] = ()
    except ConfigRefused as refused:
        loaded, problems = refused.partial, refused.problems
    assert isinstance(loaded, Loaded)
    found = (*problems, *check_devices(loaded, GPUS))
    return [p for p in found if p.severity == "error"]


def _broken(faults: list[Fault]) -> str:
    text = GOOD
    for fault in faults:
        assert text.count(fault.old) == 1, fault
        text = text.replace(fault.old, fault.new)
    return text


def _line(text: str, fault: Fault) -> int | None:
    """Where it stands now; None for what is not there any more."""
    where = text.find(fault.new) if fault.new else -1
    return text.count("\n", 0, where) + 1 if where >= 0 else None


def test_the_file_without_faults_is_good(tmp_path: Path) -> None:
    """So that every problem below is one that was planted."""
    assert _problems(tmp_path / "f.toml", GOOD) == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.key)
def test_one_fault_is_one_problem(tmp_path: Path, fault: Fault) -> None:
    """At its line, with its sentence."""
    _judge(tmp_path, [fault])


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(st.sampled_from(FAULTS), unique=True, min_size=2, max_size=8))
def test_many_faults_are_as_many_problems(tmp_path: Path, faults: list[Fault]) -> None:
    """Whatever else is wrong, each is told; nothing is told that was not planted."""
    _judge(tmp_path, faults)


def test_all_of_them_at_once(tmp_path: Path) -> None:
    """Two dozen."""
    _judge(tmp_path, FAULTS)


def _judge(tmp_path: Path, faults: list[Fault]) -> None:
    text = _broken(faults)
    found = _problems(tmp_path / "f.toml", text)
    expected = {fault.key for fault in faults}
    if any(fault.key == "mode" for fault in faults):
        expected.discard("modes.A.tensorflow.gpu")  # a warning: nobody knows which mode binds
    assert sorted(p.key for p in found) == sorted(expected), [str(p) for p in found]
    for fault in faults:
        for problem in (p for p in found if p.key == fault.key):
            assert fault.says in f"{problem.wrong}; {problem.right}", str(problem)
            line = _line(text, fault)
            if line is not None and "\n" not in fault.new[:-1]:
                assert problem.line == line, str(problem)


ODD = 50_000


@pytest.mark.parametrize(
    "text",
    [
        "# a comment\n" * ODD,
        "# don't\n" * ODD,
        'x = """\n[' + " " * ODD + 'y\n"""\n',
        'x = """\n' + "a" * ODD + '\n"""\n',
        "x = {" + " " * ODD + "}\n",
        '["' + " " * ODD + '"]\n',
        "x = [" + "1," * ODD + "]\n",
    ],
    ids=["comments", "quotes", "bracket", "word", "spaces", "header", "list"],
)
def test_lines_are_found_by_reading_the_text_once(text: str) -> None:
    """A regular expression that begins anew at each character holds every thread up for minutes."""
    tomllib.loads(text)
    began = time.thread_time()
    Lines(text)
    assert time.thread_time() - began < 5.0


def test_keys_within_strings_and_comments_are_none() -> None:
    """What a text of several lines holds is no table and no key; what follows it stands in its own table."""
    text = '[a]\nx = """\n[b]\ny = 1\n"""\nz = 1 # w = 1\n"q.r" . s = \'"#\'\n[ "t] # u" . v ] # [x]\nk = 1\n'
    tomllib.loads(text)
    lines = Lines(text)
    keys = (("a", "x"), ("a", "z"), ("a", "q.r", "s"), ("t] # u", "v"), ("t] # u", "v", "k"))
    assert [lines.of(one) for one in keys] == [2, 6, 7, 8, 9]
    assert not any(lines.has(one) for one in (("b",), ("a", "y"), ("a", "w"), ("x",)))
