"""Can this reward model be trusted? Its agreement with a judge beside a ruler's, its calibration, its taste for length.

The ruler prefers the longer answer (in characters); a reward model that does not beat it has learned length alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from xwincli.errors import XwinError
from xwincli.metrics import calibration
from xwincli.metrics.bootstrap import ROUNDS, Estimate, percentile, plain, resamples

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
Column = tuple[Ints, Floats]  # whose (which prompt's), and the values to average

QUANTILES = 5  # bins of the judge's margin
STRETCHES = 8  # bins of the responses' length
CUTS = (0.1, 1 / 3)  # of |chosen − rejected| / the longer of the two, in characters: equal, longer, much longer
NAMES = ("much shorter", "shorter", "about equal", "longer", "much longer")


class Compared(Protocol):
    """One prompt's responses and who was preferred, as ``train.comparisons.Comparisons`` keeps them."""

    @property
    def prompt_id(self) -> str: ...  # noqa: D102
    @property
    def sides(self) -> Sequence[tuple[str, bool]]: ...  # noqa: D102
    @property
    def games(self) -> Sequence[tuple[int, int, float, float]]: ...  # noqa: D102
    @property
    def leads(self) -> Sequence[float | None]: ...  # noqa: D102
    @property
    def marks(self) -> Mapping[int, float]: ...  # noqa: D102


@dataclass(frozen=True)
class Table:
    """Everything as columns: R responses, N pairs of two of them, each with its prompt's number.

    ``item`` (R,) numbers the contexts the responses answer, ``prompt`` (R,) their prompt ids (the unit of the
    bootstrap); ``mark`` (R,) and ``margin`` (N,) are the judge's, NaN where unknown. In every pair ``chance`` (N,)
    is at least .5: what the judge prefers is ``chosen``.
    """

    item: Ints
    prompt: Ints
    reward: Floats
    characters: Floats
    tokens: Floats
    mark: Floats
    chosen: Ints
    rejected: Ints
    chance: Floats
    margin: Floats

    def lead(self, column: Floats) -> Floats:
        """Of a column of responses, chosen minus rejected (N,)."""
        return column[self.chosen] - column[self.rejected]


def _table(
    items: Sequence[Compared], rewards: Sequence[Sequence[float]], tokens: Sequence[Sequence[int]]
) -> tuple[Table, int]:
    """The columns, and how many prompts there are."""
    numbers: dict[str, int] = {}
    rows: list[tuple[float, ...]] = []
    pairs: list[tuple[float, ...]] = []
    for i, (item, scores, sizes) in enumerate(zip(items, rewards, tokens, strict=True)):
        prompt, start = numbers.setdefault(item.prompt_id, len(numbers)), len(rows)
        for k, ((text, _), score, size) in enumerate(zip(item.sides, scores, sizes, strict=True)):
            rows.append((i, prompt, score, len(text), size, item.marks.get(k, np.nan)))
        for (one, two, chance, _), lead in zip(item.games, item.leads, strict=True):
            lead = np.nan if lead is None else lead
            ordered = (one, two, chance, lead) if chance >= 0.5 else (two, one, 1 - chance, -lead)
            pairs.append((start + ordered[0], start + ordered[1], *ordered[2:]))
    a, b = np.array(rows, dtype=np.float64).T, np.array(pairs, dtype=np.float64).T
    if not np.isfinite(a[2]).all():
        raise XwinError("a reward is not a finite number", "train again with a lower --lr, or in --dtype float32")
    ends = b[:2].astype(np.intp)
    return Table(a[0].astype(np.intp), a[1].astype(np.intp), *a[2:], *ends, *b[2:]), len(numbers)


# -- means with intervals over prompts


def shares(columns: Sequence[Column], prompts: int, *, rounds: int = ROUNDS, seed: int = 0) -> list[Estimate]:
    """The mean of each column with its percentile interval; whole prompts are drawn, for all columns alike.

    A prompt with many values weighs as much as they are (a ratio of sums), so the mean is the plain one. Draws
    that hold no value of a column are left out of its interval; fewer than two prompts give none.

    Args:
        columns: K of (prompt (N,), values (N,)), each of its own length; prompts are numbered from 0.
        prompts: how many there are.
        rounds, seed: of the bootstrap.
    """
    sums = np.stack([np.bincount(who, values, prompts) for who, values in columns], axis=1)
    counts = np.stack([np.bincount(who, minlength=prompts) for who, _ in columns], axis=1).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = sums.sum(0) / counts.sum(0)
        drawn = np.concatenate([(c @ sums) / (c @ counts) for c in resamples(prompts, rounds, seed)])
    found = []
    for k, value in enumerate(values.tolist()):
        known = drawn[np.isfinite(drawn[:, k]), k]
        several = int((counts[:, k] > 0).sum()) > 1
        found.append(percentile(value, known) if several else Estimate(value, float("nan"), float("nan")))
    return found


