"""Which kernel computes attention, and how a response branches from its prompt.

A row (see ``rows``) goes through transformers' own modules; only their attention is ours. A prompt token
sees its prompt up to itself, a response token sees its prompt and its own response up to itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from xwincli.rows import Span

NAME = "xwin_rows"  # a name containing "flash" would send transformers down another path

Layout = list[tuple[Span, list[Span]]]

# keywords transformers passes that change nothing here
HARMLESS = {"position_ids", "use_cache", "cache_position", "output_attentions", "is_causal", "num_items_in_batch"}


def _segments(layout: Layout) -> list[tuple[Span, Span]]:
    """(own tokens, prompt tokens they also see) of every segment."""
    found: list[tuple[Span, Span]] = []
    for prompt, responses in layout:
        if prompt[1] > prompt[0]:
            found.append((prompt, (prompt[0], prompt[0])))
        found += [(r, prompt) for r in responses if r[1] > r[0]]
    return found


def _one(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int) -> torch.Tensor:
    """Causal attention of one segment, aligned at the end: q (H,L,D), k and v (G,S,D), S >= L.

    ``window`` > 0 lets a token see itself and the ``window - 1`` tokens before it (sliding window).
    """
    length, keys = q.shape[-2], k.shape[-2]
    gqa = q.shape[0] != k.shape[0]
    mask = None
    if keys != length or 0 < window < keys:
        mask = torch.ones(length, keys, dtype=torch.bool, device=q.device).tril(keys - length)
        if window:
            mask = mask.triu(keys - length - window + 1)
    out = sdpa(q[None], k[None], v[None], attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=gqa)
    return out[0]


class _Rows(torch.autograd.Function):
    """Attention over a row that keeps only the row's own keys for backward, never a prompt's copies."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout, scale: float, window: int
    ) -> torch.Tensor:
        out = torch.empty_like(q)
        for (a, b), (c, d) in _segments(layout):
            out[:, a:b] = _one(q[:, a:b], _keys(k, (a, b), (c, d)), _keys(v, (a, b), (c, d)), scale, window)
        ctx.save_for_backward(q, k, v)
        ctx.layout, ctx.scale, ctx.window = layout, scale, window
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (a, b), (c, d) in _segments(ctx.layout):
            own = [t.detach().requires_grad_() for t in (q[:, a:b], _keys(k, (a, b), (c, d)), _keys(v, (a, b), (c, d)))]
            with torch.enable_grad():
                out = _one(own[0], own[1], own[2], ctx.scale, ctx.window)
            gq, gk, gv = torch.autograd.grad(out, own, grads[0][:, a:b])
            dq[:, a:b] = gq
            for total, part in ((dk, gk), (dv, gv)):
                total[:, c:d] += part[:, : d - c]
                total[:, a:b] += part[:, d - c :]
        return dq, dk, dv, None, None, None


def _keys(x: torch.Tensor, own: Span, prompt: Span) -> torch.Tensor:
    (a, b), (c, d) = own, prompt
    if c == d:
        return x[:, a:b]
    return x[:, c:b] if d == a else torch.cat((x[:, c:d], x[:, a:b]), dim=1)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query (1,H,T,D), key and value (1,G,T,D) -> (1,T,H,D)."""
    layout = more.pop("row_layout", None)
    if layout is None:
        raise RuntimeError("xwin_rows attention needs the row's layout")
    refused = {k: v for k, v in more.items() if v is not None and k not in HARMLESS}
    if dropout or attention_mask is not None or refused:
        raise NotImplementedError(f"grouped attention does not implement {sorted(refused) or 'dropout or a mask'}")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    q, k, v = query[0].to(value.dtype), key[0].to(value.dtype), value[0]  # rotary may return float32 in autocast
    out: torch.Tensor = _Rows.apply(q, k, v, layout, scale, sliding_window or 0)  # type: ignore[no-untyped-call]
    return out.transpose(0, 1)[None], None


def register() -> str:
    """Make the row attention known to transformers; returns its name."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
    return NAME
