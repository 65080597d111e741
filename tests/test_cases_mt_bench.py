"""MT-Bench on third-party cases: FastChat's parser, its tables and real judgements, to the digit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from xwincli.errors import XwinError
from xwincli.protocols import mt_bench, mt_bench_files, mt_bench_tables

CASES = os.environ.get("XWIN_CASES", "")
pytestmark = pytest.mark.skipif(not CASES, reason="XWIN_CASES names no folder of third-party cases")
FOLDER = Path(CASES) / "mtbench"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def expected(name: str) -> dict[str, Any]:
    return dict(json.loads((FOLDER / name).read_text(encoding="utf-8")))


def judged(name: str, asked: bool = False) -> mt_bench_files.Judgements:
    questions = mt_bench_files.questions(str(FOLDER / "inputs" / "mt_bench_question.jsonl")) if asked else None
    return mt_bench_files.judgements([str(FOLDER / name)], questions)


def test_fastchats_parser() -> None:
    readers = {"single": mt_bench.rating_compatible, "pair": mt_bench.winner, "two_score": mt_bench.winner_of_scores}
    found = {"single": 0, "pair": 0, "two_score": 0, "swap": 0}
    for case in rows(FOLDER / "parse_cases.jsonl"):
        found[case["kind"]] += 1
        if case["kind"] != "swap":
            read = readers[case["kind"]](case["raw"])
            assert (-1 if read is None else read) == case["result"], case
            continue
        names = [{"A": "model_1", "B": "model_2"}, {"A": "model_2", "B": "model_1"}]
        games = [n.get(w, w) for n, w in zip(names, map(mt_bench.winner, case["raw"]), strict=True)]
        assert games == [case["g1_winner"], case["g2_winner"]]
        final = mt_bench.Compared("m", "n", 1, None, 1, *games).result()
        assert final == ("error" if case["final"] == "skip" else case["final"])
    assert all(found.values())


def test_hostile_judgements_are_unparsed_never_a_score() -> None:
    read = {r["id"]: r["judgment"] for r in rows(Path(CASES) / "bad" / "judge" / "judgments_parse.jsonl")}
    assert len(read) == 9
    assert [mt_bench.rating_strict(text) for text in read.values()] == [*[None] * 8, 7]  # 20,000 letters, then [[7]]
    assert {i: mt_bench.rating_compatible(text) for i, text in read.items()} == {
        **dict.fromkeys(range(9), None),
        3: 100,  # no range check
        4: 100,  # the [n] fallback
        8: 7,
    }
    assert [mt_bench.winner_strict(text) for text in read.values()] == ["A", *["error"] * 8]


def test_real_judgements_have_their_published_means() -> None:
    table = {m["model"]: m for m in mt_bench_tables.single_table(judged("gpt-4_single.jsonl").singles)}
    wanted = {k: v for k, v in expected("expected_single.json").items() if not k.startswith("_")}
    assert set(table) == set(wanted)
    for model, w in wanted.items():
        m = table[model]
        assert (m["n"], m["average"], m["n_valid"]) == (w["n"], w["fastchat_mean"], w["fastchat_valid"])
        assert (m["strict"]["average"], m["strict"]["n_valid"]) == (w["strict_mean"], w["strict_valid"])
        assert m["n_unparsed"] == w["fastchat_unparsed"] and m["n_out_of_range"] == 0
    stored = [r for r in rows(FOLDER / "gpt-4_single.jsonl") if r["stored_score"] is not None]
    for model, w in wanted.items():  # a reader of whole numbers only gives the third mean
        scores = [r["stored_score"] for r in stored if r["model"] == model]
        assert (sum(scores) / len(scores), len(scores)) == (w["arena_bench_mean"], w["arena_bench_valid"])


def test_the_text_gives_what_fastchat_stored() -> None:
    for row in rows(FOLDER / "gpt-4_single.jsonl"):
        read = mt_bench.rating_compatible(row["judgment"])
        assert (-1 if read is None else read) == row["score"]


def test_two_turns_and_categories() -> None:
    wanted = expected("expected_mt_bench_synthetic.json")
    for asked in (False, True):
        table = {
            m["model"]: m
            for m in mt_bench_tables.single_table(judged("mt_bench_synthetic_gpt-4_single.jsonl", asked).singles)
        }
        for model in ("model-A", "model-B"):
            for key in ("turn1", "turn2", "average", "n_valid", "by_category"):
                assert table[model][key] == wanted[model][key]
    assert sum(m["n_unparsed"] for m in table.values()) == wanted["_n_unparsed"]


def test_pairs() -> None:
    wanted = expected("expected_pair_synthetic.json")
    table = {m["model"]: m for m in mt_bench_tables.pair_table(judged("mt_bench_synthetic_gpt-4_pair.jsonl").pairs)}
    for model in ("model-A", "model-B"):
        assert {k: table[model][k] for k in wanted[model]} == wanted[model]
    assert sum(table[m]["n_error"] for m in ("model-A", "model-B")) == wanted["_n_error"]


def test_vicuna_reviews() -> None:
    for name, w in expected("expected_vicuna_reviews.json").items():
        scores = [mt_bench.review_scores(r["text"]) for r in rows(FOLDER / "vicuna_reviews" / name)]
        assert [list(s) if s else [-1, -1] for s in scores] == w["parsed"]
        known = [s for s in scores if s]
        assert len(scores) - len(known) == w["unparsed"]
        assert (sum(a for a, _ in known), sum(b for _, b in known)) == (w["sum_1"], w["sum_2"])
        assert sum(a for a, _ in known) / len(known) == w["mean_1"]
        wins = [(a > b) - (a < b) for a, b in known]
        assert (wins.count(1), wins.count(-1), wins.count(0)) == (w["win_1"], w["win_2"], w["tie"])


def test_the_questions_and_their_references() -> None:
    inputs = FOLDER / "inputs"
    asked = mt_bench_files.questions(
        str(inputs / "mt_bench_question.jsonl"), str(inputs / "mt_bench_reference_gpt-4.jsonl")
    )
    assert len(asked) == 80 and all(len(q.turns) == 2 and mt_bench.category(q.id) == q.category for q in asked.values())
    assert sum(q.guided for q in asked.values()) == 30
    assert {q.category: q.temperature for q in asked.values()} == {
        c: mt_bench.TEMPERATURES[c] for c in mt_bench.STANDARD
    }
    with pytest.raises(XwinError, match=r"mt_unknown_question\.jsonl:1: field question_id: 999"):
        mt_bench_files.answers([str(Path(CASES) / "bad" / "judge" / "mt_unknown_question.jsonl")], asked)
