"""The rows being decoded together: they enter when there is room, grow a token a step, leave when finished."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xwincli.engines.native import attention
from xwincli.engines.native.cache import Layout, Store
from xwincli.engines.native.draw import Choice, draw, streams
from xwincli.engines.native.fuse import Linears
from xwincli.engines.native.pages import lazy

PREFILL = 4096  # prompt tokens in one forward


@dataclass(frozen=True)
class Request:
    """Draw responses ``first`` … ``first + n - 1`` to a prompt, at most ``limit`` tokens each."""

    key: str
    ids: list[int]
    n: int
    first: int
    stream: str
    limit: int


@dataclass
class Drawn:
    """One finished response: its token ids (stop token included), how it ended, its log-probability."""

    ids: list[int]
    index: int
    finish: str
    logprob: float


@dataclass
class Live:
    """A prompt in the store: the logits its responses start from, and how many wait and live."""

    request: Request
    logits: Tensor
    waiting: deque[int]
    alive: int = 0


@dataclass(frozen=True)
class Rules:
    """How tokens are drawn and when a response ends.

    ``stops`` are token ids; ``ended(ids)`` may end a response by its text, or is None.
    """

    choice: Choice
    seed: int
    stops: frozenset[int]
    ended: Callable[[list[int]], bool] | None = None


class Body:
    """A transformers model as it is called while sampling; between two calls it is as before.

    Args:
        model: a causal language model.
        dtype: precision of its linear layers' products.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self.model, self.dtype, self.device = model, dtype, next(model.parameters()).device
        self.linears = Linears(model, dtype)

    def __call__(self, ids: Any, positions: Any, phase: attention.Phase, keep: Any = None) -> Tensor:
        """Logits (kept tokens, vocabulary) of a packed row (T,); ``keep`` are token indices, None keeps all."""
        config = self.model.config
        before = config._attn_implementation
        arguments = {} if keep is None else {"logits_to_keep": self._tensor(keep)}
        try:
            config._attn_implementation = attention.NAME
            return self._logits(ids, position_ids=self._tensor(positions)[None], xwin=phase, **arguments)
        finally:
            config._attn_implementation = before

    def plain(self, ids: list[int]) -> Tensor:
        """Logits (vocabulary,) float32 after one sequence, as transformers computes them."""
        return self._logits(ids)[-1].float()

    @torch.inference_mode()
    def _logits(self, ids: Any, **arguments: Any) -> Tensor:
        training = self.model.training
        self.model.eval()
        try:
            with self.linears.active():
                out = self.model(input_ids=self._tensor(ids)[None], use_cache=False, **arguments)
        finally:
            if training:
                self.model.train()
        logits: Tensor = out.logits[0]
        return logits

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(np.asarray(values, np.int64)).to(self.device)


