"""Where keys and values lie while sampling: prompts once for all their responses, and one slot a response."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from xwincli.engines.native.pages import Pages

Ints = npt.NDArray[np.int64]

OVERHEAD = 2048  # wasted cells that cost as much as one more product


class Store:
    """Keys and values of several sequences: per layer two buffers (slot, kv head, position, dim).

    A buffer is made when its layer first asks, and grows when ``reserve`` asked for more. Live sequences
    stand in slots 0, 1, 2, … without holes (``move`` fills one), so a batch reads its buffer as it lies.
    """

    def __init__(self) -> None:
        self.slots = self.length = 0
        self.layers: dict[int, tuple[Pages, Pages]] = {}

    def reserve(self, slots: int, length: int) -> None:
        """Make room for ``slots`` sequences of up to ``length`` tokens."""
        if slots > self.slots:
            self.slots = max(slots, self.slots * 3 // 2)
        if length > self.length:
            self.length = -(-max(length, self.length * 3 // 2) // 32) * 32

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's buffers; ``key`` and ``value`` (1, kv heads, T, dim) show the shape they must have."""
        old = self.layers.get(index)
        if old is None or old[0].cells.shape[0] < self.slots or old[0].cells.shape[2] < self.length:
            # zeros, not empty: a masked position still takes part with weight 0, and 0 times NaN is NaN
            new = [Pages((self.slots, like.shape[1], self.length, like.shape[3]), like) for like in (key, value)]
            for i, pages in enumerate(old or ()):
                s, _, t, _ = pages.cells.shape
                new[i].cells[:s, :, :t] = pages.cells
            self.layers[index] = (new[0], new[1])
        keys, values = self.layers[index]
        return keys.cells, values.cells

    @torch.inference_mode()
    def move(self, source: int, target: int, length: int) -> None:
        """Bring the first ``length`` positions of a slot to another; the first is free then."""
        for pages in (p for pair in self.layers.values() for p in pair):
            if source != target:
                pages.forget(target)
                pages.cells[target, :, :length] = pages.cells[source, :, :length]
            pages.forget(source)


def tiles(counts: Sequence[int], lengths: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Cut neighbouring sequences into runs that are worked on as one padded block.

    Args:
        counts: queries of each sequence.
        lengths: keys of each sequence.

    Returns:
        (first, end, most queries, most keys) of each run; a run's padding at most doubles its work.
    """
    found = []
    first = width = length = work = 0
    for i, (count, keys) in enumerate(zip(counts, lengths, strict=True)):
        w, n = max(width, count), max(length, keys)
        if i > first and (i - first + 1) * w * n > 2 * (work + count * keys) + OVERHEAD:
            found.append((first, i, width, length))
            first, work, w, n = i, 0, count, keys
        width, length, work = w, n, work + count * keys
    if len(counts) > first:
        found.append((first, len(counts), width, length))
    return found


class Layout:
    """Which rows read which prompt, as index tables; it holds until a row enters or leaves.

    Args:
        prompt_of: (rows,) each row's slot in the store of prompts.
        lengths: (prompts,) tokens of each prompt.
    """

    def __init__(self, prompt_of: Ints, lengths: Ints, device: torch.device) -> None:
        self.prompt_of, self.lengths, self.device = prompt_of, lengths, device
        order = np.argsort(prompt_of, kind="stable")
        counts = np.bincount(prompt_of, minlength=len(lengths))
        starts = np.cumsum(counts) - counts
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order)) - starts[prompt_of[order]]
        self.rank = rank  # a row's number among the rows of its prompt
        self.tiles = [t for t in tiles(counts.tolist(), lengths.tolist()) if t[2]]
        self.rows: list[Ints] = []  # per tile (prompts, most rows): its rows, padded with any row
        for first, end, width, _ in self.tiles:
            place = starts[first:end, None] + np.minimum(np.arange(width), np.maximum(counts[first:end, None] - 1, 0))
            self.rows.append(order[np.minimum(place, len(order) - 1)])
        self._tables: dict[int, tuple[list[Tensor], Tensor]] = {}

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt in use."""
        return max(t[3] for t in self.tiles)

    def tables(self, heads: int) -> tuple[list[Tensor], Tensor]:
        """Index tables for tensors whose first dimension is (row, kv head).

        Returns:
            per tile the gather into (prompt, kv head, row of the prompt), flat; and one gather from all tiles'
            results, end to end, back to (row, kv head).
        """
        if heads not in self._tables:
            head = np.arange(heads)
            gathers, back, base = [], np.empty((len(self.prompt_of), heads), np.int64), 0
            for (first, end, width, _), rows in zip(self.tiles, self.rows, strict=True):
                gathers.append(rows[:, None, :] * heads + head[None, :, None])
                mine = np.flatnonzero((self.prompt_of >= first) & (self.prompt_of < end))
                group = self.prompt_of[mine] - first
                back[mine] = base + (group[:, None] * heads + head) * width + self.rank[mine, None]
                base += (end - first) * heads * width
            flat = [torch.from_numpy(g.reshape(-1)).to(self.device) for g in gathers]
            self._tables[heads] = (flat, torch.from_numpy(back.reshape(-1)).to(self.device))
        return self._tables[heads]
