"""How fast requests go: how many at once, how many and how many tokens a minute, how long to rest after a fault.

Nothing here knows what a request is. Everything runs in one event loop's thread.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime

START = 8  # requests at once before anything is known of the server
BASE, LONGEST = 0.5, 60.0  # seconds: a first backoff at most, any backoff at most
PATIENCE = 3600.0  # seconds a server's Retry-After is followed at most


class Bucket:
    """So many units a minute, at most one second's worth of them at once (a token bucket).

    A taker may leave the bucket in debt: those who come after wait for it too, so they go in order.

    Args:
        per_minute: 0 is no limit.
        clock: seconds, monotonic.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self._clock = per_minute / 60, clock
        self._most = max(1.0, self.rate)
        self._level, self._at = self._most, clock()

    def take(self, amount: float) -> float:
        """Take ``amount``; the seconds to wait before using it."""
        if not self.rate:
            return 0.0
        now = self._clock()
        self._level = min(self._most, self._level + (now - self._at) * self.rate) - amount
        self._at = now
        return max(0.0, -self._level / self.rate)

    def give_back(self, amount: float) -> None:
        """Return what was taken and not used; a negative amount takes more."""
        self._level += amount


class Pace:
    """How many requests run at once: few at first, more while answers come, half after trouble.

    Until the first trouble the limit grows by one an answer (it doubles each round), from then on by one a round
    (additive increase, multiplicative decrease: Chiu and Jain 1989, as TCP does).

    Args:
        most: never more at once.
        rpm, tpm: requests and tokens a minute; 0 is no limit.
        clock: seconds, monotonic.

    Attributes:
        limit: how many may run at once now.
        load: how many are begun and not finished: those that run, wait for their turn or rest after a fault.
        on_change: called when there may be room for more.
    """

    def __init__(self, most: int, rpm: int = 0, tpm: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.limit, self.load, self.running = most, float(min(START, most)), 0, 0
        self.on_change: Callable[[], None] = lambda: None
        self._clock = clock
        self._requests, self._tokens = Bucket(rpm, clock), Bucket(tpm, clock)
        self._line: deque[asyncio.Future[None]] = deque()
        self._eager, self._halved, self._resume = True, -math.inf, -math.inf

    @property
    def room(self) -> bool:
        """True if another request could run at once."""
        return self.load < int(self.limit)

    @asynccontextmanager
    async def turn(self, tokens: int) -> AsyncIterator[float]:
        """Wait until a request of about so many tokens may go; gives the time at which it goes."""
        await self._enter()
        try:
            if delay := max(self._requests.take(1), self._tokens.take(tokens)):
                await asyncio.sleep(delay)
            while (left := self._resume - self._clock()) > 0:
                await asyncio.sleep(left)
            yield self._clock()
        finally:
            self.running -= 1
            self._let_in()

    def settle(self, expected: int, used: int) -> None:
        """Correct what ``turn`` was told by what the request used, in tokens."""
        self._tokens.give_back(expected - used)

    def went_well(self) -> None:
        """An answer came: more may run at once, if as many as may do run."""
        if self.running >= int(self.limit) - 1:
            self.limit = min(float(self.most), self.limit + (1 if self._eager else 1 / self.limit))

    def trouble(self, sent: float) -> None:
        """The server had too much (429, 503, timeout) when a request was sent; one halving for all sent before it."""
        if sent > self._halved:
            self._eager, self._halved = False, self._clock()
            self.limit = max(1.0, self.limit / 2)

    def pause(self, seconds: float) -> None:
        """No request goes for so long: the server asked for it."""
        self._resume = max(self._resume, self._clock() + seconds)

    async def _enter(self) -> None:
        if self.running < int(self.limit) and not self._line:
            self.running += 1
            return
        mine = asyncio.get_running_loop().create_future()
        self._line.append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():  # let in and called away in the same moment
                self.running -= 1
                self._let_in()
            raise

    def _let_in(self) -> None:
        while self._line and self.running < int(self.limit):
            first = self._line.popleft()
            if not first.done():
                self.running += 1
                first.set_result(None)


def backoff(attempt: int, rng: random.Random) -> float:
    """Seconds to rest after try ``attempt`` (0, 1, …) failed: exponential, full jitter (Brooker, AWS 2015)."""
    return rng.uniform(0, min(LONGEST, BASE * 2**attempt))


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds a server asks to wait; None where it says nothing that can be read.

    Args:
        headers: ``retry-after-ms``, or ``retry-after`` in seconds or as an HTTP date; names in lower case.
        now: seconds since the epoch.
    """
    if (seconds := _number(headers.get("retry-after-ms"))) is not None:
        seconds /= 1000
    elif (seconds := _number(text := headers.get("retry-after"))) is None:
        try:
            seconds = parsedate_to_datetime(text or "").timestamp() - now
        except ValueError:
            return None
    return min(max(0.0, seconds), PATIENCE)


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None
