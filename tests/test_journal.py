"""Artifacts appear whole or not at all; a rerun does only what is missing."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwincli import manifest
from xwincli.errors import FAILED_ROWS, XwinError
from xwincli.journal import Journal
from xwincli.records import Prompt
from xwincli.settings import flag


@dataclass(kw_only=True)
class Config:
    """One decisive and one execution-only option."""

    n: int = flag(1, "n")
    rows: int = flag(8, "rows", execution=True)


def prompts(count: int) -> list[Prompt]:
    return [Prompt(id=str(i), prompt=[{"role": "user", "content": f"question {i}"}]) for i in range(count)]


def journal(out, config=None, **more) -> Journal:
    config = config or Config()
    return Journal(str(out), manifest.plan("t", config, []), config, **more)


def ids(out) -> list[str]:
    return [json.loads(line)["id"] for line in out.read_text().splitlines()]


def test_input_order_whatever_the_order_of_finishing(tmp_path):
    out = tmp_path / "x.jsonl"
    with journal(out) as j:
        for key, row in reversed(list(j.todo(prompts(5)))):
            assert not out.exists()
            j.add(key, [row])
    assert ids(out) == list("01234")
    assert manifest.read(out)["counts"] == {"in": 5, "out": 5, "failed": 0}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.jsonl", "x.jsonl.xwin.json"]


@given(stop=st.integers(0, 6), torn=st.integers(0, 40))
def test_a_torn_journal_goes_on(tmp_path_factory, stop, torn):
    folder = tmp_path_factory.mktemp("j")
    out = folder / "x.jsonl"
    with pytest.raises(KeyboardInterrupt), journal(out) as j:
        for i, (key, row) in enumerate(j.todo(prompts(7))):
            if i == stop:
                raise KeyboardInterrupt
            j.add(key, [row])
    part = folder / "x.jsonl.partial"
    assert part.exists() == (stop > 0)
    if stop:  # as a kill in the middle of a write leaves it
        part.write_bytes(part.read_bytes() + b'{"key":"abcdef","rows":[{"kind":"prompt","id":"9"}]}\n'[:torn])
    with journal(out) as j:
        todo = list(j.todo(prompts(7)))
        assert len(todo) == 7 - stop
        for key, row in todo:
            j.add(key, [row])
    assert ids(out) == list("0123456")


def test_equal_rows_are_each_done(tmp_path):
    out = tmp_path / "x.jsonl"
    with journal(out) as j:
        for key, row in j.todo(prompts(2) + prompts(2)):
            j.add(key, [row])
    assert ids(out) == list("0101")


def test_other_options_start_anew_and_the_old_journal_comes_back(tmp_path):
    out = tmp_path / "x.jsonl"

    def begin(config):
        with pytest.raises(KeyboardInterrupt), journal(out, config) as j:
            todo = list(j.todo(prompts(3)))
            j.add(todo[0][0], [todo[0][1]])
            raise KeyboardInterrupt
        return len(todo)

    assert begin(Config(n=1)) == 3
    assert begin(Config(n=2)) == 3
    assert begin(Config(n=1, rows=99)) == 2  # execution-only options do not count


def test_failed_rows_withhold_the_artifact_and_are_tried_again(tmp_path):
    out = tmp_path / "x.jsonl"
    with pytest.raises(XwinError) as e, journal(out) as j:
        for key, row in j.todo(prompts(4)):
            if row.id == "2":
                j.fail(key, row, "the server said no")
            else:
                j.add(key, [row])
    assert e.value.code == FAILED_ROWS
    assert "the server said no" in e.value.message
    assert not out.exists()
    failed = [json.loads(x) for x in (tmp_path / "x.failed.jsonl").read_text().splitlines()]
    assert [f["row"]["id"] for f in failed] == ["2"]
    with journal(out) as j:
        [(key, row)] = list(j.todo(prompts(4)))
        j.add(key, [row])
    assert ids(out) == list("0123")
    assert not (tmp_path / "x.failed.jsonl").exists()


def test_a_permitted_share_of_failures(tmp_path):
    out = tmp_path / "x.jsonl"
    with journal(out, allow_failed=0.5) as j:
        for key, row in j.todo(prompts(4)):
            if row.id == "2":
                j.fail(key, row, "no")
            else:
                j.add(key, [row])
    assert ids(out) == list("013")
    assert manifest.read(out)["counts"]["failed"] == 1


def test_standard_output_is_in_input_order(capsys):
    with journal("-") as j:
        for key, row in reversed(list(j.todo(prompts(3)))):
            j.add(key, [row])
    assert [json.loads(x)["id"] for x in capsys.readouterr().out.splitlines()] == list("012")


def test_up_to_date_means_same_options_and_inputs(tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "x.jsonl"
    source.write_text("{}\n")

    def plan(config):
        return manifest.plan("t", config, [str(source)])

    with Journal(str(out), plan(Config()), Config()) as j:
        for key, row in j.todo(prompts(1)):
            j.add(key, [row])
    assert manifest.skip_if_current(out, plan(Config(rows=2)), force=False)
    assert not manifest.skip_if_current(out, plan(Config()), force=True)
    assert not manifest.is_current(out, plan(Config(n=2)))
    source.write_text('{"a":1}\n')
    assert not manifest.is_current(out, plan(Config()))
