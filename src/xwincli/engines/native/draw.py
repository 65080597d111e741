"""How the next token is drawn for a whole batch: counter-hash randomness, inverse CDF, nucleus by rejection."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Keys = npt.NDArray[np.uint64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
CELLS = 1 << 20  # logits worked on at once: what stays in a core's cache


def _mix(x: Keys) -> Keys:
    """Scramble 64-bit counters (the finaliser of splitmix64, a bijection)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def streams(seed: int, stream: str, indices: Any) -> Keys:
    """The random streams of some responses to one prompt, one 64-bit key each.

    Args:
        seed: the run's seed.
        stream: the prompt's id.
        indices: the responses' numbers.
    """
    text = hashlib.blake2b(stream.encode(), digest_size=8, key=seed.to_bytes(16, "little", signed=True)).digest()
    return _mix(np.frombuffer(text, "<u8") + _mix(np.asarray(indices, np.uint64)))


def uniform(keys: Keys, steps: Any, turn: int = 0) -> npt.NDArray[np.float64]:
    """One number in (0, 1) for each (stream, step, turn), the same wherever and whenever it is asked for."""
    x = _mix(keys + np.asarray(steps, np.uint64) * GOLDEN)
    x = _mix(x ^ _mix(np.full(1, turn, np.uint64)))
    return ((x >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


@dataclass(frozen=True)
class Choice:
    """Which tokens may be drawn, and how likely: in transformers' order, penalty, temperature, top k, top p, min p.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: only the smallest set of likeliest tokens that holds this probability (equally likely tokens
            at its edge all belong to it); 1 is every token (Holtzman et al. 2020, arXiv 1904.09751).
        top_k: only the so many likeliest (and those as likely as the last of them); 0 is every token.
        min_p: only tokens at least this share as likely as the likeliest (Nguyen et al. 2024, arXiv 2407.01082).
        penalty: logits of tokens seen before are divided by it, or multiplied if negative; 1 changes nothing
            (Keskar et al. 2019, arXiv 1909.05858).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    penalty: float = 1.0


def draw(logits: Tensor, keys: Keys, steps: Any, choice: Choice, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The next token of every row.

    Args:
        logits: (rows, vocabulary).
        keys: each row's stream.
        steps: how many tokens each row has drawn before.
        choice: among which.
        seen: (rows, vocabulary) bool, the tokens that ``choice.penalty`` is for; None needs none.

    Returns:
        tokens (rows,) and their log-probabilities (rows,) float64, of the model's own distribution: temperature 1,
        the whole vocabulary, no penalty.
    """
    steps = np.asarray(steps)
    if logits.device.type == "mps":  # has no float64
        logits, seen = logits.cpu(), None if seen is None else seen.cpu()
    rows = len(logits) if logits.is_cuda else max(1, CELLS // logits.shape[1])
    cuts = [slice(a, a + rows) for a in range(0, len(logits), rows)]
    parts = [_draw(logits[c].float(), keys[c], steps[c], choice, None if seen is None else seen[c]) for c in cuts]
    return torch.cat([t for t, _ in parts]), torch.cat([p for _, p in parts])


def _draw(logits: Tensor, keys: Keys, steps: Any, choice: Choice, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    z = logits - logits.amax(-1, keepdim=True)
    weights = z.exp()
    log_total = weights.sum(-1, dtype=torch.float64).log()
    chosen = z
    if seen is not None:
        chosen = torch.where(seen, torch.where(logits < 0, logits * choice.penalty, logits / choice.penalty), logits)
        chosen = chosen - chosen.amax(-1, keepdim=True)
    if choice.temperature == 0:
        tokens = chosen.argmax(-1)
    else:
        if choice.temperature != 1 or seen is not None:
            torch.mul(chosen, 1 / choice.temperature, out=weights).exp_()
        tokens = _among(weights, keys, steps, choice)
    return tokens, z.gather(1, tokens[:, None]).squeeze(1).double() - log_total


def _among(weights: Tensor, keys: Keys, steps: Any, choice: Choice) -> Tensor:
    """Draw from ``weights`` (rows, vocabulary), the largest of each row 1, within top k, top p and min p."""
    if 0 < choice.top_k < weights.shape[1]:
        least = weights.topk(choice.top_k, sorted=False).values.amin(-1, keepdim=True)
        weights = weights.masked_fill(weights < least, 0.0)
    mass = weights.sum(-1, dtype=torch.float64) if choice.top_p < 1 else None
    if choice.min_p:
        weights = weights.masked_fill(weights < choice.min_p, 0.0)
    if mass is None:
        return pick(weights, uniform(keys, steps))
    return nucleus(weights, keys, steps, choice.top_p * mass)


def nucleus(weights: Tensor, keys: Keys, steps: Any, limit: Tensor) -> Tensor:
    """Draw from unnormalised ``weights`` (rows, vocabulary) within their nucleus, without a sort.

    A draw from everything is kept if the tokens likelier than it weigh less than ``limit`` (rows,). Otherwise the
    whole nucleus is likelier than it, so the next draw is among those only; the kept one is distributed as the
    nucleus, renormalised, and a few turns suffice.
    """
    tokens = pick(weights, uniform(keys, steps))
    pending = np.arange(len(weights))
    drawn, turn = tokens, 0
    while True:
        likelier = torch.where(weights > weights.gather(1, drawn[:, None]), weights, 0.0)
        mass = likelier.sum(-1, dtype=torch.float64)
        again = ((mass >= limit) & (mass > 0)).cpu().numpy().nonzero()[0]
        if not len(again):
            return tokens
        pending, weights, limit, turn = pending[again], likelier[again], limit[again], turn + 1
        drawn = pick(weights, uniform(keys[pending], steps[pending], turn))
        tokens[pending] = drawn


def pick(weights: Tensor, u: npt.NDArray[np.float64]) -> Tensor:
    """Invert the cumulative distribution of each row at ``u``: first the block of tokens, then the token in it.

    Args:
        weights: (rows, vocabulary), not negative, some positive.
        u: (rows,) in (0, 1).
    """
    rows, vocabulary = weights.shape
    width = max(1, min(256, int(vocabulary**0.5)))
    whole = vocabulary // width * width
    sums = weights[:, :whole].view(rows, -1, width).sum(-1).double()
    if whole < vocabulary:
        sums = torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], 1)
    ends = sums.cumsum(-1)
    target = torch.from_numpy(u).to(weights.device)[:, None] * ends[:, -1:]
    block = torch.searchsorted(ends, target, right=True).clamp_(max=sums.shape[1] - 1)
    share = ((target - ends.gather(1, block)) / sums.gather(1, block) + 1).clamp_(0, 1 - 2**-52)
    columns = block * width + torch.arange(width, device=weights.device)
    inside = weights.gather(1, columns.clamp(max=vocabulary - 1)).double().masked_fill_(columns >= vocabulary, 0)
    ends = inside.cumsum(-1)
    place = torch.searchsorted(ends, share * ends[:, -1:], right=True).clamp_(max=width - 1)
    return (block * width + place).squeeze(1)
