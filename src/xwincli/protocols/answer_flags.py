"""Answers that work on the judge and not on the task: one text for many prompts, and text that talks to the judge."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

MANY, SHARE = 3, 0.05  # a text is constant from so many prompts on, and from this share of a model's prompts
SHOWN = 80  # characters of an answer that a flag quotes

_LETTER, _NUMBER = r"[ABC]|[AB]\s*[<>=]+\s*[AB]", r"\d+(?:\.\d+)?"
# what a judge's prompt or reply holds and an answer has no reason to; each a name for people and a pattern
INJECTIONS: dict[str, re.Pattern[str]] = {
    name: re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    for name, pattern in {
        "a verdict": rf"\[\[\s*(?:{_LETTER}|{_NUMBER})\s*\]\]|\bfinal verdict (?:is|:)",
        "a judge's frame": r"\[the (?:start|end) of (?:assistant|reference)|\bmodel_identifier\b"
        r"|^#+ (?:unordered )?(?:model outputs|best model identifier)",
        "an order to forget": r"\b(?:ignore|disregard|forget)\s+(?:\w+\s+){0,2}(?:above|previous|prior|preceding)\b",
        "a rating as JSON": r"[{,]\s*[\"'](?:winner|rating|score|verdict|preference|rank)[\"']\s*:",
        "a chat template's marks": r"<\|(?:im_start|im_end|endoftext|eot_id|start_header_id|end_header_id)\|>"
        r"|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>",
    }.items()
}


class Said(NamedTuple):
    """One answer of one model."""

    model: str
    prompt_id: str
    text: str


def _quote(text: str) -> str:
    short = " ".join(text.split())
    return short if len(short) <= SHOWN else short[: SHOWN - 1] + "…"


def _by_text(answers: Iterable[Said]) -> dict[tuple[str, str], list[str]]:
    """The prompts that each model gave each text to, once each, in order."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for model, prompt, text in answers:
        found.setdefault((model, text.strip()), {})[prompt] = None
    return {key: list(prompts) for key, prompts in found.items()}


def injected(text: str) -> list[str]:
    """What of a judge's own language an answer holds, by name; empty for an ordinary answer."""
    return [name for name, pattern in INJECTIONS.items() if pattern.search(text)]


def flags(answers: Iterable[Said]) -> list[dict[str, Any]]:
    """Answers to be wary of, those given most often first; an honest answer about judging may be among them.

    Returns:
        For each text: ``model``, ``text`` (its opening), ``prompts`` (how many it was given to), ``share`` of the
        model's prompts, ``prompt_ids`` (the first few), and ``what``: "the same text for many prompts", or names of
        ``INJECTIONS``.
    """
    by_text = _by_text(answers)
    asked: dict[str, set[str]] = {}
    for (model, _), prompts in by_text.items():
        asked.setdefault(model, set()).update(prompts)
    found = []
    for (model, text), prompts in by_text.items():
        share = len(prompts) / len(asked[model])
        constant = len(prompts) >= MANY and share >= SHARE
        what = ["the same text for many prompts"] * constant + injected(text)
        if what:
            facts = {"model": model, "text": _quote(text), "prompts": len(prompts), "share": round(share, 4)}
            found.append({**facts, "prompt_ids": prompts[:5], "what": what})
    return sorted(found, key=lambda f: -f["prompts"])
