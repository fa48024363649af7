"""Corrupt state never keeps the daemon from starting; a wrong configuration never gives a traceback."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import asdict
from pathlib import Path

import pytest

from arbiterd.config import load
from arbiterd.config.schema import KIND_TABLES, key_names, table_of
from arbiterd.errors import ConfigRefused, Problem
from arbiterd.model.devices import Device
from arbiterd.model.engine_options import Batching
from arbiterd.model.events import ActionRecord, EventName, Incident, Severity
from arbiterd.model.settings import ArbiterSettings, ForeignSettings, GatewaySettings
from arbiterd.report.api import common
from arbiterd.settings.history import ConfigFiles
from arbiterd.store.gpu_inventory import Inventory
from arbiterd.store.handoff import CarryStore
from arbiterd.store.incidents import IncidentStore
from arbiterd.store.learned_caps import LearnedStore

GPU = Device("GPU-1", 0, "card", "00000000:01:00.0", 24 << 30, 0)
ACTION = ActionRecord("a", "restart", "vllm", "why", 5.0, 1.0, 1, 1, "done")
INCIDENT = Incident("i-1", EventName.STUCK, Severity.ERROR, 1.0, "text", "vllm", "", None,
                    (1,), (("pid", "x"),), (ACTION,))  # fmt: skip
WRONG: list[object] = [
    None,
    True,
    -1,
    1.5,
    "x",
    "",
    [],
    {},
    [[]],
    {"a": 1},
    1e300,
    10**400,
    "\x00",
    [None],
    -1e300,
]
RAW = [b"", b"\x00" * 100, b"\xff\xfe", b"{", b"[" * 100_000, b'{"a":' * 5000 + b"1" + b"}" * 5000,
       b"NaN", b"[NaN]", b"[1e400]", b"null", b"5", b'"x"', b"[[]]", b"[{}]", b"{}", b"[null]",
       b"9" * 6000, b"[" + b"9" * 6000 + b"]", b"x" * (20 << 20)]  # fmt: skip


def _used(folder: Path) -> list[str]:
    """Read every store as the daemon does and use what comes; returns what is told."""
    inventory, incidents = Inventory(folder), IncidentStore(folder)
    learned, carry, files = LearnedStore(folder), CarryStore(folder), ConfigFiles(folder)
    inventory.learn([GPU])
    inventory.store.close()
    for one in incidents.load():
        json.dumps(common.incident(one))
        assert one.opened_at >= 0
    for cap in learned.load().values():
        common.iso(cap.at)
    carry.load()
    files.instead(folder / "c.toml", {})
    files.last_good(folder / "c.toml", {})
    return [
        *files.distrusted(),
        *inventory.store.problems,
        *incidents.problems,
        *learned.problems,
        *carry.problems,
    ]


@pytest.mark.parametrize("name", ["gpus.json", "incidents.json", "learned.json", "carry.json",
                                  "rolled-back.json", "last-good.toml"])  # fmt: skip
def test_no_content_of_a_state_file_stops_a_start(tmp_path: Path, name: str) -> None:
    """Binary, huge, NaN, deep, of another shape: told, and out of the way."""
    for number, raw in enumerate(RAW):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / name).write_bytes(raw)
        told = _used(folder)
        if told:
            assert (folder / name).with_suffix(".broken").exists(), "no next start meets it again"
            assert [one for one in told if name in one]


@pytest.mark.parametrize("name", ["gpus.json", "incidents.json"])
def test_a_field_of_the_wrong_type_stops_no_start(tmp_path: Path, name: str) -> None:
    """Each field with each type: what does not fit puts the file aside."""
    row = json.loads(json.dumps(asdict(GPU if name == "gpus.json" else INCIDENT)))
    for number, (key, value) in enumerate(itertools.product(row, WRONG)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / name).write_text(json.dumps([{**row, key: value}]))
        _used(folder)
    (tmp_path / name).write_text(json.dumps([row]))
    assert _used(tmp_path) == [], "what we write ourselves is read"


# -- the configuration -------------------------------------------------------------------------------
VALUES = ['"x"', '["vllm"]', "{ a = 1 }", "1", "-1", "1.5", "nan", "inf", "true", "1979-05-27", "07:32:00",
          "[[1]]", "[{a=1}]", '""', "[]", "{}", "9223372036854775807", '"\\u0000"', '"²"', "[true]",
          '"999999999999999999999999s"', '"1e400GiB"', '"' + "x" * 3000 + '"']  # fmt: skip
ENTRY = '[backends]\nvllm = { command = ["vllm", "serve", "m"] }\n[modes.A]\nvllm = { gpu = 0, memory = "50%" }\n'
TABLES = {
    "arbiter": table_of(ArbiterSettings),
    "gateway": table_of(GatewaySettings),
    "foreign": table_of(ForeignSettings),
}


def _texts() -> list[str]:
    """Every key with every type of TOML, in every table that has it."""
    out = []
    for (table, model), value in itertools.product(TABLES.items(), VALUES):
        out += [f'mode = "A"\n[{table}]\n{key} = {value}\n{ENTRY}' for key in key_names(model)]
    for (kind, keys), value in itertools.product(KIND_TABLES.items(), VALUES):
        for key in key_names(keys):
            own = "" if key == "kind" else f'kind = "{kind}"\n'
            own += "" if key == "command" else 'command = ["x", "serve", "m"]\n'
            mode = '[modes.A]\nb = { gpu = 0, memory = "50%" }\n'
            out.append(f'mode = "A"\n{mode}[backends.b]\n{own}{key} = {value}\n')
            share = f'[modes.A.b]\ngpu = 0\nmemory = "50%"\n{key} = {value}\n'
            out.append(f'mode = "A"\n[backends.b]\n{own}{share}')
    for value in VALUES:
        for key in (
            "mode",
            "arbiter",
            "gateway",
            "foreign",
            "backends",
            "modes",
            "failover",
            "degrade",
        ):
            out.append(f"{key} = {value}\n" + ('mode = "A"\n' if key != "mode" else ""))
        for key in ("gpu", "memory", "sharing"):
            out.append(
                f'mode = "A"\n[backends]\nvllm = {{ command = ["x"] }}\n[modes.A.vllm]\n{key} = {value}\n'
            )
        for key in ("model", "from", "to", "source"):
            pairs = {"model": '"m"', "from": '"vllm"', "to": '"vllm"', key: value}
            lines = "".join(f"{k} = {v}\n" for k, v in pairs.items())
            out.append(f'mode = "A"\n{ENTRY}[[failover]]\n{lines}')
        for key in key_names(table_of(Batching)):
            own = f'command = ["x"]\nmodels = {{ a = "/a" }}\nbatching = {{ {key} = {value} }}\n'
            out.append(
                f'mode = "A"\n[modes.A]\ntensorflow = {{ gpu = 0 }}\n[backends.tensorflow]\n{own}'
            )
        out.append(f'mode = "A"\n[backends]\nvllm = {value}\n[modes.A]\nvllm = {{ gpu = 0 }}')
        out.append(f'mode = "A"\n[backends]\nvllm = {{ command = ["x"] }}\n[modes]\nA = {value}')
    return out


def _load(path: Path, environ: dict[str, str]) -> None:
    found: tuple[Problem, ...] = ()
    try:
        load(path, environ)
    except ConfigRefused as refused:
        found = refused.problems
    assert all("\n" not in str(one) for one in found)


def test_no_value_of_any_key_gives_a_traceback(tmp_path: Path) -> None:
    """A seeded share of all of them; kind = ["vllm"] always."""
    texts = _texts()
    path = tmp_path / "c.toml"
    always = 'mode = "A"\n[backends.b]\nkind = ["vllm"]\n[modes.A]\nb = { gpu = 0 }\n'
    for text in [always, *random.Random(11).sample(texts, 300)]:
        path.write_text(text)
        _load(path, {})


TEXTS = [b"\xff\xfe", b"\x00" * 100, b'mode = "\xff"', b"\xef\xbb\xbfmode = 1", b"", b"[[[[",
         b"a=" + b"[" * 5000 + b"]" * 5000, b'mode="A"\nx=' + b"{a=" * 2000 + b"1" + b"}" * 2000,
         b"mode = " + b"9" * 5000, b"[a" + b".a" * 5000 + b"]", b'mode="A"\nmode="B"',
         b'mode="A"\n[backends]\n"a\\nb"={}\n[modes."A\\u0000"]\n', b"#" * (5 << 20)]  # fmt: skip
ODD = ["", "{", "[", "[[[", '{"a":1}', "nan", "null", "1e400", "\udcff", "x" * 9000, "²", "true", "[1]",
       "\x00", '"', "[" * 3000, "9" * 5000, '{"A":{"vllm":{"gpu":[]}}}']  # fmt: skip
NAMES = ["MODE", "ARBITER", "ARBITER__POLL", "ARBITER__LISTEN", "GATEWAY__HOSTS", "BACKENDS", "BACKENDS__VLLM",
         "BACKENDS__VLLM__PORT", "BACKENDS__VLLM__KIND", "BACKENDS__VLLM__COMMAND", "MODES", "MODES__A",
         "MODES__A__VLLM__GPU", "FAILOVER", "DEGRADE", "", "__", "____", "MODE__", "BACKENDS____X",
         "FAILOVER__0__MODEL", "X", "MODE__A__B", "ARBITER__POLL__X", "mode", "Arbiter__Poll", "\udcff"]  # fmt: skip


def test_no_text_gives_a_traceback(tmp_path: Path) -> None:
    """No UTF-8, no end of nesting, too large."""
    path = tmp_path / "c.toml"
    for raw in TEXTS:
        path.write_bytes(raw)
        with pytest.raises(ConfigRefused):
            load(path, {})


def test_no_variable_gives_a_traceback(tmp_path: Path) -> None:
    """Each of ours with each oddity; one that cannot be read at all is named."""
    path = tmp_path / "c.toml"
    path.write_text(f'mode = "A"\n{ENTRY}')
    pairs = list(itertools.product(NAMES, ODD))
    always = [("BACKENDS__VLLM__COMMAND", "[" * 3000), ("ARBITER", ""), ("ARBITER", "[" * 3000)]
    for name, value in [*always, *random.Random(11).sample(pairs, 120)]:
        _load(path, {f"GPU_ARBITER_{name}": value})
    with pytest.raises(ConfigRefused, match="GPU_ARBITER_BACKENDS"):
        load(path, {"GPU_ARBITER_BACKENDS": "["})
