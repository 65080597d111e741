"""The slow way that every transformers model can go: its own ``generate``, one prompt at a time, our draws."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from xwincli.engines.native.batch import Drawn, Request, Rules
from xwincli.engines.native.draw import Keys, draw, streams


class Choose(LogitsProcessor):  # type: ignore[misc]
    """Draws each row's token itself and leaves ``generate`` no other choice."""

    def __init__(self, keys: Keys, rules: Rules) -> None:
        self.keys, self.rules = keys, rules
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits (rows, vocabulary) -> 0 at the drawn token, -inf elsewhere."""
        step = [len(self.logprobs)] * len(scores)
        seen = None
        if self.rules.choice.penalty != 1:
            seen = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, input_ids, True)
        tokens, logprobs = draw(scores, self.keys, step, self.rules.choice, seen)
        self.logprobs.append(logprobs)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)


def run(model: Any, rules: Rules, rows: int, requests: Iterable[Request]) -> Iterator[tuple[Request, Drawn]]:
    """As ``Batch.run``. Rows of one prompt have one length, so no padding reaches the model."""
    for request in requests:
        for first in range(request.first, request.first + request.n, rows):
            indices = range(first, min(first + rows, request.first + request.n))
            for drawn in _together(model, rules, request, indices):
                yield request, drawn


@torch.inference_mode()
def _together(model: Any, rules: Rules, request: Request, indices: range) -> list[Drawn]:
    training = model.training
    choose = Choose(streams(rules.seed, request.stream, list(indices)), rules)
    ids = torch.tensor([request.ids] * len(indices), device=next(model.parameters()).device)
    config = GenerationConfig(
        max_new_tokens=request.limit,
        do_sample=False,
        repetition_penalty=1.0,
        eos_token_id=list(rules.stops) or None,
        pad_token_id=next(iter(rules.stops), 0),
    )
    try:
        model.eval()
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            logits_processor=LogitsProcessorList([choose]),
        )
    finally:
        model.train(training)
    logprobs = torch.stack(choose.logprobs, 1).cpu()
    new = out[:, len(request.ids) :].tolist()
    return [_cut(tokens, logprobs[i], index, rules) for i, (tokens, index) in enumerate(zip(new, indices, strict=True))]


def _cut(tokens: list[int], logprobs: Tensor, index: int, rules: Rules) -> Drawn:
    """A row up to where it ended."""
    for length, token in enumerate(tokens, 1):
        if token in rules.stops or (rules.ended is not None and rules.ended(tokens[:length])):
            return Drawn(tokens[:length], index, "stop", float(logprobs[:length].sum()))
    return Drawn(tokens, index, "length", float(logprobs[: len(tokens)].sum()))
