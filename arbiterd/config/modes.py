"""Mode tables: who lives where, with how much, and which keys differ."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from arbiterd.config.backends import read, read_any
from arbiterd.config.parse import KeyPath, Report
from arbiterd.engines.vllm_command import parallel, sized
from arbiterd.engines.vllm_rules import spoken
from arbiterd.errors import InvalidValue
from arbiterd.model.settings import BackendSettings, GpuRef, Kind, Mode, Share
from arbiterd.quantities import parse_size

_PERCENT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")
_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z-/]+")
_NUMBERS = re.compile(r"\s*[0-9]+(\s*,\s*[0-9]+)*\s*")
_FORMS = 'an index (0), "GPU-<uuid>", "MIG-<uuid>", a list of these, or "cpu"'


def read_mode(
    name: str,
    raw: Mapping[str, Any],
    kinds: Mapping[str, Kind],
    tables: Mapping[str, Mapping[str, Any]],
    report: Report,
    request_timeout_s: float,
) -> Mode:
    """One mode. Problems go to the report; the result is used only when there are none."""
    at = ("modes", name)
    shares: dict[str, Share] = {}
    backends: dict[str, BackendSettings] = {}
    sharing = raw.get("sharing")
    if sharing not in (None, "shared", "partitioned"):
        report.bad((*at, "sharing"), f"{sharing!r} is not accepted", "write shared or partitioned")
    for backend, given in raw.items():
        if backend == "sharing":
            continue
        path = (*at, backend)
        if backend not in tables:
            if not report.lost("backends"):
                report.nearest(path, backend, (*tables, "sharing"), "backend")
            continue
        entry = {"memory": given} if isinstance(given, str) else given
        if not isinstance(entry, Mapping):
            report.bad(path, f"{given!r} is no share", 'write { gpu = 0, memory = "55%" }')
            continue
        shares[backend] = _share(backend, entry, path, report)
        over = {key: value for key, value in entry.items() if key not in ("gpu", "memory")}
        if "kind" in over:
            report.add((*path, "kind"), "a mode cannot change the kind", "make another backend")
            del over["kind"]
        kind = kinds.get(backend)
        if kind is None:
            read_any(over, path, report)
            continue
        merged = {**tables[backend], **over}
        only = frozenset(over)
        backends[backend] = read(backend, kind, merged, path, report, only, request_timeout_s)
    kept = sharing if sharing in ("shared", "partitioned") else None
    return Mode(name, shares, backends, kept)


def _share(backend: str, raw: Mapping[str, Any], at: KeyPath, report: Report) -> Share:
    gpus = _gpus(raw.get("gpu"), at, report)
    cpu = raw.get("gpu") == "cpu"
    memory = raw.get("memory")
    if cpu and memory is not None:
        report.bad((*at, "memory"), "a backend on the CPU has no GPU memory", "take memory out")
        memory = None
    fraction, size = _memory(memory, (*at, "memory"), report)
    return Share(backend, gpus, cpu, fraction, size)


def _gpus(given: object, at: KeyPath, report: Report) -> tuple[GpuRef, ...]:
    if given is None or given == "cpu":
        return ()
    path = (*at, "gpu")
    many = given if isinstance(given, list) else [given]
    if not many:
        report.bad(path, "an empty list names no GPU", f"write {_FORMS}")
    out: list[GpuRef] = []
    bad = False
    for one in many:
        ref = _gpu(one)
        if ref is None:
            hint = ""
            if isinstance(one, str) and _NUMBERS.fullmatch(one):
                hint = f"write gpu = {one.strip() if one.strip().isdigit() else f'[{one.strip()}]'}"
            report.add(path, f"{one!r} names no GPU", hint or f"write {_FORMS}")
        elif ref in out:
            report.add(path, f"{one!r} is named twice", "name each GPU once")
        else:
            out.append(ref)
            continue
        bad = True
    if bad:
        report.unreadable.add(path)
    return tuple(out)


def _gpu(one: object) -> GpuRef | None:
    if isinstance(one, int) and not isinstance(one, bool) and one >= 0:
        return GpuRef("index", str(one))
    match = _UUID.fullmatch(one) if isinstance(one, str) else None
    if match is None:
        return None
    return GpuRef("uuid" if match[1] == "GPU" else "mig", match[0])


def _memory(given: object, path: KeyPath, report: Report) -> tuple[float | None, int | None]:
    """(fraction of capacity, bytes): one of them or neither."""
    if given is None:
        return None, None
    if isinstance(given, bool) or not isinstance(given, str):
        share = f'"{given:.0%}"' if isinstance(given, float) and 0 < given <= 1 else '"55%"'
        right = f'write {share} or a size like "12GiB"'
        report.bad(path, f"{given!r} has no unit", right)
        return None, None
    match = _PERCENT.fullmatch(given)
    if match is not None:
        percent = float(match[1])
        if 0 < percent <= 100:
            return percent / 100, None
        report.bad(path, f"{given!r} is no share of a GPU", "write 1% to 100%")
        return None, None
    try:
        size = parse_size(given)
    except InvalidValue as error:
        wrong = error.flaw.wrong.replace("no size", "neither percentage nor size")
        report.bad(path, wrong, error.flaw.right)
        return None, None
    if size == 0:
        report.bad(path, "0 bytes hold no engine", "leave the backend out of the mode to stop it")
    return None, size


def check_mode(mode: Mode, report: Report) -> None:
    """What two shares of one mode say together, before any hardware is asked."""
    at = ("modes", mode.name)
    by_gpu: dict[GpuRef, list[Share]] = {}
    told = [s for s in mode.shares.values() if not report.broken(*at, s.backend, "gpu")]
    for share in told:
        if share.cpu:
            continue
        for ref in share.gpus or (GpuRef("index", ""),):
            by_gpu.setdefault(ref, []).append(share)
    for ref, shares in by_gpu.items():
        _check_gpu(ref, shares, at, report)
    if mode.sharing == "shared" and len(by_gpu) > 1:
        names = ", ".join(_label(ref) for ref in by_gpu)
        report.add((*at, "sharing"), f"asserts shared, but {names} are named", "name one GPU")
    only = next(iter(by_gpu), None)
    sure = len(told) == len(mode.shares) and len(by_gpu) == 1
    if mode.sharing == "partitioned" and sure and only and len(by_gpu[only]) > 1:
        report.add(
            (*at, "sharing"),
            f"asserts partitioned, but every backend names one device ({_label(only)})",
            'take the line out, or write sharing = "shared"',
        )
    for share in told:
        backend = mode.backends.get(share.backend)
        if backend is not None and backend.kind is Kind.VLLM and not share.cpu:
            _check_parallel(backend, share, at, report)


def _check_parallel(backend: BackendSettings, share: Share, at: KeyPath, report: Report) -> None:
    """vLLM's own parallel sizes against the GPUs it gets."""
    path = (*at, backend.name, "gpu")
    if report.broken(*at, backend.name, "command"):
        return
    wanted = parallel(spoken(backend))
    here = max(1, len(share.gpus))
    if wanted is None or not sized(spoken(backend)) or wanted.gpus == here:
        return
    named = f"{here} GPU{'s' if here > 1 else ''}"
    if wanted.gpus > here:
        first = share.gpus[0] if share.gpus else GpuRef("index", "0")
        numbers = (
            range(int(first.value), int(first.value) + wanted.gpus) if first.kind == "index" else ()
        )
        right = f"write gpu = {list(numbers)}" if numbers else f"name {wanted.gpus} GPUs"
        right += ", or lower the sizes in command"
        report.add(path, f"the command asks for {wanted}, the mode names {named}", right)
    else:
        wrong = f"the command uses {wanted}, the mode names {named}: the others stay idle"
        report.add(path, wrong, "name fewer GPUs, or raise the sizes in command", "warning")


def _label(ref: object) -> str:
    if isinstance(ref, GpuRef) and ref.value:
        return f"GPU {ref.value}"
    return "the only GPU"


def _check_gpu(ref: object, shares: list[Share], at: KeyPath, report: Report) -> None:
    if len(shares) < 2:
        return
    names = ", ".join(share.backend for share in shares)
    for share in shares:
        if report.broken(*at, share.backend, "memory"):
            continue  # a value that cannot be read is not a missing one
        if share.fraction is None and share.size_bytes is None:
            report.add(
                (*at, share.backend),
                f"shares {_label(ref)} with others ({names}) but has no memory",
                'write memory = "55%" or a size',
            )
    total = sum(share.fraction or 0.0 for share in shares)
    if total >= 1.0:
        parts = " + ".join(f"{s.backend} {s.fraction * 100:g}%" for s in shares if s.fraction)
        report.add(
            (*at, shares[-1].backend, "memory"),
            f"{parts} = {total * 100:g}% of {_label(ref)} leaves no headroom",
            "caps and headroom (at least 4 %) must fit: lower one of them",
        )
