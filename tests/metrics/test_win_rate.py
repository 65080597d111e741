"""Win rates by hand; the length-controlled fit against scikit-learn and against its own purpose."""

from __future__ import annotations

import gzip
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from xwincli.metrics.win_rate import head_to_head, length_controlled, logistic, standard_error, win_rate

CASES = os.environ.get("XWIN_CASES", "")


def test_win_rate_by_hand() -> None:
    e = win_rate([[1, 0.5], [0, 0], [1, 1], [0.5, 1]])
    assert e.value == pytest.approx(100 * (0.75 + 0 + 1 + 0.75) / 4)
    assert e.low < e.value < e.high
    assert win_rate([[0.5], [0.5]]).excludes(50) == 0
    assert win_rate([[1]] * 20).excludes(50) == 1 and win_rate([[0]] * 20).excludes(50) == -1


def test_head_to_head_by_hand() -> None:
    h = head_to_head([1, 0.5, 0.2, 0.9])
    assert h.win_rate == pytest.approx(65) and h.discrete_win_rate == pytest.approx(62.5)
    assert (h.n_wins, h.n_wins_base, h.n_draws, h.n_total) == (2, 1, 1, 4)
    assert h.standard_error == pytest.approx(100 * ((0.35**2 + 0.15**2 + 0.45**2 + 0.25**2) / 3 / 4) ** 0.5)
    assert math.isnan(standard_error([0.5]))
    for bad in ([], [1.5], [math.nan]):
        with pytest.raises(ValueError, match=r"within 0\.\.1"):
            head_to_head(bad)


def test_the_fit_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x, y, ridge = rng.normal(size=60), rng.choice([0, 0.5, 1], size=60, p=[0.2, 0.2, 0.6]), 0.01
    w = rng.integers(0, 4, size=(5, 60)).astype(float)
    ours = logistic(np.tile(x, (5, 1)), y, w, ridge)
    columns = np.tile(np.stack([np.ones(60), x], 1), (2, 1))
    for row, (theta, phi) in zip(w, ours, strict=True):
        sk = LogisticRegression(C=1 / ridge, fit_intercept=False, tol=1e-10, max_iter=2000)
        sk.fit(columns, np.repeat([1, 0], 60), sample_weight=np.concatenate([row * y, row * (1 - y)]))
        assert (theta, phi) == pytest.approx(tuple(sk.coef_[0]), abs=1e-5)


def test_without_a_slope_the_ridge_alone_moves_the_win_rate() -> None:
    # equal lengths: d = 0, so sigmoid(theta) solves sum w (p - y) + ridge·theta = 0
    e = length_controlled([[1], [1], [1], [0]], [[9]] * 4, [[9]] * 4)
    assert e.value == pytest.approx(75, abs=0.3)
    theta = math.log(e.value / (100 - e.value))
    assert 4 * e.value / 100 - 3 + 0.01 * theta == pytest.approx(0, abs=1e-9)


def test_winning_everything_stays_finite() -> None:
    e = length_controlled([[1]] * 30, [[10]] * 30, [[k + 1] for k in range(30)])
    assert 95 < e.value < 100 and math.isfinite(e.low) and math.isfinite(e.high)


def test_it_takes_the_length_bias_of_a_judge_away() -> None:
    """A judge who mostly sees length: a model as good as the baseline that talks more wins unduly."""
    rng = np.random.default_rng(2)
    base = rng.integers(100, 300, size=(300, 4))
    model = base + rng.integers(-100, 260, size=base.shape)
    d = base - model
    p = 1 / (1 + np.exp(2.0 * np.tanh(d / d.std(ddof=1))))
    verdicts = (rng.random(p.shape) < p).astype(float)
    plain = win_rate(verdicts.tolist())
    fair = length_controlled(verdicts.tolist(), base.tolist(), model.tolist())
    assert plain.value > 60 and plain.excludes(50) == 1
    assert fair.value == pytest.approx(50, abs=5) and fair.excludes(50) == 0


def test_scale_does_not_matter_and_swapping_the_two_mirrors_it() -> None:
    rng = np.random.default_rng(5)
    base, model = rng.integers(50, 90, (40, 2)), rng.integers(60, 140, (40, 2))
    v = (rng.random((40, 2)) < 0.7).astype(float)
    v[model - base > 20] = 1

    def at(k: int, a: np.ndarray, b: np.ndarray) -> float:
        return length_controlled(v.tolist(), (k * a).tolist(), (k * b).tolist(), rounds=10).value

    assert at(3, base, model) == pytest.approx(at(1, base, model))
    mirrored = length_controlled((1 - v).tolist(), model.tolist(), base.tolist(), rounds=10).value
    assert mirrored == pytest.approx(100 - at(1, base, model))


def test_one_prompt_has_no_interval_and_layouts_must_agree() -> None:
    assert math.isnan(length_controlled([[1, 0]], [[3, 4]], [[4, 5]]).low)
    with pytest.raises(ValueError, match="laid out alike"):
        length_controlled([[1, 0]], [[3]], [[4, 5]])


@pytest.mark.skipif(not CASES, reason="XWIN_CASES names no folder of third-party cases")
def test_real_annotations_against_the_alpaca_eval_packages_minimal_form() -> None:
    folder = Path(CASES) / "alpaca"
    expected = json.loads((folder / "expected_ae2.json").read_text(encoding="utf-8"))
    seen = 0
    with gzip.open(folder / "ae2_weighted_compact.jsonl.gz", "rt", encoding="utf-8") as f:
        for row in map(json.loads, f):
            if "alpaca_eval_package_minimal" not in expected.get(row["model"], {}):
                continue
            verdicts = [[p - 1] for p in row["preference"]]
            lengths = [[[n] for n in row[name]] for name in ("len_1", "len_2")]
            ours = length_controlled(verdicts, *lengths, rounds=2).value
            theirs = expected[row["model"]]["alpaca_eval_package_minimal"]["length_controlled_winrate"]
            assert ours == pytest.approx(theirs, abs=0.25), row["model"]  # theirs: L1, C by cross-validation
            assert win_rate(verdicts, rounds=2).value == pytest.approx(
                expected[row["model"]]["alpaca_eval_package"]["win_rate"], abs=1e-6
            )
            seen += 1
    assert seen >= 5
