"""Deaths of Ollama's runners, by what Ollama logs (recorded on 0.33.0-rc2).

A dead runner is noticed when the next request wants it, and is then logged twice:
``msg="llama-server process no longer running" sys=9 string="signal: killed"``. One that dies while
it loads: ``llama-server process has terminated: signal: killed``. Its own last words (CUDA's) stand
above. So all such lines up to the next ``starting llama-server`` are one death. ``CUDA error: ...`` is
llama.cpp's ggml_cuda_error, which ends in abort: that line alone is a death, told before a client finds it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from arbiterd.engines.base import CauseClass
from arbiterd.model.health import RunnerDeath

_DEAD = re.compile(
    r'msg="llama-server process no longer running" sys=\d+ string="(?P<gone>[^"]+)"'
    r"|(?:llama-server|llama runner) process has terminated: (?P<ended>[^\"\\]+)"
)
_STARTS = re.compile(r'msg="starting (?:llama-server|runner)"')
_OOM = re.compile(
    r"cudaMalloc failed: out of memory|CUDA error: out of memory|CUDA_ERROR_OUT_OF_MEMORY"
    r"|reported out-of-memory during startup|runtime OOM detected"
)
_POISONED = re.compile(r"illegal memory access|unspecified launch failure|device-side assert")
_ABORTS = re.compile(r"\bCUDA error: ")
_KILLED = re.compile(r"signal: killed")


class Deaths:
    """Reads one Ollama's output from its beginning, each line once."""

    def __init__(self) -> None:
        self._told = False
        self._words: list[tuple[CauseClass, str]] = []

    def feed(self, lines: Iterable[str]) -> list[RunnerDeath]:
        """The deaths that these new lines tell of."""
        out = []
        for line in lines:
            if _STARTS.search(line):
                self._told, self._words = False, []
                continue
            if _OOM.search(line):
                self._words.append((CauseClass.OOM_RUNTIME, line.strip()))
            elif _POISONED.search(line):
                self._words.append((CauseClass.CONTEXT_POISONED, line.strip()))
            found = _DEAD.search(line)
            how = (found["gone"] or found["ended"]) if found else "aborted"
            if self._told or not (found or _ABORTS.search(line)):
                continue
            self._told = True
            out.append(self._death(how, line.strip()))
        return out

    def _death(self, how: str, line: str) -> RunnerDeath:
        if self._words:
            cause, word = self._words[0]
            return RunnerDeath(how.strip(), cause.value, word)
        if _KILLED.search(how):  # nobody says why: the kernel's OOM killer does it so, too
            return RunnerDeath(how.strip(), "killed", line)
        return RunnerDeath(how.strip(), CauseClass.ENGINE_DEAD.value, line)
