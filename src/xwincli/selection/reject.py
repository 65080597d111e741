"""Which response is rejected beside a chosen one: a rule of preference, and bounds on the pair."""

from __future__ import annotations

import random
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xwincli.errors import USAGE, XwinError
from xwincli.selection.pool import Ranked
from xwincli.settings import flag

Rule = Callable[[Sequence[Ranked], random.Random], list[Ranked]]


@dataclass(kw_only=True)
class Rejecting:
    """Which response is rejected beside a chosen one."""

    rejected: str = flag(
        "mu-2sigma", "for --emit pairs: rank:R, quantile:Q (0 is the worst), mu-2sigma, worst or random"
    )
    margin: bool = flag(False, "write the scores' difference as margin, which trainers feed into the loss")
    min_margin: float = flag(0.0, "for --emit pairs: scores that differ by less make no pair", low=0)
    max_margin: float | None = flag(None, "for --emit pairs: nor those that differ by more")
    length_match: float | None = flag(
        None, "for --emit pairs: the longer of a pair has at most so many times the other's tokens", low=1
    )

    def __post_init__(self) -> None:
        rejection(self.rejected)
        if self.max_margin is not None and self.max_margin < self.min_margin:
            message = f"--max-margin {self.max_margin:g} is below --min-margin {self.min_margin:g}"
            raise XwinError(message, "no pair has both", USAGE)

    def faults(self, chosen: Ranked, rejected: Ranked) -> str | None:
        """Why two responses make no pair; None if they do."""
        difference = chosen.score - rejected.score
        if difference <= 0:
            return "with chosen and rejected tied"
        if difference < self.min_margin:
            return "with every margin below --min-margin"
        if self.max_margin is not None and difference > self.max_margin:
            return "with every margin above --max-margin"
        short, long = sorted((chosen.length, rejected.length))
        if self.length_match is not None and long > self.length_match * short:
            return "without a rejected response of like length"
        return None


def rejection(rule: str) -> Rule:
    """A rule for the rejected response, as a function that orders a pool by how well each one fits it.

    ``mu-2sigma`` prefers the score nearest to mean − 2 standard deviations of the prompt's scores
    (arXiv 2502.16825); any other multiple may be named.

    Raises:
        XwinError: the rule is none of those that ``--rejected`` names.
    """
    if rule == "worst":
        return lambda ranked, _: list(reversed(ranked))
    if rule == "random":
        return lambda ranked, rng: rng.sample(list(ranked), len(ranked))
    if m := re.fullmatch(r"rank:([1-9]\d*)", rule):
        first = int(m[1])
        return lambda ranked, _: list(ranked[first - 1 :])
    if (m := re.fullmatch(r"quantile:(\d*\.?\d+)", rule)) and (q := float(m[1])) <= 1:
        return lambda all, _: sorted(all, key=lambda r: abs(len(all) - r.rank - q * (len(all) - 1)))
    if m := re.fullmatch(r"mu-(\d*\.?\d+)sigma", rule):
        k = float(m[1])

        def nearest(ranked: Sequence[Ranked], _: random.Random) -> list[Ranked]:
            scores = [r.score for r in ranked]
            aim = statistics.fmean(scores) - k * statistics.pstdev(scores)
            return sorted(ranked, key=lambda r: (abs(r.score - aim), -r.rank))

        return nearest
    rules = "use rank:R (from 2), quantile:Q (0 to 1), mu-2sigma, worst or random"
    raise XwinError(f"--rejected is {rule!r}", rules, USAGE)


def pairs(
    ranked: list[Ranked], chosen: list[Ranked], options: Rejecting, rng: random.Random
) -> list[tuple[Ranked, Ranked]] | str:
    """Each chosen with its own rejected: the one the rule likes best of those that make a pair with it.

    Args:
        ranked: the prompt's pool, best first.
        chosen: of these, best first.
        options: see ``Rejecting``.
        rng: the prompt's own.

    Returns:
        The pairs, or why there are none: what the rule's favourite lacked.
    """
    rest = [r for r in rejection(options.rejected)(ranked, rng) if r not in chosen]
    if not rest:
        return "with too few different responses"
    made: list[tuple[Ranked, Ranked]] = []
    for c in chosen:
        fit = next((r for r in rest if options.faults(c, r) is None), None)
        if fit is not None:
            made.append((c, fit))
            rest.remove(fit)
    return made or options.faults(chosen[0], rest[0]) or "with too few different responses"
