"""Strict JSON: what the standard library lets pass and no data file may hold, refused by field."""

from __future__ import annotations

import json
import math
from typing import Any

DEPTH = 64  # brackets within brackets: deeper than any data, shallower than any recursion limit


class Strict:
    """A JSON decoder that refuses duplicate keys, NaN, infinities, lone surrogates and absurd nesting.

    Call it on a text for its one value, or ``element`` for a value inside a longer text. Both raise
    ValueError with a sentence for people (JSONDecodeError where the text is no JSON at all: ``explain``).
    The tree is walked only where the text shows that something may be wrong, so it costs a third more
    than ``json.loads``.
    """

    def __init__(self) -> None:
        self._odd = False
        self._decoder = json.JSONDecoder(
            object_pairs_hook=_object, parse_float=self._float, parse_constant=self._constant
        )

    def __call__(self, text: str | bytes) -> Any:
        """The one value of ``text``."""
        assert isinstance(text, str)
        value, end = self.element(text, space(text, 0))
        if (end := space(text, end)) < len(text):
            raise json.JSONDecodeError("extra data after the value", text, end)
        return value

    def element(self, text: str, at: int) -> tuple[Any, int]:
        """The value that starts at ``at``, and where it ends."""
        self._odd = False
        try:
            value, end = self._decoder.raw_decode(text, at)
        except RecursionError:
            raise ValueError("brackets are nested too deeply") from None
        except ValueError as e:
            if "digits" in str(e) and not isinstance(e, json.JSONDecodeError):
                raise ValueError("an integer has more than 4300 digits") from None
            raise
        if text.count("[", at, end) + text.count("{", at, end) > DEPTH and _depth(value) > DEPTH:
            raise ValueError(f"brackets are nested more than {DEPTH} deep")
        odd = self._odd or text.find("\\ud", at, end) >= 0 or text.find("\\uD", at, end) >= 0
        if odd and (bad := oddity(value)):
            raise ValueError(bad)
        return value, end

    def _float(self, text: str) -> float:
        number = float(text)
        self._odd |= math.isinf(number)
        return number

    def _constant(self, text: str) -> float:
        self._odd = True
        return float(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise ValueError(f"field {twice}: stands twice in one object")
    return found


def _depth(value: Any) -> int:
    level, deep = [value], 0
    while level := [v for v in level if isinstance(v, dict | list)]:
        deep += 1
        level = [x for v in level for x in (v.values() if isinstance(v, dict) else v)]
    return deep


def oddity(value: Any, path: str = "") -> str | None:
    """What in a decoded value JSON cannot hold, with its field (``scores[0]``); None where all is well."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not key.isascii() and oddity(key):
                return f"field {path or '(row)'}: a name in it holds half of a surrogate pair"
            if bad := oddity(inner, f"{path}.{key}" if path else key):
                return bad
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            if bad := oddity(inner, f"{path}[{i}]"):
                return bad
    elif isinstance(value, str):
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            return f"field {path}: half of a surrogate pair, which is no character"
    elif isinstance(value, float):
        if not math.isfinite(value):
            return f"field {path}: {value} is not a finite number"
    elif value is not None and not isinstance(value, int):
        return f"field {path}: a {type(value).__name__} has no place in JSON"
    return None


def space(text: str, at: int) -> int:
    """The first place from ``at`` on that is not JSON's white space."""
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def explain(e: BaseException | None) -> tuple[str, str]:
    """What is wrong with a line or a text, in words, and what to do about it."""
    if isinstance(e, UnicodeDecodeError):
        text = f"byte {e.object[e.start]:#04x} at column {e.start + 1} is not UTF-8"
        return text, "JSON is UTF-8; iconv -f latin1 -t utf-8 converts older text"
    if not isinstance(e, json.JSONDecodeError):
        return str(e), ""
    at, message = f"column {e.colno}", (e.msg[0].lower() + e.msg[1:]).removesuffix(" at")
    there = e.doc[e.pos : e.pos + 24].rstrip()
    if there.startswith("\0") and not e.msg.startswith("Invalid control"):
        return f"NUL bytes instead of JSON, {at}", "an interrupted write leaves such holes"
    if e.msg.startswith("Invalid control") and there:
        text = f"a raw control character ({ord(there[0]):#04x}) inside text, {at}"
        return text, "JSON writes it as a backslash, u and four digits (or \\n, \\t)"
    if not there or e.msg.startswith(("Unterminated", "Invalid control")):
        hint = "one JSON object a line; `jq -c .` makes lines of a pretty-printed file"
        return f"the JSON breaks off: {message}, {at}", hint
    return f"not valid JSON: {message}, {at}, near {there!r}", ""
