"""What people see: stdout is data, so progress, notes and tables go to stderr, and from rank 0 only."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

PLAIN_EVERY = 5.0  # seconds between progress lines where stderr is not a terminal


def stdout() -> TextIO:
    """Standard output, for data alone: the command line turns ``sys.stdout`` to stderr, since libraries print."""
    return sys.__stdout__ if sys.stdout is sys.stderr and sys.__stdout__ else sys.stdout


def is_main() -> bool:
    """True in the one process that may talk (rank 0)."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """One line for people."""
    if is_main():
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """One line about something the user should look at; the run goes on."""
    say(f"warning: {text}")


def clock(seconds: float) -> str:
    """Seconds as people read them: 42s, 3m20s, 1h05m."""
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    return f"{s // 60}m{s % 60:02d}s" if s < 3600 else f"{s // 3600}h{s % 3600 // 60:02d}m"


class Progress:
    """Counts finished work and shows it: a bar on a terminal, a plain line every few seconds elsewhere.

    ``total`` may be None (a stream of unknown length). ``note`` is a short text of live figures.
    """

    def __init__(self, name: str, total: int | None, unit: str, done: int = 0) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = self.start_done = done
        self.start = self.last = time.monotonic()
        self.note = ""
        self._bar: Any = None
        self._task: Any = None
        if is_main() and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn
            from rich.table import Column

            self._bar = Progress(
                TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=len(name))),
                BarColumn(bar_width=16, table_column=Column(min_width=16)),
                TextColumn("{task.fields[line]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(name, total=total, completed=done, line="")
            self._bar.start()

    def advance(self, n: int = 1, note: str | None = None) -> None:
        """Count ``n`` more units and show the new state when it is time to."""
        self.done += n
        if note is not None:
            self.note = note
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, line=self.line())
        elif is_main() and time.monotonic() - self.last >= PLAIN_EVERY:
            self.last = time.monotonic()
            say(f"{self.name}: {self.line()}")

    def line(self) -> str:
        """``120/558 prompts · 14.2/s · ETA 31s · note``."""
        seconds = max(time.monotonic() - self.start, 1e-9)
        rate = (self.done - self.start_done) / seconds
        parts = [f"{self.done}/{self.total} {self.unit}" if self.total else f"{self.done} {self.unit}"]
        parts.append(f"{rate:.3g}/s")
        if self.total and rate > 0:
            parts.append(f"ETA {clock((self.total - self.done) / rate)}")
        return " · ".join([*parts, self.note] if self.note else parts)

    def close(self) -> None:
        """Take the bar away and leave one closing line."""
        if self._bar is not None:
            self._bar.stop()
        seconds = time.monotonic() - self.start
        count = self.done - self.start_done
        note = f" · {self.note}" if self.note else ""
        say(f"{self.name}: {count} {self.unit} in {clock(seconds)} ({count / max(seconds, 1e-9):.3g}/s){note}")


@contextmanager
def progress(name: str, total: int | None, unit: str = "rows", done: int = 0) -> Iterator[Progress]:
    """A ``Progress`` that is taken down however the block ends."""
    bar = Progress(name, total, unit, done)
    try:
        yield bar
    finally:
        bar.close()


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows as aligned plain text: the first column to the left, the others to the right."""
    cells = [list(map(str, header)), *[list(map(str, row)) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        rest = [cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *rest]).rstrip())
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)
