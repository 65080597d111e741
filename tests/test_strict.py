"""Strict JSON: equal to the standard library on good text, and a sentence with the field on the rest."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwincli.strict import DEPTH, Strict, oddity

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES, st.booleans())
def test_equals_the_standard_library_on_good_json(value, ascii):
    text = json.dumps(value, ensure_ascii=ascii)
    assert Strict()(f" {text}\r\n") == json.loads(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "b": 2, "a": 1}', "field a: stands twice"),
        ('{"x": [{"k": 1, "k": 1}]}', "field k: stands twice"),
        ('{"scores": [NaN, 0.5]}', "field scores[0]: nan is not a finite number"),
        ('{"scores": [1, -Infinity]}', "field scores[1]: -inf"),
        ('{"a": {"b": 1e999}}', "field a.b: inf"),
        ('{"messages": [{"content": "bad \\ud83d end"}]}', "field messages[0].content: half of a surrogate"),
        ('{"\\uD83D": 1}', "a name in it holds half of a surrogate"),
        ('{"id": ' + "9" * 5000 + "}", "more than 4300 digits"),
        ('{"a": ' + "[" * DEPTH + "]" * DEPTH + "}", f"nested more than {DEPTH} deep"),
        ("[" * 10_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_refuses_with_the_field(text, said):
    with pytest.raises(ValueError) as e:
        Strict()(text)
    assert said in str(e.value)


def test_lets_pass_what_is_only_unusual():
    strict = Strict()
    assert strict('"\\ud83d\\ude00"') == "\U0001f600"
    assert strict('{"n": ' + "9" * 4300 + "}")["n"] == 10**4300 - 1
    assert strict('["NaN", "Infinity", "1e999"]') == ["NaN", "Infinity", "1e999"]
    assert strict('"' + "[" * 1000 + '"') == "[" * 1000  # brackets inside text nest nothing
    assert strict("[" * DEPTH + "]" * DEPTH) is not None
    assert strict('"a\\u0000b"') == "a\0b"


def test_a_refusal_leaves_no_trace_on_the_next_text():
    strict = Strict()
    with pytest.raises(ValueError, match="finite"):
        strict("[NaN]")
    assert strict("[1.5]") == [1.5]


def test_oddity_of_values_that_never_were_json():
    assert oddity({"a": [1, {"b": b"x"}]}) == "field a[1].b: a bytes has no place in JSON"
    assert oddity({"a": math.inf}) == "field a: inf is not a finite number"
    assert oddity({"a": [None, True, 1, 1.5, "x", {}]}) is None
