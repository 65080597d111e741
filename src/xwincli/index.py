"""Which rows a run was given and where each one's output lies: on disk beyond some megabytes, however many rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

from xwincli.errors import XwinError

TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE rows (key TEXT PRIMARY KEY, times INTEGER NOT NULL, at INTEGER) WITHOUT ROWID;
CREATE TABLE given (number INTEGER PRIMARY KEY, key TEXT NOT NULL);
"""


class Index:
    """Keys of rows in the order given, and the place of every finished one.

    A temporary database of SQLite's, which goes when the process does: a few megabytes in memory, the rest in the
    folder for temporary files (``TMPDIR``).

    Attributes:
        given: rows of ours there are.
        finished: rows that have a place.
    """

    def __init__(self) -> None:
        self._base = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._base.executescript(TABLES)
        self.given = self.finished = 0

    def _do(self, statement: str, *values: Any) -> sqlite3.Cursor:
        try:
            return self._base.execute(statement, values)
        except sqlite3.OperationalError as e:
            hint = "TMPDIR=FOLDER names another; the same command goes on from here"
            raise XwinError(f"the folder for temporary files: {e}", hint) from e

    def give(self, key: str, mine: bool) -> str:
        """Note the next row, in its order if it is ours; returns its key, numbered if it was given before."""
        count = "INSERT INTO rows VALUES (?, 1, NULL) ON CONFLICT (key) DO UPDATE SET times = times + 1 RETURNING times"
        (times,) = self._do(count, key).fetchone()
        if times > 1:
            key = f"{key}#{times}"
        if mine:
            self._do("INSERT INTO given VALUES (?, ?)", self.given, key)
            self.given += 1
        return key

    def finish(self, key: str, at: int) -> None:
        """Note where a row's output lies, whether or not the row has been given yet."""
        self.finished += key not in self
        self._do("INSERT INTO rows VALUES (?, 0, ?) ON CONFLICT (key) DO UPDATE SET at = excluded.at", key, at)

    def __contains__(self, key: str) -> bool:
        """Whether a row is finished."""
        return self._do("SELECT 1 FROM rows WHERE key = ? AND at IS NOT NULL", key).fetchone() is not None

    def __iter__(self) -> Iterator[tuple[str, int | None]]:
        """Every row of ours, in order: its key and its place, None if it is not finished."""
        return iter(self._do("SELECT key, at FROM given LEFT JOIN rows USING (key) ORDER BY number"))
