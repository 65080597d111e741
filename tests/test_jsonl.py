"""Reading lines strictly, with the place and the field in every refusal."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwincli import jsonl
from xwincli.errors import XwinError


@pytest.fixture
def read(tmp_path):
    """Write bytes under a name and read them: rows, or the refusal's message."""

    def call(data: bytes | str, name: str = "x.jsonl"):
        path = tmp_path / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        try:
            return [(where.removeprefix(f"{tmp_path}/"), row) for where, row in jsonl.read(str(path))]
        except XwinError as e:
            return e.message.removeprefix(f"{tmp_path}/")

    return call


def test_lines_are_numbered_with_the_blank_ones(read):
    data = b'\xef\xbb\xbf\r\n{"a": 1}\r\n \t\n\n\t{"a": "\xe2\x80\xa8"} \r\n'
    assert read(data) == [("x.jsonl:2", {"a": 1}), ("x.jsonl:5", {"a": "\u2028"})]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ('{"a": 1}\n{"a": "cut', "x.jsonl:2: the JSON breaks off"),
        ('{"a": 1}\n\n{"a": 1,\n"b": 2}\n', "x.jsonl:3: the JSON breaks off"),
        ('{"a": 1}\n// comment\n', "x.jsonl:2: not valid JSON: expecting value, column 1, near '// comment'"),
        ('{"a": 1}{"a": 2}\n', "x.jsonl:1: not valid JSON: extra data"),
        ("{'a': 1}\n", "x.jsonl:1: not valid JSON"),
        (b'{"a": 1}\n\0\0\0\0\n', "x.jsonl:2: NUL bytes instead of JSON"),
        (b'{"a": "x\0y"}\n', "x.jsonl:1: a raw control character (0x00) inside text, column 9"),
        (b'{"a": "x\ty"}\n', "x.jsonl:1: a raw control character (0x09)"),
        (b'{"a": "caf\xe9"}\n', "x.jsonl:1: byte 0xe9 at column 11 is not UTF-8"),
        (b'{"a": "\xed\xa0\xbd"}\n', "x.jsonl:1: byte 0xed at column 8 is not UTF-8"),
        ('{"a": 1}\nnull\n', "x.jsonl:2: a row is an object with named fields, this is null"),
        ('{"a": 1}\n42\n', "x.jsonl:2: a row is an object with named fields, this is a number"),
        ('{"a": 1}\n"x"\n', "x.jsonl:2: a row is an object with named fields, this is text"),
        ('{"a": 1}\n["x"]\n', "x.jsonl:2: a row is an object with named fields, this is an array"),
        ('[{"a": 1}]\n', "x.jsonl:1: a row is an object with named fields, this is an array"),
        ('{"a": 1}\n{"a": NaN}\n', "x.jsonl:2: field a: nan is not a finite number"),
        ('{"a": 1, "a": 2}\n', "x.jsonl:1: field a: stands twice in one object"),
        ("", "x.jsonl: no rows"),
        (" \n\n", "x.jsonl: no rows"),
    ],
)
def test_refusals_name_file_line_and_field(read, data, said):
    message = read(data)
    assert isinstance(message, str)
    assert message.startswith(said)


def test_an_array_is_read_as_rows_numbered_from_zero(read):
    data = '\n [ {"a": 1},\n  {"a": [2, {}]}\n]\n'
    assert read(data, "x.json") == [("x.json[0]", {"a": 1}), ("x.json[1]", {"a": [2, {}]})]
    assert read(data, "noname") == [("noname[0]", {"a": 1}), ("noname[1]", {"a": [2, {}]})]
    assert read('{"a": 1}\n{"a": 2}\n', "x.json") == [("x.json:1", {"a": 1}), ("x.json:2", {"a": 2})]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ('[{"a": 1},\n{"a": NaN}]', "x.json[1]: field a: nan"),
        ('[{"a": 1},\n7]', "x.json[1]: a row is an object"),
        ('[{"a": 1},\n]', "x.json:2: not valid JSON"),
        ('[{"a": 1}\n{"a": 2}]', "x.json:2: not valid JSON: the array goes on with neither"),
        ('[{"a": 1},\n{"a"', "x.json:2: the JSON breaks off"),
        ('[{"a": 1}', "x.json:1: the JSON breaks off"),
        ('[{"a": 1}]\n x', "x.json:2: not valid JSON: extra data after the array"),
        (b'[{"a": 1},\n\xff]', "x.json:2: byte 0xff"),
        ("[]", "x.json: no rows"),
        ("[", "x.json:1: the JSON breaks off"),
    ],
)
def test_refusals_inside_an_array(read, data, said):
    message = read(data, "x.json")
    assert isinstance(message, str)
    assert message.startswith(said)


ROWS = st.lists(
    st.dictionaries(st.text(max_size=5), st.text() | st.integers() | st.lists(st.text(max_size=3)), max_size=4),
    min_size=1,
    max_size=6,
)


@given(ROWS, st.booleans(), st.sampled_from(["\n", "\r\n", "\n\n \n"]))
def test_what_any_writer_wrote_is_read(tmp_path_factory, rows, ascii, end):
    path = tmp_path_factory.mktemp("rows") / "x"
    lines = [json.dumps(row, ensure_ascii=ascii) for row in rows]
    path.write_bytes(end.join(lines).encode())
    assert [row for _, row in jsonl.read(str(path))] == rows
    path.write_bytes(("[" + f",{end}".join(lines) + "]").encode())
    assert [row for _, row in jsonl.read(str(path))] == rows
    path.write_bytes("".join(jsonl.dumps(row) + "\n" for row in rows).encode())
    assert [row for _, row in jsonl.read(str(path))] == rows


def test_problems_are_gathered_and_reading_goes_on(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n{bad\n{"a": 2}\n[]\n\xff\n{"a": 3}\n')
    found: list[XwinError] = []
    assert [row["a"] for _, row in jsonl.read(str(path), found)] == [1, 2, 3]
    assert [e.message.split(":")[1] for e in found] == ["2", "4", "5"]


def test_hub_rows_are_held_to_json_too(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"a": 1, "b": null}\n')
    name = f"hf:{tmp_path}"
    assert list(jsonl.read(name)) == [(f"{name}:1", {"a": 1})]


def test_reads_many_small_rows_a_second(tmp_path):
    row = '{"id": "r1", "messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}]}\n'
    (tmp_path / "x.jsonl").write_text(row * 20_000)
    start = time.process_time()
    assert sum(1 for _ in jsonl.read(str(tmp_path / "x.jsonl"))) == 20_000
    assert 20_000 / (time.process_time() - start) > 20_000  # rows a second; 100,000 are usual, busy machines vary


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), jsonl.writer(str(tmp_path / "x.jsonl")) as w:
        w.write({"a": 1})
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
