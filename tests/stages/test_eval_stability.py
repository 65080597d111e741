"""Steadiness: every figure by hand, equal answers, what changed, a judge that fails, and the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import fakerun
from xwincli import jsonl, judges
from xwincli.errors import XwinError
from xwincli.judges import Answer, Rated
from xwincli.protocols import compare, entries, stability
from xwincli.records import Group, Response
from xwincli.stages.eval_stability import Config, run


def group(prompt: str, scores: list[float], texts: list[str] | None = None, **facts: Any) -> Group:
    texts = texts or [f"{s:g}" for s in scores]
    responses = [Response(text=t, index=i, scores={"gold": s}) for i, (t, s) in enumerate(zip(texts, scores))]
    return Group(
        id=prompt, prompt_id=prompt, prompt=[{"role": "user", "content": prompt}], responses=responses, **facts
    )


def entry(name: str, *groups: Group) -> compare.Entry:
    return compare.entry(name, f"{name}.jsonl", groups)


COUNT = stability.Count("gold", n=2, scale=(1, 10), rounds=200)


def test_every_figure_by_hand() -> None:
    base = entry("base", group("p", [4, 6]), group("q", [2, 2]))
    other = entry("other", group("p", [7, 5]), group("q", [2, 8]))
    (one, two), rows = stability.standings([base, other], ["p", "q"], COUNT)
    value = {k: v["value"] for k, v in one.items() if isinstance(v, dict)}
    assert (value["mean"], value["worst_of_n"], value["best_of_n"]) == (3.5, 3, 4)
    assert value["std"] == pytest.approx(2**0.5 / 2) and value["consistency"] == pytest.approx(1 - 2**0.5 / 18)
    assert value["agreement"] == pytest.approx((0.5 + 1) / 2)  # 4 and 6 differ, 2 and 2 are equal
    assert two["change"]["mean"]["value"] == pytest.approx(2) and two["change"]["worst_of_n"]["value"] == 0.5
    assert "change" not in one and "pass_at_k" not in one
    assert [r["mean"] for r in rows] == [5, 2, 6, 5] and rows[2]["model"] == "other"


def test_without_a_scale_there_is_no_consistency() -> None:
    (one,), _ = stability.standings([entry("a", group("p", [1, 2]))], ["p"], stability.Count("gold", n=2))
    assert "consistency" not in one and one["mean"]["low"] is None  # one prompt has no interval


def test_passes_by_hand() -> None:
    demand = [{"kind": "mentions", "value": "yes"}]
    texts = ["yes", "yes", "no", "yes yes"]
    e = entry("a", group("p", [1, 1, 1, 1], texts, checks=demand), group("q", [1] * 4, ["x"] * 4))
    (one,), _ = stability.standings([e], ["p", "q"], stability.Count("gold", n=4))
    assert [x["k"] for x in one["pass_at_k"]] == [1, 2, 4]
    assert [x["value"] for x in one["pass_at_k"]] == pytest.approx([0.75, 1, 1])  # over p alone
    assert [x["value"] for x in one["pass_hat_k"]] == pytest.approx([0.75, 0.5, 0])


def test_changes_have_a_verdict() -> None:
    """The picture of stabilising: worst and mean rise, spread falls, best stays."""
    base = entry("base", *(group(f"p{i}", [1, 9 - i % 2]) for i in range(12)))
    other = entry("other", *(group(f"p{i}", [7, 9 - (i + 1) % 2]) for i in range(12)))
    (_, two), _ = stability.standings([base, other], [f"p{i}" for i in range(12)], COUNT)
    said = {k: v["verdict"] for k, v in two["change"].items()}
    assert said["mean"] == said["worst_of_n"] == said["consistency"] == "rises" and said["std"] == "falls"
    assert said["best_of_n"] == said["agreement"] == "not distinguishable"


def test_which_answers_are_equal() -> None:
    assert stability.exact(" The  Answer\nis 4. ") == stability.exact("the answer is 4")
    assert stability.exact("4") != stability.exact("5")
    assert stability.numeric("So 3 + 4 = 7.") == stability.numeric("It is 7") == stability.numeric("7.0")
    assert stability.numeric("1,200 in all") == stability.numeric("1200") != stability.numeric("12")
    assert stability.numeric("No number!") == stability.exact("no number")


def test_names() -> None:
    assert entries.names(["x/base.jsonl.gz", "rs.v2.jsonl"], []) == ["base", "rs"]
    assert entries.names(["a.jsonl", "b.jsonl"], ["one,two"]) == ["one", "two"]
    for files, given, what in [
        (["x/a.jsonl", "y/a.jsonl"], [], "called 'a'"),
        (["a.jsonl"], ["one,two"], "2 names for 1 files"),
        (["a.jsonl", "b.jsonl"], ["one,"], "is empty"),
    ]:
        with pytest.raises(XwinError, match=what):
            entries.names(files, given)


# -- through the command line


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name in ("base", "rs"):
        jsonl.write(str(tmp_path / f"{name}.jsonl"), fakerun.groups(name, prompts=12, n=4))
    return tmp_path


def test_the_command(xwin: Any, files: Path) -> None:
    done = xwin("eval", "stability", "base.jsonl", "rs.jsonl", "--out", "st", "--rounds", 200)
    assert done.stdout == "" and "worst of 4" in done.stderr and "rs against base: mean rises" in done.stderr
    facts = json.loads((files / "st/eval.json").read_text())
    base, rs = facts["models"]
    assert (facts["n"], facts["prompts"], facts["scale"], facts["judge"]) == (4, 12, [1, 10], "rules")
    assert base["worst_of_n"]["value"] < base["mean"]["value"] < base["best_of_n"]["value"]
    assert rs["mean"]["low"] < rs["mean"]["value"] < rs["mean"]["high"]
    assert [p["k"] for p in rs["pass_hat_k"]] == [1, 2, 4]
    rows = [json.loads(x) for x in (files / "st/results.jsonl").read_text().splitlines()]
    own = [r["mean"] for r in rows if r["model"] == "rs"]
    assert len(rows) == 24 and sum(own) / 12 == pytest.approx(rs["mean"]["value"])
    made = json.loads((files / "st/xwin.json").read_text())
    assert made["stage"] == "eval stability" and made["metrics"]["mean"]["rs"] == rs["mean"]["value"]
    again = xwin("eval", "stability", "base.jsonl", "rs.jsonl", "--out", "st", "--rounds", 200)
    assert "up to date" in again.stderr


def test_the_picture_stands_by_itself(files: Path) -> None:
    data = [str(files / f"{n}.jsonl") for n in ("base", "rs")]
    run(Config(files=data, names=["<a>", "b & c"], out=str(files / "st"), score="rm", rounds=100))
    text = (files / "st/stability.svg").read_text()
    root = ElementTree.fromstring(text)
    said = ["".join(t.itertext()) for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"<a>", "b & c", "best of 4", "mean", "worst of 4"} <= set(said)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 6 and "--s1:" in text
    facts = json.loads((files / "st/eval.json").read_text())
    assert facts["judge"] is None and facts["scale"] is None and "consistency" not in facts["models"][0]


def test_one_model_and_a_scale(files: Path) -> None:
    run(Config(files=[str(files / "rs.jsonl")], out=str(files / "st"), score="rm", scale="-5,5", rounds=100))
    facts = json.loads((files / "st/eval.json").read_text())
    (rs,) = facts["models"]
    assert facts["scale"] == [-5, 5] and rs["consistency"]["value"] == pytest.approx(1 - rs["std"]["value"] / 10)


def test_answers_may_agree_by_number_and_files_may_share_some_prompts(tmp_path: Path) -> None:
    jsonl.write(str(tmp_path / "a.jsonl"), [group("p", [1, 1], ["It is 4.", "So: 4"]), group("q", [1, 2])])
    jsonl.write(str(tmp_path / "b.jsonl"), [group("p", [3, 3], ["4", "5"])])
    agreed = []
    for equal in ("exact", "numeric"):
        data, out = [str(tmp_path / f"{n}.jsonl") for n in "ab"], str(tmp_path / equal)
        run(Config(files=data, out=out, score="gold", equal=equal, common=True, rounds=100))
        facts = json.loads((tmp_path / equal / "eval.json").read_text())
        assert facts["prompts"] == 1 and facts["missing"] == {"b": ["q"]}
        agreed.append([m["agreement"]["value"] for m in facts["models"]])
    assert agreed == [[0.5, 0.5], [1, 0.5]]


def test_a_score_that_is_there_needs_no_judge(files: Path) -> None:
    options = judges.Options(judge="reward", rm="x")
    with pytest.raises(XwinError, match="--score reads scores that are there") as e:
        run(Config(files=[str(files / "rs.jsonl")], out=str(files / "st"), score="rm", options=options))
    assert e.value.code == 2


def test_bad_input_is_one_sentence_and_leaves_nothing(xwin: Any, files: Path) -> None:
    call = ("eval", "stability", "base.jsonl", "--out", "st")
    done = xwin(*call, "--score", "nice", code=1)
    assert "base.jsonl:1: field responses[0].scores.nice: is missing" in done.stderr and "rm" in done.stderr
    assert "--scale is '3'" in xwin(*call, "--scale", "3", code=2).stderr
    assert "must be lower" in xwin(*call, "--scale", "3,3", code=2).stderr
    rows = (files / "rs.jsonl").read_text().splitlines(keepends=True)
    (files / "rs.jsonl").write_text("".join(rows[:9]))
    assert "rs.jsonl: 3 of 12 prompts are missing" in xwin(*call, "rs.jsonl", code=1).stderr
    jsonl.write(str(files / "single.jsonl"), fakerun.groups("base", prompts=3, n=1))
    assert "a prompt has one answer" in xwin("eval", "stability", "single.jsonl", "--out", "st", code=1).stderr
    assert not (files / "st").exists()


class Broken:
    """Rates by length, and cannot read what holds a bracket."""

    name = scorer = "broken"

    def receipt(self) -> dict[str, float]:
        return {"calls": 3.0}

    def ratings(self, answers: Sequence[Answer]) -> Iterator[Rated | XwinError]:
        for a in answers:
            yield XwinError("unreadable") if "<b>" in a.text else Rated(rating=float(len(a.text)))


def test_failed_ratings_lower_coverage_and_exit_3(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "find", lambda *a, **k: Broken())
    config = Config(files=[str(files / f"{n}.jsonl") for n in ("base", "rs")], out=str(files / "st"), rounds=100)
    with pytest.raises(XwinError, match="n = 11 of 12") as e:
        run(config)
    assert e.value.code == 3
    facts = json.loads((files / "st/eval.json").read_text())
    assert (
        facts["prompts"] == 11
        and facts["coverage"] == pytest.approx(11 / 12)
        and list(facts["failed"].values()) == ["rs: unreadable"]
    )
    assert json.loads((files / "st/xwin.json").read_text())["metrics"]["calls"] == 3
    with pytest.raises(XwinError, match="n = 11 of 12"):  # an incomplete evaluation is never up to date
        run(config)
