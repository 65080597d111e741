"""MT-Bench's rules: how replies of its judge are read, which question is asked how, and what one judgement is.

Everything called compatible does what FastChat's code does (lm-sys/FastChat, ``llm_judge``: ``common.py``,
``gen_model_answer.py``, ``show_result.py``; Zheng et al. 2023, arXiv 2306.05685).
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Any

LOW, HIGH = 1, 10  # the scale the judge is told
TEMPERATURES = {
    "writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0, "stem": 0.1,
    "humanities": 0.1, "arena-hard-200": 0.0,
}  # fmt: skip
OTHERWISE = 0.7  # the temperature of any other category
GUIDED = frozenset({"math", "reasoning", "coding", "arena-hard-200"})  # judged beside a reference answer
STANDARD = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
FIRST, EACH = 81, 10  # ids of the 80 questions: ten of each category from 81 on
LABELS = {"[[A]]": "A", "[[B]]": "B", "[[C]]": "tie"}  # in the order FastChat looks for them
TIE = 0.1  # two scores of one reply this near are a tie

_ONE = re.compile(r"\[\[(\d+\.?\d*)\]\]")
_ONE_SINGLE = re.compile(r"\[(\d+\.?\d*)\]")
_STRICT = re.compile(r"\[\[((?:0|[1-9]\d*)(?:\.\d+)?)\]\]", re.ASCII)
_TWO = re.compile(r"\[\[(\d+\.?\d*),\s?(\d+\.?\d*)\]\]")
_TWO_SINGLE = re.compile(r"\[(\d+\.?\d*),\s?(\d+\.?\d*)\]")


# -- what a reply says


def _literal(text: str) -> float | None:
    """A number as Python writes it; FastChat crashes on ``07`` and on digits that are not ASCII: None."""
    try:
        return float(ast.literal_eval(text))
    except (SyntaxError, ValueError):
        return None


def rating_compatible(text: str | None) -> float | None:
    """The rating FastChat reads: the first ``[[n]]``, else the first ``[n]``, whatever its size; None for its −1.

    So code that holds ``[100]`` is a rating of 100 where the judge forgot its verdict.
    """
    found = _ONE.search(text or "") or _ONE_SINGLE.search(text or "")
    return _literal(found[1]) if found else None


def rating_written(text: str | None) -> float | None:
    """The one ``[[n]]`` of a reply, of any size; None if there is none, or several that differ."""
    found = {float(n[:20]) for n in _STRICT.findall(text or "")}
    return found.pop() if len(found) == 1 else None


def rating_strict(text: str | None) -> float | None:
    """The one ``[[n]]`` of a reply with n from 1 to 10; None for anything else: no guess becomes a score."""
    rating = rating_written(text)
    return rating if rating is not None and LOW <= rating <= HIGH else None


def winner(text: str | None) -> str:
    """FastChat's verdict on two answers, ``A``, ``B``, ``tie`` or ``error``: the first of its labels that occurs."""
    found = (said for label, said in LABELS.items() if label in (text or ""))
    return next(found, "error")


def winner_strict(text: str | None) -> str:
    """The same, but a reply with two different labels is an ``error``."""
    return winner(text) if sum(label in (text or "") for label in LABELS) == 1 else "error"


def winner_of_scores(text: str | None) -> str:
    """FastChat's verdict from two scores in one reply, ``[[8,9]]``: ``A``, ``B``, ``tie`` (within .1) or ``error``."""
    found = _TWO.search(text or "") or _TWO_SINGLE.search(text or "")
    scores = [_literal(n) for n in found.groups()] if found else [None]
    if None in scores:
        return "error"
    a, b = (n for n in scores if n is not None)
    return "tie" if abs(a - b) <= TIE else "A" if a > b else "B"


def review_scores(text: str | None) -> tuple[float, float] | None:
    """The two scores on the first line of a Vicuna review, ``8 9`` or ``8,9``; None if there are not just two."""
    words = (text or "").split("\n")[0].replace(",", " ").split(" ")
    try:
        a, b = map(float, words)
    except ValueError:
        return None
    return a, b


# -- which question is asked how


def category(question_id: Any) -> str | None:
    """The category of one of the 80 questions by its id (81 to 160); None for any other."""
    if not isinstance(question_id, int) or not FIRST <= question_id < FIRST + EACH * len(STANDARD):
        return None
    return STANDARD[(question_id - FIRST) // EACH]


def temperature(question: dict[str, Any]) -> float:
    """At which temperature a question is answered: its own, else its category's."""
    own = question.get("required_temperature")
    return float(own) if own is not None else TEMPERATURES.get(question.get("category") or "", OTHERWISE)


def prompt_name(pair: bool, guided: bool, turn: int) -> str:
    """FastChat's name of the judge's prompt, as its judgement files note it; turns count from 1."""
    kind = f"{'pair' if pair else 'single'}-{'math-v1' if guided else 'v2' if pair else 'v1'}"
    return kind + ("-multi-turn" if turn > 1 else "")


# -- what one judgement is


@dataclass(frozen=True)
class Rated:
    """One single-answer judgement: FastChat's score (None: unparsed) and the strict one (None: no score)."""

    model: str
    question_id: Any
    category: str | None
    turn: int
    compatible: float | None
    strict: float | None


@dataclass(frozen=True)
class Compared:
    """One pair judgement; ``first`` and ``second`` are the games' winners: model_1, model_2, tie or error."""

    model_1: str
    model_2: str
    question_id: Any
    category: str | None
    turn: int
    first: str
    second: str

    def result(self) -> str:
        """The winner both games agree on, else ``tie``; ``error`` if a game has no verdict."""
        if "error" in (self.first, self.second):
            return "error"
        return self.first if self.first == self.second else "tie"
