"""rm@k and maj@k worked by hand; real samples with known answers are in tests/test_cases_rm.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwincli.metrics.best_of_n import best_of_n, pass_at_k, pass_hat_k
from xwincli.metrics.majority import majority_at_k, majority_index, rm_at_k, rm_index

ANSWERS = ["3", "4", "4", "3", None]
CORRECT = [False, True, True, False, False]
SCORES = [0.2, 0.1, 0.2, 0.9, 0.9]


def test_the_reward_models_pick_by_hand() -> None:
    assert [rm_index(SCORES, k) for k in (1, 2, 3, 4, 5)] == [0, 0, 0, 3, 3]  # equal scores: the first
    assert [rm_at_k([0.1, 0.5, 0.3], [False, True, False], k) for k in (1, 2, 3)] == [0, 1, 1]


def test_the_majority_by_hand() -> None:
    # k=2: one vote each, the earlier wins; k=3: two for 4; k=4: two each again; the unread answer has no vote
    assert [majority_index(ANSWERS, k) for k in (1, 2, 3, 4, 5)] == [0, 0, 1, 0, 0]
    assert [majority_at_k(ANSWERS, CORRECT, k) for k in (1, 2, 3, 4, 5)] == [0, 0, 1, 0, 0]


def test_an_unread_answer_never_wins() -> None:
    assert majority_index([None, None, "7"], 3) == 2
    assert majority_at_k([None, None], [False, False], 2) == 0


@pytest.mark.parametrize("k", [0, 6])
def test_refuses_k_out_of_range(k: int) -> None:
    with pytest.raises(ValueError, match="between 1 and the 5"):
        rm_index(SCORES, k)
    with pytest.raises(ValueError, match="between 1 and the 5"):
        majority_index(ANSWERS, k)


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=8, unique_by=lambda t: t[0]))
def test_among_all_samples_the_pick_is_best_of_n_s(samples: list[tuple[int, bool]]) -> None:
    scores, correct = [s for s, _ in samples], [c for _, c in samples]
    assert rm_at_k(scores, correct, len(samples)) == pytest.approx(best_of_n(scores, correct, len(samples)))


def test_pass_at_k_and_pass_hat_k_by_hand() -> None:
    # 2 of 4 pass: pairs that hold a pass 5 of 6, pairs that are both passes 1 of 6
    passed = [True, False, True, False]
    assert pass_at_k(passed, 1) == pytest.approx(0.5) and pass_hat_k(passed, 1) == pytest.approx(0.5)
    assert pass_at_k(passed, 2) == pytest.approx(5 / 6) and pass_hat_k(passed, 2) == pytest.approx(1 / 6)
    assert pass_at_k(passed, 4) == 1 and pass_hat_k(passed, 4) == 0
