"""Lift, its intervals and p values: by hand, against scipy, and where counts are zero."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, hypergeom
from scipy.stats.contingency import relative_risk

from xwincli.metrics.lift import fisher, holm, lift, paired_lift

COUNTS = st.integers(1, 40).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def test_lift_by_hand() -> None:
    e = lift(10, 100, 20, 100)
    half = 1.959964 * math.sqrt(1 / 10 - 1 / 100 + 1 / 20 - 1 / 100)
    assert e.value == pytest.approx(2)
    assert (e.low, e.high) == pytest.approx((2 * math.exp(-half), 2 * math.exp(half)), rel=1e-6)


def test_a_zero_adds_half_a_hit() -> None:
    e = lift(0, 9, 4, 9)
    assert e.value == pytest.approx(4.5 / 0.5) and math.isfinite(e.high) and e.low < e.value < e.high
    assert lift(0, 10, 0, 10).value == 1 and lift(5, 5, 5, 5).value == 1


@given(COUNTS, COUNTS)
def test_lift_is_scipys_relative_risk(a: tuple[int, int], b: tuple[int, int]) -> None:
    e, back = lift(*a, *b), lift(*b, *a)
    assert e.low <= e.value <= e.high and back.value == pytest.approx(1 / e.value)
    assert back.low == pytest.approx(1 / e.high)
    if a[0] and b[0] and not (a[0] == a[1] and b[0] == b[1]):
        theirs = relative_risk(b[0], b[1], a[0], a[1])
        interval = theirs.confidence_interval(0.95)
        assert (e.value, e.low, e.high) == pytest.approx((theirs.relative_risk, interval.low, interval.high))


def test_impossible_counts_are_refused() -> None:
    for counts in [(3, 2, 1, 2), (-1, 2, 1, 2), (0, 0, 1, 2)]:
        for of in (lift, fisher):
            with pytest.raises(ValueError, match="no share"):
                of(*counts)


def test_paired_lift_by_hand() -> None:
    e = paired_lift([0.5, 0.5, 0, 0], [1, 0.5, 0.5, 0])
    off = np.array([0.5 - 0.5, 0.25 - 0.5, 0.25, 0])
    half = 4.302653 * math.sqrt(3 / 2 * (off @ off))  # three prompts have hits: t with two degrees of freedom
    assert e.value == 2 and (e.low, e.high) == pytest.approx((2 * math.exp(-half), 2 * math.exp(half)), rel=1e-6)
    same = paired_lift([0.2, 0.4], [0.1, 0.2])
    assert same.value == pytest.approx(0.5) and same.low == pytest.approx(0.5) == same.high


def test_paired_lift_refuses_what_has_no_ratio() -> None:
    for a, b in [([0, 0], [1, 1]), ([1, 0], [1, 0]), ([1, 1, 1], [1, 1])]:
        with pytest.raises(ValueError, match="a ratio needs"):
            paired_lift(a, b)


def test_paired_lift_covers_the_truth() -> None:
    """Prompts of their own difficulty, eight answers each: the interval holds the true ratio about 95 times in 100."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        hard = rng.beta(1, 4, size=40)
        a, b = rng.binomial(8, hard) / 8, rng.binomial(8, hard / 2) / 8
        e = paired_lift(a, b)
        held += e.low <= 0.5 <= e.high
    assert 0.91 <= held / 400 <= 0.99


def test_fisher_by_hand() -> None:
    assert fisher(1, 4, 3, 4) == pytest.approx(34 / 70)  # tables of margins 4, 4: 1, 16, 36, 16, 1 of 70
    assert fisher(0, 4, 4, 4) == pytest.approx(2 / 70)
    tail = hypergeom(40, 12, 20)
    p = sum(tail.pmf(k) for k in range(13) if tail.pmf(k) <= tail.pmf(3) * (1 + 1e-9))
    assert fisher(3, 20, 9, 20) == pytest.approx(p)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.7, 0.9]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_nothing_and_bonferroni(ps: list[float]) -> None:
    found = holm(ps)
    assert all(p <= q <= min(1, len(ps) * p) + 1e-12 for p, q in zip(ps, found, strict=True))
    assert all(q >= b - 1e-9 for q, b in zip(found, false_discovery_control(ps), strict=True))
    order = random.Random(0).sample(range(len(ps)), len(ps))
    assert holm([ps[i] for i in order]) == pytest.approx([found[i] for i in order])
