"""What every judge is: items in, verdicts out; and how a judge is found by its name.

A judge is one file of this folder with ``make(options, seed, device) -> Judge``. One that asks a language
model is the same shape: item -> question -> engine -> read the verdict.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import msgspec

from xwincli.errors import USAGE, XwinError
from xwincli.records import Message
from xwincli.settings import Chat, Device, flag, group


class Item(msgspec.Struct, kw_only=True):
    """Two answers to one prompt as the judge sees them: ``a`` is shown first.

    ``id`` is made of content (of the prompt and both answers, in this order); ``finish`` as in Response.
    """

    id: str
    prompt: list[Message]
    a: str
    b: str
    a_finish: str | None = None
    b_finish: str | None = None
    checks: list[dict[str, Any]] | None = None


class Verdict(msgspec.Struct, kw_only=True):
    """What a judge said: ``preference`` is the chance that b (shown second) is better: 0 a, .5 tie, 1 b.

    Ratings are on the judge's own scale; ``raw`` is a language model's unread reply.
    """

    preference: float
    rating_a: float | None = None
    rating_b: float | None = None
    raw: str | None = None
    reason: str | None = None


class Answer(msgspec.Struct, kw_only=True):
    """One answer to be rated by itself."""

    id: str
    prompt: list[Message]
    text: str
    finish: str | None = None
    checks: list[dict[str, Any]] | None = None


class Rated(msgspec.Struct, kw_only=True):
    """A grade of one answer on the judge's own scale."""

    rating: float
    raw: str | None = None
    reason: str | None = None


class Judge(Protocol):
    """Compares answers. One verdict an item, in order; a judge need not be sure of itself, nor unbiased.

    ``scorer`` is what a group notes about who gave its scores: "judge NAME" or "reward model NAME".
    """

    name: str
    scorer: str

    def verdicts(self, items: Sequence[Item]) -> Iterator[Verdict]:
        """One verdict for each item, in the items' order."""
        ...

    def ratings(self, answers: Sequence[Answer]) -> Iterator[Rated]:
        """One grade for each answer, in order; a judge that can only compare raises XwinError."""
        ...


@dataclass(kw_only=True)
class Options:
    """Who judges, and how well."""

    judge: str = flag("rules", "rules (the prompt's checks and plain fluency) or reward (a reward model)")
    rm: str = flag("", "the reward model of --judge reward: a folder or hub name")
    noise: float = flag(0.0, "rules: standard deviation of the error in every rating it observes", low=0.0)
    position_bias: float = flag(0.0, "rules: added to the rating of whatever is shown first")
    chat: Chat = group(Chat)


def names() -> list[str]:
    """Every judge there is: the files of this folder but ``matches``."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "matches")


def find(name: str, options: Options | None = None, *, seed: int = 0, device: Device | None = None) -> Judge:
    """The judge called ``name``.

    Args:
        name: a file of this folder.
        options: its settings; the defaults if left out.
        seed: of whatever it draws at random.
        device: where to compute, for judges that are models.

    Raises:
        XwinError: there is no such judge, or an option it has no use for was given.
    """
    if name not in names():
        raise XwinError(f"no judge {name!r}", f"judges are: {', '.join(names())}", USAGE)
    make = import_module(f"{__name__}.{name}").make
    judge: Judge = make(options or Options(judge=name), seed, device or Device())
    return judge
