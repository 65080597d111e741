"""How alike the answers to one prompt are in quality: what a user feels who asks twice."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def spread(scores: npt.ArrayLike) -> float:
    """Standard deviation of one prompt's scores with N − 1 below, so that files of different N compare.

    NaN for a single score: one sample says nothing about spread.
    """
    s = np.asarray(scores, dtype=np.float64)
    return float(s.std(ddof=1)) if s.size > 1 else float("nan")


def consistency(scores: npt.ArrayLike, low: float, high: float) -> float:
    """1 − spread / (high − low): 1 when every answer earns the same score.

    Args:
        scores: one prompt's scores, shape (N,).
        low, high: the ends of the scale.

    Raises:
        ValueError: the scale is empty.
    """
    if not high > low:
        raise ValueError(f"the scale must rise: {low} .. {high}")
    return 1 - spread(scores) / (high - low)
