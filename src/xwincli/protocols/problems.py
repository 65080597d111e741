"""Prompts worth a look: where a model always fails, always says the same, varies most, or the judge wavers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from xwincli import checks
from xwincli.metrics import stability
from xwincli.protocols.compare import GOLD, Entry
from xwincli.protocols.judge_audit import flipped
from xwincli.records import Group, Judgement

MOST = 10  # prompts of the largest spread that are listed


def find(entry: Entry, prompts: Sequence[str], judgements: Iterable[Judgement] = ()) -> dict[str, Any]:
    """A model's problematic prompts by their ids.

    Args:
        entry: the model.
        prompts: the ids compared.
        judgements: of its answers against another model's.

    Returns:
        ``all_fail``: every answer misses a check; ``all_equal``: two answers or more, all the same text;
        ``most_spread``: the widest standard deviations of the rating; ``judge_disagrees``: the judge's pick changed
        with the order of showing, with how often of how many.
    """
    groups = [entry.groups[p] for p in prompts]
    spreads = [(spread, g.prompt_id) for g in groups if (spread := _spread(g)) > 0]
    spreads.sort(key=lambda found: -found[0])
    return {
        "all_fail": [g.prompt_id for g in groups if g.checks and not any(_passes(g, r.text) for r in g.responses)],
        "all_equal": [g.prompt_id for g in groups if len(g.responses) > 1 and len({r.text for r in g.responses}) == 1],
        "most_spread": [{"prompt_id": p, "std": round(spread, 4)} for spread, p in spreads[:MOST]],
        "judge_disagrees": _disagreements(judgements),
    }


def _passes(group: Group, text: str) -> bool:
    return all(checks.passes(c, text) for c in group.checks or [])


def _spread(group: Group) -> float:
    scores = [r.scores[GOLD] for r in group.responses if GOLD in r.scores]
    return stability.spread(scores) if len(scores) > 1 else 0.0


def _disagreements(judgements: Iterable[Judgement]) -> list[dict[str, Any]]:
    counts: dict[str, list[int]] = {}
    for j in judgements:
        flips, games = counts.setdefault(j.prompt_id, [0, 0])
        counts[j.prompt_id] = [flips + flipped(j), games + (len(j.games) == 2)]
    return [{"prompt_id": p, "flips": flips, "of": games} for p, (flips, games) in counts.items() if flips]
