"""Arenas on third-party cases: Bradley-Terry, Elo and their intervals, style control, verdicts, markdown counts."""

from __future__ import annotations

import json
import os
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xwincli.errors import XwinError
from xwincli.metrics import bradley_terry, style
from xwincli.metrics.bradley_terry import Battles
from xwincli.protocols import arena, arena_files, mt_bench

CASES = os.environ.get("XWIN_CASES", "")
pytestmark = pytest.mark.skipif(not CASES, reason="XWIN_CASES names no folder of third-party cases")
FOLDER = Path(CASES) / "arena"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def expected(name: str) -> dict[str, Any]:
    return dict(json.loads((FOLDER / name).read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("data", "answer"),
    [("arena_hard_battles.jsonl", "expected_battles.json"), ("vicuna_battles.jsonl", "expected_vicuna_battles.json")],
)
def test_battles(data: str, answer: str) -> None:
    want = expected(answer)
    found = arena_files.read([str(FOLDER / data)])
    assert len(found.battles) == want["n"] and sum(f.battle.score == 0.5 for f in found.battles) == want["ties"]
    facts = arena.standings(found, arena.Count(want["baseline"]))
    models = {m["model"]: m for m in facts["models"]}
    assert set(models) == set(want["models"])
    for name, w in want["models"].items():
        m = models[name]
        assert m["elo"]["value"] == pytest.approx(w["elo"], abs=1e-3)
        assert m["win_rate"]["value"] == pytest.approx(w["winrate_vs_baseline"], abs=1e-5)
        interval = m["win_rate"]["low"], m["win_rate"]["high"]
        assert interval == pytest.approx(w["winrate_ci95_1500_rounds"], abs=0.6)
        assert m["online_elo"] == pytest.approx(want["fastchat_compute_elo_online"][name], abs=1e-6)
    battles = Battles.of(f.battle for f in found.battles)
    centred = dict(zip(battles.models, bradley_terry.elo(bradley_terry.strengths(battles.wins())), strict=True))
    assert centred == pytest.approx(want["fastchat_compute_bt"], abs=0.01)


def test_the_published_draws_give_the_published_intervals_to_the_digit() -> None:
    """100 rounds of seed 42, and 1500 of seed 1."""
    for data, answer in (
        ("arena_hard_battles.jsonl", "expected_battles.json"),
        ("vicuna_battles.jsonl", "expected_vicuna_battles.json"),
    ):
        want = expected(answer)
        found = arena_files.read([str(FOLDER / data)])
        battles = Battles.of(f.battle for f in found.battles)
        for rounds, seed, key in ((100, 42, "winrate_ci95_seed42"), (1500, 1, "winrate_ci95_1500_rounds")):
            for s in bradley_terry.ranking(battles, anchor=want["baseline"], rounds=rounds, seed=seed):
                assert s.win_rate is not None
                w = want["models"][s.model]
                # upstream's solver stops early, and far from where a model lost everything it drew
                assert (s.win_rate.low, s.win_rate.high) == pytest.approx(w[key], abs=0.2 if w["elo"] < 500 else 1e-3)
                if rounds == 100 and w["elo"] > 500:
                    assert (s.elo.low, s.elo.high) == pytest.approx(w["elo_ci95_seed42"], abs=0.01)
                if s.model == "llama-13b":
                    assert s.elo.low == -inf  # upstream: -4002, as far as its solver went


def test_separability() -> None:
    want = expected("expected_bootstrap.json")["bootstrap_stats_mt_bench.jsonl"]
    intervals = {}
    for row in rows(FOLDER / "bootstrap" / "bootstrap_stats_mt_bench.jsonl"):
        intervals[row["model"]] = bradley_terry.interval(row["score"], np.array(row["results"]))
    for name, e in intervals.items():
        assert (e.low, e.high) == pytest.approx(want["ci95"][name], abs=1e-12)
    apart, pairs = bradley_terry.separability(intervals.values())
    assert (pairs - apart, pairs) == (want["overlap_pairs"], want["total_pairs"])
    assert round(100 * apart / pairs, 2) == want["separability_pct"]


def test_arena_hard_v2_with_style_control() -> None:
    folder = FOLDER / "v2_synthetic"
    want = json.loads((folder / "expected.json").read_text())
    found = arena_files.read([str(folder / "model_judgment" / "gpt-4.1" / "sky-t1-32b.jsonl")])
    assert len(found.missing) == want["null_or_missing_dropped"] and found.rows == want["n_questions"]
    assert len(found.battles) == want["raw"]["sky-t1-32b"]["n_battles"]
    assert found.baselines == {"o3-mini-2025-01-31"}
    arena_files.dress(found, arena_files.answers([str(folder / "model_answer" / "*.jsonl")]))
    facts = arena.standings(found, arena.Count("o3-mini-2025-01-31", rounds=100))
    models = {m["model"]: m for m in facts["models"]}
    assert models["sky-t1-32b"]["win_rate"]["value"] == pytest.approx(want["raw"]["sky-t1-32b"]["score_pct"], abs=1e-6)
    fair = facts["style"]
    for name, w in want["style_controlled_point"].items():
        assert fair["controlled"][name]["value"] == pytest.approx(w["converged_pct"], abs=1e-3)
        assert fair["controlled"][name]["value"] == pytest.approx(w["package_lbfgs_pct"], abs=0.3)
    got = {name: e["value"] for name, e in fair["coefficients"].items()}
    assert got == pytest.approx(want["style_coef_converged"], abs=1e-5)


def test_markdown_counts() -> None:
    cases = rows(FOLDER / "markdown_counts.jsonl")
    assert len(cases) == 60
    for case in cases:
        assert style.markdown_counts(case["text"]) == case["expected"], case["uid"]


def test_verdicts() -> None:
    for case in rows(FOLDER / "verdict_parse_cases.jsonl"):
        label = arena.label_v2(case["raw"])
        assert label == case["v2_label"]
        assert (None if label is None else label in arena.LABELS) == case["v2_known_label"]
        assert arena.label_v01(case["raw"]) == (case["v01_label"], case["v01_retry"])


def test_pairwise_verdicts_by_slot() -> None:
    for name, want in expected("expected_pairwise_gpt4o.json").items():
        sides = {"A": "", "B": "", "tie": "tie"}
        grades, first = {}, 0
        for row in rows(FOLDER / "pairwise_gpt4o" / name):
            sides[row["agent_slot"]], sides[row["base_slot"]] = "agent", "base"
            said = mt_bench.winner(row["judgment"])
            grades[row["question_id"]] = sides[said]
            first += said == "A"
        assert grades == want["grades"]
        won = [list(grades.values()).count(k) for k in ("agent", "base", "tie")]
        assert won == [want["agent"], want["base"], want["tie"]]
        assert (won[0] + won[2] / 2) / len(grades) == pytest.approx(want["agent_score_ties_half"])
        assert first / (won[0] + won[1]) == pytest.approx(want["p_first_slot_no_ties"])


def test_an_unknown_winner_is_refused() -> None:
    with pytest.raises(XwinError, match=r"battles_unknown_winner\.jsonl:2: field winner: 'modelB'"):
        arena_files.read([str(Path(CASES) / "bad" / "judge" / "battles_unknown_winner.jsonl")])
