"""How many small changes of core do its tests notice? A seeded sample of mutants, each tried in a fork.

Usage: python -m tests.mutate [--count 300] [--seed 12] [--jobs 1] [--spend SECONDS]
"""

from __future__ import annotations

import argparse
import sys

from tests.mutate import play

GOAL = 0.9


def main() -> int:
    """Play the sample; exit status 1 below the goal."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="mutants to play")
    parser.add_argument("--seed", type=int, default=12, help="which of them")
    parser.add_argument("--jobs", type=int, default=1, help="at a time")
    parser.add_argument(
        "--spend", type=float, default=0, help="CPU seconds of tests a mutant; 0: all"
    )
    asked = parser.parse_args()
    found = play.sample(asked.count, asked.seed, asked.jobs, asked.spend)
    killed = sum(one.killed for one in found)
    left = [one for one in found if not one.killed]
    explained = play.explained()
    for one in left:
        print(f"survived: {one.name}: {one.why}: {explained.get(one.name, 'not explained')}")
    share = killed / len(found) if found else 1.0
    print(
        f"{killed} of {len(found)} mutants killed ({share:.1%}; goal {GOAL:.0%}), seed {asked.seed}"
    )
    return 0 if share >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
