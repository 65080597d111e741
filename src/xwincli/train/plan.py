"""Which items are learned in which step and row: decided in whole numbers before anything runs."""

from __future__ import annotations

import random
from collections.abc import Sequence

from xwincli.rows import pack

Steps = list[list[list[int]]]  # steps[s] -> rows of item indices


def plan(lengths: Sequence[int], *, batch: int, capacity: int, epochs: int, seed: int) -> Steps:
    """Shuffle, cut into batches of exactly ``batch`` items (an epoch's last may be short), pack into rows.

    Args:
        lengths: tokens of each item.
        batch: items per optimiser step.
        capacity: tokens per row; bounds memory, never changes a gradient.
        epochs: passes over the items, each in an order of its own.
        seed: of the shuffles.
    """
    steps: Steps = []
    for epoch in range(epochs):
        order = list(range(len(lengths)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        for at in range(0, len(order), batch):
            members = order[at : at + batch]
            rows = pack([lengths[i] for i in members], capacity)
            steps.append([[members[i] for i in row] for row in rows])
    return steps
