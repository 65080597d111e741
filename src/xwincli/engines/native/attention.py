"""Attention while sampling: prompts are read once for all their responses, nothing is repeated or concatenated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from xwincli.engines.native.cache import Ints, Layout, Store, tiles

NAME = "xwin_decode"
NEVER = -1e30  # not -inf: a query whose keys are all masked must give a number, which then weighs nothing
# keywords of a model's call that change nothing here: no padding, no dropout, no cache of transformers'
IGNORED = {
    "dropout", "position_ids", "use_cache", "output_attentions", "output_hidden_states", "output_router_logits",
    "is_causal", "cache_position", "position_embeddings", "logits_to_keep", "return_dict",
}  # fmt: skip


class Unsupported(Exception):
    """This model's attention cannot be done here; says what it asked for."""


@dataclass(frozen=True)
class Kind:
    """What a layer's attention wants: scale of the scores, sliding window (0: none), soft cap (0: none)."""

    scale: float
    window: int
    softcap: float


class Phase(Protocol):
    """What one forward does with a layer's queries, keys and values."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, kind: Kind) -> Tensor:
        """(1, heads, T, dim) and twice (1, kv heads, T, dim) -> (1, T, heads, dim)."""
        ...


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    xwin: Phase | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """The function transformers' models call; the state of the batch travels as the keyword ``xwin``.

    Raises:
        Unsupported: for a keyword that is not implemented (attention sinks, …), or without the state.
    """
    if unknown := sorted(k for k, v in rest.items() if v is not None and k not in IGNORED):
        raise Unsupported(f"its attention wants {', '.join(unknown)}")
    if xwin is None or attention_mask is not None:
        raise Unsupported("its layers do not pass the state of the batch on")
    layer = getattr(module, "layer_idx", None)
    if layer is None or key.shape[3] != value.shape[3] or query.shape[1] % key.shape[1]:
        raise Unsupported("its keys and values have an unusual shape")
    scale = query.shape[3] ** -0.5 if scaling is None else float(scaling)
    return xwin.attend(layer, query, key, value, Kind(scale, sliding_window or 0, softcap or 0.0)), None


AttentionInterface.register(NAME, attention)


class Prefill:
    """Several prompts end to end, each attending to itself; their keys and values go to the store.

    Args:
        store: of prompts.
        slots: where each prompt goes.
        lengths: tokens of each prompt.
    """

    def __init__(self, store: Store, slots: Sequence[int], lengths: Sequence[int]) -> None:
        self.store, self.slots, self.lengths = store, slots, lengths

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, kind: Kind) -> Tensor:
        """See ``Phase``; T runs over all prompts."""
        keys, values = self.store.layer(layer, k, v)
        out = q.new_empty(1, q.shape[2], q.shape[1], q.shape[3])
        start = 0
        for slot, length in zip(self.slots, self.lengths, strict=True):
            s = slice(start, start + length)
            keys[slot, :, :length] = k[0, :, s]
            values[slot, :, :length] = v[0, :, s]
            out[:, s] = _causal(q[:, :, s], k[:, :, s], v[:, :, s], kind).transpose(1, 2)
            start += length
        return out


def _causal(q: Tensor, k: Tensor, v: Tensor, kind: Kind) -> Tensor:
    """Causal attention of one sequence, (1, heads, T, dim) -> the same."""
    length, many = q.shape[2], q.shape[1] != k.shape[1]
    plain = not kind.softcap and not (kind.window and length > kind.window)
    if plain:
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=kind.scale, enable_gqa=many)
    at = torch.arange(length, device=q.device)
    seen = at[None, :] <= at[:, None]
    if kind.window:
        seen &= at[None, :] > at[:, None] - kind.window
    grouped = q.reshape(1, k.shape[1], -1, length, q.shape[3])
    scores = _capped(grouped @ k.unsqueeze(2).transpose(-1, -2) * kind.scale, kind)
    weights = scores.masked_fill(~seen, NEVER).softmax(-1, dtype=torch.float32).to(v.dtype)
    return (weights @ v.unsqueeze(2)).reshape(q.shape)


def _capped(scores: Tensor, kind: Kind) -> Tensor:
    return torch.tanh(scores / kind.softcap) * kind.softcap if kind.softcap else scores


def _scores(bias: Tensor, q: Tensor, keys: Tensor, kind: Kind) -> Tensor:
    """bias + scaled products: (n, a, b), (n, a, dim), (n, b, dim) -> (n, a, b)."""
    if kind.softcap:
        return _capped(torch.bmm(q, keys.transpose(1, 2)) * kind.scale, kind) + bias
    return torch.baddbmm(bias, q, keys.transpose(1, 2), alpha=kind.scale)


class Decode:
    """One new token a row: row r attends to its prompt in ``shared`` and to its own tokens in ``own``.

    Args:
        shared: the store of prompts.
        own: the store of responses; row r's slot is r.
        layout: which row reads which prompt.
        ages: (rows,) tokens of each response so far, the new one included.
    """

    def __init__(self, shared: Store, own: Store, layout: Layout, ages: Ints) -> None:
        self.shared, self.own, self.layout, self.ages = shared, own, layout, ages
        # in steps of 32 positions: oneDNN makes and keeps a kernel for every shape it meets
        whole = [(a, b, -(-n // 32) * 32) for a, b, _, n in tiles([1] * len(ages), ages.tolist())]
        self.blocks = [(a, b, min(n, own.length)) for a, b, n in whole]
        self._made: dict[Any, Tensor] = {}

    def _once(self, key: Any, make: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """A tensor that the layers of this step share."""
        if key not in self._made:
            self._made[key] = make(*arguments)
        return self._made[key]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, kind: Kind) -> Tensor:
        """See ``Phase``; T is the number of rows."""
        rows, heads, dim = q.shape[2], k.shape[1], q.shape[3]
        group = q.shape[1] // heads
        q = q[0].transpose(0, 1).reshape(rows * heads, group, dim)
        keys, values = self.own.layer(layer, k, v)
        where = self._once((heads, keys.shape[2]), self._slots, heads, keys)
        for buffer, new in ((keys, k), (values, v)):
            buffer.view(-1, dim).index_copy_(0, where, new[0].transpose(0, 1).reshape(rows * heads, dim))
        prompt = self._prompt_scores(layer, q, k, v, kind)
        cut, weights, outs = prompt.shape[2], [], []
        for a, b, n in self.blocks:
            r = slice(a * heads, b * heads)
            bias = self._once((a, heads, group, kind.window), self._own_bias, a, b, n, q, heads, kind)
            mine = _scores(bias, q[r], keys[a:b, :, :n].flatten(0, 1), kind)
            w = torch.cat([prompt[r], mine], 2).softmax(-1, dtype=torch.float32).to(v.dtype)
            weights.append(w[..., :cut])
            outs.append(torch.bmm(w[..., cut:], values[a:b, :, :n].flatten(0, 1)))
        out = _joined(outs) + self._prompt_values(layer, _joined(weights), k, v)
        return out.view(1, rows, heads * group, dim)

    def _slots(self, heads: int, keys: Tensor) -> Tensor:
        """Flat positions of the new keys in a buffer: (rows * kv heads,)."""
        base = np.arange(len(self.ages) * heads) * keys.shape[2]
        return torch.from_numpy(base + np.repeat(self.ages - 1, heads)).to(keys.device)

    def _own_bias(self, a: int, b: int, n: int, q: Tensor, heads: int, kind: Kind) -> Tensor:
        """0 where a row's own token is seen, else NEVER: (rows * kv heads, group, n)."""
        ages, at = self.ages[a:b, None], np.arange(n)
        seen = at < ages
        if kind.window:
            seen &= at > ages - 1 - kind.window
        bias = torch.from_numpy(np.where(seen, 0.0, NEVER)).to(q.device, q.dtype)
        return bias[:, None, None].expand(-1, heads, q.shape[1], -1).reshape(-1, q.shape[1], n)

    def _prompt_bias(self, i: int, q: Tensor, heads: int, kind: Kind) -> Tensor:
        """The same for tile ``i`` of prompts: (prompts * kv heads, rows * group, keys)."""
        first, end, width, n = self.layout.tiles[i]
        at, lengths = np.arange(n), self.layout.lengths[first:end, None, None]
        seen = np.broadcast_to(at < lengths, (end - first, width, n))
        if kind.window:
            now = lengths + self.ages[self.layout.rows[i]][..., None] - 1  # each row's absolute position
            seen = seen & (at > now - kind.window)
        bias = torch.from_numpy(np.where(seen, 0.0, NEVER)).to(q.device, q.dtype)
        group = q.shape[1]
        wide = bias[:, None, :, None].expand(-1, heads, -1, group, -1)
        return wide.reshape((end - first) * heads, width * group, n)

    def _prompt_scores(self, layer: int, q: Tensor, k: Tensor, v: Tensor, kind: Kind) -> Tensor:
        """(rows * kv heads, group, keys of the longest prompt)."""
        heads, group, dim = k.shape[1], q.shape[1], q.shape[2]
        gathers, back = self.layout.tables(heads)
        keys, _ = self.shared.layer(layer, k, v)
        parts, longest = [], self.layout.longest
        for i, (first, end, width, n) in enumerate(self.layout.tiles):
            bias = self._once((-1 - i, heads, group, kind.window), self._prompt_bias, i, q, heads, kind)
            mine = q.index_select(0, gathers[i]).view(-1, width * group, dim)
            scores = _scores(bias, mine, keys[first:end, :, :n].flatten(0, 1), kind).view(-1, group, n)
            parts.append(nn.functional.pad(scores, (0, longest - n), value=NEVER) if n < longest else scores)
        return _joined(parts).index_select(0, back)

    def _prompt_values(self, layer: int, weights: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Weighted values of the prompts: (rows * kv heads, group, keys) -> (rows * kv heads, group, dim)."""
        heads, group, dim = k.shape[1], weights.shape[1], v.shape[3]
        gathers, back = self.layout.tables(heads)
        _, values = self.shared.layer(layer, k, v)
        parts = []
        for i, (first, end, width, n) in enumerate(self.layout.tiles):
            mine = weights[..., :n].index_select(0, gathers[i]).view(-1, width * group, n)
            parts.append(torch.bmm(mine, values[first:end, :, :n].flatten(0, 1)).view(-1, group, dim))
        return _joined(parts).index_select(0, back)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
