"""Intervals: exact where resampling can be enumerated, and the right width where theory knows it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from xwincli.metrics import bootstrap


def test_two_prompts_by_hand() -> None:
    # draws of two from {0, 1}: means 0, .5, .5, 1 with chances 1/4, 1/2, 1/4
    e = bootstrap.mean([0, 1], level=0.4, rounds=4000)
    assert e.value == 0.5 and (e.low, e.high) == (0.5, 0.5)
    wide = bootstrap.mean([0, 1], level=0.9, rounds=4000)
    assert (wide.low, wide.high) == (0, 1)


def test_three_prompts_against_all_27_draws() -> None:
    values = np.array([1.0, 4.0, 10.0])
    every = np.array([np.mean(values[list(i)]) for i in product(range(3), repeat=3)])
    e = bootstrap.mean(values, rounds=20000, level=0.6)
    assert (e.low, e.high) == pytest.approx(tuple(np.quantile(every, [0.2, 0.8])))
    assert (e.low, e.high) == (3, 7)


def test_width_is_the_normal_one_and_the_seed_decides() -> None:
    values = np.random.default_rng(1).normal(size=400)
    e = bootstrap.mean(values, seed=3)
    assert e.high - e.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)
    assert e == bootstrap.mean(values, seed=3) and e != bootstrap.mean(values, seed=4)


def test_blocks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(bootstrap.resamples(5, 40, 0)))
    monkeypatch.setattr(bootstrap, "CELLS", 15)
    parts = list(bootstrap.resamples(5, 40, 0))
    assert len(parts) == 14 and np.array_equal(np.concatenate(parts), whole)
    assert (whole.sum(1) == 5).all()


def test_pairing_takes_the_prompts_own_level_away() -> None:
    level = np.random.default_rng(0).normal(0, 100, size=50)
    e = bootstrap.difference(level, level + 1)
    assert (e.value, e.low, e.high) == pytest.approx((1, 1, 1)) and e.excludes(0) == 1
    assert bootstrap.difference(level + 1, level).excludes(0) == -1


def test_one_prompt_has_no_interval() -> None:
    e = bootstrap.mean([3.0])
    assert e.value == 3 and np.isnan(e.low) and e.excludes(0) == 0


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [[1.0, 2.0]]])
def test_refuses(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite number a prompt"):
        bootstrap.mean(values)


def test_refuses_unpaired() -> None:
    with pytest.raises(ValueError, match="same prompts"):
        bootstrap.difference([1, 2], [1, 2, 3])
