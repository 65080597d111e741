"""JSON lines on disk: what a line must be to become a row, how a row becomes a line, files that are whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import jsonlines
import msgspec

from xwincli import console, sources
from xwincli.errors import XwinError
from xwincli.records import Record, encode
from xwincli.strict import Strict, explain, oddity, space


def dumps(value: Any) -> str:
    """One value as compact JSON without a newline; NaN and infinities become null (msgspec's rule)."""
    return msgspec.json.encode(value).decode()


@contextmanager
def writer(out: str) -> Iterator[jsonlines.Writer]:
    """Write records to a file that appears only if the block ends well, or to standard output (``-``)."""
    if out == "-":
        yield jsonlines.Writer(console.stdout(), dumps=dumps, flush=True)
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


def read(source: str, problems: list[XwinError] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a source, each with where it stands (``file:line``; ``file[i]`` inside a JSON array).

    A file is JSON lines, or one JSON array of objects (not under a ``.jsonl`` name). Refused are duplicate
    keys, NaN and infinite numbers, lone surrogates, raw control characters, integers of over 4300 digits,
    rows that are no objects, and a source without rows. Lines are counted with the blank ones.

    Args:
        source: a file, ``-`` or ``hf:NAME[:SPLIT]``.
        problems: refused rows are noted here and reading goes on; None raises the first.

    Raises:
        XwinError: names the place, and the field where there is one.
    """
    rows = 0
    for where, value in _values(source):
        if isinstance(value, dict):
            rows += 1
            yield where, value
            continue
        error = value if isinstance(value, XwinError) else _no_object(where, value, source)
        if problems is None:
            raise error
        problems.append(error)
    if not rows and not problems:
        error = XwinError(f"{sources.shown(source)}: no rows", "there is nothing in it")
        if problems is None:
            raise error
        problems.append(error)


NAMES: dict[type, str] = {list: "an array", str: "text", bool: "true or false", type(None): "null"}


def _no_object(where: str, value: Any, source: str) -> XwinError:
    is_array = isinstance(value, list) and _is_lines(source)
    hint = "a file that is one JSON array is named .json" if is_array else ""
    text = NAMES.get(type(value), "a number")
    return XwinError(f"{where}: a row is an object with named fields, this is {text}", hint)


def _is_lines(source: str) -> bool:
    return source.removesuffix(".gz").removesuffix(".zst").endswith((".jsonl", ".ndjson"))


def _values(source: str) -> Iterator[tuple[str, Any]]:
    """Each row's place and value, an XwinError standing for a row that is not strict JSON."""
    strict = Strict()
    if source.startswith("hf:"):
        for i, row in enumerate(sources.hub(source), 1):
            yield f"{source}:{i}", row if (bad := oddity(row)) is None else XwinError(f"{source}:{i}: {bad}")
        return
    name = sources.shown(source)
    text = sources.lines(source)
    blank: list[bytes] = []  # lines before the first that holds anything
    for line in text:
        blank.append(line)
        if line.strip():
            break
    if not blank or not blank[-1].strip():
        return
    if blank[-1].lstrip().startswith(b"[") and not _is_lines(source):
        yield from _array(name, b"".join([*blank, *text]), strict)
    else:
        yield from _lines(name, blank, text, strict)


class _Counted:
    """An iterator of lines that knows how many it has given."""

    def __init__(self, *parts: Iterable[bytes]) -> None:
        self.parts, self.line = parts, 0

    def __iter__(self) -> Iterator[bytes]:
        for part in self.parts:
            for line in part:
                self.line += 1
                yield line


def _lines(name: str, head: list[bytes], rest: Iterable[bytes], strict: Strict) -> Iterator[tuple[str, Any]]:
    counted = _Counted(head, rest)
    reader = jsonlines.Reader(counted, loads=strict)
    while True:
        try:
            value: Any = reader.read(allow_none=True, skip_empty=True)
        except EOFError:
            return
        except jsonlines.InvalidLineError as e:
            value = _refusal(f"{name}:{counted.line}", e.__cause__)
        yield f"{name}:{counted.line}", value


def _refusal(where: str, cause: BaseException | None) -> XwinError:
    text, hint = explain(cause)
    return XwinError(f"{where}: {text}", hint)


def _array(name: str, raw: bytes, strict: Strict) -> Iterator[tuple[str, Any]]:
    """The elements of one JSON array; what is not strict JSON ends it."""
    where = name
    try:
        text = raw.decode("utf-8")
        at, index = space(text, text.index("[") + 1), 0
        while index or text[at : at + 1] != "]":
            where = f"{name}[{index}]"
            value, at = strict.element(text, at)
            yield where, value
            at, index = space(text, at), index + 1
            if text[at : at + 1] != ",":
                break
            at = space(text, at + 1)
        if text[at : at + 1] != "]":
            raise json.JSONDecodeError("the array goes on with neither ',' nor ']'", text, at)
        if (end := space(text, at + 1)) < len(text):
            raise json.JSONDecodeError("extra data after the array", text, end)
    except json.JSONDecodeError as e:
        yield name, _refusal(f"{name}:{e.lineno}", e)
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        yield name, _refusal(f"{name}:{line}", e)
    except ValueError as e:
        yield name, _refusal(where, e)
