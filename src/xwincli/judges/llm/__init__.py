"""Judges that are language models: item -> question -> reply -> verdict, the same for every judge's folder.

Each question goes to every model of the panel, as often as is repeated; a reply that cannot be read is asked again
under another seed, then given up. A verdict is the mean of the panel's, or what most of it says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TypeVar

import msgspec

from xwincli.console import say, warn
from xwincli.errors import USAGE, XwinError
from xwincli.judges import Answer, Item, Options, Rated, Reading, Verdict
from xwincli.judges.llm import batch
from xwincli.judges.llm.asking import Asker, EngineAsker, ServerAsker
from xwincli.judges.llm.cache import Cache, default
from xwincli.judges.llm.kinds import Kind
from xwincli.judges.llm.money import Budget, Prices, counter
from xwincli.judges.llm.said import Question, Said, Unreadable
from xwincli.settings import Device

R = TypeVar("R", Verdict, Rated)
LOUDER = 0.5  # least temperature of a question asked again: at 0 the same reply would come
SHOWN = 160  # characters of an unreadable reply in its error


class Llm:
    """A judge's folder, a panel of models, and who asks them.

    Args:
        kind: from ``kinds.load``.
        options: panel, repeats, limits.
        asker: who gets replies.
        budget: what they cost.
        seed: of the run.
    """

    window = 256  # prompts judged together: as many calls as a server bears, none lost to a kill

    def __init__(self, kind: Kind, options: Options, asker: Asker, budget: Budget, seed: int) -> None:
        self.kind, self.options, self.asker, self.budget, self.seed = kind, options, asker, budget, seed
        self.name = f"{kind.name}:{'+'.join(options.judge_model)}"
        self.scorer = f"judge {self.name}"
        self.again = self.unread = 0

    # -- as every judge

    def verdicts(self, items: Sequence[Item]) -> Iterator[Verdict | XwinError]:
        """See ``Judge``."""
        if not self.kind.reader.compares:
            raise XwinError(f"the judge {self.kind.name} rates single answers", "--rate NAME rates with it", USAGE)
        yield from map(self._verdict, self._panel(items))

    def ratings(self, answers: Sequence[Answer]) -> Iterator[Rated | XwinError]:
        """See ``Judge``."""
        if self.kind.reader.compares:
            raise XwinError(f"the judge {self.kind.name} compares two answers", "it cannot rate a single one", USAGE)
        yield from map(self._rating, self._panel(answers))

    def receipt(self) -> dict[str, float]:
        """See ``Judge``."""
        found: dict[str, float] = {
            "calls": self.budget.calls,
            "cached": getattr(self.asker, "cached", 0),
            "asked_again": self.again,
            "unreadable": self.unread,
            "prompt_tokens": self.budget.prompt_tokens,
            "reply_tokens": self.budget.reply_tokens,
        }
        priced = all(self.budget.prices.find(m) for m in self.options.judge_model)
        return found | ({"usd": round(self.budget.spent, 6)} if priced else {})

    # -- before any call

    def open(self, items: Sequence[Item | Answer]) -> list[Question]:
        """Everything that is still to be asked, each question once; more where replies turn out unreadable."""
        found = [self._next(item, *who) for item in items for who in self._members()]
        return list({q.key(self.asker.where): q for q in found if q}.values())

    def _next(self, item: Item | Answer, model: str, repeat: int) -> Question | None:
        """The first question whose reply is not in the cache; None if a verdict is, or no more are asked."""
        cache = getattr(self.asker, "cache", None)
        for attempt in range(self.options.asks_again + 1):
            question = self._question(item, model, repeat, attempt)
            said = cache.get(question.key(self.asker.where)) if cache else None
            if said is None:
                return question
            if not isinstance(self._read(question, said), XwinError):
                return None
        return None

    def estimate(self, items: Sequence[Item | Answer]) -> list[list[str]]:
        """Rows of a table, one a model: calls, prompt tokens, reply tokens at most, dollars at most, by batch."""
        rows, asked = [], self.open(items)
        for model in self.options.judge_model:
            fresh = [q for q in asked if q.model == model]
            prompt, most = sum(map(self.budget.count, fresh)), sum(q.max_tokens for q in fresh)
            price = self.budget.prices.find(model)
            usd = [price.of(prompt, most), price.of(prompt, most) * self.budget.prices.batch] if price else []
            dollars = [f"{x:.4f}" for x in usd] or ["no price", "no price"]
            rows.append([model, f"{len(fresh):,}", f"{prompt:,}", f"{most:,}", *dollars])
        return rows

    def export(self, items: Sequence[Item | Answer], path: str) -> None:
        """Write what is not yet answered as a batch's requests."""
        asked = self.open(items)
        if not asked:
            say("batch: every reply is there already; run the command without --batch-export")
            return
        files = batch.export(asked, self.asker.where, path)
        say(f"batch: {len(asked)} requests in {', '.join(files)}; --batch-import takes the results, same options")

    # -- asking

    def _members(self) -> list[tuple[str, int]]:
        return [(model, repeat) for model in self.options.judge_model for repeat in range(self.options.repeats)]

    def _question(self, item: Item | Answer, model: str, repeat: int, attempt: int) -> Question:
        return Question(
            model=model,
            messages=self.kind.messages(item),
            max_tokens=self.options.judge_tokens or self.kind.max_tokens,
            temperature=max(self.kind.temperature, LOUDER) if attempt else self.kind.temperature,
            seed=self.seed + 1000 * repeat + attempt,
            schema=self.kind.schema,
            top=self.kind.reader.top,
        )

    def _panel(self, items: Sequence[Item | Answer]) -> Iterator[list[Reading | XwinError]]:
        """What each member of the panel says of each item, in the items' order."""
        members = self._members()
        open_ = {(i, who): self._question(item, *who, 0) for i, item in enumerate(items) for who in members}
        found: dict[tuple[int, tuple[str, int]], Reading | XwinError] = {}
        for attempt in range(self.options.asks_again + 1):
            self.again += len(open_) if attempt else 0
            replies = self._replies(list(open_.values()))
            for place, question in list(open_.items()):
                found[place] = self._read(question, replies[question.key(self.asker.where)])
                if not isinstance(found[place], _NotRead):
                    del open_[place]
            open_ = {(i, who): self._question(items[i], *who, attempt + 1) for i, who in open_}
        self.unread += len(open_)
        for i in range(len(items)):
            yield [found[i, who] for who in members]

    def _replies(self, questions: Sequence[Question]) -> dict[str, Said | XwinError]:
        distinct = {q.key(self.asker.where): q for q in questions}
        return {q.key(self.asker.where): said for q, said in self.asker.ask(list(distinct.values()))}

    def _read(self, question: Question, said: Said | XwinError) -> Reading | XwinError:
        if isinstance(said, XwinError):
            return said
        try:
            reading = self.kind.reader.read(said, self.kind.settings)
        except Unreadable as e:
            cut = ", cut off at its limit (--judge-tokens)" if said.finish == "length" else ""
            return _NotRead(f"the reply of {question.model} holds no verdict: {e}{cut}: {said.text[:SHOWN]!r}")
        reading.usd = self.budget.cost(question, said)
        if said.prompt_tokens is not None and said.reply_tokens is not None:
            reading.tokens = (said.prompt_tokens, said.reply_tokens)
        return reading

    # -- a panel's word

    def _verdict(self, said: list[Reading | XwinError]) -> Verdict | XwinError:
        if error := next((s for s in said if isinstance(s, XwinError)), None):
            return error
        every = [s for s in said if isinstance(s, Verdict)]
        if len(every) == 1:
            return every[0]
        joined = _joined(every)
        joined.preference = self._word([v.preference for v in every])
        for name in ("rating_a", "rating_b"):
            values = [x for v in every if (x := getattr(v, name)) is not None]
            setattr(joined, name, fmean(values) if len(values) == len(every) else None)
        return joined

    def _rating(self, said: list[Reading | XwinError]) -> Rated | XwinError:
        if error := next((s for s in said if isinstance(s, XwinError)), None):
            return error
        every = [s for s in said if isinstance(s, Rated)]
        if len(every) == 1:
            return every[0]
        joined = _joined(every)
        joined.rating = fmean(r.rating for r in every)
        return joined

    def _word(self, preferences: Sequence[float]) -> float:
        """The mean, or 0, 1 or a tie by what more than half say."""
        if self.options.panel == "mean":
            return fmean(preferences)
        for side in (0.0, 1.0):
            if sum((p > 0.5) if side else (p < 0.5) for p in preferences) * 2 > len(preferences):
                return side
        return 0.5


