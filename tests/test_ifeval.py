"""IFEval's instruction kinds: for each a response that follows it and one that does not, worked by hand."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from xwincli.errors import XwinError
from xwincli.protocols import instructions
from xwincli.protocols.demands import KINDS, demands, last_number, variants
from xwincli.records import Prompt

AT = "f.jsonl:3: field instruction_id_list[0]"
AT_LEAST_2, LESS_THAN_2 = {"relation": "at least"}, {"relation": "less than"}

CASES: list[tuple[str, dict[str, Any], str, str]] = [  # kind, arguments, follows, does not
    ("keywords:existence", {"keywords": ["tea", "cup"]}, "A teacup.", "A tea pot."),
    ("keywords:existence", {"keywords": ["t.a"]}, "TOA", "t\na"),  # read as a regular expression
    ("keywords:frequency", {"keyword": " tea ", "frequency": 2, **AT_LEAST_2}, "Tea? Teapots.", "Tea only."),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, **LESS_THAN_2}, "One tea.", "tea tea"),
    ("keywords:forbidden_words", {"forbidden_words": ["tea"]}, "A teapot.", "No TEA."),
    ("keywords:letter_frequency", {"letter": "E", "let_frequency": 2, "let_relation": "at least"}, "Eel", "tea"),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": "less than"}, "# a", "## a"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "*** a *** b ***", "a *** *** b"),
    ("length_constraints:number_words", {"num_words": 3, **AT_LEAST_2}, "it's so", "one two"),  # it, s, so
    ("length_constraints:number_words", {"num_words": 3, **LESS_THAN_2}, "one-two", "one two three"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Tea"},
        "one\n\n\"tea's up",
        "one\n\nteas",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "tea"},
        "Tea, please",
        "tea\n\nand more",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b c]", "[a b] c]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "bye\np. s. tea", "bye PS tea"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "bye p.p. stop", "bye P.S. tea"),
    ("detectable_content:postscript", {"postscript_marker": "NB"}, "nb tea", "note"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n - b", "* a\n** b"),
    ("detectable_format:constrained_response", {}, "Well: My answer is no.", "My answer is no"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and *b*", "*a* and **"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "**a**", "* \n*"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Part", "num_sections": 2},
        "Part 1 a Part2 b",
        "Part 1",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{'a': 1}"),
    ("detectable_format:json_format", {}, "7", "[" * 100_000),
    ("detectable_format:title", {}, "<<tea>> is good", "<< >> <tea>"),
    ("combination:two_responses", {}, "tea ****** milk", "tea ****** tea"),
    ("combination:two_responses", {}, "****** tea ****** milk", "tea ****** ****** milk"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say tea."}, " say TEA. Well", "Well. Say tea."),
    ("startend:end_checker", {"end_phrase": " The end. "}, '"So. THE END."\n', "The end. Or not"),
    ("startend:quotation", {}, ' "tea" ', '"'),
    ("punctuation:no_comma", {}, "tea; milk", "tea, milk"),
]
NEED_PACKAGES: list[tuple[str, dict[str, Any], str, str]] = [
    ("language:response_language", {"language": "de"}, "der Tee", "tea"),
    ("change_case:english_capital", {}, "TEA", "DER TEE"),
    ("change_case:english_lowercase", {}, "tea", "Tea"),
    ("length_constraints:number_sentences", {"num_sentences": 2, **AT_LEAST_2}, "Tea. Milk.", "Tea."),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        "TEA and milk",
        "TEA, MILK",
    ),
]


@pytest.mark.parametrize(("kind", "arguments", "good", "bad"), CASES)
def test_each_kind_by_hand(kind: str, arguments: dict[str, Any], good: str, bad: str) -> None:
    follows = instructions.bind(kind, arguments, AT)
    assert follows(good)
    assert not follows(bad)


class CannotTell(Exception):
    pass


def detect(text: str) -> str:
    if not any(c.isalpha() for c in text):
        raise CannotTell
    return "de" if "der" in text.lower() else "en"


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for langdetect and nltk: what is tested is how they are asked and what is made of their answers."""
    seeded = SimpleNamespace(seed=None)
    language = SimpleNamespace(detect=detect, DetectorFactory=seeded, LangDetectException=CannotTell)
    words = SimpleNamespace(
        sent_tokenize=lambda t: [s for s in t.split(".") if s.strip()],
        word_tokenize=lambda t: t.replace(",", " ,").split(),
    )
    monkeypatch.setitem(sys.modules, "langdetect", language)
    monkeypatch.setitem(sys.modules, "nltk", words)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(("kind", "arguments", "good", "bad"), NEED_PACKAGES)