class Queue:
    """Requests still to come; the next one can be looked at."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self._rest = iter(requests)
        self._next: Request | None = None

    def peek(self) -> Request | None:
        """The next request, which stays; None after the last."""
        if self._next is None:
            self._next = next(self._rest, None)
        return self._next

    def pop(self) -> None:
        """Take it away."""
        self._next = None


class Batch:
    """Continuous batching; live rows stand at 0 … live-1 of every array.

    Args:
        body: the model.
        rules: how tokens are drawn.
        rows: responses decoded together at most.
        tokens: whose keys and values are held at most, 0 for no such limit. Prompts count as long as the longest,
            responses as long as they may become, since that is what is laid out for them. A single response is
            always decoded.
    """

    def __init__(self, body: Body, rules: Rules, rows: int, tokens: int = 0) -> None:
        self.body, self.rules, self.rows, self.live = body, rules, rows, 0
        self.held = tokens
        self.shared, self.own = Store(), Store()
        self.prompts: list[Live] = []  # by slot in ``shared``
        self.stops = np.asarray(sorted(rules.stops), np.int64)
        self.tokens = np.zeros((rows, 64), np.int64)
        self.prompt_of, self.start, self.age, self.limit, self.index = (np.zeros(rows, np.int64) for _ in range(5))
        self.stream, self.logprob = np.zeros(rows, np.uint64), np.zeros(rows)
        self.layout: Layout | None = None
        self.seen: Tensor | None = None  # (rows, vocabulary): what each row has read or written, for the penalty

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Drawn]]:
        """Answer all requests; responses come as they finish."""
        queue = Queue(requests)
        while True:
            yield from self._leave(self._admit(queue))
            if self.live:
                yield from self._leave(self._step())
            elif not any(p.waiting for p in self.prompts):
                return

    # -- entering

    def _admit(self, queue: Queue) -> list[int]:
        """Fill free rows: first with responses to prompts already here, then with new prompts."""
        free = self._room([]) - self.live
        ready = sum(len(p.waiting) for p in self.prompts)
        if ready < free and (free >= self.rows // 8 or not self.live):
            self._prefill(queue, free - ready)
            free = self._room([]) - self.live
        entering: list[tuple[int, int]] = []
        for slot, prompt in enumerate(self.prompts):
            while prompt.waiting and len(entering) < free:
                entering.append((slot, prompt.waiting.popleft()))
        return self._enter(entering) if entering else []

    def _room(self, new: list[Request]) -> int:
        """Rows that may live beside the prompts that are here and some new ones."""
        requests = [*(p.request for p in self.prompts), *new]
        if not self.held or not requests:
            return self.rows
        left = self.held - len(requests) * max(len(r.ids) for r in requests)
        return max(min(self.rows, left // max(r.limit for r in requests)), 1)

    def _prefill(self, queue: Queue, room: int) -> None:
        """Pass new prompts through the model, several in one row, until their responses fill ``room``."""
        while room > 0:
            new: list[Request] = []
            while room > 0 and sum(len(r.ids) for r in new) < PREFILL and (request := queue.peek()):
                if (self.prompts or new) and self._room([*new, request]) <= self.live:
                    room = 0  # it would crowd out those that are here
                    break
                queue.pop()
                new.append(request)
                room -= request.n
            if not new:
                return
            lengths = [len(r.ids) for r in new]
            slots = range(len(self.prompts), len(self.prompts) + len(new))
            self.shared.reserve(len(self.prompts) + len(new), max(lengths))
            logits = self.body(
                [i for r in new for i in r.ids],
                np.concatenate([np.arange(n) for n in lengths]),
                attention.Prefill(self.shared, slots, lengths),
                keep=np.cumsum(lengths) - 1,
            )
            for request, row in zip(new, logits, strict=True):
                self.prompts.append(Live(request, row, deque(range(request.first, request.first + request.n))))

    def _enter(self, entering: list[tuple[int, int]]) -> list[int]:
        """Begin responses (prompt slot, index): draw each one's first token from its prompt's logits."""
        r = slice(self.live, self.live + len(entering))
        self.live, self.layout = r.stop, None
        for row, (slot, index) in enumerate(entering, r.start):
            prompt = self.prompts[slot]
            prompt.alive += 1
            self.prompt_of[row], self.start[row], self.index[row] = slot, len(prompt.request.ids), index
            self.limit[row] = prompt.request.limit
            self.stream[row] = streams(self.rules.seed, prompt.request.stream, [index])[0]
        self.age[r] = self.logprob[r] = 0
        if self.rules.choice.penalty != 1:
            self._see([(row, self.prompts[slot].request.ids) for row, (slot, _) in enumerate(entering, r.start)])
        return self._draw(r, torch.stack([self.prompts[slot].logits for slot, _ in entering]))

    def _see(self, entering: list[tuple[int, list[int]]]) -> None:
        """Begin rows (row, its prompt) of what has been seen."""
        if self.seen is None:
            vocabulary = self.prompts[0].logits.shape[-1]
            self.seen = torch.zeros(self.rows, vocabulary, dtype=torch.bool, device=self.body.device)
        for row, ids in entering:
            self.seen[row] = False
            self.seen[row, ids] = True

    # -- growing

    def _step(self) -> list[int]:
        """One token for every live row."""
        r = slice(0, self.live)
        ages = self.age[r].copy()
        if lazy(self.body.device):
            self.own.reserve(self.rows, int(self.limit[r].max()))
        else:
            self.own.reserve(self.live, int(ages.max()))
        if self.layout is None:
            lengths = np.asarray([len(p.request.ids) for p in self.prompts])
            self.layout = Layout(self.prompt_of[r].copy(), lengths, self.body.device)
        phase = attention.Decode(self.shared, self.own, self.layout, ages)
        last = self.tokens[np.arange(self.live), ages - 1]
        return self._draw(r, self.body(last, self.start[r] + ages - 1, phase))

    @torch.inference_mode()
    def _draw(self, r: slice, logits: Tensor) -> list[int]:
        """Draw the next token of rows ``r``; returns the rows that end with it."""
        rules = self.rules
        seen = None if self.seen is None else self.seen[r]
        drawn, logprobs = draw(logits, self.stream[r], self.age[r], rules.choice, seen)
        if seen is not None:
            seen.scatter_(1, drawn[:, None].to(seen.device), True)
        tokens = drawn.cpu().numpy()
        if self.age[r].max() >= self.tokens.shape[1]:
            self.tokens = np.pad(self.tokens, ((0, 0), (0, self.tokens.shape[1])))
        self.tokens[np.arange(r.start, r.stop), self.age[r]] = tokens
        self.logprob[r] += logprobs.cpu().numpy()
        self.age[r] += 1
        done = np.isin(tokens, self.stops) | (self.age[r] >= self.limit[r])
        if rules.ended is not None:
            done |= [rules.ended(self.tokens[row, : self.age[row]].tolist()) for row in range(r.start, r.stop)]
        ends: list[int] = (np.flatnonzero(done) + r.start).tolist()
        return ends

    # -- leaving

    def _leave(self, done: list[int]) -> Iterator[tuple[Request, Drawn]]:
        """Give finished rows out; the last row takes each one's place."""
        for row in reversed(done):
            ids = self.tokens[row, : self.age[row]].tolist()
            ended = ids[-1] in self.rules.stops or (self.rules.ended is not None and self.rules.ended(ids))
            slot = int(self.prompt_of[row])
            prompt = self.prompts[slot]
            finish = "stop" if ended else "length"
            drawn = Drawn(ids, int(self.index[row]), finish, float(self.logprob[row]))
            self._drop(row)
            prompt.alive -= 1
            if not prompt.alive and not prompt.waiting:
                self._forget(slot)
            yield prompt.request, drawn

    def _drop(self, row: int) -> None:
        self.live, self.layout = self.live - 1, None
        last = self.live
        self.own.move(last, row, int(self.age[last]) - 1)
        if row == last:
            return
        for column in (
            self.tokens, self.prompt_of, self.start, self.age, self.limit, self.index, self.stream, self.logprob,
        ):  # fmt: skip
            column[row] = column[last]
        if self.seen is not None:
            self.seen[row] = self.seen[last]

    def _forget(self, slot: int) -> None:
        """Free a prompt's slot; the last prompt takes its place."""
        last = len(self.prompts) - 1
        self.shared.move(last, slot, len(self.prompts[last].request.ids))
        if slot != last:
            self.prompts[slot] = self.prompts[last]
            self.prompt_of[: self.live][self.prompt_of[: self.live] == last] = slot
        self.prompts.pop()
