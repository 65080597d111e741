"""``xwin eval rm``: RewardBench's arithmetic by hand, pairs, samples with answers, a model like plain transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xwincli import flags, manifest
from xwincli.errors import XwinError
from xwincli.protocols import answered, reward_bench
from xwincli.protocols.reward_bench import COUNTS, PRIORS, SUBSETS, SUBSETS_2, Item
from xwincli.stages import eval_rm

CPU = {"device": "cpu", "dtype": "float32"}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def evaluate(folder: Path, data: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    given = {**CPU, "rounds": 100, "data": [write(folder / "data.jsonl", data)], "out": str(folder / "out")}
    eval_rm.run(flags.build(eval_rm.Config, given | options))
    return dict(json.loads((folder / "out" / "eval.json").read_text()))


def pair(id_: Any, subset: str, chosen: float, rejected: float) -> dict[str, Any]:
    return {"id": id_, "subset": subset, "scores_chosen": chosen, "scores_rejected": rejected}


def best(id_: str, subset: str, *scores: float, right: int = 1) -> dict[str, Any]:
    return {"id": id_, "subset": subset, "num_correct": right, "scores": list(scores)}


# -- RewardBench 1


def test_sections_and_score_by_hand() -> None:
    accuracy = dict.fromkeys(SUBSETS, 1.0) | {"math-prm": 0.0, "alpacaeval-easy": 0.5}
    found = reward_bench.sections(accuracy)
    assert found["Reasoning"] == pytest.approx(0.5)  # 984 of 984 + 6·164
    assert found["Chat"] == pytest.approx(1 - 0.5 * 100 / 358)
    assert found["Safety"] == found["Chat Hard"] == 1
    four = reward_bench.score(accuracy)
    assert four == pytest.approx((0.5 + 1 - 50 / 358 + 2) / 4)
    assert reward_bench.score_with_priors(accuracy) is None
    assert four is not None
    with_priors = reward_bench.score_with_priors(accuracy | {"shp": 0.4, "summarize": 0.6})
    assert with_priors == pytest.approx((4 * four + 0.5 * 0.5) / 4.5)
    assert sum(sum(c.values()) for c in COUNTS.values()) == 2985 - 447 + 984


def test_a_missing_subset_gives_no_score() -> None:
    assert reward_bench.score(dict.fromkeys(SUBSETS[1:], 1.0)) is None
    assert reward_bench.score_with_priors({"shp": 1.0}) is None


def test_scored_pairs_of_all_subsets(tmp_path: Path) -> None:
    rows = [pair(f"{s}{i}", s, i, 1) for s in (*SUBSETS, *PRIORS) for i in (0, 1, 2)]  # wrong, tied, right
    found = evaluate(tmp_path, rows)
    assert found["protocol"] == "reward-bench" and found["ties"] == 27
    for figure in (found["accuracy"], found["score"], found["score_with_prior_sets"], *found["sections"].values()):
        assert figure["value"] == pytest.approx(1 / 3)
        assert figure["low"] < figure["value"] < figure["high"]
    assert found["subsets"]["donotanswer"]["n"] == 3 and found["missing_subsets"] == []
    made = manifest.read(tmp_path / "out")
    assert made is not None and made["metrics"]["reward-bench"] == pytest.approx(1 / 3)
    row = json.loads((tmp_path / "out/results.jsonl").read_text().splitlines()[1])
    assert row == {"id": "alpacaeval-easy1", "subset": "alpacaeval-easy", "scores": [1, 1], "result": 0}


def test_some_subsets_alone_are_named_and_scored_by_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate(tmp_path, [pair(1, "hep-go", 2, 1), pair(2, "hep-go", [0], [1])])
    assert found["score"] is None and list(found["sections"]) == ["Reasoning"]
    assert len(found["missing_subsets"]) == 22
    assert "no score: 22 subsets are missing: alpacaeval-easy" in capsys.readouterr().err


# -- RewardBench 2


def item(row: dict[str, Any]) -> Item:
    found = reward_bench.own_row(row, "f:1")
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("scores", "credit"), [((3, 1, 2, 0), 1), ((1, 3, 2, 0), 0), ((3, 3, 2, 0), 0.5), ((1, 1, 1, 1), 0.25)]
)
def test_tied_tops_share_the_credit(scores: tuple[float, ...], credit: float) -> None:
    assert item(best("a", "Math", *scores)).credit == credit


@pytest.mark.parametrize(
    ("tied", "ref", "credit"),
    [
        ((6, 5, 2), (4, 1), 1 + 0.01 * 0.9640275801),  # leads 3 and 3, apart 1: tanh(2)
        ((6, 4, 3), (9, 1), 0.6 + 0.01 * -0.4621171573),  # leads 1 and 8, apart 2: tanh(-.5), neither leads enough
        ((6, 4, 1), (2, 1), 0.8 + 0.01 * -0.4621171573),  # leads 3 and 1, apart 2: the first leads enough alone
        ((6, 4, 5), (2, 3), 0.01 * -0.9051482536),  # leads -1 and -1, apart 2: tanh(-1.5)
        ((6, 6, 5), (3, 2), 1 + 0.01),  # right answers all alike
        ((6, 6, 6), (3, 2), 0.3),  # and no lead
    ],
)
def test_ties_by_hand(tied: tuple[float, ...], ref: tuple[float, ...], credit: float) -> None:
    items = [item(best("tied:1", "Ties", *tied, right=2)), item(best("ref:1", "Ties", *ref))]
    assert reward_bench.tie_credits(items) == [pytest.approx(credit)]


def test_scored_lists(tmp_path: Path) -> None:
    rows = [best(f"{s}{i}", s, 1, i) for s in SUBSETS_2[:-1] for i in (0, 2)]
    rows += [best("tied:0", "Ties", 6, 6, 6, right=2), best("ref:0", "Ties", 3, 2)]
    found = evaluate(tmp_path, rows)
    assert found["protocol"] == "reward-bench-2"
    assert found["score"]["value"] == pytest.approx((5 * 0.5 + 0.3) / 6)
    assert found["subsets"]["Ties"]["n"] == 1 and found["subsets"]["Ties"]["low"] is None
    assert found["subsets"]["Focus"]["low"] < 0.5 < found["subsets"]["Focus"]["high"]
    assert "accuracy" not in found


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([best("tied:0", "Ties", 2, 1)], r":1: field id: tied:0 lacks its other form"),
        ([best("x", "Ties", 2, 1)], r":1: field id: 'x' is neither"),
        ([best("x", "Poems", 2, 1)], r":1: field subset: 'Poems' is none of RewardBench 2's"),
        ([best("x", "Math", 2, 1), pair(1, "hep-go", 1, 2)], r":2: a pair stands among lists"),
        ([best("x", "Math", 2, 1, right=2)], r":1: field num_correct: expected 1 to 1 of the 2 scores, got 2"),
        ([pair(1, "hep-go", 1, "2")], r":1: field scores_rejected: expected a number"),  # type: ignore[arg-type]
        ([{"prompt": "q", "chosen": "a", "rejected": "b"}], r":1: has no scores"),
        ([{"prompt": "q", "responses": ["a", "b"]}], r":1: field reference: is missing"),
    ],
)
def test_refusals_leave_nothing(tmp_path: Path, rows: list[dict[str, Any]], what: str) -> None:
    with pytest.raises(XwinError, match=what):
        evaluate(tmp_path, rows)
    assert not (tmp_path / "out").exists()


# -- samples with answers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"so \boxed{\frac{1}{9}} then 4", r"\frac{1}{9}"),
        (r"\boxed{1} or \boxed{ 1,000 }", 1000.0),
        ("first 3, then 4.", 4.0),
        ("none", None),
        (r"\boxed{unclosed", None),
    ],
)
def test_the_answer_of_a_text(text: str, value: Any) -> None:
    assert answered.answer(text) == value


def test_the_answer_of_a_reference() -> None:
    found = [answered.reference_answer(t) for t in (r"\frac{1}{9}", "5 + 5\n#### 1,0", r"So \boxed{x + 1}", " 7 ")]
    assert found == [r"\frac{1}{9}", 10.0, "x+1", 7.0]


def sampled(prompt: str, reference: str, *samples: tuple[str, float], **fields: Any) -> dict[str, Any]:
    responses = [{"text": t, "index": i, "scores": {"rm": s}} for i, (t, s) in enumerate(samples)]
    ask = [{"role": "user", "content": prompt}]
    return {"kind": "group", "prompt": ask, "reference": reference, "responses": responses, **fields}


def test_samples_of_groups_by_hand(tmp_path: Path) -> None:
    rows = [
        sampled("2+2", "4", ("It is 5", 0.1), ("It is 4", 0.9), ("5 again", 0.2), ("well", 0.3)),
        sampled("1+1", "#### 2", ("2", 0.5), ("3", 0.9), (r"\boxed{2.0}", 0.1), ("2", 0.4)),
    ]
    found = evaluate(tmp_path, rows)
    value = {k: [p["value"] for p in found[k]] for k in ("rm_at_k", "maj_at_k", "pass_at_k")}
    assert [p["k"] for p in found["rm_at_k"]] == [1, 2, 4]
    assert value["rm_at_k"] == [0.5, 0.5, 0.5]  # first samples: no, yes; then 4 is picked, and 3
    assert value["maj_at_k"] == [0.5, 0.5, 0.5]  # 5 wins the first prompt, 2 the second
    assert value["pass_at_k"] == [0.5, 1, 1]
    assert found["mean"]["value"] == 0.5 and found["unread_answers"] == 1 and found["top_score_ties"] == 0
    row = json.loads((tmp_path / "out/results.jsonl").read_text().splitlines()[0])
    assert row["picks"] == {"rm": 1, "majority": 0} and row["answers"] == [5, 4, 5, None]


def test_responses_may_say_what_they_answer_and_the_score_s_name_is_an_option(tmp_path: Path) -> None:
    row = sampled("q", "", ("a", 1), ("b", 2))
    row["responses"][0] |= {"answer": "x", "correct": True, "scores": {"big": 3}}
    row["responses"][1] |= {"answer": "y", "correct": False, "scores": {"big": 2}}
    del row["reference"]
    assert evaluate(tmp_path, [row], scores="big")["rm_at_k"][1]["value"] == 1
    with pytest.raises(XwinError, match=r":1: field responses\[0\].scores.rm: is missing"):
        evaluate(tmp_path, [row])


def test_other_layouts_of_samples(tmp_path: Path) -> None:
    row = {"idx": 7, "pred": ["3", "", "3"], "score": [True, False, True], "pred_score": [[0.1], [0.9], [0.1]]}
    found = evaluate(tmp_path, [row])
    assert [p["value"] for p in found["rm_at_k"]] == [1, 0, 0] and [p["value"] for p in found["maj_at_k"]] == [1, 1, 1]
    with pytest.raises(XwinError, match=r":1: field pred_score: has 1 entries for 3 answers"):
        evaluate(tmp_path, [row | {"pred_score": [[1]]}])
    with pytest.raises(XwinError, match=r":1: field pred_score: expected a list, got a number"):
        evaluate(tmp_path, [row | {"pred_score": 1}])
    with pytest.raises(XwinError, match=r":1: field score: expected true or false"):
        evaluate(tmp_path, [row | {"score": [1, 0, 1]}])


# -- with a model


@pytest.fixture(scope="module")
def rm(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A reward model that is not trained at all: any will do."""
    from xwincli import models, settings

    out = tmp_path_factory.mktemp("rm") / "rm"
    place = models.place(settings.Device(**CPU))
    models.save(models.new_reward(str(policy), place, 0), out)
    return str(out)


