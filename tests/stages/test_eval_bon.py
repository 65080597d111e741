"""``xwin eval bon``: curves by hand, fits that say something and fits that do not, golds that are refused."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xwincli import manifest
from xwincli.errors import XwinError
from xwincli.metrics.best_of_n import kl_bound
from xwincli.metrics.overoptimisation import Fit
from xwincli.protocols import bon
from xwincli.stages.eval_bon import Config, run


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def group(prompt: str, scores: dict[str, list[float]], **fields: Any) -> dict[str, Any]:
    columns = [dict(zip(scores, values, strict=True)) for values in zip(*scores.values(), strict=True)]
    responses = [{"text": f"a{i}", "index": i, "scores": s} for i, s in enumerate(columns)]
    return {"kind": "group", "prompt": [{"role": "user", "content": prompt}], "responses": responses, **fields}


def evaluate(folder: Path, data: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    run(Config(data=[write(folder / "data.jsonl", data)], out=str(folder / "out"), **{"rounds": 100, **options}))
    return dict(json.loads((folder / "out" / "eval.json").read_text()))


HAND = [
    group("p", {"rm": [1, 2, 3], "gold": [5, 1, 3]}),
    group("q", {"rm": [3, 2, 1], "gold": [8, 6, 4]}),
]


def test_curves_by_hand(tmp_path: Path) -> None:
    found = evaluate(tmp_path, HAND)
    curves = {name: [p["value"] for p in points] for name, points in found["curves"].items()}
    # p: mean 3, pairs led by 1, 3, 3 -> 7/3, all: 3; q: mean 6, pairs 6, 8, 8 -> 22/3, all: 8
    assert curves["rm"] == pytest.approx([4.5, (7 / 3 + 22 / 3) / 2, 5.5])
    # p by gold: pairs 5, 5, 3 -> 13/3, all: 5
    assert curves["oracle"] == pytest.approx([4.5, (13 / 3 + 22 / 3) / 2, 6.5])
    assert [p["n"] for p in found["curves"]["rm"]] == [1, 2, 3]
    assert [p["kl_upper_bound"] for p in found["curves"]["rm"]] == pytest.approx([kl_bound(n) for n in (1, 2, 3)])
    assert found["kl_axis"].startswith("KL(best-of-n ‖ base), upper bound")
    assert found["fits"]["rm"]["says"].startswith("nothing: 2 sizes above 1")
    row = json.loads((tmp_path / "out/results.jsonl").read_text().splitlines()[0])
    assert row["picks"] == {"rm": {"index": 2, "gold": 3}, "oracle": {"index": 0, "gold": 5}} and row["mean"] == 3
    made = manifest.read(tmp_path / "out")
    assert made is not None and made["metrics"]["rm"] == 5.5


def hacked(prompts: int, n: int, noise: float = 0.0) -> list[dict[str, Any]]:
    """Gold follows the proxy up to a point, and falls beyond it."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(prompts):
        rm = rng.normal(size=n)
        gold = 2 * rm - rm**2 + noise * rng.normal(size=n)
        rows.append(group(f"p{i}", {"rm": rm.tolist(), "honest": gold.round(3).tolist(), "gold": gold.tolist()}))
    return rows


def test_over_optimisation_is_seen(tmp_path: Path) -> None:
    found = evaluate(tmp_path, hacked(60, 64))
    fit, points = found["fits"]["rm"], found["curves"]["rm"]
    assert fit["b_interval"][0] > 0 and fit["says"].startswith("over-optimisation: gold peaks near KL")
    assert 0 < fit["peak"]["kl"] < points[-1]["kl_upper_bound"]
    assert max(p["value"] for p in points) > points[-1]["value"]
    assert fit["residual"] < 0.1 and fit["explained"] > 0.95


