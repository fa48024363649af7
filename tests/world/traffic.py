"""Requests of one backend as a flow: how many are wanted, how many are let in, what is served."""

from __future__ import annotations

from dataclasses import dataclass, field

from arbiterd.model.gateway import Admit, BackendWish, Traffic
from arbiterd.model.reading import Known, Reading

_OPEN = (Admit.UP, Admit.AWAY)


@dataclass(slots=True)
class Flow:
    """``offered``: requests that clients want in flight; ``service_s``: how long one takes.

    ``lost_s``: seconds of service that clients did not get: 1 - served / offered, integrated.
    ``refusing``: share of answers that are the engine's own refusals (TF's 429).
    """

    offered: float = 0.0
    service_s: float = 2.0
    in_flight: float = 0.0
    requests: float = 0.0
    good: float = 0.0
    refused: float = 0.0
    lost_s: float = 0.0
    wanted_s: float = 0.0
    refusing: float = 0.0
    limit: int = 0
    _shown: Traffic | None = field(default=None, repr=False)
    _key: tuple[int, ...] = ()

    def step(self, dt: float, wish: BackendWish | None, *, serving: bool, frozen: bool) -> None:
        """Move on by ``dt``. ``serving``: the engine takes and answers requests."""
        self.limit = 0 if wish is None else wish.max_in_flight
        let_in = wish is None or wish.admit in _OPEN
        room = self.offered if wish is None else min(self.offered, self.limit)
        target = room if serving and let_in else 0.0
        if frozen:
            self._count(dt, 0.0)
            return
        if not serving:
            self.in_flight = 0.0  # it died or hangs: what it had is lost
        elif target < self.in_flight:
            self.in_flight = max(
                target, self.in_flight - max(1.0, self.in_flight) * dt / self.service_s
            )
        else:
            self.in_flight = target
        self._count(dt, target)

    def _count(self, dt: float, served: float) -> None:
        done = self.in_flight / self.service_s * dt if served or self.in_flight else 0.0
        self.requests += done
        self.refused += done * self.refusing
        self.good += done * (1.0 - self.refusing)
        if self.offered > 0.0:
            self.wanted_s += dt
            self.lost_s += dt * (1.0 - min(1.0, served / self.offered) * (1.0 - self.refusing))

    def traffic(self, now: float, *, up: bool) -> Reading[Traffic]:
        """As HAProxy counts it: a look each tick, the same counters while nothing is counted."""
        key = (
            round(self.in_flight),
            int(self.requests),
            int(self.good),
            int(self.refused),
            self.limit,
            up,
        )
        if self._shown is None or key != self._key:
            self._key = key
            responses = {"2": key[2], "4": key[3]} if key[3] else {"2": key[2]}
            self._shown = Traffic(
                in_flight=key[0],
                limit=self.limit,
                requests=key[1],
                responses=responses,
                bytes_out=key[2] * 1000,
                latency_ms=self.service_s * 1000,
                engine_up=up,
            )
        return Known(self._shown, now)
