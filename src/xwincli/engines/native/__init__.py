"""The native engine: a prompt is computed once, its responses decode together with those of other prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from xwincli.console import warn
from xwincli.engines import Ask
from xwincli.engines.native import plain
from xwincli.engines.native.batch import Batch, Body, Drawn, Request, Rules
from xwincli.engines.native.draw import Choice
from xwincli.engines.native.probe import obstacle
from xwincli.errors import XwinError
from xwincli.models import Loaded
from xwincli.records import Response
from xwincli.settings import Sampling

__all__ = ["Drawn", "Native"]


class Native:
    """Sampling with the model's own modules and our attention.

    Between two answers the model is as it was before, and may be trained on (unless it is our ``own``).

    Args:
        loaded: the policy. Its weights are read where they are, as they are when a call to ``draw`` begins.
        rows: responses decoded together.
        tokens: see ``Batch``.
        own: nobody else uses the model, so that its weights may be kept in a form of ours.

    Attributes:
        obstacle: why this model goes the slow way, transformers' own ``generate``; "" if it does not.
    """

    def __init__(self, loaded: Loaded, rows: int = 128, tokens: int = 0, *, own: bool = False) -> None:
        self.loaded, self.rows, self.tokens = loaded, rows, tokens
        self.body = Body(loaded.model, loaded.place.dtype)
        config = loaded.model.config.get_text_config()
        self.context = int(getattr(config, "max_position_embeddings", 0) or 1 << 30)
        self.obstacle = obstacle(self.body)
        if self.obstacle:
            warn(f"{loaded.name}: {self.obstacle}; sampling through transformers' generate, which is slower")
        elif own:
            self.body.linears.pack()

    def facts(self) -> dict[str, str]:
        """See ``Engine``."""
        return {"engine": "native", **self.loaded.place.facts()}

    def generate(
        self, asks: Iterable[Ask], sampling: Sampling, seed: int
    ) -> Iterator[tuple[str, list[Response] | XwinError]]:
        """See ``Engine``."""
        for ask, drawn in self.draw(asks, sampling, seed):
            if isinstance(drawn, XwinError):
                yield ask.key, drawn
            else:
                yield ask.key, [self._response(d, sampling) for d in drawn]

    def draw(self, asks: Iterable[Ask], sampling: Sampling, seed: int) -> Iterator[tuple[Ask, list[Drawn] | XwinError]]:
        """The same as exact token ids, for callers who train on them: each ask with its responses by index."""
        refused: list[tuple[Ask, XwinError]] = []
        open_: dict[str, tuple[Ask, list[Drawn]]] = {}
        rules, requests = self._rules(sampling, seed), self._requests(asks, sampling, open_, refused)
        if self.obstacle:
            answers = plain.run(self.loaded.model, rules, self.rows, requests)
        else:
            self.body.linears.refresh()
            answers = Batch(self.body, rules, self.rows, self.tokens).run(requests)
        for request, drawn in answers:
            while refused:
                yield refused.pop(0)
            ask, so_far = open_[request.key]
            so_far.append(drawn)
            if len(so_far) == ask.n:
                del open_[request.key]
                yield ask, sorted(so_far, key=lambda d: d.index)
        yield from refused

    def _requests(
        self,
        asks: Iterable[Ask],
        sampling: Sampling,
        open_: dict[str, tuple[Ask, list[Drawn]]],
        refused: list[tuple[Ask, XwinError]],
    ) -> Iterator[Request]:
        """Asks as token ids. A prompt that leaves no room in the context is refused, never cut."""
        told = False
        for ask in asks:
            try:
                ids = self.loaded.template.prompt_ids(ask.messages)
                if len(ids) >= self.context:
                    room = f"leaves no room in {self.loaded.name}'s context of {self.context}"
                    raise XwinError(f"a prompt of {len(ids)} tokens {room}")
            except XwinError as e:
                refused.append((ask, e))
                continue
            limit = min(sampling.max_tokens, self.context - len(ids))
            if limit < sampling.max_tokens and not told:
                warn(f"{self.loaded.name}'s context of {self.context} cuts some responses before --max-tokens")
                told = True
            open_[ask.key] = (ask, [])
            yield Request(ask.key, ids, ask.n, ask.first, ask.prompt_id, limit)

    def _rules(self, sampling: Sampling, seed: int) -> Rules:
        stops = frozenset(self.loaded.template.stop_ids)
        if not stops:
            warn(f"{self.loaded.name}: no stop token is known, so every response runs to --max-tokens")
        choice = Choice(
            sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.repetition_penalty
        )
        return Rules(choice, seed, stops, self._ended(sampling.stop))

    def _ended(self, stop: list[str]) -> Callable[[list[int]], bool] | None:
        """A response ends where its text holds a stop string; only its last tokens can have brought it."""
        if not stop:
            return None
        window = max(len(s.encode()) for s in stop) + 8  # a token holds at least a byte

        def ended(ids: list[int]) -> bool:
            tail = self._decode(ids[-window:])
            return any(s in tail for s in stop)

        return ended

    def _decode(self, ids: list[int]) -> str:
        return self.loaded.template.decode(ids)

    def _response(self, drawn: Drawn, sampling: Sampling) -> Response:
        text = self.loaded.template.answer(drawn.ids)
        text = text[: min((at for s in sampling.stop if (at := text.find(s)) >= 0), default=len(text))]
        logprob = round(drawn.logprob, 4)  # batches of other sizes round otherwise beyond this
        return Response(text=text, index=drawn.index, finish=drawn.finish, tokens=len(drawn.ids), logprob=logprob)
