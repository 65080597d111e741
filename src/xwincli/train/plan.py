"""Which items are learned in which step, by which process, in which row: whole numbers, before anything runs."""

from __future__ import annotations

import random
from collections.abc import Sequence

from xwincli.rows import pack

Rows = list[list[int]]  # rows of item indices
Steps = list[list[Rows]]  # steps[s][rank] -> rows


def plan(lengths: Sequence[int], *, batch: int, capacity: int, world: int, epochs: int, seed: int) -> Steps:
    """Shuffle, cut into batches of exactly ``batch`` items (an epoch's last may be short), share out, pack into rows.

    Which items a step takes depends on neither ``world`` nor ``capacity``. In a step every rank has equally many
    rows, so that collectives inside a forward cannot hang; where there is less to do a row is empty.

    Args:
        lengths: tokens of each item.
        batch: items per optimiser step, over all ranks.
        capacity: tokens per row; bounds memory, never changes a gradient.
        world: processes that learn together.
        epochs: passes over the items, each in an order of its own.
        seed: of the shuffles.
    """
    steps: Steps = []
    for epoch in range(epochs):
        order = list(range(len(lengths)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        for at in range(0, len(order), batch):
            shares = _share_out(order[at : at + batch], lengths, world)
            ranks = [_rows(members, lengths, capacity) for members in shares]
            most = max(map(len, ranks))
            steps.append([_stretch(rows, most) for rows in ranks])
    return steps


def _share_out(members: list[int], lengths: Sequence[int], world: int) -> list[list[int]]:
    """Items to ranks, the longest first, each to the rank with the fewest tokens so far."""
    if world == 1:
        return [members]
    shares: list[list[int]] = [[] for _ in range(world)]
    load = [0] * world
    for i in sorted(members, key=lambda i: -lengths[i]):
        least = load.index(min(load))
        shares[least].append(i)
        load[least] += lengths[i]
    return shares


def _rows(members: list[int], lengths: Sequence[int], capacity: int) -> Rows:
    return [[members[i] for i in row] for row in pack([lengths[i] for i in members], capacity)]


def _stretch(rows: Rows, count: int) -> Rows:
    """The same items in ``count`` rows: the fullest is halved while one can be, then empty rows are added."""
    rows = list(rows)
    while len(rows) < count:
        fullest = max(range(len(rows)), key=lambda r: len(rows[r])) if rows else -1
        if fullest < 0 or len(rows[fullest]) < 2:
            rows.append([])
        else:
            row = rows[fullest]
            rows[fullest] = row[::2]
            rows.append(row[1::2])
    return rows
