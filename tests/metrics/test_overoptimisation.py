"""The laws of over-optimisation: recovered exactly, peaks by calculus, residuals by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwincli.metrics.overoptimisation import Fit, coefficients, fit

D = np.array([0.5, 1.0, 1.5, 2.0])


def test_best_of_n_by_hand() -> None:
    # d(2 − 0.5 d) at 1, 2, 4
    found = fit([1, 2, 4], [1.5, 2.0, 0.0], "best-of-n")
    assert (found.a, found.b) == pytest.approx((2, 0.5))
    assert found.residual == pytest.approx(0, abs=1e-12) and found.explained == pytest.approx(1)
    assert found.peak() == pytest.approx(2)


def test_rl_by_hand() -> None:
    # d(1 − 0.5 log d) at 1, e, e²: 1, e/2, 0; it peaks at exp(1/0.5 − 1) = e, at b·e
    found = fit([1, math.e, math.e**2], [1, math.e / 2, 0], "rl")
    assert (found.a, found.b) == pytest.approx((1, 0.5))
    assert found.peak() == pytest.approx(math.e)
    assert found.at(found.peak()) == pytest.approx(0.5 * math.e)


def test_what_the_law_leaves_over_by_hand() -> None:
    # columns (1, −1), (1, −1), (2, −4): gains 1 and 3 at d = 1 are fitted by their mean 2, with 1 left at both
    found = fit([1, 1, 2], [1, 3, 2], "best-of-n")
    assert (found.a, found.b) == pytest.approx((3, 1))
    assert found.residual == pytest.approx(math.sqrt(2 / 3))
    assert found.explained == pytest.approx(1 - 2 / 14)


def test_a_flat_curve_has_no_explained_share() -> None:
    assert math.isnan(fit(D, np.zeros(4), "best-of-n").explained)


def test_no_peak_where_the_law_never_turns() -> None:
    assert Fit("best-of-n", 1, -0.1, 0, 1).peak() is None
    assert Fit("best-of-n", -1, 0.1, 0, 1).peak() is None  # it falls from the start
    assert Fit("rl", 1, 0, 0, 1).peak() is None
    assert Fit("rl", 1, 1e-4, 0, 1).peak() is None  # beyond any number


@given(a=st.floats(-5, 5), b=st.floats(-5, 5), law=st.sampled_from(["best-of-n", "rl"]))
def test_both_laws_are_recovered_from_their_own_curves(a: float, b: float, law: str) -> None:
    curve = Fit(law, a, b, 0, 1).at(D)  # type: ignore[arg-type]
    found = fit(D, curve, law)  # type: ignore[arg-type]
    assert (found.a, found.b) == pytest.approx((a, b), abs=1e-8)


def test_many_curves_at_once_are_many_fits() -> None:
    curves = np.random.default_rng(0).normal(size=(5, 4))
    each = [coefficients(D, c, "rl") for c in curves]
    assert coefficients(D, curves, "rl") == pytest.approx(np.array(each))


@pytest.mark.parametrize(
    ("d", "gain", "what"),
    [
        ([1, 1], [1, 2], "two different distances"),
        ([0, 1], [0, 1], "two different distances"),
        ([1, 2], [1, 2, 3], "side by side"),
        ([1, 2], [1, float("nan")], "finite"),
    ],
)
def test_refusals(d: list[float], gain: list[float], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        fit(d, gain, "best-of-n")
