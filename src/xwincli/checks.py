"""Verifiable demands on an answer: what each kind of check means and how a person would say it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from xwincli.errors import XwinError

WORD = re.compile(r"\w+(?:['’\-]\w+)*")
BULLET = re.compile(r"(?m)^[ \t]*(?:[-*•–]|\d{1,2}[.)])[ \t]+(?=\S)")
NUMBER = re.compile(
    r"\d|\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty|forty|fifty|"
    r"sixty|hundred|thousand)\b",
    re.IGNORECASE,
)
_CLOSERS = "\"'”’)]*_"
# a mark that ends a sentence: followed by space or the end, and not an initial ("J.") or a known short form
_END = re.compile(
    r"(?<!\b[A-Za-z])(?<!\b(?:Mr|Ms|Dr|St|vs))(?<!\b(?:Mrs|etc))(?<!\be\.g)(?<!\bi\.e)(?:[.!?…]+)[\"'”’)\]*_]*(?=\s|$)"
)


def words(text: str) -> list[str]:
    """The words of a text as written; ``don't`` and ``five-year-old`` are one word each."""
    return WORD.findall(text)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text with their end marks; a rest without an end mark is one, a piece without a word none."""
    ends = [m.end() for m in _END.finditer(text)]
    pieces = [text[a:b].strip() for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]
    return [piece for piece in pieces if WORD.search(piece)]


def sentences(text: str) -> int:
    """How many sentences a text has; a rest without an end mark counts as one."""
    return len(split_sentences(text))


def closed(text: str) -> bool:
    """True if the text's last sentence has its end mark (quotes and brackets may follow it)."""
    return text.rstrip().rstrip(_CLOSERS).endswith((".", "!", "?", "…"))


@lru_cache(maxsize=4096)
def _mention(word: str) -> re.Pattern[str]:
    """The word itself, its plural or possessive; letters around it make it another word."""
    word = re.escape(word.strip())
    plural = rf"|{word[:-1]}ies" if word.endswith("y") else ""
    return re.compile(rf"(?<!\w)(?:{word}(?:e?s|['’]s)?{plural})(?!\w)", re.IGNORECASE)


def mentioned(word: str, text: str) -> bool:
    """True if ``word`` (or its regular plural) stands in the text as a word of its own, in any case."""
    return _mention(word).search(text) is not None


def _starts(value: str, text: str) -> bool:
    start = text.lstrip().lstrip("\"'“‘*_").casefold()
    value = value.strip().casefold()
    after = start[len(value) : len(value) + 1]
    return start.startswith(value) and not (value[-1:].isalnum() and after.isalnum())


def _ends(value: str, text: str) -> bool:
    end = text.rstrip()
    return end.endswith(value) or end.rstrip(_CLOSERS).endswith(value)


def _plural(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


@dataclass(frozen=True)
class Kind:
    """One kind of check: the type of its value, its test, and its wording."""

    value: type
    passes: Callable[[Any, str], bool]
    says: Callable[[Any], str]


KINDS: dict[str, Kind] = {
    "max_words": Kind(int, lambda n, t: len(words(t)) <= n, lambda n: f"at most {_plural(n, 'word')}"),
    "min_words": Kind(int, lambda n, t: len(words(t)) >= n, lambda n: f"at least {_plural(n, 'word')}"),
    "bullets": Kind(int, lambda n, t: len(BULLET.findall(t)) == n, lambda n: f"exactly {_plural(n, 'bullet')}"),
    "mentions": Kind(str, mentioned, lambda w: f"mentions {w!r}"),
    "avoids": Kind(str, lambda w, t: not mentioned(w, t), lambda w: f"avoids {w!r}"),
    "lower_case": Kind(bool, lambda _, t: t == t.lower(), lambda _: "all in lower case"),
    "no_commas": Kind(bool, lambda _, t: "," not in t, lambda _: "no commas"),
    "one_sentence": Kind(bool, lambda _, t: sentences(t) == 1 and closed(t), lambda _: "one whole sentence"),
    "ends_with": Kind(str, _ends, lambda s: f"ends with {s!r}"),
    "starts_with": Kind(str, _starts, lambda s: f"starts with {s!r}"),
    # the demo asks for these two on its held-out prompts only
    "sentences": Kind(
        int, lambda n, t: sentences(t) == n and closed(t), lambda n: f"exactly {_plural(n, 'whole sentence')}"
    ),
    "has_number": Kind(bool, lambda _, t: NUMBER.search(t) is not None, lambda _: "contains a number"),
}
HELD_OUT = ("sentences", "has_number")


def _kind(check: dict[str, Any]) -> tuple[Kind, Any]:
    name = check.get("kind")
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise XwinError(f"unknown check kind {name!r}", f"known are: {', '.join(KINDS)}")
    value = check.get("value", True if kind.value is bool else None)
    wrong = type(value) is not kind.value or value is False or (isinstance(value, int) and value < 0)
    if wrong or (isinstance(value, str) and not value.strip()):
        wanted = {int: "a whole number", str: "a text", bool: "true (or be left out)"}[kind.value]
        raise XwinError(f"the value of check {name!r} should be {wanted}, this is {value!r}")
    return kind, value


def passes(check: dict[str, Any], text: str) -> bool:
    """True if ``text`` meets the demand; an empty text meets none.

    Args:
        check: ``{"kind": …, "value": …}``; the value may be left out where it can only be true.
        text: the answer.

    Raises:
        XwinError: the kind is unknown (lists the known) or its value is of the wrong type.
    """
    kind, value = _kind(check)
    return bool(text.strip()) and kind.passes(value, text)


def describe(check: dict[str, Any]) -> str:
    """The demand in plain words, such as "at most 20 words". Raises like ``passes``."""
    kind, value = _kind(check)
    return kind.says(value)
