"""The index tables of prompts and rows, against the definitions."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from xwincli.engines.native.cache import OVERHEAD, Layout, Store, tiles


@given(st.lists(st.tuples(st.integers(0, 70), st.integers(1, 3000)), max_size=40))
def test_tiles_cover_everything_and_waste_little(sequences):
    counts, lengths = [c for c, _ in sequences], [n for _, n in sequences]
    found = tiles(counts, lengths)
    assert [i for a, b, _, _ in found for i in range(a, b)] == list(range(len(sequences)))
    for a, b, width, length in found:
        assert (width, length) == (max(counts[a:b]), max(lengths[a:b]))
        work = sum(c * n for c, n in sequences[a:b])
        assert b - a == 1 or (b - a) * width * length <= 2 * work + OVERHEAD


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.lists(st.integers(1, 4000), min_size=7, max_size=7))
def test_gathering_and_going_back_is_the_identity_and_finds_the_right_prompt(prompt_of, lengths):
    layout = Layout(np.asarray(prompt_of), np.asarray(lengths), torch.device("cpu"))
    heads = 3
    gathers, back = layout.tables(heads)
    rows = torch.arange(len(prompt_of) * heads)
    together = torch.cat([rows[g] for g in gathers])
    assert together[back].tolist() == rows.tolist()
    # the place a row is gathered to lies in its prompt's block, at its kv head
    prompt = torch.cat([torch.arange(a, b).repeat_interleave(heads * width) for a, b, width, _ in layout.tiles])
    head = torch.cat([torch.arange(heads).repeat_interleave(width).repeat(b - a) for a, b, width, _ in layout.tiles])
    assert prompt[back].view(-1, heads).tolist() == [[p] * heads for p in prompt_of]
    assert head[back].view(-1, heads).tolist() == [list(range(heads))] * len(prompt_of)
    assert layout.longest == max(n for a, b, _, n in layout.tiles for _ in range(a, b))


def test_a_store_keeps_what_it_holds_when_it_grows_and_moves():
    store, like = Store(), torch.zeros(1, 2, 1, 4)
    store.reserve(2, 3)
    keys, values = store.layer(0, like, like)
    assert keys.shape == (2, 2, 32, 4)
    keys[1, :, :3], values[1, :, :3] = 7, 8
    store.reserve(5, 40)
    keys, values = store.layer(0, like, like)
    assert keys.shape == (5, 2, 64, 4)
    assert (keys[1, :, :3] == 7).all() and (values[1, :, :3] == 8).all() and keys.sum() == 7 * 24
    store.move(1, 4, 2)
    assert keys[4, 0, :3, 0].tolist() == [7, 7, 0] and values[4, 0, :3, 0].tolist() == [8, 8, 0]
    assert store.layer(0, like, like)[0] is keys
    store.move(4, 4, 0)
    assert keys.isfinite().all()
