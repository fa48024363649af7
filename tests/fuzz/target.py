"""What a target is, and the one place where an input is judged."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from hypothesis.strategies import SearchStrategy

CPU_BOUND_S = 1.0  # of one input; of the CPU, since a busy machine may take any time by the clock


@dataclass(frozen=True, slots=True)
class Target:
    """``read``: takes one input and holds what comes out against what is promised of it (by assert).
    ``raises``: the errors that its documentation names; every other one is a defect. ``strategy``: inputs
    near to what is valid, always bytes, so that one of them can be kept as a file. ``seeds``: valid inputs
    for the fuzzer that goes by coverage; it is given those modules only, since it knows no structure.
    ``coverage`` False: an input takes too long for it.
    """

    name: str
    read: Callable[[bytes], object]
    strategy: SearchStrategy[bytes]
    raises: tuple[type[Exception], ...] = ()
    seeds: tuple[bytes, ...] = ()
    coverage: bool = True
    bound_s: float = CPU_BOUND_S


class Defect(AssertionError):
    """An input did what no input may do. ``sign``: equal for what is probably the same defect."""

    def __init__(self, sign: str, text: str) -> None:
        self.sign = sign
        super().__init__(text)


def judge(target: Target, data: bytes) -> None:
    """One input.

    Raises:
        Defect: an error that is not documented, a broken promise, or too much time.

    """
    began = time.thread_time()
    try:
        target.read(data)
    except target.raises:
        pass
    except Exception as error:  # the one place that must see all of them
        raise Defect(_sign(error), _text(error)) from error
    took = time.thread_time() - began
    if took > target.bound_s:
        raise Defect("slow", f"{took:.2f} s of CPU, bound {target.bound_s:g} s")


def _sign(error: Exception) -> str:
    """The kind of error, and the deepest line of ours that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [one for one in frames if "arbiterd" in one.filename] or [
        one for one in frames if one.name != "late"
    ]
    return f"{type(error).__name__} at {ours[-1].filename.rpartition('arbiterd/')[2]}:{ours[-1].lineno}"


def _text(error: Exception) -> str:
    return "".join(traceback.format_exception(error))[-3000:]
