"""The demo's prompts: the committed files are what the script writes, and the splits keep their promises."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from xwincli.checks import HELD_OUT, describe, mentioned
from xwincli.lab.instructions import SHAPES, SHARES, prompts, split
from xwincli.lab.topics import TOPICS
from xwincli.records import Prompt, decode, prompt_id

DEMO = Path(__file__).parents[2] / "examples" / "demo"
ROWS = list(prompts())


def _file(name: str) -> list[Prompt]:
    lines = (DEMO / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [decode(json.loads(line), Prompt, f"{name}:{i}") for i, line in enumerate(lines, 1)]


def test_the_script_reproduces_the_committed_files(tmp_path):
    subprocess.run([sys.executable, DEMO / "make_prompts.py", tmp_path], check=True, capture_output=True)
    made = sorted(p.name for p in tmp_path.iterdir())
    assert made == sorted(["prompts.jsonl", *(f"{s}.jsonl" for s in SHARES)])
    for name in made:
        assert (tmp_path / name).read_bytes() == (DEMO / name).read_bytes(), f"{name}: run make_prompts.py"


def test_splits_are_disjoint_and_whole():
    by_split = {name: {prompt_id(r.prompt) for r in _file(name)} for name in SHARES}
    everything = {prompt_id(r.prompt) for r in _file("prompts")}
    assert sum(map(len, by_split.values())) == len(everything) == len(ROWS) == len(TOPICS) * len(SHAPES) == 558
    assert set.union(*by_split.values()) == everything
    for name, near in {"pair": 183, "set": 168, "ppo": 95, "eval": 112}.items():
        assert abs(len(by_split[name]) - near) <= 5


def test_the_split_is_a_function_of_the_text_alone():
    assert sum(SHARES.values()) == pytest.approx(1)
    for row in ROWS:
        bare = Prompt(prompt=[{"role": "user", "content": row.prompt[0]["content"]}])
        assert split(bare) == row.extra["split"]
        assert row.id == prompt_id(row.prompt)


def test_two_kinds_of_check_are_asked_in_the_held_out_split_only():
    where = {kind: {r.extra["split"] for r in ROWS if kind in {c["kind"] for c in r.checks}} for kind in HELD_OUT}
    assert where == {kind: {"eval"} for kind in HELD_OUT}
    counts = Counter(r.category for r in ROWS if r.extra["split"] == "eval")
    assert counts["sentences"] >= 5
    assert counts["number"] >= 5


def test_every_prompt_has_a_floor_and_names_what_it_checks():
    for row in ROWS:
        _check_prompt(row)


def _check_prompt(row):
    kinds = [c["kind"] for c in row.checks]
    text = row.prompt[0]["content"]
    assert "min_words" in kinds
    assert "mentions" in kinds
    assert len(kinds) >= 3
    values = {c["kind"]: c["value"] for c in row.checks}
    assert values["min_words"] < values.get("max_words", 48)
    for check in row.checks:
        assert describe(check)
        if check["kind"] in ("mentions", "avoids", "starts_with"):
            assert mentioned(check["value"], text)
        if check["kind"] == "avoids":
            assert not any(c["kind"] == "mentions" and mentioned(check["value"], c["value"]) for c in row.checks)
    assert "{" not in text
    assert len(text) < 160


def test_wordings_vary():
    openings = Counter(" ".join(r.prompt[0]["content"].split()[:3]) for r in ROWS)
    assert len(openings) > 60
    assert max(openings.values()) < 0.08 * len(ROWS)
    for shape, wordings in SHAPES.items():
        assert len(wordings) >= 5, shape


def test_topics_hold_together():
    assert len({t.noun for t in TOPICS}) == 62
    for t in TOPICS:
        word = t.noun.partition(":")[0]
        for text in (t.act, t.blunt, t.matter):
            assert mentioned(word, text), t
        assert not mentioned(t.hard, " ".join([t.act, t.noun]))
        assert t.rival.partition(":")[0] != word
