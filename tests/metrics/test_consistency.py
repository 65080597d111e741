"""Agreement, precision and recall by hand and against scikit-learn."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from xwincli.metrics.consistency import agreement, confusion, per_class


def test_agreement_by_hand() -> None:
    assert agreement(["a"]) == 1 and agreement(["a", "a", "a"]) == 1
    assert agreement(["a", "b", "c", "d"]) == 0.25
    assert agreement(["a", "a", "b", "c"]) == pytest.approx(4 / 16 + 1 / 16 + 1 / 16)
    with pytest.raises(ValueError, match="one answer"):
        agreement([])


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_agreement_is_the_chance_that_two_draws_are_alike(labels: list[int]) -> None:
    alike = sum(a == b for a in labels for b in labels) / len(labels) ** 2
    assert agreement(labels) == pytest.approx(alike) and 1 / len(labels) <= agreement(labels) + 1e-12 <= 1 + 1e-9


def test_per_class_by_hand() -> None:
    found = per_class(["x", "x", "y", "z"], ["x", "y", "y", "y"], ["x", "y", "z", "w"])
    assert (found["x"].precision, found["x"].recall) == (1, 0.5) and found["x"].f1 == pytest.approx(2 / 3)
    assert (found["y"].precision, found["y"].recall) == (pytest.approx(1 / 3), 1) and found["y"].f1 == 0.5
    assert math.isnan(found["z"].precision) and found["z"].recall == 0 and found["z"].f1 == 0
    assert math.isnan(found["w"].recall) and math.isnan(found["w"].f1) and found["w"].support == 0
    assert confusion(["x", "x", "y", "z"], ["x", "y", "y", "y"], ["x", "y", "z"]) == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=40))
def test_per_class_is_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    truth, said = [t for t, _ in pairs], [s for _, s in pairs]
    want = precision_recall_fscore_support(truth, said, labels=list("abc"), zero_division=float("nan"))
    found = per_class(truth, said, "abc")
    for i, c in enumerate("abc"):
        ours = (found[c].precision, found[c].recall, found[c].f1)
        assert ours == pytest.approx([column[i] for column in want[:3]], nan_ok=True)
        assert found[c].support == want[3][i] and found[c].called == said.count(c)
    assert confusion(truth, said, "abc") == confusion_matrix(truth, said, labels=list("abc")).tolist()


def test_two_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        per_class(["a"], [], ["a"])
