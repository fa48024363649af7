"""Core's named defaults, each with its reason. Seconds and bytes."""

from __future__ import annotations

from typing import Final

from arbiterd.units import GIB, MIB

# -- headroom and room ---------------------------------------------------------------------------
HEADROOM_FRACTION: Final = (
    0.04  # of capacity: allocator slack and driver buffers grow with the card
)
HEADROOM_MIN_BYTES: Final = 512 * MIB  # two CUDA contexts of strangers (300-600 MiB each)
HEADROOM_MAX_BYTES: Final = 2 * GIB  # past this it is only waste
FREE_CRITICAL_MIN_BYTES: Final = 256 * MIB  # below, cuBLAS workspaces and graphs start to fail

# -- start gate ----------------------------------------------------------------------------------
FRESH_SAMPLES: Final = 3  # after a start of ours: judge nothing on fewer (design, section 8)
BLOCKED_AFTER_S: Final = 10.0  # a start that waits longer is an incident (contract, section 3)

# -- start ---------------------------------------------------------------------------------------
START_HARD_FACTOR: Final = 3.0  # progress extends a start, but never past 3 x start_timeout
PROGRESS_CPU_S: Final = 0.2  # CPU seconds per second that count as progress during a start
FIRST_START_GUESS_S: Final = 20.0  # for Retry-After, until a start of this backend has been seen

# -- health --------------------------------------------------------------------------------------
BAD_PROBES: Final = 3  # at 1 s: a TF status probe shares threads with predictions, one miss is load
GOOD_PROBES: Final = 2  # thresholds both ways, or a flapping engine flaps at the clients
CANARY_EVERY_S: Final = 15.0  # idle only; one token is cheap, but not free
CANARY_GRACE_S: Final = 3.0  # after ready: the first request may compile kernels
BAD_CANARIES: Final = 2  # the second is sent at once after the first has failed
NO_WORK_S: Final = 5.0  # requests outstanding and no counter moved: ask with a canary

# -- release -------------------------------------------------------------------------------------
RELEASE_SLOW_S: Final = 20.0  # device memory returns within 0.4-0.8 s, 8 s was seen (facts/nvml.md)
RELEASED_FRACTION: Final = 0.9  # of the bytes it held: neighbours move a little meanwhile
ORPHAN_AFTER_S: Final = 1.0  # a holder of ours without a unit: give the exit a moment, then kill

# -- failures ------------------------------------------------------------------------------------
BREAKER_FAILURES: Final = 5
BREAKER_WINDOW_S: Final = 600.0
HALF_OPEN_S: Final = 300.0  # one probing start each five minutes once the breaker is open
STABLE_S: Final = 60.0  # ready for so long: the next failure starts at the first delay again
JITTER: Final = 0.25  # of the delay, so that two backends do not come back in step

# -- warm model ----------------------------------------------------------------------------------
WARM_RETRY_S: Final = 30.0
WARM_FAILURES: Final = 3  # then serve cold and say so
REARM_S: Final = 60.0  # the warm model would leave within so long: its stay is renewed
KEEP_FOR_EVER_S: Final = -1.0

# -- pressure ------------------------------------------------------------------------------------
TIGHT_S: Final = 2.0  # solvency under half the headroom for so long
CALM_S: Final = 20.0  # and over nine tenths of it for so long

# -- doors ---------------------------------------------------------------------------------------
ADOPTED_S: Final = 10.0  # its doors stay open so long after our restart, until it is heard from
FAILBACK_S: Final = (
    5.0  # well for so long before its requests come back: a flapping engine must not
)
HOLD_MAX_S: Final = 5.0  # clients rather wait so long than try again; longer is 503 + Retry-After
GATEWAY_DOWN_S: Final = 3.0  # a restart of HAProxy takes 0.1-0.5 s: no incident for that
LEASE_HELD_SAID_S: Final = 1.0  # a load that waits longer is told in the journal

# -- incidents -----------------------------------------------------------------------------------
INCIDENTS_KEPT: Final = 200
RETRY_AFTER_MAX_S: Final = 120
