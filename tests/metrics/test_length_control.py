"""AlpacaEval's length control against scikit-learn step by step, by hand, and the coverage of our own interval."""

from __future__ import annotations

import importlib.util
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from xwincli.metrics import length_control
from xwincli.metrics.length_control import MINIMAL, NOREG, V1, Calibration, Weights, compatible, fit, from_weights

BENCH = Path(__file__).parents[2] / "bench" / "lc_coverage.py"


def problem(rows: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns, soft labels and weights of a logistic world."""
    rng = np.random.default_rng(seed)
    x = np.stack([np.tanh(rng.normal(size=rows)), rng.normal(size=rows), np.ones(rows)], 1)
    p = 1 / (1 + np.exp(-(x @ [-1.2, 0.8, -0.5])))
    return x, np.clip(p + rng.normal(0, 0.1, rows), 0, 1), rng.choice([0.1, 1.0], rows)


def simulated(rows: int = 60, seed: int = 1) -> tuple[list[float | None], list[int], list[int], Calibration]:
    rng = np.random.default_rng(seed)
    base, model = rng.integers(200, 900, rows), rng.integers(200, 1200, rows)
    difficulty, d = rng.normal(size=rows), base - model
    p = 1 / (1 + np.exp(-(0.4 - 1.3 * np.tanh(d / d.std(ddof=1)) + difficulty)))
    gamed = Calibration(difficulty, rng.normal(size=2 * rows), np.tile(difficulty, 2), rng.uniform(0, 1, 2 * rows))
    return [float(v) for v in rng.random(rows) < p], base.tolist(), model.tolist(), gamed


def test_a_fit_at_a_given_c_is_scikit_learns_on_duplicated_rows() -> None:
    x, p, w = problem()
    ours, c = fit(x, p, w, c=2.0)
    sk = LogisticRegression(C=2.0, l1_ratio=1, solver="liblinear", fit_intercept=False, tol=1e-8, max_iter=10000)
    sk.fit(np.tile(x, (2, 1)), np.repeat([1, 0], len(p)), sample_weight=np.concatenate([w * p, w * (1 - p)]))
    assert c == 2.0 and ours == pytest.approx(sk.coef_[0], abs=2e-3)


def test_c_is_the_one_of_least_soft_loss_in_five_folds_of_whole_rows() -> None:
    """The cross-validation once more, by hand: held-out rows, both copies together, weights in the loss."""
    x, p, w = problem(rows=100, seed=3)
    folds = np.full(100, -1)
    for i, row in enumerate(np.arange(100)[::-1]):  # GroupKFold deals equal groups out from the last
        folds[row] = i % 5
    losses = []
    for c in np.logspace(-4, 4, 10):
        loss = []
        for k in range(5):
            train, test = folds != k, folds == k
            sk = LogisticRegression(C=c, l1_ratio=1, solver="liblinear", fit_intercept=False, random_state=123)
            weight = np.concatenate([w[train] * p[train], w[train] * (1 - p[train])])
            sk.fit(np.tile(x[train], (2, 1)), np.repeat([1, 0], train.sum()), sample_weight=weight)
            q = sk.predict_proba(x[test])[:, 1]
            loss.append(-np.mean(w[test] * (p[test] * np.log(q) + (1 - p[test]) * np.log(1 - q))))
        losses.append(np.mean(loss))
    assert fit(x, p, w)[1] == pytest.approx(np.logspace(-4, 4, 10)[int(np.argmin(losses))])


def test_nothing_deprecated_is_used() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compatible(*simulated()) is not None


def test_from_weights_by_hand() -> None:
    # sigmoid(ln 3) = 3/4 and sigmoid(-ln 3) = 1/4: mean 50, sem = std(.25) of two = .25·√2/√2
    value, error = from_weights(Weights(-9.0, math.log(3), 0.0), [1, -1])
    assert value == pytest.approx(50) and error == pytest.approx(25)
    value, error = from_weights(Weights(-9.0, 0.0, math.log(4)), [5.0, 7.0, 9.0])
    assert value == pytest.approx(80) and error == pytest.approx(0)
    assert math.isnan(from_weights(Weights(0, 0, 0), [1.0])[1])


def test_the_forms_differ_in_their_rows_and_columns() -> None:
    chances, base, model, calibration = simulated()
    d = np.subtract(base, model)
    x1, one, y = np.tanh(d / d.std(ddof=1)), np.ones(len(d)), np.array(chances, dtype=float)
    plain = compatible(chances, base, model, None, MINIMAL)
    noreg = compatible(chances, base, model, calibration, NOREG)
    v1 = compatible(chances, base, model, calibration, V1)
    assert plain and noreg and v1
    coefficients, _ = fit(np.stack([x1, one], 1), y, one)
    assert (plain.weights.tanh_len, plain.weights.bias) == pytest.approx(tuple(coefficients))
    assert plain.weights.difficulty == 0 and plain.standard_error == pytest.approx(0)
    assert plain.value == pytest.approx(100 / (1 + math.exp(-plain.weights.bias)))
    coefficients, c = fit(np.stack([x1, calibration.difficulty, one], 1), y, one)
    assert (noreg.weights, noreg.c) == (Weights(*coefficients), c)
    gamed = np.stack([np.tanh(calibration.gamed_delta), calibration.gamed_difficulty, np.zeros(120)], 1)
    x = np.concatenate([gamed, np.stack([x1, calibration.difficulty, one], 1)])
    weight = np.concatenate([np.full(120, 0.1), one])
    coefficients, _ = fit(x, np.concatenate([calibration.gamed_preference, y]), weight)
    assert v1.weights == Weights(*coefficients)
    assert (v1.value, v1.standard_error) == from_weights(v1.weights, calibration.difficulty)


def test_a_row_without_a_value_counts_in_the_mean_and_the_deviation_but_not_in_the_fit() -> None:
    chances, base, model, calibration = simulated()
    without = compatible([None, *chances[1:]], base, model, calibration, NOREG)
    d = np.subtract(base, model)
    x = np.stack([np.tanh(d / d.std(ddof=1)), calibration.difficulty, np.ones(len(d))], 1)
    coefficients, _ = fit(x[1:], np.array(chances[1:], dtype=float), np.ones(len(d) - 1))
    assert without and without.weights == Weights(*coefficients)
    assert without.value == from_weights(without.weights, calibration.difficulty)[0]


def test_fewer_rows_than_folds_give_nothing_and_a_short_calibration_is_refused() -> None:
    chances, base, model, calibration = simulated()
    assert compatible(chances[:4], base[:4], model[:4], None, MINIMAL) is None
    assert compatible([None] * 60, base, model, calibration) is None
    with pytest.raises(ValueError, match="needs a calibration that knows 61 rows"):
        compatible([*chances, 1.0], [*base, 1], [*model, 1], calibration)
    with pytest.raises(ValueError, match="needs a calibration"):
        compatible(chances, base, model, None, NOREG)
    with pytest.raises(ValueError, match="59 chances for 60 pairs"):
        compatible(chances[:-1], base, model, calibration)


def test_equal_lengths_leave_the_win_rate() -> None:
    made = compatible([1.0] * 30 + [0.0] * 10, [9] * 40, [9] * 40, None, MINIMAL, c=1e4)
    assert made and made.value == pytest.approx(75, abs=0.1) and made.weights.tanh_len == 0


@settings(max_examples=15, deadline=None)
@given(scale=st.integers(2, 50), seed=st.integers(0, 99))
def test_the_unit_of_length_does_not_matter(scale: int, seed: int) -> None:
    chances, base, model, calibration = simulated(30, seed)
    one = compatible(chances, base, model, calibration, c=1.0)
    other = compatible(chances, [scale * n for n in base], [scale * n for n in model], calibration, c=1.0)
    assert one and other and other.value == pytest.approx(one.value, abs=0.05)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The measuring script as a module."""
    spec = importlib.util.spec_from_file_location("lc_coverage", BENCH)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "lc_coverage", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("world", ["as good, longer", "weaker, longer, soft"])
def test_our_interval_holds_the_truth_about_as_often_as_it_says(bench: Any, world: str) -> None:
    made = bench.measure(bench.WORLDS[world], rows=80, repeats=120, rounds=200)
    assert 88 <= made.share <= 99  # 95 nominal; 120 repeats have a standard error of 2
    assert abs(made.bias) < 2


def test_the_weight_of_the_gamed_rows_is_the_packages() -> None:
    assert length_control.GAMED_WEIGHT == 0.2 / 2
