"""Questions to a judge model: through a server with the shared cache, from a batch's results, or in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from xwincli.chat.thinking import split_thinking
from xwincli.errors import XwinError
from xwincli.judges.llm.cache import Cache
from xwincli.judges.llm.money import Budget
from xwincli.judges.llm.said import Question, Said
from xwincli.settings import Device, Sampling, Server

POLL = 0.2  # seconds between looks at a reply that another process is getting


class Asker(Protocol):
    """Who gets replies."""

    where: str

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Said | XwinError]]:
        """A reply to each question, as they come, in any order."""
        ...


def request(question: Question) -> Any:
    """A question as a ``wire.Chat``: schema, log-probabilities and temperature are sent where the server takes them."""
    from xwincli.engines.wire import Chat

    wishes: dict[str, Any] = {}
    if question.schema is not None:
        form = {"name": "verdict", "schema": question.schema, "strict": True}
        wishes["response_format"] = {"type": "json_schema", "json_schema": form}
    if question.top:
        wishes["top_logprobs"] = question.top
    wishes["temperature"] = question.temperature  # models that reason first have one of their own
    return Chat(
        messages=question.messages,
        max_tokens=question.max_tokens,
        seed=question.seed,
        logprobs=question.top > 0,
        wishes=wishes,
    )


def read(choice: Any, usage: Any) -> Said:
    """A chat completion's choice as a reply."""
    text = split_thinking(choice.message.content or "")[1]
    steps = choice.logprobs.content if choice.logprobs else None
    first = [(a.token, a.logprob) for a in (steps[0].top_logprobs or [])] if steps else []
    return Said(
        text=text,
        first=first or None,
        finish=choice.finish_reason,
        prompt_tokens=usage.prompt_tokens if usage else None,
        reply_tokens=usage.completion_tokens if usage else None,
    )


class ServerAsker:
    """Replies from a server that speaks OpenAI's protocol; each is kept as it arrives.

    Args:
        server: whom to ask.
        cache: where replies are kept and looked for; None keeps none.
        budget: what may be spent.
        offline: look only: what is not in the cache is an error (a batch's results are all there is).
    """

    def __init__(self, server: Server, cache: Cache | None, budget: Budget, *, offline: bool = False) -> None:
        self.server, self.cache, self.budget, self.offline = server, cache, budget, offline
        self.where = server.base_url
        self.cached = 0
        self._clients: dict[str, Any] = {}

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Said | XwinError]]:
        """See ``Asker``; what the cache has costs nothing."""
        rest: dict[str, list[Question]] = {}
        for question in questions:
            if self.cache and (said := self.cache.get(question.key(self.where))):
                self.cached += 1
                yield question, said
            elif self.offline:
                yield question, XwinError("the batch's results lack this call; --batch-export FILE writes it again")
            else:
                rest.setdefault(question.model, []).append(question)
        for model, asked in rest.items():
            yield from self._send(model, asked)

    def _send(self, model: str, questions: Iterable[Question]) -> Iterator[tuple[Question, Said | XwinError]]:
        from xwincli.engines import flow
        from xwincli.engines.client import Client

        client = self._clients.setdefault(model, Client(self.server, model))
        yield from flow.answered(questions, self._session(client), client.pace)

    @asynccontextmanager
    async def _session(self, client: Any) -> AsyncIterator[Callable[[Question], Awaitable[Said]]]:
        async with client.connected():
            yield lambda question: self._once(client, question)

    async def _once(self, client: Any, question: Question) -> Said:
        """One question: another process may have the reply, or be about to."""
        if self.cache is None:
            return await self._paid(client, question)
        key = question.key(self.where)
        while not self.cache.claim(key):
            await asyncio.sleep(POLL)
            if said := self.cache.get(key):
                self.cached += 1
                return said
        try:
            said = self.cache.get(key)  # it may have come between looking and claiming
            if said is None:
                said = await self._paid(client, question)
                self.cache.put(key, said)
            return said
        finally:
            self.cache.release(key)

    async def _paid(self, client: Any, question: Question) -> Said:
        from xwincli.engines.flow import Stop

        try:
            reserved = await self.budget.reserve(question)
        except XwinError as e:
            raise Stop(e.message, e.hint, e.code) from None
        said = None
        try:
            reply = await client.chat(request(question))
            said = read(reply.choices[0], reply.usage)
            return said
        finally:
            self.budget.settle(question, reserved, said)


class EngineAsker:
    """Replies from a model in this process. It gives texts only: a judge that reads log-probabilities needs a server.

    Args:
        engine: "native" or "vllm".
        device: where it computes.
        rows: replies decoded together.
    """

    def __init__(self, engine: str, device: Device, rows: int) -> None:
        self.engine, self.device, self.rows, self.where = engine, device, rows, engine
        self._name, self._model = "", None  # type: tuple[str, Any]

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Said | XwinError]]:
        """See ``Asker``; questions of one model and one way of sampling go together."""
        from xwincli.engines import Ask

        alike: dict[tuple[str, int, float, int], list[Question]] = {}
        for q in questions:
            alike.setdefault((q.model, q.max_tokens, q.temperature, q.seed), []).append(q)
        for (model, most, temperature, seed), some in alike.items():
            sampling = Sampling(n=1, temperature=temperature, max_tokens=most)
            asks = (Ask(str(i), q.messages, 1, q.key(self.where)) for i, q in enumerate(some))
            for key, answer in self._loaded(model).generate(asks, sampling, seed):
                yield some[int(key)], answer if isinstance(answer, XwinError) else self._said(answer[0])

    def _loaded(self, model: str) -> Any:
        if self._name != model:
            from xwincli import engines

            self._model = None  # let the one before go first
            self._name, self._model = model, engines.find(self.engine, model, self.device, self.rows)
        return self._model

    def _said(self, response: Any) -> Said:
        text = split_thinking(response.text)[1]
        return Said(text=text, finish=response.finish, reply_tokens=response.tokens)
