"""What of a prompt's responses may be chosen, best first, and how alike two of them are."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from xwincli.records import Group, Response

NGRAM = 3  # words in the n-grams by which responses are compared


@dataclass(frozen=True)
class Ranked:
    """A response of a prompt's pool, its score, and its rank there (1 is the best)."""

    response: Response
    score: float
    rank: int

    @property
    def cut(self) -> bool:
        """Cut off by the length limit: it may be rejected, and is chosen only on request."""
        return self.response.finish == "length"

    @property
    def length(self) -> int:
        """Tokens where they are known, else characters."""
        return self.response.tokens or len(self.response.text)

    @cached_property
    def ngrams(self) -> frozenset[tuple[str, ...]]:
        """The word trigrams of the text; of a shorter one its words."""
        words = normal(self.response.text).split()
        return frozenset(tuple(words[i : i + NGRAM]) for i in range(max(len(words) - NGRAM + 1, 1)))


def normal(text: str) -> str:
    """A text as it is compared: NFKC, without case, runs of white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def mark(text: str) -> int:
    """64 bits of a normal text's hash, to remember very many."""
    return int.from_bytes(hashlib.blake2b(normal(text).encode(), digest_size=8).digest(), "big")


def similarity(a: Ranked, b: Ranked) -> float:
    """Shared word trigrams over all of both (Jaccard): 0 to 1."""
    return len(a.ngrams & b.ngrams) / len(a.ngrams | b.ngrams)


def pool(group: Group, score: str, dropped: Counter[str]) -> list[Ranked]:
    """A prompt's usable responses, best first; equal scores stand in the order they were drawn.

    Args:
        group: the prompt.
        score: the score's name.
        dropped: counts what is left out, by reason.
    """
    seen: set[str] = set()
    found: list[tuple[float, Response]] = []
    for r in group.responses:
        text, value = normal(r.text), r.scores.get(score, math.nan)
        if not text:
            dropped["empty"] += 1
        elif not math.isfinite(value):
            dropped["without a score"] += 1
        elif text in seen:
            dropped["duplicates"] += 1
        else:
            seen.add(text)
            found.append((value, r))
    found.sort(key=lambda f: -f[0])
    return [Ranked(r, value, i) for i, (value, r) in enumerate(found, 1)]


def distinct(ranked: Sequence[Ranked], most: int, limit: float) -> list[Ranked]:
    """The first of so many that are no more alike than ``limit``, taken greedily in order.

    Args:
        ranked: in order of preference.
        most: how many at most.
        limit: the similarity that two of them may have at most; 1 lets all pass.
    """
    if limit >= 1:
        return list(ranked[:most])
    taken: list[Ranked] = []
    for r in ranked:
        if len(taken) == most:
            break
        if all(similarity(r, other) <= limit for other in taken):
            taken.append(r)
    return taken
