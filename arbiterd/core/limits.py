"""Core's named defaults, each with its reason. Seconds and bytes."""

from __future__ import annotations

from typing import Final

from arbiterd.quantities import GIB, MIB

# -- headroom and room ---------------------------------------------------------------------------
HEADROOM_FRACTION: Final = (
    0.04  # of capacity: allocator slack and driver buffers grow with the card
)
HEADROOM_MIN_BYTES: Final = 512 * MIB  # two CUDA contexts of strangers (300-600 MiB each)
HEADROOM_MAX_BYTES: Final = 2 * GIB  # past this it is only waste
FREE_CRITICAL_MIN_BYTES: Final = 256 * MIB  # below, cuBLAS workspaces and graphs start to fail

# -- start gate ----------------------------------------------------------------------------------
COLD_START_BYTES: Final = (
    512 * MIB
)  # of an engine that loads on demand: a context, for a look at the card
FRESH_SAMPLES: Final = 3  # after a start of ours: judge nothing on fewer (design, section 8)
BLOCKED_AFTER_S: Final = 10.0  # a start that waits longer is an incident (contract, section 3)
PORT_TAKEN_AFTER_S: Final = (
    2.0  # what has just been stopped here may be seen in its port as long as facts are old
)
PORT_LOST_AFTER_S: Final = 5.0  # of a start: facts of before its own bind are older by then

# -- start ---------------------------------------------------------------------------------------
START_HARD_FACTOR: Final = 3.0  # progress extends a start, but never past 3 x start_timeout
PROGRESS_CPU_S: Final = 0.2  # CPU seconds per second that count as progress during a start
PROGRESS_IO_BYTES: Final = (
    4096  # per second: a slow download has more, wake-ups of idle threads less
)
PROGRESS_MEMORY_BYTES: Final = 1 * MIB  # on the host or a device; below is allocator noise
PROGRESS_UNSEEN_S: Final = 5.0  # a longer hole between two samples is the daemon's own
HUNG_AFTER_S: Final = 60.0  # without progress: neighbours are not held up any longer
FIRST_START_GUESS_S: Final = 20.0  # for Retry-After, until a start of this backend has been seen

# -- health --------------------------------------------------------------------------------------
BAD_PROBES: Final = 3  # at 1 s: a TF status probe shares threads with predictions, one miss is load
GOOD_PROBES: Final = 2  # thresholds both ways, or a flapping engine flaps at the clients
CANARY_EVERY_S: Final = 15.0  # idle only; one token is cheap, but not free
CANARY_GRACE_S: Final = 3.0  # after ready: the first request may compile kernels
BAD_CANARIES: Final = 2  # the second is sent at once after the first has failed
TRIAL_MOST_S: Final = 12.0  # metadata 2 s, canary 5 s, and a busy machine; then it has none
TRIAL_READ_S: Final = 5.0  # a process list is read four times a second while something starts
TRIAL_MOVED_BYTES: Final = 64 * MIB  # a canary that moves more would cost what it shall protect

# -- release -------------------------------------------------------------------------------------
RELEASE_SLOW_S: Final = 20.0  # device memory returns within 0.4-0.8 s, 8 s was seen (facts/nvml.md)
RELEASED_FRACTION: Final = 0.9  # of the bytes it held: neighbours move a little meanwhile
ORPHAN_AFTER_S: Final = 1.0  # a holder of ours without a unit: give the exit a moment, then kill

# -- failures ------------------------------------------------------------------------------------
BREAKER_FAILURES: Final = 5
BREAKER_WINDOW_S: Final = 600.0
HALF_OPEN_S: Final = 300.0  # one probing start each five minutes once the breaker is open
STABLE_S: Final = 60.0  # ready for so long: the next failure starts at the first delay again
HEALTHY_S: Final = 3600.0  # ready for so long: the next failure needs no back-off at all
JITTER: Final = 0.25  # of the delay, so that two backends do not come back in step

LONG_AGO: Final = -1e9  # of a moment that has not been yet

# -- warm model ----------------------------------------------------------------------------------
WARM_RETRY_S: Final = 30.0
WARM_FAILURES: Final = 3  # then serve cold and say so
REARM_S: Final = 60.0  # the warm model would leave within so long: its stay is renewed
KEEP_FOR_EVER_S: Final = -1.0
WARM_AWAY_S: Final = 300.0  # after a client's keep_alive 0: Unload is meant to last a while
WARM_AFTER_CLIENT_S: Final = 30.0  # a client's load is in use: the warm model must not evict it

