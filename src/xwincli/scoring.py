"""From hidden states to log-probabilities of targets and rewards. Used by training and scoring alike."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from xwincli.console import warn
from xwincli.errors import XwinError
from xwincli.models import Loaded
from xwincli.records import Message
from xwincli.rows import Branch, Row, lay, pack, segment_sum
from xwincli.states import hidden, prepare

CHUNK = 6 << 20  # logits at hand at once, in elements: few enough to stay near a processor's cache
KEPT = 16 << 20  # probabilities that wait for backward, in elements
LEAST = 64  # tokens of a row that must fit into memory
ON_CARDS = 16  # times as many on a GPU, which wants large products: 400 MB in float32


def logits(model: Any, states: torch.Tensor) -> torch.Tensor:
    """The language-model head on hidden states (N, H) -> (N, V), float32, with the scaling some families add."""
    out: torch.Tensor = model.get_output_embeddings()(states).float()
    config = model.config.get_text_config()
    if cap := getattr(config, "final_logit_softcapping", None):
        out = torch.tanh(out / cap) * cap
    if scale := getattr(config, "logits_scaling", None):
        out = out / scale
    if scale := getattr(config, "logit_scale", None):
        out = out * scale
    return out


def _scaled(elements: int, head: torch.Tensor) -> int:
    return elements * (1 if head.device.type == "cpu" else ON_CARDS)


def _part(head: torch.Tensor) -> int:
    """How many positions meet the head (V, H) at a time."""
    return max(_scaled(CHUNK, head) // len(head), 1)


def _likelihood(
    h: torch.Tensor, w: torch.Tensor, target: torch.Tensor, temperature: float, pull: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """log softmax(h W^T / t)[target] (N); with ``pull``, minus its gradient to the logits over t (N,V)."""
    z = (h @ w.T).float()
    if temperature != 1.0:
        z /= temperature
    z -= z.max(-1, keepdim=True).values
    hit = z.gather(-1, target[:, None])
    p = z.exp_()
    total = p.sum(-1, keepdim=True)
    if pull:
        p /= total
        p[torch.arange(len(p), device=p.device), target] -= 1
    return (hit - total.log())[:, 0], p


class _TargetLogprob(torch.autograd.Function):
    """log softmax(h W^T / t)[target] without ever keeping all logits.

    The gradient to a state is its upstream times (W[target] - p W)/t, and p W costs one product while p is
    at hand, so it is made in forward. Only a head that learns needs p again in backward: up to KEPT elements of it
    wait there, the rest is computed anew.
    """

    @staticmethod
    def forward(ctx: Any, h: torch.Tensor, w: torch.Tensor, target: torch.Tensor, temperature: float) -> torch.Tensor:
        out = torch.empty(len(h), dtype=torch.float32, device=h.device)
        dh = torch.empty_like(h) if ctx.needs_input_grad[0] else None
        kept: list[torch.Tensor] = []
        room = _scaled(KEPT, w) // len(w) if ctx.needs_input_grad[1] else 0
        for at in range(0, len(h), size := _part(w)):
            rows = slice(at, at + size)
            out[rows], p = _likelihood(h[rows], w, target[rows], temperature, any(ctx.needs_input_grad))
            if dh is not None:
                torch.mm(p.to(w.dtype), w, out=dh[rows]).div_(-temperature)
            if at + len(p) <= room:
                kept.append(p)
        ctx.save_for_backward(*((dh, h, w, target, *kept) if ctx.needs_input_grad[1] else (dh,)))
        ctx.temperature = temperature
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        g = grads[0]
        dh, *more = ctx.saved_tensors
        if dh is not None:
            dh = dh * g[:, None].to(dh.dtype)
        if not ctx.needs_input_grad[1]:
            return dh, None, None, None
        h, w, target, *kept = more
        dw = torch.zeros_like(w)
        for number, at in enumerate(range(0, len(h), size := _part(w))):
            rows = slice(at, at + size)
            p = kept[number] if number < len(kept) else _likelihood(h[rows], w, target[rows], ctx.temperature, True)[1]
            p.mul_(-g[rows, None] / ctx.temperature)
            dw.addmm_(p.to(w.dtype).T, h[rows])
        return dh, dw, None, None


class _SummedNLL(torch.autograd.Function):
    """-sum log softmax(h W^T)[target], with both gradients made in forward while the logits are at hand.

    Only a sum allows this: its upstream is one number, by which backward multiplies. Three products a part, the
    least there is, and nothing is kept but the gradients themselves.
    """

    @staticmethod
    def forward(ctx: Any, h: torch.Tensor, w: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64, device=h.device)
        dh = torch.empty_like(h) if ctx.needs_input_grad[0] else None
        dw = torch.zeros_like(w) if ctx.needs_input_grad[1] else None
        for at in range(0, len(h), size := _part(w)):
            rows = slice(at, at + size)
            found, p = _likelihood(h[rows], w, target[rows], 1.0, any(ctx.needs_input_grad))
            total -= found.sum(dtype=torch.float64)
            p = p.to(w.dtype)
            if dh is not None:
                torch.mm(p, w, out=dh[rows])
            if dw is not None:
                dw.addmm_(p.T, h[rows])
        ctx.save_for_backward(dh, dw)
        return total.float()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *(None if d is None else d.mul_(grads[0].to(d.dtype)) for d in ctx.saved_tensors), None


def _plain_head(loaded: Loaded) -> torch.Tensor | None:
    """The head's weight where the head is that product and nothing more, in the dtype of this forward; else None."""
    head: Any = loaded.model.get_output_embeddings()
    config = loaded.model.config.get_text_config()
    scaled = any(getattr(config, name, None) for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"))
    if type(head) is not torch.nn.Linear or getattr(head, "bias", None) is not None or scaled:
        return None
    autocast = torch.is_autocast_enabled(head.weight.device.type)
    weight: torch.Tensor = head.weight.to(loaded.place.dtype if autocast else head.weight.dtype)
    return weight


def summed_nll(loaded: Loaded, row: Row, states: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of all targets of a row, summed (a scalar): what supervised finetuning minimises."""
    weight = _plain_head(loaded)
    if weight is None:
        return -token_logprobs(loaded, row, states).sum()
    picked = states[row.predict]
    with torch.autocast(picked.device.type, enabled=False):
        out: torch.Tensor = _SummedNLL.apply(picked.to(weight.dtype), weight, row.target)  # type: ignore[no-untyped-call]
    return out


def token_logprobs(loaded: Loaded, row: Row, states: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Log-probability (N,) of every target of a row, at a sampling temperature.

    Only predicted positions meet the head, in parts, so a 128k vocabulary never stands whole in memory.
    """
    model: Any = loaded.model
    picked = states[row.predict]
    if (weight := _plain_head(loaded)) is not None:
        with torch.autocast(picked.device.type, enabled=False):
            out: torch.Tensor = _TargetLogprob.apply(  # type: ignore[no-untyped-call]
                picked.to(weight.dtype), weight, row.target, temperature
            )
        return out

    def part(h: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        z = logits(model, h) / temperature
        return z.gather(-1, target[:, None])[:, 0] - z.logsumexp(-1)

    size = _part(model.get_output_embeddings().weight)
    pairs = zip(picked.split(size), row.target.split(size), strict=True)
    return torch.cat([checkpoint(part, h, t, use_reentrant=False) for h, t in pairs])


def row_rewards(loaded: Loaded, row: Row, states: torch.Tensor) -> torch.Tensor:
    """Reward (R,) of every response: the score head at its last token."""
    scores: torch.Tensor = loaded.model.score(states[row.last])
    return scores.float()[:, 0]


Item = tuple[Sequence[Message], Sequence[tuple[str, bool]]]  # prompt, its responses as (text, ended by itself)


def branch(loaded: Loaded, item: Item, *, tail: bool, any_length: bool = False) -> Branch:
    """A prompt and its responses as ids. ``tail`` as in ``Template.response_ids``.

    Raises XwinError where one is longer than the model's context, unless ``any_length``.
    """
    prompt, responses = item
    answers: list[list[int]] = []
    ids: list[int] = []
    for text, ended in responses:
        ids, answer = loaded.template.response_ids(prompt, text, ended, tail)
        answers.append(answer)
    if not any_length:
        check_fits(loaded, max((len(ids) + len(a) for a in answers), default=0))
    return Branch(ids, answers)


def context(loaded: Loaded) -> int:
    """How many tokens a sequence may have; a very large number where the model sets no limit."""
    return getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize


def check_fits(loaded: Loaded, length: int) -> None:
    """Refuse a sequence longer than the model's context; nothing is ever cut to fit."""
    if length > (limit := context(loaded)):
        raise XwinError(f"a prompt with its response has {length} tokens, {loaded.name} takes {limit}")


def _batched(
    loaded: Loaded, branches: Sequence[Branch], capacity: int, work: Callable[[Row, torch.Tensor], torch.Tensor]
) -> list[list[float]]:
    """Run rows of branches through the model, longest first; per-response figures in the branches' order.

    Where memory runs out, rows are halved, for this and for all later calls with this model.
    """
    prepare(loaded)
    while True:
        size = min(capacity, loaded.row_limit)
        try:
            return _rows(loaded, branches, size, work)
        except RuntimeError as e:
            if not _out_of_memory(e):
                raise
            if size <= LEAST:
                hint = "a smaller model, --dtype bfloat16 or a device with more memory would do"
                raise XwinError(f"{loaded.name}: memory runs out at a row of {size} tokens", hint) from e
        loaded.row_limit = size // 2
        warn(f"{loaded.name}: a row of {size} tokens does not fit into memory; going on with {size // 2}")
        gc.collect()
        if loaded.place.device.type == "cuda":
            torch.cuda.empty_cache()


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _rows(
    loaded: Loaded, branches: Sequence[Branch], capacity: int, work: Callable[[Row, torch.Tensor], torch.Tensor]
) -> list[list[float]]:
    parts, owner = split(branches, capacity)
    found: list[list[float]] = [[] for _ in parts]
    with torch.inference_mode(), loaded.place.autocast():
        for members in pack([len(p) for p in parts], capacity):
            row = lay([parts[i] for i in members]).to(loaded.place.device)
            values = work(row, hidden(loaded, row)).tolist()
            for value, b in zip(values, row.branch.tolist(), strict=True):
                found[members[b]].append(value)
    out: list[list[float]] = [[] for _ in branches]
    for part, i in enumerate(owner):
        out[i] += found[part]
    return out


def split(branches: Sequence[Branch], capacity: int) -> tuple[list[Branch], list[int]]:
    """Cut branches too long for one row between responses (never inside one); returns parts and their owners."""
    parts: list[Branch] = []
    owner: list[int] = []
    for i, b in enumerate(branches):
        take: list[list[int]] = []
        room = capacity - len(b.prompt)
        for r in b.responses:
            if take and len(r) > room:
                parts.append(Branch(b.prompt, take))
                owner.append(i)
                take, room = [], capacity - len(b.prompt)
            take.append(r)
            room -= len(r)
        parts.append(Branch(b.prompt, take))
        owner.append(i)
    return parts, owner


def rewards(loaded: Loaded, items: Sequence[Item], capacity: int = 4096) -> list[list[float]]:
    """Rewards of every item's responses under a reward model. ``capacity`` is tokens per forward."""
    return branch_rewards(loaded, [branch(loaded, item, tail=True) for item in items], capacity)


def branch_rewards(loaded: Loaded, branches: Sequence[Branch], capacity: int = 4096) -> list[list[float]]:
    """The same for prompts and responses that are ids already."""
    return _batched(loaded, branches, capacity, lambda row, h: row_rewards(loaded, row, h))


def logprobs(loaded: Loaded, branches: Sequence[Branch], capacity: int = 4096) -> list[list[float]]:
    """Summed log-probability (nats) of every branch's responses under a policy."""

    def work(row: Row, states: torch.Tensor) -> torch.Tensor:
        return segment_sum(token_logprobs(loaded, row, states), row)

    return _batched(loaded, branches, capacity, work)


def windows(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Consecutive lists of at most ``size`` rows, so that a stream is worked on in bounded memory."""
    window: list[Any] = []
    for row in rows:
        window.append(row)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window
