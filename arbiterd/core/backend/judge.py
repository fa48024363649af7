"""Health: from probe results to 'may it take new work' and 'must it be restarted'.

Alive means progress. /health of a hung vLLM says 200 (vllm #39863, #46811), so: while requests
run, the engine's counters must move; when idle, a canary must come back.
"""

from __future__ import annotations

from dataclasses import replace

from arbiterd.core.backend.backend_axes import Vitals
from arbiterd.core.limits import (
    BAD_CANARIES,
    BAD_PROBES,
    CANARY_EVERY_S,
    CANARY_GRACE_S,
    GOOD_PROBES,
)
from arbiterd.core.records import later, updated
from arbiterd.core.traffic.evidence import Answers
from arbiterd.model.health import HealthObservation, Progress
from arbiterd.model.reading import Known

NOT_YET = "its door has not answered yet"


def fresh(now: float) -> Vitals:
    """Vitals of an engine that has just become ready: nothing held against it."""
    return Vitals(work_at=now, proof_at=now, canary_asked_at=now - CANARY_EVERY_S + CANARY_GRACE_S)


def unasked(vitals: Vitals) -> Vitals:
    """Without the canary that was due."""
    return updated(vitals, canary_due=False)


def must_answer(now: float, canary_seq: int) -> Vitals:
    """Of an engine that is to be proved by a canary newer than this one."""
    return replace(fresh(now), canary_due=True, canary_seq=canary_seq)


def excused(vitals: Vitals, seconds: float) -> Vitals:
    """As if so much time had not passed."""
    sick = ("sick_since", "unanswered_since", "door_since")
    return later(vitals, seconds, *sick, "work_at", "proof_at", "canary_asked_at")


def judge(
    old: Vitals,
    health: HealthObservation,
    progress: Progress | None,
    stuck_after_s: float,
    now: float,
) -> Vitals:
    """Fold the newest results into the vitals."""
    vitals = _count_alive(updated(old, canary_due=False), health)
    vitals = _count_door(vitals, health, now)
    vitals = _count_canary(vitals, health, now)
    vitals = _count_work(vitals, progress, stuck_after_s, now)
    sick = vitals.bad >= BAD_PROBES or vitals.canary_bad >= BAD_CANARIES or vitals.stuck
    if not sick:
        return _ask(updated(vitals, sick_since=None), progress, now)
    since = vitals.sick_since if vitals.sick_since is not None else min(now, _began(vitals, now))
    return _ask(updated(vitals, sick_since=since), progress, now)


def judge_by_door(
    old: Vitals,
    health: HealthObservation,
    seen: Answers | None,
    stuck_after_s: float,
    now: float,
    *,
    canary: bool,
) -> Vitals:
    """Of an engine whose own counters prove nothing: requests let in and no answer for
    ``stuck_after_s`` is a suspicion; a canary that then times out, twice, is the proof. Without a
    canary a slow model and a hung one look alike, so nothing is proved.
    """
    vitals = _count_alive(updated(old, canary_due=False), health)
    vitals = _count_door(vitals, health, now)
    vitals = _count_canary(vitals, health, now)
    proved = vitals.canary_seq != old.canary_seq and not vitals.canary_bad
    if seen is not None:
        vitals = _count_answers(vitals, seen, now, proved=proved)
    since = vitals.unanswered_since
    doubted = since is not None and now - since >= stuck_after_s
    waits = seen is not None and seen.in_flight > 0
    vitals = updated(vitals, suspect=doubted and not canary and waits)
    if (
        doubted
        and canary
        and now - vitals.canary_asked_at >= (1.0 if vitals.canary_bad else CANARY_EVERY_S)
    ):
        vitals = replace(vitals, canary_due=True, canary_asked_at=now)
    sick = vitals.bad >= BAD_PROBES or vitals.canary_bad >= BAD_CANARIES
    if not sick:
        return updated(vitals, sick_since=None)
    hung = since if since is not None and vitals.bad < BAD_PROBES else now
    return updated(vitals, sick_since=vitals.sick_since if vitals.sick_since is not None else hung)


def _count_answers(vitals: Vitals, seen: Answers, now: float, *, proved: bool) -> Vitals:
    """Since when requests that were let in have no answer. Nobody asking is no sign of anything."""
    if seen.answered != vitals.work or proved:
        why = vitals.why if vitals.bad else ""
        vitals = updated(
            vitals, work=float(seen.answered), let_in=seen.let_in, canary_bad=0, why=why
        )
        return updated(vitals, unanswered_since=now if seen.in_flight else None)
    if vitals.unanswered_since is None and (seen.in_flight or seen.let_in > vitals.let_in):
        return replace(vitals, unanswered_since=now)
    return vitals


