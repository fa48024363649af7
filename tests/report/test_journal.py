"""Journal entries, the catalogue, incidents on disk."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest

from arbiterd.model.events import ActionRecord, Event, EventName, Incident, Severity
from arbiterd.report import journal
from arbiterd.report.catalogue import CATALOGUE, catalog, message_id, table
from arbiterd.report.journal import Journal, encode, fields_of
from arbiterd.store.incidents import IncidentStore

ROOT = Path(__file__).resolve().parents[2]
EVENT = Event(
    EventName.READY, Severity.WARNING, "vllm: ready", incident="inc-1", backend="vllm", took_ms=12.6
)


def _decode(raw: bytes) -> dict[str, str]:
    """Read the native protocol, as journald does."""
    out: dict[str, str] = {}
    while raw:
        line, _, raw = raw.partition(b"\n")
        if b"=" in line:
            key, _, value = line.partition(b"=")
            out[key.decode()] = value.decode()
        else:
            size = int.from_bytes(raw[:8], "little")
            out[line.decode()] = raw[8 : 8 + size].decode()
            raw = raw[9 + size :]
    return out


def test_fields_that_do_not_apply_are_left_out() -> None:
    """And those that do have the contract's names."""
    found = fields_of(EVENT, "A")
    assert found == {
        "MESSAGE": "vllm: ready",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "gpu-arbiter",
        "MESSAGE_ID": message_id(EventName.READY),
        "ARBITER_EVENT": "ready",
        "ARBITER_INCIDENT": "inc-1",
        "ARBITER_BACKEND": "vllm",
        "ARBITER_MODE": "A",
        "ARBITER_TOOK_MS": "13",
    }


@pytest.mark.parametrize("text", ["plain", "two\nlines\n", "a=b\n=c", "ünïcode →", ""])
def test_any_text_survives_the_native_protocol(text: str) -> None:
    """A newline must not forge a field."""
    assert _decode(encode({"MESSAGE": text, "PRIORITY": "6"})) == {"MESSAGE": text, "PRIORITY": "6"}


def test_entries_reach_the_socket_and_long_ones_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A datagram, or a file descriptor for what is too long for one."""
    path = str(tmp_path / "journal")
    monkeypatch.setattr(journal, "SOCKET", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        server.settimeout(5)
        log = Journal("journal")
        log.write(EVENT, "A")
        assert _decode(server.recv(65536))["ARBITER_EVENT"] == "ready"
        long = Event(EventName.BUG, Severity.ERROR, "x" * 1_000_000)
        log.write(long, "A")
        raw, fds, _, _ = socket.recv_fds(server, 16, 1)
        assert raw == b""
        with open(fds[0], "rb") as file:
            file.seek(0)
            assert len(_decode(file.read())["MESSAGE"]) == 1_000_000
        log.close()


def test_a_journal_that_is_gone_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing never raises."""
    monkeypatch.setattr(journal, "SOCKET", str(tmp_path / "nobody"))
    log = Journal("journal")
    log.write(EVENT, "A")
    log.say(Severity.INFO, "hello")
    log.close()
    assert log.mode == "journal"


def test_json_lines_carry_the_journals_field_names(capsys: pytest.CaptureFixture[str]) -> None:
    """One object a line on stderr."""
    log = Journal("json")
    log.write(EVENT, "A")
    log.flush()
    found = json.loads(capsys.readouterr().err)
    assert found["MESSAGE"] == "vllm: ready"
    assert found["ARBITER_TOOK_MS"] == "13"
    assert found["timestamp"].endswith("Z")


def test_pretty_lines_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """Time, severity, sentence, backend; no colours off a terminal."""
    log = Journal("pretty")
    log.write(EVENT, "A")
    log.flush()
    said = capsys.readouterr().err
    assert "vllm: ready" in said
    assert "warning" in said
    assert "\x1b" not in said


def test_every_event_has_its_entry_and_its_own_id() -> None:
    """No event without an explanation."""
    assert set(CATALOGUE) == set(EventName)
    assert len({message_id(name) for name in EventName}) == len(EventName)
    assert all(entry.meaning and entry.todo for entry in CATALOGUE.values())


def test_ids_never_change() -> None:
    """Alerts are written against them."""
    assert message_id(EventName.READY) == "d4b0b8c83ccc54eaabd0864694791a4f"
    assert message_id(EventName.START) == "3b220bf86d5b56baa66e24b02d1b0704"


def test_the_installed_catalogue_and_the_docs_are_the_same_text() -> None:
    """units/catalog/gpu-arbiter.catalog and docs/incidents.md are generated from it."""
    assert (ROOT / "units" / "catalog" / "gpu-arbiter.catalog").read_text() == catalog()
    assert table() in (ROOT / "docs" / "incidents.md").read_text()


INCIDENT = Incident(
    id="inc-1",
    event=EventName.STUCK,
    severity=Severity.ERROR,
    opened_at=1.0,
    summary="s",
    backend="vllm",
    pids=(1, 2),
    evidence=(("holders", "x"),),
    actions=(ActionRecord("act-1", "stop", "vllm", "r", 1.0, 5.0, 10, 9, "done"),),
)


def test_incidents_survive_on_disk(tmp_path: Path) -> None:
    """Written by a thread, read back equal."""
    store = IncidentStore(tmp_path)
    assert store.load() == ()
    store.save((INCIDENT,))
    store.save((INCIDENT, INCIDENT))
    store.close()
    assert IncidentStore(tmp_path).load() == (INCIDENT, INCIDENT)


def test_a_full_disk_costs_history_only(tmp_path: Path) -> None:
    """A folder where the file should be: nothing is raised."""
    (tmp_path / ".incidents.json.new").mkdir()
    store = IncidentStore(tmp_path)
    store.save((INCIDENT,))
    store.close()
    assert threading.active_count() < 50
    assert IncidentStore(tmp_path).load() == ()
