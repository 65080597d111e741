"""Comparing files of groups: numbers by hand with a stub judge, the join, and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fakerun
from by_number import ByNumber, entry
from xwincli import jsonl, judges
from xwincli.errors import XwinError
from xwincli.protocols import compare, league, problems
from xwincli.records import Group, Judgement, decode
from xwincli.stages.eval_compare import Config, model_names, run


def compared(base: compare.Entry, other: compare.Entry, judge: Any) -> tuple[dict[str, Any], list[Judgement]]:
    prompts, _ = compare.join([base, other], common=False)
    n = compare.trim([base, other], prompts)
    for e in (base, other):
        list(compare.rate(judge, e, prompts, {}))
    played = list(compare.play(judge, base, other, prompts, {}))
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
    with pytest.raises(XwinError, match=r"b\.jsonl: 1 of 3 prompts are missing: q \('a number q'\)") as e:
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


def test_tests_by_hand() -> None:
    rows = {f"p{i}": [5.0] for i in range(6)}
    better = {f"p{i}": [x] for i, x in enumerate([6, 6, 6, 6, 4, 5])}
    m, _ = compared(entry("base", rows), entry("other", better), ByNumber())
    for name, spread in (("win_rate", 50.0), ("gain", 1.0)):  # a won prompt is +50 points, or one more in rating
        t = m["tests"][name]
        assert (t["sign_test"]["up"], t["sign_test"]["equal"], t["sign_test"]["down"]) == (4, 1, 1)
        assert t["sign_test"]["p"] == 12 / 32 and t["p"] == 12 / 32
        sd = spread * ((4 * 0.5**2 + 0.5**2 + 1.5**2) / 5) ** 0.5
        assert t["detectable"] == pytest.approx((1.959964 + 0.841621) * sd / 6**0.5, rel=1e-5)


def test_categories_by_hand() -> None:
    base, other = (entry(n, {"p": [5], "q": [5], "r": [5]}) for n in ("base", "other"))
    other.groups["p"].responses[0].text = "9"
    base.groups["p"].category = base.groups["r"].category = "maths"
    m, _ = compared(base, other, ByNumber())
    (found,) = m["categories"].values()
    assert list(m["categories"]) == ["maths"] and found["prompts"] == 2
    assert (found["win_rate"]["value"], found["mean"]["value"], found["gain"]["value"]) == (75, 7, 2)


def test_problems_by_hand() -> None:
    base, other = (
        entry("base", {"p": [1, 2], "q": [3, 3], "r": [9, 1]}),
        entry("other", {"p": [2, 1], "q": [3, 3], "r": [1.5, 9]}),
    )
    base.groups["p"].checks = [{"kind": "starts_with", "value": "2"}]
    base.groups["q"].checks = [{"kind": "starts_with", "value": "2"}]
    _, played = compared(base, other, ByNumber(first_bonus=1.5))
    found = problems.find(base, ["p", "q", "r"], played)
    assert found["all_fail"] == ["q"] and found["all_equal"] == ["q"]
    assert found["most_spread"] == [{"prompt_id": "r", "std": 5.6569}, {"prompt_id": "p", "std": 0.7071}]
    assert found["judge_disagrees"] == [{"prompt_id": "p", "flips": 2, "of": 2}]


def test_the_league_by_hand() -> None:
    entries = [entry(n, {"p": [x], "q": [y]}) for n, x, y in (("a", 1, 5), ("b", 2, 3), ("c", 3, 1))]
    games = [
        j for i, k in ((0, 1), (0, 2), (1, 2)) for j in compare.play(ByNumber(), entries[i], entries[k], ["p", "q"], {})
    ]
    table = league.league(games, ["a", "b", "c"], 100, 0)
    half = [None, 0.5, 0.5]
    assert table["matrix"] == [half, [0.5, None, 0.5], [0.5, 0.5, None]]
    assert [(p["a"], p["b"], p["win_rate"]["value"]) for p in table["pairs"]] == [
        ("a", "b", 50),
        ("a", "c", 50),
        ("b", "c", 50),
    ]
    assert [s["elo"]["value"] for s in table["strengths"]] == pytest.approx([1000] * 3)
    one_sided = [j for j in games if j.prompt_id == "p"]
    best = league.league(one_sided, ["a", "b", "c"], 100, 0)["strengths"]
    assert {s["name"]: s["elo"]["value"] for s in best} == {"c": None, "b": None, "a": 1000}  # never lost: no bound


# -- through the command line


def test_all_pairs_and_categories_through_the_command_line(xwin: Any, tmp_path: Path) -> None:
    for name in ("base", "rs", "dpo"):
        groups = fakerun.groups(name, prompts=8, n=2)
        for i, g in enumerate(groups):
            g.category = "tea" if i % 2 else "rain"
        jsonl.write(str(tmp_path / f"{name}.jsonl"), groups)
    done = xwin("eval", "compare", "base.jsonl", "rs.jsonl", "dpo.jsonl", "--all-pairs", "--out", "e", "--rounds", 100)
    facts = json.loads((tmp_path / "e/eval.json").read_text())
    assert [(p["a"], p["b"]) for p in facts["all_pairs"]["pairs"]] == [("base", "rs"), ("base", "dpo"), ("rs", "dpo")]
    assert len((tmp_path / "e/judgements.jsonl").read_text().splitlines()) == 3 * 16
    assert "Bradley-Terry" in done.stderr and "rs: tea" in done.stderr and "sign test" in done.stderr
    assert {m["name"]: set(m["problems"]) for m in facts["models"]}["rs"] == {
        "all_fail", "all_equal", "most_spread", "judge_disagrees",
    }  # fmt: skip
    matrix = facts["all_pairs"]["matrix"]
    assert matrix[0][1] + matrix[1][0] == pytest.approx(1)
    assert matrix[1][0] * 100 == pytest.approx(facts["models"][1]["win_rate"]["value"])


def test_two_system_prompts_on_one_model(xwin: Any, tmp_path: Path) -> None:
    for name in ("terse", "kind"):
        groups = fakerun.groups("base" if name == "terse" else "rs", prompts=6, n=2)
        for g in groups:
            g.prompt = [{"role": "system", "content": f"Be {name}."}, *g.prompt]
            g.prompt_id = name + g.prompt_id  # as another prompt has another id
        jsonl.write(str(tmp_path / f"{name}.jsonl"), groups)
    done = xwin("eval", "compare", "terse.jsonl", "kind.jsonl", "--out", "e", "--rounds", 100, code=1)
    assert "6 of 12 prompts are missing" in done.stderr
    xwin("eval", "compare", "terse.jsonl", "kind.jsonl", "--ignore-system", "--out", "e", "--rounds", 100)
    facts = json.loads((tmp_path / "e/eval.json").read_text())
    assert facts["prompts"] == 6
    shown = json.loads((tmp_path / "e/judgements.jsonl").read_text().splitlines()[0])["prompt"]
    assert [m["role"] for m in shown] == ["user"]


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
    options = judges.Options(judge="reward", rm=str(files / "rm"))
    run(Config(files=data, out=str(files / "e"), options=options, rounds=100))
    facts = json.loads((files / "e/eval.json").read_text())
    rs = facts["models"][1]
    assert named == [str(files / "rm")] and facts["judge"] == "reward:rm" and facts["scale"] is None
    assert rs["mean"]["value"] == pytest.approx(rs["characters"]["value"]) and rs["consistency"] is None
    assert set(rs["curves"]) == {"oracle"}


def test_a_file_that_is_not_there(xwin: Any, files: Path) -> None:
    done = xwin("eval", "compare", "base.jsonl", "none.jsonl", "--out", "e", code=1)
    assert "none.jsonl: no such file" in done.stderr and not (files / "e").exists()
