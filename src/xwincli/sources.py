"""Where rows come from: files, globs, standard input, gzip, Zstandard, and the hub through ``datasets``."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from xwincli.errors import XwinError

GLOB = frozenset("*?[")
CHUNK = 1 << 18  # bytes of compressed data taken at a time

# first bytes -> what the file is, and what to do about it
STRANGERS: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "a zip archive", "unpack it first: unzip"),
    (b"PAR1", "a Parquet file", "read its folder through `hf:FOLDER`"),
    (b"ARROW1", "an Arrow file", "read its folder through `hf:FOLDER`"),
    (b"\xff\xff\xff\xff", "an Arrow stream", "read its folder through `hf:FOLDER`"),
    (b"FEA1", "a Feather file", "write it as JSON lines first"),
    (b"BZh", "bzip2 data", "unpack it first: bunzip2"),
    (b"\xfd7zXZ", "xz data", "unpack it first: unxz"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it first"),
    (b"GGUF", "a GGUF model", "give it as --model"),
    (b"SQLite format 3", "an SQLite database", "write the table as JSON lines first"),
    (b"\x89HDF", "an HDF5 file", "write it as JSON lines first"),
    (b"%PDF", "a PDF document", ""),
    (b"\x80\x04", "a Python pickle", "write it as JSON lines first"),
    (b"\xff\xfe", "UTF-16 text", "iconv -f utf-16 -t utf-8 makes it UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "iconv -f utf-16 -t utf-8 makes it UTF-8"),
    (b"{\x00", "UTF-16 text", "iconv -f utf-16le -t utf-8 makes it UTF-8"),
    (b"[\x00", "UTF-16 text", "iconv -f utf-16le -t utf-8 makes it UTF-8"),
    (b"\x00{", "UTF-16 text", "iconv -f utf-16be -t utf-8 makes it UTF-8"),
    (b"\x00[", "UTF-16 text", "iconv -f utf-16be -t utf-8 makes it UTF-8"),
    (b"version https://git-lfs", "a Git LFS pointer", "git lfs pull fetches the data"),
    (b"<!DOCTYPE", "an HTML page", "download the raw file"),
    (b"<html", "an HTML page", "download the raw file"),
)
PACKED = {".gz": (b"\x1f\x8b", "gzip"), ".zst": (b"\x28\xb5\x2f\xfd", "Zstandard")}


def shown(source: str) -> str:
    """A source's name in messages."""
    return "standard input" if source == "-" else source


def is_stream(source: str) -> bool:
    """True for a source that can be read only once (standard input, a pipe) or at a cost (the hub)."""
    return source == "-" or source.startswith("hf:") or not Path(source).is_file()


def expand(data: Sequence[str]) -> list[str]:
    """The sources that ``--data`` names, in order; a glob becomes its files, sorted.

    Args:
        data: file names, globs, ``-`` and ``hf:NAME[:SPLIT]``.

    Raises:
        XwinError: nothing matches, or a file cannot be read (missing, a folder, no permission).
    """
    found: list[str] = []
    for name in data:
        if name == "-" or name.startswith("hf:") or os.path.lexists(name) or not GLOB.intersection(name):
            found.append(name)
            continue
        matches = sorted(m for m in glob.glob(name, recursive=True) if not Path(m).is_dir())  # noqa: PTH207
        if not matches:
            raise XwinError(f"{name}: no file matches")
        found += matches
    if found.count("-") > 1:
        raise XwinError("--data: standard input (`-`) is named twice; it can be read once")
    for name in found:
        if name != "-" and not name.startswith("hf:"):
            _must_be_readable(name)
    return found


def _must_be_readable(name: str) -> None:
    path = Path(name)
    try:
        path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise XwinError(f"{name}: is a link to {path.readlink()}, which does not exist") from None
        raise XwinError(f"{name}: no such file") from None
    except (OSError, ValueError) as e:
        raise XwinError(f"{name}: cannot read: {_reason(e)}") from None
    if path.is_dir():
        raise XwinError(f"{name}: is a folder, not a file", f"name its files: --data '{path}/*.jsonl'")
    if not os.access(name, os.R_OK):
        raise XwinError(f"{name}: cannot read: permission denied")


def _reason(e: Exception) -> str:
    text = e.strerror if isinstance(e, OSError) and e.strerror else str(e) or type(e).__name__
    return text[0].lower() + text[1:]


