"""How a row-wise artifact comes to be: journalled as rows finish, then rewritten in input order and renamed.

``x.jsonl.partial`` holds one entry a finished input row; a rerun of the same configuration goes on from it.
Rows that failed stand in ``x.failed.jsonl`` and are tried again by the next run.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from xwincli import jsonl, manifest
from xwincli.console import say, stdout, warn
from xwincli.errors import FAILED_ROWS, XwinError
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
        self.order: list[str] = []
        self.offsets: dict[str, int] = {}
        self.failed: dict[str, dict[str, Any]] = {}
        self._held: dict[str, list[dict[str, Any]]] = {}
        self._shown = 0
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
        if self.offsets:
            say(f"{self.out}: going on after {len(self.offsets)} finished rows")

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
            self.offsets[entry["key"]] = end
            end += len(line)
        self._file.seek(end)
        self._file.truncate()

    def recovered(self) -> Iterator[dict[str, Any]]:
        """The rows that earlier runs of this journal finished, for figures over all of them."""
        if self._file is None:
            return
        end = self._file.tell()
        for offset in list(self.offsets.values()):
            self._file.seek(offset)
            yield from msgspec.json.decode(self._file.readline())["rows"]
        self._file.seek(end)

    # -- the work

    def todo(self, rows: Iterable[R]) -> Iterator[tuple[str, R]]:
        """The shard's rows not yet finished, each with its key (made of content; repeats are numbered)."""
        return ((key, row) for key, row in self._mine(rows) if key not in self.offsets)

    def blocks(self, rows: Iterable[R]) -> Iterator[list[tuple[str, R]]]:
        """The shard's blocks of consecutive rows in which any is not yet finished, each block whole."""
        mine = self._mine(rows)
        while block := list(itertools.islice(mine, self.shard.block)):
            if any(key not in self.offsets for key, _ in block):
                yield block

    def _mine(self, rows: Iterable[R]) -> Iterator[tuple[str, R]]:
        seen: dict[str, int] = {}
        for number, row in enumerate(rows):
            key = content_id(encode(row))
            seen[key] = seen.get(key, 0) + 1
            if seen[key] > 1:
                key = f"{key}#{seen[key]}"
            self.rows = number + 1
            if self.shard.owns(number):
                self.order.append(key)
                yield key, row

    def add(self, key: str, records: Sequence[Record]) -> None:
        """Keep the finished output of one input row; it survives a kill from here on."""
        rows = [encode(r) for r in records]
        self.failed.pop(key, None)
        if self._file is None:
            self._held[key] = rows
            self._show()
            return
        self.offsets[key] = self._file.tell()
        try:
            self._file.write(msgspec.json.encode({"key": key, "rows": rows}) + b"\n")
            self._file.flush()
            if time.monotonic() - self._synced > FSYNC_EVERY:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as e:
            raise XwinError(f"{self.path}: cannot write: {e.strerror}", "the same command goes on from here") from e

    def fail(self, key: str, row: Record, error: str) -> None:
        """Note a row that could not be finished; the next run tries it again."""
        self.failed[key] = {"error": error, "row": encode(row)}
        if self._file is None:
            self._held[key] = []
            self._show()

    def _show(self) -> None:
        while self._shown < len(self.order) and self.order[self._shown] in self._held:
            for row in self._held.pop(self.order[self._shown]):
                stdout().write(jsonl.dumps(row) + "\n")
            stdout().flush()
            self._shown += 1

    # -- the end

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            if self._file is not None:
                with suppress(OSError):  # a full disk refuses again what it has refused
                    self._file.close()
                if not self.offsets:
                    self.path.unlink(missing_ok=True)
            return
        self._finish()

    def _finish(self) -> None:
        share = len(self.failed) / max(len(self.order), 1)
        if self._file is not None:
            self._write_failed()
            if share <= self.allow_failed:
                self._rewrite()
            self._file.close()
            if share <= self.allow_failed:
                self.path.unlink(missing_ok=True)
        if self.failed:
            where = f", see {self.failed_path}" if self._file is not None else ""
            text = f"{len(self.failed)} of {len(self.order)} rows failed{where}"
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
        rows = 0
        with jsonl.atomic(Path(self.out)) as f:
            for key in self.order:
                if key in self.failed:
                    continue
                self._file.seek(self.offsets[key])
                for row in msgspec.json.decode(self._file.readline())["rows"]:
                    f.write(jsonl.dumps(row) + "\n")
                    rows += 1
        if self.shard.of > 1:
            failed = [i for i, key in enumerate(self.order) if key in self.failed]
            self.plan |= {"shard": {**asdict(self.shard), "failed": failed}}
        counts = {"in": len(self.order), "out": rows, "failed": len(self.failed), **self.counts}
        manifest.write(
            self.out,
            self.plan,
            self.config,
            started=self.started,
            counts=counts,
            metrics=self.metrics,
            machine=self.machine,
        )
