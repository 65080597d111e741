"""How much more often something happens in B than in A, and whether chance could have done it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import fisher_exact, norm
from scipy.stats import t as student

from xwincli.metrics.bootstrap import Estimate


def _check(hits: int, total: int) -> None:
    if not (0 <= hits <= total and total > 0):
        raise ValueError(f"{hits} of {total} is no share")


def lift(hits_a: int, total_a: int, hits_b: int, total_b: int, level: float = 0.95) -> Estimate:
    """Share in B over share in A with the log interval of a ratio of two independent shares.

    ln RR ± z·sqrt(1/b − 1/n_b + 1/a − 1/n_a) (Katz et al. 1978). Where a or b is 0, or both shares are 1, half a hit
    is added to every count and one to every total (Walter 1975; Pettigrew, Gart and Thomas 1986), so that the ratio
    and its interval stay finite.

    Args:
        hits_a, total_a: how often in how many of A.
        hits_b, total_b: the same of B.
        level: the interval's coverage.

    Raises:
        ValueError: a count is negative or above its total, or a total is 0.
    """
    _check(hits_a, total_a)
    _check(hits_b, total_b)
    a, b, n_a, n_b = float(hits_a), float(hits_b), float(total_a), float(total_b)
    if not hits_a or not hits_b or (hits_a == total_a and hits_b == total_b):
        a, b, n_a, n_b = a + 0.5, b + 0.5, n_a + 1, n_b + 1
    ratio = (b / n_b) / (a / n_a)
    half = float(norm.ppf((1 + level) / 2)) * math.sqrt(1 / b - 1 / n_b + 1 / a - 1 / n_a)
    return Estimate(ratio, ratio * math.exp(-half), ratio * math.exp(half))


def paired_lift(share_a: npt.ArrayLike, share_b: npt.ArrayLike, level: float = 0.95) -> Estimate:
    """Mean share in B over mean share in A of the same prompts, with a log interval that holds a prompt together.

    ln R ± t·sqrt(G/(G−1) · sum over prompts of (b_i/sum b − a_i/sum a)²): the linearised variance of a ratio of paired
    means (Cochran 1977, chapter 6) with t of G − 1 degrees of freedom (Cameron and Miller 2015, section VI). G counts
    the prompts with a hit on either side: the others say nothing of the ratio.

    Args:
        share_a, share_b: of each prompt's answers, shape (P,), in the same order.
        level: the interval's coverage.

    Raises:
        ValueError: the two differ in length, G is below two, or one is 0 everywhere.
    """
    a, b = np.asarray(share_a, dtype=np.float64), np.asarray(share_b, dtype=np.float64)
    groups = int(((a > 0) | (b > 0)).sum()) if a.shape == b.shape else 0
    if groups < 2 or not (a.sum() > 0 and b.sum() > 0):
        raise ValueError(f"a ratio needs two prompts with hits, and hits on both sides: {a.shape} against {b.shape}")
    ratio = float(b.sum() / a.sum())
    off = b / b.sum() - a / a.sum()
    wide = float(student.ppf((1 + level) / 2, groups - 1))
    half = wide * math.sqrt(groups / (groups - 1) * float(off @ off))
    return Estimate(ratio, ratio * math.exp(-half), ratio * math.exp(half))


def fisher(hits_a: int, total_a: int, hits_b: int, total_b: int) -> float:
    """Two-sided p of Fisher's exact test (Fisher 1935): could one share lie behind both? Raises as ``lift`` does."""
    _check(hits_a, total_a)
    _check(hits_b, total_b)
    table = [[hits_a, total_a - hits_a], [hits_b, total_b - hits_b]]
    return float(fisher_exact(table).pvalue)


def holm(ps: Sequence[float]) -> list[float]:
    """p values corrected for how many tests there were, in the order given (Holm 1979).

    The i-th smallest of m is multiplied by m − i + 1, kept from falling below the one before, and at most 1.
    """
    corrected, worst = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = worst
    return corrected
