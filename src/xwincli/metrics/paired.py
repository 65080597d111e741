"""Whether two models differ on the same prompts: tests on paired differences, and what they could have seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from xwincli.metrics import bootstrap
from xwincli.metrics.bootstrap import CELLS, ROUNDS, Estimate

LEVEL = 0.95  # of intervals; a test is significant below 1 - LEVEL
EXACT = 14  # differences up to this many are flipped in every way
FLIPS = 10_000  # ways drawn at random beyond


@dataclass(frozen=True)
class SignTest:
    """How many prompts went up, down, or neither, and the two-sided chance of so uneven a split."""

    up: int
    down: int
    equal: int
    p: float


def sign_test(differences: npt.ArrayLike) -> SignTest:
    """The exact two-sided sign test; equal prompts say nothing and are left out (Dixon and Mood 1946).

    On passes and fails it is McNemar's exact test. p = min(1, 2·P(X <= min(up, down))) with X binomial(up + down, 1/2).

    Args:
        differences: one number a prompt, shape (prompts,).
    """
    d = np.asarray(differences, dtype=np.float64)
    up, down = int((d > 0).sum()), int((d < 0).sum())
    n, least = up + down, min(up, down)
    tail = sum(math.comb(n, k) for k in range(least + 1))
    return SignTest(up, down, d.size - n, min(1.0, float(2 * tail / 2**n) if n < 1000 else _normal_tail(n, least)))


def _normal_tail(n: int, least: int) -> float:
    """The same by the normal curve with continuity correction, where 2**n is no float."""
    return 2 * NormalDist().cdf((least + 0.5 - n / 2) / (math.sqrt(n) / 2))


def flip_test(differences: npt.ArrayLike, *, seed: int = 0) -> float:
    """Two-sided p of the mean difference if every prompt's sign were a coin's (Fisher's randomisation test, 1935).

    Exact up to 14 prompts that differ; beyond, 10,000 random flips, counting the observed one (Phipson and Smyth 2010).

    Args:
        differences: one number a prompt, shape (prompts,).
        seed: of the random flips.
    """
    d = np.asarray(differences, dtype=np.float64)
    d = d[d != 0]
    seen = abs(d.sum()) * (1 - 1e-12)  # sums in another order differ in their last digits
    if not d.size:
        return 1.0
    if d.size <= EXACT:
        return float((np.abs(np.array(list(product((-1.0, 1.0), repeat=d.size))) @ d) >= seen).mean())
    rng = np.random.default_rng(seed)
    hits, block = 1, max(1, CELLS // d.size)
    for start in range(0, FLIPS, block):
        signs = 1.0 - 2.0 * rng.integers(0, 2, size=(min(block, FLIPS - start), d.size))
        hits += int((np.abs(signs @ d) >= seen).sum())
    return hits / (1 + FLIPS)


def detectable(differences: npt.ArrayLike, *, power: float = 0.8, level: float = LEVEL) -> float:
    """The smallest mean difference that so many prompts would show: (z_level + z_power)·sd / sqrt(n).

    A difference of this size is called significant with chance ``power`` (the normal approximation of a paired
    two-sided test; Card et al. 2020, arXiv 2010.06595). NaN for fewer than two prompts.

    Args:
        differences: one number a prompt, shape (prompts,); their observed spread is taken for the true one.
        power: the chance to see it.
        level: of the interval that must leave zero out.
    """
    d = np.asarray(differences, dtype=np.float64)
    if d.size < 2:
        return math.nan
    z = NormalDist().inv_cdf((1 + level) / 2) + NormalDist().inv_cdf(power)
    return z * float(d.std(ddof=1)) / math.sqrt(d.size)


@dataclass(frozen=True)
class Comparison:
    """Second minus first over the same prompts.

    Attributes:
        difference: the mean with its paired bootstrap interval.
        signs: the sign test.
        p: of the randomisation test of the mean.
        detectable: the smallest mean difference seen with 80 % power at the observed spread.
    """

    difference: Estimate
    signs: SignTest
    p: float
    detectable: float

    @property
    def side(self) -> int:
        """1 if second is better, -1 if worse, 0 where they are not distinguishable.

        The interval must leave zero out and the randomisation test must agree: of few prompts the bootstrap is too
        sure.
        """
        return self.difference.excludes(0) if self.p < 1 - LEVEL else 0


def compare(first: npt.ArrayLike, second: npt.ArrayLike, *, rounds: int = ROUNDS, seed: int = 0) -> Comparison:
    """All of it for two columns of the same prompts in the same order, shape (prompts,).

    Raises:
        ValueError: the two differ in length, are empty, or hold what is not finite.
    """
    estimate = bootstrap.difference(first, second, rounds=rounds, seed=seed)
    d = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    return Comparison(estimate, sign_test(d), flip_test(d, seed=seed), detectable(d))
