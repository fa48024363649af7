"""A stand-in for any other GPU server: holds --hold-mib, answers GET /healthz."""

from __future__ import annotations

import argparse
import os
import sys
from typing import ClassVar

from arbiterd.quantities import MIB
from arbiterd.sim.engines.common import Card, Faults, Handler, Server, say
from arbiterd.sim.engines.growth import leak, torch_words
from arbiterd.sim.gpu import OutOfMemory


class Api(Handler):
    """One route."""

    faults: Faults
    routes: ClassVar[dict[tuple[str, str], str]] = {("GET", "/healthz"): "health"}

    def health(self) -> None:
        """200, or what health_status says."""
        self.faults.wait_while_hung()
        self.reply(int(self.faults.get("health_status", 200)), {"ok": True})


def main() -> int:
    """Serve until killed."""
    parser = argparse.ArgumentParser(prog="generic")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--hold-mib", type=int, default=512)
    given = parser.parse_args()
    faults = Api.faults = Faults()
    faults.at_start()
    card = Card()
    try:
        card.alloc(given.hold_mib * MIB)
    except OutOfMemory as error:
        say(torch_words(error))
        return 1
    leak(card, faults, _die)
    Server(("127.0.0.1", given.port), Api, listen=True).serve_forever()
    return 0


def _die(error: OutOfMemory) -> None:
    say(torch_words(error))
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