class _NotRead(XwinError):
    """A reply came, and holds no verdict."""


def _joined(every: Sequence[R]) -> R:
    """Several readings as one: replies and reasons one after the other, tokens and dollars added."""
    made: R = msgspec.structs.replace(every[0])
    made.raw = "\n---\n".join(r.raw or "" for r in every)
    made.reason = " / ".join(r.reason for r in every if r.reason) or None
    counted = [r.tokens for r in every if r.tokens]
    made.tokens = (sum(a for a, _ in counted), sum(b for _, b in counted)) if len(counted) == len(every) else None
    priced = [r.usd for r in every if r.usd is not None]
    made.usd = sum(priced) if len(priced) == len(every) else None
    return made


def make(kind: Kind, options: Options, seed: int, device: Device) -> Llm:
    """A judge from its folder and the command's options.

    Raises:
        XwinError: no model is named, or an option does not fit the engine.
    """
    server = options.server()
    if options.judge_engine == "openai":
        if not server.base_url:
            hint = "such as http://127.0.0.1:8000/v1; the API is https://api.openai.com/v1"
            raise XwinError(f"the judge {kind.name} needs --judge-base-url", hint, USAGE)
        if not options.judge_model:
            from xwincli.engines.openai import served

            options.judge_model = [served(server)]
    elif server.base_url:
        raise XwinError(f"--judge-base-url means nothing to --judge-engine {options.judge_engine}", "", USAGE)
    elif not options.judge_model:
        raise XwinError(f"the judge {kind.name} needs --judge-model", "folder, hub name, adapter or .gguf", USAGE)
    count, _ = counter(options.judge_tokenizer)
    budget = Budget(Prices(options.prices), options.max_usd, count)
    if options.judge_engine != "openai":
        if kind.reader.top:
            warn(f"{kind.name}: --judge-engine {options.judge_engine} gives no log-probabilities: verdicts are 0 or 1")
        return Llm(kind, options, EngineAsker(options.judge_engine, device, options.judge_rows), budget, seed)
    where = Path(options.judge_cache) if options.judge_cache else default()
    cache = None if options.judge_cache == "none" else Cache(where)
    if options.batch_import:
        if cache is None:
            raise XwinError("--batch-import needs a cache of replies", "leave --judge-cache none out", USAGE)
        batch.read_results(options.batch_import, cache)
    asker = ServerAsker(server, cache, budget, offline=bool(options.batch_import))
    return Llm(kind, options, asker, budget, seed)