# -- pressure: signals ---------------------------------------------------------------------------
TIGHT_S: Final = (
    2.0  # solvency under half the headroom for so long: two or more process lists agree
)
CALM_S: Final = 20.0  # and over nine tenths of it for so long: longer than a release takes
CALM_SLOW_S: Final = 60.0  # between the two, nobody over a cap and nothing growing: calm as well
CRITICAL_LEFT_S: Final = 2.0  # critical is left so long after its last sample
CRITICAL_LEFT_FACTOR: Final = 1.5  # and with so many times the critical line free
CONFIRM_SAMPLES: Final = 2  # reclaims and freeze need two samples; hold needs one
CONFIRM_S: Final = 0.02  # two samples nearer to each other are one
SLOPE_WINDOW_S: Final = 5.0  # long enough to tell a ramp from noise, short enough to see it end
SLOPE_SPAN_S: Final = 1.2  # samples that span less say nothing: four polls, five intervals
SLOPE_GAP_S: Final = 1.0  # a hole in the samples: what lies before it is forgotten
SLOPE_GAP_POLLS: Final = 2.5  # where this many polls are longer: one sample may fail
WINDOW_POINTS: Final = 24  # at most, whatever the rate: Theil-Sen costs their square
RISING_S: Final = 0.4  # what rises now is above what it was so long ago
STEP_BYTES: Final = 256 * MIB  # one step (a model, a graph) is no slope: the window begins anew
SLOPE_MIN: Final = 1 * MIB  # bytes per second: below is allocator noise
SLOPE_GUILTY: Final = (
    16 * MIB
)  # bytes per second of a backend over its cap: it is who fills the card
LOOKAHEAD: Final = 2  # a step this large again, so many times, would overflow the card
STEP_HELD_S: Final = (
    5.0  # no loads for so long after such a step; twice as long at each repetition ...
)
STEP_HELD_MAX_S: Final = 300.0  # ... up to this
AGAIN_WINDOW_S: Final = 1800.0  # what comes back within so long is the same story: it dwells longer
CALM_MAX_S: Final = 160.0  # the longest dwell of calm, three doublings of CALM_S
OVER_MIN_BYTES: Final = 256 * MIB  # over its cap: more than an allocator's rounding and a graph
OVER_FRACTION: Final = 0.03  # and more than an engine's budget drifts by versions
FLAT_S: Final = 60.0  # without growth for so long: a footprint rather than a leak
LINE_AFTER_S: Final = (
    300.0  # after ready, with requests served: what it holds then is its footprint
)
LINE_FRACTION: Final = (
    0.10  # of the cap: so much beyond it is forgiven (CUDA graphs, contexts), and ...
)
LINE_MIN_BYTES: Final = 1 * GIB  # ... at least this
OVER_S: Final = 3.0  # for so long: a spike of one request is none
GROWING_BYTES: Final = 64 * MIB  # more than this within the window, and rising: it grows
LEAD_S: Final = (
    2.0  # sample, second look, decision, kill, release (0.4-0.8 s measured), until known better
)
STROKE_S: Final = 1.0  # growth that is younger may be one allocation: a pool, a graph, a cache ...
STROKE_LEFT_S: Final = (
    1.25  # ... and is waited for as long as a kill and its release would be in time
)
LEAD_MAX_S: Final = 20.0  # a slow release must not make every ramp an emergency
MOVED_BYTES: Final = 32 * MIB  # excess moved by so much: process lists are read with each sample
MOVED_FOR_S: Final = 10.0  # for so long after; a list costs milliseconds under the driver's lock
RELEASING_S: Final = 60.0  # bytes of the dead, not listed any more and not yet free: 26 s were seen
FOREIGN_SAID_BYTES: Final = 64 * MIB  # over the allowance: worth an incident

# -- pressure: brakes ----------------------------------------------------------------------------
THROTTLE_EVERY_S: Final = 3.0  # halved at most so often: the running requests must end first
UNTHROTTLE_EVERY_S: Final = 2.0  # and one more let in each so often, once calm
FREEZE_S: Final = 2.0  # clients and health checks survive two seconds
FREEZE_EVERY_S: Final = 60.0  # frozen more often, an engine's clients and peers give it up
TIGHT_LOAD_MARGIN: Final = 0.5  # of the headroom stays free after a load while tight