def accepting(vitals: Vitals) -> bool:
    """Whether the evidence lets new work in."""
    return vitals.sick_since is None


def is_stuck(vitals: Vitals) -> bool:
    """Sick though its health URL answers: hung inside."""
    return vitals.sick_since is not None and vitals.bad < BAD_PROBES


def _began(vitals: Vitals, now: float) -> float:
    """When the trouble began: the last proof of life, if the engine hangs; else now."""
    return vitals.proof_at if vitals.stuck else now


def _count_alive(vitals: Vitals, health: HealthObservation) -> Vitals:
    alive = health.alive
    if not isinstance(alive, Known) or alive.value.seq <= vitals.seen_seq:
        return vitals
    verdict = alive.value.verdict
    if verdict.ok:
        good = vitals.good + 1
        bad = 0 if vitals.bad < BAD_PROBES or good >= GOOD_PROBES else vitals.bad
        why = vitals.why if vitals.stuck or vitals.canary_bad else ""
        return replace(
            vitals,
            seen_seq=alive.value.seq,
            good=good,
            bad=bad,
            why=vitals.why if bad else why,
            degraded=verdict.degraded,
        )
    why = f"health check failed {vitals.bad + 1} times: {verdict.detail}"
    return replace(vitals, seen_seq=alive.value.seq, good=0, bad=vitals.bad + 1, why=why)


def _count_door(vitals: Vitals, health: HealthObservation, now: float) -> Vitals:
    """A client's way to the engine. Never evidence against the engine itself: while that is silent,
    its door has nothing to say.
    """
    door = health.door
    if door is None:
        return vitals
    if not isinstance(door, Known):
        return vitals if vitals.door_seq else updated(vitals, door_why=NOT_YET)
    result = door.value
    if result.seq <= vitals.door_seq or (vitals.bad and not result.verdict.ok):
        return vitals
    if result.verdict.ok:
        seen = replace(vitals, door_seq=result.seq, door_bad=0, door_good=True)
        return replace(seen, door_since=None, door_why="")
    bad = vitals.door_bad + 1
    seen = replace(vitals, door_seq=result.seq, door_bad=bad)
    if vitals.door_good and bad < BAD_PROBES:
        return seen
    since = now if vitals.door_since is None else vitals.door_since
    text = f"it answers, but not through its door: {result.verdict.detail}"
    return replace(seen, door_since=since, door_why=text)


def _count_canary(vitals: Vitals, health: HealthObservation, now: float) -> Vitals:
    canary = health.canary
    if not isinstance(canary, Known) or canary.value.seq <= vitals.canary_seq:
        return vitals
    if canary.value.verdict.ok and not canary.value.verdict.proves:
        return replace(vitals, canary_seq=canary.value.seq)  # its counters are the evidence
    if canary.value.verdict.ok:
        why = vitals.why if vitals.bad else ""
        return replace(
            vitals,
            canary_seq=canary.value.seq,
            canary_bad=0,
            stuck=False,
            proof_at=now,
            work_at=now,
            why=why,
        )
    failed = vitals.canary_bad + 1
    why = f"accepts requests but a canary failed {failed} times: {canary.value.verdict.detail}"
    return replace(vitals, canary_seq=canary.value.seq, canary_bad=failed, why=why)


def _count_work(
    vitals: Vitals, progress: Progress | None, stuck_after_s: float, now: float
) -> Vitals:
    if progress is None:
        return vitals
    if progress.work != vitals.work:
        cleared = replace(vitals, work=progress.work, work_at=now, proof_at=now, canary_bad=0)
        return replace(cleared, stuck=False, why=vitals.why if vitals.bad else "")
    if progress.running + progress.waiting == 0:
        # Idle: the clock of standing still starts anew. To half a second, so that most ticks copy nothing.
        return vitals if now - vitals.work_at < 0.5 else replace(vitals, work_at=now)
    still = now - vitals.work_at
    if still < max(5.0, stuck_after_s / 3):
        return vitals
    outstanding = f"{progress.running} running and {progress.waiting} waiting requests"
    why = f"{outstanding}, and no counter moved for {still:.0f} s"
    return replace(vitals, stuck=True, why=why, proof_at=vitals.work_at)


def _ask(vitals: Vitals, progress: Progress | None, now: float) -> Vitals:
    """Order a canary when idle and due, or at once when the last one failed.

    A busy engine gets none: behind a full batch it would wait in the queue and prove nothing.
    """
    busy = progress is not None and progress.running + progress.waiting > 0
    if busy and not vitals.canary_bad:
        return vitals
    wait = 1.0 if vitals.canary_bad else CANARY_EVERY_S
    if now - max(vitals.canary_asked_at, vitals.proof_at if not vitals.canary_bad else 0) < wait:
        return vitals
    return replace(vitals, canary_due=True, canary_asked_at=now)
