"""Whether a model may be sampled the fast way: by trying it on a few tokens against its plain forward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from xwincli.engines.native import attention
from xwincli.engines.native.batch import Body
from xwincli.engines.native.cache import Layout, Store

PROMPTS = ((5, 6, 7, 8, 9), (10, 11, 12))
PROMPT_OF = (0, 1, 0)
RESPONSES = ((13, 14), (15, 16), (17, 18))


def obstacle(body: Body) -> str:
    """Why this model must go the slow way; "" if it need not."""
    config = body.model.config
    if moving := sorted(set(_rope_types(config.to_dict())) & {"dynamic", "longrope"}):
        return f"its {moving[0]} rotary embedding depends on the longest row of a batch"
    try:
        error = _error(body)
    except attention.Unsupported as e:
        return str(e)
    except (TypeError, ValueError, RuntimeError, AttributeError) as e:
        return f"it does not take packed rows: {' '.join(str(e).split())[:200]}"
    limit = 2e-3 if body.dtype == torch.float32 else 0.2
    return "" if error < limit else f"packed rows change its logits (by {error:.2g} standard deviations)"


def _rope_types(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for k, v in value.items():
            if k in ("rope_type", "type") and isinstance(v, str):
                yield v
            else:
                yield from _rope_types(v)


def _error(body: Body) -> float:
    """Largest difference of the logits after two tokens of three responses, in standard deviations of them."""
    vocabulary = body.model.get_input_embeddings().num_embeddings
    prompts = [[i % vocabulary for i in p] for p in PROMPTS]
    responses = np.asarray(RESPONSES) % vocabulary
    shared, own = Store(), Store()
    lengths = np.asarray([len(p) for p in prompts])
    shared.reserve(len(prompts), int(lengths.max()))
    own.reserve(len(responses), responses.shape[1])
    phase = attention.Prefill(shared, range(len(prompts)), lengths.tolist())
    body(np.concatenate(prompts), np.concatenate([np.arange(n) for n in lengths]), phase, keep=np.cumsum(lengths) - 1)
    if not shared.layers:
        raise attention.Unsupported("its attention does not go through transformers' interface")
    which = np.asarray(PROMPT_OF)
    layout = Layout(which, lengths, body.device)
    for step in range(responses.shape[1]):
        decode = attention.Decode(shared, own, layout, np.full(len(which), step + 1))
        ours = body(responses[:, step], lengths[which] + step, decode)
    plain = [body.plain([*prompts[p], *r]) for p, r in zip(PROMPT_OF, responses.tolist(), strict=True)]
    theirs = torch.stack(plain)
    return float((ours.float() - theirs).abs().max() / theirs.std())
