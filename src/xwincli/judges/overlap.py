"""The claim judge that needs no model: does a sentence of the contexts hold the claim's words, numbers and names?

A baseline, not a judge of truth: it knows no synonym, no arithmetic and no grammar. "The tower was built by Mora" is
supported by "Mora was built by the tower", and a faithful paraphrase is absent. Measure what it is worth on your own
labels (``xwin eval grounding --labelled``) before believing its figures.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from xwincli.checks import split_sentences
from xwincli.errors import USAGE, XwinError
from xwincli.judges import Answer, Item, Options, Rated, Verdict
from xwincli.judges.rules import FUNCTION
from xwincli.settings import Device

SUPPORTED, ABSENT, CONTRADICTED = 1.0, 0.0, -1.0
HELD = 0.75  # share of the claim's content words a sentence holds that supports it
SHARED = 0.5  # share of its plain words (no numbers, names) a sentence holds that speaks of the same thing
_TOKEN = re.compile(r"\d+(?:[.,:]\d+)*|\w+(?:['’]\w+)?")
_CLAUSE = re.compile(r"[,;:]\s+|\s(?:and|but|while|whereas)\s")
_UNITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
NUMBERS = {word: str(i) for i, word in enumerate(_UNITS)} | {
    w: str(n) for w, n in (("twenty", 20), ("thirty", 30), ("forty", 40), ("fifty", 50), ("hundred", 100))
}
NEGATIONS = frozenset(
    "not no never none neither nor nobody nothing nowhere without cannot hardly unable fails failed".split()  # noqa: SIM905
)
_SUFFIXES = ("ingly", "edly", "ation", "ing", "ies", "ied", "es", "ed", "ly", "s")


@dataclass(frozen=True)
class Said:
    """What a piece of text says, as far as words go."""

    words: frozenset[str]
    numbers: frozenset[str]
    names: frozenset[str]
    negated: bool

    @property
    def content(self) -> frozenset[str]:
        """Words, numbers and names together."""
        return self.words | self.numbers | self.names


def _stem(word: str) -> str:
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 4:
            return word[: -len(suffix)]
    return word.removesuffix("e") if len(word) > 4 else word


def _number(token: str) -> str:
    plain = re.sub(r",(?=\d{3}\b)", "", token)
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


@lru_cache(maxsize=1 << 14)
def read(text: str) -> Said:
    """Words by stem, numbers in one spelling, names (capitals, at the start only if one follows), whether it denies."""
    words: set[str] = set()
    numbers: set[str] = set()
    names: set[str] = set()
    negated = False
    tokens = _TOKEN.findall(unicodedata.normalize("NFKC", text))
    for i, token in enumerate(tokens):
        low = token.lower().replace("’", "'")
        if low.endswith("n't") or low in NEGATIONS:
            negated = not negated
        elif token[0].isdigit():
            numbers.add(_number(token))
        elif low in NUMBERS:
            numbers.add(NUMBERS[low])
        elif low not in FUNCTION:
            stem = _stem(low.removesuffix("'s"))
            named = token[0].isupper() and (i > 0 or any(t[0].isupper() for t in tokens[1:2]))
            (names if named else words).add(stem)
    return Said(frozenset(words), frozenset(numbers), frozenset(names), negated)


def compare(claim: Said, passage: Said) -> tuple[float, float]:
    """The rating of a claim by one passage, and the share of the claim's content the passage holds."""
    held = len(claim.content & passage.content) / max(len(claim.content), 1)
    # a name that begins a sentence looks like a word there, so both are looked up among both
    there = passage.words | passage.names
    strange_names, strange_numbers = claim.names - there, claim.numbers - passage.numbers
    if held >= HELD and not strange_names and not strange_numbers:
        return (SUPPORTED if claim.negated == passage.negated else CONTRADICTED), held
    plain = claim.words
    if not plain or len(plain & there) / len(plain) < SHARED:
        return ABSENT, held
    other_names = passage.names - claim.names - claim.words
    differs = (strange_numbers and passage.numbers - claim.numbers) or (strange_names and other_names)
    return (CONTRADICTED if differs or (held >= HELD and claim.negated != passage.negated) else ABSENT), held


@lru_cache(maxsize=1 << 10)
def pieces(context: str) -> tuple[str, ...]:
    """What a claim is held against: clauses, sentences, and two sentences in a row that deny nothing."""
    said = split_sentences(context)
    clauses = [c for sentence in said for c in _CLAUSE.split(sentence) if c.strip()]
    return *clauses, *said, *(f"{a} {b}" for a, b in pairwise(said) if not (read(a).negated or read(b).negated))


def judge_claim(text: str, contexts: Sequence[str]) -> Rated:
    """Supported if any piece of the contexts supports it, else what the piece most like it says."""
    claim, best, why = read(text), (ABSENT, 0.0), ""
    for context in contexts:
        for piece in pieces(context):
            rating, held = compare(claim, read(piece))
            if (rating == SUPPORTED, rating != ABSENT, held) > (best[0] == SUPPORTED, best[0] != ABSENT, best[1]):
                best, why = (rating, held), piece
    reason = f"shares {best[1]:.0%} of its words with: {why}" if why else "shares no word with the contexts"
    return Rated(rating=best[0], reason=reason)


class Overlap:
    """Word overlap as a claim judge; it cannot compare answers."""

    name = "overlap"
    scorer = "judge overlap"

    def receipt(self) -> dict[str, float]:
        """See ``Judge``: it asks nobody."""
        return {}

    def verdicts(self, items: Sequence[Item]) -> Iterator[Verdict]:
        """Refused: overlap with contexts says nothing about which answer is better."""
        raise XwinError("the overlap judge rates claims, it cannot compare answers", "--judge rules", USAGE)

    def ratings(self, answers: Sequence[Answer]) -> Iterator[Rated]:
        """1 supported, 0 absent, −1 contradicted, for each claim against its contexts."""
        for answer in answers:
            yield judge_claim(answer.text, answer.contexts or [])


def make(options: Options, seed: int, device: Device) -> Overlap:
    """The overlap judge; refuses settings of other judges."""
    for name in ("rm", "noise", "position_bias"):
        if getattr(options, name):
            raise XwinError(f"--{name.replace('_', '-')} means nothing to the overlap judge", "leave it out", USAGE)
    return Overlap()
