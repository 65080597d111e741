"""Shards: every row is one shard's, parts join to the file of one process, and what does not belong is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwincli import flags, manifest
from xwincli.errors import XwinError
from xwincli.shards import Shard, join
from xwincli.stages import merge, sample


@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 60))
def test_every_row_is_one_shards(of, block, rows):
    shards = [Shard(i, of, block) for i in range(1, of + 1)]
    owners = [[s.index for s in shards if s.owns(r)] for r in range(rows)]
    assert all(len(o) == 1 for o in owners)
    assert [s.count(rows) for s in shards] == [sum(o == [s.index] for o in owners) for s in shards]
    assert all(len({tuple(o) for o in owners[a : a + block]}) == 1 for a in range(0, rows, block))


@pytest.mark.parametrize("text", ["0/8", "9/8", "1", "a/b", "1/0", "-1/8", "1/8/2"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(XwinError, match="--shard is"):
        Shard.parse(text)


def test_a_part_has_a_name_of_its_own_and_standard_output_none():
    assert Shard(2, 8).part("a.b/groups.jsonl") == "a.b/groups.shard-2-of-8.jsonl"
    assert Shard().part("-") == "-"
    with pytest.raises(XwinError, match="cannot share standard output"):
        Shard(1, 2).part("-")


def prompts(path: Path, count: int) -> Path:
    rows = [{"id": f"q{i}", "prompt": [{"role": "user", "content": f"about {i % 250}"}]} for i in range(count)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def draw(data: Path, out: Path, shard: str = "", **more: Any) -> None:
    given = {"data": [str(data)], "out": str(out), "engine": "echo", "n": 2, "shard": shard, **more}
    sample.run(flags.build(sample.Config, given))


@pytest.mark.parametrize(("rows", "of"), [(260, 8), (5, 7), (1, 2)])
@pytest.mark.parametrize("more", [{}, {"deterministic": True, "rows": 6}])
def test_the_last_shard_makes_the_file_of_one_process(tmp_path, rows, of, more):
    data, whole, out = prompts(tmp_path / "p.jsonl", rows), tmp_path / "whole.jsonl", tmp_path / "g.jsonl"
    draw(data, whole, **more)
    for i in [*range(2, of + 1), 1]:  # in some order
        assert not out.exists()
        draw(data, out, f"{i}/{of}", **more)
    assert out.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("g.shard*")) and not list(tmp_path.glob("*.partial"))
    one, many = manifest.read(whole), manifest.read(out)
    assert one and many and many["key"] == one["key"] and many["counts"] == one["counts"] and "shard" not in many
    for name in ("responses", "tokens", "ended", "mean_tokens", "repeated"):
        assert many["metrics"][name] == pytest.approx(one["metrics"][name])


def test_a_finished_shard_or_whole_is_not_made_again(tmp_path, capsys):
    data, out = prompts(tmp_path / "p.jsonl", 4), tmp_path / "g.jsonl"
    draw(data, out, "1/2")
    assert "1 of 2 shards are still missing" in capsys.readouterr().err
    draw(data, out, "1/2")
    assert "g.shard-1-of-2.jsonl is up to date" in capsys.readouterr().err
    draw(data, out, "2/2")
    capsys.readouterr()
    for shard in ("1/2", ""):
        draw(data, out, shard)
        assert f"{out} is up to date" in capsys.readouterr().err
    draw(data, out, "1/2", seed=1)
    assert len(list(tmp_path.glob("g.shard*.jsonl"))) == 1


def parts(tmp_path: Path, data: Path, of: int, **more: Any) -> list[str]:
    """Shards that lie where none finds another, as on machines without a common folder."""
    found = []
    for i in range(1, of + 1):
        folder = tmp_path / f"machine{i}"
        folder.mkdir(exist_ok=True)
        draw(data, folder / "g.jsonl", f"{i}/{of}", **more)
        found.append(str(folder / f"g.shard-{i}-of-{of}.jsonl"))
    return found


def test_merge_joins_what_machines_made_apart_and_leaves_the_parts(tmp_path):
    data = prompts(tmp_path / "p.jsonl", 11)
    draw(data, tmp_path / "whole.jsonl")
    made, out = parts(tmp_path, data, 3), tmp_path / "g.jsonl"
    merge.run(merge.Config(files=made[::-1], out=str(out)))
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert all(Path(p).exists() for p in made)
    draw(data, out)  # which is up to date


def test_what_does_not_belong_together_is_refused_and_nothing_written(tmp_path):
    data = prompts(tmp_path / "p.jsonl", 7)
    a, b, c = parts(tmp_path, data, 3)
    other = str(tmp_path / "other.jsonl")
    draw(data, Path(other))
    draw(data, tmp_path / "x.jsonl", "3/3", seed=5)
    out = str(tmp_path / "g.jsonl")
    for files, text in (
        ([a, c], "shards are missing: 2/3"),
        ([a, b, b], "are the same shard, 2/3"),
        ([a, b, other], "is no shard of a run"),
        ([a, b, str(tmp_path / "x.shard-3-of-3.jsonl")], "were made with other options or inputs"),
    ):
        with pytest.raises(XwinError, match=text):
            join(out, files)
    lines = Path(b).read_text().splitlines(keepends=True)
    Path(b).write_text("".join(lines[:-1]))
    with pytest.raises(XwinError, match="fewer rows than its manifest says"):
        join(out, [a, b, c])
    assert not Path(out).exists() and not manifest.beside(out).exists()


def test_failed_rows_keep_their_place(tmp_path, policy):
    rows = prompts(tmp_path / "p.jsonl", 7).read_text().splitlines()
    for i in (2, 3):
        row = json.loads(rows[i])
        row["prompt"][0]["content"] = "fox " * 2000
        rows[i] = json.dumps(row)
    data = tmp_path / "p.jsonl"
    data.write_text("\n".join(rows) + "\n")
    more = {"engine": "native", "model": str(policy), "max_tokens": 3, "allow_failed": 0.7, "deterministic": True}
    draw(data, tmp_path / "whole.jsonl", **more)
    for shard in ("1/3", "2/3", "3/3"):
        draw(data, tmp_path / "g.jsonl", shard, **more, force=shard == "1/3")
    assert (tmp_path / "g.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    made = manifest.read(tmp_path / "g.jsonl")
    assert made and made["counts"] == {"in": 7, "out": 5, "failed": 2}
