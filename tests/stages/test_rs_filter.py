"""What rs-filter chooses and what it loses, by hand on small groups and as properties on random ones."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwincli.errors import XwinError
from xwincli.records import Conversation, Group, Pair, Response, decode
from xwincli.selection.choose import Choosing
from xwincli.selection.pool import Ranked, similarity
from xwincli.selection.receipt import Receipt
from xwincli.selection.reject import Rejecting, rejection
from xwincli.selection.rounds import merged
from xwincli.stages.rs_filter import Config, Selection, best, run

ASK = [{"role": "user", "content": "write about a fox ."}]


def group(scores: list[float], name: str = "g", **texts: Any) -> Group:
    made = [Response(text=f"answer {i}", index=i, finish="stop", scores={"rm": s}) for i, s in enumerate(scores)]
    return Group(id=name, prompt_id=f"p-{name}", prompt=ASK, responses=made, **texts)


def config(**options: Any) -> Config:
    """A config of flat options, as the command line takes them."""
    parts = {"choosing": Choosing, "rejecting": Rejecting}
    for name, kind in parts.items():
        mine = {f.name for f in fields(kind)}
        options[name] = kind(**{k: options.pop(k) for k in list(options) if k in mine})
    return Config(**options)


def select(groups: list[Group], **options: Any) -> tuple[list[Any], Receipt]:
    receipt, selection = Receipt(), Selection(config(**options))
    rows: list[Any] = []
    for outcome in best(map(selection.of, groups), options.get("keep_percent", 100)):
        receipt.take(outcome)
        kind = Pair if options.get("emit") == "pairs" else Conversation
        rows += [decode(row, kind, "row") for row in outcome.rows if not outcome.lost]
    receipt.dropped = selection.dropped
    return rows, receipt


def chosen(g: Group, **options: Any) -> tuple[list[Any], Receipt]:
    return select([g], **options)


def texts(rows: list[Conversation]) -> list[str]:
    return [r.messages[-1]["content"] for r in rows]


def test_best_carries_prompt_answer_score_and_rank() -> None:
    rows, receipt = chosen(group([1, 5, 3]))
    assert texts(rows) == ["answer 1"] and rows[0].messages[0] == ASK[0]
    assert rows[0].extra == {"prompt_id": "p-g", "score": 5, "rank": 1}
    m = receipt.metrics()
    assert (m["score_chosen"], m["score_pool"], m["gain"]) == (5, 3, 2)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"emit": "best", "top": 2}, ["answer 1", "answer 3"]),
        ({"emit": "rank", "rank": 3}, ["answer 2"]),
        ({"emit": "rank", "rank": 2, "top": 2}, ["answer 3", "answer 2"]),
        ({"emit": "threshold", "min_score": 3}, ["answer 1", "answer 3", "answer 2"]),
        ({"emit": "best", "top": 3, "min_score": 3.5}, ["answer 1", "answer 3"]),
    ],
)
def test_emit(options: dict[str, Any], expected: list[str]) -> None:
    assert texts(chosen(group([1, 5, 3, 4]), **options)[0]) == expected


@given(
    scores=st.lists(st.integers(-9, 9).map(float), min_size=1, max_size=12),
    top=st.integers(1, 5),
    low=st.none() | st.floats(-9, 9),
    seed=st.integers(0, 9),
)
def test_the_control_takes_as_many_from_the_same_pool(
    scores: list[float], top: int, low: float | None, seed: int
) -> None:
    best, _ = chosen(group(scores), emit="best", top=top, min_score=low)
    control, receipt = chosen(group(scores), emit="random", top=top, min_score=low, seed=seed)
    assert len(control) == len(best) and len(set(texts(control))) == len(control)
    assert receipt.kept + sum(receipt.lost.values()) == 1
    again, _ = chosen(group(scores), emit="random", top=top, min_score=low, seed=seed)
    assert texts(again) == texts(control)


def test_the_control_is_random_over_prompts_and_seeds_and_near_the_mean() -> None:
    groups = [group([1, 2, 3, 4], name=str(i)) for i in range(800)]
    picks, other = ([chosen(g, emit="random", seed=seed)[0][0].extra["score"] for g in groups] for seed in (0, 1))
    assert statistics.fmean(picks) == pytest.approx(2.5, abs=0.15)
    assert picks != other


def test_cut_empty_unscored_and_repeated_answers_take_no_part() -> None:
    g = group([9, 8, 7, 6, float("nan"), 4])
    g.responses[0].finish = "length"
    g.responses[1].text = "  \n"
    g.responses[3].text = "answer 2 "
    del g.responses[5].scores["rm"]
    rows, receipt = chosen(g, top=5)
    assert texts(rows) == ["answer 2"]
    assert receipt.dropped == {"empty": 1, "duplicates": 1, "without a score": 2}
    assert receipt.cut == 1
    assert texts(chosen(g, top=5, keep_cut=True)[0]) == ["answer 0", "answer 2"]


def test_lost_prompts_say_why() -> None:
    cut = group([1])
    cut.responses[0].finish = "length"
    for g, options, why in [
        (cut, {}, "with every response cut off"),
        (group([float("inf")]), {}, "without a usable response"),
        (group([1, 2]), {"min_score": 3}, "with every response below --min-score"),
        (group([1, 2]), {"emit": "rank", "rank": 3}, "with fewer than 3 responses"),
        (group([1]), {"emit": "pairs"}, "with too few different responses"),
        (group([2, 2]), {"emit": "pairs"}, "with chosen and rejected tied"),
    ]:
        rows, receipt = chosen(g, **options)
        assert rows == [] and receipt.lost == {why: 1} and receipt.kept == 0


def test_a_cut_answer_may_be_rejected_and_says_so() -> None:
    g = group([5, 9, 1])
    for r in g.responses[1:]:
        r.finish = "length"
    [pair], _ = chosen(g, emit="pairs", rejected="worst")
    assert pair.chosen == [{"role": "assistant", "content": "answer 0"}]
    assert pair.rejected == [{"role": "assistant", "content": "answer 2", "finish": "length"}]
    [pair], receipt = chosen(g, emit="pairs", rejected="random")  # never the one that scores above all that may be
    assert pair.score_rejected == 1
    [both], _ = chosen(g, emit="pairs", rejected="worst", keep_cut=True)
    assert both.chosen[0]["content"] == "answer 1" and receipt.cut == 2


# ascending 0 1 2 3 4 5 6 14 have mean 4.375, standard deviation 4.09: mean − 2 sd = −3.8, − 1 sd = .285
SCORES = [4.0, 14.0, 0.0, 6.0, 1.0, 5.0, 3.0, 2.0]


@pytest.mark.parametrize(
    ("rule", "score"),
    [
        ("worst", 0),
        ("rank:2", 6),
        ("rank:8", 0),
        ("quantile:0", 0),
        ("quantile:0.3", 2),
        ("quantile:1", 6),  # the best itself is the chosen
        ("mu-2sigma", 0),
        ("mu-1sigma", 0),
        ("mu-0.5sigma", 2),  # 4.375 − 2.05 = 2.33
    ],
)
def test_rejected_rules_by_hand(rule: str, score: float) -> None:
    rows, _ = chosen(group(SCORES), emit="pairs", rejected=rule)
    assert [(r.score_chosen, r.score_rejected) for r in rows] == [(14, score)]


def test_mu_minus_2_sigma_is_not_the_worst_where_there_is_an_outlier() -> None:
    scores = [5 + i / 10 for i in range(20)] + [3.0, 0.0]
    aim = statistics.fmean(scores) - 2 * statistics.pstdev(scores)
    assert 2 < aim < 3
    rows, _ = chosen(group(scores), emit="pairs", rejected="mu-2sigma")
    assert rows[0].score_rejected == 3


@given(
    scores=st.lists(st.integers(0, 6).map(float), min_size=1, max_size=10),
    rule=st.sampled_from(["worst", "random", "rank:4", "quantile:0.5", "mu-2sigma"]),
    top=st.integers(1, 3),
)
def test_pairs_prefer_the_better_and_use_no_response_twice(scores: list[float], rule: str, top: int) -> None:
    rows, receipt = chosen(group(scores), emit="pairs", rejected=rule, top=top)
    used = [m[0]["content"] for r in rows for m in (r.chosen, r.rejected)]
    assert len(set(used)) == len(used) and len(rows) <= top
    assert all(r.score_chosen > r.score_rejected for r in rows)
    assert receipt.rows == len(rows) and bool(rows) == bool(receipt.kept)


def test_margin_only_when_asked_and_the_prompt_brings_its_things_along() -> None:
    g = group([1, 4], checks=[{"kind": "max_words", "value": 9}], category="tip")
    plain, asked = (chosen(g, emit="pairs", margin=m)[0][0] for m in (False, True))
    assert plain.margin is None and asked.margin == 3
    assert isinstance(plain, Pair) and plain.category == "tip" and plain.checks == g.checks
    assert plain.prompt_id == "p-g" and plain.chosen == [{"role": "assistant", "content": "answer 1"}]


@pytest.mark.parametrize("rule", ["rank:0", "rank:x", "quantile:1.5", "mu+2sigma", "best", ""])
def test_unknown_rules_are_usage_errors(rule: str) -> None:
    with pytest.raises(XwinError, match="--rejected") as e:
        rejection(rule)
    assert e.value.code == 2 and "quantile" in e.value.hint


def test_options_that_contradict(tmp_path: Path) -> None:
    with pytest.raises(XwinError, match="among the chosen"):
        run(config(data=[str(tmp_path / "none")], emit="pairs", rejected="rank:2", top=2))
    with pytest.raises(XwinError, match="needs --min-score"):
        run(config(data=[str(tmp_path / "none")], emit="threshold"))
    with pytest.raises(XwinError, match="--max-margin 1 is below --min-margin 2"):
        config(min_margin=2, max_margin=1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"percent": 50}, [4, 3]),
        ({"percent": 51}, [4, 3, 2]),  # rounded up
        ({"percent": 0}, [4]),
        ({"percent": 100, "top": 2}, [4, 3]),
        ({"percent": 100, "min_score": 2}, [4, 3, 2]),
    ],
)
def test_the_best_percent_of_a_prompt(options: dict[str, Any], expected: list[float]) -> None:
    rows, _ = chosen(group([1, 4, 2, 3]), emit="percent", **options)
    assert [r.extra["score"] for r in rows] == expected


def test_bounds_on_a_pair() -> None:
    scores = [10, 9, 6, 1]

    def pair(**options: Any) -> list[tuple[float, float]]:
        rows, _ = chosen(group(scores), emit="pairs", **options)
        return [(r.score_chosen, r.score_rejected) for r in rows]

    assert pair(rejected="worst") == [(10, 1)]
    assert pair(rejected="worst", max_margin=5) == [(10, 6)]
    assert pair(rejected="rank:2", min_margin=2) == [(10, 6)]
    assert pair(rejected="worst", top=2, max_margin=5) == [(10, 6)], "9 has 6 alone, which 10 took"
    _, receipt = chosen(group(scores), emit="pairs", rejected="worst", max_margin=0.5)
    assert receipt.lost == {"with every margin above --max-margin": 1}
    _, receipt = chosen(group(scores), emit="pairs", rejected="rank:2", min_margin=20)
    assert receipt.lost == {"with every margin below --min-margin": 1}


def test_a_pair_of_like_length() -> None:
    g = group([9, 5, 4, 3])
    for r, tokens in zip(g.responses, [100, 30, 124, 126]):
        r.tokens = tokens
    [row], _ = chosen(g, emit="pairs", rejected="worst", length_match=1.25)
    assert row.score_rejected == 4
    _, receipt = chosen(g, emit="pairs", rejected="worst", length_match=1.2)
    assert receipt.lost == {"without a rejected response of like length": 1}


def test_similarity_is_the_share_of_common_trigrams() -> None:
    a, b, c = (
        Ranked(Response(text=t), 0.0, 1) for t in ("One two three  four.", "one TWO three five", "one two three four.")
    )
    assert similarity(a, b) == pytest.approx(1 / 3) and similarity(a, c) == 1
    short, other = (Ranked(Response(text=t), 0.0, 1) for t in ("yes", "no"))
    assert similarity(short, short) == 1 and similarity(short, other) == 0


def test_diversity_passes_over_what_is_like_a_better_one() -> None:
    g = group([9, 8, 7])
    for r, text in zip(g.responses, ["a red fox ran far away", "a red fox ran far off", "the moon is up"]):
        r.text = text
    assert [r.extra["score"] for r in chosen(g, top=2)[0]] == [9, 8]
    assert [r.extra["score"] for r in chosen(g, top=2, max_similarity=0.5)[0]] == [9, 7]  # 3 of 5 trigrams are shared
    assert [r.extra["score"] for r in chosen(g, top=2, max_similarity=0.6)[0]] == [9, 8]


def test_repeats_differ_only_in_case_and_space() -> None:
    g = group([1, 2])
    g.responses[0].text, g.responses[1].text = "A  Fox\n", "a fox"
    rows, receipt = chosen(g, top=2)
    assert receipt.dropped == {"duplicates": 1} and texts(rows) == ["A  Fox\n"]


def test_dedupe_over_prompts() -> None:
    def ask(text: str, name: str, scores: list[float]) -> Group:
        g = group(scores, name)
        g.prompt = [{"role": "user", "content": text}]
        return g

    groups = [ask("why ?", "a", [1, 2]), ask("WHY  ?", "b", [3, 4]), ask("how ?", "c", [5, 6]), ask("who ?", "d", [0])]
    rows, receipt = select(groups, dedupe="prompts")
    assert [r.extra["prompt_id"] for r in rows] == ["p-a", "p-c", "p-d"] and receipt.lost == {"that came before": 1}
    rows, receipt = select(groups, dedupe="responses")  # "answer 1", "answer 0", then there is nothing new
    assert texts(rows) == ["answer 1", "answer 0"]
    assert receipt.lost == {"with every response chosen for an earlier prompt": 2}
    rows, receipt = select(groups, dedupe="both")
    assert [r.extra["prompt_id"] for r in rows] == ["p-a", "p-c"] and sum(receipt.lost.values()) == 2
    assert len(select(groups)[0]) == 4


@given(st.lists(st.integers(0, 5).map(float), min_size=1, max_size=9), st.floats(0.1, 100))
def test_keep_percent_keeps_the_best_prompts_in_order(scores: list[float], percent: float) -> None:
    groups = [group([s, -1.0], name=str(i)) for i, s in enumerate(scores)]
    rows, receipt = select(groups, keep_percent=percent)
    kept = [r.extra["score"] for r in rows]
    names = [int(r.extra["prompt_id"][2:]) for r in rows]
    assert names == sorted(names) and len(kept) == math.ceil(len(scores) * percent / 100)
    assert sorted(kept) == sorted(scores)[-len(kept) :]
    assert receipt.metrics()["score_chosen"] == pytest.approx(statistics.fmean(kept))


def test_rounds_of_the_same_prompts_are_one_group() -> None:
    first, second = [[group(s, name) for name, s in r] for r in ([("a", [1.0]), ("b", [2.0])], [("b", [7.0, 3.0])])]
    second[0].responses[0].text = "new"
    found = list(merged(first + second))
    assert [(g.prompt_id, [r.scores["rm"] for r in g.responses]) for g in found] == [("p-a", [1]), ("p-b", [2, 7, 3])]
    second[0].prompt = [{"role": "user", "content": "another"}]
    with pytest.raises(XwinError, match=r"p-b .*different prompts"):
        list(merged(first + second))


# -- through the command line


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def line(i: int, scores: list[float], key: str = "rm") -> dict[str, Any]:
    ask = [{"role": "user", "content": f"question {i}"}]
    responses = [
        {"text": f"a{j}", "finish": "stop", "tokens": 2 + j, "index": j, "scores": {key: s}}
        for j, s in enumerate(scores)
    ]
    return {"kind": "group", "id": f"g{i}", "prompt": ask, "responses": responses}


def test_file_to_file_with_receipt_and_manifest(xwin: Any, tmp_path: Path) -> None:
    write(tmp_path / "scored.jsonl", [line(1, [1, 3]), line(2, [5, 5]), line(3, [0, 2])])
    command = ["rs-filter", "--data", "scored.jsonl", "--out", "out/pairs.jsonl", "--emit", "pairs"]
    done = xwin(*command)
    rows = [json.loads(x) for x in (tmp_path / "out/pairs.jsonl").read_text().splitlines()]
    assert [r["score_chosen"] for r in rows] == [3, 2] and all(r["kind"] == "pair" for r in rows)
    assert done.stdout == "" and "gain +1.000" in done.stderr
    assert "prompts lost: 1 with chosen and rejected tied" in done.stderr
    made = json.loads((tmp_path / "out/pairs.jsonl.xwin.json").read_text())
    assert made["counts"] == {"in": 3, "out": 2, "prompts": 2}
    m = made["metrics"]
    assert m["gain"] == 1 and m["tokens_chosen"] == 3 and m["tokens_pool"] == 2.5 and m["tied"] == 1
    assert "up to date" in xwin(*command).stderr


def test_stdin_to_stdout(xwin: Any) -> None:
    text = "".join(json.dumps(line(i, [i, 9])) + "\n" for i in range(3))
    done = xwin("rs-filter", "--emit", "best", stdin=text)
    rows = [json.loads(x) for x in done.stdout.splitlines()]
    assert [r["messages"][-1]["content"] for r in rows] == ["a1"] * 3 and rows[0]["rank"] == 1


def test_a_missing_score_names_the_line_the_field_and_what_is_there(xwin: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "scored.jsonl", [line(1, [1, 3]), line(2, [1, 2], key="gold")])
    path.write_text(path.read_text().replace("\n", "\n\n", 1))  # a blank line counts
    done = xwin("rs-filter", "--data", "scored.jsonl", "--out", "x.jsonl", code=1)
    assert "scored.jsonl:3: field responses[0].scores.rm" in done.stderr and "there are: gold" in done.stderr
    assert not (tmp_path / "x.jsonl").exists() and "Traceback" not in done.stderr


def test_nothing_chosen_is_an_error_and_leaves_no_file(xwin: Any, tmp_path: Path) -> None:
    write(tmp_path / "scored.jsonl", [line(1, [1, 3])])
    done = xwin("rs-filter", "--data", "scored.jsonl", "--out", "x.jsonl", "--min-score", 7, code=1)
    assert "nothing was chosen from 1 prompts: 1 with every response below --min-score" in done.stderr
    assert not (tmp_path / "x.jsonl").exists()


def test_every_lost_prompt_is_told_with_its_reason(xwin: Any, tmp_path: Path) -> None:
    write(tmp_path / "one.jsonl", [line(1, [1, 3]), line(2, [5, 5]), line(3, [0, 9])])
    write(tmp_path / "two.jsonl", [line(3, [1]), line(4, [0.5, 1])])
    thirteen = "one two three four five six seven eight nine ten eleven twelve thirteen"
    asked = line(5, [1, 2])
    asked["prompt"][0]["content"] = f"Count: {thirteen.upper()}!"
    write(tmp_path / "three.jsonl", [asked])
    write(tmp_path / "eval.jsonl", [{"prompt": "short"}, {"prompt": f"Say {thirteen}, fourteen."}])
    command = ["rs-filter", "--out", "p.jsonl", "--emit", "pairs", "--merge", "--min-margin", 1, "--lost", "lost.jsonl"]
    command += [x for name in ("one", "two", "three") for x in ("--data", f"{name}.jsonl")]
    done = xwin(*command, "--against", "eval.jsonl")
    assert [json.loads(x)["score_chosen"] for x in (tmp_path / "p.jsonl").read_text().splitlines()] == [3, 9]
    lost = [json.loads(x) for x in (tmp_path / "lost.jsonl").read_text().splitlines()]
    assert [(x["id"], x["responses"], x["best"]) for x in lost] == [("g2", 2, 5), ("g4", 2, 1), ("g5", 2, 2)]
    assert [x["reason"] for x in lost][:2] == ["chosen and rejected tied", "every margin below --min-margin"]
    assert lost[2]["reason"] == f"that an evaluation set holds: eval.jsonl, prompt 2, “{thirteen}”"
    assert "1 that an evaluation set holds" in done.stderr
    (tmp_path / "lost.jsonl").unlink()
    assert "up to date" not in xwin(*command, "--against", "eval.jsonl").stderr, "the file of the lost was missing"
    write(tmp_path / "eval.jsonl", [{"prompt": "other"}])
    assert "up to date" not in xwin(*command, "--against", "eval.jsonl").stderr, "the evaluation set has changed"


def test_another_score_a_limit_and_force(tmp_path: Path) -> None:
    data, out = write(tmp_path / "scored.jsonl", [line(i, [i, 9], key="gold") for i in range(4)]), tmp_path / "x.jsonl"
    options: dict[str, Any] = {"data": [str(data)], "out": str(out), "score": "gold", "limit": 2}
    run(Config(**options))
    assert len(out.read_text().splitlines()) == 2
    stamp = out.stat().st_mtime_ns
    out.write_text("changed by hand\n")
    run(Config(**options))
    assert out.read_text() == "changed by hand\n"
    run(Config(**options, force=True))
    assert len(out.read_text().splitlines()) == 2 and out.stat().st_mtime_ns > stamp
