"""Mode tables: who lives where, with how much, and which keys differ."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from arbiterd.config.backends import read
from arbiterd.config.parse import KeyPath, Report
from arbiterd.model.settings import BackendSettings, GpuRef, Kind, Mode, Share
from arbiterd.units import parse_size

_PERCENT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")
_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z-/]+")
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
        report.add((*at, "sharing"), f"{sharing!r} is not accepted", "write shared or partitioned")
    for backend, given in raw.items():
        if backend == "sharing":
            continue
        path = (*at, backend)
        if backend not in tables:
            report.nearest(path, backend, tuple(tables), "backend")
            continue
        entry = {"memory": given} if isinstance(given, str) else given
        if not isinstance(entry, Mapping):
            report.add(path, f"{given!r} is no share", 'write { gpu = 0, memory = "55%" }')
            continue
        kind = kinds.get(backend)
        if kind is None:
            continue
        shares[backend] = _share(backend, entry, path, report)
        over = {key: value for key, value in entry.items() if key not in ("gpu", "memory")}
        if "kind" in over:
            report.add((*path, "kind"), "a mode cannot change the kind", "make another backend")
        merged = {**tables[backend], **over}
        made = read(backend, kind, merged, path, report, frozenset(over), request_timeout_s)
        if made is not None:
            backends[backend] = made
    kept = sharing if sharing in ("shared", "partitioned") else None
    return Mode(name, shares, backends, kept)


def _share(backend: str, raw: Mapping[str, Any], at: KeyPath, report: Report) -> Share:
    gpus = _gpus(raw.get("gpu"), at, report)
    cpu = raw.get("gpu") == "cpu"
    memory = raw.get("memory")
    if cpu and memory is not None:
        report.add((*at, "memory"), "a backend on the CPU has no GPU memory", "take memory out")
        memory = None
    fraction, size = _memory(memory, (*at, "memory"), report)
    return Share(backend, gpus, cpu, fraction, size)


def _gpus(given: object, at: KeyPath, report: Report) -> tuple[GpuRef, ...]:
    if given is None or given == "cpu":
        return ()
    path = (*at, "gpu")
    many = given if isinstance(given, list) else [given]
    if not many:
        report.add(path, "an empty list names no GPU", f"write {_FORMS}")
    out: list[GpuRef] = []
    for one in many:
        ref = _gpu(one)
        if ref is None:
            hint = f"write gpu = {one}" if isinstance(one, str) and one.isdigit() else ""
            report.add(path, f"{one!r} names no GPU", hint or f"write {_FORMS}")
        elif ref in out:
            report.add(path, f"{one!r} is named twice", "name each GPU once")
        else:
            out.append(ref)
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
        report.add(path, f"{given!r} has no unit", right)
        return None, None
    match = _PERCENT.fullmatch(given)
    if match is not None:
        percent = float(match[1])
        if 0 < percent <= 100:
            return percent / 100, None
        report.add(path, f"{given!r} is no share of a GPU", "write 1% to 100%")
        return None, None
    try:
        size = parse_size(given)
    except ValueError as error:
        wrong, _, right = str(error).partition("; ")
        report.add(path, wrong.replace("no size", "neither percentage nor size"), right)
        return None, None
    if size == 0:
        report.add(path, "0 bytes hold no engine", "leave the backend out of the mode to stop it")
    return None, size


def check_mode(mode: Mode, report: Report) -> None:
    """What two shares of one mode say together, before any hardware is asked."""
    at = ("modes", mode.name)
    by_gpu: dict[GpuRef, list[Share]] = {}
    for share in mode.shares.values():
        if share.cpu:
            continue
        for ref in share.gpus or (GpuRef("index", ""),):
            by_gpu.setdefault(ref, []).append(share)
    for ref, shares in by_gpu.items():
        _check_gpu(ref, shares, at, report)
    if mode.sharing == "shared" and len(by_gpu) > 1:
        names = ", ".join(_label(ref) for ref in by_gpu)
        report.add((*at, "sharing"), f"asserts shared, but {names} are named", "name one GPU")
    if mode.sharing == "partitioned" and len(by_gpu) == 1 and len(next(iter(by_gpu.values()))) > 1:
        report.add(
            (*at, "sharing"),
            f"asserts partitioned, but every backend names one device ({_label(next(iter(by_gpu)))})",
            'take the line out, or write sharing = "shared"',
        )


def _label(ref: object) -> str:
    if isinstance(ref, GpuRef) and ref.value:
        return f"GPU {ref.value}"
    return "the only GPU"


def _check_gpu(ref: object, shares: list[Share], at: KeyPath, report: Report) -> None:
    if len(shares) < 2:
        return
    names = ", ".join(share.backend for share in shares)
    blamed = {problem.key for problem in report.problems}
    for share in shares:
        if ".".join((*at, share.backend, "memory")) in blamed:
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
