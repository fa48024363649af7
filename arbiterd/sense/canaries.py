"""Canaries that are made of a model's own signature, or of the operator's file (TensorFlow)."""

from __future__ import annotations

import os
import stat

from arbiterd.engines import engine_of
from arbiterd.engines.tf_canary import MAX_BYTES, TRIAL_S, NoCanary
from arbiterd.files.trust import weak
from arbiterd.model.health import HttpReply
from arbiterd.model.settings import BackendSettings
from arbiterd.sense.http import Via, ask

_SAID = 120  # characters of an answer that are told


def tried(
    via: Via, backend: BackendSettings, url: str, model: str, bodies: dict[str, str]
) -> tuple[bool, str]:
    """Send a model's canary once: (whether it was answered 200 within TRIAL_S, why not). Its body is
    kept in ``bodies``.
    """
    trials = engine_of(backend.kind).trials
    if trials is None:
        return False, "this engine has none"
    try:
        body = bodies[model] = _body(via, backend, url, model)
    except NoCanary as none:
        return False, str(none)
    reply = ask(via, url, trials.probe(model, body, TRIAL_S))
    if reply.status == 200:
        return True, ""
    return False, reply.error or f"HTTP {reply.status}: {reply.body[:_SAID].strip()}"


def sent(
    via: Via, backend: BackendSettings, url: str, model: str, bodies: dict[str, str]
) -> HttpReply | None:
    """A kept canary's answer; None when its body is gone (a restarted daemon) and cannot be made."""
    engine = engine_of(backend.kind)
    if engine.trials is None:
        return None
    try:
        body = bodies.get(model) or _body(via, backend, url, model)
    except NoCanary:
        return None
    bodies[model] = body
    return ask(via, url, engine.trials.probe(model, body, engine.canary_timeout_s))


def _may_be_sent(path: str, found: os.stat_result) -> bool:
    """We read it as root and send it to an engine: where another user could put a link to a file of
    root's, only what everybody may read is sent.
    """
    return stat.S_ISREG(found.st_mode) and bool(
        os.geteuid() != 0 or found.st_mode & stat.S_IROTH or not weak(path)
    )


def _body(via: Via, backend: BackendSettings, url: str, model: str) -> str:
    trials = engine_of(backend.kind).trials
    if trials is None:
        raise NoCanary
    path = trials.file(backend, model)
    if not path:
        return trials.body(ask(via, url, trials.signature(model)))
    try:
        with open(
            path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
        ) as file:
            if not _may_be_sent(path, os.fstat(file.fileno())):
                msg = (
                    f"{path} is no file that every user may read, and others can change what it is"
                )
                raise NoCanary(msg)
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            msg = f"{path} is larger than 1 MiB"
            raise NoCanary(msg)
        return raw.decode()
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}"
        raise NoCanary(msg) from None
    except UnicodeDecodeError:
        msg = f"{path} is not UTF-8"
        raise NoCanary(msg) from None
