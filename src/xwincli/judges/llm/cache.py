"""Replies by the content of their question, in one file that runs and processes share: a paid call is made once.

SQLite keeps the file whole under several writers and a kill at any moment.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
import time
from pathlib import Path

import msgspec

from xwincli.errors import XwinError
from xwincli.judges.llm.said import Said

TABLES = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, said BLOB NOT NULL, made REAL NOT NULL);
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL);
"""
PATIENCE = 60.0  # seconds to wait for another process that writes
LEASE = 3600.0  # seconds after which a claim from another machine is taken for dead


def default() -> Path:
    """Where the cache lies if nothing else is said."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "xwincli" / "judgements.sqlite"


class Cache:
    """Replies on disk, and who is about to get one.

    Args:
        path: of the file, made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()
        self._me = f"{socket.gethostname()}:{os.getpid()}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
            self._base.executescript(TABLES)
        except (OSError, sqlite3.Error) as e:
            raise XwinError(
                f"{path}: no cache of replies: {e}", "--judge-cache FILE names another, none does without"
            ) from e

    def get(self, key: str) -> Said | None:
        """The reply to a question, if it was ever given."""
        with self._lock:
            row = self._base.execute("SELECT said FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else msgspec.json.decode(row[0], type=Said)

    def put(self, key: str, said: Said) -> None:
        """Keep a reply; from here on it survives a kill. A claim on it ends."""
        with self._lock:
            try:
                self._base.execute("BEGIN IMMEDIATE")
                values = (key, msgspec.json.encode(said), time.time())
                self._base.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?)", values)
                self._base.execute("DELETE FROM claims WHERE key = ?", (key,))
                self._base.execute("COMMIT")
            except sqlite3.Error as e:
                raise XwinError(f"{self.path}: cannot keep a reply: {e}", "the same command goes on from here") from e

    def claim(self, key: str) -> bool:
        """True if this process is to ask; False while another one does."""
        now = time.time()
        with self._lock:
            self._base.execute("BEGIN IMMEDIATE")
            try:
                row = self._base.execute("SELECT owner, until FROM claims WHERE key = ?", (key,)).fetchone()
                free = row is None or row[0] == self._me or row[1] < now or not self._lives(row[0])
                if free:
                    self._base.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", (key, self._me, now + LEASE))
                return free
            finally:
                self._base.execute("COMMIT")

    def release(self, key: str) -> None:
        """Give up a claim: no reply came."""
        with self._lock:
            self._base.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (key, self._me))

    def _lives(self, owner: str) -> bool:
        host, _, pid = owner.rpartition(":")
        if host != socket.gethostname():
            return True
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True
