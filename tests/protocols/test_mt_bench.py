"""MT-Bench's rules by hand: what a reply says, how a question is asked, what is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwincli.errors import XwinError
from xwincli.protocols import mt_bench, mt_bench_files, mt_bench_judging, mt_bench_tables
from xwincli.protocols.mt_bench import Compared, Rated
from xwincli.protocols.mt_bench_files import Answers, Question


@pytest.mark.parametrize(
    ("reply", "compatible", "strict"),
    [
        ("Rating: [[8]]", 8, 8),
        ("[[7.5]]", 7.5, 7.5),
        ("[[10]] of 10", 10, 10),
        ("Rating: [8]", 8, None),  # FastChat's second pattern
        ("a = b[100]", 100, None),
        ("a[0] gets [[4]]", 4, 4),
        ("[[11]]", 11, None),  # no range check there
        ("[[0]]", 0, None),
        ("[[8.]]", 8, None),
        ("[[9]] no: [[2]]", 9, None),
        ("[[9]], I say [[9]]", 9, 9),
        ("[[07]]", None, None),  # FastChat crashes on these two
        ("[[٨]]", None, None),
        ("[[ 8 ]]", None, None),
        ("[[A]]", None, None),
        ("", None, None),
        (None, None, None),
    ],
)
def test_ratings(reply: str | None, compatible: float | None, strict: float | None) -> None:
    assert mt_bench.rating_compatible(reply) == compatible
    assert mt_bench.rating_strict(reply) == strict


@given(st.text(alphabet="[]0123456789. aA٨/", max_size=30))
def test_a_strict_rating_is_always_the_compatible_one(reply: str) -> None:
    strict = mt_bench.rating_strict(reply)
    assert strict is None or (strict == mt_bench.rating_compatible(reply) and 1 <= strict <= 10)


def test_winners() -> None:
    said = ["[[A]]", "[[B]]", "[[C]]", "[[B]] no [[A]]", "[[C]] or [[B]]", "[[a]]", "A", None]
    assert [mt_bench.winner(s) for s in said] == ["A", "B", "tie", "A", "B", "error", "error", "error"]
    assert [mt_bench.winner_strict(s) for s in said] == ["A", "B", "tie", *["error"] * 5]
    scores = ["[[8,9]]", "[[9, 8.5]]", "[[7.5,7.45]]", "[8,9]", "8,9", "[[07,8]]"]
    assert [mt_bench.winner_of_scores(s) for s in scores] == ["B", "A", "tie", "B", "error", "error"]
    assert mt_bench.review_scores("8 9.5\nboth are fine") == (8, 9.5)
    assert mt_bench.review_scores("8,9") == (8, 9)
    assert mt_bench.review_scores("Assistant 1: 8") is None and mt_bench.review_scores(None) is None


def test_how_a_question_is_asked() -> None:
    assert [mt_bench.category(i) for i in (80, 81, 90, 91, 160, 161, "81")] == [
        None, "writing", "writing", "roleplay", "humanities", None, None,
    ]  # fmt: skip
    assert mt_bench.temperature({"category": "math"}) == 0 and mt_bench.temperature({"category": "stem"}) == 0.1
    assert mt_bench.temperature({"category": "odd"}) == 0.7 == mt_bench.temperature({})
    assert mt_bench.temperature({"category": "writing", "required_temperature": 0}) == 0
    assert mt_bench.prompt_name(False, False, 1) == "single-v1"
    assert mt_bench.prompt_name(False, True, 2) == "single-math-v1-multi-turn"
    assert (
        mt_bench.prompt_name(True, False, 2) == "pair-v2-multi-turn"
        and mt_bench.prompt_name(True, True, 1) == "pair-math-v1"
    )


def rated(turn: int, category: str, compatible: float | None, strict: float | None, model: str = "m") -> Rated:
    return Rated(model, 1, category, turn, compatible, strict)


def test_single_table_by_hand() -> None:
    rows = [
        rated(1, "math", 8, 8), rated(1, "stem", 4, 4), rated(2, "math", 100, None), rated(2, "stem", None, None),
        rated(2, "math", 3, None), rated(1, "math", 9, 9, "better"), rated(2, "math", None, None, "none"),
    ]  # fmt: skip
    m, better, none = mt_bench_tables.single_table(rows)
    assert (m["model"], better["model"], none["model"]) == ("m", "better", "none")
    assert (m["turn1"], m["turn2"], m["average"], m["n_valid"], m["n"]) == (6, 51.5, 115 / 4, 4, 5)
    assert m["by_category"] == {"math": 37, "stem": 4}
    assert m["strict"].pop("interval") is None  # all of one question
    assert m["strict"] == {"turn1": 6, "turn2": None, "average": 6, "n_valid": 2, "by_category": {"math": 8, "stem": 4}}
    m["strict"]["interval"] = [1, 2]
    assert (m["n_unparsed"], m["n_out_of_range"]) == (2, 1)  # nothing read, and read as [3]; and 100
    assert none["average"] is None and none["n_unparsed"] == 1
    shown = mt_bench_tables.standings({"models": [m], "pairs": [], "judgements": 5, "questions": 1, "judges": ["j"]})
    assert "51.50 (strict -)" in shown and "28.7500" in shown and "6.0000" in shown


def test_pair_table_by_hand() -> None:
    games = [("model_1", "model_1"), ("model_1", "model_2"), ("tie", "tie"), ("model_2", "model_2"), ("model_1", "tie"),
             ("error", "model_1")]  # fmt: skip
    rows = [Compared("m", "base", i, None, 1, *g) for i, g in enumerate(games)]
    m, base = sorted(mt_bench_tables.pair_table(rows), key=lambda r: r["model"] != "m")
    assert [m[k] for k in ("win", "loss", "tie", "n_error")] == [1, 1, 3, 1]
    assert (m["win_rate"], m["loss_rate"], m["win_rate_adjusted"]) == (0.2, 0.2, 0.5)
    assert [base[k] for k in ("win", "loss", "tie")] == [1, 1, 3]
    assert mt_bench_tables.pair_table(rows[-1:])[0]["win_rate"] is None
    low, high = m["interval"]
    assert 0 <= low < 0.5 < high <= 1 and base["interval"] == pytest.approx([1 - high, 1 - low])


def test_the_interval_draws_whole_questions() -> None:
    """Every question has a 4 and an 8: drawn as wholes nothing varies."""
    rows = [Rated("m", q, None, t, s, s) for q in range(9) for t, s in ((1, 4.0), (2, 8.0))]
    assert mt_bench_tables.single_table(rows)[0]["strict"]["interval"] == [6, 6]
    rows = [Rated("m", q, None, 1, s, s) for q in range(40) for s in (2.0 + 6 * (q % 2),)]
    low, high = mt_bench_tables.single_table(rows)[0]["strict"]["interval"]
    assert 5 - 2.5 * 3 / 40**0.5 < low < 4.5 and 5.5 < high < 5 + 2.5 * 3 / 40**0.5


# -- files


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


ASKED = {1: Question(1, "math", ["q1", "q2"], ["r1", "r2"], 0.0), 2: Question(2, "writing", ["p1", "p2"])}


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({}, "field question_id: is missing"),
        ({"question_id": 3}, "field question_id: answers none of the questions"),
        ({"question_id": 1}, "field model_id: is missing"),
        ({"question_id": 1, "model_id": "m", "choices": []}, "field choices: is an empty list"),
        ({"question_id": 1, "model_id": "m", "choices": ["x"]}, r"field choices\[0\]: expected an object"),
        ({"question_id": 1, "model_id": "m", "choices": [{"turns": ["a"]}]}, "answers 1 of 2 turns"),
        ({"question_id": 1, "model_id": "m", "choices": [{"turns": ["a", 2]}]}, r"choices\[0\]\.turns: expected text"),
    ],
)
def test_bad_answers(tmp_path: Path, row: dict[str, Any], what: str) -> None:
    with pytest.raises(XwinError, match=rf"a\.jsonl:1: .*{what}"):
        mt_bench_files.answers([written(tmp_path / "a.jsonl", [row])], ASKED)


def test_answers_to_other_questions_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question_id": i, "model_id": "m", "choices": [{"turns": ["a", "b"]}]} for i in (3, 1, 2, 4)]
    found = mt_bench_files.answers([file := written(tmp_path / "a.jsonl", rows)], ASKED)
    assert list(found["m"].turns) == [1, 2]
    assert f"{file}: 2 of 4 rows answer other questions and are left out" in capsys.readouterr().err


def test_answers_are_joined_by_question_and_none_may_be_missing(tmp_path: Path) -> None:
    row = {"question_id": 2, "model_id": "m", "choices": [{"index": 0, "turns": ["a", ""]}]}
    found = mt_bench_files.answers([written(tmp_path / "a.jsonl", [row])], ASKED)["m"]
    assert found.turns == {2: ["a", ""]}
    with pytest.raises(XwinError, match="m leaves 1 questions unanswered: 1"):
        mt_bench_files.complete(found, ASKED)
    with pytest.raises(XwinError, match=r"a\.jsonl:2: field question_id: m answers 2 twice"):
        mt_bench_files.answers([written(tmp_path / "a.jsonl", [row, row])], ASKED)


SINGLE = {"question_id": 1, "model": "m", "judge": ["j", "single-v1"], "judgment": "[[5]]", "score": 5, "turn": 1}
PAIR = {"question_id": 1, "model_1": "m", "model_2": "n", "g1_winner": "tie", "g2_winner": "tie", "turn": 1}


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({**SINGLE, "question_id": 9}, "field question_id: 9 is not among"),
        ({**SINGLE, "turn": 0}, "field turn: expected a whole number from 1"),
        ({**SINGLE, "score": "5"}, "field score: expected a number, got text"),
        ({**SINGLE, "judgment": 5}, "field judgment: expected text, got a number"),
        ({"question_id": 1, "model": "m"}, "field score: is missing"),
        ({**PAIR, "g2_winner": "A"}, "field g2_winner: 'A' is no winner"),
        ({**PAIR, "model_2": "m"}, r"field model_2: is model_1 \(m\) too"),
    ],
)
def test_bad_judgements(tmp_path: Path, row: dict[str, Any], what: str) -> None:
    with pytest.raises(XwinError, match=rf"j\.jsonl:1: {what}"):
        mt_bench_files.judgements([written(tmp_path / "j.jsonl", [row])], ASKED)


def test_judgements_of_both_kinds(tmp_path: Path) -> None:
    rows = [
        SINGLE,
        {**SINGLE, "turn": 2, "score": -1, "judgment": "none"},
        {**SINGLE, "question_id": 2, "score": None, "judgment": "[6]"},  # no score stored: the text is read
        {
            **SINGLE,
            "question_id": 2,
            "turn": 2,
            "judgment": None,
            "score": 5.12345678,
        },  # no text kept: the score counts
        {**SINGLE, "question_id": 2, "turn": 3, "judgment": "", "score": 11},
        PAIR,
    ]
    found = mt_bench_files.judgements([written(tmp_path / "j.jsonl", rows)], ASKED)
    assert [(r.compatible, r.strict) for r in found.singles] == [
        (5, 5), (None, None), (6, None), (5.12345678, 5.12345678), (11, None),
    ]  # fmt: skip
    assert [r.category for r in found.singles] == ["math", "math", *["writing"] * 3]
    assert found.pairs[0].result() == "tie" and found.judges == {"j", "unknown"}
    with pytest.raises(XwinError, match=r"j\.jsonl:2: field question_id: turn 1 of 1 is judged twice"):
        mt_bench_files.judgements([written(tmp_path / "j.jsonl", [SINGLE, SINGLE])], ASKED)


def test_questions(tmp_path: Path) -> None:
    rows = [{"question_id": 1, "category": "math", "turns": ["a", "b"], "reference": ["r", "s"]}]
    path = written(tmp_path / "q.jsonl", rows)
    q = mt_bench_files.questions(path)[1]
    assert (q.references, q.guided, q.temperature) == (["r", "s"], True, 0)
    known = written(tmp_path / "r.jsonl", [{"question_id": 1, "model_id": "gpt", "choices": [{"turns": ["x", "y"]}]}])
    assert mt_bench_files.questions(path, known)[1].references == ["x", "y"]
    for row, what in [
        (rows[0], "stands twice"),
        ({"question_id": 2, "turns": []}, "field turns: is an empty list"),
        ({"question_id": True, "turns": ["a"]}, "field question_id: expected a number or text"),
        ({"question_id": 2, "turns": ["a"], "required_temperature": -1}, "field required_temperature"),
    ]:
        with pytest.raises(XwinError, match=rf"q\.jsonl:2: .*{what}"):
            mt_bench_files.questions(written(tmp_path / "q.jsonl", [*rows, row]))


# -- what the judge is asked


def test_each_turn_is_judged_in_its_own_models_conversation() -> None:
    mine = Answers("m", "f", {1: ["a1", "a2"], 2: ["b1", "b2"]})
    rows = mt_bench_judging.to_judge(ASKED.values(), mine)
    assert [(r.extra["question_id"], r.extra["turn"], r.extra["a"]) for r in rows] == [
        (1, 1, "a1"), (1, 2, "a2"), (2, 1, "b1"), (2, 2, "b2"),
    ]  # fmt: skip
    assert [m["content"] for m in rows[1].prompt] == ["q1", "a1", "q2"]
    assert [r.extra.get("references") for r in rows] == [["r1"], ["r1", "r2"], None, None]  # math alone is guided
    assert len({r.id for r in rows}) == 4
    partly = mt_bench_judging.to_judge(ASKED.values(), Answers("m", "f", {1: ["a1"]}))
    assert [(r.extra["question_id"], r.extra["turn"]) for r in partly] == [(1, 1)]


def test_a_pair_of_second_answers_shows_each_sides_first() -> None:
    one, two = Answers("m", "f", {1: ["a1", "a2"]}), Answers("n", "f", {1: ["c1", "c2"]})
    first, second = mt_bench_judging.to_judge([ASKED[1]], one, two)
    assert (first.extra["a"], first.extra["b"]) == ("a1", "c1") and "shown_a" not in first.extra
    a, b = mt_bench_judging._items(second)
    assert a.a == b.b == "(to question 1) a1\n\n(to question 2) a2" and "c1" in a.b
    assert "a1" not in str(second.prompt) and "c1" not in str(second.prompt) and a.references == ["r1", "r2"]
    same = mt_bench_judging.to_judge([ASKED[1]], one, Answers("n", "f", {1: ["a1", "c2"]}))[1]
    assert [m["content"] for m in same.prompt] == ["q1", "a1", "q2"] and "shown_a" not in same.extra
