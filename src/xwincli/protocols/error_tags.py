"""What is wrong with one answer by rule: empty, cut off, going round, refusing, in another language, an echo."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from xwincli.checks import WORD, words
from xwincli.judges.rules import DANGLING, SCRIPTS
from xwincli.protocols.answer_flags import INJECTIONS
from xwincli.protocols.claims import declines
from xwincli.records import Group, Response

TAGS = ("empty", "cut off", "loop", "refusal", "language switch", "format break", "prompt echo")
FORMATS = {"bullets", "lower_case", "no_commas", "one_sentence", "sentences", "starts_with", "ends_with", "json_schema"}
FORMAT_FAMILIES = ("detectable_format:", "change_case:", "startend:", "punctuation:")  # of IFEval's
LONGEST = 200  # words of a unit that a loop repeats
SWITCHED = 0.3  # share of the letters that are of no script of the prompt's
RUN, ECHOED = 8, 0.8  # words of a run, share of an answer's runs that stand in the prompt
_LANGUAGES = {
    "English": "the and is of to that was with for are this have",
    "German": "der die und das ist nicht ein mit auf für den sich",
    "French": "le les des est une dans pour que qui sur avec pas",
    "Spanish": "el los las una por con para que es del como pero",
    "Italian": "il che di una per non sono con della gli anche più",
    "Portuguese": "os uma não para com que do da em mais como ao",
    "Dutch": "het een van dat niet zijn voor met aan ook maar wordt",
}
_STOPS = {name: frozenset(listed.split()) for name, listed in _LANGUAGES.items()}
_OTHER_LANGUAGE = re.compile(
    r"translat|übersetz|tradu[cirz]|vertaal|\b(?:english|german|deutsch|french|français|spanish|español|italian|dutch"
    r"|portuguese|russian|chinese|japanese|korean|arabic|hindi|greek|hebrew|thai|latin|turkish|polish|ukrainian)\b",
    re.IGNORECASE,
)
_LINK = re.compile(r"(?:https?://|www\.)\S+|\S+@\S+\.\w+")
_FENCE = re.compile(r"^\s*```", re.MULTILINE)
_SOMETHING = re.compile(r"[^\W_]|[^\x00-\x7f]")  # a letter, a digit, an emoji
MARKS = INJECTIONS["a chat template's marks"]
_TURN = re.compile(r"^\s*(?:#+\s*)?(?:USER|User|Human|HUMAN|ASSISTANT|Assistant)\s*:", re.MULTILINE)


def _periodic(units: Sequence[str], longest: int, least: int) -> bool:
    """True if the end repeats a run of at most ``longest`` units for three rounds, and ``least`` units, or more."""
    for period in range(1, min(longest, len(units) // 3) + 1):
        run = period
        while run < len(units) and units[-1 - run] == units[-1 - run + period]:
            run += 1
        if run >= max(3 * period, least):
            return True
    return False


def loops(text: str) -> bool:
    """True if an answer ends going round: words, letters or half of its lines over and over."""
    tokens = text.casefold().split()
    if _periodic(tokens, LONGEST, 6):
        return True
    tail = re.sub(r"\s+", "", text[-400:])
    if len(tail) >= 40 and WORD.search(tail[-12:]) and _periodic(tail, 40, 40):
        return True
    lines = [line.strip() for line in text.splitlines() if len(words(line)) >= 3]
    return len(lines) >= 4 and Counter(lines).most_common(1)[0][1] >= max(4, len(lines) / 2)


def language(text: str) -> str | None:
    """Which of seven languages a text's small words are of; None where they are few or two are close."""
    said = Counter(w.lower() for w in words(text))
    hits = sorted(((sum(said[w] for w in stops), name) for name, stops in _STOPS.items()), reverse=True)
    (most, name), (second, _) = hits[0], hits[1]
    return name if most >= 4 and most >= 2 * second else None


def switches(asked: str, text: str) -> bool:
    """True if an answer is, to a third or so, in another script than the prompt, or in another language.

    A prompt that names a language or speaks of translating may get any.
    """
    if _OTHER_LANGUAGE.search(asked):
        return False
    text = _LINK.sub(" ", text)
    letters = sum(c.isalpha() for c in text)
    strange = sum(len(s.findall(text)) for s in SCRIPTS if not s.search(asked))
    if letters and strange >= SWITCHED * letters:
        return True
    before, after = language(asked), language(text)
    return before is not None and after is not None and before != after


def echoes(asked: str, text: str) -> bool:
    """True if an answer repeats its prompt: nearly all its runs of eight words stand there, and it is no mere excerpt.

    An excerpt neither begins as the prompt does nor holds half as many words. Contexts are no part of a prompt.
    """
    said, given = ([w.lower() for w in words(t)] for t in (text, asked))
    if len(said) < RUN:
        return len(said) >= 3 and said == given
    there = {tuple(given[i : i + RUN]) for i in range(len(given) - RUN + 1)}
    runs = [tuple(said[i : i + RUN]) for i in range(len(said) - RUN + 1)]
    whole = tuple(given[:RUN]) in runs or 2 * len(said) >= len(given)
    return whole and sum(r in there for r in runs) >= ECHOED * len(runs)


def _breaks_format(text: str, unmet: Sequence[str]) -> bool:
    leaks = MARKS.search(text) is not None or _TURN.search(text) is not None
    return (
        leaks
        or len(_FENCE.findall(text)) % 2 == 1
        or any(kind in FORMATS or kind.startswith(FORMAT_FAMILIES) for kind in unmet)
    )


def _dangles(text: str) -> bool:
    return DANGLING.search(text) is not None and not text.rstrip().endswith(";")  # code ends so


def tags(group: Group, response: Response, unmet: Sequence[str] = ()) -> list[str]:
    """What is wrong with an answer by rule, some of ``TAGS``; refusals and small words are read in English (and kin).

    empty: no letter, digit or emoji. cut off: the length limit ended it, or a word that begs another. loop: see
    ``loops``. refusal: it opens with one. language switch: see ``switches``. format break: an unmet demand about form,
    an open code fence, a chat template's marks or a turn of the user's. prompt echo: see ``echoes``.

    Args:
        group: the prompt.
        response: the answer.
        unmet: the kinds of the prompt's demands that it does not meet.
    """
    text = response.text
    if not _SOMETHING.search(text):
        return ["empty"]
    asked = "\n".join(str(m.get("content") or "") for m in group.prompt if m["role"] != "assistant")
    last = str(group.prompt[-1].get("content") or "")
    there = {
        "cut off": response.finish == "length" or (response.finish is None and _dangles(text)),
        "loop": loops(text),
        "refusal": declines(text),
        "language switch": switches(asked, text),
        "format break": _breaks_format(text, unmet),
        "prompt echo": echoes(last, text),
    }
    return [name for name in TAGS if there.get(name)]