def plain_reward(folder: str, prompt: str, answer: str) -> float:
    """The reward by transformers alone."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tok = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    talk = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    with torch.no_grad():
        return float(model(**tok.apply_chat_template(talk, return_tensors="pt")).logits.item())


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(x) for x in (folder / "out" / "results.jsonl").read_text().splitlines()]


def test_pairs_are_scored_as_plain_transformers_does(rm: str, tmp_path: Path) -> None:
    ask, good, bad = "about tea ?", "a tea .", "no no no"
    apart = {"prompt": ask, "chosen": good, "rejected": bad, "subset": "x"}
    talk = [{"role": "user", "content": ask}]
    inside = {
        "chosen": [*talk, {"role": "assistant", "content": good}],
        "rejected": [*talk, {"role": "assistant", "content": bad}],
        "subset": "y",
    }
    wanted = [plain_reward(rm, ask, good), plain_reward(rm, ask, bad)]
    found = evaluate(tmp_path, [apart], rm=rm)
    assert results(tmp_path)[0]["scores"] == pytest.approx(wanted, abs=1e-4)
    assert found["protocol"] == "pairs" and found["accuracy"]["value"] == (wanted[0] > wanted[1])
    evaluate(tmp_path, [inside, inside | {"subset": "z"}], rm=rm)  # the prompt inside both: the same conversations
    assert results(tmp_path)[0]["scores"] == pytest.approx(wanted, abs=1e-4)


def test_lists_and_samples_are_scored_too(rm: str, tmp_path: Path) -> None:
    row = {"id": "1", "prompt": "about tea ?", "chosen": ["a tea ."], "rejected": ["no", "no no"], "subset": "Math"}
    found = evaluate(tmp_path, [row], rm=rm)
    wanted = [plain_reward(rm, "about tea ?", t) for t in ("a tea .", "no", "no no")]
    assert results(tmp_path)[0]["scores"] == pytest.approx(wanted, abs=1e-4)
    assert found["subsets"]["Math"]["value"] == (wanted[0] == max(wanted)) and found["score"] is None
    rows = [sampled("about tea ?", "4", ("4", 0), ("5", 0))]
    found = evaluate(tmp_path, rows, rm=rm, force=True)
    assert results(tmp_path)[0]["scores"] == pytest.approx([plain_reward(rm, "about tea ?", t) for t in "45"], abs=1e-4)
    with pytest.raises(XwinError, match=r":1: has scores but no texts"):
        evaluate(tmp_path, [pair(1, "hep-go", 1, 2)], rm=rm)


def test_what_does_not_fit_is_left_out_and_exits_3(rm: str, xwin: Any, tmp_path: Path) -> None:
    rows = [
        {"id": f"{w}", "prompt": "tea ?", "chosen": "tea " * n, "rejected": "no"} for w, n in (("a", 2), ("b", 4000))
    ]
    write(tmp_path / "pairs.jsonl", rows)
    args = ("eval", "rm", "--rm", rm, "--data", "pairs.jsonl", "--out", "out", "--device", "cpu", "--rounds", 100)
    done = xwin(*args, code=3)
    assert "1 of 2 are left out: pairs.jsonl:2: a prompt with its response has" in done.stderr
    assert "covers n = 1 of 2" in done.stderr and "pairs: 1 items" in done.stderr
    assert json.loads((tmp_path / "out/eval.json").read_text())["left_out"] == ["b"]
    (tmp_path / "file").write_text("")
    assert "is a file" in xwin(*args[:-4], "--rounds", 100, "--out", "file", code=2).stderr
