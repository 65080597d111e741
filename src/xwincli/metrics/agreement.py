"""How well two judges agree, and how often one does what it should not; intervals resample whole prompts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import pearsonr, spearmanr

from xwincli.metrics import bootstrap
from xwincli.metrics.bootstrap import ROUNDS, Estimate

Floats = npt.NDArray[np.float64]
Figure = Callable[[Floats], Floats]


def sides(preferences: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Who is preferred: 0 for a, 1 for a tie, 2 for b; a preference is the chance that b is better, .5 a tie."""
    return np.sign(np.asarray(preferences, dtype=np.float64) - 0.5).astype(np.int64) + 1


def confusion(one: npt.ArrayLike, two: npt.ArrayLike) -> Floats:
    """How often judge one said i and judge two j, shape (3, 3), in the order a, tie, b.

    Args:
        one, two: preferences on the same comparisons, shape (rows,).
    """
    table = np.zeros((3, 3))
    np.add.at(table, (sides(one), sides(two)), 1)
    return table


def _over(part: Floats, whole: Floats) -> Floats:
    made = np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)
    return np.asarray(made, dtype=np.float64)


def with_ties(tables: Floats) -> Floats:
    """Share of comparisons on which both say the same, a tie included; tables of shape (..., 3, 3)."""
    return _over(np.trace(tables, axis1=-2, axis2=-1), tables.sum((-2, -1)))


def without_ties(tables: Floats) -> Floats:
    """The same among the comparisons that neither calls a tie."""
    decided = tables[..., ::2, ::2]
    return _over(np.trace(decided, axis1=-2, axis2=-1), decided.sum((-2, -1)))


def kappa(tables: Floats) -> Floats:
    """Agreement beyond chance, (p_o - p_e) / (1 - p_e) (Cohen 1960); NaN where both always say one thing.

    Args:
        tables: counts of shape (..., 3, 3).
    """
    total = tables.sum((-2, -1))
    chance = _over((tables.sum(-1) * tables.sum(-2)).sum(-1), total**2)
    return _over(with_ties(tables) - chance, 1 - chance)


def _prompts(prompts: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    """The number of each row's prompt, counted from 0 in order of appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(p, len(numbers)) for p in prompts], dtype=np.int64)


def estimate(tables: Floats, figure: Figure, *, rounds: int = ROUNDS, seed: int = 0) -> Estimate:
    """A figure of summed tables with its bootstrap interval over prompts.

    Args:
        tables: one a prompt, shape (prompts, ...); resampled as wholes.
        figure: from sums of shape (rounds, ...) to shape (rounds,).
        rounds, seed: of the bootstrap; rounds in which the figure is undefined are left out.
    """
    value = float(figure(tables.sum(0)[None])[0])
    count = len(tables)
    if count < 2 or not np.isfinite(value):
        return Estimate(value, float("nan"), float("nan"))
    flat = tables.reshape(count, -1)
    sums = [(w @ flat).reshape(-1, *tables.shape[1:]) for w in bootstrap.resamples(count, rounds, seed)]
    draws = figure(np.concatenate(sums))
    return bootstrap.percentile(value, draws[np.isfinite(draws)])


def share(
    hits: Sequence[bool], prompts: Sequence[Hashable], *, rounds: int = ROUNDS, seed: int = 0
) -> tuple[Estimate, int]:
    """The share of events that hit, its interval over prompts, and how many events there were.

    Args:
        hits: one an event, shape (events,).
        prompts: each event's prompt.
        rounds, seed: of the bootstrap.
    """
    numbers = _prompts(prompts)
    tables = np.zeros((numbers.max(initial=-1) + 1, 2))
    np.add.at(tables, numbers, np.array([[bool(h), 1] for h in hits], dtype=np.float64).reshape(-1, 2))
    return estimate(tables, lambda t: _over(t[..., 0], t[..., 1]), rounds=rounds, seed=seed), len(hits)


@dataclass(frozen=True)
class Closeness:
    """1 - the mean distance of two judges' preferences, and the standard error of that mean."""

    score: float
    error: float


def closeness(one: npt.ArrayLike, two: npt.ArrayLike, power: int = 1) -> Closeness:
    """AlpacaEval's agreement of graded preferences: mean of 1 - |difference|**power, rows as the unit.

    Args:
        one, two: preferences, shape (rows,).
        power: 1 (its "absolute") or 2 ("squared").
    """
    d = np.abs(np.asarray(one, dtype=np.float64) - np.asarray(two, dtype=np.float64)) ** power
    error = float(d.std(ddof=1) / np.sqrt(d.size)) if d.size > 1 else float("nan")
    return Closeness(1 - float(d.mean()), error)


def correlations(one: npt.ArrayLike, two: npt.ArrayLike) -> tuple[float, float]:
    """Pearson's and Spearman's correlation of two columns of preferences; NaN where one never varies."""
    a, b = np.asarray(one, dtype=np.float64), np.asarray(two, dtype=np.float64)
    if a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan"), float("nan")
    return float(pearsonr(a, b)[0]), float(spearmanr(a, b)[0])


def agreement(
    one: Sequence[float], two: Sequence[float], prompts: Sequence[Hashable], *, rounds: int = ROUNDS, seed: int = 0
) -> dict[str, Any]:
    """Everything about two judges on the same comparisons.

    Args:
        one, two: the chance that b is better, shape (rows,).
        prompts: each row's prompt, the unit of the bootstrap.
        rounds, seed: of the bootstrap.

    Returns:
        ``with_ties``, ``without_ties`` and ``kappa`` as Estimates; the ``confusion`` table in the order a, tie, b;
        ``pearson``, ``spearman``, ``absolute`` (1 - mean absolute difference); the counts ``n`` and ``decided``.

    Raises:
        ValueError: there are no rows, or the columns differ in length.
    """
    if not one or not len(one) == len(two) == len(prompts):
        raise ValueError("agreement needs as many preferences of one judge as of the other, and one at least")
    numbers = _prompts(prompts)
    tables = np.zeros((numbers.max() + 1, 3, 3))
    np.add.at(tables, (numbers, sides(one), sides(two)), 1)
    whole = tables.sum(0)
    pearson, spearman = correlations(one, two)
    figures = {"with_ties": with_ties, "without_ties": without_ties, "kappa": kappa}
    return {
        "n": len(one),
        "decided": int(whole[::2, ::2].sum()),
        **{name: estimate(tables, f, rounds=rounds, seed=seed) for name, f in figures.items()},
        "confusion": whole.astype(int).tolist(),
        "pearson": pearson,
        "spearman": spearman,
        "absolute": closeness(one, two).score,
    }
