"""Comparing files of groups: numbers by hand with a stub judge, the join, and the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fakerun
from xwincli import jsonl
from xwincli.errors import XwinError
from xwincli.judges import Answer, Item, Rated, Verdict
from xwincli.protocols import compare
from xwincli.records import Group, Judgement, Response, decode
from xwincli.stages.eval_compare import Config, model_names, run


class ByNumber:
    """The answer is its own grade; ``first_bonus`` is added to whatever is shown first."""

    name = "by-number"

    def __init__(self, first_bonus: float = 0) -> None:
        self.first_bonus = first_bonus

    def verdicts(self, items: Sequence[Item]) -> Iterator[Verdict]:
        for i in items:
            a, b = float(i.a) + self.first_bonus, float(i.b)
            yield Verdict(preference=0.5 if a == b else float(b > a), reason=f"{a} {b}")

    def ratings(self, answers: Sequence[Answer]) -> Iterator[Rated]:
        for a in answers:
            yield Rated(rating=float(a.text))


def entry(name: str, rows: dict[str, list[float]], finish: str = "stop") -> compare.Entry:
    groups = []
    for p, numbers in rows.items():
        responses = [Response(text=f"{x:g}", index=i, finish=finish, tokens=3) for i, x in enumerate(numbers)]
        ask = [{"role": "user", "content": f"a number {p}"}]
        groups.append(Group(id=p + name, prompt_id=p, prompt=ask, responses=responses))
    return compare.entry(name, f"{name}.jsonl", groups)


def compared(base: compare.Entry, other: compare.Entry, judge: Any) -> tuple[dict[str, Any], list[Judgement]]:
    prompts, _ = compare.join([base, other], common=False)
    n = compare.trim([base, other], prompts)
    for e in (base, other):
        list(compare.rate(judge, e, prompts))
    played = list(compare.play(judge, base, other, prompts))
    count = compare.Count(n, rounds=200, scale=(1, 10))
    facts = compare.standing(other, prompts, count)
    return {**facts, **compare.against(base, other, prompts, played, count)}, played


def test_every_figure_by_hand() -> None:
    base, other = entry("base", {"p": [4, 6], "q": [5, 5]}), entry("other", {"p": [7, 1], "q": [5, 9]})
    m, played = compared(base, other, ByNumber())
    value = {k: v["value"] for k, v in m.items() if isinstance(v, dict) and "value" in v}
    assert value["mean"] == 5.5 and value["worst_of_n"] == 3 and value["best_of_n"] == 8
    assert value["std"] == pytest.approx((18**0.5 + 8**0.5) / 2)
    assert value["consistency"] == pytest.approx(1 - value["std"] / 9)
    assert (m["wins"], m["ties"], m["losses"]) == (2, 1, 1)  # 7>4, 1<6, 5=5, 9>5
    assert value["win_rate"] == 62.5 and m["verdict"] == "not distinguishable"
    assert value["gain"] == 0.5  # means 4 7 against 5 5
    assert value["ended"] == 1 and value["tokens"] == 3 and value["characters"] == 1 and value["words"] == 1
    assert m["all_checks"] is None
    assert [(c["n"], c["value"]) for c in m["curves"]["oracle"]] == [(1, 5.5), (2, 8)]
    assert "rm" not in m["curves"]
    assert [j.verdict() for j in played] == [1, 0, 0.5, 1]
    assert [g.first for g in played[0].games] == ["a", "b"] and played[0].a["model"] == "base"


def test_both_orders_turn_a_bias_for_the_first_into_ties() -> None:
    base, other = entry("base", {"p": [5, 5]}), entry("other", {"p": [5.5, 9]})
    m, played = compared(base, other, ByNumber(first_bonus=1))
    assert (m["wins"], m["ties"]) == (1, 1)  # 5.5 beats 5 only when shown first; 9 beats it anyway
    assert [g.preference for g in played[0].games] == [0, 1]
    assert played[0].games[0].reason == "6.0 5.5" and played[0].games[1].reason == "6.5 5.0"


def test_verdict_needs_an_interval_beyond_a_draw() -> None:
    rows = {f"p{i}": [5.0, 5.0] for i in range(12)}
    base = entry("base", rows)
    better, _ = compared(base, entry("other", {p: [6.0, 5.0] for p in rows}), ByNumber())
    assert better["verdict"] == "better" and better["win_rate"]["value"] == 75
    base = entry("base", rows)
    worse, _ = compared(base, entry("other", {p: [5.0, 4.0] for p in rows}), ByNumber())
    assert worse["verdict"] == "worse" and worse["gain"]["high"] < 0


def test_a_proxy_curve_takes_golds_of_the_proxys_favourites() -> None:
    base, other = entry("base", {"p": [1, 2]}), entry("other", {"p": [9, 3]})
    for r, rm in zip(other.groups["p"].responses, (0.1, 0.7), strict=True):
        r.scores["rm"] = rm
    m, _ = compared(base, other, ByNumber())
    assert [(c["n"], c["value"]) for c in m["curves"]["rm"]] == [(1, 6), (2, 3)]
    assert m["mean"]["low"] is None  # one prompt has no interval


def test_checks_and_cut_answers_are_counted() -> None:
    base = entry("base", {"p": [1, 2], "q": [1, 1]})
    other = entry("other", {"p": [12, 1], "q": [3, 3]}, "length")
    for e in (base, other):
        e.groups["p"].checks = [{"kind": "starts_with", "value": "12"}, {"kind": "ends_with", "value": "2"}]
    m, _ = compared(base, other, ByNumber())
    assert m["all_checks"]["value"] == 0.5  # over the one prompt that has checks
    assert m["ended"]["value"] == 0


def test_trim_compares_as_many_as_every_model_has() -> None:
    a, b = entry("a", {"p": [1, 2, 3], "q": [1, 2]}), entry("b", {"p": [1, 2], "q": [4, 5, 6]})
    assert compare.trim([a, b], ["p", "q"]) == 2
    assert [len(e.groups[p].responses) for e in (a, b) for p in "pq"] == [2, 2, 2, 2]


def test_join_is_strict_and_lists_what_is_missing() -> None:
    a, b = entry("a", {"p": [1], "q": [1], "r": [1]}), entry("b", {"r": [1], "p": [2]})
    with pytest.raises(XwinError, match=r"b\.jsonl: 1 of 3 prompts are missing: q") as e:
        compare.join([a, b], common=False)
    assert "--common" in e.value.hint
    assert compare.join([a, b], common=True) == (["p", "r"], {"b": ["q"]})
    with pytest.raises(XwinError, match="no prompt in common"):
        compare.join([a, entry("c", {"z": [1]})], common=True)


def test_a_prompt_twice_in_a_file_is_refused() -> None:
    g = entry("a", {"p": [1]}).groups["p"]
    with pytest.raises(XwinError, match=r"a\.jsonl: row 2: field prompt_id: 'p' stands twice"):
        compare.entry("a", "a.jsonl", [g, g])


def test_names() -> None:
    assert model_names(["x/base.jsonl.gz", "rs.v2.jsonl"], []) == ["base", "rs"]
    assert model_names(["a.jsonl", "b.jsonl"], ["one,two"]) == ["one", "two"]
    for files, names, what in [
        (["a.jsonl"], [], "two files"),
        (["x/a.jsonl", "y/a.jsonl"], [], "called 'a'"),
        (["a.jsonl", "b.jsonl"], ["one"], "1 names for 2 files"),
        (["a.jsonl", "b.jsonl"], ["one", "../two"], "cannot name a file"),
    ]:
        with pytest.raises(XwinError, match=what):
            model_names(files, names)


# -- through the command line


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name in ("base", "rs"):
        jsonl.write(str(tmp_path / f"{name}.jsonl"), fakerun.groups(name, prompts=12, n=4))
    return tmp_path


def test_the_command(xwin: Any, files: Path) -> None:
    done = xwin("eval", "compare", "base.jsonl", "rs.jsonl", "--out", "eval", "--rounds", 200)
    assert done.stdout == "" and "worst of 4" in done.stderr and "not" not in done.stderr.splitlines()[0]
    facts = json.loads((files / "eval/eval.json").read_text())
    base, rs = facts["models"]
    assert (facts["prompts"], facts["n"], facts["judge"], facts["missing"]) == (12, 4, "rules", {})
    assert base["verdict"] == "baseline" and "win_rate" not in base
    low, value, high = (rs["win_rate"][k] for k in ("low", "value", "high"))
    assert low < value < high and rs["wins"] + rs["ties"] + rs["losses"] == 48
    assert set(rs["curves"]) == {"oracle", "rm"} and [c["n"] for c in rs["curves"]["rm"]] == [1, 2, 4]
    lines = (files / "eval/judgements.jsonl").read_text().splitlines()
    rows = [decode(json.loads(x), Judgement) for x in lines]
    assert len(rows) == 48 and all(len(j.games) == (1 if j.a["text"] == j.b["text"] else 2) for j in rows)
    assert sum(j.verdict() for j in rows) / 48 * 100 == pytest.approx(value)
    rated = [decode(json.loads(x), Group) for x in (files / "eval/ratings/rs.jsonl").read_text().splitlines()]
    gold = [r.scores["gold"] for g in rated for r in g.responses]
    assert sum(gold) / len(gold) == pytest.approx(rs["mean"]["value"]) and 1 <= min(gold) <= max(gold) <= 10
    made = json.loads((files / "eval/xwin.json").read_text())
    assert made["stage"] == "eval compare" and made["metrics"]["win_rate"]["rs"] == value


def test_a_rerun_does_nothing_and_another_seed_moves_only_the_intervals(files: Path) -> None:
    def made(**options: Any) -> dict[str, Any]:
        names = [str(files / f"{n}.jsonl") for n in ("base", "rs")]
        run(Config(files=names, out=str(files / "e"), rounds=200, **options))
        return dict(json.loads((files / "e/eval.json").read_text())["models"][1]["win_rate"])

    first = made()
    stamp = (files / "e/judgements.jsonl").stat().st_mtime_ns
    assert made() == first and (files / "e/judgements.jsonl").stat().st_mtime_ns == stamp
    other = made(seed=7)
    assert other["value"] == first["value"] and other["low"] != first["low"]
    made(names=["before", "after"])
    assert sorted(p.stem for p in (files / "e/ratings").glob("*")) == ["after", "before"]


def test_missing_prompts_exit_1_and_leave_nothing(xwin: Any, files: Path) -> None:
    rows = (files / "rs.jsonl").read_text().splitlines(keepends=True)
    (files / "rs.jsonl").write_text("".join(rows[:9]))
    done = xwin("eval", "compare", "base.jsonl", "rs.jsonl", "--out", "eval", code=1)
    assert "rs.jsonl: 3 of 12 prompts are missing" in done.stderr and not (files / "eval").exists()
    done = xwin("eval", "compare", "base.jsonl", "rs.jsonl", "--out", "eval", "--common", "--rounds", 100)
    assert "rs: 3 prompts are missing there" in done.stderr
    facts = json.loads((files / "eval/eval.json").read_text())
    assert facts["prompts"] == 9 and len(facts["missing"]["rs"]) == 3


def test_unique_groups_are_marked(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = fakerun.groups("rs", prompts=12, n=4)
    for g in groups:
        g.sampling = {"unique": True}
    jsonl.write(str(files / "rs.jsonl"), groups)
    run(Config(files=[str(files / "base.jsonl"), str(files / "rs.jsonl")], out=str(files / "e"), rounds=100))
    assert "rs: responses were drawn to be unique" in capsys.readouterr().err
    assert [m["unique"] for m in json.loads((files / "e/eval.json").read_text())["models"]] == [False, True]


def test_usage_errors(xwin: Any, files: Path) -> None:
    assert "two files" in xwin("eval", "compare", "base.jsonl", "--out", "eval", code=2).stderr
    done = xwin("eval", "compare", "base.jsonl", "rs.jsonl", "--out", "e", "--judge", "oracle", code=2)
    assert "no judge 'oracle'" in done.stderr
    done = xwin("eval", "compare", "base.jsonl", "rs.jsonl", "--out", "rs.jsonl", code=2)
    assert "is a file" in done.stderr


def test_a_reward_model_can_judge_but_is_no_proxy_then(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is a stub that likes length; what matters is that --rm reaches it and its scale is its own."""
    from xwincli import models, scoring

    named: list[str] = []
    stub = SimpleNamespace(facts=lambda: {"tokenizer": "", "template": ""})
    stub.given = lambda arguments: stub
    load = lambda name, place: named.append(name) or SimpleNamespace(template=stub)
    monkeypatch.setattr(models, "load_reward", load)
    monkeypatch.setattr(
        scoring, "rewards", lambda loaded, items: [[float(len(text)) for text, _ in texts] for _, texts in items]
    )
    (files / "rm").mkdir()
    data = [str(files / f"{n}.jsonl") for n in ("base", "rs")]
    run(Config(files=data, out=str(files / "e"), judge="reward", rm=str(files / "rm"), rounds=100))
    facts = json.loads((files / "e/eval.json").read_text())
    rs = facts["models"][1]
    assert named == [str(files / "rm")] and facts["judge"] == "reward:rm" and facts["scale"] is None
    assert rs["mean"]["value"] == pytest.approx(rs["characters"]["value"]) and rs["consistency"] is None
    assert set(rs["curves"]) == {"oracle"}


def test_a_file_that_is_not_there(xwin: Any, files: Path) -> None:
    done = xwin("eval", "compare", "base.jsonl", "none.jsonl", "--out", "e", code=1)
    assert "none.jsonl: no such file" in done.stderr and not (files / "e").exists()
