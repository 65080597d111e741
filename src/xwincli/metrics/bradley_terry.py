"""How strong each of many models is, from battles of two: the Bradley-Terry model, its intervals, and Elo's scale.

P(i beats j) = sigmoid(s_i − s_j) (Bradley and Terry 1952). A strength ``s`` is in nats; ``elo`` puts it on the usual
scale, where 400 points are odds of ten to one. A tie counts half a win for either side.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import log
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.special import expit

from xwincli.metrics.bootstrap import CELLS, ROUNDS, Estimate

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

SCALE, CENTRE = 400 / log(10), 1000.0  # Elo points per nat, and where the anchor (or the mean) stands
STEP = 1.0  # nats a Newton step moves a strength at most: far from the answer it would overshoot
STEPS = 500
CLOSE = 1e-9  # nats; the fit ends with a step below


class Battle(NamedTuple):
    """One comparison: ``score`` is a's share of the win (1, .5 for a tie, 0, or a chance between)."""

    a: str
    b: str
    score: float
    weight: float = 1.0
    unit: Hashable = None  # what is resampled as a whole, such as a prompt; None: the battle itself


@dataclass(frozen=True)
class Battles:
    """N battles among P models as columns; ``unit`` numbers what a bootstrap draws as a whole, from 0."""

    models: tuple[str, ...]
    a: Ints
    b: Ints
    score: Floats
    weight: Floats
    unit: Ints

    @classmethod
    def of(cls, rows: Iterable[Battle]) -> Battles:
        """Columns of rows; the models stand in the order they first appear.

        Raises:
            ValueError: there are none, a model meets itself, a score is outside 0..1 or a weight below 0.
        """
        models: dict[str, int] = {}
        units: dict[Hashable, int] = {}
        sides, numbers, unit = [], [], []
        for i, row in enumerate(rows):
            sides.append([models.setdefault(m, len(models)) for m in (row.a, row.b)])
            numbers.append((row.score, row.weight))
            unit.append(units.setdefault(("battle", i) if row.unit is None else ("unit", row.unit), len(units)))
        if not sides:
            raise ValueError("there are no battles")
        a, b = np.asarray(sides, dtype=np.intp).T
        score, weight = np.asarray(numbers, dtype=np.float64).T
        if (a == b).any():
            raise ValueError(f"{list(models)[a[a == b][0]]!r} meets itself")
        if not ((score >= 0) & (score <= 1) & (weight >= 0) & np.isfinite(weight)).all():
            raise ValueError("a score is within 0..1 and a weight at least 0")
        return cls(tuple(models), a, b, score, weight, np.asarray(unit, dtype=np.intp))

    def wins(self) -> Floats:
        """How often each model (row) beat each other one (column), ties as halves: shape (P, P)."""
        return np.asarray(next(self.resampled(np.ones((1, self.units))))[0], dtype=np.float64)

    @property
    def units(self) -> int:
        """How many units a bootstrap draws from."""
        return int(self.unit.max()) + 1

    def resampled(self, counts: Floats | Iterable[Floats]) -> Iterator[Floats]:
        """The wins when unit u is taken ``counts[r, u]`` times: blocks of shape (rounds in the block, P, P)."""
        p = len(self.models)
        cells = np.concatenate([self.a * p + self.b, self.b * p + self.a])
        won = np.concatenate([self.weight * self.score, self.weight * (1 - self.score)])
        table = csr_array((won, (np.tile(self.unit, 2), cells)), shape=(self.units, p * p))
        for block in [counts] if isinstance(counts, np.ndarray) else counts:
            yield np.asarray(table.T @ block.T).T.reshape(-1, p, p)


