"""How a row-wise artifact comes to be: journalled as rows finish, then rewritten in input order and renamed.

``x.jsonl.partial`` holds one entry a finished input row; a rerun of the same configuration goes on from it.
Rows that failed stand in ``x.failed.jsonl`` and are tried again by the next run.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from xwincli import jsonl, manifest
from xwincli.console import say, stdout, warn
from xwincli.errors import FAILED_ROWS, XwinError
from xwincli.index import Index
from xwincli.records import Record, content_id, encode
from xwincli.shards import WHOLE, Shard

R = TypeVar("R", bound=Record)
FSYNC_EVERY = 1.0  # seconds of work a power cut may cost; a killed process loses nothing


class Journal:
    """The artifact of one run over many input rows.

    Use it as a context manager: ``for key, row in journal.todo(rows): …; journal.add(key, [records])``.
    Leaving the block without an exception completes the artifact; with one, the journal stays for the
    next run. With ``out`` = ``-`` rows go to standard output in input order and nothing is kept.

    Args:
        out: the artifact's path or ``-``; with several shards that of the whole.
        plan: from ``manifest.plan``.
        config: the stage's config, written to the manifest.
        allow_failed: share of the rows that may fail before the artifact is withheld.
        force: forget an earlier journal.
        shard: whose rows these are.
    """

    def __init__(
        self,
        out: str,
        plan: manifest.Manifest,
        config: Any,
        *,
        allow_failed: float = 0.0,
        force: bool = False,
        shard: Shard = WHOLE,
    ) -> None:
        out = shard.part(out)
        self.out, self.plan, self.config, self.allow_failed, self.shard = out, plan, config, allow_failed, shard
        self.started = time.time()
        self.counts: dict[str, Any] = {}
        self.metrics: dict[str, Any] = {}
        self.machine: dict[str, Any] = {}
        self.rows = 0
        self.index = Index()
        self.failed: dict[str, dict[str, Any]] = {}
        self._held: dict[str, list[dict[str, Any]]] = {}
        self._waiting: deque[str] = deque()
        self._synced = time.monotonic()
        self._file: IO[bytes] | None = None
        if out != "-":
            self.path = Path(out + ".partial")
            self.failed_path = Path(out).with_suffix(".failed" + Path(out).suffix)
            self._open(force)

    # -- starting and going on

    def _open(self, force: bool) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        mark = manifest.key(self.plan)
        if self.path.exists():
            if force:
                self.path.unlink()
            elif (old := self._mark()) != mark:
                aside = self.path.with_name(f"{self.path.name}.{old or 'unreadable'}")
                self.path.replace(aside)
                say(f"{self.path} was made with other options or inputs: kept as {aside.name}")
        mine = self.path.with_name(f"{self.path.name}.{mark}")
        if not self.path.exists() and mine.exists() and not force:
            mine.replace(self.path)
        if not self.path.exists():
            try:
                self.path.write_bytes(msgspec.json.encode({"journal": mark}) + b"\n")
            except OSError as e:
                self.path.unlink(missing_ok=True)
                raise XwinError(f"{self.path}: cannot write: {e.strerror}") from e
        self._file = self.path.open("r+b")
        self._recover()
        if self.finished:
            say(f"{self.out}: going on after {self.finished} finished rows")

    @property
    def finished(self) -> int:
        """Rows that this run and earlier ones have finished."""
        return self.index.finished

    def _mark(self) -> str | None:
        with self.path.open("rb") as f:
            try:
                return str(msgspec.json.decode(f.readline())["journal"])
            except (msgspec.DecodeError, KeyError, TypeError):
                return None

    def _recover(self) -> None:
        """Index the finished entries and cut off a line torn by a kill."""
        assert self._file is not None
        end = len(self._file.readline())
        for line in self._file:
            try:
                entry = msgspec.json.decode(line)
            except msgspec.DecodeError:
                break
            if not line.endswith(b"\n"):
                break
            self.index.finish(entry["key"], end)
            end += len(line)
        self._file.seek(end)
        self._file.truncate()

    def recovered(self) -> Iterator[dict[str, Any]]:
        """The rows that earlier runs of this journal finished, for figures over all of them."""
        if self._file is None:
            return
        with self.path.open("rb") as f:
            f.readline()
            for line in f:
                yield from msgspec.json.decode(line)["rows"]

    # -- the work

    def todo(self, rows: Iterable[R]) -> Iterator[tuple[str, R]]:
        """The shard's rows not yet finished, each with its key (made of content; repeats are numbered)."""
        return ((key, row) for key, row in self._mine(rows) if key not in self.index)

    def blocks(self, rows: Iterable[R]) -> Iterator[list[tuple[str, R]]]:
        """The shard's blocks of consecutive rows in which any is not yet finished, each block whole."""
        mine = self._mine(rows)
        while block := list(itertools.islice(mine, self.shard.block)):
            if any(key not in self.index for key, _ in block):
                yield block

    def _mine(self, rows: Iterable[R]) -> Iterator[tuple[str, R]]:
        for number, row in enumerate(rows):
            mine = self.shard.owns(number)
            key = self.index.give(content_id(encode(row)), mine)
            self.rows = number + 1
            if mine:
                if self._file is None:
                    self._waiting.append(key)
                yield key, row

    def add(self, key: str, records: Sequence[Record]) -> None:
        """Keep the finished output of one input row; it survives a kill from here on."""
        rows = [encode(r) for r in records]
        self.failed.pop(key, None)
        if self._file is None:
            self._held[key] = rows
            self._show()
            return
        at = self._file.tell()
        try:
            self._file.write(msgspec.json.encode({"key": key, "rows": rows}) + b"\n")
            self._file.flush()
            if time.monotonic() - self._synced > FSYNC_EVERY:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as e:
            raise XwinError(f"{self.path}: cannot write: {e.strerror}", "the same command goes on from here") from e
        self.index.finish(key, at)

    def fail(self, key: str, row: Record, error: str) -> None:
        """Note a row that could not be finished; the next run tries it again."""
        self.failed[key] = {"error": error, "row": encode(row)}
        if self._file is None:
            self._held[key] = []
            self._show()

    def _show(self) -> None:
        while self._waiting and self._waiting[0] in self._held:
            for row in self._held.pop(self._waiting.popleft()):
                stdout().write(jsonl.dumps(row) + "\n")
            stdout().flush()

    # -- the end

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            if self._file is not None:
                with suppress(OSError):  # a full disk refuses again what it has refused
                    self._file.close()
                if not self.finished:
                    self.path.unlink(missing_ok=True)
            return
        self._finish()

    def _finish(self) -> None:
        share = len(self.failed) / max(self.index.given, 1)
        if self._file is not None:
            self._write_failed()
            if share <= self.allow_failed:
                self._rewrite()
            self._file.close()
            if share <= self.allow_failed:
                self.path.unlink(missing_ok=True)
        if self.failed:
            where = f", see {self.failed_path}" if self._file is not None else ""
            text = f"{len(self.failed)} of {self.index.given} rows failed{where}"
            if share > self.allow_failed:
                first = next(iter(self.failed.values()))["error"]
                hint = "the same command tries them again; --allow-failed SHARE accepts the rest"
                raise XwinError(f"{text} (first: {first})", hint, FAILED_ROWS)
            warn(text)

    def _write_failed(self) -> None:
        if not self.failed:
            self.failed_path.unlink(missing_ok=True)
            return
        with jsonl.atomic(self.failed_path) as f:
            f.writelines(jsonl.dumps(row) + "\n" for row in self.failed.values())

    def _rewrite(self) -> None:
        """Entries from the journal, in input order and constant memory, into the artifact."""
        assert self._file is not None
        rows, failed = 0, []
        with jsonl.atomic(Path(self.out)) as f:
            for number, (key, at) in enumerate(self.index):
                if key in self.failed:
                    failed.append(number)
                    continue
                assert at is not None, f"row {number} was neither answered nor failed"
                self._file.seek(at)
                for row in msgspec.json.decode(self._file.readline())["rows"]:
                    f.write(jsonl.dumps(row) + "\n")
                    rows += 1
        if self.shard.of > 1:
            self.plan |= {"shard": {**asdict(self.shard), "failed": failed}}
        counts = {"in": self.index.given, "out": rows, "failed": len(failed), **self.counts}
        manifest.write(
            self.out,
            self.plan,
            self.config,
            started=self.started,
            counts=counts,
            metrics=self.metrics,
            machine=self.machine,
        )
