"""Best-of-n against brute force over all subsets, numbers worked by hand, and real published candidates."""

from __future__ import annotations

import json
import os
from itertools import combinations, pairwise
from math import log
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwincli.metrics.best_of_n import best_of_n, kl_bound, sizes, worst_of_n

CASES = os.environ.get("XWIN_CASES", "")


def by_enumeration(proxy: list[float], gold: list[float], n: int) -> float:
    """The mean over every subset of n, its favourites sharing the pick where they tie."""
    picks = []
    for subset in combinations(range(len(proxy)), n):
        top = max(proxy[i] for i in subset)
        picks.append([gold[i] for i in subset if proxy[i] == top])
    return float(np.mean([np.mean(p) for p in picks]))


def test_by_hand() -> None:
    # three responses, gold 3 1 2 in ascending order of the proxy; pairs lead with 1, 2, 2: (1 + 2 + 2) / 3
    assert best_of_n([0.1, 0.2, 0.3], [3, 1, 2], 2) == pytest.approx(5 / 3)
    assert best_of_n([0.1, 0.2, 0.3], [3, 1, 2], 1) == pytest.approx(2)
    assert best_of_n([0.1, 0.2, 0.3], [3, 1, 2], 3) == 2


def test_ties_share_the_pick() -> None:
    assert best_of_n([5, 5, 1], [10, 0, 7], 3) == pytest.approx(5)
    assert best_of_n([5, 5, 1], [10, 0, 7], 2) == pytest.approx(5)  # {10,0} 5, {10,7} 10, {0,7} 0


def test_worst_by_hand() -> None:
    # pairs of 1 4 6 have minima 1, 1, 4
    assert worst_of_n([6, 1, 4], 2) == pytest.approx(2)
    assert worst_of_n([6, 1, 4], 1) == pytest.approx(11 / 3)
    assert worst_of_n([6, 1, 4], 3) == 1


SAMPLES = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 10)), min_size=1, max_size=8)


@given(samples=SAMPLES, data=st.data())
def test_equals_enumeration_of_subsets(samples: list[tuple[int, int]], data: st.DataObject) -> None:
    proxy, gold = [float(p) for p, _ in samples], [float(g) for _, g in samples]
    n = data.draw(st.integers(1, len(proxy)))
    assert best_of_n(proxy, gold, n) == pytest.approx(by_enumeration(proxy, gold, n))
    assert worst_of_n(gold, n) == pytest.approx(np.mean([min(s) for s in combinations(gold, n)]))


@given(gold=st.lists(st.integers(1, 10), min_size=2, max_size=9))
def test_oracle_rises_worst_falls_and_the_ends_are_exact(gold: list[int]) -> None:
    best = [best_of_n(gold, gold, n) for n in range(1, len(gold) + 1)]
    worst = [worst_of_n(gold, n) for n in range(1, len(gold) + 1)]
    assert all(b >= a - 1e-9 for a, b in pairwise(best))
    assert all(b <= a + 1e-9 for a, b in pairwise(worst))
    assert best[0] == pytest.approx(np.mean(gold)) and worst[0] == pytest.approx(np.mean(gold))
    assert best[-1] == pytest.approx(max(gold)) and worst[-1] == pytest.approx(min(gold))


def test_large_n_does_not_overflow() -> None:
    gold = np.arange(2000.0)
    assert best_of_n(gold, gold, 1000) == pytest.approx(1000 * 2001 / 1001 - 1)  # the order statistic's mean


@pytest.mark.parametrize("n", [0, 4])
def test_refuses_n_out_of_range(n: int) -> None:
    with pytest.raises(ValueError, match="between 1 and the 3"):
        best_of_n([1, 2, 3], [1, 2, 3], n)


def test_refuses_nan_and_other_shapes() -> None:
    with pytest.raises(ValueError, match="finite"):
        best_of_n([1, float("nan")], [1, 2], 1)
    with pytest.raises(ValueError, match="shape"):
        best_of_n([1, 2], [1, 2, 3], 1)


def test_kl_bound_and_sizes() -> None:
    assert kl_bound(1) == 0
    assert kl_bound(4) == pytest.approx(log(4) - 0.75)
    assert sizes(12) == [1, 2, 4, 8, 12] and sizes(8) == [1, 2, 4, 8] and sizes(1) == [1]


@pytest.mark.skipif(not CASES, reason="XWIN_CASES names no folder of third-party cases")
def test_real_candidates() -> None:
    folder = Path(CASES) / "rm"
    rows = [json.loads(line) for line in (folder / "bon_candidates.jsonl").open(encoding="utf-8")]
    expected = json.loads((folder / "expected_bon.json").read_text(encoding="utf-8"))
    gold = [[p - 1 for p in row["judge_preference"]] for row in rows]
    size = [row["lengths"] for row in rows]

    def mean(proxies: list[list[float]], n: int) -> float:
        return 100 * float(np.mean([best_of_n(p, g, n) for p, g in zip(proxies, gold, strict=True)]))

    assert mean(gold, 11) == pytest.approx(expected["oracle_best_first"]["win_rate"], abs=1e-9)
    assert mean(gold, 1) == pytest.approx(expected["mean_over_candidates"]["win_rate"], abs=1e-9)
    worst = 100 * float(np.mean([worst_of_n(g, 11) for g in gold]))
    assert worst == pytest.approx(expected["worst_first"]["win_rate"], abs=1e-9)
    # equal lengths are shared here and given to the first there
    assert mean(size, 11) == pytest.approx(expected["longest_first"]["win_rate"], abs=0.6)
    shortest = [[-x for x in row] for row in size]
    assert mean(shortest, 11) == pytest.approx(expected["shortest_first"]["win_rate"], abs=0.6)
    tops = [float(np.mean(sorted(g)[-2:])) + 1 for g in gold]
    assert float(np.mean(tops)) == pytest.approx(expected["top2_mean_pref"], abs=1e-9)
