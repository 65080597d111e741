"""JSON lines on disk: how a row becomes a line, and files that appear only when whole."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import jsonlines
import msgspec

from xwincli.errors import XwinError
from xwincli.records import Record, encode


def dumps(value: Any) -> str:
    """One value as compact JSON without a newline; NaN and infinities become null (msgspec's rule)."""
    return msgspec.json.encode(value).decode()


@contextmanager
def writer(out: str) -> Iterator[jsonlines.Writer]:
    """Write records to a file that appears only if the block ends well, or to standard output (``-``)."""
    if out == "-":
        yield jsonlines.Writer(sys.stdout, dumps=dumps, flush=True)
        return
    with atomic(Path(out)) as f, jsonlines.Writer(f, dumps=dumps) as w:
        yield w


@contextmanager
def atomic(path: Path) -> Iterator[IO[str]]:
    """A text file written beside ``path`` and renamed over it at the end; removed if the block fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        part.replace(path)
    except OSError as e:
        raise XwinError(f"{path}: cannot write: {e.strerror}") from e
    finally:
        part.unlink(missing_ok=True)


def write(out: str, records: Iterable[Record]) -> int:
    """Write records to ``out`` as a whole or not at all; returns how many."""
    count = 0
    with writer(out) as w:
        for record in records:
            w.write(encode(record))
            count += 1
    return count
