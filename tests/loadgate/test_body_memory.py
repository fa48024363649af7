"""Room for bodies: first come, first served, never more than the whole."""

from __future__ import annotations

import asyncio
import random
from contextlib import ExitStack

import pytest

from arbiterd.loadgate.body_memory import READING_MOST, WAITING_MOST, Room
from arbiterd.loadgate.library import Refused


def test_who_finds_no_room_waits_for_it_in_line() -> None:
    """A small one does not overtake a large one, or the large one would wait for ever."""

    async def run() -> None:
        room = Room(100)
        first = await room.take(60)
        large = asyncio.create_task(room.take(80))
        small = asyncio.create_task(room.take(10))
        await asyncio.sleep(0)
        assert room.waiting == 2
        first.shrink(30)
        await asyncio.sleep(0)
        assert room.waiting == 2, "30 + 80 is too much, and nobody overtakes"
        first.release()
        first.release()
        (await large).release()
        (await small).release()
        assert (room.used, room.waiting) == (0, 0)

    asyncio.run(run())


def test_no_room_in_time_is_503() -> None:
    """With a Retry-After; also at once when the line is full."""

    async def run() -> None:
        room = Room(100)
        held = await room.take(100)
        with pytest.raises(Refused) as told:
            await room.take(1, wait_s=0.01)
        assert (told.value.status, told.value.retry_after_s) == (503, 5)
        line = [asyncio.create_task(room.take(1)) for _ in range(WAITING_MOST)]
        await asyncio.sleep(0)
        with pytest.raises(Refused):
            await room.take(1)
        held.release()
        for task in line:
            (await task).release()
        assert room.used == 0

    asyncio.run(run())


def test_more_than_the_whole_gets_the_whole() -> None:
    """max_body may be larger than the room was meant to be."""

    async def run() -> None:
        room = Room(100)
        lease = await room.take(1000)
        assert room.used == 100
        lease.release()

    asyncio.run(run())


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_lost_whoever_gives_up(seed: int) -> None:
    """Clients that leave while they wait, or just when it is their turn."""
    dice = random.Random(seed)

    async def one(room: Room) -> None:
        try:
            lease = await room.take(dice.randint(1, 60), wait_s=dice.choice((0.001, 5)))
        except Refused:
            return
        assert room.used <= room.total
        try:
            await asyncio.sleep(dice.random() * 0.002)
            lease.shrink(dice.randint(0, 60))
            await asyncio.sleep(0)
        finally:
            lease.release()

    async def run() -> None:
        room = Room(100)
        tasks = [asyncio.create_task(one(room)) for _ in range(60)]
        for _ in tasks:
            await asyncio.sleep(0)
            if dice.random() < 0.3:
                dice.choice(tasks).cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (room.used, room.waiting) == (0, 0)

    asyncio.run(run())


def test_bodies_that_are_waited_for_are_bounded() -> None:
    """Each may hold what every body may, and what its connection has buffered."""
    room = Room()
    with ExitStack() as stack:
        for _ in range(READING_MOST):
            stack.enter_context(room.reads())
        with pytest.raises(Refused) as told, room.reads():
            pass
        assert told.value.status == 503
    with room.reads():
        assert room.reading == 1
