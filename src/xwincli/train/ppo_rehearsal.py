"""Drawing rollouts rehearsed on tensors without numbers: the sampler's own phases, its stores of keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from xwincli import settings, weights
from xwincli.engines.native.attention import Decode, Prefill
from xwincli.engines.native.batch import PREFILL, Body
from xwincli.engines.native.cache import Ints, Layout, Store
from xwincli.engines.native.draw import Choice, draw, streams
from xwincli.models import Loaded
from xwincli.train.rehearsal import SHALLOW, Alive, prepared


@dataclass(frozen=True)
class Drawing:
    """What sampling takes beyond the policy's weights, in bytes and floating-point operations.

    Attributes:
        copies: of the linear layers in the precision of their products, where that is not the weights' own.
        cache: keys and values of prompts and responses when the last token is drawn, buffers whole (``native.pages``
            holds less).
        alive: the most at once, ``cache`` included: logits, a step's tensors.
        prefill: operations a token of a prompt.
        token: operations a token of a response, of medium length.
    """

    copies: float
    cache: float
    alive: float
    prefill: float
    token: float


def rehearse_drawing(
    like: Loaded, adapt: settings.Adapt, prompts: Sequence[int], sampling: settings.Sampling, rows: int
) -> Drawing:
    """Sampling with as many responses at once as ``rows`` allows, all of them as long as ``--max-tokens`` allows.

    Args:
        like: from ``rehearsal.sketch``; it stays as it is.
        adapt: how the policy's weights wait.
        prompts: tokens of each prompt of an iteration.
        sampling: how many responses a prompt, and their most tokens.
        rows: responses decoded together at most.
    """
    depth = len(weights.layers(like.model))
    few = (2, 3) if depth > SHALLOW else (depth, depth)
    adapt = settings.Adapt(lora_r=adapt.lora_r, quantize=adapt.quantize)
    first, more = (_drawn(like, adapt, d, prompts, sampling, rows) for d in few)
    return Drawing(*(a + (depth - few[0]) * (b - a) for a, b in zip(first, more, strict=True)))


def _drawn(
    like: Loaded, adapt: settings.Adapt, depth: int, prompts: Sequence[int], sampling: settings.Sampling, rows: int
) -> tuple[float, ...]:
    """The attributes of ``Drawing`` for a policy of ``depth`` layers."""
    total = len(prompts) * sampling.n
    live = min(rows, total)
    waiting = live < total and live % sampling.n > 0  # a prompt of which some responses wait
    held = sorted(prompts, reverse=True)[: -(-live // sampling.n) + waiting]
    model, alive = prepared(like, adapt, like.place.dtype, depth), Alive()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu").tie_weights()
        body = Body(model, like.place.dtype)
        joints = body.linears.joints
        for weight in (*model.parameters(), *(j.weight for j in joints)):
            alive.ignore(weight)
        with alive:
            shared = Store()
            logits = [_prefill(body, shared, held, span) for span in _together(held)]  # responses start from them
            prefilled, own, steps = alive.flops, Store(), []
            layout = Layout(np.repeat(np.arange(len(held)), sampling.n)[:live], np.asarray(held), body.device)
            longest = max(sampling.max_tokens - 1, 1)  # the last token is drawn and not read
            telling = _telling(live, longest)
            for age in range(1, longest + 1):
                own.reserve(live, age)
                if age in telling:
                    steps.append(_step(body, shared, own, layout, np.full(live, age), sampling.temperature, alive))
    cells = [b.cells for store in (shared, own) for pair in store.layers.values() for b in pair]
    copied = [j.weight for j in joints if j.weight.dtype != j.layers[0].weight.dtype]
    del logits
    return _size(copied), _size(cells), alive.peak, prefilled / sum(held), (steps[0] + steps[-1]) / 2 / live


def _together(prompts: Sequence[int]) -> list[slice]:
    """Which prompts meet the model in one forward, as in ``Batch``."""
    spans, start = [], 0
    for end in range(1, len(prompts) + 1):
        if end == len(prompts) or sum(prompts[start:end]) >= PREFILL:
            spans.append(slice(start, end))
            start = end
    return spans


def _prefill(body: Body, store: Store, prompts: Sequence[int], span: slice) -> torch.Tensor:
    lengths = list(prompts[span])
    store.reserve(span.stop, max(lengths))
    positions = np.concatenate([np.arange(n) for n in lengths])
    phase = Prefill(store, range(span.start, span.stop), lengths)
    return body(np.zeros(len(positions)), positions, phase, keep=np.cumsum(lengths) - 1)


def _telling(live: int, longest: int) -> set[int]:
    """The ages of responses that show how much is alive: the first, around the store's last growth, the last."""
    store, grown = Store(), 1
    for age in range(1, longest + 1):
        before = store.length
        store.reserve(live, age)
        if store.length > before:
            grown = age
    return {1, max(grown - 1, 1), grown, longest}


def _step(body: Body, shared: Store, own: Store, layout: Layout, ages: Ints, temperature: float, alive: Alive) -> int:
    """A token for every response; returns the operations of it."""
    before = alive.flops
    logits = body(np.zeros(len(ages)), ages, Decode(shared, own, layout, ages))
    with torch.inference_mode():
        draw(logits, streams(0, "", range(len(ages))), ages, Choice(temperature))
    return alive.flops - before


def _size(tensors: Sequence[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
