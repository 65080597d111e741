"""What is compared with what: pairs of answers to one prompt, the orders they are shown in, and the tally."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice
from typing import Any

from xwincli.errors import XwinError
from xwincli.judges import Answer, Item, Judge, Verdict
from xwincli.records import Game, Group, Judgement, Response, content_id


def answer(row: Group, response: Response) -> Answer:
    """A response as it is put to a judge that rates."""
    return Answer(
        id=content_id(row.prompt_id, response.text),
        prompt=row.prompt,
        text=response.text,
        finish=response.finish,
        checks=row.checks,
        references=references(row),
        contexts=row.contexts,
    )


def references(row: Group) -> list[str] | None:
    """The known good answers of a prompt of one turn."""
    return None if row.reference is None else [row.reference]


@dataclass(frozen=True)
class Side:
    """One answer of a comparison and the model it is from."""

    response: Response
    model: str | None

    def record(self, ratings: Sequence[float]) -> dict[str, Any]:
        """As it stands in a judgement; its rating is the mean of what the judge read in each order."""
        r = self.response
        row: dict[str, Any] = {"text": r.text, "index": r.index, "model": self.model, "finish": r.finish}
        if ratings:
            row["rating"] = round(sum(ratings) / len(ratings), 5)
        return {k: v for k, v in row.items() if v is not None}


@dataclass(frozen=True)
class Match:
    """Two answers to one prompt, and the orders in which they are shown ("a" or "b" first); none if equal."""

    row: Group
    a: Side
    b: Side
    orders: tuple[str, ...]

    def items(self) -> list[Item]:
        """What the judge is asked, one item an order."""
        return [self._item(first) for first in self.orders]

    def _item(self, first: str) -> Item:
        one, two = (self.a.response, self.b.response) if first == "a" else (self.b.response, self.a.response)
        return Item(
            id=content_id(self.row.prompt_id, one.text, two.text),
            prompt=self.row.prompt,
            a=one.text,
            b=two.text,
            a_finish=one.finish,
            b_finish=two.finish,
            checks=self.row.checks,
            references=references(self.row),
            contexts=self.row.contexts,
        )

    def judgement(self, verdicts: Sequence[Verdict], judge: str) -> Judgement:
        """The record of this match from the verdicts on its items."""
        games: list[Game] = []
        of_a: list[float] = []
        of_b: list[float] = []
        for first, v in zip(self.orders, verdicts, strict=True):
            for_b = v.preference if first == "a" else 1 - v.preference
            games.append(Game(first=first, preference=for_b, raw=v.raw, reason=v.reason, tokens=v.tokens, usd=v.usd))
            one, two = (of_a, of_b) if first == "a" else (of_b, of_a)
            one += [] if v.rating_a is None else [v.rating_a]
            two += [] if v.rating_b is None else [v.rating_b]
        if not self.orders:
            games = [Game(first="a", preference=0.5, reason="the answers are equal")]
        a, b, row = self.a.record(of_a), self.b.record(of_b), self.row
        sides = [(s.model, s.response.index, s.response.text) for s in (self.a, self.b)]
        return Judgement(
            id=content_id(row.prompt_id, judge, *sides),
            prompt_id=row.prompt_id,
            prompt=row.prompt,
            a=a,
            b=b,
            games=games,
            judge=judge,
            checks=row.checks,
            reference=row.reference,
            contexts=row.contexts,
            category=row.category,
        )


class Tally:
    """Figures over all judgements: what the judge is like, and who wins."""

    def __init__(self) -> None:
        self.count = self.a = self.b = self.twice = self.flips = self.decided = self.first = 0
        self.prompts: set[str] = set()

    def add(self, judgement: Judgement) -> None:
        """Count one judgement."""
        verdict = judgement.verdict()
        self.count += 1
        self.prompts.add(judgement.prompt_id)
        self.a += verdict == 0
        self.b += verdict == 1
        if len(judgement.games) == 2:
            self.twice += 1
            one, two = (g.preference - 0.5 for g in judgement.games)
            self.flips += one * two < 0
        for game in judgement.games:
            self.decided += game.preference != 0.5
            self.first += (game.preference < 0.5) if game.first == "a" else (game.preference > 0.5)

    def metrics(self) -> dict[str, float]:
        """Shares of the judgements (flips: of those asked twice), and of decided games (first slot)."""

        def of(part: int, whole: int) -> float:
            return round(part / whole, 6) if whole else 0.0

        ties = self.count - self.a - self.b
        return {
            "a_wins": of(self.a, self.count),
            "b_wins": of(self.b, self.count),
            "ties": of(ties, self.count),
            "flips": of(self.flips, self.twice),
            "first_slot_wins": of(self.first, self.decided),
        }


def draw(row: Group, other: Group | None, wanted: int | None, orders: str, seed: int) -> list[Match]:
    """The matches of one prompt: within a group among its different texts, or between two groups.

    Between groups the pairs go round both sides, so that no response comes twice before every one of the
    smaller side's came once.

    Args:
        row: the group; its responses are a's side.
        other: the group of b's side, or None to pair within ``row``.
        wanted: how many pairs at most; None is all of them.
        orders: "both", or "one", whose first is drawn by chance.
        seed: of what is drawn, together with the prompt and its responses.
    """
    rng = random.Random(content_id(seed, row.prompt_id, [r.text for r in row.responses]))
    if other is None:
        distinct: dict[str, Side] = {}
        for r in row.responses:
            distinct.setdefault(r.text, Side(r, row.model))
        every = list(combinations(distinct.values(), 2))
        chosen = every if wanted is None else rng.sample(every, min(wanted, len(every)))
    else:
        ours, theirs = _shuffled(row, rng), _shuffled(other, rng)
        longer, shorter = (ours, theirs) if len(ours) >= len(theirs) else (theirs, ours)
        n = len(shorter)
        around = [(x, shorter[(i + k) % n]) for k in range(n) for i, x in enumerate(longer)]
        chosen = [(x, y) if longer is ours else (y, x) for x, y in around][:wanted]
    return [Match(row, a, b, _orders(a, b, orders, rng)) for a, b in chosen]


def _shuffled(row: Group, rng: random.Random) -> list[Side]:
    sides = [Side(r, row.model) for r in row.responses]
    rng.shuffle(sides)
    return sides


def _orders(a: Side, b: Side, orders: str, rng: random.Random) -> tuple[str, ...]:
    first = rng.choice("ab")
    if a.response.text == b.response.text:
        return ()
    return ("a", "b") if orders == "both" else (first,)


def compare(judge: Judge, rows: Sequence[list[Match]]) -> list[list[Judgement] | XwinError]:
    """Judgements of several prompts' matches, all asked in one call; an error for a prompt that lacks a verdict."""
    items = [item for matches in rows for match in matches for item in match.items()]
    verdicts = iter(list(judge.verdicts(items)) if items else [])
    return [_judgements(judge, matches, verdicts) for matches in rows]


def _judgements(
    judge: Judge, matches: list[Match], verdicts: Iterator[Verdict | XwinError]
) -> list[Judgement] | XwinError:
    said = [list(islice(verdicts, len(m.orders))) for m in matches]
    for v in chain.from_iterable(said):
        if isinstance(v, XwinError):
            return v
    return [m.judgement(v, judge.name) for m, v in zip(matches, said, strict=True)]  # type: ignore[arg-type]
