"""Persistence mode of each GPU: ``python -m arbiterd.survey.persistence_worker``, one JSON list.

A child of its own, as everything that talks to NVML: a hung driver must not hang its caller.
"""

from __future__ import annotations

import json
import sys

import pynvml as nv


def main() -> int:
    """Print [[index, on], ...]; nothing for a GPU that does not tell."""
    rows: list[list[int | bool]] = []
    try:
        nv.nvmlInit()
        for index in range(nv.nvmlDeviceGetCount()):
            try:
                handle = nv.nvmlDeviceGetHandleByIndex(index)
                rows.append([index, bool(nv.nvmlDeviceGetPersistenceMode(handle))])
            except nv.NVMLError:
                continue
    except nv.NVMLError:
        pass  # the inventory says what is wrong with NVML
    print(json.dumps(rows))  # noqa: T201 - it is the answer
    return 0


if __name__ == "__main__":
    sys.exit(main())
