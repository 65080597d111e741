"""Bradley-Terry strengths by hand, against scikit-learn, at the edges where they are infinite; online Elo."""

from __future__ import annotations

from math import inf, isnan, log, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from xwincli.metrics.bootstrap import Estimate
from xwincli.metrics.bradley_terry import (
    Battle,
    Battles,
    bootstrap,
    chances,
    elo,
    interval,
    online_elo,
    ranking,
    resamples,
    separability,
    strengths,
)


def test_two_models_by_hand() -> None:
    s = strengths([[0, 3], [1, 0]])
    assert s == pytest.approx([log(3) / 2, -log(3) / 2])  # odds of 3 to 1, centred
    assert strengths([[0, 3], [1, 0]], anchor=1) == pytest.approx([log(3), 0])
    assert elo([0, log(10)]) == pytest.approx([1000, 1400])  # 400 points are odds of ten
    assert chances(s) == pytest.approx(np.array([[0.5, 0.75], [0.25, 0.5]]))


def test_a_tie_is_half_a_win_for_both_and_a_weight_is_a_repeat() -> None:
    tied = Battles.of([Battle("x", "y", 0.5), Battle("y", "x", 0), Battle("x", "y", 1, 2)])
    assert tied.models == ("x", "y") and tied.wins().tolist() == [[0, 3.5], [0.5, 0]]
    assert strengths(tied.wins(), anchor=1)[0] == pytest.approx(log(7))


def test_three_models_agree_with_what_solves_the_likelihood_equations() -> None:
    """A cycle with odds 4:1, 4:1, 16:1 is consistent, so every pair's odds come out exactly."""
    wins = np.array([[0, 4, 16], [1, 0, 4], [1, 1, 0]], dtype=float)
    s = strengths(wins, anchor=2)
    assert s == pytest.approx([log(16), log(4), 0])


matrices = st.integers(2, 6).flatmap(
    lambda p: st.lists(st.lists(st.integers(1, 30), min_size=p, max_size=p), min_size=p, max_size=p)
)


@given(matrices)
@settings(max_examples=60, deadline=None)
def test_at_the_maximum_everyone_wins_as_often_as_expected(rows: list[list[int]]) -> None:
    wins = np.array(rows, dtype=float)
    np.fill_diagonal(wins, 0)
    s = strengths(wins)
    expected = ((wins + wins.T) * chances(s)).sum(1)
    assert expected == pytest.approx(wins.sum(1), abs=1e-6) and s.mean() == pytest.approx(0, abs=1e-9)
    for anchor in range(len(wins)):  # only differences mean anything
        assert strengths(wins, anchor=anchor) == pytest.approx(s - s[anchor], abs=1e-8)


@pytest.mark.parametrize("ridge", [0.0, 0.7])
def test_against_scikit_learns_logistic_regression(ridge: float) -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(3)
    sides = np.array([rng.choice(5, 2, replace=False) for _ in range(300)])
    true = np.linspace(-1, 1, 5)
    score = (rng.random(300) < expit(true[sides[:, 0]] - true[sides[:, 1]])).astype(float)
    score[::7] = 0.5
    x = np.zeros((300, 5))
    x[range(300), sides[:, 0]], x[range(300), sides[:, 1]] = 1, -1
    fit = LogisticRegression(fit_intercept=False, C=1 / ridge if ridge else 1e12, tol=1e-12, max_iter=10000)
    fit.fit(np.vstack([x, x]), np.repeat([1, 0], 300), np.concatenate([score, 1 - score]))
    theirs = fit.coef_[0] - fit.coef_[0][0]
    battles = Battles.of(Battle(str(a), str(b), y) for (a, b), y in zip(sides, score, strict=True))
    order = [battles.models.index(str(i)) for i in range(5)]
    ours = strengths(battles.wins(), ridge=ridge)[order]
    assert ours - ours[0] == pytest.approx(theirs, abs=1e-4)


def test_who_never_lost_is_infinitely_strong_and_who_is_apart_unknown() -> None:
    """0 and 1 beat each other, 2 beat 1 only, 3 lost to 0 only, 4 and 5 met nobody else."""
    wins = np.zeros((6, 6))
    wins[0, 1], wins[1, 0], wins[2, 1], wins[0, 3], wins[4, 5], wins[5, 4] = 3, 1, 2, 5, 1, 1
    s = strengths(wins, anchor=1)
    assert s[:4] == pytest.approx([log(3), 0, inf, -inf]) and np.isnan(s[4:]).all()
    assert strengths(wins, anchor=4)[4:].tolist() == [0, 0] and np.isnan(strengths(wins, anchor=4)[:4]).all()
    assert np.isfinite(strengths(wins, ridge=0.1)).all()
    table = chances(s[:4])
    assert table[2, 0] == 1 and table[3, 2] == 0 and table[3, 3] == 0.5
    assert isnan(chances([inf, inf, 0])[0, 1])


