"""Events to people: native journald entries, JSON lines on stderr, or pretty lines on a terminal.

The native protocol (one datagram of FIELD=value lines) is spoken directly: it is a dozen lines, and
the only library for it needs a C compiler and libsystemd's headers on every GPU host. structlog draws the
lines of a terminal; it is imported for one only, since it brings rich and pygments.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import socket
import struct
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal

from arbiterd.model.events import Event, EventName, Severity
from arbiterd.report.aside import CLOSE_S, Aside
from arbiterd.report.catalogue import message_id
from arbiterd.secrets.redact import Redactor

SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "gpu-arbiter"
PRIORITIES = {
    Severity.CRITICAL: 2,
    Severity.ERROR: 3,
    Severity.WARNING: 4,
    Severity.NOTICE: 5,
    Severity.INFO: 6,
}
LogMode = Literal["journal", "json", "pretty"]
Entry = tuple[dict[str, str], Severity]
_JOURNAL_S = 5.0  # the writer's thread alone waits for a journal that is busy


def resolve_mode(setting: Literal["auto", "journal", "json", "pretty"]) -> LogMode:
    """auto: journal when stderr is the journal, pretty on a terminal, else JSON."""
    if setting != "auto":
        return setting
    if _stderr_is_journal() and os.path.exists(SOCKET):
        return "journal"
    return "pretty" if sys.stderr.isatty() else "json"


def _stderr_is_journal() -> bool:
    """systemd tells device and inode of the stream it gave us (systemd.exec, JOURNAL_STREAM)."""
    stream = os.environ.get("JOURNAL_STREAM", "")
    with suppress(OSError):
        info = os.fstat(2)
        return stream == f"{info.st_dev}:{info.st_ino}"
    return False


def fields_of(event: Event, mode: str) -> dict[str, str]:
    """Journal fields of an event; those that do not apply are left out."""
    values: dict[str, object] = {
        "MESSAGE": event.message,
        "PRIORITY": PRIORITIES[event.severity],
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "MESSAGE_ID": message_id(event.name),
        "ARBITER_EVENT": event.name.value,
        "ARBITER_INCIDENT": event.incident,
        "ARBITER_ACTION": event.action,
        "ARBITER_BACKEND": event.backend,
        "ARBITER_GPU": event.gpu,
        "ARBITER_MODE": mode,
        "ARBITER_REASON": event.reason,
        "ARBITER_BYTES_EXPECTED": event.bytes_expected,
        "ARBITER_BYTES_FREED": event.bytes_freed,
        "ARBITER_TOOK_MS": None if event.took_ms is None else round(event.took_ms),
    }
    return {key: str(value) for key, value in values.items() if value not in ("", None)}


def encode(fields: Mapping[str, str]) -> bytes:
    """The native protocol: KEY=value, or KEY, length and value when the value has a newline."""
    out = bytearray()
    for key, value in fields.items():
        raw = value.encode()
        if b"\n" in raw:
            out += key.encode() + b"\n" + struct.pack("<Q", len(raw)) + raw + b"\n"
        else:
            out += key.encode() + b"=" + raw + b"\n"
    return bytes(out)


class _Stderr(io.TextIOBase):
    """File descriptor 2 without a lock: a thread that hangs in a write must not hold up the end of the
    process, which flushes sys.stderr.
    """

    def write(self, text: str) -> int:
        """All of it, however long that takes."""
        try:
            number = sys.stderr.fileno()
        except (OSError, ValueError, AttributeError):  # no file: a test's
            return sys.stderr.write(text)
        left = text.encode(errors="backslashreplace")
        while left:
            left = left[os.write(number, left) :]
        return len(text)


def _terminal() -> Callable[[Mapping[str, str], Severity], str]:
    """Draws one line for a terminal: time, severity, sentence, backend and incident."""
    from structlog.dev import ConsoleRenderer  # noqa: PLC0415 - see this module's docstring

    colours = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    render = ConsoleRenderer(colors=colours, pad_event_to=0, sort_keys=False)

    def draw(fields: Mapping[str, str], severity: Severity) -> str:
        shown = {
            key.removeprefix("ARBITER_").lower(): fields[key]
            for key in ("ARBITER_BACKEND", "ARBITER_INCIDENT")
            if key in fields
        }
        stamp = f"{datetime.now():%H:%M:%S}"  # noqa: DTZ005 - of the person at the terminal
        # ConsoleRenderer prints `level` first, padded and coloured.
        said = {"level": severity.value, **shown, "event": fields["MESSAGE"], "timestamp": stamp}
        return render(None, "info", said)

    return draw


def _lost(count: int) -> Entry:
    text = f"{count} log lines were lost: nobody read them, or the journal did not take them"
    return {"MESSAGE": text, "PRIORITY": "4", "SYSLOG_IDENTIFIER": IDENTIFIER}, Severity.WARNING


def catch_all(journal: Journal) -> None:
    """What libraries log and what ends a thread goes the same way: into the journal, without waiting."""
    logging.getLogger().handlers[:] = [JournalHandler(journal)]

    def ended(failed: threading.ExceptHookArgs) -> None:
        text = "".join(
            traceback.format_exception(failed.exc_type, failed.exc_value, failed.exc_traceback)
        )
        where = failed.thread.name if failed.thread is not None else "?"
        journal.write(Event(EventName.BUG, Severity.ERROR, f"thread {where} ended: {text}"), "")

    threading.excepthook = ended


class JournalHandler(logging.Handler):
    """What libraries log, as lines of the journal: Python's own way would write to stderr and wait."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(logging.WARNING)
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        """One line; a traceback goes with it."""
        bad = record.levelno >= logging.ERROR
        self._journal.say(Severity.ERROR if bad else Severity.WARNING, self.format(record))


