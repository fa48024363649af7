"""``python -m arbiterd.sim.gpuctl``: look at and disturb the simulated GPU named by GPU_SIM_STATE."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from arbiterd.errors import EX_REFUSED, EX_USAGE, ArbiterError
from arbiterd.quantities import MIB, format_size, parse_size
from arbiterd.sim.engines.growth import Grower, torch_words
from arbiterd.sim.gpu import LIB_ENV, STATE_ENV, OutOfMemory, SimGpu


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="gpuctl", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("show", help="memory and processes of every GPU")
    hold = commands.add_parser("hold", help="hold memory until Ctrl-C, as a stranger would")
    hold.add_argument("gpu", type=int)
    hold.add_argument("size", help="like 3GiB")
    ramp = commands.add_parser("ramp", help="hold memory that grows, as a notebook's does")
    ramp.add_argument("gpu", type=int)
    ramp.add_argument("rate", type=float, metavar="RATE_MIB_S", help="MiB a second, like 4096")
    ramp.add_argument("most", nargs="?", default="", metavar="MAX", help="like 3GiB")
    for name, text in (("lose", "the card falls off the bus"), ("restore", "it is back, empty")):
        commands.add_parser(name, help=text).add_argument("gpu", type=int)
    hang = commands.add_parser("hang", help="NVML calls about this GPU hang")
    hang.add_argument("gpu", type=int)
    hang.add_argument("ms", type=int, nargs="?", default=600_000)
    xid = commands.add_parser("xid", help="the driver reports an XID, like 79")
    xid.add_argument("gpu", type=int)
    xid.add_argument("code", type=int)
    xid.add_argument("pid", type=int, nargs="?", default=0, help="whose; in the kernel log only")
    action = commands.add_parser(
        "recovery", help="what the driver wants: 0 none, 1 reset, 2 reboot"
    )
    action.add_argument("gpu", type=int)
    action.add_argument("action", type=int)
    commands.add_parser("clear", help="end every hang and fault")
    given = parser.parse_args(argv)
    state = os.environ.get(STATE_ENV)
    if not state:
        print(f"gpuctl: set {STATE_ENV} to the state file", file=sys.stderr)
        return EX_USAGE
    path = Path(state)
    try:
        gpu = SimGpu.attach(path, Path(os.environ.get(LIB_ENV, path.parent / "lib")))
        _do(gpu, given)
    except (ArbiterError, ValueError, OSError) as error:
        print(f"gpuctl: {error}", file=sys.stderr)
        return EX_REFUSED
    return 0


def _do(gpu: SimGpu, given: argparse.Namespace) -> None:
    match given.command:
        case "show":
            _show(gpu)
        case "hold":
            size = parse_size(given.size)
            gpu.alloc(given.gpu, size)
            print(
                f"pid {os.getpid()} holds {format_size(size)} of GPU {given.gpu}; Ctrl-C frees it"
            )
            sys.stdout.flush()
            signal.sigwait({signal.SIGINT, signal.SIGTERM})
        case "ramp":
            _ramp(gpu, given.gpu, given.rate * MIB, parse_size(given.most) if given.most else None)
        case "lose":
            gpu.lose(given.gpu)
        case "restore":
            gpu.restore(given.gpu)
        case "hang":
            gpu.fault("nvmlDevice", hang_ms=given.ms, device=given.gpu)
        case "xid":
            gpu.xid(given.gpu, given.code, pid=given.pid)
        case "recovery":
            gpu.recovery_action(given.gpu, given.action)
        case _:
            gpu.clear_faults()


class _Device:
    """A card for the grower."""

    def __init__(self, gpu: SimGpu, device: int) -> None:
        self._gpu, self._device = gpu, device

    def alloc(self, size: int) -> int:
        """Take."""
        return self._gpu.alloc(self._device, size)

    def resize(self, handle: int, size: int) -> None:
        """Grow."""
        self._gpu.resize(handle, size, self._device)


def _ramp(gpu: SimGpu, device: int, rate: float, most: int | None) -> None:
    """Grow until MAX or until the card is full; like a notebook's kernel it lives on and holds all."""
    rates = [rate]

    def full(error: OutOfMemory) -> None:
        rates[0] = 0.0
        print(torch_words(error), flush=True)

    gpu.memory(device)  # is it there?
    grower = Grower(
        _Device(gpu, device),
        lambda: rates[0],
        most=lambda: float("inf") if most is None else most,
        on_oom=full,
    )
    print(f"pid {os.getpid()} grows by {format_size(rate)}/s on GPU {device}; Ctrl-C frees it")
    sys.stdout.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    grower.start()
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    print(f"held {format_size(grower.size)}")


def _show(gpu: SimGpu) -> None:
    for index, uuid in enumerate(gpu.uuids()):
        if gpu.lost(index):
            print(f"GPU {index} {uuid}: lost")
            continue
        total, reserved, used, free = gpu.memory(index)
        sizes = f"{format_size(used)} used, {format_size(free)} free"
        print(f"GPU {index} {uuid}: {sizes} of {format_size(total - reserved)}")
        for pid, size in gpu.processes(index):
            print(f"    pid {pid}: {format_size(size)}")


if __name__ == "__main__":
    sys.exit(main())
