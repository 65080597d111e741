"""Attention on the CPU without a copy of any key: own tokens and shared prompt apart, merged by their log-sums.

softmax over two sets of keys is the mean of the softmaxes over each, weighted by exp(log-sum-exp) of either's
scores. And the gradient of the scores, p (dp - sum(dp p)), needs only the merged output and log-sum, so each
part's backward kernel is right when given these (the identity behind FlashAttention, Dao 2022, arXiv 2205.14135).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xwincli.attention.plan import Plan
from xwincli.rows import Span

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _part(x: Tensor, span: Span) -> Tensor:
    """Tokens of (T,H,D) as the kernels want them: (1,H,L,D), a view."""
    return x[span[0] : span[1]].transpose(0, 1)[None]


def _sums(lse: Tensor, span: Span) -> Tensor:
    """Tokens of the log-sums (T,H) as (1,H,L)."""
    return lse[span[0] : span[1]].T[None]


class _Shared(torch.autograd.Function):
    """Keeps q, k, v, the output and the log-sums (T,H)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float) -> Tensor:
        out = torch.empty_like(q)
        lse = torch.empty(q.shape[:2], dtype=torch.float32)
        for own, _ in plan.segments:
            part, sums = _forward(_part(q, own), _part(k, own), _part(v, own), 0.0, True, scale=scale)
            _part(out, own).copy_(part)
            _sums(lse, own).copy_(sums)
        for some, prompt in plan.groups:
            part, sums = _forward(_part(q, some), _part(k, prompt), _part(v, prompt), 0.0, False, scale=scale)
            mine, here = _part(out, some), _sums(lse, some)
            mine.lerp_(part, torch.sigmoid(sums - here)[..., None].to(part.dtype))
            torch.logaddexp(here, sums, out=here)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.plan, ctx.scale = plan, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *kept, lse = ctx.saved_tensors
        # in float32: on processors with AVX-512 and bfloat16 this kernel takes twice as long in bfloat16
        q, k, v, out, grad = (t.float() for t in (*kept, grads[0].contiguous()))
        totals = [torch.empty_like(t) for t in (q, k, v)]
        own_keys = [(own, own, True) for own, _ in ctx.plan.segments]
        for mine, seen, causal in own_keys + [(some, prompt, False) for some, prompt in ctx.plan.groups]:
            found = _backward(
                _part(grad, mine), _part(q, mine), _part(k, seen), _part(v, seen), _part(out, mine),
                _sums(lse, mine), 0.0, causal, scale=ctx.scale,
            )  # fmt: skip
            for total, span, g in zip(totals, (mine, seen, seen), found, strict=True):
                if causal:
                    _part(total, span).copy_(g)
                else:
                    _part(total, span).add_(g)
        return *(t.to(grads[0].dtype) for t in totals), None, None


def by_parts(q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float) -> Tensor:
    """Row attention on the CPU: q (T,H,D), k and v (T,G,D) -> (T,H,D), with its gradient."""
    out: Tensor = _Shared.apply(q, k, v, plan, scale)  # type: ignore[no-untyped-call]
    return out
