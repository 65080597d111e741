"""How far labels agree: the answers to one prompt with each other, a judge's with the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


def agreement(labels: Sequence[Hashable]) -> float:
    """Sum over clusters of (n_c / k)²: the chance that two of the k answers, drawn with putting back, are alike.

    1 if all are equal, 1/k if none are (Simpson 1949's lambda); compare only figures of equal k.

    Args:
        labels: the cluster of each answer, shape (k,).

    Raises:
        ValueError: there are no labels.
    """
    if not labels:
        raise ValueError("agreement needs one answer at least")
    return sum((n / len(labels)) ** 2 for n in Counter(labels).values())


@dataclass(frozen=True)
class Scores:
    """One class of a classifier: NaN where a share has nothing below it.

    ``precision`` is the share of what was called so that is so, ``recall`` the share of what is so that was
    called so, ``f1`` their harmonic mean; ``support`` counts what is so, ``called`` what was called so.
    """

    precision: float
    recall: float
    f1: float
    support: int
    called: int


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def per_class(truth: Sequence[str], said: Sequence[str], classes: Sequence[str]) -> dict[str, Scores]:
    """Precision, recall and F1 of each class (van Rijsbergen 1979); F1 = 2·hits / (support + called).

    Args:
        truth: what each item is, shape (N,).
        said: what it was called, in the same order, shape (N,).
        classes: the labels to report on.

    Raises:
        ValueError: the two differ in length.
    """
    pairs = Counter(zip(truth, said, strict=True))
    found = {}
    for c in classes:
        hits, support, called = pairs[(c, c)], truth.count(c), said.count(c)
        f1 = _share(2 * hits, support + called)
        found[c] = Scores(_share(hits, called), _share(hits, support), f1, support, called)
    return found


def confusion(truth: Sequence[str], said: Sequence[str], classes: Sequence[str]) -> list[list[int]]:
    """How often class i was called class j, shape (classes, classes); raises as ``per_class`` does."""
    pairs = Counter(zip(truth, said, strict=True))
    return [[pairs[(i, j)] for j in classes] for i in classes]
