"""Opening data: what is read, in which order, and what is refused by which sentence."""

from __future__ import annotations

import gzip
import io
import os
import sys
import threading

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from xwincli import sources
from xwincli.errors import XwinError

LINES = b'{"a": 1}\n{"a": 2}\n'


def gz(data: bytes) -> bytes:
    """The same bytes at every import: they name tests, and two workers must agree on the names."""
    return gzip.compress(data, mtime=0)


def refusal(call, *args):
    with pytest.raises(XwinError) as e:
        list(call(*args))
    return e.value.message


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.jsonl", LINES),
        ("x.jsonl.gz", gz(LINES)),
        ("two.jsonl.gz", gz(LINES[:9]) + gz(LINES[9:])),
        ("x.jsonl.zst", zstandard.compress(LINES)),
        ("two.jsonl.zst", zstandard.compress(LINES[:9]) + zstandard.compress(LINES[9:])),
    ],
)
def test_plain_and_packed_files_give_the_same_lines(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert list(sources.lines(str(tmp_path / name))) == [b'{"a": 1}\n', b'{"a": 2}\n']


@given(st.lists(st.binary(max_size=9), max_size=9))
def test_blocks_are_cut_like_a_file_is(chunks):
    whole = b"".join(chunks)
    assert list(sources._split(chunks)) == list(io.BytesIO(whole))


def test_lines_end_at_newline_only_and_the_mark_at_the_start_goes(tmp_path):
    text = "\ufeffone\u2028two\rthree\x0cfour\n\ufefffive"
    (tmp_path / "x").write_text(text, encoding="utf-8", newline="")
    got = [line.decode() for line in sources.lines(str(tmp_path / "x"))]
    assert got == ["one\u2028two\rthree\x0cfour\n", "\ufefffive"]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("x.jsonl", gz(LINES), "looks like gzip under another name"),
        ("x.jsonl", zstandard.compress(LINES), "looks like Zstandard under another name"),
        ("x.jsonl.gz", LINES, "is named .gz but is no gzip file"),
        ("x.jsonl.zst", gz(LINES), "looks like gzip under another name"),
        ("x.jsonl", b"PK\x03\x04rest", "a zip archive"),
        ("x.jsonl", b"PAR1rest", "a Parquet file"),
        ("x.jsonl", b"ARROW1\0\0", "an Arrow file"),
        ("x.jsonl", '{"a": 1}\n'.encode("utf-16"), "UTF-16 text"),
        ("x.jsonl", '{"a": 1}\n'.encode("utf-16-le"), "UTF-16 text"),
        ("x.jsonl", '{"a": 1}\n'.encode("utf-16-be"), "UTF-16 text"),
        ("x.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("x.jsonl.gz", gz(LINES)[:-9], "gzip data is damaged"),
        ("x.jsonl.gz", gz(LINES)[:-8] + b"12345678", "gzip data is damaged"),
        ("x.jsonl.zst", zstandard.compress(LINES)[:-3], "Zstandard data is damaged"),
        ("x.jsonl.zst", zstandard.compress(LINES)[:6] + b"\xff" * 20, "Zstandard data is damaged"),
    ],
)
def test_what_is_no_text_is_named_for_what_it_is(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    message = refusal(sources.lines, str(tmp_path / name))
    assert said in message
    assert message.startswith(str(tmp_path / name))


def test_zstandard_cut_between_two_lines_is_not_taken_for_the_end(tmp_path):
    frame = zstandard.ZstdCompressor().compressobj()
    begun = frame.compress(LINES) + frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)  # whole lines, no end
    (tmp_path / "x.zst").write_bytes(begun)
    assert "damaged" in refusal(sources.lines, str(tmp_path / "x.zst"))


def test_expand_keeps_order_and_sorts_globs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b1.jsonl", "b0.jsonl", "a.jsonl", "odd[1].jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "b9.jsonl").mkdir()  # folders are no rows
    assert sources.expand(["b*.jsonl", "a.jsonl"]) == ["b0.jsonl", "b1.jsonl", "a.jsonl"]
    assert sources.expand(["odd[1].jsonl", "hf:x:train", "-"]) == ["odd[1].jsonl", "hf:x:train", "-"]


def test_expand_says_why_a_name_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    assert refusal(sources.expand, ["none.jsonl"]) == "none.jsonl: no such file"
    assert refusal(sources.expand, ["none*.jsonl"]) == "none*.jsonl: no file matches"
    assert refusal(sources.expand, ["folder"]) == "folder: is a folder, not a file"
    assert refusal(sources.expand, ["dangling"]) == "dangling: is a link to nowhere, which does not exist"
    assert "too many levels of symbolic links" in refusal(sources.expand, ["loop"])
    assert "named twice" in refusal(sources.expand, ["-", "-"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path):
    (tmp_path / "x").write_bytes(LINES)
    (tmp_path / "x").chmod(0)
    assert "permission denied" in refusal(sources.expand, [str(tmp_path / "x")])


@pytest.mark.parametrize("data", [LINES, gz(LINES), zstandard.compress(LINES)])
def test_standard_input_is_unpacked_by_its_bytes(monkeypatch, data):
    class Stdin:
        buffer = io.BufferedReader(io.BytesIO(data))

        def isatty(self):
            return False

    monkeypatch.setattr(sys, "stdin", Stdin())
    assert b"".join(sources.lines("-")) == LINES


def test_a_named_pipe_is_a_stream(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert sources.is_stream(str(pipe))
    writer = threading.Thread(target=pipe.write_bytes, args=(LINES,))
    writer.start()
    assert b"".join(sources.lines(str(pipe))) == LINES
    writer.join()


def test_hub_streams_a_local_folder_without_the_nulls_that_datasets_fills_in(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"a": {"x": 1}}\n{"a": {"y": [{"p": 1}, {"q": 2}]}, "b": null}\n')
    expected = [{"a": {"x": 1}}, {"a": {"y": [{"p": 1}, {"q": 2}]}}]
    assert list(sources.hub(f"hf:{tmp_path}")) == expected
    assert list(sources.hub(f"hf:{tmp_path}:train")) == expected


def test_hub_asks_for_a_split_where_there_are_several(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "test.jsonl").write_text('{"a": 2}\n')
    assert "has the splits" in refusal(sources.hub, f"hf:{tmp_path}")
    assert list(sources.hub(f"hf:{tmp_path}:test")) == [{"a": 2}]
    assert list(sources.hub(f"hf:{tmp_path}:default:test")) == [{"a": 2}]
    assert "hf:" in refusal(sources.hub, f"hf:{tmp_path}:none")
    assert "not a data set" in refusal(sources.hub, "hf:")
