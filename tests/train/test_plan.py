"""The plan: exact batches, nothing lost, every rank equally many rows, the same for the same seed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xwincli.train.plan import plan


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    batch=st.integers(1, 20),
    capacity=st.integers(10, 120),
    world=st.integers(1, 9),
    epochs=st.integers(1, 3),
)
def test_every_item_once_an_epoch_in_batches_of_exactly_the_size(lengths, batch, capacity, world, epochs):
    steps = plan(lengths, batch=batch, capacity=capacity, world=world, epochs=epochs, seed=3)
    assert steps == plan(lengths, batch=batch, capacity=capacity, world=world, epochs=epochs, seed=3)
    per_epoch = -(-len(lengths) // batch)
    assert len(steps) == per_epoch * epochs
    for epoch in range(epochs):
        part = steps[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(i for ranks in part for rows in ranks for row in rows for i in row) == list(range(len(lengths)))
        sizes = [sum(len(row) for rows in ranks for row in rows) for ranks in part]
        assert all(size == batch for size in sizes[:-1])
        assert sizes[-1] == len(lengths) - batch * (per_epoch - 1)
    for ranks in steps:
        assert len(ranks) == world
        assert len({len(rows) for rows in ranks}) == 1
        for row in (row for rows in ranks for row in rows):
            assert len(row) <= 1 or sum(lengths[i] for i in row) <= capacity


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    batch=st.integers(1, 20),
    world=st.integers(2, 9),
)
def test_what_a_step_learns_depends_on_neither_world_nor_capacity(lengths, batch, world):
    """So one process and many take the same steps, and a checkpoint of one is good for the other."""
    one = plan(lengths, batch=batch, capacity=1000, world=1, epochs=1, seed=0)
    many = plan(lengths, batch=batch, capacity=60, world=world, epochs=1, seed=0)
    members = lambda steps: [sorted(i for rows in ranks for row in rows for i in row) for ranks in steps]
    assert members(one) == members(many)


def test_ranks_are_balanced_by_tokens():
    (ranks,) = plan([40, 30, 20, 10, 10, 10], batch=6, capacity=100, world=2, epochs=1, seed=0)
    assert [sum([40, 30, 20, 10, 10, 10][i] for row in rows for i in row) for rows in ranks] == [60, 60]


def test_rows_are_split_before_empty_ones_are_added():
    (ranks,) = plan([50, 25, 25], batch=3, capacity=50, world=2, epochs=1, seed=0)
    assert sorted(len(row) for rows in ranks for row in rows) == [1, 2]
    (ranks,) = plan([50, 50, 25, 25, 25, 25], batch=6, capacity=60, world=2, epochs=1, seed=0)
    assert all(row for rows in ranks for row in rows)
    (ranks,) = plan([5], batch=4, capacity=50, world=3, epochs=1, seed=0)
    assert ranks == [[[0]], [[]], [[]]]


def test_epochs_and_seeds_differ():
    lengths = [1] * 40
    go = lambda epochs, seed: plan(lengths, batch=40, capacity=40, world=1, epochs=epochs, seed=seed)
    first, second = (go(2, 0)[e][0][0] for e in (0, 1))
    assert first != second
    assert go(1, 1)[0][0][0] != first
    assert go(1, 0)[0][0][0] == first