def _reach(beaten: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Who is reached from whom along wins (itself included), by repeated squaring: shape (R, P, P)."""
    p = beaten.shape[-1]
    reach: npt.NDArray[np.bool_] = beaten | np.eye(p, dtype=bool)
    for _ in range(max(p - 1, 1).bit_length()):
        reach = np.matmul(reach.astype(np.float32), reach.astype(np.float32)) > 0
    return reach


def _newton(wins: Floats, same: npt.NDArray[np.bool_], ridge: float) -> Floats:
    """The maximum within each set of models that is connected both ways; every set is centred at 0."""
    games = wins + wins.swapaxes(-1, -2)
    size = wins.shape[-1]
    s = np.zeros((len(wins), size))
    gauge = same / same.sum(-1, keepdims=True) if not ridge else ridge * np.eye(size)
    for _ in range(STEPS):
        p = expit(s[..., :, None] - s[..., None, :])
        slope = (games * p - wins).sum(-1) + ridge * s
        curve = games * p * (1 - p)
        hessian = -curve + gauge
        hessian[:, range(size), range(size)] += curve.sum(-1)
        step = np.linalg.solve(hessian, slope[..., None])[..., 0]
        longest = np.abs(step).max(-1, keepdims=True, initial=0.0)
        s -= step * np.minimum(1, STEP / np.maximum(longest, STEP))
        if longest.max(initial=0.0) < CLOSE:
            return s
    raise ValueError("the Bradley-Terry fit does not converge: are the weights of very different size?")


def strengths(wins: npt.ArrayLike, *, anchor: int | None = None, ridge: float = 0.0) -> Floats:
    """The strengths under which the wins are likeliest (maximum likelihood by Newton's method), in nats.

    The maximum is finite just for models that are connected by wins both ways (Ford 1957). Relative to those
    connected with the anchor, the others get what their likelihood tends to: +inf (nobody below ever beat them),
    −inf (they never beat anybody above), or NaN where no chain of battles compares them.

    Args:
        wins: ``wins[..., i, j]`` is how often i beat j, a tie half for each, weights welcome: shape (..., P, P).
            ``Battles.wins()`` makes it. Leading dimensions are fits of their own (bootstrap rounds).
        anchor: the model whose strength is 0. None: the mean of the largest connected set is 0.
        ridge: weight of half the squared strengths in the loss; above 0 everything is finite. Off by default.

    Returns:
        Shape (..., P). ``sigmoid(s[i] − s[j])`` is the chance that i beats j.

    Raises:
        ValueError: a win is negative or not finite, or the matrix is not square.
    """
    w: Floats = np.array(wins, dtype=np.float64)
    if w.ndim < 2 or w.shape[-1] != w.shape[-2] or not (np.isfinite(w) & (w >= 0)).all():
        raise ValueError("wins must be square matrices of finite numbers, none below 0")
    shape, p = w.shape[:-1], w.shape[-1]
    w = w.reshape(-1, p, p)
    w[:, range(p), range(p)] = 0
    if ridge > 0:
        s = _newton(w, np.ones_like(w, dtype=bool), ridge)
        zero = s.mean(-1, keepdims=True) if anchor is None else s[:, [anchor]]
        return (s - zero).reshape(shape)
    above = _reach(w > 0)
    same = above & above.swapaxes(-1, -2)
    s = _newton(np.where(same, w, 0), same, 0.0)
    # what a round's models are compared with: the anchor, or a member of the largest set
    pivot = same.sum(-1).argmax(-1) if anchor is None else np.full(len(w), anchor)
    rounds = np.arange(len(w))
    if anchor is not None:
        s = s - s[rounds, pivot][:, None]
    beats, loses = above[rounds, :, pivot], above[rounds, pivot, :]
    s = np.where(beats & loses, s, np.where(beats, np.inf, np.where(loses, -np.inf, np.nan)))
    return s.reshape(shape)


def resamples(units: int, rounds: int, seed: int) -> Iterator[Floats]:
    """How often each unit is drawn in each round, in blocks of shape (rounds in the block, units).

    The draws are those of ``DataFrame.sample(frac=1, replace=True)`` after ``np.random.seed(seed)``, whose stream
    NumPy keeps for ever: published intervals made so come out to the digit.
    """
    rng = np.random.RandomState(seed)
    block = max(1, CELLS // max(units, 1))
    for start in range(0, rounds, block):
        size = min(block, rounds - start)
        drawn = [np.bincount(rng.randint(0, units, units), minlength=units) for _ in range(size)]
        yield np.asarray(drawn, dtype=np.float64)


def bootstrap(
    battles: Battles, *, anchor: int | None = None, ridge: float = 0.0, rounds: int = ROUNDS, seed: int = 0
) -> Floats:
    """Strengths of resampled battles, drawn by ``battles.unit`` with replacement: shape (rounds, P)."""
    drawn = battles.resampled(resamples(battles.units, rounds, seed))
    return np.concatenate([strengths(w, anchor=anchor, ridge=ridge) for w in drawn])


def interval(value: float, draws: Floats, level: float = 0.95) -> Estimate:
    """The percentile interval of resampled values that may be infinite; rounds that gave no value do not count."""
    known = draws[~np.isnan(draws)]
    if not known.size:
        return Estimate(value, float("nan"), float("nan"))
    ends = (1 - level) / 2, (1 + level) / 2
    if np.isfinite(known).all():
        low, high = np.quantile(known, ends)
    else:  # between a number and infinity nothing can be interpolated
        low, high = np.quantile(known, ends[0], method="lower"), np.quantile(known, ends[1], method="higher")
    return Estimate(value, float(low), float(high))


def elo(strength: npt.ArrayLike) -> Floats:
    """Strengths in nats on the Elo scale, 0 at 1000."""
    return np.asarray(CENTRE + SCALE * np.asarray(strength, dtype=np.float64), dtype=np.float64)


def chances(strength: npt.ArrayLike) -> Floats:
    """The chance that each model (row) beats each other one (column), from strengths (P,): shape (P, P).

    .5 on the diagonal; NaN between two models that are infinite in one direction, or where one is unknown.
    """
    s = np.asarray(strength, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        table = expit(s[:, None] - s[None, :])
    np.fill_diagonal(table, 0.5)
    return np.asarray(table, dtype=np.float64)


@dataclass(frozen=True)
class Standing:
    """One model among others: its Elo and its chance (percent) to beat the anchor, each with its interval."""

    model: str
    elo: Estimate
    win_rate: Estimate | None  # None without an anchor


def ranking(
    battles: Battles, *, anchor: str | None = None, ridge: float = 0.0, rounds: int = ROUNDS, seed: int = 0
) -> list[Standing]:
    """Every model's standing, the strongest first, with percentile intervals over resampled units.

    Args:
        battles: who met whom and who won.
        anchor: the model that stands at 1000; None sets the mean there.
        ridge: as for ``strengths``.
        rounds, seed: of the bootstrap.

    Raises:
        ValueError: the anchor fought no battle.
    """
    if anchor is not None and anchor not in battles.models:
        raise ValueError(f"{anchor!r} fought no battle")
    at = None if anchor is None else battles.models.index(anchor)
    s = strengths(battles.wins(), anchor=at, ridge=ridge)
    draws = bootstrap(battles, anchor=at, ridge=ridge, rounds=rounds, seed=seed)
    made = []
    for i, model in enumerate(battles.models):
        e = interval(float(s[i]), draws[:, i])
        points, rates = ([float(x) for x in f([e.value, e.low, e.high])] for f in (elo, expit))
        rate = None if at is None else Estimate(*(100 * x for x in rates))
        made.append(Standing(model, Estimate(*points), rate))
    return sorted(made, key=lambda m: (np.isnan(m.elo.value), -m.elo.value))


def separability(intervals: Iterable[Estimate]) -> tuple[int, int]:
    """(pairs of models whose intervals do not overlap, all pairs): Arena-Hard's measure (arXiv 2406.11939).

    Intervals that share an end point overlap; an unknown one overlaps everything.
    """
    known = list(intervals)
    apart = sum(
        x.low > y.high or y.low > x.high for i, x in enumerate(known) for y in known[i + 1 :]
    )  # comparisons with NaN are false
    return apart, len(known) * (len(known) - 1) // 2


def online_elo(rows: Iterable[Battle], *, k: float = 4.0, start: Mapping[str, float] | None = None) -> dict[str, float]:
    """Ratings updated battle by battle in the order given: r_a += k·(score − expected) (Elo 1978).

    The order matters and the last battles weigh most; ``strengths`` has neither fault. ``weight`` multiplies k.
    """
    rating = dict(start or {})
    for a, b, score, weight, _ in rows:
        ra, rb = rating.get(a, CENTRE), rating.get(b, CENTRE)
        gain = k * weight * (score - float(expit((ra - rb) / SCALE)))
        rating[a], rating[b] = ra + gain, rb - gain
    return rating