def test_several_selecting_scores_beside_the_oracle(tmp_path: Path) -> None:
    found = evaluate(tmp_path, hacked(20, 16), scores=["rm", "honest"])
    last = {name: points[-1]["value"] for name, points in found["curves"].items()}
    assert set(last) == {"oracle", "rm", "honest"} and set(found["fits"]) == {"rm", "honest"}
    assert last["oracle"] == pytest.approx(last["honest"], abs=0.01) and last["oracle"] > last["rm"]
    root = ET.fromstring((tmp_path / "out/bon.svg").read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "rm" in words and "oracle" in words and any("upper bound" in (w or "") for w in words)


def test_intervals_move_with_the_seed_alone(tmp_path: Path) -> None:
    rows = hacked(12, 8, noise=1)
    one, other = evaluate(tmp_path, rows)["curves"]["rm"][-1], evaluate(tmp_path, rows, seed=3)["curves"]["rm"][-1]
    assert one["value"] == other["value"] and one["low"] != other["low"]


D = np.array([0.4, 0.8, 1.2, 1.6])


@pytest.mark.parametrize(
    ("fit", "over", "tested", "what"),
    [
        (Fit("best-of-n", 2, 1, 0, 1), 1, True, "over-optimisation: gold peaks near KL 1.00 nats, within"),
        (Fit("best-of-n", 8, 1, 0, 1), 1, True, "gold still rises; by the law it peaks near KL 16.00 nats, beyond"),
        (Fit("best-of-n", 2, -1, 0, 1), -1, True, "gold rises throughout"),
        (Fit("best-of-n", -2, 1, 0, 1), 1, True, "gold falls from the start"),
        (Fit("best-of-n", 2, 1, 0, 1), 0, True, "nothing: the bend b cannot be told from 0"),
        (Fit("best-of-n", 2, 1, 0.3, 1), 1, True, "nothing: the law leaves 30% of the largest gain over"),
        (Fit("best-of-n", 2, 1, 0, 1), 0, False, "nothing: one prompt gives no interval"),
        (Fit("rl", 1, 1e-4, 0, 1), 0, False, "gold rises throughout"),
        (Fit("rl", 1, 1, 0, 1), 0, False, "over-optimisation: gold peaks near KL 1.00 nats"),
    ],
)
def test_what_a_fit_says(fit: Fit, over: int, tested: bool, what: str) -> None:
    assert bon.says(fit, D, np.array([0.1, 0.5, 1, 0.5]), over, tested=tested).startswith(what)


def test_a_flat_gold_says_nothing(tmp_path: Path) -> None:
    rows = [group(f"p{i}", {"rm": list(range(8)), "gold": [5] * 8}) for i in range(3)]
    assert evaluate(tmp_path, rows)["fits"]["rm"]["says"] == "nothing: gold does not move"


def test_checkpoints_of_a_policy_are_fitted_by_the_law_of_rl(tmp_path: Path) -> None:
    base = 4.5  # the mean gold of HAND
    d = np.array([1.0, 2.0, 3.0, 4.0])
    rows = [{"kl": k * k, "gold": base + k * (2 - 1.5 * np.log(k))} for k in d]
    rl = write(tmp_path / "rl.jsonl", [{"kl": 0, "gold": base}, *rows])
    found = evaluate(tmp_path, HAND, rl=rl)["rl"]
    assert (found["a"], found["b"], found["residual"]) == pytest.approx((2, 1.5, 0), abs=1e-9)
    assert found["peak"]["kl"] == pytest.approx(np.exp(2 * (2 / 1.5 - 1)))
    assert found["says"].startswith("over-optimisation") and len(found["points"]) == 5
    few = evaluate(tmp_path, HAND, rl=write(tmp_path / "few.jsonl", rows[:2]))["rl"]
    assert few["says"].startswith("nothing: 2 checkpoints")


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"kl": 1}, "field gold: is missing"),
        ({"kl": -1, "gold": 1}, "field kl: -1.0 is negative"),
        ({"kl": "1", "gold": 1}, "field kl: expected a number"),
    ],
)
def test_checkpoints_are_refused_with_their_place(tmp_path: Path, row: dict[str, Any], what: str) -> None:
    with pytest.raises(XwinError, match=rf"rl\.jsonl:1: {what}"):
        evaluate(tmp_path, HAND, rl=write(tmp_path / "rl.jsonl", [row]))


ONE = {"rm": [1.0, 2.0], "gold": [2.0, 1.0]}
MIXED = {"gold": "reward model a", "a": "reward model a", "rm": "reward models a, b: min"}


@pytest.mark.parametrize(
    ("rows", "options", "what"),
    [
        ([group("p", ONE)], {"gold": "rm"}, "'rm' is the score that selects"),
        (
            [group("p", ONE, scorers={"rm": "reward model a", "gold": "reward model a"})],
            {},
            r":1: field scorers.gold: the gold comes from reward model a, which selects as 'rm'",
        ),
        (
            [group("p", ONE, scorers={"gold": "reward models rm, other: mean"})],
            {},
            "the gold comes from rm, which selects as 'rm'",
        ),
        (
            [group("p", ONE, scorers=MIXED)],
            {},
            "the gold comes from reward model a, which selects as 'rm'",
        ),
        ([group("p", {"rm": [1, 2], "gold": [1, 2]})], {}, "are the same numbers"),
        ([group("p", {"rm": [1, 2]})], {}, r":1: field responses\[0\].scores.gold: is missing"),
        ([group("p", {"gold": [1, 2]})], {}, r":1: field responses\[0\].scores.rm: is missing"),
        ([group("p", ONE), group("p", ONE)], {}, r":2: field prompt_id: .* stands in .*:1 already"),
        ([group("p", ONE)], {"scores": ["rm", "rm"]}, "names a score twice"),
    ],
)
def test_refusals_leave_nothing(tmp_path: Path, rows: list[dict[str, Any]], options: dict[str, Any], what: str) -> None:
    with pytest.raises(XwinError, match=what):
        evaluate(tmp_path, rows, **options)
    assert not (tmp_path / "out").exists()


def test_another_reward_model_may_be_gold(tmp_path: Path) -> None:
    rows = [group("p", ONE, scorers={"rm": "reward model a", "gold": "reward model b"})]
    assert evaluate(tmp_path, rows)["prompts"] == 1


def test_on_the_command_line(xwin: Any, tmp_path: Path) -> None:
    rows = hacked(20, 16)
    rows[0]["sampling"] = {"unique": True}
    write(tmp_path / "rated.jsonl", rows)
    args = ("eval", "bon", "--data", "rated.jsonl", "--out", "bon", "--rounds", 200)
    done = xwin(*args)
    assert "drawn to be unique" in done.stderr and "best of 16" in done.stderr and "best-of-n by rm:" in done.stderr
    assert done.stdout == "" and json.loads((tmp_path / "bon/eval.json").read_text())["unique"] is True
    assert "up to date" in xwin(*args).stderr
