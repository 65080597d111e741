"""OpenAI's protocol in words of ours: what a chat request holds, what a reply must hold, what an error says."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import msgspec
import openai

from xwincli.records import Message

WIRE = ("role", "content", "name", "tool_calls", "tool_call_id")  # what a message may hold; some servers refuse more
ORDER = ("n", "logprobs", "seed", "max_tokens")  # in which fields are doubted where a refusal names none
LOSS = {
    "seed": "another run gives other texts",
    "logprobs": "responses have no logprob",
    "top_logprobs": "a verdict is one token, not a chance",
    "response_format": "replies are read as they come",
    "temperature": "replies are drawn at the model's own, and vary",
}


class Chat(msgspec.Struct, frozen=True, kw_only=True):
    """A request.

    Attributes:
        messages: the conversation so far.
        n: choices wanted; fewer may come.
        max_tokens: new tokens per choice at most.
        seed: sent where the server takes it.
        logprobs: likewise: the log-probability of each token.
        wishes: other fields that are sent where the server takes them.
        options: the body's other fields; a server that refuses one of them ends the run.
        flags: field -> the command's flag, for the sentence that says so.
    """

    messages: list[Message]
    n: int = 1
    max_tokens: int = 512
    seed: int | None = None
    logprobs: bool = False
    wishes: dict[str, Any] = {}
    options: dict[str, Any] = {}
    flags: dict[str, str] = {}


class Text(msgspec.Struct):
    """A choice's message; reasoning has two names in the wild."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Alternative(msgspec.Struct):
    """A token that might have stood there, and its log-probability, nats."""

    token: str
    logprob: float


class Token(msgspec.Struct):
    """A generated token's log-probability, nats, and the likeliest tokens in its place where they were asked for."""

    logprob: float | None = None
    top_logprobs: list[Alternative] | None = None


class Logprobs(msgspec.Struct):
    """Those of a choice."""

    content: list[Token] | None = None


class Choice(msgspec.Struct):
    """One answer."""

    message: Text
    finish_reason: str | None = None
    index: int = 0
    logprobs: Logprobs | None = None


class Usage(msgspec.Struct):
    """Tokens of a request, all choices together."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Reply(msgspec.Struct):
    """What came back: at least one choice, in the order of their indices."""

    choices: list[Choice]
    usage: Usage | None = None


class Model(msgspec.Struct):
    """A model the server has."""

    id: str


class Models(msgspec.Struct):
    """The answer of ``/models``."""

    data: list[Model]


def optional(chat: Chat) -> frozenset[str]:
    """The fields that may be left out, or called otherwise (``max_tokens``: ``max_completion_tokens``)."""
    wanted = {"n": chat.n > 1, "logprobs": chat.logprobs, "seed": chat.seed is not None, "max_tokens": True}
    return frozenset([*(name for name, is_wanted in wanted.items() if is_wanted), *chat.wishes])


def body(model: str, chat: Chat, fields: frozenset[str]) -> dict[str, Any]:
    """The JSON of a request with those of its ``optional`` fields that the server takes."""
    made: dict[str, Any] = {"model": model, **chat.options}
    made["messages"] = [{k: m[k] for k in WIRE if k in m} for m in chat.messages]
    made["max_tokens" if "max_tokens" in fields else "max_completion_tokens"] = chat.max_tokens
    if "n" in fields:
        made["n"] = chat.n
    if "logprobs" in fields:
        made["logprobs"] = True
    if "seed" in fields:
        made["seed"] = chat.seed
    return made | {name: value for name, value in chat.wishes.items() if name in fields}


def names(text: str, field: str) -> bool:
    """True if an error's text names a field: in quotes of any kind; a name that is no common word also without."""
    quoted = re.search(rf"""["'`]{re.escape(field)}["'`]""", text)
    return bool(quoted) or (("_" in field or field == "logprobs") and bool(re.search(rf"\b{field}\b", text)))


def key() -> str:
    """The server's key; "" where there is none."""
    return os.environ.get("OPENAI_API_KEY", "").strip()


def said(e: openai.OpenAIError, most: int = 300) -> str:
    """What an error says, in so many characters at most, never the key."""
    text = str(e)
    if isinstance(e, openai.APIStatusError):
        body: Any = e.body
        for name in ("error", "message", "detail"):
            body = body.get(name) or body if isinstance(body, Mapping) else body
        shown = body if isinstance(body, str) else msgspec.json.encode(body).decode() if body else ""
        text = f"{e.status_code} {shown or e.response.reason_phrase}"
    text = " ".join(text.split())
    if secret := key():
        text = text.replace(secret, "***")
    return text if len(text) <= most else text[:most] + "…"
