"""IFEval's verifiable instructions by their own names: what each asks for and when a response follows it.

Each test is the paper's (Zhou et al. 2023, arXiv 2311.07911) as its published code reads it, oddities included, so
that accuracies compare: keywords are regular expressions, and a bullet list is told from bold text by one character.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from xwincli.errors import XwinError

Follows = Callable[[str], bool]

RELATIONS = ("less than", "at least")
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
FENCES = ("```json", "```Json", "```JSON", "```")


@dataclass(frozen=True)
class Instruction:
    """One kind: its test, its arguments by name and type, and the package the test rests on."""

    follows: Callable[..., bool]
    needs: Mapping[str, Any] = field(default_factory=dict)
    package: str = ""


def _compare(count: int, relation: str, bound: int) -> bool:
    return count < bound if relation == RELATIONS[0] else count >= bound


# -- keywords


def _existence(text: str, keywords: list[str]) -> bool:
    return all(re.search(k, text, re.IGNORECASE) for k in keywords)


def _frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return _compare(len(re.findall(keyword.strip(), text, re.IGNORECASE)), relation, frequency)


def _forbidden(text: str, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"\b{w}\b", text, re.IGNORECASE) for w in forbidden_words)


def _letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compare(Counter(text.lower())[letter.strip().lower()], let_relation, let_frequency)


# -- language


def _language(text: str, language: str) -> bool:
    """True also where no language can be told, as in the published code."""
    module = import_module("langdetect")
    module.DetectorFactory.seed = 0  # else its answer changes from call to call
    try:
        return bool(module.detect(text) == language)
    except module.LangDetectException:
        return True


def _upper(text: str) -> bool:
    return text.isupper() and _language(text, "en")


def _lower(text: str) -> bool:
    return text.islower() and _language(text, "en")


# -- length


def _words(text: str, num_words: int, relation: str) -> bool:
    return _compare(len(re.findall(r"\w+", text)), relation, num_words)


def _sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _compare(len(_nltk("sent_tokenize", text)), relation, num_sentences)


def _capital_words(text: str, capital_frequency: int, capital_relation: str) -> bool:
    count = sum(w.isupper() for w in _nltk("word_tokenize", text))
    return _compare(count, capital_relation, capital_frequency)


def _nltk(name: str, text: str) -> list[str]:
    try:
        return list(getattr(import_module("nltk"), name)(text))
    except LookupError as e:
        hint = "python -m nltk.downloader punkt punkt_tab"
        raise XwinError("nltk lacks its data for English sentences, which IFEval counts by", hint) from e


def _paragraphs(text: str, num_paragraphs: int) -> bool:
    """Divided by ``***``; an empty one counts only in the middle, and there it fails."""
    parts = re.split(r"\s?\*\*\*\s?", text)
    if any(not p.strip() for p in parts[1:-1]):
        return False
    ends = {0, len(parts) - 1}
    return len(parts) - sum(not parts[i].strip() for i in ends) == num_paragraphs


def _first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """The n-th of the paragraphs parted by blank lines starts with the word (up to a punctuation mark)."""
    parts = text.split("\n\n")
    count = sum(1 for p in parts if p.strip())
    if nth_paragraph > count or not parts[nth_paragraph - 1].strip():
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    word = re.split(r"[.,?!'\"]", word, maxsplit=1)[0].lower()
    return count == num_paragraphs and word == first_word.lower()


# -- content and form


def _placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def _postscript(text: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    known = {"P.P.S": r"\s*p\.\s?p\.\s?s.*$", "P.S.": r"\s*p\.\s?s\..*$"}
    pattern = known.get(marker, rf"\s*{marker.lower()}.*$")
    return re.search(pattern, text.lower(), re.MULTILINE) is not None


def _bullets(text: str, num_bullets: int) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", text, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def _constrained(text: str) -> bool:
    return any(option in text.strip() for option in OPTIONS)


def _highlights(text: str, num_highlights: int) -> bool:
    """``**bold**`` counts twice: its inside is also found between single asterisks where it is not empty."""
    single = [h for h in re.findall(r"\*[^\n\*]*\*", text) if h.strip("*").strip()]
    double = re.findall(r"\*\*[^\n\*]*\*\*", text)
    double = [h for h in double if h.removeprefix("**").removesuffix("**").strip()]
    return len(single) + len(double) >= num_highlights


def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.split(rf"\s?{section_spliter.strip()}\s?\d+\s?", text)) - 1 >= num_sections


def _json(text: str) -> bool:
    try:
        json.loads(unfenced(text))
    except (ValueError, RecursionError):
        return False
    return True


def unfenced(text: str) -> str:
    """A text without the code fence around it, as IFEval takes it off."""
    text = text.strip()
    for fence in FENCES:
        text = text.removeprefix(fence)
    return text.removesuffix("```").strip()


def _title(text: str) -> bool:
    return any(t.lstrip("<").rstrip(">").strip() for t in re.findall(r"<<[^\n]+>>", text))


# -- combination, start and end, punctuation


def _two_responses(text: str) -> bool:
    parts = text.split("******")
    if any(not p.strip() for p in parts[1:-1]):
        return False
    said = [p.strip() for p in parts if p.strip()]
    return len(said) == 2 and said[0] != said[1]


def _repeats(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quoted(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


# the types of arguments, in the words of a refusal
TEXT, LETTER, COUNT, PLACE = "a text", "one letter", "a whole number", "a whole number from 1 on"
RELATION = " or ".join(map(repr, RELATIONS))
PATTERN = "a text that is a regular expression, as IFEval reads it"
PATTERNS = "a list of texts that are regular expressions, as IFEval reads them"

INSTRUCTIONS: dict[str, Instruction] = {
    "keywords:existence": Instruction(_existence, {"keywords": PATTERNS}),
    "keywords:frequency": Instruction(_frequency, {"keyword": PATTERN, "frequency": COUNT, "relation": RELATION}),
    "keywords:forbidden_words": Instruction(_forbidden, {"forbidden_words": PATTERNS}),
    "keywords:letter_frequency": Instruction(
        _letter_frequency, {"letter": LETTER, "let_frequency": COUNT, "let_relation": RELATION}
    ),
    "language:response_language": Instruction(_language, {"language": TEXT}, "langdetect"),
    "length_constraints:number_sentences": Instruction(
        _sentences, {"num_sentences": COUNT, "relation": RELATION}, "nltk"
    ),
    "length_constraints:number_paragraphs": Instruction(_paragraphs, {"num_paragraphs": COUNT}),
    "length_constraints:number_words": Instruction(_words, {"num_words": COUNT, "relation": RELATION}),
    "length_constraints:nth_paragraph_first_word": Instruction(
        _first_word, {"num_paragraphs": COUNT, "nth_paragraph": PLACE, "first_word": TEXT}
    ),
    "detectable_content:number_placeholders": Instruction(_placeholders, {"num_placeholders": COUNT}),
    "detectable_content:postscript": Instruction(_postscript, {"postscript_marker": PATTERN}),
    "detectable_format:number_bullet_lists": Instruction(_bullets, {"num_bullets": COUNT}),
    "detectable_format:constrained_response": Instruction(_constrained),
    "detectable_format:number_highlighted_sections": Instruction(_highlights, {"num_highlights": COUNT}),
    "detectable_format:multiple_sections": Instruction(_sections, {"section_spliter": PATTERN, "num_sections": COUNT}),
    "detectable_format:json_format": Instruction(_json),
    "detectable_format:title": Instruction(_title),
    "combination:two_responses": Instruction(_two_responses),
    "combination:repeat_prompt": Instruction(_repeats, {"prompt_to_repeat": TEXT}),
    "startend:end_checker": Instruction(_ends, {"end_phrase": TEXT}),
    "startend:quotation": Instruction(_quoted),
    "change_case:capital_word_frequency": Instruction(
        _capital_words, {"capital_frequency": COUNT, "capital_relation": RELATION}, "nltk"
    ),
    "change_case:english_capital": Instruction(_upper, package="langdetect"),
    "change_case:english_lowercase": Instruction(_lower, package="langdetect"),
    "punctuation:no_comma": Instruction(lambda text: "," not in text),
}


def bind(name: str, arguments: Mapping[str, Any], at: str) -> Follows:
    """The test of one instruction with its arguments.

    Args:
        name: as IFEval writes it, ``group:kind``.
        arguments: its ``kwargs``; null ones count as left out.
        at: ``file:line: field F``, for messages.

    Raises:
        XwinError: the kind is unknown, an argument is missing, not known or of a wrong type, or a package lacks.
    """
    kind = INSTRUCTIONS.get(name)
    if kind is None:
        raise XwinError(f"{at}: unknown instruction {name!r}", f"known are: {', '.join(INSTRUCTIONS)}")
    given = {k: v for k, v in arguments.items() if v is not None}
    if odd := [k for k in given if k not in kind.needs]:
        raise XwinError(f"{at}: {name} takes no argument {odd[0]!r}", f"it takes: {', '.join(kind.needs) or 'none'}")
    for key, what in kind.needs.items():
        if key not in given:
            raise XwinError(f"{at}: {name} lacks its argument {key!r}")
        if not _is(given[key], what):
            raise XwinError(f"{at}: {key} of {name} should be {what}, this is {given[key]!r}")
    if kind.package:
        _must_have(kind.package, name, at)
    return lambda text: kind.follows(text, **given)


def _must_have(package: str, name: str, at: str) -> None:
    try:
        import_module(package)
    except ImportError:
        raise XwinError(f"{at}: {name} needs the package {package}", f"pip install {package}") from None


def _is(value: Any, what: str) -> bool:
    """True if an argument is of its type."""
    if what in (COUNT, PLACE):
        return isinstance(value, int) and not isinstance(value, bool) and value >= (what == PLACE)
    if what == PATTERNS:
        return isinstance(value, list) and bool(value) and all(_is(v, PATTERN) for v in value)
    if not isinstance(value, str) or not value.strip():
        return False
    if what == RELATION:
        return value in RELATIONS
    return _compiles(value) if what == PATTERN else what == TEXT or len(value.strip()) == 1


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True
