"""How gold reward rises and falls as a proxy is optimised: the laws of Gao et al. and how well they fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Law = Literal["best-of-n", "rl"]

UNKNOWNS = 2


@dataclass(frozen=True)
class Fit:
    """One law fitted to a curve.

    ``residual`` is the root mean square of what the law leaves over, in units of the gold reward; ``explained``
    the share of the sum of squares it takes up (1 is all; NaN where the curve is flat).
    """

    law: Law
    a: float
    b: float
    residual: float
    explained: float

    def at(self, d: npt.ArrayLike) -> Floats:
        """The law's gain in gold reward at distances ``d`` (any shape), the square roots of KL."""
        return np.asarray(_columns(np.asarray(d, dtype=np.float64), self.law) @ np.array([self.a, self.b]))

    def peak(self) -> float | None:
        """The distance d where gold is highest; None where the law rises (or falls) for ever.

        Best-of-n: d(a − b·d) peaks at a / 2b. RL: d(a − b·log d) peaks at exp(a/b − 1).
        """
        if self.b <= 0 or (self.law == "best-of-n" and self.a <= 0):
            return None
        if self.law == "best-of-n":
            return self.a / (2 * self.b)
        power = self.a / self.b - 1
        return float(np.exp(power)) if power < 700 else None


def _columns(d: Floats, law: Law) -> Floats:
    """What a and b are multiplied with, shape (…, 2)."""
    bend = d * d if law == "best-of-n" else d * np.log(np.where(d > 0, d, 1.0))
    return np.stack([d, -bend], axis=-1)


def coefficients(d: npt.ArrayLike, gain: npt.ArrayLike, law: Law) -> Floats:
    """(a, b) by least squares for one curve or for many over the same distances.

    Args:
        d: square roots of KL from the first policy (nats), shape (points,).
        gain: gold reward above the first policy's, shape (points,) or (curves, points).
        law: whose form.

    Returns:
        shape (2,) or (curves, 2).

    Raises:
        ValueError: fewer than two different distances above 0, other shapes, or a number is not finite.
    """
    x, y = np.asarray(d, dtype=np.float64), np.asarray(gain, dtype=np.float64)
    if x.ndim != 1 or y.shape[-1:] != x.shape:
        raise ValueError(f"distances and gains must run side by side: {x.shape} against {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("a distance or a gain is not a finite number")
    if (x < 0).any() or len(np.unique(x[x > 0])) < UNKNOWNS:
        raise ValueError("a fit of two unknowns needs two different distances above 0")
    return np.asarray(y @ np.linalg.pinv(_columns(x, law)).T, dtype=np.float64)


def fit(d: npt.ArrayLike, gain: npt.ArrayLike, law: Law) -> Fit:
    """The law's least-squares fit to one curve.

    R_bon(d) = d(a − b·d) for best-of-n and R_RL(d) = d(a − b·log d) for reinforcement learning, d = √KL
    (Gao, Schulman & Hilton 2022, arXiv 2210.10760, section 3). Both are linear in a and b.

    Args:
        d, gain: as for ``coefficients``, both of shape (points,).
        law: "best-of-n" or "rl".

    Raises:
        ValueError: as for ``coefficients``.
    """
    a, b = coefficients(d, gain, law).tolist()
    found = Fit(law, a, b, 0.0, 0.0)
    y = np.asarray(gain, dtype=np.float64)
    left = y - found.at(d)
    total = float(y @ y)
    explained = 1 - float(left @ left) / total if total > 0 else float("nan")
    return Fit(law, a, b, float(np.sqrt(np.mean(left**2))), explained)
