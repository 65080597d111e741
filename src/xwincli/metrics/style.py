"""How an answer looks (length, headers, lists, bold), and Bradley-Terry strengths with that held equal."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from xwincli.metrics.bradley_terry import Battles, resamples

Floats = npt.NDArray[np.float64]

NAMES = ("length", "header", "list", "bold")
ROUNDS = 500
STEP, STEPS, CLOSE = 1.0, 200, 1e-9
FAR = 25.0  # nats; a likelihood that still rises there has no maximum

_CODE = re.compile(r"```([^`]*)```")
_HEADERS = [re.compile(rf"^#{{{level}}}\s", re.MULTILINE) for level in range(1, 7)]
_ORDERED = re.compile(r"^\s*\d+\.\s", re.MULTILINE)
_UNORDERED = re.compile(r"^\s*[-*+]\s", re.MULTILINE)
_BOLD = {"**": re.compile(r"\*\*[^*\n]+\*\*"), "__": re.compile(r"__[^_\n]+__")}


def markdown_counts(text: str) -> dict[str, dict[str, int]]:
    """Markdown elements outside fenced code, as Arena-Hard's ``metadata`` has them.

    ``header_count`` by level, ``list_count`` ordered and unordered, ``bold_count`` by mark
    (lmarena/arena-hard-auto, ``utils/add_markdown_info.py``). The code's text is taken out wherever it stands.
    """
    for block in _CODE.findall(text):
        text = text.replace(block, "")
    return {
        "header_count": {f"h{level}": len(p.findall(text)) for level, p in enumerate(_HEADERS, 1)},
        "list_count": {"ordered": len(_ORDERED.findall(text)), "unordered": len(_UNORDERED.findall(text))},
        "bold_count": {mark: len(p.findall(text)) for mark, p in _BOLD.items()},
    }


def differences(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    """How much more of each feature a has than b, within −1..1: shape (N, 4), columns as ``NAMES``.

    For lengths (a − b) / (a + b). The others count per unit of length, d = count / (length + 1), and give
    (d_a − d_b) / (d_a + d_b + 1): Arena-Hard's features (``show_result.py``).

    Args:
        a, b: length and counts of each battle's two answers, shape (N, 4).
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    made = np.zeros_like(x)
    total = x[:, 0] + y[:, 0]
    np.divide(x[:, 0] - y[:, 0], total, out=made[:, 0], where=total > 0)
    dense_x, dense_y = x[:, 1:] / (x[:, :1] + 1), y[:, 1:] / (y[:, :1] + 1)
    made[:, 1:] = (dense_x - dense_y) / (dense_x + dense_y + 1)
    return made


def standardised(d: Floats, *, centre: bool) -> Floats:
    """Features (N, F) over their standard deviation (ddof 1), centred if asked; a constant one becomes 0.

    Arena-Hard centres, so 0 is the battles' usual difference of style; left uncentred, 0 is equal style.
    """
    std = d.std(0, ddof=1) if len(d) > 1 else np.zeros(d.shape[1])
    moved = d - d.mean(0) if centre else d
    made = np.divide(moved, std, out=np.zeros_like(moved), where=std > 1e-12)
    return np.asarray(made, dtype=np.float64)


@dataclass(frozen=True)
class Fit:
    """Strengths (P,), nats, the anchor at 0, and the features' coefficients (F,), nats a standard deviation."""

    strength: Floats
    coefficient: Floats
    converged: bool


def controlled(
    battles: Battles, features: Floats, anchor: int, *, times: Floats | None = None, start: Fit | None = None
) -> Fit:
    """Strengths and the features' pull fitted together: logit P(a wins) = s_a − s_b + coefficient · features.

    Maximum likelihood without penalty by Newton's method: Arena-Hard's style control, converged. Where there is no
    finite maximum, the fit says so.

    Args:
        battles: N battles among P models.
        features: of each battle, a against b, shape (N, F).
        anchor: the model whose strength is 0.
        times: how often each battle counts, shape (N,); None is once.
        start: a fit to begin from.
    """
    n, p = len(battles.a), len(battles.models)
    free = [i for i in range(p) if i != anchor]
    x = np.zeros((n, p))
    x[range(n), battles.a], x[range(n), battles.b] = 1, -1
    x = np.concatenate([x[:, free], features], 1)
    weight = battles.weight if times is None else battles.weight * times
    w = np.zeros(x.shape[1]) if start is None else np.concatenate([start.strength[free], start.coefficient])
    converged = False
    for _ in range(STEPS):
        chance = expit(x @ w)
        slope = x.T @ (weight * (chance - battles.score))
        curve = (x * (weight * chance * (1 - chance))[:, None]).T @ x
        step = np.linalg.lstsq(curve, slope, rcond=1e-12)[0]
        longest = float(np.abs(step).max(initial=0.0))
        w = w - step * min(1.0, STEP / max(longest, STEP))
        if converged := longest < CLOSE:
            break
    strength = np.zeros(p)
    strength[free] = w[: p - 1]
    return Fit(strength, w[p - 1 :], converged and float(np.abs(w).max(initial=0.0)) < FAR)


def bootstrap(
    battles: Battles, features: Floats, anchor: int, fit: Fit, *, rounds: int = ROUNDS, seed: int = 0
) -> tuple[Floats, Floats]:
    """Strengths (rounds, P) and coefficients (rounds, F) of battles resampled by their unit, begun from ``fit``.

    A round without a finite fit (a model that won all it drew) gives what the last step came to: far out.
    """
    strength, coefficient = [], []
    for block in resamples(battles.units, rounds, seed):
        for counts in block:
            made = controlled(battles, features, anchor, times=counts[battles.unit], start=fit)
            strength.append(made.strength)
            coefficient.append(made.coefficient)
    return np.asarray(strength), np.asarray(coefficient)
