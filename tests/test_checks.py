"""What each kind of check lets pass, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwincli.checks import HELD_OUT, KINDS, closed, describe, passes, sentences, words
from xwincli.errors import XwinError

CASES = [
    ("max_words", 3, "one two three", True),
    ("max_words", 3, "one two three four", False),
    ("max_words", 2, "don't over-think", True),
    ("min_words", 3, "one two three", True),
    ("min_words", 3, "one, two.", False),
    ("bullets", 2, "- tea\n- milk", True),
    ("bullets", 2, "Here they are:\n* tea\n  * milk", True),
    ("bullets", 2, "1. tea\n2) milk", True),
    ("bullets", 2, "- tea\n- milk\n- sugar", False),
    ("bullets", 2, "tea - milk - sugar", False),
    ("bullets", 1, "-\n", False),
    ("bullets", 1, "-5 degrees is cold", False),
    ("mentions", "tea", "Tea's best hot.", True),
    ("mentions", "tea", "He has two teas.", True),
    ("mentions", "tea", "The team is steady.", False),
    ("mentions", "bus", "Buses are late.", True),
    ("mentions", "library", "Libraries are quiet.", True),
    ("mentions", "ice cream", "I like ice cream!", True),
    ("mentions", "c++", "I write C++ daily.", True),
    ("avoids", "subject", "Lost umbrella on the bus", True),
    ("avoids", "subject", "Subject: lost umbrella", False),
    ("lower_case", True, "a quiet walk by the sea", True),
    ("lower_case", True, "A quiet walk", False),
    ("lower_case", True, "ça été très bien", True),
    ("no_commas", True, "Tea is hot and milk is cold.", True),
    ("no_commas", True, "Tea, milk.", False),
    ("one_sentence", True, "Tea is a hot drink.", True),
    ("one_sentence", True, "Mr. Hall drinks 2.5 cups, e.g. at noon.", True),
    ("one_sentence", True, "Tea is hot. Milk is cold.", False),
    ("one_sentence", True, "Tea is a hot", False),
    ("one_sentence", True, 'She said "no."', True),
    ("ends_with", "?", "Is it hot?", True),
    ("ends_with", "?", 'He asked: "Is it hot?"', True),
    ("ends_with", "?", "Is it hot? Yes.", False),
    ("starts_with", "Try", "Try it.", True),
    ("starts_with", "try", '"Try it."', True),
    ("starts_with", "Try", "Trying it is fine.", False),
    ("starts_with", "Could you", "could you come?", True),
    ("sentences", 2, "Tea is hot. Milk is cold!", True),
    ("sentences", 2, "Tea is hot. Milk is", False),
    ("sentences", 2, "Wait... what? No.", False),
    ("has_number", True, "Wait 5 minutes.", True),
    ("has_number", True, "Wait three minutes.", True),
    ("has_number", True, "Wait for someone often.", False),
]


@pytest.mark.parametrize(("kind", "value", "text", "expected"), CASES)
def test_each_kind(kind, value, text, expected):
    assert passes({"kind": kind, "value": value}, text) is expected


def test_every_kind_has_both_outcomes_above():
    assert {(c[0], c[3]) for c in CASES} == {(k, o) for k in KINDS for o in (True, False)}
    assert set(HELD_OUT) < set(KINDS)


def test_a_value_that_can_only_be_true_may_be_left_out():
    assert passes({"kind": "no_commas"}, "no comma here")
    assert not passes({"kind": "no_commas"}, "a, b")


@pytest.mark.parametrize("kind", KINDS)
def test_empty_text_meets_nothing(kind):
    value = {int: 0, str: "x", bool: True}[KINDS[kind].value]
    assert not passes({"kind": kind, "value": value}, " \n")


def test_unknown_kind_lists_the_known():
    with pytest.raises(XwinError) as e:
        passes({"kind": "max_word", "value": 3}, "text")
    assert "'max_word'" in e.value.message
    assert all(kind in e.value.hint for kind in KINDS)
    with pytest.raises(XwinError):
        describe({"value": 3})


@pytest.mark.parametrize(
    "check",
    [
        {"kind": "max_words"},
        {"kind": "max_words", "value": "3"},
        {"kind": "max_words", "value": True},
        {"kind": "max_words", "value": -1},
        {"kind": "mentions", "value": ""},
        {"kind": "mentions", "value": ["tea"]},
        {"kind": "lower_case", "value": False},
        {"kind": "lower_case", "value": 1},
    ],
)
def test_a_wrong_value_is_refused(check):
    with pytest.raises(XwinError, match=check["kind"]):
        passes(check, "text")


def test_descriptions_read_as_words():
    assert describe({"kind": "max_words", "value": 20}) == "at most 20 words"
    assert describe({"kind": "bullets", "value": 1}) == "exactly 1 bullet"
    assert describe({"kind": "mentions", "value": "tea"}) == "mentions 'tea'"
    assert describe({"kind": "no_commas"}) == "no commas"


@given(st.lists(st.text("abc xyz", min_size=1).filter(str.strip), min_size=0, max_size=6))
def test_bullets_are_counted_exactly(points):
    text = "\n".join(f"- {p.strip()}" for p in points)
    for k in range(1, 8):
        assert passes({"kind": "bullets", "value": k}, text) is (k == len(points))


@given(st.lists(st.sampled_from(["Tea is hot.", "Why not?", "Go on!", 'She said "yes."']), min_size=1, max_size=5))
def test_sentences_add_up(pieces):
    assert sentences(" ".join(pieces)) == len(pieces)
    assert closed(" ".join(pieces))


@given(st.text())
def test_a_floor_and_a_ceiling_agree_on_the_count(text):
    n = len(words(text))
    if text.strip():
        assert passes({"kind": "max_words", "value": n}, text)
        assert passes({"kind": "min_words", "value": n}, text)
        assert not passes({"kind": "min_words", "value": n + 1}, text)
