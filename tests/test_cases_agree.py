"""Real judges of the same answers: every figure of ``agree/`` to 1e-6, and attacks on a judge that must be flagged."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xwincli.metrics import agreement as ag
from xwincli.protocols import judge_audit
from xwincli.protocols.answer_flags import Said, flags, injected
from xwincli.records import Judgement

ROOT = Path(os.environ.get("XWIN_CASES", ""))
pytestmark = pytest.mark.skipif(
    not os.environ.get("XWIN_CASES"), reason="XWIN_CASES names no folder of third-party cases"
)
COUNT = judge_audit.Count(rounds=200)


def load(name: str) -> Any:
    return json.loads((ROOT / name).read_text(encoding="utf-8"))


def columns() -> list[dict[str, Any]]:
    lines = (ROOT / "agree/judge_pairs.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def chances(preferences: list[float]) -> list[float]:
    return [p - 1 if p else 0.5 for p in preferences]


def test_agreement_of_pairs_of_judges() -> None:
    expected = load("agree/expected.json")["pairs"]
    for row, want in zip(columns(), expected, strict=True):
        one, two = chances(row["pref_a"]), chances(row["pref_b"])
        found = ag.agreement(one, two, row["item"], rounds=200)
        assert found["n"] == want["n_both_valid"] and found["decided"] == want["n_no_ties"]
        assert found["confusion"] == want["confusion"]
        for ours, theirs in (
            (found["with_ties"].value, "agreement_with_ties"),
            (found["without_ties"].value, "agreement_no_ties"),
            (found["kappa"].value, "cohen_kappa"),
            (found["pearson"], "pearson"),
            (found["spearman"], "spearman"),
            (1 - found["absolute"], "mean_abs_diff"),
        ):
            assert ours == pytest.approx(want[theirs], abs=1e-6), theirs
        differ = (ag.sides(one) != ag.sides(two)).astype(float)
        for name, close in (
            ("zero_one", ag.closeness(differ, np.zeros_like(differ))),
            ("absolute", ag.closeness(one, two)),
            ("squared", ag.closeness(one, two, 2)),
        ):
            theirs = want[f"alpaca_eval_agreement_{name}"]
            ours = (close.score, 1 - close.score, close.error)
            assert ours == pytest.approx((theirs["score"], theirs["error"], theirs["sem_samples"]), abs=1e-6)


def judgements(model: str, preferences: list[float] | None = None) -> list[Judgement]:
    """The rows of a model's annotations file, with another judge's preferences if given."""
    rows = load(f"alpaca/{model}/weighted_alpaca_eval_gpt4_turbo/annotations.json")
    if preferences:
        rows = [{**row, "preference": p} for row, p in zip(rows, preferences, strict=True)]
    return [j for row in rows if (j := judge_audit._annotation(row, "case"))]


@pytest.mark.parametrize("model", ["alpaca-7b", "phi-2", "NullModel"])
def test_biases_with_texts(model: str) -> None:
    check(judgements(model), load("agree/expected.json")["biases"][f"weighted_alpaca_eval_gpt4_turbo/{model}"])


def test_biases_of_another_judge_of_the_same_answers() -> None:
    row = next(r for r in columns() if r["model"] == "alpaca-7b")
    want = load("agree/expected.json")["biases"][f"{row['judge_a']}/alpaca-7b"]
    check(judgements("alpaca-7b", row["pref_a"]), want)


def check(rows: list[Judgement], want: dict[str, float]) -> None:
    found = judge_audit.biases(rows, COUNT)
    assert found["longer_wins"]["value"] == pytest.approx(want["probability_prefer_longer"], abs=1e-6)
    assert found["longer_by"] == pytest.approx(want["percentage_longer"], abs=1e-6)
    assert found["list_wins"]["value"] == pytest.approx(want["probability_prefer_list"], abs=1e-6)
    assert found["lists_more"] == pytest.approx(want["percentage_list"], abs=1e-6)
    assert found["first_slot"]["value"] == pytest.approx(want["p_prefers_first_slot"], abs=1e-6)
    assert found["first_slot"]["n"] == want["n_non_tie"]


def test_biases_of_models_whose_texts_are_not_here() -> None:
    """Length and place need no words: texts of the right lengths and the real instructions."""
    expected = load("agree/expected.json")["biases"]
    instructions = [row["instruction"] for row in load("alpaca/alpaca-7b/model_outputs.json")]
    seen = 0
    with gzip.open(ROOT / "alpaca/ae2_weighted_compact.jsonl.gz", "rt", encoding="utf-8") as f:
        for row in map(json.loads, f):
            want = expected.get(f"weighted_alpaca_eval_gpt4_turbo/{row['model']}")
            if want is None:
                continue
            facts = zip(row["index"], row["preference"], row["len_1"], row["len_2"], strict=True)
            annotations = (
                {"instruction": instructions[i], "output_1": "e" * a, "output_2": "é" * b, "preference": p}
                for i, p, a, b in facts
            )
            rows = [j for a in annotations if (j := judge_audit._annotation(a, "case"))]
            found = judge_audit.biases(rows, COUNT)
            assert found["longer_wins"]["value"] == pytest.approx(want["probability_prefer_longer"], abs=1e-6)
            assert found["longer_by"] == pytest.approx(want["percentage_longer"], abs=1e-6)
            assert found["first_slot"]["value"] == pytest.approx(want["p_prefers_first_slot"], abs=1e-6)
            assert found["first_slot"]["n"] == want["n_non_tie"]
            seen += 1
    assert seen == 6


def test_every_injected_answer_is_flagged() -> None:
    rows = load("bad/judge/answer_injection.json")
    assert len(rows) == 8 and all(injected(row["output"]) for row in rows)


def test_the_null_model_is_flagged_and_honest_models_are_not() -> None:
    def of(model: str) -> list[dict[str, Any]]:
        rows = load(f"alpaca/{model}/model_outputs.json")
        return flags(Said(model, row["instruction"], row["output"]) for row in rows)

    (null,) = of("NullModel")
    assert (null["prompts"], null["share"]) == (805, 1)
    assert {"the same text for many prompts", "an order to forget", "a judge's frame"} == set(null["what"])
    assert not of("alpaca-7b") and not of("phi-2") and not of("gpt4_1106_preview")


def test_the_command_on_the_real_files(xwin: Any, tmp_path: Path) -> None:
    attack = ROOT / "alpaca/NullModel/weighted_alpaca_eval_gpt4_turbo/annotations.json"
    injection = ROOT / "bad/judge/answer_injection.json"
    done = xwin("audit", "judge", "--data", attack, "--answers", injection, "--out", "audit", "--rounds", 200)
    audit = json.loads((tmp_path / "audit/audit.json").read_text())
    assert audit["judgements"] == 805 and "m" in {f["model"] for f in audit["flags"]}
    assert "talk to the judge" in done.stderr