# -- pressure: reclaims --------------------------------------------------------------------------
TRIM_S: Final = 1.5  # an idle runner's end: 0.5-1.5 s (ollama sched.go)
TRIM_IGNORED_S: Final = 6.0  # /api/ps may block 5 s meanwhile; later the runner is killed alone
SLEEP_BYTES_S: Final = 4 * GIB  # bytes a second into pinned host memory, a careful figure
ESCALATE_S: Final = 3.0  # growth goes on so long after a reclaim began: the next one
BYTES_BACK_S: Final = 20.0  # bytes still coming: no second victim for so long
BYTES_BACK_PINNED_S: Final = 60.0  # after pinned host memory: 25.9 s were measured (facts/nvml.md)
SEEN_BACK: Final = 0.8  # of the expected bytes: then a reclaim has worked
DISRUPTIVE_MAX: Final = 6  # sleeps, restarts, stops and killed runners of the ladder ...
DISRUPTIVE_WINDOW_S: Final = (
    600.0  # ... within so long, per device: past it manual intervention is required
)
TRIM_AGAIN_S: Final = (
    5.0  # the same model: an unload waits for its request, asking twice helps nobody
)
TRIM_FAILED_S: Final = 60.0  # a model that stayed is not counted on again: the guilty one is
SLEEP_AGAIN_S: Final = 60.0  # asleep again so soon after: sleep has not cured it, a restart may
RESTART_AGAIN_S: Final = 10.0  # the same backend: its dead bytes must be seen back first
STOP_AFTER_RESTARTS: Final = 3  # of one backend within the window: the next is a stop
HOST_RAM_SPARE: Final = 2 * GIB  # left on the host beside the weights that sleep copies there

# -- sleep ---------------------------------------------------------------------------------------
WAKE_MARGIN_BYTES: Final = 512 * MIB  # a wake without room ends the engine (vllm #13941)
WAKE_LOOK_S: Final = 20.0  # a wake takes 2 to 20 s: the card must not be full before
WAKE_CHECK_S: Final = 30.0  # within so long it must answer

# -- what an OOM teaches -------------------------------------------------------------------------
CAP_STEP_FRACTION: Final = 0.05  # of the configured cap: a step that an engine survives
CAP_STEP_MIN_BYTES: Final = 512 * MIB  # less is lost in an allocator's rounding ...
CAP_STEP_MOST_FRACTION: Final = 0.10  # ... but a small cap loses no more than this
CAP_FLOOR_FRACTION: Final = 0.70  # an engine cut below serves nobody
CAP_CALM_S: Final = 24 * 3600.0  # without an OOM: half a step back at the next start
REPEATED_OOMS: Final = 2  # what on_oom = "cpu" and "stop" wait for
OOM_TRACE_S: Final = 5.0  # memory before the death that is looked at

# -- switching -----------------------------------------------------------------------------------
FIRST_STOP_GUESS_S: Final = 5.0  # for the estimate, until a stop of this backend has been seen
SWITCH_FAILURES: Final = (
    2  # one failed start may be a race with what was just stopped; two are none
)

# -- the end of a backend ------------------------------------------------------------------------
DRAINED_GRACE_S: Final = 5.0  # after SIGTERM, for clients that have had drain_timeout at the door

# -- doors ---------------------------------------------------------------------------------------
ADOPTED_S: Final = 10.0  # its doors stay open so long after our restart, until it is heard from
FAILBACK_S: Final = (
    5.0  # well for so long before its requests come back: a flapping engine must not
)
DOOR_CLOSES_S: Final = 0.1  # from the decision to HAProxy refusing: it takes milliseconds
HOLD_MAX_S: Final = 5.0  # clients rather wait so long than try again; longer is 503 + Retry-After
GATEWAY_DOWN_S: Final = 3.0  # a restart of HAProxy takes 0.1-0.5 s: no incident for that
GATEWAY_FIRST_S: Final = 15.0  # its first start of all: on a busy host it took more than 3 s
LEASE_HELD_SAID_S: Final = 1.0  # a load that waits longer is told in the journal

# -- incidents -----------------------------------------------------------------------------------
INCIDENTS_KEPT: Final = 200
RETRY_AFTER_MAX_S: Final = 120