def test_each_kind_that_needs_a_package(kind: str, arguments: dict[str, Any], good: str, bad: str) -> None:
    follows = instructions.bind(kind, arguments, AT)
    assert follows(good)
    assert not follows(bad)
    if kind == "language:response_language":
        assert follows("123")  # no language can be told: followed, as in the published code
        assert sys.modules["langdetect"].DetectorFactory.seed == 0


def test_every_kind_has_a_case() -> None:
    assert {c[0] for c in (*CASES, *NEED_PACKAGES)} == set(instructions.INSTRUCTIONS)


def test_nltk_without_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_: str) -> list[str]:
        raise LookupError("punkt")

    monkeypatch.setitem(sys.modules, "nltk", SimpleNamespace(sent_tokenize=lost))
    follows = instructions.bind("length_constraints:number_sentences", {"num_sentences": 1, **AT_LEAST_2}, AT)
    with pytest.raises(XwinError, match="nltk lacks its data") as e:
        follows("Tea.")
    assert "punkt" in e.value.hint


@pytest.mark.parametrize("kind", [c[0] for c in NEED_PACKAGES])
def test_a_kind_whose_package_lacks_is_refused_by_name(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = next(c[1] for c in NEED_PACKAGES if c[0] == kind)
    for name in ("langdetect", "nltk"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    with pytest.raises(XwinError, match=rf"{AT[:9]}.*{kind} needs the package") as e:
        instructions.bind(kind, arguments, AT)
    assert e.value.hint.startswith("pip install")


@pytest.mark.parametrize(
    ("kind", "arguments", "what"),
    [
        ("keywords:loudness", {}, "unknown instruction 'keywords:loudness'"),
        ("punctuation:no_comma", {"keyword": "a"}, "takes no argument 'keyword'"),
        ("keywords:existence", {"keywords": None}, "lacks its argument 'keywords'"),
        ("keywords:existence", {"keywords": "tea"}, "should be a list of texts"),
        ("keywords:existence", {"keywords": ["tea", "(c"]}, "regular expressions"),
        ("keywords:frequency", {"keyword": "(", "frequency": 1, **AT_LEAST_2}, "a regular expression"),
        ("keywords:frequency", {"keyword": "a", "frequency": 1, "relation": "at most"}, "'less than' or 'at least'"),
        ("keywords:letter_frequency", {"letter": "ab", "let_frequency": 1, "let_relation": "at least"}, "one letter"),
        ("length_constraints:number_words", {"num_words": "3", **AT_LEAST_2}, "a whole number"),
        ("length_constraints:number_words", {"num_words": True, **AT_LEAST_2}, "a whole number"),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 2, "nth_paragraph": 0, "first_word": "a"},
            "from 1 on",
        ),
        ("startend:end_checker", {"end_phrase": " "}, "a text"),
    ],
)
def test_refusals(kind: str, arguments: dict[str, Any], what: str) -> None:
    with pytest.raises(XwinError, match=what) as e:
        instructions.bind(kind, arguments, AT)
    assert e.value.message.startswith(AT)


def test_null_arguments_are_left_out() -> None:
    given = {"num_bullets": 1, "keyword": None}  # as the hub's copy of IFEval has them
    assert instructions.bind("detectable_format:number_bullet_lists", given, AT)("- tea")


# -- the other kinds of checks


def met(check: dict[str, Any], text: str) -> bool:
    ask = [{"role": "user", "content": "q"}]
    (demand,) = demands(Prompt(prompt=ask, checks=[check]), "f.jsonl:1")
    return demand.strict(text)


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        ({"kind": "exact", "value": "tea"}, " tea\n", "Tea"),
        ({"kind": "regex", "value": r"^t.a$"}, "tea", "a tea"),
        ({"kind": "numeric", "value": 1234.5}, "It is $1,234.50.", "1,234.50, or 7"),
        ({"kind": "numeric", "value": "#### 72"}, "48 + 24 = 72", "72 − 1 = 71"),
        ({"kind": "numeric", "value": 3, "tolerance": 0.5}, "3.4", "3.6"),
        ({"kind": "max_words", "value": 2}, "two words", "three words here"),
        ({"kind": "keywords:existence", "value": {"keywords": ["tea"]}}, "Tea", "milk"),
        ({"kind": "punctuation:no_comma"}, "tea", "tea, milk"),
    ],
)
def test_each_kind_of_check(check: dict[str, Any], good: str, bad: str) -> None:
    assert met(check, good)
    assert not met(check, bad)
    assert not met(check, " ")


