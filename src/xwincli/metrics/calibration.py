"""Does a lead in reward mean the chance it claims? Bradley-Terry: P(chosen wins) = sigmoid(reward difference).

Every function takes ``lead`` (N,), the reward of a pair's one response minus the other's, and ``chance`` (N,), how
sure it is that the one is better (1, or less for a soft label). None depends on which of the two stands first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import expit

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

BINS = 10  # of confidence from .5 to 1; with their mirror images the usual twenty of 0 to 1


def folded(lead: Floats, chance: Floats) -> tuple[Floats, Floats]:
    """Confidence (N,) in the response the model prefers, .5 to 1, and the chance (N,) that it is the better one.

    Reading every pair in both orders gives a reliability diagram symmetric about (.5, .5); this is its upper half.
    Without a preference the chance is .5: a tie counts half.
    """
    agrees = np.where(lead > 0, chance, np.where(lead < 0, 1 - chance, 0.5))
    return expit(np.abs(lead)), agrees


def places(confidence: Floats, bins: int = BINS) -> Ints:
    """The bin (N,) of each confidence among ``bins`` of equal width over .5 to 1; the last holds 1 too."""
    return np.minimum(((confidence - 0.5) * 2 * bins).astype(np.intp), bins - 1)


def expected_error(lead: Floats, chance: Floats, bins: int = BINS) -> float:
    """Expected calibration error: mean over pairs of their bin's |confidence − agreement| (Guo et al. 2017, eq. 3)."""
    confidence, agrees = folded(lead, chance)
    gaps = np.bincount(places(confidence, bins), confidence - agrees, bins)
    return float(np.abs(gaps).sum() / len(lead))


def brier(lead: Floats, chance: Floats) -> float:
    """Mean squared distance of the predicted from the labelled chance (Brier 1950, one of its two equal terms)."""
    return float(((expit(lead) - chance) ** 2).mean())


def log_loss(lead: Floats, chance: Floats) -> float:
    """Mean cross-entropy in nats; log 2 is what equal rewards would have."""
    return float((chance * np.logaddexp(0, -lead) + (1 - chance) * np.logaddexp(0, lead)).mean())


def pulls(lead: Floats, chance: Floats, slope: float = 1.0) -> Floats:
    """Slope (N,) of each pair's log loss in a factor on all rewards; a mean above 0 says they are too far apart."""
    return np.asarray(lead * (expit(slope * lead) - chance), dtype=np.float64)


def temperature(lead: Floats, chance: Floats) -> tuple[float | None, str]:
    """The T for which sigmoid(lead / T) has the least log loss, or None and the reason why there is none.

    A logistic regression on one column without intercept or penalty, in 1/T (Guo et al. 2017, section 4.2).
    """
    if not pulls(lead, chance, 0.0).sum() < 0:
        return None, "the rewards do not order the pairs better than chance"
    if not np.abs(lead * np.where(lead > 0, 1 - chance, chance)).sum() > 0:
        return None, "every pair is ordered as labelled, so the larger the differences the better"
    scaled = lead / np.abs(lead).max()
    high = 1.0
    while pulls(scaled, chance, high).sum() < 0:
        high *= 2
    return float(np.abs(lead).max() / brentq(lambda slope: float(pulls(scaled, chance, slope).sum()), 0.0, high)), ""
