"""Spread and consistency by hand."""

from __future__ import annotations

import math

import pytest

from xwincli.metrics.stability import consistency, spread


def test_by_hand() -> None:
    assert spread([2, 4, 4, 4, 5, 5, 7, 9]) == pytest.approx(math.sqrt(32 / 7))
    assert spread([3, 3, 3]) == 0 and math.isnan(spread([3]))
    assert consistency([3, 3], 1, 10) == 1
    assert consistency([1, 10], 1, 10) == pytest.approx(1 - math.sqrt(40.5) / 9)


def test_refuses_an_empty_scale() -> None:
    with pytest.raises(ValueError, match="scale"):
        consistency([1, 2], 5, 5)