class Journal:
    """Writes, without secrets; never raises, never blocks (aside.py). Safe from any thread."""

    def __init__(self, mode: LogMode, redactor: Redactor | None = None) -> None:
        self.mode = mode
        self._redactor = redactor or Redactor()
        self._aside: Aside[Entry] = Aside(self._write, _lost)
        self._socket: socket.socket | None = None
        self._err = _Stderr()
        self._draw = _terminal() if mode == "pretty" else None

    def write(self, event: Event, mode: str) -> None:
        """One event with all its fields."""
        self._put(fields_of(event, mode), event.severity)

    def say(self, severity: Severity, text: str) -> None:
        """A plain line of the daemon itself."""
        fields = {
            "MESSAGE": text,
            "PRIORITY": str(PRIORITIES[severity]),
            "SYSLOG_IDENTIFIER": IDENTIFIER,
        }
        self._put(fields, severity)

    def flush(self, timeout_s: float = CLOSE_S) -> bool:
        """Wait until what was said is written, for so long at most; whether it is."""
        return self._aside.flush(timeout_s)

    def close(self) -> None:
        """Write what is left, within moments, and give the socket back."""
        if self._aside.close() and self._socket is not None:
            self._socket.close()
            self._socket = None

    def _put(self, fields: dict[str, str], severity: Severity) -> None:
        fields = {key: self._redactor.text(value) for key, value in fields.items()}
        self._aside.put((fields, severity), sum(map(len, fields.values())))

    def _write(self, entry: Entry) -> None:
        """In the writer's thread.

        Raises:
            OSError, ValueError: it cannot be written.

        """
        fields, severity = entry
        if self.mode == "journal":
            self._send(encode(fields))
        elif self._draw is None:
            # JSON lines carry the journal's field names (contract, section 2)
            stamp = datetime.now(UTC).isoformat().replace("+00:00", "Z")
            line = {**fields, "timestamp": stamp}
            line["MESSAGE"] = line.pop("MESSAGE")  # the sentence last
            self._err.write(json.dumps(line) + "\n")
        else:
            self._err.write(self._draw(fields, severity) + "\n")

    def _send(self, datagram: bytes) -> None:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.settimeout(_JOURNAL_S)
        try:
            self._socket.sendto(datagram, SOCKET)
        except OSError as error:
            if error.errno != errno.EMSGSIZE:  # the protocol wants a file descriptor then
                raise
            self._send_file(datagram)

    def _send_file(self, datagram: bytes) -> None:
        """Too long for a datagram: an unlinked file of /dev/shm, as the protocol says."""
        with tempfile.TemporaryFile(dir="/dev/shm") as file:  # nosec B108 # it has no name
            file.write(datagram)
            file.flush()
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
                other.connect(SOCKET)
                socket.send_fds(other, [b""], [file.fileno()])
