"""What every judge is: items in, verdicts out; and how a judge is found by its name.

A judge that computes is one file of this folder with ``make(options, seed, device) -> Judge``. One that asks a language
model is a folder of texts, one of ``llm/shipped`` or the user's.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import msgspec

from xwincli.errors import USAGE, XwinError
from xwincli.records import Message
from xwincli.settings import Chat, Device, Server, flag, group


class Item(msgspec.Struct, kw_only=True):
    """Two answers to one prompt as the judge sees them: ``a`` is shown first.

    ``id`` is made of content (of the prompt and both answers, in this order); ``finish`` as in Response;
    ``references`` are known good answers, one a turn of the user's; ``contexts`` what an answer must rest on.
    """

    id: str
    prompt: list[Message]
    a: str
    b: str
    a_finish: str | None = None
    b_finish: str | None = None
    checks: list[dict[str, Any]] | None = None
    references: list[str] | None = None
    contexts: list[str] | None = None


class Verdict(msgspec.Struct, kw_only=True):
    """What a judge said: ``preference`` is the chance that b (shown second) is better: 0 a, .5 tie, 1 b.

    Ratings are on the judge's own scale; ``raw`` is a language model's unread reply, ``tokens`` what its prompt and
    its reply took, ``usd`` their price where it is known.
    """

    preference: float
    rating_a: float | None = None
    rating_b: float | None = None
    raw: str | None = None
    reason: str | None = None
    tokens: tuple[int, int] | None = None
    usd: float | None = None


class Answer(msgspec.Struct, kw_only=True):
    """One answer to be rated by itself; fields as in ``Item``."""

    id: str
    prompt: list[Message]
    text: str
    finish: str | None = None
    checks: list[dict[str, Any]] | None = None
    references: list[str] | None = None
    contexts: list[str] | None = None


class Rated(msgspec.Struct, kw_only=True):
    """A grade of one answer on the judge's own scale; other fields as in ``Verdict``."""

    rating: float
    raw: str | None = None
    reason: str | None = None
    tokens: tuple[int, int] | None = None
    usd: float | None = None


Reading = Verdict | Rated


class Judge(Protocol):
    """Compares answers. One verdict an item, in order; a judge need not be sure of itself, nor unbiased.

    Where none could be had (an unreadable reply, a server that fails), an error stands in the verdict's place.

    ``scorer`` is what a group notes about who gave its scores: "judge NAME" or "reward model NAME".
    """

    name: str
    scorer: str

    def receipt(self) -> dict[str, float]:
        """What judging took, for the manifest: calls, tokens, dollars; empty where nothing is asked."""
        ...

    def verdicts(self, items: Sequence[Item]) -> Iterator[Verdict | XwinError]:
        """One verdict for each item, in the items' order."""
        ...

    def ratings(self, answers: Sequence[Answer]) -> Iterator[Rated | XwinError]:
        """One grade for each answer, in order; a judge that can only compare raises XwinError."""
        ...


@dataclass(kw_only=True)
class Options:
    """Who judges, how well, and at what cost."""

    judge: str = flag(
        "rules", "rules (checks and plain fluency), reward (a reward model), or a language model's: see docs/judges.md"
    )
    rm: str = flag("", "the reward model of --judge reward: a folder or hub name")
    noise: float = flag(0.0, "rules: standard deviation of the error in every rating it observes", low=0.0)
    position_bias: float = flag(0.0, "rules: added to the rating of whatever is shown first")
    judge_model: list[str] = flag([], "the language model that judges; repeated: a panel")
    judge_engine: str = flag("openai", "what runs it", choices=("openai", "native", "vllm"))
    judge_base_url: str = flag("", "its server, as http://127.0.0.1:8000/v1; key: OPENAI_API_KEY")
    panel: str = flag("mean", "what a panel or repeats say", choices=("mean", "majority"))
    repeats: int = flag(1, "how often each model is asked the same", low=1)
    asks_again: int = flag(2, "how often after a reply without a verdict", low=0)
    judge_tokens: int = flag(0, "of a reply at most; 0: what the judge's folder says", low=0)
    judge_tokenizer: str = flag("", "folder or hub name that counts its tokens exactly", execution=True)
    judge_cache: str = flag("", "file of replies that runs share; none keeps none", execution=True)
    judge_rows: int = flag(32, "replies decoded together in this process", execution=True, low=1)
    judge_concurrency: int = flag(64, "requests at once at most", execution=True, low=1, high=1000)
    judge_rpm: int = flag(0, "requests a minute at most; 0 is no limit", execution=True, low=0)
    judge_tpm: int = flag(0, "tokens a minute at most; 0 is no limit", execution=True, low=0)
    judge_timeout: float = flag(600.0, "seconds a request may take", execution=True, low=0.01)
    judge_retries: int = flag(8, "how often a failed request is tried again", execution=True, low=0)
    prices: str = flag("", "TOML file of dollars a million tokens; else the dated one we ship", execution=True)
    max_usd: float = flag(0.0, "stop (exit 4) before this command spends more; 0 is no limit", execution=True, low=0.0)
    batch_import: list[str] = flag([], "results of a batch, errors too: nothing else is asked", execution=True)
    chat: Chat = group(Chat)

    def server(self) -> Server:
        """The judge's server."""
        return Server(
            base_url=self.judge_base_url,
            concurrency=self.judge_concurrency,
            rpm=self.judge_rpm,
            tpm=self.judge_tpm,
            timeout=self.judge_timeout,
            retries=self.judge_retries,
        )


def names() -> list[str]:
    """Every judge there is: the files of this folder but ``matches``, and the folders of ``llm/shipped``."""
    from xwincli.judges.llm.kinds import shipped

    return sorted([m.name for m in pkgutil.iter_modules(__path__) if m.name not in ("matches", "llm")] + shipped())


def find(name: str, options: Options | None = None, *, seed: int = 0, device: Device | None = None) -> Judge:
    """The judge called ``name``.

    Args:
        name: a file of this folder, a folder of ``llm/shipped``, or the path of a judge's folder.
        options: its settings; the defaults if left out.
        seed: of whatever it draws at random.
        device: where to compute, for judges that are models.

    Raises:
        XwinError: there is no such judge, or an option it has no use for was given.
    """
    options, device = options or Options(judge=name), device or Device()
    if (Path(__path__[0]) / f"{name}.py").is_file() and name != "matches":
        if options.judge_base_url or options.judge_model:
            given = "--judge-base-url" if options.judge_base_url else "--judge-model"
            raise XwinError(f"{given} means nothing to the judge {name}", "it asks no language model", USAGE)
        judge: Judge = import_module(f"{__name__}.{name}").make(options, seed, device)
        return judge
    from xwincli.judges import llm
    from xwincli.judges.llm import kinds

    if name not in kinds.shipped() and not (Path(name) / "judge.toml").is_file():
        hint = f"judges are: {', '.join(names())}; or name a folder with judge.toml"
        raise XwinError(f"no judge {name!r}", hint, USAGE)
    for field in ("rm", "noise", "position_bias"):
        if getattr(options, field):
            raise XwinError(f"--{field.replace('_', '-')} means nothing to the judge {name}", "leave it out", USAGE)
    return llm.make(kinds.load(name), options, seed, device)
