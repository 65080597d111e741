"""Which of a prompt's responses are chosen."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from xwincli.errors import USAGE, XwinError
from xwincli.selection.pool import Ranked, distinct
from xwincli.settings import flag

SINGLE = ("best", "rank", "random", "pairs")  # one a prompt unless --top says more


@dataclass(kw_only=True)
class Choosing:
    """Which responses of a prompt are chosen."""

    emit: str = flag(
        "best",
        "conversations with the best, the one of rank R, random ones, the best P percent or all above a threshold; "
        "or pairs",
        choices=("best", "rank", "random", "percent", "threshold", "pairs"),
    )
    top: int = flag(0, "rows per prompt at most; 0 is one, with percent and threshold no limit", low=0)
    rank: int = flag(1, "for --emit rank: 1 is the best", low=1)
    percent: float = flag(
        25.0, "for --emit percent: so much of a prompt's responses, one at least", low=0.0, high=100.0
    )
    min_score: float | None = flag(None, "never choose a response that scores below this")
    keep_cut: bool = flag(False, "let responses that the length limit cut off be chosen, not only rejected")
    max_similarity: float = flag(
        1.0,
        "of one prompt choose none that shares more of its word trigrams with a better one (Jaccard)",
        low=0,
        high=1,
    )

    def __post_init__(self) -> None:
        if self.emit == "threshold" and self.min_score is None:
            raise XwinError("--emit threshold needs --min-score", "", USAGE)

    @property
    def most(self) -> int:
        """How many a prompt gives at most."""
        return self.top or (1 if self.emit in SINGLE else 1 << 60)


def choose(ranked: list[Ranked], options: Choosing, rng: random.Random) -> list[Ranked] | str:
    """The chosen of one prompt's pool, best first, or why there are none.

    Args:
        ranked: the pool, best first.
        options: see ``Choosing``.
        rng: the prompt's own; only ``random`` draws from it.
    """
    may = [r for r in ranked if options.keep_cut or not r.cut]
    good = [r for r in may if options.min_score is None or r.score >= options.min_score]
    if not may:
        return "with every response cut off" if ranked else "without a usable response"
    if not good:
        return "with every response below --min-score"
    most = options.most
    if options.emit == "random":
        taken = distinct(rng.sample(may, len(may)), min(most, len(good)), options.max_similarity)
        return sorted(taken, key=lambda r: r.rank)
    if options.emit == "percent":
        good = good[: max(math.ceil(len(may) * options.percent / 100), 1)]
    if options.emit == "rank":
        good = good[options.rank - 1 :]
    return distinct(good, most, options.max_similarity) or f"with fewer than {options.rank} responses"
