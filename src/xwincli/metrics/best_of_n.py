"""What picking the best (or suffering the worst) of n samples is worth, from N >= n samples a prompt."""

from __future__ import annotations

from functools import lru_cache
from math import lgamma, log

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


@lru_cache(maxsize=256)
def _weights(total: int, n: int) -> Floats:
    """C(i-1, n-1) / C(N, n) for i = 1..N: the chance that the i-th smallest of N leads a random n of them."""
    if not 1 <= n <= total:
        raise ValueError(f"n must be between 1 and the {total} samples, this is {n}")
    logs = [_log_choose(i - 1, n - 1) - _log_choose(total, n) for i in range(n, total + 1)]
    w = np.zeros(total)
    w[n - 1 :] = np.exp(logs)
    return np.asarray(w / w.sum(), dtype=np.float64)


def _within_ties(proxy: Floats, gold: Floats) -> Floats:
    """Gold averaged inside each set of equal proxy scores: which of them would be picked is a coin."""
    _, group = np.unique(proxy, return_inverse=True)
    return np.asarray((np.bincount(group, gold) / np.bincount(group))[group], dtype=np.float64)


def best_of_n(proxy: npt.ArrayLike, gold: npt.ArrayLike, n: int) -> float:
    """Expected gold of the response with the highest proxy score among n of the N samples, without bias.

    V(n) = sum over i = n..N of C(i−1, n−1) / C(N, n) · g_(i), the responses sorted ascending by the proxy
    (Nakano et al. 2021, arXiv 2112.09332; Gao et al. 2022, arXiv 2210.10760). It equals the
    mean over all subsets of n: at n = 1 the plain mean, at n = N the gold of the proxy's favourite.

    Args:
        proxy: scores that choose, shape (N,).
        gold: scores that count, shape (N,).
        n: how many samples the chooser sees.

    Raises:
        ValueError: n is out of 1..N, the shapes differ, or a score is not finite.
    """
    p, g = np.asarray(proxy, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if p.shape != g.shape or p.ndim != 1:
        raise ValueError(f"proxy and gold must have one shape (N,): {p.shape} against {g.shape}")
    if not (np.isfinite(p).all() and np.isfinite(g).all()):
        raise ValueError("a score is not a finite number")
    order = np.argsort(p, kind="stable")
    return float(_weights(p.size, n) @ _within_ties(p, g)[order])


def worst_of_n(gold: npt.ArrayLike, n: int) -> float:
    """Expected lowest gold among n of the N samples, without bias: ``best_of_n`` read from the other end.

    Args:
        gold: scores, shape (N,).
        n: how many samples are drawn.

    Raises:
        ValueError: as for ``best_of_n``.
    """
    g = np.asarray(gold, dtype=np.float64)
    return best_of_n(-g, g, n)


def pass_at_k(passed: npt.ArrayLike, k: int) -> float:
    """Chance that at least one of k of the N samples passes, without bias: 1 − C(N−c, k) / C(N, k), c of N pass.

    Source: Chen et al. 2021, arXiv 2107.03374, equation 1. It is the best of k of scores 1 and 0.

    Args:
        passed: whether each sample passes, shape (N,).
        k: how many samples are drawn.

    Raises:
        ValueError: as for ``best_of_n``.
    """
    return best_of_n(passed, passed, k)


def pass_hat_k(passed: npt.ArrayLike, k: int) -> float:
    """Chance that all k of the N samples pass (pass^k), without bias: C(c, k) / C(N, k), c of N pass.

    Source: Yao et al. 2024 (tau-bench), arXiv 2406.12045, section 4. It is the worst of k of scores 1 and 0.

    Args, Raises: as for ``pass_at_k``.
    """
    return worst_of_n(passed, k)


def kl_bound(n: int) -> float:
    """log n − (n−1)/n nats: an upper bound of KL(best-of-n ‖ base), not its value (arXiv 2401.01879).

    It supposes independent draws; groups of unique responses are none.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, this is {n}")
    return log(n) - (n - 1) / n


def sizes(total: int) -> list[int]:
    """The n of a curve: powers of two up to ``total``, and ``total``."""
    return sorted({2**k for k in range(total.bit_length()) if 2**k <= total} | {total})
