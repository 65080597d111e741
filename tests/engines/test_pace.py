"""How fast requests go: limits kept by the clock, concurrency that follows the server, rests after a fault."""

from __future__ import annotations

import asyncio
import random
from email.utils import formatdate

import pytest

from xwincli.engines.pace import PATIENCE, START, Bucket, Pace, backoff, retry_after


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_gives_its_rate_and_no_more():
    clock = Clock()
    bucket = Bucket(120, clock)  # two a second, two at once
    waits = [bucket.take(1) for _ in range(6)]
    assert waits == pytest.approx([0, 0, 0.5, 1.0, 1.5, 2.0])
    clock.now += 3600  # what was not used in an hour is not saved up
    assert [bucket.take(1) for _ in range(3)] == pytest.approx([0, 0, 0.5])
    assert Bucket(0, clock).take(1e9) == 0


def test_what_was_taken_and_not_used_comes_back():
    clock = Clock()
    bucket = Bucket(6000, clock)  # a hundred a second
    assert bucket.take(500) == pytest.approx(4.0)
    bucket.give_back(450)
    assert bucket.take(100) == pytest.approx(0.5)


def test_more_at_once_while_answers_come_and_half_after_trouble():
    clock = Clock()
    pace = Pace(64, clock=clock)
    assert pace.limit == START
    pace.went_well()
    assert pace.limit == START  # nobody uses what is there: no reason to grow
    for _ in range(100):
        pace.running = int(pace.limit)
        pace.went_well()
    assert pace.limit == 64
    pace.trouble(sent=clock.now)
    pace.trouble(sent=clock.now)  # sent before the halving: the same trouble
    assert pace.limit == 32
    for _ in range(32):
        pace.running = int(pace.limit)
        pace.went_well()
    assert 32.9 < pace.limit <= 33  # by one a round from now on
    for _ in range(20):
        clock.now += 1
        pace.trouble(sent=clock.now)
        clock.now += 1
    assert pace.limit == 1


def test_never_more_at_once_than_the_limit_and_in_order():
    async def main() -> None:
        pace, order, peak = Pace(3), [], 0

        async def request(i: int) -> None:
            nonlocal peak
            async with pace.turn(1):
                peak = max(peak, pace.running)
                order.append(i)
                await asyncio.sleep(0.001)
                pace.went_well()

        waiting = [asyncio.create_task(request(i)) for i in range(20)]
        await asyncio.sleep(0.0015)
        waiting[10].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert order == [i for i in range(20) if i != 10] and peak == 3 and pace.running == 0

    asyncio.run(main())


def test_a_pause_holds_everyone():
    async def main() -> None:
        pace = Pace(8)
        pace.pause(0.05)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        async with pace.turn(1):
            assert loop.time() - begun >= 0.045

    asyncio.run(main())


def test_rests_grow_and_are_random():
    rng = random.Random(0)
    for attempt, most in ((0, 0.5), (3, 4.0), (20, 60.0)):
        rests = [backoff(attempt, rng) for _ in range(300)]
        assert 0 <= min(rests) < 0.1 * most and 0.9 * most < max(rests) <= most


def test_what_a_server_asks_to_wait():
    now = 1_800_000_000.0
    assert retry_after({"retry-after": "2.5"}, now) == 2.5
    assert retry_after({"retry-after": "2", "retry-after-ms": "1500"}, now) == 1.5
    assert retry_after({"retry-after": formatdate(now + 7, usegmt=True)}, now) == pytest.approx(7)
    assert retry_after({"retry-after": formatdate(now - 7, usegmt=True)}, now) == 0
    assert retry_after({"retry-after": "99999999"}, now) == PATIENCE
    for nothing in ({}, {"retry-after": "soon"}, {"retry-after": "nan"}, {"retry-after-ms": "x"}):
        assert retry_after(nothing, now) is None
