"""Which kernel computes attention, and how a response branches from its prompt.

A row (see ``rows``) goes through transformers' own modules; only their attention is ours. A prompt token
sees its prompt up to itself, a response token sees its prompt and its own response up to itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xwincli.attention import gathered, shared
from xwincli.attention.plan import Layout, Part, Plan

__all__ = ["NAME", "Layout", "Part", "Plan", "backends", "compute", "register"]

NAME = "xwin_rows"  # a name containing "flash" would send transformers down another path

# keywords transformers passes that change nothing here
HARMLESS = {"position_ids", "use_cache", "cache_position", "output_attentions", "is_causal", "num_items_in_batch"}


def _flash_runs_on(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def backends(q: Tensor, v: Tensor, window: int, softcap: float) -> list[str]:
    """The kernels that can compute this attention here, the first the one to take. The only place that knows.

    Args:
        q: (T,H,D) on its device, in its precision.
        v: (T,G,D).
        window: sliding window that bites, else 0.
        softcap: cap of the scores, else 0.
    """
    found = []
    size = q.shape[-1]
    half = q.dtype in (torch.bfloat16, torch.float16)
    if _flash_runs_on(q.device) and half and size == v.shape[-1] and size % 8 == 0 and size <= 256:
        varlen, known = gathered.torch_varlen()
        if gathered.flash_attn() is not None:
            found.append("flash-attn")
        if varlen is not None and not softcap and (not window or "window_size" in known):
            found.append("torch")
    if q.device.type == "cpu" and size == v.shape[-1] and not window and not softcap:
        found.append("shared")
    return [*found, "segments"]


def compute(
    backend: str, q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float, window: int = 0, softcap: float = 0.0
) -> Tensor:
    """Row attention by one of ``backends``: q (T,H,D), k and v (T,G,D) -> (T,H,D), with its gradient."""
    if backend == "shared":
        return shared.by_parts(q, k, v, plan, scale)
    if backend == "torch":
        return gathered.by_torch(q, k, v, plan, scale, window)
    by = {"flash-attn": gathered.by_flash_attn, "segments": gathered.by_segment}[backend]
    return by(q, k, v, plan, scale, window, softcap)


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (1,H,T,D), key and value (1,G,T,D) -> (1,T,H,D)."""
    plan: Plan | None = more.pop("row_plan", None)
    if plan is None:
        raise RuntimeError("its layers do not hand the row on to their attention")
    plan.calls += 1
    refused = sorted(k for k, v in more.items() if v is not None and k not in HARMLESS)
    refused += ["dropout"] if dropout else []
    refused += ["a mask"] if attention_mask is not None else []
    if refused:
        raise NotImplementedError(f"its attention wants {', '.join(refused)}")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    dtype = value.dtype  # rotary may return float32 in autocast
    q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    window = sliding_window or 0
    if window >= plan.reach:
        window = 0
    backend = backends(q, v, window, softcap or 0.0)[0]
    return compute(backend, q, k, v, plan, scale, window, softcap or 0.0)[None], None


def register() -> str:
    """Make the row attention known to transformers; returns its name."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
    return NAME
