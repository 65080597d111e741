"""One chat request to a server that speaks OpenAI's protocol: sent at the server's pace, tried again, read.

What a server does not take (``seed``, ``logprobs``, several choices) is learned from its first refusals.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import openai

from xwincli.console import warn
from xwincli.engines import wire
from xwincli.engines.flow import Stop
from xwincli.engines.pace import Pace, backoff, retry_after
from xwincli.engines.wire import LOSS, ORDER, Chat, Models, Reply, Usage
from xwincli.errors import XwinError
from xwincli.settings import Server

NOTICE = 30.0  # seconds of waiting that people are told of


class Fault(Exception):
    """A try that failed and may be repeated.

    Args:
        text: what happened.
        wait: seconds the server asked for; None if it said nothing.
        busy: the server has too much.
        absent: there was no connection at all.
    """

    def __init__(self, text: str, *, wait: float | None = None, busy: bool = False, absent: bool = False) -> None:
        super().__init__(text)
        self.wait, self.busy, self.absent = wait, busy, absent


class Refusal(Exception):
    """400 or 422: the request as it stands will never be answered.

    Args:
        text: what the server says, for people.
        whole: all of it.
        field: the field it points at, if it does.
    """

    def __init__(self, text: str, whole: str, field: str | None) -> None:
        super().__init__(text)
        self.whole, self.field = whole, field

    def names(self, field: str) -> bool:
        """True if it is this field that is refused."""
        return self.field == field or wire.names(self.whole, field)


class Client:
    """Asks one server; what it learned of the server outlives a connection.

    Args:
        server: address, limits, patience.
        model: the name the server knows it by.

    Attributes:
        pace: how fast requests go.
        usage: tokens of all replies so far, where the server counts them.
    """

    def __init__(self, server: Server, model: str) -> None:
        self.server, self.model = server, model
        self.pace = Pace(server.concurrency, server.rpm, server.tpm)
        self.usage = Usage(0, 0)
        self.dropped: frozenset[str] = frozenset()  # fields the server does not take
        self.proven: frozenset[str] = frozenset()  # fields that stood in a request that was answered
        self._http: openai.AsyncOpenAI | None = None
        self._rng = random.Random()  # of the rests between tries: no result depends on it
        self._heard = float("-inf")  # when the last answer came
        self._mean: float | None = None  # completion tokens per choice, as far as is known

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Client]:
        """Open the connections, in the running event loop."""
        # the key is read here, handed to the package and kept nowhere else
        http = openai.AsyncOpenAI(
            api_key=wire.key() or "none",
            base_url=self.server.base_url,
            max_retries=0,
            timeout=self.server.timeout,
        )
        async with http:
            self._http = http
            try:
                yield self
            finally:
                self._http = None

    async def models(self) -> list[str]:
        """The names of the models the server has."""
        assert self._http is not None
        try:
            found = msgspec.json.decode(await self._http.get("/models", cast_to=str), type=Models)
        except (openai.OpenAIError, msgspec.DecodeError) as e:
            text = wire.said(e) if isinstance(e, openai.OpenAIError) else "an answer that cannot be read"
            raise XwinError(f"{self.server.base_url}: the list of models: {text}", "name one: --model NAME") from None
        return [m.id for m in found.data]

    async def chat(self, chat: Chat) -> Reply:
        """Ask until an answer comes, or tries run out, or there is no hope.

        Raises:
            Stop: no request to this server can be answered.
            XwinError: this one cannot.
        """
        self.pace.load += 1
        try:
            return await self._agreed(chat)
        finally:
            self.pace.load -= 1
            self.pace.on_change()

    # -- what the server takes

    async def _agreed(self, chat: Chat) -> Reply:
        """Ask without what the server does not take."""
        first: Refusal | None = None
        dropped = self.dropped
        while True:
            fields = wire.optional(chat) - dropped
            try:
                reply = await self._persistent(chat, fields)
            except Refusal as refusal:
                first = first or refusal
                if dropped < self.dropped:  # another request has learned meanwhile
                    dropped = self.dropped
                else:
                    dropped |= {self._given_up(chat, fields, refusal, first)}
                continue
            self._learn(chat, fields, dropped)
            return reply

    def _given_up(self, chat: Chat, fields: frozenset[str], refusal: Refusal, first: Refusal) -> str:
        """The field to leave out after a refusal."""
        doubted = fields - self.proven
        for name in (*ORDER, *chat.wishes, *chat.options):
            if refusal.names(name):
                if name in doubted:
                    return name
                if name in chat.flags and name not in self.proven:
                    flag = chat.flags[name]
                    hint = f"leave {flag} out, or ask a server that takes it"
                    raise Stop(f"{self.server.base_url} refuses {flag} ({name}): {refusal}", hint)
        if unnamed := [name for name in (*chat.wishes, *ORDER) if name in doubted and name != "max_tokens"]:
            return unnamed[0]
        raise XwinError(f"the server refuses the request: {first}")

    def _learn(self, chat: Chat, fields: frozenset[str], dropped: frozenset[str]) -> None:
        self.proven |= fields | chat.options.keys()
        new, self.dropped = dropped - self.dropped, self.dropped | dropped
        for name, loss in LOSS.items():
            if name in new:
                warn(f"{self.server.base_url} does not take {name}: {loss}")

    # -- one request, tried again

    async def _persistent(self, chat: Chat, fields: frozenset[str]) -> Reply:
        body, begun = wire.body(self.model, chat, fields), time.monotonic()
        for attempt in range(self.server.retries + 1):
            try:
                return await self._paced(body, self._expected(chat, fields))
            except Fault as e:
                fault = e
            if attempt < self.server.retries:
                await asyncio.sleep((fault.wait or 0.0) + backoff(attempt if fault.wait is None else 0, self._rng))
        text = f"{fault} (tried {self.server.retries + 1} times)"
        if fault.absent and self._heard < begun:
            hint = "is it running, and is --base-url right? The same command goes on from here"
            raise Stop(f"{self.server.base_url}: {text}", hint)
        raise XwinError(text)

    async def _paced(self, body: dict[str, Any], expected: int) -> Reply:
        """Wait for a turn, send, and tell the pace how it went."""
        async with self.pace.turn(expected) as sent:
            try:
                reply = await self._sent(body)
            except Fault as fault:
                if fault.busy:
                    self.pace.trouble(sent)
                    self._rest(fault)
                raise
            self._heard = time.monotonic()
            self.pace.went_well()
        self._count(reply, expected)
        return reply

    async def _sent(self, body: dict[str, Any]) -> Reply:
        assert self._http is not None
        try:
            async with asyncio.timeout(self.server.timeout):  # the package's own limits each read, not the whole
                text = await self._http.post("/chat/completions", body=body, cast_to=str)
            reply = msgspec.json.decode(text, type=Reply)
        except (TimeoutError, openai.APITimeoutError):
            raise Fault(f"no answer within {self.server.timeout:g} s (--timeout)", busy=True) from None
        except openai.APIStatusError as e:
            raise self._status(e) from None
        except openai.APIConnectionError as e:
            cause = e.__cause__
            absent = type(cause).__name__ == "ConnectError"
            what = "cannot connect" if absent else "the connection broke"
            raise Fault(f"{what} ({cause})", absent=absent) from None
        except msgspec.DecodeError as e:
            raise Fault(f"an answer that is no chat completion: {e}") from None
        if not reply.choices:
            raise Fault("an answer without choices")
        reply.choices.sort(key=lambda c: c.index)
        return reply

    def _status(self, e: openai.APIStatusError) -> Exception:
        """What an HTTP status means for the request, or for the run."""
        code, text, where = e.status_code, wire.said(e), self.server.base_url
        if code in (400, 422):
            return Refusal(text, wire.said(e, 100_000), e.param)
        if code in (401, 403):
            hint = "is OPENAI_API_KEY this server's key?" if wire.key() else "set OPENAI_API_KEY to this server's key"
            return Stop(f"{where}: {'the key is not accepted' if code == 401 else 'forbidden'}: {text}", hint)
        if code == 404:
            hint = "is the model served there? A --base-url usually ends in /v1"
            return Stop(f"{where}: no such address or model {self.model!r}: {text}", hint)
        if code == 402 or e.code == "insufficient_quota":
            return Stop(f"{where}: nothing is left to pay with: {text}", "the same command goes on from here")
        if code in (408, 409, 425, 429) or code >= 500:
            return Fault(text, wait=retry_after(e.response.headers, time.time()), busy=code in (429, 503))
        return XwinError(f"the server refuses the request: {text}")

    def _rest(self, fault: Fault) -> None:
        """All requests rest while a busy server asks for it."""
        if fault.wait:
            if fault.wait >= NOTICE:
                warn(f"{self.server.base_url} asks to wait {fault.wait:.0f} s: {fault}")
            self.pace.pause(fault.wait)

    # -- tokens

    def _expected(self, chat: Chat, fields: frozenset[str]) -> int:
        """Tokens a request will use, for --tpm: a quarter of the prompt's characters and the answers' mean so far."""
        answer = chat.max_tokens if self._mean is None else min(self._mean, chat.max_tokens)
        choices = chat.n if "n" in fields else 1
        return round(sum(len(str(m.get("content") or "")) for m in chat.messages) / 4 + choices * answer)

    def _count(self, reply: Reply, expected: int) -> None:
        if reply.usage is None or reply.usage.completion_tokens is None:
            return
        asked, given = reply.usage.prompt_tokens or 0, reply.usage.completion_tokens
        self.usage.prompt_tokens = (self.usage.prompt_tokens or 0) + asked
        self.usage.completion_tokens = (self.usage.completion_tokens or 0) + given
        mean = given / len(reply.choices)
        self._mean = mean if self._mean is None else 0.9 * self._mean + 0.1 * mean
        self.pace.settle(expected, asked + given)
