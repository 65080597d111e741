"""How the next token is drawn for a whole batch: counter-hash randomness, inverse CDF, nucleus by rejection."""

from __future__ import annotations

import hashlib
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


def draw(logits: Tensor, keys: Keys, steps: Any, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """The next token of every row.

    Args:
        logits: (rows, vocabulary).
        keys: each row's stream.
        steps: how many tokens each row has drawn before.
        temperature: 0 takes the likeliest token.
        top_p: only the smallest set of likeliest tokens that holds this probability (equally likely tokens
            at its edge all belong to it); 1 is every token.

    Returns:
        tokens (rows,) and their log-probabilities (rows,) float64, of the distribution at temperature 1 over
        the whole vocabulary.
    """
    steps = np.asarray(steps)
    if logits.device.type == "mps":  # has no float64
        logits = logits.cpu()
    rows = len(logits) if logits.is_cuda else max(1, CELLS // logits.shape[1])
    parts = [
        _draw(logits[a : a + rows].float(), keys[a : a + rows], steps[a : a + rows], temperature, top_p)
        for a in range(0, len(logits), rows)
    ]
    return torch.cat([t for t, _ in parts]), torch.cat([p for _, p in parts])


def _draw(logits: Tensor, keys: Keys, steps: Any, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    z = logits - logits.amax(-1, keepdim=True)
    weights = z.exp()
    log_total = weights.sum(-1, dtype=torch.float64).log()
    if temperature == 0:
        tokens = z.argmax(-1)
    else:
        if temperature != 1:
            torch.mul(z, 1 / temperature, out=weights).exp_()
        tokens = nucleus(weights, keys, steps, top_p)
    return tokens, z.gather(1, tokens[:, None]).squeeze(1).double() - log_total


def nucleus(weights: Tensor, keys: Keys, steps: Any, top_p: float) -> Tensor:
    """Draw from unnormalised ``weights`` (rows, vocabulary) within the top ``top_p`` of their mass, without a sort.

    A draw from everything is kept if the tokens likelier than it hold less than ``top_p``. Otherwise the whole
    nucleus is likelier than it, so the next draw is among those only; the kept one is distributed as the
    nucleus, renormalised, and a few turns suffice.
    """
    tokens = pick(weights, uniform(keys, steps))
    if top_p >= 1:
        return tokens
    pending = np.arange(len(weights))
    limit = top_p * weights.sum(-1, dtype=torch.float64)
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
