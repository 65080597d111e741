"""Paired tests by hand, against scipy, and by what they promise: error rates and power."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, permutation_test

from xwincli.metrics.paired import compare, detectable, flip_test, sign_test


def test_sign_test_by_hand() -> None:
    # 1 of 5 down: 2·(C(5,0) + C(5,1)) / 32 = 12/32; the equal prompt says nothing
    t = sign_test([2, 1, 0.5, 3, -9, 0])
    assert (t.up, t.down, t.equal, t.p) == (4, 1, 1, 12 / 32)
    assert sign_test([0, 0]).p == 1 and sign_test([]).p == 1
    assert sign_test([1, -1]).p == 1


@pytest.mark.parametrize(("up", "down"), [(17, 3), (8, 8), (0, 12), (60, 41), (700, 620)])
def test_sign_test_is_the_binomial_test(up: int, down: int) -> None:
    ours = sign_test([1] * up + [-1] * down).p
    assert ours == pytest.approx(binomtest(up, up + down).pvalue, rel=1e-12 if up + down < 1000 else 0.01)


def test_flip_test_by_hand() -> None:
    # |±1 ±2| >= 3 for two of four flips; of four losses alike only all up and all down: 2/16
    assert flip_test([1, 2]) == 0.5
    assert flip_test([0, -1, -1, -1, -1, 0]) == 2 / 16
    assert flip_test([]) == 1 and flip_test([0, 0]) == 1


def test_flip_test_against_scipy_exact_and_drawn() -> None:
    rng = np.random.default_rng(3)
    few, many = rng.normal(0.4, 1, 10), rng.normal(0.15, 1, 200)
    for d, places in ((few, 1e-12), (many, 0.006)):
        kind = {"permutation_type": "samples", "n_resamples": 2**10 if d is few else 50_000, "rng": 1}
        theirs = permutation_test((d,), lambda x: x.sum(), **kind).pvalue
        assert flip_test(d) == pytest.approx(theirs, abs=places)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=10))
def test_swapping_the_two_changes_nothing_but_the_side(d: list[int]) -> None:
    swapped = [-x for x in d]
    assert flip_test(d) == flip_test(swapped) and sign_test(d).p == sign_test(swapped).p
    zero = [0.0] * len(d)
    assert compare(zero, d, rounds=200).difference.value == -compare(d, zero, rounds=200).difference.value


def test_detectable_by_hand_and_by_simulation() -> None:
    # differences ±1 of 16 prompts: sd = sqrt(16/15), (1.96 + 0.84)·sd/4
    d = [1.0, -1.0] * 8
    assert detectable(d) == pytest.approx((1.959964 + 0.841621) * math.sqrt(16 / 15) / 4, abs=1e-5)
    assert math.isnan(detectable([1.0]))
    rng = np.random.default_rng(0)
    true = detectable(rng.normal(size=20_000)) * math.sqrt(20_000 / 60)  # what 60 prompts of that spread show
    seen = [flip_test(rng.normal(true, 1, 60), seed=i) < 0.05 for i in range(200)]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.08)


def test_a_side_needs_both_tests() -> None:
    four = compare([1.0] * 40, [0.0] * 4 + [1.0] * 36)
    assert four.difference.high < 0 and four.p == 2 / 16 and four.side == 0  # the bootstrap alone is too sure
    eight = compare([1.0] * 40, [0.0] * 8 + [1.0] * 32)
    assert eight.p == 2 / 256 and eight.side == -1
    assert compare([0.0] * 8, [1.0] * 8).side == 1 and compare([0.5], [0.0]).side == 0


def test_nothing_is_called_a_loss_more_often_than_promised() -> None:
    rng = np.random.default_rng(5)
    sides = [compare(*rng.binomial(1, 0.7, (2, 30)), rounds=300, seed=i).side for i in range(300)]
    assert sides.count(-1) / 300 <= 0.04 and sides.count(1) / 300 <= 0.04  # 2.5 % a side


def test_the_two_must_be_of_the_same_prompts() -> None:
    with pytest.raises(ValueError, match="same prompts"):
        compare([1, 2], [1])
