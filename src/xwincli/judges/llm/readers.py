"""From a judge model's reply to its verdict. A judge names its reader; what cannot be read is ``Unreadable``.

Sides are as shown: A first. Readers are strict: two different labels, or a rating off the scale, are no verdict.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from xwincli.judges import Rated, Verdict
from xwincli.judges.llm.said import Said, Unreadable

Scale = tuple[float, float]
FIVE = {"A>>B": 0.0, "A>B": 0.25, "A=B": 0.5, "B>A": 0.75, "B>>A": 1.0}
FLIPPED = {"A<<B": "B>>A", "A<B": "B>A", "B<A": "A>B", "B<<A": "A>>B", "B=A": "A=B"}
SUPPORT = {"supported": 1.0, "absent": 0.0, "contradicted": -1.0}


@dataclass(frozen=True)
class Settings:
    """What a judge's folder tells its reader: the rating scale, and a rubric's weights by criterion."""

    scale: Scale = (1, 10)
    weights: dict[str, float] | None = None


@dataclass(frozen=True)
class Reader:
    """One way to read replies.

    Attributes:
        read: (reply, settings) -> a Verdict (of two answers) or Rated (of one).
        compares: True for two answers.
        schema: settings -> the JSON schema a server may hold the reply to; None for free text.
        top: log-probabilities wanted of so many first tokens.
    """

    read: Callable[[Said, Settings], Verdict | Rated]
    compares: bool
    schema: Callable[[Settings], dict[str, Any]] | None = None
    top: int = 0


# -- JSON


def _object(text: str, wanted: Sequence[str]) -> dict[str, Any]:
    """The last JSON object in a text that has all wanted fields."""
    decoder, found = json.JSONDecoder(), None
    for at in (m.start() for m in re.finditer(r"\{", text)):
        try:
            value, _ = decoder.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError):
            continue
        if isinstance(value, dict) and all(name in value for name in wanted):
            found = value
    if found is None:
        raise Unreadable(f"no JSON object with {', '.join(wanted)}")
    return found


def _number(value: Any, name: str, scale: Scale) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not scale[0] <= value <= scale[1]:
        raise Unreadable(f"{name} is {value!r}, not a number from {scale[0]:g} to {scale[1]:g}")
    return float(value)


def _choice(value: Any, name: str, values: dict[str, float]) -> float:
    known = {label.lower(): x for label, x in values.items()}
    if not isinstance(value, str) or value.strip().lower() not in known:
        raise Unreadable(f"{name} is {value!r}, not one of {', '.join(values)}")
    return known[value.strip().lower()]


def _schema(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _range(scale: Scale) -> dict[str, Any]:
    return {"type": "integer", "minimum": int(scale[0]), "maximum": int(scale[1])}


TEXT = {"type": "string"}
SIDES = {"A": 0.0, "B": 1.0, "tie": 0.5}


def pairwise(said: Said, settings: Settings) -> Verdict:
    """``{"reason", "rating_a", "rating_b", "preference": "A" | "B" | "tie"}``."""
    found = _object(said.text, ("rating_a", "rating_b", "preference"))
    a, b = (_number(found[name], name, settings.scale) for name in ("rating_a", "rating_b"))
    preference = _choice(found["preference"], "preference", SIDES)
    if (a - b) * (0.5 - preference) < 0:
        raise Unreadable(f"prefers {found['preference']} but rates A {a:g} and B {b:g}")
    reason = found.get("reason")
    return Verdict(
        preference=preference, rating_a=a, rating_b=b, raw=said.text, reason=reason if isinstance(reason, str) else None
    )


def rubric(said: Said, settings: Settings) -> Rated:
    """A grade a criterion; the rating is their weighted mean."""
    weights = settings.weights or {}
    found = _object(said.text, list(weights))
    grades = {name: _number(found[name], name, settings.scale) for name in weights}
    total = sum(weights[name] * grade for name, grade in grades.items())
    shown = ", ".join(f"{name} {grade:g}" for name, grade in grades.items())
    return Rated(rating=round(total / sum(weights.values()), 5), raw=said.text, reason=shown)


def support(said: Said, settings: Settings) -> Rated:
    """``{"reason", "verdict": "supported" | "contradicted" | "absent"}``, as 1, -1 and 0."""
    found = _object(said.text, ("verdict",))
    reason = found.get("reason")
    rating = _choice(found["verdict"], "verdict", SUPPORT)
    return Rated(rating=rating, raw=said.text, reason=reason if isinstance(reason, str) else None)


# -- labels in brackets


def _one_label(text: str, pattern: str) -> str:
    found: set[str] = {m.upper() for m in re.findall(pattern, text, re.IGNORECASE)}
    if len(found) != 1:
        raise Unreadable("no label in [[ ]]" if not found else f"several labels: {', '.join(sorted(found))}")
    return found.pop()


def winner(said: Said, settings: Settings) -> Verdict:
    """``[[A]]``, ``[[B]]`` or ``[[C]]`` for a tie (MT-Bench's labels)."""
    label = _one_label(said.text, r"\[\[\s*([ABC])\s*\]\]")
    return Verdict(preference={"A": 0.0, "B": 1.0, "C": 0.5}[label], raw=said.text)


def five(said: Said, settings: Settings) -> Verdict:
    """``[[A>>B]]`` … ``[[B>>A]]`` (Arena-Hard's labels): 0, .25, .5, .75, 1."""
    label = _one_label(said.text, r"\[\[\s*([AB](?:[<>]{1,2}|=)[AB])\s*\]\]")
    label = FLIPPED.get(label, label)
    if label not in FIVE:
        raise Unreadable(f"the label {label} is unknown")
    return Verdict(preference=FIVE[label], raw=said.text)


def rating(said: Said, settings: Settings) -> Rated:
    """``[[n]]``, a number on the scale (MT-Bench's form)."""
    found = {float(x) for x in re.findall(r"\[\[\s*((?:0|[1-9]\d{0,3})(?:\.\d{1,4})?)\s*\]\]", said.text, re.ASCII)}
    if len(found) != 1:
        raise Unreadable("no rating in [[ ]]" if not found else "several ratings in [[ ]]")
    return Rated(rating=_number(found.pop(), "the rating", settings.scale), raw=said.text)


def trailing(said: Said, settings: Settings) -> Rated:
    """A whole number at the very end of the reply (RewardBench's form for generative reward models).

    The 10 of "7/10" and of "7 out of 10" is the scale's, and no rating.
    """
    found = re.search(r"(?<![\d.\-/])(?<!\bof )(\d+)\s*\Z", said.text, re.ASCII)
    if not found:
        raise Unreadable("no rating at the end")
    return Rated(rating=_number(int(found[1][:6]), "the rating", settings.scale), raw=said.text)


# -- one token, and rankings


def first_token(said: Said, settings: Settings) -> Verdict:
    """P(M) / (P(m) + P(M)) of the reply's first token (AlpacaEval 2); one of the two that is missing counts 0.

    A server without log-probabilities gives its one token, a hard verdict.
    """
    if said.first is None:
        text = said.text.strip()
        if text[:1] not in ("m", "M") or len(text.split()) > 1:
            raise Unreadable(f"{text[:20]!r} is neither m nor M")
        return Verdict(preference=float(text[0] == "M"), raw=said.text)
    chances = {token: math.exp(logprob) for token, logprob in reversed(said.first)}
    m, other = chances.get("m", 0.0), chances.get("M", 0.0)
    if m + other == 0:
        raise Unreadable("neither m nor M is among the likeliest tokens")
    return Verdict(preference=other / (m + other), raw=said.text)


def ranking(said: Said, settings: Settings) -> Verdict:
    """``[{"model": "model_1", "rank": 1}, …]`` (AlpacaEval's first forms), in either kind of quotes.

    The two are called model_1 and model_2, or m and M.
    """
    pattern = r"""["']model["']\s*:\s*["'](model_1|model_2|m|M)["']\s*,\s*["']rank["']\s*:\s*["']?([12])\b"""
    ranks = {{"m": "model_1", "M": "model_2"}.get(name, name): rank for name, rank in re.findall(pattern, said.text)}
    if len(ranks) != 2 or sorted(ranks.values()) != ["1", "2"]:
        raise Unreadable("no ranking of two models")
    return Verdict(preference=float(ranks["model_2"] == "1"), raw=said.text)


def _pairwise_schema(settings: Settings) -> dict[str, Any]:
    return _schema(
        reason=TEXT,
        rating_a=_range(settings.scale),
        rating_b=_range(settings.scale),
        preference={"type": "string", "enum": list(SIDES)},
    )


def _rubric_schema(settings: Settings) -> dict[str, Any]:
    return _schema(reason=TEXT, **{name: _range(settings.scale) for name in settings.weights or {}})


def _support_schema(settings: Settings) -> dict[str, Any]:
    return _schema(reason=TEXT, verdict={"type": "string", "enum": list(SUPPORT)})


READERS = {
    "pairwise": Reader(pairwise, True, _pairwise_schema),
    "first-token": Reader(first_token, True, top=5),
    "ranking": Reader(ranking, True),
    "winner": Reader(winner, True),
    "five": Reader(five, True),
    "rating": Reader(rating, False),
    "trailing": Reader(trailing, False),
    "rubric": Reader(rubric, False, _rubric_schema),
    "support": Reader(support, False, _support_schema),
}