def test_the_limit_of_a_shrinking_ridge_is_the_value_without() -> None:
    wins = np.array([[0, 3, 0], [1, 0, 2], [0, 0, 0]], dtype=float)  # 2 never won
    free, close = strengths(wins, anchor=0), strengths(wins, anchor=0, ridge=1e-9)
    assert free[2] == -inf and close[:2] == pytest.approx(free[:2], abs=1e-6) and close[2] < -15


def test_many_fits_at_once_are_the_single_ones() -> None:
    rng = np.random.default_rng(0)
    wins = rng.integers(0, 4, (50, 4, 4)).astype(float)
    together = strengths(wins, anchor=0)
    for w, s in zip(wins, together, strict=True):
        np.testing.assert_allclose(strengths(w, anchor=0), s, atol=1e-8)


def test_what_is_refused() -> None:
    for wins in ([[0, -1], [1, 0]], [[0, nan], [1, 0]], [[0, 1, 2], [1, 0, 2]]):
        with pytest.raises(ValueError, match="square matrices of finite numbers"):
            strengths(wins)
    for rows, what in [
        ([], "no battles"),
        ([Battle("x", "x", 1)], "'x' meets itself"),
        ([Battle("x", "y", 2)], "within 0..1"),
        ([Battle("x", "y", 1, -1)], "at least 0"),
    ]:
        with pytest.raises(ValueError, match=what):
            Battles.of(rows)
    with pytest.raises(ValueError, match="'z' fought no battle"):
        ranking(Battles.of([Battle("x", "y", 1)]), anchor="z")


# -- how sure


def test_a_unit_is_drawn_as_a_whole() -> None:
    """One prompt of two battles won and lost: whatever is drawn of a single unit is even."""
    one = Battles.of([Battle("x", "y", 1, unit="p"), Battle("x", "y", 0, unit="p")])
    assert one.units == 1 and bootstrap(one, rounds=20).tolist() == [[0, 0]] * 20
    apart = Battles.of([Battle("x", "y", 1), Battle("x", "y", 0)])
    assert apart.units == 2 and np.isinf(bootstrap(apart, anchor=1, rounds=20)).any()


def test_draws_are_numpys_legacy_stream() -> None:
    """What pandas draws after np.random.seed(42); blocks do not change it."""
    rng = np.random.RandomState(42)
    wanted = [np.bincount(rng.randint(0, 5, 5), minlength=5) for _ in range(3)]
    assert np.concatenate(list(resamples(5, 3, 42))).tolist() == np.array(wanted).tolist()


def test_an_interval_may_end_at_infinity_and_skips_rounds_without_a_value() -> None:
    draws = np.array([-inf] * 5 + list(range(94)) + [nan])
    e = interval(3, draws)
    assert (e.value, e.low) == (3, -inf) and e.high == 91
    assert isnan(interval(3, np.array([nan, nan])).low)
    e = interval(1, np.arange(101.0), 0.9)
    assert (e.value, e.low, e.high) == (1, pytest.approx(5), pytest.approx(95))


def test_ranking_puts_the_strongest_first_with_its_win_rate() -> None:
    rows = [Battle("weak", "base", float(i % 4 == 0)) for i in range(40)]
    rows += [Battle("base", "strong", float(i % 5 == 0)) for i in range(40)]
    strong, base, weak = ranking(Battles.of(rows), anchor="base", rounds=300, seed=1)
    assert (strong.model, base.model, weak.model) == ("strong", "base", "weak")
    assert strong.win_rate is not None and strong.win_rate.value == pytest.approx(80)
    assert base.elo == Estimate(1000, 1000, 1000) and base.win_rate == Estimate(50, 50, 50)
    assert weak.elo.value == pytest.approx(1000 - 400 * log(3, 10))
    assert weak.elo.low < weak.elo.value < weak.elo.high < 1000 < strong.elo.low
    assert ranking(Battles.of(rows), rounds=10)[0].win_rate is None


def test_separability_counts_pairs_of_intervals_apart() -> None:
    e = [Estimate(1, 0, 2), Estimate(3, 2, 4), Estimate(9, 8, 10), Estimate(0, nan, nan)]
    assert separability(e) == (2, 6)  # 1-3, 2-3; touching ends overlap, an unknown one overlaps all


# -- Elo as battles come


def test_online_elo_by_hand() -> None:
    one = online_elo([Battle("x", "y", 1)], k=32)
    assert one == {"x": 1016, "y": 984}
    two = online_elo([Battle("x", "y", 1), Battle("x", "y", 0.5)], k=32)
    expected = 1 / (1 + 10 ** (-32 / 400))
    assert two["x"] == pytest.approx(1016 + 32 * (0.5 - expected)) and sum(two.values()) == pytest.approx(2000)
    assert online_elo([Battle("x", "z", 1)], k=32, start={"x": 1400})["x"] == pytest.approx(1400 + 32 / 11)
