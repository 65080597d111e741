"""The plan: exact batches, nothing lost, the same for the same seed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xwincli.train.plan import plan


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    batch=st.integers(1, 20),
    capacity=st.integers(10, 120),
    epochs=st.integers(1, 3),
)
def test_every_item_once_an_epoch_in_batches_of_exactly_the_size(lengths, batch, capacity, epochs):
    steps = plan(lengths, batch=batch, capacity=capacity, epochs=epochs, seed=3)
    per_epoch = -(-len(lengths) // batch)
    assert len(steps) == per_epoch * epochs
    for epoch in range(epochs):
        part = steps[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(i for rows in part for row in rows for i in row) == list(range(len(lengths)))
        sizes = [sum(map(len, rows)) for rows in part]
        assert all(size == batch for size in sizes[:-1])
        assert sizes[-1] == len(lengths) - batch * (per_epoch - 1)
    for rows in steps:
        assert all(len(row) == 1 or sum(lengths[i] for i in row) <= capacity for row in rows)


def test_epochs_and_seeds_differ():
    lengths = [1] * 40
    first, second = (plan(lengths, batch=40, capacity=40, epochs=2, seed=0)[e][0] for e in (0, 1))
    assert first != second
    assert plan(lengths, batch=40, capacity=40, epochs=1, seed=1)[0][0] != first
    assert plan(lengths, batch=40, capacity=40, epochs=1, seed=0)[0][0] == first
