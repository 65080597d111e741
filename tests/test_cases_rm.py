"""Third-party reward-model cases with known answers: RewardBench 1 and 2, rm@k, maj@k, best-of-n candidates."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from xwincli.judges.llm import readers
from xwincli.judges.llm.said import Said, Unreadable
from xwincli.metrics.best_of_n import best_of_n, worst_of_n
from xwincli.protocols import evaluation, reward_bench
from xwincli.stages.eval_rm import Config, run

CASES = os.environ.get("XWIN_CASES", "")
FOLDER = Path(CASES) / "rm"
pytestmark = pytest.mark.skipif(not CASES, reason="XWIN_CASES names no folder of third-party cases")


def expected(name: str) -> dict[str, Any]:
    return dict(json.loads((FOLDER / f"expected_{name}.json").read_text(encoding="utf-8")))


def evaluate(out: Path, data: Path) -> dict[str, Any]:
    run(Config(data=[str(data)], out=str(out), rounds=100))
    return dict(json.loads((out / "eval.json").read_text(encoding="utf-8")))


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads(x) for x in (out / "results.jsonl").read_text(encoding="utf-8").split("\n") if x]


def exact(value: float) -> Any:
    return pytest.approx(value, rel=0, abs=1e-12)


def test_trailing_ratings() -> None:
    """As RewardBench reads them, but that a part of 8.5, -5 or 7/10 is no rating."""
    cases = [json.loads(x) for x in (FOLDER / "genrm_parse_cases.jsonl").read_text(encoding="utf-8").split("\n") if x]
    read = 0
    for case in (c for c in cases if c["kind"] == "trailing_rating"):
        said = Said(text=case["raw"])
        if case["result"] == -1 or case["raw"] in ("8.5", "-5", "Rating: 7/10", "Rating: 6 out of 10"):
            with pytest.raises(Unreadable):
                readers.trailing(said, readers.Settings())
        else:
            read += 1
            assert readers.trailing(said, readers.Settings()).rating == case["result"]
    assert read == 3


@pytest.mark.parametrize("model", ["mightbe__Better-PairRM", "general-preference__GPM-Gemma-2B"])
def test_reward_bench(model: str, tmp_path: Path) -> None:
    wanted = expected("rewardbench_v1")["models"][model]
    found = evaluate(tmp_path / "out", FOLDER / f"rewardbench_v1__{model}.jsonl.gz")
    assert (found["items"], found["ties"]) == (wanted["n_items"], wanted["n_ties"])
    for name in ("subset_accuracy", "real_published_subset_accuracy"):
        assert {k: v["value"] for k, v in found["subsets"].items()} == {k: exact(v) for k, v in wanted[name].items()}
    assert {k: v["value"] for k, v in found["sections"].items()} == {k: exact(v) for k, v in wanted["sections"].items()}
    assert found["score"]["value"] == exact(wanted["mean_of_4_sections"])
    assert found["accuracy"]["value"] == exact(wanted["micro_accuracy"])
    accuracy = {k: v["value"] for k, v in found["subsets"].items()} | wanted["prior_sets"]
    assert reward_bench.score_with_priors(accuracy) == exact(wanted["average_with_prior_sets_weight_0_5"])


def test_reward_bench_s_table() -> None:
    wanted = expected("rewardbench_v1")
    assert {s: list(counts) for s, counts in reward_bench.COUNTS.items()} == wanted["section_subsets"]
    flat = {name: n for counts in reward_bench.COUNTS.values() for name, n in counts.items()}
    assert flat == wanted["example_counts_used_as_weights"]


def test_reward_bench_2(tmp_path: Path) -> None:
    wanted = expected("rewardbench_v2")
    found = evaluate(tmp_path / "out", FOLDER / "rewardbench_v2.jsonl")
    assert {k: v["value"] for k, v in found["subsets"].items()} == {
        k: exact(v) for k, v in wanted["subset_scores"].items()
    }
    assert found["score"]["value"] == exact(wanted["mean_of_6"])
    each = {r["id"]: r["result"] for r in results(tmp_path / "out") if r["subset"] != "Ties"}
    assert each == wanted["per_item_results"]


def test_picks_among_samples(tmp_path: Path) -> None:
    wanted = expected("rm_maj_math")
    found = evaluate(tmp_path / "out", FOLDER / "rm_maj_math.jsonl")
    for short, name in (("rm", "rm_at_k"), ("maj", "maj_at_k")):
        for point in found[name]:
            assert 100 * point["value"] == exact(wanted[f"{short}@{point['k']}"])
    assert 100 * found["pass_at_k"][-1]["value"] == exact(wanted["pass@8"])
    assert 100 * found["mean"]["value"] == exact(wanted["mean@8"])
    assert (found["prompts"], found["top_score_ties"]) == (wanted["n"], wanted["n_top_score_ties"])
    assert {r["id"]: r["picks"]["rm"] for r in results(tmp_path / "out")} == wanted["rm_argmax_index"]


def test_candidates() -> None:
    """Exact, equal proxy scores given to the first candidate as there, not shared as ``best_of_n`` does."""
    wanted = expected("bon")
    rows = [row for _, row in evaluation.rows([str(FOLDER / "bon_candidates.jsonl")])]
    gold = [[p - 1 for p in row["judge_preference"]] for row in rows]
    lengths = [row["lengths"] for row in rows]

    def first(values: list[float], sign: int = 1) -> int:
        return max(range(len(values)), key=lambda i: sign * values[i])

    def facts(picks: list[int]) -> dict[str, float]:
        n = len(picks)
        win = 100 * sum(g[i] for g, i in zip(gold, picks, strict=True)) / n
        return {"win_rate": exact(win), "avg_length": exact(sum(s[i] for s, i in zip(lengths, picks, strict=True)) / n)}

    assert facts([first(g) for g in gold]) == wanted["oracle_best_first"]
    assert facts([first(g, -1) for g in gold]) == wanted["worst_first"]
    assert facts([first(s) for s in lengths]) == wanted["longest_first"]
    assert facts([first(s, -1) for s in lengths]) == wanted["shortest_first"]
    assert {str(r["prompt_id"]): first(g) for r, g in zip(rows, gold, strict=True)} == wanted["oracle_index"]
    apart = [[s - i * 1e-6 for i, s in enumerate(row)] for row in lengths]
    for proxies, name in ((gold, "oracle_best_first"), (apart, "longest_first")):
        mean = sum(best_of_n(p, g, len(g)) for p, g in zip(proxies, gold, strict=True)) / len(gold)
        assert 100 * mean == exact(wanted[name]["win_rate"])
    assert 100 * sum(worst_of_n(g, len(g)) for g in gold) / len(gold) == exact(wanted["worst_first"]["win_rate"])
    assert 100 * sum(best_of_n(g, g, 1) for g in gold) / len(gold) == exact(wanted["mean_over_candidates"]["win_rate"])
    for k in (1, 2, 4):
        tops = [sum(sorted(r["judge_preference"])[-k:]) / k for r in rows]
        assert sum(tops) / len(tops) == exact(wanted[f"top{k}_mean_pref"])
    flat = [p for r in rows for p in r["judge_preference"]]
    for above in ("1.5", "1.9"):
        assert sum(p > float(above) for p in flat) == wanted[f"kept_if_pref_gt_{above}"]
