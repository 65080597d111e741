"""``xwin eval arena``: every format it reads, figures by hand, style, what is refused, the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xwincli.errors import XwinError
from xwincli.protocols import arena, arena_files
from xwincli.stages.eval_arena import Config, run


def save(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def battle(winner: str, question: int = 0, a: str = "x", b: str = "y") -> dict[str, Any]:
    return {"question_id": question, "model_a": a, "model_b": b, "winner": winner}


def hard(first: str | None, second: str | None, **more: Any) -> dict[str, Any]:
    games = [None if s is None else {"score": s, "judgment": {"answer": f"[[{s}]]"}} for s in (first, second)]
    return {"uid": "q", "category": "hard", "judge": "j", "model": "m", "baseline": "base", "games": games, **more}


def evaluated(path: Path, **options: Any) -> dict[str, Any]:
    run(Config(out=str(path), **options))
    return dict(json.loads((path / "eval.json").read_text()))


def test_battles_by_hand(tmp_path: Path) -> None:
    rows = [
        battle("model_a"),
        battle("tie"),
        battle("tie (bothbad)"),
        battle("model_b"),
        battle("model_b", a="y", b="x"),
    ]
    facts = evaluated(tmp_path / "e", files=[save(tmp_path / "b.jsonl", rows)], baseline="y", rounds=200)
    x, y = facts["models"]
    assert (x["model"], x["wins"], x["ties"], x["losses"], x["battles"]) == ("x", 2, 2, 1, 5)
    assert x["win_rate"]["value"] == pytest.approx(60) and y["win_rate"] == {"value": 50, "low": 50, "high": 50}
    assert x["elo"]["value"] == pytest.approx(1000 + 400 * 0.17609, abs=0.01)  # log10 of odds 3:2
    assert facts["matrix"] == {"models": ["x", "y"], "wins": [[0, 3], [2, 0]]}
    assert facts["separability"]["pairs"] == 1 and facts["style"] is None and facts["coverage"] == 1
    assert x["online_elo"] + y["online_elo"] == pytest.approx(2000) and x["online_elo"] > 1000
    made = [json.loads(line) for line in (tmp_path / "e/results.jsonl").read_text().splitlines()]
    assert made[1] == {"question_id": 0, "model_a": "x", "model_b": "y", "score_a": 0.5} and len(made) == 5


def test_a_label_counts_for_the_model_it_names_in_each_order(tmp_path: Path) -> None:
    """In the first game the baseline is A, in the second the model; a strong verdict is three battles."""
    for first, second, wins, losses, ties in [
        ("B>A", "A>B", 2, 0, 0), ("A>>B", "A>B", 1, 3, 0), ("A=B", "B>>A", 0, 3, 1), ("B>>A", "A>>B", 6, 0, 0),
        ("A<B", "B<A", 2, 0, 0), ("B<<A", "A<<B", 0, 6, 0),
    ]:  # fmt: skip
        found = arena_files.read([save(tmp_path / "j.jsonl", [hard(first, second)])])
        scores = [f.battle.score for f in found.battles]
        assert (scores.count(1), scores.count(0), scores.count(0.5)) == (wins, losses, ties), (first, second)
        assert {(f.battle.a, f.battle.b, f.question) for f in found.battles} == {("m", "base", "q")}
    assert len(arena_files.read([save(tmp_path / "j.jsonl", [hard("A>>B", "A>B")])], strong=1).battles) == 2


def test_a_row_needs_both_verdicts(tmp_path: Path) -> None:
    rows = [
        hard("A>B", None),
        hard("A>B", "A"),
        {**hard("A>B", "A>B"), "games": [{"score": "A>B"}]},
        hard("A>B", "A>B"),
    ]
    rows.append(hard("A>B", "A>B"))
    rows[-1]["games"] = [{"judgment": "[[A>B]]"}, {"judgment": {"answer": "no, [[B>A]]"}}]  # no score kept: the text
    found = arena_files.read([save(tmp_path / "j.jsonl", rows)])
    assert len(found.missing) == 3 and [f.battle.score for f in found.battles] == [1, 0, 0, 0]
    with pytest.raises(XwinError, match="covers n = 2 of 5") as e:
        run(Config(files=[str(tmp_path / "j.jsonl")], out=str(tmp_path / "e"), rounds=100))
    assert e.value.code == 3
    facts = json.loads((tmp_path / "e/eval.json").read_text())
    assert facts["baseline"] == "base" and facts["coverage"] == 0.4 and len(facts["missing"]) == 3


def test_the_baseline_may_be_named_outside_and_must_be_one(tmp_path: Path) -> None:
    bare = hard("A>B", "B>A")
    del bare["baseline"]
    with pytest.raises(XwinError, match=r"j\.jsonl:1: field baseline: is missing"):
        arena_files.read([save(tmp_path / "j.jsonl", [bare])])
    assert arena_files.read([str(tmp_path / "j.jsonl")], "old").baselines == {"old"}
    two = [hard("A>B", "A>B"), hard("A>B", "A>B", baseline="other", category="creative")]
    data = [save(tmp_path / "k.jsonl", two)]
    with pytest.raises(XwinError, match="judged against base, other"):
        run(Config(files=data, out=str(tmp_path / "e")))
    facts = evaluated(tmp_path / "e", files=data, category="creative", rounds=100)
    assert facts["baseline"] == "other" and facts["rows"] == 1
    with pytest.raises(XwinError, match="no row has the category 'odd'"):
        arena_files.read(data, category="odd")


def test_judgements_of_ours_carry_their_style(tmp_path: Path) -> None:
    """The longer answer wins three of four games: with length held equal little is left."""
    prompt = [{"role": "user", "content": "Say."}]
    rows = []
    for i in range(40):
        longer, wins = i % 2 == 0, i % 8 not in (0, 1)
        a, b = ("long " * (8 + i % 5), "short") if longer else ("short", "long " * (8 + i % 3))
        best = 0.0 if longer == wins else 1.0
        games = [{"first": first, "preference": best} for first in ("a", "b")]
        side = [{"text": a, "model": "m"}, {"text": b, "model": "n"}]
        ask = [{"role": "user", "content": f"Say {i}."}] if i else prompt
        rows.append({"kind": "judgement", "prompt": ask, "a": side[0], "b": side[1], "games": games, "judge": "j"})
    facts = evaluated(tmp_path / "e", files=[save(tmp_path / "j.jsonl", rows)], baseline="n", rounds=100)
    pull = facts["style"]["coefficients"]
    assert pull["length"]["value"] > 0.8 and pull["length"]["low"] > 0.2
    assert pull["bold"] == {"value": 0, "low": 0, "high": 0}  # there is none
    assert facts["style"]["controlled"]["n"]["value"] == 50 and facts["style"]["against"] == "n"
    assert facts["style"]["equal"]["m"]["value"] == pytest.approx(50, abs=20)


def test_answers_dress_the_battles(tmp_path: Path) -> None:
    counts = {"header_count": {"h1": 1}, "list_count": {"ordered": 2}, "bold_count": {"**": 3}}
    rows: list[dict[str, Any]] = [
        {"uid": "q", "model": "m", "metadata": {"token_len": 7, **counts}},
        {"question_id": 1, "model_id": "x", "choices": [{"turns": ["# a\n- b", "later"]}]},
        {"question_id": 1, "model_id": "y", "choices": [{"turns": [{"content": "**c**"}]}]},
        {"uid": "q", "model": "base", "messages": [{"role": "assistant", "content": {"answer": "12345"}}]},
    ]
    known = arena_files.answers([save(tmp_path / "a.jsonl", rows)])
    assert known == {
        ("m", "q"): (7, 1, 2, 3),
        ("x", 1): (7, 1, 1, 0),
        ("y", 1): (5, 0, 0, 1),
        ("base", "q"): (5, 0, 0, 0),
    }
    found = arena_files.read([save(tmp_path / "b.jsonl", [battle("model_a", 1), battle("tie", 2)])])
    with pytest.raises(XwinError, match="--answers: 2 answers are missing: x to 2, y to 2"):
        arena_files.dress(found, known)
    found = arena_files.read([save(tmp_path / "b.jsonl", [battle("model_a", 1)])])
    arena_files.dress(found, known)
    assert found.battles[0].looks == ((7, 1, 1, 0), (5, 0, 0, 1))
    why = arena.standings(found, arena.Count("y", rounds=100))["style"]["why_not"]
    assert "no finite strengths" in why  # x never lost


def test_the_unit_of_the_bootstrap(tmp_path: Path) -> None:
    """Ten questions, each won once and lost once: drawn as wholes nothing varies."""
    data = [save(tmp_path / "b.jsonl", [battle(w, q) for q in range(10) for w in ("model_a", "model_b")])]
    whole = evaluated(tmp_path / "e", files=data, baseline="y", unit="question", rounds=100)["models"][0]
    single = evaluated(tmp_path / "f", files=data, baseline="y", rounds=100)["models"][0]
    assert whole["elo"]["low"] == pytest.approx(1000) == whole["elo"]["high"]
    assert single["elo"]["low"] < 950 and single["elo"]["high"] > 1050


def test_options_reach_the_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = [save(tmp_path / "b.jsonl", [battle("model_a")] * 3)]
    free = evaluated(tmp_path / "e", files=data, baseline="y", rounds=100)
    assert free["models"][0]["elo"]["value"] is None and free["models"][0]["win_rate"]["value"] == 100
    assert "x: no finite strength" in capsys.readouterr().err
    held = evaluated(tmp_path / "f", files=data, baseline="y", ridge=1.0, k=32.0, rounds=100)["models"][0]
    assert 1000 < held["elo"]["value"] < 1400 and held["online_elo"] > 1040
    seeds = [battle(w) for w in ("model_a", "model_a", "model_b", "tie") * 5]
    data = [save(tmp_path / "c.jsonl", seeds)]
    lows = [evaluated(tmp_path / f"s{s}", files=data, rounds=100, seed=s)["models"][0]["elo"]["low"] for s in (1, 2)]
    assert lows[0] != lows[1]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (battle("modelB"), "field winner: 'modelB' is no winner"),
        ({"model_a": "x", "model_b": "y"}, "field winner: is missing"),
        (battle("tie", b="x"), "field model_b: 'x' meets itself"),
        (hard("A>B", "A>B", games=[1, 2]), r"field games\[0\]: expected an object"),
        (hard("A>B", "A>B", games=[]), "field games: is an empty list"),
        (hard("A>B", "A>B", games=[{"score": 1}, {}]), r"field games\[0\]\.score: expected text"),
        (hard("A>B", "A>B", games=[{"judgment": 3}, {}]), r"field games\[0\]\.score: expected text"),
        (hard("A>B", "A>B", uid=["q"]), "field uid: expected text, got a list"),
        ({**battle("tie"), "question_id": {}}, "field question_id: expected text, got an object"),
        (hard("A>B", "A>B", model="base"), "field model: 'base' meets itself"),
    ],
)
def test_bad_rows(tmp_path: Path, row: dict[str, Any], what: str) -> None:
    with pytest.raises(XwinError, match=rf"b\.jsonl:2: {what}"):
        arena_files.read([save(tmp_path / "b.jsonl", [battle("tie"), row])])


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"model": "m"}, "field uid: is missing"),
        ({"uid": 1, "model": "m", "messages": []}, "field messages: is an empty list"),
        ({"uid": 1, "model": "m", "messages": [{"role": "assistant"}]}, "field messages: holds no answer"),
        ({"uid": 1, "model": "m", "metadata": {"token_len": "7"}}, "field metadata.token_len: expected a number"),
        ({"uid": 1, "model": "m", "metadata": {"token_len": 7}}, "field metadata.header_count: is missing"),
    ],
)
def test_bad_answers(tmp_path: Path, row: dict[str, Any], what: str) -> None:
    with pytest.raises(XwinError, match=rf"a\.jsonl:1: {what}"):
        arena_files.answers([save(tmp_path / "a.jsonl", [row])])


def test_labels() -> None:
    said = ["[[A>B]]", "[a>>b]", "[[A>B]] no [[B>A]]", "A>B", None, "[[A]]"]
    assert [arena.label_v2(s) for s in said] == ["A>B", "A>>B", "B>A", None, None, "A"]
    assert [arena.label_v01(s) for s in said] == [
        ("A>B", False), (None, True), (None, False), (None, True), (None, True), ("A", False),
    ]  # fmt: skip


def test_the_command(xwin: Any, tmp_path: Path) -> None:
    rows = [battle(w, q, a, b) for q, w in enumerate(["model_a", "model_b", "tie"] * 4) for a, b in ("xy", "yz", "zx")]
    save(tmp_path / "b.jsonl", rows)
    done = xwin("eval", "arena", "b.jsonl", "--out", "e", "--rounds", 200)
    assert done.stdout == "" and "online Elo" in done.stderr and "of 3 pairs of models lie apart" in done.stderr
    made = json.loads((tmp_path / "e/xwin.json").read_text())
    assert made["stage"] == "eval arena" and made["counts"] == {"total": 36, "missing": 0, "battles": 36}
    assert made["metrics"]["elo"]["x"] == pytest.approx(1000)
    assert "up to date" in xwin("eval", "arena", "b.jsonl", "--out", "e", "--rounds", 200).stderr
    looks = ["# a\n- b", "**c** and more", "plain text, long and longer"]
    said = [
        {"question_id": q, "model_id": m, "choices": [{"turns": [looks[(q * 5 + i) % 3] * (1 + (q + i) % 4)]}]}
        for q in range(12)
        for i, m in enumerate("xyz")
    ]
    save(tmp_path / "a.jsonl", said)
    styled = xwin("eval", "arena", "b.jsonl", "--out", "e", "--rounds", 200, "--answers", "a.jsonl", "--force")
    assert "style controlled" in styled.stderr and "log-odds of a win by: length" in styled.stderr
    done = xwin("eval", "arena", "b.jsonl", "--out", "f", "--baseline", "nobody", code=1)
    assert "'nobody': fought no battle" in done.stderr and not (tmp_path / "f").exists()
    (tmp_path / "f").write_text("")
    assert "is a file" in xwin("eval", "arena", "b.jsonl", "--out", "f", code=2).stderr
