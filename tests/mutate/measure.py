"""Run tests under coverage: which test function runs which line of core, and the CPU seconds of each."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest


class Watch:
    """Tells coverage which test runs, and measures it."""

    def __init__(self, cover: coverage.Coverage) -> None:
        self._cover = cover
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """One test with its fixtures. Its parameters count as one."""
        name = item.nodeid.partition("[")[0]
        self._cover.switch_context(name)
        began = time.process_time()
        yield
        self.seconds[name] += time.process_time() - began
        self._cover.switch_context("")


def main() -> int:
    """Run the tests that argv names; write to MUTATE_OUT."""
    cover = coverage.Coverage(data_file=None, source=["arbiterd/core"], config_file=False)
    watch = Watch(cover)
    cover.start()
    code = pytest.main(["-q", "-n0", "-p", "no:randomly", "--timeout=0", *sys.argv[1:]], [watch])
    cover.stop()
    if code:
        return int(code)
    data = cover.get_data()
    lines = {
        str(Path(file).relative_to(Path.cwd())): {
            str(line): [test for test in tests if test]
            for line, tests in data.contexts_by_lineno(file).items()
        }
        for file in data.measured_files()
    }
    Path(os.environ["MUTATE_OUT"]).write_text(json.dumps([lines, watch.seconds]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
