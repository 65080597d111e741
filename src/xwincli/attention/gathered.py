"""Attention by kernels that want a segment's keys end to end: gathered in forward, and again in backward.

Between the two only the row's own queries, keys and values are kept, so 64 responses to a prompt never hold 64
copies of its keys; the price is that backward repeats forward's call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from xwincli.attention.plan import Part, Plan

Call = Callable[[Tensor, Tensor, Tensor, Part], Tensor]  # q (L,H,D), k and v (K,G,D) of a part -> (L,H,D)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, call: Call, parts: list[Part]) -> Tensor:
        out = torch.empty_like(q)
        for part in parts:
            a, b = part.own
            out[a:b] = call(q[a:b], _keys(k, part), _keys(v, part), part)
        ctx.save_for_backward(q, k, v)
        ctx.call, ctx.parts = call, parts
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        dq = torch.empty_like(q)
        dk, dv = (torch.zeros(t.shape, dtype=torch.float32, device=t.device) for t in (k, v))
        for part in ctx.parts:
            a, b = part.own
            own = [t.detach().requires_grad_() for t in (q[a:b], _keys(k, part), _keys(v, part))]
            with torch.enable_grad():
                out = ctx.call(own[0], own[1], own[2], part)
            dq[a:b], gk, gv = torch.autograd.grad(out, own, grads[0][a:b])
            for total, g in ((dk, gk), (dv, gv)):
                if part.index is None:
                    total[a:b] += g
                else:
                    total.index_add_(0, part.index, g.float())
        return dq, dk.to(k.dtype), dv.to(v.dtype), None, None


def _keys(x: Tensor, part: Part) -> Tensor:
    return x[part.own[0] : part.own[1]] if part.index is None else x[part.index]


# -- segment by segment, on any device, in any precision


def by_segment(q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float, window: int, softcap: float) -> Tensor:
    """Row attention by torch's SDPA, or by plain products where scores are capped: softcap tanh(scores/softcap).

    ``window`` > 0 lets a token see itself and the ``window - 1`` tokens before it.
    """

    def call(q: Tensor, k: Tensor, v: Tensor, part: Part) -> Tensor:
        plain = part.index is None and not window
        mask = None if plain and not softcap else plan.mask(part.longest, part.most_keys, window)
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        if softcap:
            return _capped(q, k, v, mask, scale, softcap)[0].transpose(0, 1)
        many = q.shape[1] != k.shape[1]
        out = sdpa(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=many)
        return out[0].transpose(0, 1)

    out: Tensor = _Gathered.apply(q, k, v, call, plan.parts(window, 0))  # type: ignore[no-untyped-call]
    return out


def _capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float) -> Tensor:
    """Softcapped attention (Gemma 2, arXiv 2408.00118): q (1,H,L,D), k and v (1,G,S,D), mask (L,S)."""
    assert mask is not None
    many = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(many, 1) for x in (k, v))
    scores = torch.tanh((q @ k.transpose(-1, -2)).float() * (scale / softcap)) * softcap
    return scores.masked_fill(~mask, float("-inf")).softmax(-1).to(v.dtype) @ v


# -- kernels for segments of any lengths; both align a causal mask at the end where there are more keys than queries


@cache
def flash_attn() -> Any:
    """``flash_attn_varlen_func``, or None where flash-attn is not installed or does not load."""
    try:
        from flash_attn import flash_attn_varlen_func
    except (ImportError, OSError):
        return None
    return flash_attn_varlen_func


@cache
def torch_varlen() -> tuple[Any, frozenset[str]]:
    """torch's own ``varlen_attn`` and the keywords this version knows; (None, …) where it has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None, frozenset()
    return varlen_attn, frozenset(inspect.signature(varlen_attn).parameters)


def by_flash_attn(q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float, window: int, softcap: float) -> Tensor:
    """Row attention by flash-attn 2 (Dao 2023, arXiv 2307.08691); arguments as in ``by_segment``."""
    options: dict[str, Any] = {"softcap": softcap} if softcap else {}  # older versions do not know the word
    if window:
        options["window_size"] = (window - 1, 0)

    def call(q: Tensor, k: Tensor, v: Tensor, part: Part) -> Tensor:
        spans = (part.starts, part.key_starts, part.longest, part.most_keys)
        out: Tensor = flash_attn()(q, k, v, *spans, softmax_scale=scale, causal=True, **options)
        return out

    return _varlen(q, k, v, call, plan.parts(window))


def by_torch(q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float, window: int) -> Tensor:
    """Row attention by torch's ``varlen_attn``, whose keywords differ between versions."""
    kernel, known = torch_varlen()
    options: dict[str, Any] = {"window_size": (window - 1 if window else -1, 0)}
    if "window_size" not in known:
        options = {"is_causal": True}
    many = q.shape[1] // k.shape[1]
    if "enable_gqa" in known:
        options["enable_gqa"] = many > 1
    if "scale" in known:
        options["scale"] = scale
    else:
        q = q * (scale * q.shape[-1] ** 0.5)

    def call(q: Tensor, k: Tensor, v: Tensor, part: Part) -> Tensor:
        if "enable_gqa" not in known:
            k, v = (x.repeat_interleave(many, 1) for x in (k, v))
        spans = (part.starts, part.key_starts, part.longest, part.most_keys)
        out: Tensor = kernel(q, k, v, *spans, **options)
        return out

    return _varlen(q, k, v, call, plan.parts(window))


def _varlen(q: Tensor, k: Tensor, v: Tensor, call: Call, parts: list[Part]) -> Tensor:
    """A row without shared prompts is one plain call, whose own backward repeats nothing."""
    if len(parts) == 1 and parts[0].index is None:
        return call(q, k, v, parts[0])
    out: Tensor = _Gathered.apply(q, k, v, call, parts)  # type: ignore[no-untyped-call]
    return out
