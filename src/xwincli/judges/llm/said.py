"""What goes to a judge model and what comes back: the nouns of this package."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from xwincli.records import Message


class Unreadable(Exception):
    """A reply that holds no verdict; it is asked again, then counted, never guessed."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a judge model.

    Attributes:
        model: who is asked.
        messages: the prompt.
        max_tokens: of the reply.
        temperature: of the reply.
        seed: tells repeats of one question apart.
        schema: JSON schema of the reply, used where the server can hold to one.
        top: alternatives of the first token whose log-probabilities are wanted; 0 wants none.
    """

    model: str
    messages: list[Message]
    max_tokens: int
    temperature: float
    seed: int
    schema: dict[str, Any] | None = None
    top: int = 0

    def key(self, where: str) -> str:
        """What a cache knows it by: made of all that decides the reply, and of the server's address."""
        content = msgspec.json.encode([where, self], order="sorted")
        return hashlib.sha256(content).hexdigest()


class Said(msgspec.Struct, kw_only=True):
    """A reply.

    Attributes:
        text: what the model wrote.
        first: log-probabilities (nats) of the likeliest first tokens, where they were asked for and came.
        finish: "stop", or "length" for a reply that was cut off.
        prompt_tokens, reply_tokens: as the server counts them.
    """

    text: str
    first: list[tuple[str, float]] | None = None
    finish: str | None = None
    prompt_tokens: int | None = None
    reply_tokens: int | None = None