@pytest.mark.parametrize(
    ("text", "value"),
    [("no", None), ("10-3", 3), ("x=-5", -5), ("−2.5", -2.5), (".5", 0.5), ("1e3", 1000), ("A4 3.", 3), ("1,23", 23)],
)
def test_the_last_number(text: str, value: float | None) -> None:
    assert last_number(text) == value


@pytest.mark.parametrize(
    ("check", "what"),
    [
        ({"kind": "exact"}, r"checks\[0\].value: expected a text"),
        ({"kind": "regex", "value": "("}, "no regular expression"),
        ({"kind": "numeric", "value": "none"}, "expected a number"),
        ({"kind": "numeric", "value": 1, "tolerance": -1}, "tolerance: expected a number from 0 on"),
        ({"kind": "max_words", "value": "x"}, "should be a whole number"),
        ({"kind": "rhymes"}, "unknown check kind 'rhymes'"),
        ({"value": 1}, "an object with a kind"),
        ({"kind": "keywords:existence", "value": ["a"]}, "an object with the arguments"),
        ({"kind": "keywords:rhymes"}, "unknown instruction"),
    ],
)
def test_checks_are_refused_with_their_place(check: dict[str, Any], what: str) -> None:
    with pytest.raises(XwinError, match=what) as e:
        met(check, "tea")
    assert e.value.message.startswith("f.jsonl:1: field checks[0]")


def test_json_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in that knows of a schema only which type it names; without the package it is refused."""
    check = {"kind": "json_schema", "value": {"type": "object"}}
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(XwinError, match="needs the package jsonschema"):
        met(check, "{}")

    class Bad(Exception):
        message = "no type"

    class Validator:
        def __init__(self, schema: dict[str, str]) -> None:
            self.schema = schema

        @staticmethod
        def check_schema(schema: dict[str, str]) -> None:
            if "type" not in schema:
                raise Bad

        def is_valid(self, value: Any) -> bool:
            return isinstance(value, {"object": dict, "array": list}[self.schema["type"]])

    fake = ModuleType("jsonschema")
    fake.Draft202012Validator = Validator
    fake.validators = SimpleNamespace(validator_for=lambda schema, default: default)
    fake.exceptions = SimpleNamespace(SchemaError=Bad)
    monkeypatch.setitem(sys.modules, "jsonschema", fake)
    assert met(check, '```json\n{"a": 1}\n```')
    assert not met(check, "[1]")
    assert not met(check, "{")
    with pytest.raises(XwinError, match="is no JSON schema: no type"):
        met({"kind": "json_schema", "value": {}}, "{}")


def test_loose_forgives_lines_and_asterisks() -> None:
    assert variants("a*\nb\nc*") == ["a*\nb\nc*", "b\nc*", "a*\nb", "b", "a\nb\nc", "b\nc", "a\nb", "b"]
    ask = [{"role": "user", "content": "q"}]
    (demand,) = demands(Prompt(prompt=ask, checks=[{"kind": "exact", "value": "42"}]), "f:1")
    for text in ("Sure:\n42", "42\nBye", "Sure:\n*42*\nBye"):
        assert demand.loose(text) and not demand.strict(text)
    assert not demand.loose("Well,\nSure:\n42")
    assert set(KINDS) == {"exact", "regex", "numeric", "json_schema"}


def test_the_packages_that_two_kinds_need():
    pytest.importorskip("langdetect")
    german = instructions.bind("language:response_language", {"language": "de"}, "x")
    assert german("Das ist ein ganz gewöhnlicher deutscher Satz über das Wetter und den Regen.")
    assert not german("This is an ordinary English sentence about the weather and the rain.")
    pytest.importorskip("jsonschema")
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    fits = KINDS["json_schema"]({"kind": "json_schema", "value": schema}, "x")
    assert fits('{"a": 3}') and not fits('{"a": "3"}') and not fits("{}") and not fits("no json")
