"""Replies and the verdicts in them, by hand; real replies of other people's judges."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwincli.judges import Verdict
from xwincli.judges.llm.readers import READERS, Settings
from xwincli.judges.llm.said import Said, Unreadable

RUBRIC = Settings(weights={"truth": 3, "clarity": 1})


def read(reader: str, text: str, settings: Settings = RUBRIC, first=None):
    """A verdict's preference or a rating; None for what cannot be read."""
    try:
        found = READERS[reader].read(Said(text=text, first=first), settings)
    except Unreadable:
        return None
    return found.preference if isinstance(found, Verdict) else found.rating


def pair(a, b, preference):
    return json.dumps({"reason": "r", "rating_a": a, "rating_b": b, "preference": preference})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (pair(3, 8, "B"), 1.0),
        (pair(8, 3, "a"), 0.0),
        (pair(5, 5, "tie"), 0.5),
        (pair(5, 5, "A"), 0.0),  # equal ratings leave the preference free
        ("Well. ```json\n" + pair(3, 8, "B") + "\n``` I hope that helps.", 1.0),
        ("At first " + pair(8, 3, "A") + " but no: " + pair(3, 8, "B"), 1.0),  # the last object is the verdict
        (pair(8, 3, "B"), None),  # the preference against its own ratings
        (pair(0, 8, "B"), None),
        (pair(True, 8, "B"), None),
        (pair("3", 8, "B"), None),
        (pair(3, 8, "both"), None),
        ('{"preference": "B"}', None),
        ("B is better", None),
        ("", None),
    ],
)
def test_a_comparison_with_ratings(text, wanted):
    assert read("pairwise", text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("so [[A]]", 0.0), ("[[ b ]]", 1.0), ("[[C]]", 0.5), ("[[A]] [[A]]", 0.0), ("[[A]] or [[B]]", None), ("A", None)],
)
def test_a_winner_in_brackets(text, wanted):
    assert read("winner", text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[[A>>B]]", 0.0),
        ("**[[A>B]]**", 0.25),
        ("My final verdict is tie: [[A=B]]", 0.5),
        ("[[b>a]]", 0.75),
        ("[[A<<B]]", 1.0),
        ("[[A>B]] ... wait, [[B>A]]", None),
        ("[[A>A]]", None),
        ("[A>B]", None),
        ("[[A]]", None),
    ],
)
def test_five_labels(text, wanted):
    assert read("five", text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Rating: [[8]]", 8),
        ("[[7.5]]", 7.5),
        ("[[8]] so [[8]]", 8),
        ("[[8]] or [[9]]", None),
        ("[[100]]", None),
        ("[[0]]", None),
        ("[[٨]]", None),
        ("[[07]]", None),
        ("[8]", None),
        ("[[-3]]", None),
        ("[[99999999999999999]]", None),
    ],
)
def test_a_rating_in_brackets(text, wanted):
    assert read("rating", text) == wanted


def test_a_number_at_the_end():
    assert [read("trailing", t) for t in ("Good.\n\n9", "10 \n", "It is a 3\n")] == [9, 10, 3]
    assert [read("trailing", t) for t in ("8.5", "-5", "11", "0", "**7**", "I rate it 8.", "")] == [None] * 7
    assert [read("trailing", t) for t in ("Rating: 7/10", "Rating: 6 out of 10", "7 of 10\n")] == [None] * 3


def test_a_rubric_is_its_weighted_mean():
    assert read("rubric", '{"reason": "x", "truth": 8, "clarity": 4}') == 7  # (3 * 8 + 4) / 4
    assert read("rubric", '{"truth": 8}') is None
    assert read("rubric", '{"truth": 8, "clarity": 11}') is None


def test_support_for_a_claim():
    said = [read("support", json.dumps({"reason": "r", "verdict": v})) for v in ("supported", "Absent", "contradicted")]
    assert said == [1, 0, -1]
    assert read("support", '{"verdict": "maybe"}') is None


def test_one_token_s_chances():
    first = [("M", math.log(0.6)), ("m", math.log(0.2)), ("The", math.log(0.1))]
    assert read("first-token", "M", first=first) == pytest.approx(0.75)
    assert read("first-token", "M", first=[("M", -0.1)]) == 1  # the missing one counts nothing
    assert read("first-token", "The", first=[("The", -0.1)]) is None
    assert [read("first-token", t) for t in ("m", " M\n", "Model m", "")] == [0, 1, None, None]


@given(st.text(max_size=200), st.sampled_from(sorted(READERS)))
def test_no_text_breaks_a_reader(text, reader):
    read(reader, text)


FIELDS = ["rating_a", "rating_b", "preference", "verdict", "truth", "clarity"]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(FIELDS), inner),
)


@given(ANYTHING, st.sampled_from(["pairwise", "rubric", "support"]))
def test_no_json_breaks_a_reader(value, reader):
    found = read(reader, json.dumps(value))
    assert found is None or -1 <= found <= 10
