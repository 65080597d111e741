"""Charts: ticks and bins by hand, points where the scale says, text escaped, and well-formed SVG."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwincli.report import svg


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (5.7, 10, [5, 6, 7, 8, 9, 10]),
        (0.49, 0.71, [0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75]),
        (3, 3, [1, 2, 3, 4, 5]),
        (0, 0, [-0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6]),
    ],
)
def test_ticks(low: float, high: float, expected: list[float]) -> None:
    assert svg.ticks(low, high) == pytest.approx(expected)


@given(low=st.floats(-1e6, 1e6), size=st.floats(1e-3, 1e6), about=st.integers(2, 8))
def test_ticks_reach_over_both_ends_and_are_few(low: float, size: float, about: int) -> None:
    marks = svg.ticks(low, low + size, about)
    slack = 1e-6 * max(abs(low), size)
    assert marks[0] <= low + slack and marks[-1] >= low + size - slack and 2 <= len(marks) <= about + 3


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (0.05, "0.05"), (3.25, "3.25"), (12500, "12.5k"), (3e-5, "3e-5"), (-2, "-2")]
)
def test_number(value: float, shown: str) -> None:
    assert svg.number(value) == shown


def test_bins_by_hand() -> None:
    assert svg.bins([1, 1, 5.5, 10], (1, 10), 9) == [0.5, 0, 0, 0, 0.25, 0, 0, 0, 0.25]
    assert svg.bins([], (0, 1), 2) == [0, 0] and svg.bins([3, 3], (3, 3), 2) == [1, 0]


def test_a_doubling_is_one_step_on_the_log_axis() -> None:
    out = svg.lines("t", [svg.Series("m", [(1, 0), (2, 1), (4, 2), (8, 3)])], log2=True)
    at = [float(x) for x in re.findall(r'<circle[^>]* cx="([\d.]+)"', out)]
    assert [b - a for a, b in itertools.pairwise(at)] == pytest.approx([at[1] - at[0]] * 3, abs=0.11)
    assert at[0] == 44 and at[-1] == 300 - 14


def test_higher_is_further_up_and_the_band_encloses_the_line() -> None:
    out = svg.lines("t", [svg.Series("m", [(0, 1), (1, 3)], bounds=[(0.5, 1.5), (2, 4)])])
    ys = [float(y) for y in re.findall(r'<circle[^>]* cy="([\d.]+)"', out)]
    assert ys[1] < ys[0]
    band = re.search(r'class="band c1" d="M([^Z]+)Z"', out)
    assert band
    heights = [float(p.split()[1]) for p in band[1].split("L")]
    assert heights[0] < ys[0] < heights[3] and heights[1] < ys[1] < heights[2]


@pytest.mark.parametrize(
    "out",
    [
        svg.lines("a <b> & c", [svg.Series('"<i>"', [(1, 2), (2, 3)])], x_name="<x>"),
        svg.histogram("<h>", [1, 2, 3], ghost=[2], bounds=(1, 3), tallest=1),
        svg.bars([("<n>", 3, "&"), ("m", 0, "0s")]),
        svg.interval(60, 55, 65),
    ],
)
def test_text_is_escaped_and_the_picture_is_well_formed(out: str) -> None:
    ElementTree.fromstring(out)
    for raw in ("<b>", "<i>", "<x>", "<h>", "<n>", "& c"):
        assert raw not in out


def test_no_points_no_picture() -> None:
    assert svg.lines("t", [svg.Series("m", [])]) == ""
