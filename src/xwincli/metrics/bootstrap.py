"""How sure a mean over prompts is: the percentile bootstrap, with whole prompts as the unit drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

ROUNDS = 2000
CELLS = 1 << 22  # resampling counts held at once (32 MiB)


@dataclass(frozen=True)
class Estimate:
    """A value and its interval; the bounds are NaN where one prompt or none cannot give an interval."""

    value: float
    low: float
    high: float

    def excludes(self, point: float) -> int:
        """1 if the interval lies above ``point``, -1 if below, 0 if it holds the point or is unknown."""
        return int(self.low > point) - int(self.high < point)


def plain(e: Estimate) -> dict[str, float | None]:
    """An estimate as JSON holds it: what is unknown is null."""
    return {k: v if math.isfinite(v) else None for k, v in vars(e).items()}


def resamples(prompts: int, rounds: int, seed: int) -> Iterator[Floats]:
    """How often each prompt was drawn in each round.

    Yields blocks of shape (rounds in the block, prompts); each row is a draw of ``prompts`` prompts with
    replacement and sums to ``prompts``. The rows depend on ``seed`` alone, not on the size of the blocks.
    """
    rng = np.random.default_rng(seed)
    block = max(1, CELLS // max(prompts, 1))
    for start in range(0, rounds, block):
        size = min(block, rounds - start)
        yield rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=size).astype(np.float64)


def percentile(value: float, draws: Floats, level: float = 0.95) -> Estimate:
    """The percentile interval (Efron 1979): the middle ``level`` of the resampled values, shape (rounds,)."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high))


def mean(values: npt.ArrayLike, *, rounds: int = ROUNDS, level: float = 0.95, seed: int = 0) -> Estimate:
    """The mean over prompts with its percentile interval.

    Args:
        values: one number a prompt, shape (prompts,); a prompt's own samples are averaged before.
        rounds: resamples.
        level: the interval's coverage.
        seed: of the resampling; equal seeds give equal draws for equally many prompts.

    Raises:
        ValueError: there are no values, or one is not finite.
    """
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1 or not column.size or not np.isfinite(column).all():
        raise ValueError("a bootstrap needs one finite number a prompt")
    value = float(column.mean())
    if column.size < 2:
        return Estimate(value, float("nan"), float("nan"))
    draws = [counts @ column / column.size for counts in resamples(column.size, rounds, seed)]
    return percentile(value, np.concatenate(draws), level)


def difference(
    first: npt.ArrayLike, second: npt.ArrayLike, *, rounds: int = ROUNDS, level: float = 0.95, seed: int = 0
) -> Estimate:
    """Mean of ``second`` − ``first`` over the same prompts, paired: each resample draws both together.

    Args:
        first, second: one number a prompt in the same order, shape (prompts,).
        rounds, level, seed: as for ``mean``.

    Raises:
        ValueError: the two differ in length, or ``mean`` refuses them.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"a paired difference needs the same prompts: {a.shape} against {b.shape}")
    return mean(b - a, rounds=rounds, level=level, seed=seed)
