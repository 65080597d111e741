"""Agreement by hand, against scikit-learn, and its intervals against a plain bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from xwincli.metrics import agreement as ag

ONE = [0.0, 0.0, 0.5, 1.0, 1.0, 0.2]
TWO = [0.0, 1.0, 0.5, 1.0, 0.5, 0.4]


def test_by_hand() -> None:
    # a-a twice, a-b once, tie-tie once, b-b once, b-tie once
    assert ag.sides(ONE).tolist() == [0, 0, 1, 2, 2, 0]
    table = ag.confusion(ONE, TWO)
    assert table.tolist() == [[2, 0, 1], [0, 1, 0], [0, 1, 1]]
    assert ag.with_ties(table) == pytest.approx(4 / 6)
    assert ag.without_ties(table) == pytest.approx(3 / 4)
    chance = (3 * 2 + 1 * 2 + 2 * 2) / 36
    assert ag.kappa(table) == pytest.approx((4 / 6 - chance) / (1 - chance))


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.5, 1.0])] * 2), min_size=2, max_size=40))
def test_kappa_is_scikit_learns(rows: list[tuple[float, float]]) -> None:
    one, two = zip(*rows, strict=True)
    ours = float(ag.kappa(ag.confusion(one, two)))
    if len({*one, *two}) == 1:
        assert math.isnan(ours)  # both always say one thing: there is no chance to beat
    else:
        assert ours == pytest.approx(cohen_kappa_score(ag.sides(one), ag.sides(two)), abs=1e-12)


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 2), min_size=1, max_size=20))
def test_it_is_symmetric_and_a_judge_agrees_with_itself(rows: list[tuple[float, float]]) -> None:
    one, two = map(list, zip(*rows, strict=True))
    prompts = list(range(len(rows)))
    there, back = (ag.agreement(*x, prompts, rounds=100) for x in ((one, two), (two, one)))
    assert there["with_ties"].value == back["with_ties"].value
    assert there["kappa"].value == pytest.approx(back["kappa"].value, nan_ok=True)
    assert ag.agreement(one, one, prompts, rounds=100)["with_ties"].value == 1
    assert ag.closeness(one, one).score == 1


def test_the_interval_resamples_whole_prompts() -> None:
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(40), 5)
    one = rng.choice([0.0, 0.5, 1.0], 200)
    two = np.where(np.repeat(rng.random(40) < 0.6, 5), one, 1 - one)  # a prompt agrees as a whole or not
    found = ag.agreement(one.tolist(), two.tolist(), prompts.tolist(), rounds=2000)
    rows = [ag.confusion(one[prompts == p], two[prompts == p]) for p in range(40)]
    draws = [float(ag.kappa(sum(rows[i] for i in rng.integers(0, 40, 40)))) for _ in range(2000)]
    low, high = np.quantile(draws, [0.025, 0.975])
    assert found["kappa"].low == pytest.approx(low, abs=0.03)
    assert found["kappa"].high == pytest.approx(high, abs=0.03)
    alone = ag.agreement(one.tolist(), two.tolist(), list(range(200)), rounds=2000)["kappa"]
    assert alone.high - alone.low < 0.7 * (high - low)  # rows of one prompt are no independent witnesses


def test_share_by_hand() -> None:
    e, n = ag.share([True, False, True, True], ["p", "p", "q", "r"])
    assert (e.value, n) == (0.75, 4) and e.low < e.value <= e.high
    e, n = ag.share([], [])
    assert math.isnan(e.value) and n == 0
    assert math.isnan(ag.share([True], ["p"])[0].low)


def test_closeness_by_hand() -> None:
    c = ag.closeness([0.0, 1.0, 0.5], [0.5, 1.0, 0.5])
    assert c.score == pytest.approx(1 - 0.5 / 3) and c.error == pytest.approx(1 / 6)
    assert ag.closeness([0.0, 1.0], [0.5, 1.0], power=2).score == pytest.approx(1 - 0.125)


def test_columns_must_fit() -> None:
    with pytest.raises(ValueError, match="as many preferences"):
        ag.agreement([1.0], [1.0, 0.0], ["p"])
    with pytest.raises(ValueError, match="one at least"):
        ag.agreement([], [], [])
    assert math.isnan(ag.correlations([1, 1], [0, 1])[0])
