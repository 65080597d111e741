"""How steady a model is: level, spread, worst, best and agreement of k answers to one prompt, and what changed."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from xwincli.errors import XwinError
from xwincli.metrics import best_of_n, consistency, stability
from xwincli.protocols import entries
from xwincli.protocols.compare import Entry, unique
from xwincli.protocols.demands import Demand, demands, last_number
from xwincli.protocols.entries import Column
from xwincli.records import Group

FIGURES = ("mean", "worst_of_n", "best_of_n", "std", "consistency", "agreement")

# -- which answers are equal


def exact(text: str) -> str:
    """What two answers share if they are equal: the text without case, extra spaces and its final mark."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split()).rstrip(".!")


def numeric(text: str) -> str:
    """The last number of an answer, so that 1,200 and 1200.0 are equal; without one as ``exact``."""
    number = last_number(text)
    return exact(text) if number is None else repr(number)


EQUAL: dict[str, Callable[[str], str]] = {"exact": exact, "numeric": numeric}


def agreement(group: Group, equal: str) -> float:
    """How far a prompt's answers agree, 1/k to 1; ``equal`` names a rule of ``EQUAL``."""
    return consistency.agreement([EQUAL[equal](r.text) for r in group.responses])


# -- what is counted


def has_scores(name: str) -> entries.Prepare:
    """What refuses a group whose responses lack the score ``name``."""

    def check(group: Group) -> None:
        for i, r in enumerate(group.responses):
            if name not in r.scores:
                there = ", ".join(sorted(r.scores)) or "none"
                hint = f"scores there: {there}; without --score the judge rates"
                raise XwinError(f"field responses[{i}].scores.{name}: is missing", hint)

    return check


def demanded(group: Group, where: str) -> list[Demand]:
    """What the group's prompt demands; nothing, where it makes no demand. ``where`` names it in errors."""
    return demands(group, where) if group.checks or "instruction_id_list" in group.extra else []


@dataclass(frozen=True)
class Count:
    """How figures are made: which score, its scale if it has one, which answers are equal, n, the bootstrap."""

    score: str
    n: int
    scale: tuple[float, float] | None = None
    equal: str = "exact"
    rounds: int = 2000
    seed: int = 0

    def mean(self, column: Column) -> dict[str, float | None] | None:
        """A column's mean over prompts with its interval."""
        return entries.mean(column, rounds=self.rounds, seed=self.seed)


def columns(groups: Sequence[Group], count: Count) -> dict[str, Column]:
    """Every figure of every prompt, by the name it has in ``eval.json``; consistency where the scale is known."""
    scores = [[r.scores[count.score] for r in g.responses] for g in groups]
    made: dict[str, Column] = {
        "mean": [sum(s) / len(s) for s in scores],
        "worst_of_n": [best_of_n.worst_of_n(s, count.n) for s in scores],
        "best_of_n": [best_of_n.best_of_n(s, s, count.n) for s in scores],
        "std": [stability.spread(s) for s in scores],
        "agreement": [agreement(g, count.equal) for g in groups],
    }
    if count.scale:
        made["consistency"] = [stability.consistency(s, *count.scale) for s in scores]
    return made


def _passes(entry: Entry, groups: Sequence[Group], count: Count) -> dict[str, list[dict[str, Any]]]:
    """pass@k and pass^k for growing k, over the prompts that make demands; empty where none does."""
    passed = []
    for g in groups:
        if asked := demanded(g, f"{entry.file}: prompt {g.prompt_id}"):
            passed.append([all(d.strict(r.text) for d in asked) for r in g.responses])
    kinds = {"pass_at_k": best_of_n.pass_at_k, "pass_hat_k": best_of_n.pass_hat_k} if passed else {}
    return {
        name: [{"k": k, **(count.mean([f(p, k) for p in passed]) or {})} for k in best_of_n.sizes(count.n)]
        for name, f in kinds.items()
    }


def standings(
    models: Sequence[Entry], prompts: Sequence[str], count: Count
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Each model's figures as means over prompts, from the second on with what changed against the first.

    Args:
        models: their responses carry the score and are trimmed to as many a prompt.
        prompts: the ids counted.
        count: how to count.

    Returns:
        The models as ``eval.json`` has them, and the figures of each model's every prompt.
    """
    made: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    base: dict[str, Column] = {}
    for e in models:
        groups = [e.groups[p] for p in prompts]
        found = columns(groups, count)
        facts: dict[str, Any] = {"name": e.name, "file": e.file, "model": groups[0].model, "unique": unique(e)}
        facts |= {name: count.mean(column) for name, column in found.items()} | _passes(e, groups, count)
        if made:
            moved = {name: entries.change(base[name], found[name], rounds=count.rounds, seed=count.seed)
                     for name in FIGURES if name in found}  # fmt: skip
            facts["change"] = moved
        else:
            base = found
        made.append(facts)
        rows += [{"model": e.name, "prompt_id": p, **{k: v[i] for k, v in found.items()}}
                 for i, p in enumerate(prompts)]  # fmt: skip
    return made, rows