def lines(source: str) -> Iterator[bytes]:
    """The lines of a file or of standard input (``-``), unpacked, cut at ``\\n`` only.

    U+2028 and carriage returns stay in their line; a byte order mark at the start is taken away.

    Raises:
        XwinError: the source cannot be read, is no text, or its compressed data is damaged.
    """
    first = True
    try:
        with _opened(source) as f:
            for line in _unpacked(f, source):
                yield line.removeprefix(b"\xef\xbb\xbf") if first else line
                first = False
    except OSError as e:
        raise XwinError(f"{shown(source)}: cannot read: {_reason(e)}") from None


@contextmanager
def _opened(source: str) -> Iterator[IO[bytes]]:
    if source == "-":
        if sys.stdin.isatty():
            print("reading rows from the terminal; Ctrl-D ends them", file=sys.stderr)
        yield sys.stdin.buffer
        return
    _must_be_readable(source)
    with Path(source).open("rb") as f:
        yield f


def _unpacked(f: IO[bytes], source: str) -> Iterable[bytes]:
    """The lines of an open source; what it is, is read off its first bytes and held against its name."""
    head = f.peek(32)[:32]  # type: ignore[attr-defined]
    for suffix, (magic, name) in PACKED.items():
        is_packed = head.startswith(magic)
        if is_packed and source != "-" and not source.endswith(suffix):
            raise XwinError(f"{source}: looks like {name} under another name", f"name it {source}{suffix}")
        if not is_packed and head and source.endswith(suffix):
            raise XwinError(f"{source}: is named {suffix} but is no {name} file")
        if is_packed:
            return _split((_gunzip if suffix == ".gz" else _unzstd)(f, source))
    for magic, name, remedy in STRANGERS:
        if head.startswith(magic):
            raise XwinError(f"{shown(source)}: looks like {name}, not JSON lines", remedy)
    return f


def _split(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Blocks of bytes as lines, each with its ``\\n``."""
    held: list[bytes] = []
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        held.append(first)
        for piece in rest:
            yield b"".join(held) + b"\n"
            held = [piece]
    if last := b"".join(held):
        yield last


def _gunzip(f: IO[bytes], source: str) -> Iterator[bytes]:
    import gzip
    import zlib

    try:
        with gzip.GzipFile(fileobj=f) as g:
            while block := g.read(CHUNK):
                yield block
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise _damaged(source, "gzip", e) from None


def _unzstd(f: IO[bytes], source: str) -> Iterator[bytes]:
    """Frame by frame, so that an unfinished last frame shows (a stream reader ends there in silence)."""
    import zstandard

    frame: Any = None
    rest = b""
    try:
        while block := rest or f.read(CHUNK):
            frame = frame or zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            yield frame.decompress(block)
            rest = b""
            if frame.eof:
                rest, frame = frame.unused_data, None
        if frame is not None:
            raise EOFError("the data is cut off before its end")
    except (EOFError, zstandard.ZstdError) as e:
        raise _damaged(source, "Zstandard", e) from None


def _damaged(source: str, name: str, e: Exception) -> XwinError:
    return XwinError(f"{shown(source)}: the {name} data is damaged: {e}", "copy or download the file again")


def hub(source: str) -> Iterator[dict[str, Any]]:
    """The rows of ``hf:NAME[:SPLIT]`` (or ``hf:NAME:CONFIG:SPLIT``), streamed through ``datasets``.

    NAME is a hub name or a local folder of data files. Columns and nested keys without a value, which
    ``datasets`` fills with None, are left out.
    """
    name, *parts = source.removeprefix("hf:").split(":")
    if not name or len(parts) > 2:
        raise XwinError(f"{source}: not a data set", "write hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT")
    import datasets

    datasets.disable_progress_bars()
    config = parts[0] if len(parts) == 2 else None
    try:
        table = datasets.load_dataset(name, config, split=parts[-1] if parts else None, streaming=True)
        for row in _one_split(table, source):
            yield _without_none(row)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as e:
        text = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise XwinError(f"{source}: {text}", "is the name right, and the network there?") from None


def _one_split(table: Any, source: str) -> Iterable[dict[str, Any]]:
    splits: dict[str, Iterable[dict[str, Any]]] = table if isinstance(table, dict) else {"": table}
    if len(splits) == 1:
        return next(iter(splits.values()))
    raise XwinError(f"{source}: has the splits {', '.join(table)}", f"name one: {source}:{next(iter(table))}")


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value
