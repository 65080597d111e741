"""What the answers of several samples are worth: the reward model's pick among the first k, and the majority's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence


def rm_index(scores: Sequence[float], k: int) -> int:
    """Where the highest score among the first k lies; the first of several that are equal.

    Args:
        scores: of one prompt's samples in the order drawn, shape (N,).
        k: how many of them count.

    Raises:
        ValueError: k is out of 1..N.
    """
    _check(len(scores), k)
    return max(range(k), key=lambda i: scores[i])


def majority_index(answers: Sequence[Hashable], k: int) -> int:
    """Where the most frequent answer among the first k first stands; of equally frequent ones the earliest.

    An answer that could not be read (None) has no vote; 0 where none of the k could be.

    Args:
        answers: of one prompt's samples in the order drawn, shape (N,); equal values are one answer.
        k: how many of them vote.

    Raises:
        ValueError: k is out of 1..N.
    """
    _check(len(answers), k)
    votes = Counter(a for a in answers[:k] if a is not None)
    return answers.index(votes.most_common(1)[0][0]) if votes else 0


def rm_at_k(scores: Sequence[float], correct: Sequence[bool], k: int) -> float:
    """1 if the reward model's favourite among the first k samples is correct, else 0.

    Source: rm@k of Qwen2.5-Math (Yang et al. 2024, arXiv 2409.12122): best of the first k, a tie goes to the first.
    """
    return float(correct[rm_index(scores, k)])


def majority_at_k(answers: Sequence[Hashable], correct: Sequence[bool], k: int) -> float:
    """1 if the majority's answer among the first k samples is correct, else 0.

    Source: maj@k, self-consistency (Wang et al. 2022, arXiv 2203.11171); ties as Qwen2.5-Math resolves them.
    """
    return float(correct[majority_index(answers, k)])


def _check(total: int, k: int) -> None:
    if not 1 <= k <= total:
        raise ValueError(f"k must be between 1 and the {total} samples, this is {k}")
