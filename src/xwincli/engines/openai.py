"""The openai engine: any server that speaks OpenAI's chat completions (vLLM, SGLang, llama.cpp, the API) answers.

A server may give fewer responses than asked for, or one whatever ``n`` says: what is missing is asked for again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any

from xwincli.console import say, warn
from xwincli.engines import Ask, flow
from xwincli.engines.client import Client
from xwincli.engines.wire import Chat, Choice, Reply
from xwincli.errors import XwinError
from xwincli.records import Response
from xwincli.settings import Sampling, Server

FLAGS = {  # field of the body -> flag; a server that refuses one of these ends the run
    "temperature": "--temperature",
    "top_p": "--top-p",
    "top_k": "--top-k",
    "min_p": "--min-p",
    "repetition_penalty": "--repetition-penalty",
    "repeat_penalty": "--repetition-penalty",
    "stop": "--stop",
    "chat_template_kwargs": "--template-arg",
}
ALIKE = 3  # so many prompts with nothing but equal responses, and people are told


class OpenAI:
    """Responses from a server.

    Args:
        server: its address and how fast it is asked.
        model: the name it knows the model by.
        template_arguments: variables for the chat template, which is the server's own.
    """

    def __init__(self, server: Server, model: str, template_arguments: dict[str, Any] | None = None) -> None:
        self.model, self.template_arguments = model, template_arguments or {}
        self.client = Client(server, model)
        self.at_once: int | None = None  # responses a request gives at most, if that is known to be few
        self._whole = False  # a request for several was answered in full
        self._alike: int | None = 0  # prompts with nothing but equal responses; None once some differed

    def facts(self) -> dict[str, str]:
        """See ``Engine``."""
        return {"engine": "openai", "base_url": self.client.server.base_url, "model": self.model}

    def generate(
        self, asks: Iterable[Ask], sampling: Sampling, seed: int
    ) -> Iterator[tuple[str, list[Response] | XwinError]]:
        """See ``Engine``."""
        for ask, answer in flow.answered(asks, self._session(sampling, seed), self.client.pace):
            yield ask.key, answer

    @asynccontextmanager
    async def _session(
        self, sampling: Sampling, seed: int
    ) -> AsyncIterator[Callable[[Ask], Awaitable[list[Response]]]]:
        async with self.client.connected():
            yield lambda ask: self._answer(ask, sampling, seed)

    async def _answer(self, ask: Ask, sampling: Sampling, seed: int) -> list[Response]:
        """All responses of one ask, by index."""
        found: dict[int, Response] = {}
        while missing := [i for i in range(ask.first, ask.first + ask.n) if i not in found]:
            size = self.at_once or len(missing)
            parts = [missing[i : i + size] for i in range(0, len(missing), size)]
            for came in await _together([self._draw(ask, part, sampling, seed) for part in parts]):
                found |= came
        responses = [found[i] for i in sorted(found)]
        self._watch(responses, sampling)
        return responses

    async def _draw(self, ask: Ask, indices: list[int], sampling: Sampling, seed: int) -> dict[int, Response]:
        """One request for the responses of these indices; fewer may come."""
        chat = Chat(
            messages=ask.messages,
            n=len(indices),
            max_tokens=sampling.max_tokens,
            seed=number(seed, ask.prompt_id, indices[0]),
            logprobs=True,
            options=options(sampling, self.template_arguments),
            flags=FLAGS,
        )
        reply = await self.client.chat(chat)
        self._learn(len(indices), len(reply.choices))
        return {i: response(choice, i, sampling, reply) for i, choice in zip(indices, reply.choices)}

    def _learn(self, asked: int, came: int) -> None:
        if came >= asked:
            self._whole = self._whole or asked > 1
        elif not self._whole and came < (self.at_once or asked):
            self.at_once = came
            say(f"{self.client.server.base_url} gives {came} of {asked} responses a request: the others are asked for")

    def _watch(self, responses: list[Response], sampling: Sampling) -> None:
        """Some servers stay greedy whatever the temperature, or give every response of a request the same seed."""
        if len(responses) < 3 or not sampling.temperature or self._alike is None:
            return
        if len({r.text for r in responses}) > 1:
            self._alike = None  # it does vary: nothing to watch for
        elif len(responses[0].text) > 40:
            self._alike += 1
            if self._alike == ALIKE:
                where = self.client.server.base_url
                warn(f"{where}: all responses of a prompt are equal: does the server sample at this temperature?")


def number(seed: int, prompt_id: str, index: int) -> int:
    """The seed of a request, 31 bits: from the run's, the prompt and the first response's index alone."""
    digest = hashlib.sha256(f"{seed}/{prompt_id}/{index}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def options(sampling: Sampling, template_arguments: dict[str, Any]) -> dict[str, Any]:
    """The fields of a request's body that say how to sample; those that change nothing are left out."""
    penalty = sampling.repetition_penalty
    given: dict[str, tuple[Any, Any]] = {
        "temperature": (sampling.temperature, None),
        "top_p": (sampling.top_p, 1.0),
        "top_k": (sampling.top_k, 0),
        "min_p": (sampling.min_p, 0.0),
        "repetition_penalty": (penalty, 1.0),
        "repeat_penalty": (penalty, 1.0),  # llama.cpp's name for it; others do not look at it
        "stop": (sampling.stop, []),
        "chat_template_kwargs": (template_arguments, {}),
    }
    return {name: value for name, (value, plain) in given.items() if value != plain}


def response(choice: Choice, index: int, sampling: Sampling, reply: Reply) -> Response:
    """A choice as a response.

    Raises:
        XwinError: it ended otherwise than by itself or at its length.
    """
    finish, message = choice.finish_reason, choice.message
    if finish not in ("stop", "length"):
        raise XwinError(f"response {index} ended with {finish!r}, not with an answer")
    thinking = message.reasoning_content or message.reasoning
    if message.content is None and not thinking:
        raise XwinError(f"response {index} came without content ({finish})")
    text = message.content or ""
    if cuts := [at for stop in sampling.stop if (at := text.find(stop)) >= 0]:  # some servers leave the stop text
        text, finish = text[: min(cuts)], "stop"
    steps = choice.logprobs.content if choice.logprobs else None
    logprobs = [s.logprob for s in steps or [] if s.logprob is not None]
    used = reply.usage.completion_tokens if reply.usage and len(reply.choices) == 1 else None
    return Response(
        text=text,
        index=index,
        finish=finish,
        tokens=len(steps) if steps else used,
        logprob=round(sum(logprobs), 4) if steps and len(logprobs) == len(steps) else None,
        extra={"thinking": thinking} if thinking else {},
    )


async def _together(parts: list[Coroutine[Any, Any, dict[int, Response]]]) -> list[dict[int, Response]]:
    """All of them at once; the first error calls the others off."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def served(server: Server) -> str:
    """The one model a server has.

    Raises:
        XwinError: it has none or several, or does not tell.
    """

    async def ask() -> list[str]:
        async with Client(server, "").connected() as client:
            return await client.models()

    names = asyncio.run(ask())
    if len(names) != 1:
        listed = ", ".join(sorted(names)[:20]) or "none"
        raise XwinError(f"{server.base_url} has {len(names)} models: {listed}", "choose one: --model NAME")
    return names[0]