def _figure(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None


# -- correlations


def correlation(x: Floats, y: Floats, group: Ints | None = None) -> dict[str, Any]:
    """Pearson's and Spearman's correlation of two columns (N,), or None for both and ``why``.

    With ``group`` (N,) both are taken within groups: each group's mean is subtracted first (ranks are those of
    the centred values), and a group's only member does not count.
    """
    if group is not None:
        several = np.bincount(group)[group] > 1
        x, y, group = x[several], y[several], group[several]
        x, y = (v - (np.bincount(group, v) / np.maximum(np.bincount(group), 1))[group] for v in (x, y))
        x, y = x.round(9), y.round(9)  # centring must not part what was tied
    free = len(x) - (1 if group is None else len(np.unique(group)))
    why = "fewer than three responses" if group is None else "no two prompts with several responses"
    if free >= 2:
        why = "" if np.ptp(x) > 0 and np.ptp(y) > 0 else "one of the two never differs"
    if why:
        return {"pearson": None, "spearman": None, "why": why}
    ranks = rankdata(x), rankdata(y)
    return {"pearson": _figure(np.corrcoef(x, y)[0, 1]), "spearman": _figure(np.corrcoef(*ranks)[0, 1])}


def _correlations(t: Table) -> dict[str, Any]:
    lengths = {
        unit: {"overall": correlation(t.reward, column), "within": correlation(t.reward, column, t.item)}
        for unit, column in (("characters", t.characters), ("tokens", t.tokens))
    }
    rated = np.isfinite(t.mark)
    return {"length": lengths, "rating": correlation(t.reward[rated], t.mark[rated], t.item[rated])}


# -- bins


def quantile_places(values: Floats, count: int) -> Ints:
    """The bin (N,) of each value (N,) among ``count`` of about equally many; equal values are never parted."""
    if not len(values):
        return np.zeros(0, dtype=np.intp)
    edges = np.unique(np.quantile(values, np.linspace(0, 1, count + 1)[1:-1]))
    edges = edges[edges > values.min()]
    return np.searchsorted(edges, values, side="right").astype(np.intp)


def length_places(chosen: Floats, rejected: Floats) -> Ints:
    """Place in ``NAMES`` (N,) of each pair by how much longer, in characters, the chosen response is."""
    share = (chosen - rejected) / np.maximum(np.maximum(chosen, rejected), 1)
    return 2 + np.sign(share).astype(np.intp) * np.digitize(np.abs(share), CUTS)


@dataclass(frozen=True)
class Binned:
    """Columns of equal length (N,) and the bin (N,) of each row; ``words`` names a bin, else its ``span`` does."""

    place: Ints
    columns: Mapping[str, Column]
    words: Sequence[str] = ()
    span: Floats | None = None

    def parts(self) -> dict[tuple[int, str], Column]:
        """Each column of each bin that has rows."""
        found: dict[tuple[int, str], Column] = {}
        for i in np.unique(self.place).tolist():
            here = self.place == i
            found |= {(i, name): (who[here], values[here]) for name, (who, values) in self.columns.items()}
        return found

    def rows(self, means: Mapping[tuple[int, str], Estimate]) -> list[dict[str, Any]]:
        """The bins from low to high, each with its count and the columns' means."""
        found: list[dict[str, Any]] = []
        for i in np.unique(self.place).tolist():
            row: dict[str, Any] = {"name": self.words[i]} if self.words else {}
            if self.span is not None:
                inside = self.span[self.place == i]
                row |= {"from": _figure(inside.min()), "to": _figure(inside.max())}
            row["n"] = int((self.place == i).sum())
            found.append(row | {name: plain(means[i, name]) for name in self.columns})
        return found


def _binned(t: Table, right: Column, ruler: Column, decided: Ints, folded: tuple[Floats, Floats]) -> dict[str, Binned]:
    """What is averaged bin by bin. ``right`` and ``ruler`` hold the decided pairs, ``folded`` all."""
    who = t.prompt[t.chosen]
    margin = t.margin[decided]
    known = np.isfinite(margin)
    rated = {name: (c[0][known], c[1][known]) for name, c in (("accuracy", right), ("ruler", ruler))}
    lengths = t.characters[t.chosen][decided], t.characters[t.rejected][decided]
    confidence, agrees = folded
    taste = {"reward": (t.prompt, t.reward), "characters": (t.prompt, t.characters)}
    return {
        "by_length": Binned(length_places(*lengths), {"accuracy": right, "ruler": ruler}, NAMES),
        "by_margin": Binned(quantile_places(margin[known], QUANTILES), rated, span=margin[known]),
        "reliability": Binned(
            calibration.places(confidence), {"confidence": (who, confidence), "agreement": (who, agrees)}
        ),
        "reward_by_length": Binned(quantile_places(t.characters, STRETCHES), taste, span=t.characters),
    }


# -- the audit


def audit(
    items: Sequence[Compared],
    rewards: Sequence[Sequence[float]],
    tokens: Sequence[Sequence[int]],
    *,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> dict[str, Any]:
    """All figures as plain JSON: a number that cannot be known is None, with the reason as ``why`` beside it.

    In accuracies a pair of equal rewards (for the ruler: of equal lengths) counts half, and pairs the judge calls
    equal are left out; calibration keeps those, at their chance of one half. Every ``{value, low, high}`` is a mean
    over pairs (or responses) with a 95 % bootstrap interval over prompts, unknown for fewer than two.

    Args:
        items: the comparisons by prompt.
        rewards: each item's responses' rewards, in the order of its sides.
        tokens: their lengths in tokens.
        rounds, seed: of the bootstrap.

    Raises:
        XwinError: there is no pair, or a reward is not finite.
    """
    if not any(item.games for item in items):
        raise XwinError("there is no pair to audit a reward model on", "every row is a tie, or was left out")
    t, prompts = _table(items, rewards, tokens)
    decided, who = np.flatnonzero(t.chance > 0.5), t.prompt[t.chosen]
    right, longer, more = (
        (who[decided], np.heaviside(t.lead(c), 0.5)[decided]) for c in (t.reward, t.characters, t.tokens)
    )
    lead = t.lead(t.reward)
    binned = _binned(t, right, longer, decided, calibration.folded(lead, t.chance))
    columns: dict[Any, Column] = {
        "accuracy": right,
        "ruler": longer,
        "ruler_tokens": more,
        "lead": (right[0], right[1] - longer[1]),
        "overconfidence": (who, calibration.pulls(lead, t.chance)),
    }
    for name, part in binned.items():
        columns |= {(name, *key): column for key, column in part.parts().items()}
    means = dict(zip(columns, shares(list(columns.values()), prompts, rounds=rounds, seed=seed), strict=True))
    bins = {name: part.rows({key: means[(name, *key)] for key in part.parts()}) for name, part in binned.items()}
    return {
        "pairs": len(decided),
        "ties": len(lead) - len(decided),
        "prompts": prompts,
        "responses": len(t.reward),
        **{name: plain(means[name]) for name in ("accuracy", "ruler", "ruler_tokens", "lead")},
        **{name: bins[name] for name in ("by_length", "by_margin", "reward_by_length")},
        "calibration": _calibration(lead, t.chance, means["overconfidence"], bins["reliability"]),
        **_correlations(t),
        "rounds": rounds,
        "seed": seed,
    }


def _calibration(lead: Floats, chance: Floats, over: Estimate, bins: list[dict[str, Any]]) -> dict[str, Any]:
    """Scores of the predicted chances, the reliability table, and what would mend them."""
    best, why = calibration.temperature(lead, chance)
    side = over.excludes(0.0)
    return {
        "expected_error": _figure(calibration.expected_error(lead, chance)),
        "brier": _figure(calibration.brier(lead, chance)),
        "log_loss": _figure(calibration.log_loss(lead, chance)),
        "temperature": None if best is None else _figure(best),
        **({"why": why} if why else {}),
        "overconfidence": plain(over),
        "verdict": {1: "overconfident", -1: "underconfident", 0: "fits"}[side] if np.isfinite(over.low) else "unknown",
        "bins": bins,
    }
