"""What an answer states: how it is cut into claims, and when it declines to state anything. Rules alone, no model."""

from __future__ import annotations

import re

from xwincli.checks import BULLET, split_sentences, words
from xwincli.judges.rules import FUNCTION

_FENCE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_HEADING = re.compile(r"^\s*(?:#{1,6}\s|>+\s?)")
_MARKS = re.compile(r"[*_`]{1,3}(?=\S)|(?<=\S)[*_`]{1,3}")
# a new clause with a subject of its own: after a semicolon, or after a comma and a word that joins
_SUBJECT = r"(?:it|he|she|they|we|i|you|this|that|these|those|there|the|its|his|her|their|our|a|an)\b|[A-Z]\w+\s"
_CLAUSE = re.compile(rf";\s+|,\s+(?:(?:but|while|whereas)\s+|and\s+(?=(?-i:{_SUBJECT})))", re.IGNORECASE)
CLAUSE_WORDS = 3  # a shorter piece stays with its neighbour

# what follows an apology may be sympathy ("I'm sorry to hear that"), so something must be refused
_CANNOT = (
    r"(?:can ?not|can['’]t|could ?not|couldn['’]t|won['’]t|will not|must decline|unable|not able|not allowed"
    r"|(?:do not|don['’]t) (?:have|know|feel)|have no)"
)
_DECLINES = re.compile(
    r"^\W*(?:(?:(?:i['’]?m|i am) (?:so |very |really |truly )?(?:sorry|afraid)|sorry|my apologies|i apologi[sz]e"
    r"|unfortunately"
    r"|as an? (?:ai|artificial intelligence|language model|assistant))\b(?! to hear| for your)"
    rf"[^.!?]{{0,80}}\b{_CANNOT}\b"
    rf"|i (?:am |must |have to )?(?:{_CANNOT}|decline)\b)",
    re.IGNORECASE,
)
_SOURCE = (
    r"\b(?:the|this|that|these|those|your|given|provided) (?:\w+ ){0,2}(?:context|passages?|texts?|documents?|articles?"
    r"|excerpts?|sources?|snippets?|information given|information provided)\b(?! of)"
)
_TELLS = (
    r"(?:mention|state|specif|provid|say|said|tell|told|contain|includ|indicat|give|giving|address|cover|describ"
    r"|answer|list|reveal|discuss)\w*"
)
_NOT = r"(?:\bnot?\b|n['’]t\b|\bnever\b|\bnowhere\b|\bnothing\b|\bneither\b|\bnone\b)"
_UNANSWERED = re.compile(
    rf"{_SOURCE}[^.;]{{0,30}}\b(?:do|does|did)(?: not|n['’]t)\b[^.;]{{0,20}}\b{_TELLS}"
    rf"|{_SOURCE}[^.;]{{0,30}}\b(?:{_TELLS}|has|have|makes?) (?:no|nothing|neither)\b"
    rf"|{_NOT}[^.;]{{0,60}}\b(?:in|from|by|on the basis of) {_SOURCE}"
    r"|\b(?:is|are|was|were)(?: not|n['’]t) (?:mentioned|stated|specified)\b"
    r"|\bi (?:do not|don['’]t|did not|didn['’]t) (?:know\b|have (?:enough|any|the|that|this)|find)"
    r"|\bi (?:cannot|can['’]t|can not|could not|couldn['’]t) (?:say|tell|find)"
    r"|\bthere (?:is|are)(?: no|(?: not|n['’]t) (?:any|enough)| insufficient) (?:\w+ ){0,2}(?:information|mention"
    r"|answer)"
    r"|\b(?:cannot|can['’]t|can not|could not|couldn['’]t) (?:be )?(?:answer|determin|infer)\w*"
    r"|\b(?:not enough|insufficient) (?:information|context)|^\W*(?:unknown|unanswerable|not stated)\W*$",
    re.IGNORECASE,
)


def declines(text: str) -> bool:
    """True if an answer opens with a refusal, perhaps after an apology (English)."""
    return _DECLINES.search(text) is not None


def abstains(text: str) -> bool:
    """True if the first sentence declines, or says that the answer is not known or not in the contexts (English).

    What follows may still state something; those claims are judged as any.
    """
    first = next(iter(split_sentences(text)), "")
    return declines(first) or _UNANSWERED.search(first) is not None


def _clauses(sentence: str) -> list[str]:
    pieces: list[str] = []
    start = 0
    for cut in _CLAUSE.finditer(sentence):
        before, after = sentence[start : cut.start()], sentence[cut.end() :]
        if len(words(before)) >= CLAUSE_WORDS and len(words(after)) >= CLAUSE_WORDS:
            pieces.append(before)
            start = cut.end()
    return [*pieces, sentence[start:]]


def _states(piece: str) -> bool:
    said = words(piece)
    empty = all(w.lower() in FUNCTION for w in said)
    return bool(said) and not empty and not piece.endswith(("?", ":")) and not _UNANSWERED.search(piece)


def claims(text: str) -> list[str]:
    """The claims of an answer, in order.

    Lines, list items and sentences are cut apart; a sentence is cut into clauses at semicolons, at ", but", ", while"
    and ", whereas", and at ", and" before a new subject, where both sides have three words at least. Left out are code
    in fences, questions, lines that end with a colon, pieces of function words alone, refusals and statements that the
    answer is not known. Pronouns stay as they are: a judge sees the prompt, not the sentence before.
    """
    found: list[str] = []
    for line in _FENCE.sub("\n", text).split("\n"):
        line = _MARKS.sub("", BULLET.sub("", _HEADING.sub("", line))).strip()
        for sentence in split_sentences(line):
            if not declines(sentence):
                found += [piece.strip() for piece in _clauses(sentence) if _states(piece.strip())]
    return found
