"""Rows as records: the format is sniffed on a file's first row, every row is held to it and converted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, cast

from xwincli import jsonl, sources
from xwincli.console import say
from xwincli.errors import XwinError
from xwincli.formats.kinds import as_kind, plural
from xwincli.formats.parts import Format
from xwincli.formats.table import NAMES, by_name, sniff
from xwincli.records import Record, decode

__all__ = ["NAMES", "Rows", "as_kind", "count", "plural", "read", "read_any"]

R = TypeVar("R", bound=Record)


class Rows:
    """The rows of one source as records; iterate once.

    Args:
        source: a file, ``-`` or ``hf:NAME[:SPLIT]``.
        wanted: the kind to make; None for the one the format is made for.
        as_format: a format's name, or ``auto``.
        problems: rows that are refused are noted here and reading goes on; None raises the first.

    Attributes:
        format: what the first row was found to be (None before it).
        kind: the kind of the records.
        where: ``file:line`` of the latest record.
        count: how many records there were.
    """

    def __init__(
        self,
        source: str,
        wanted: type[Record] | None = None,
        as_format: str = "auto",
        problems: list[XwinError] | None = None,
    ) -> None:
        self.source, self.wanted, self.problems = source, wanted, problems
        self.format: Format | None = None if as_format == "auto" else by_name(as_format)
        self.kind: type[Record] | None = None
        self.where, self.count = "", 0
        self._prompts: dict[str, Any] = {}  # by id, where rows share them

    def __iter__(self) -> Iterator[Record]:
        for where, row in jsonl.read(self.source, self.problems):
            self.where = where
            try:
                record = self._record(row)
            except XwinError as e:
                if self.problems is None:
                    raise
                self.problems.append(e)
                continue
            self.count += 1
            yield record

    def _record(self, row: dict[str, Any]) -> Record:
        if self.format is None:
            self.format = sniff(row, self.where, self.wanted)
        natural = next(iter(self.format.to))
        kind = self.wanted if self.wanted and self.wanted in self.format.to else natural
        self.kind = self.wanted or kind
        for key in self.format.needs:
            if key not in row:
                hint = f"{sources.shown(self.source)} is read as {self.format.name}, as its first row is"
                raise XwinError(f"{self.where}: field {key}: is missing", hint)
        columns = self.format.to[kind](row, self.where)
        record = decode(columns, kind, self.where)
        if self.format.shares_ids and columns.get("id"):
            asked = self._prompts.setdefault(record.id, columns["prompt"])
            if asked != columns["prompt"]:
                hint = "rows of one id are candidates for one prompt"
                raise XwinError(f"{self.where}: field prompt: another row of id {record.id!r} has another", hint)
        if self.wanted is None or kind is self.wanted:
            return record
        return as_kind(record, self.wanted, self.where, named=bool(columns.get("id")))

    def echo(self, known: bool) -> None:
        """Tell the user of a foreign format, with the number of rows where it is known."""
        if self.format is None or self.format.ours or self.kind is None:
            return
        count = f"{self.count} rows read" if known else "read"
        say(f"{sources.shown(self.source)}: {self.format.name}, {count} as {plural(self.kind)}")


def read(
    data: Sequence[str], kind: type[R], *, limit: int = 0, as_format: str = "auto", checked: bool = True
) -> Iterator[R]:
    """The records of ``--data`` as one kind: opened, sniffed, converted, validated.

    A foreign format is said once a source. Files are read twice: by this call, to validate them whole, so
    that bad input is refused before any work, and by the iterator. Streams (standard input, pipes, the hub)
    are read as they come.

    Args:
        data: files, globs, ``-`` and ``hf:NAME[:SPLIT]``.
        kind: the record wanted; a ``Prompt`` is also made of a group, a pair, a judgement (their responses
            dropped) or a conversation (its last answer dropped), a ``Group`` of a conversation.
        limit: records in all; 0 for all there are.
        as_format: a format's name instead of ``auto``.
        checked: False streams files as well.

    Raises:
        XwinError: names the file, the line and the field.
    """
    return cast(Iterator[R], _records(data, kind, limit, as_format, checked))


def read_any(data: Sequence[str], *, limit: int = 0, as_format: str = "auto", checked: bool = True) -> Iterator[Record]:
    """As ``read``, each file's records in the kind its format is made for."""
    return _records(data, None, limit, as_format, checked)


def count(data: Sequence[str], kind: type[Record], *, limit: int = 0) -> int | None:
    """How many records ``read`` will yield, for a progress bar; None if a source can be read only once."""
    names = sources.expand(data)
    if any(map(sources.is_stream, names)):
        return None
    total = sum(1 for name in names for _ in Rows(name, kind))
    return min(total, limit) if limit else total


def _records(
    data: Sequence[str], kind: type[Record] | None, limit: int, as_format: str, checked: bool
) -> Iterator[Record]:
    names = sources.expand(data)
    seen: set[str] = set()
    left = limit or -1
    for name in names if checked else ():
        if left and not sources.is_stream(name) and name not in seen:
            seen.add(name)
            left -= _validate(name, kind, as_format, left)
    return _streamed(names, kind, limit, as_format, seen)


def _streamed(
    names: list[str], kind: type[Record] | None, limit: int, as_format: str, said: set[str]
) -> Iterator[Record]:
    left = limit or -1
    for name in names:
        rows = Rows(name, kind, as_format)
        for record in rows:
            if rows.count == 1 and name not in said:
                rows.echo(known=False)
            yield record
            left -= 1
            if left == 0:
                return


def _validate(name: str, kind: type[Record] | None, as_format: str, limit: int) -> int:
    """Read a file to its end (or to ``limit`` records) for its errors; returns the number of records."""
    rows = Rows(name, kind, as_format)
    for _ in rows:
        if rows.count == limit:
            break
    rows.echo(known=True)
    return rows.count
