"""What a reward model learns from: one prompt, its distinct responses, and who was preferred to whom.

All comparisons of a prompt are one element: its responses pass through the model once, however many pairs
they form (Ouyang et al. 2022, arXiv 2203.02155, section 3.5).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations

from xwincli.errors import XwinError
from xwincli.records import Group, Judgement, Message, Pair, Record, content_id

Side = tuple[str, bool]  # a response's text, and whether it ended by itself


@dataclass
class Comparisons:
    """One prompt's responses and their comparisons.

    Attributes:
        prompt_id: of the prompt, by which rows are held out.
        prompt: the messages the responses answer.
        sides: the distinct responses.
        games: (better, worse, chance, margin): numbers of two sides, how sure it is, by how much it should lead.
        leads: per game by how much the judge rates the better side above the worse, None where no row says it.
        marks: what a judge rates each side, by its number, as far as rows say it.
    """

    prompt_id: str
    prompt: list[Message]
    sides: list[Side] = field(default_factory=list)
    games: list[tuple[int, int, float, float]] = field(default_factory=list)
    leads: list[float | None] = field(default_factory=list)
    marks: dict[int, float] = field(default_factory=dict)

    def number(self, side: Side) -> int:
        """The number of a response, which is taken in if it is new."""
        if side not in self.sides:
            self.sides.append(side)
        return self.sides.index(side)

    def without(self, gone: set[int]) -> Comparisons:
        """The same without some responses and the comparisons they are in."""
        kept = [i for i in range(len(self.sides)) if i not in gone]
        games = [(kept.index(a), kept.index(b), p, m) for a, b, p, m in self.games if not {a, b} & gone]
        leads = [lead for (a, b, *_), lead in zip(self.games, self.leads, strict=True) if not {a, b} & gone]
        marks = {kept.index(i): mark for i, mark in self.marks.items() if i not in gone}
        return Comparisons(self.prompt_id, self.prompt, [self.sides[i] for i in kept], games, leads, marks)


def gather(
    rows: Iterable[Record], source: str, *, soft: bool = False, margin: bool = False, scores: str = ""
) -> tuple[list[Comparisons], int]:
    """Pairs, judgements and rated groups as comparisons by prompt, and how many ties were left out.

    Args:
        rows: the records.
        source: the file, for messages.
        soft: keep a judgement's mean preference as a chance, ties included, instead of its verdict.
        margin: take margins (a pair's own, else the difference of its scores or ratings).
        scores: which of a group's scores to compare by; the only one there is if left out.
    """
    found: dict[str, Comparisons] = {}
    ties = 0
    for row in rows:
        if isinstance(row, Group):
            ties += _from_group(found, row, source, margin, scores)
            continue
        if not isinstance(row, Pair | Judgement):
            message = f"{source}: a reward model takes judgements, pairs or rated groups, this is a {row.kind} line"
            raise XwinError(message)
        ties += not _from_pair(found, row, soft, margin)
    return [c for c in found.values() if c.games], ties


def _of(found: dict[str, Comparisons], prompt_id: str, prompt: list[Message]) -> Comparisons:
    return found.setdefault(content_id(prompt_id, prompt), Comparisons(prompt_id, prompt))


def _side(message: Message) -> Side:
    return str(message["content"]), message.get("finish") != "length"


def _from_pair(found: dict[str, Comparisons], row: Pair | Judgement, soft: bool, margin: bool) -> bool:
    """Take one preference in; False if it is a tie."""
    chance = 1.0
    if isinstance(row, Judgement):
        if soft:
            chance = 1 - sum(g.preference for g in row.games) / len(row.games)  # that a is better
            pair: Pair | None = row.as_pair()
        else:
            pair = row.pair()
    else:
        pair = row
    if pair is None or _side(pair.chosen[-1]) == _side(pair.rejected[-1]):
        return False
    into = _of(found, pair.prompt_id, [*pair.prompt, *pair.chosen[:-1]])
    better, worse = into.number(_side(pair.chosen[-1])), into.number(_side(pair.rejected[-1]))
    lead = _lead(pair)
    if margin and lead is None:
        raise XwinError(f"pair {pair.id}: --margin needs a margin or two scores")
    into.games.append((better, worse, chance, (lead or 0.0) if margin else 0.0))
    into.leads.append(lead)
    for side, score in ((better, pair.score_chosen), (worse, pair.score_rejected)):
        if score is not None:
            into.marks.setdefault(side, score)
    return True


def _lead(pair: Pair) -> float | None:
    """A pair's margin, else the difference of its scores, else None."""
    if pair.margin is not None:
        return pair.margin
    if pair.score_chosen is None or pair.score_rejected is None:
        return None
    return pair.score_chosen - pair.score_rejected


def _from_group(found: dict[str, Comparisons], row: Group, source: str, margin: bool, scores: str) -> int:
    """All pairs of a rated group; returns the ties left out."""
    name = scores or _only_score(row, source)
    if (scorer := (row.scorers or {}).get(name, "")).startswith("reward model"):
        message = f"{source}: group {row.id}: the scores {name!r} come from a {scorer}"
        raise XwinError(message, "a reward model must learn from a judge: xwin judge --rate gold")
    into = _of(found, row.prompt_id, row.prompt)
    ratings: dict[int, float] = {}
    for r in row.responses:
        if name not in r.scores:
            raise XwinError(f"{source}: group {row.id}: response {r.index} has no score {name!r}")
        ratings[into.number((r.text, r.finish != "length"))] = r.scores[name]
    into.marks |= ratings
    ties = 0
    for a, b in combinations(ratings, 2):
        lead = ratings[a] - ratings[b]
        ties += lead == 0
        if lead:
            better, worse = (a, b) if lead > 0 else (b, a)
            into.games.append((better, worse, 1.0, abs(lead) if margin else 0.0))
            into.leads.append(abs(lead))
    return ties


def _only_score(row: Group, source: str) -> str:
    names = sorted({name for r in row.responses for name in r.scores})
    if len(names) != 1:
        has = f"has the scores {', '.join(names)}" if names else "has no scores"
        hint = "say which with --scores" if names else "rate it first: xwin judge --rate gold"
        raise XwinError(f"{source}: group {row.id} {has}", hint)
    return names[0]
