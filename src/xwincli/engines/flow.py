"""Many asynchronous answers for one plain loop: items are taken one by one, only where there is room for them.

The event loop runs in a thread of its own, so that requests go on while the caller writes answers down; the items
are taken in the caller's thread, because what yields them (files, a journal) knows no threads.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from xwincli.engines.pace import Pace
from xwincli.errors import XwinError

A = TypeVar("A")
B = TypeVar("B")
Session = AbstractAsyncContextManager[Callable[[A], Awaitable[B]]]
ROOM, END = object(), object()
FAREWELL = 5.0  # seconds requests get to be called off


class Stop(XwinError):
    """An error that concerns every item (a wrong key): the run ends at once."""


def answered(items: Iterable[A], session: Session[A, B], pace: Pace) -> Iterator[tuple[A, B | XwinError]]:
    """Each item with its answer as it is complete, in any order; closing the generator calls the rest off.

    Args:
        items: taken lazily, never more than ``pace`` has room for; an answer that is there goes first.
        session: entered once, in the event loop; gives the coroutine function that answers one item.
        pace: has ``room`` for another item or not, and says when that may have changed.

    Raises:
        Stop: from an answer; any other exception that is not an ``XwinError`` is raised as it is.
    """
    events: SimpleQueue[Any] = SimpleQueue()
    crew = _Crew(session, pace, events)
    source, open_, room, exhausted = iter(items), 0, False, False
    try:
        while not exhausted or open_:
            free = room and open_ < int(pace.limit)  # an answer that nobody has taken yet still counts as open
            try:
                event = events.get(block=not free)
            except Empty:
                item, room = next(source, END), False
                if item is END:
                    exhausted = True
                else:
                    open_ += 1
                    crew.take(item)
                continue
            if event is ROOM:
                room = not exhausted
            elif isinstance(event, BaseException):
                raise event
            else:
                open_ -= 1
                yield event
    finally:
        crew.end()


class _Crew(Generic[A, B]):
    """The thread with the event loop, and the tasks in it."""

    def __init__(self, session: Session[A, B], pace: Pace, events: SimpleQueue[Any]) -> None:
        self.session, self.pace, self.events = session, pace, events
        self.loop = asyncio.new_event_loop()
        self.over = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        self.answer: Callable[[A], Awaitable[B]]
        self.offered = False  # the caller was told of room and has not come back with an item
        self.thread = threading.Thread(target=self._run, name="requests", daemon=True)
        self.thread.start()

    # -- called by the caller's thread

    def take(self, item: Any) -> None:
        """Answer ``item``."""
        self.loop.call_soon_threadsafe(self._begin, item)

    def end(self) -> None:
        """Call off what still runs."""
        with suppress(RuntimeError):  # the loop has ended by itself
            self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join(FAREWELL)

    # -- in the event loop's thread

    def _run(self) -> None:
        try:
            self.loop.run_until_complete(self._main())
        except BaseException as e:  # noqa: BLE001  whatever it is, the caller must not wait for ever
            self.events.put(e)
        finally:
            self.loop.close()

    async def _main(self) -> None:
        async with self.session as answer:
            self.answer = answer
            self.pace.on_change = self._offer
            self._offer()
            await self.over.wait()
            self.pace.on_change = lambda: None
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)

    def _offer(self) -> None:
        if self.pace.room and not self.offered:
            self.offered = True
            self.events.put(ROOM)

    def _offer_soon(self, passes: int = 3) -> None:
        """After some passes of the loop, in which a task begins its requests (see gather)."""
        if passes:
            self.loop.call_soon(self._offer_soon, passes - 1)
        else:
            self._offer()

    def _begin(self, item: A) -> None:
        self.offered = False
        task = self.loop.create_task(self._work(item))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        self._offer_soon()

    async def _work(self, item: A) -> None:
        try:
            self.events.put((item, await self.answer(item)))
        except Stop as e:
            self.events.put(e)
        except XwinError as e:
            self.events.put((item, e))
        except Exception as e:  # noqa: BLE001  raised where the caller waits
            self.events.put(e)
        self._offer()
