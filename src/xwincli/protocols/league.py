"""Several models, every one against every other: the matrix of win rates and Bradley-Terry strengths."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from xwincli.metrics import bradley_terry, win_rate
from xwincli.metrics.bootstrap import plain
from xwincli.metrics.bradley_terry import Battle, Battles
from xwincli.protocols.compare import VERDICTS
from xwincli.records import Judgement


def pairs(judgements: Iterable[Judgement], rounds: int, seed: int) -> list[dict[str, Any]]:
    """The win rate of b against a for every two models that met, in percent, with its interval over prompts."""
    won: dict[tuple[str, str], dict[str, list[float]]] = {}
    for j in judgements:
        met = won.setdefault((j.a["model"], j.b["model"]), {})
        met.setdefault(j.prompt_id, []).append(j.verdict())
    table = []
    for (a, b), rows in won.items():
        rate = win_rate.win_rate(list(rows.values()), rounds=rounds, seed=seed)
        table.append({"a": a, "b": b, "win_rate": plain(rate), "verdict": VERDICTS[rate.excludes(50)]})
    return table


def league(judgements: Sequence[Judgement], names: Sequence[str], rounds: int, seed: int) -> dict[str, Any]:
    """All pairs of models: who wins how often, and one scale for all.

    Args:
        judgements: their sides carry the models' names.
        names: the models; the first stands at 1000 Elo.
        rounds, seed: of the bootstrap over prompts.

    Returns:
        ``models``; ``matrix[i][j]``, the share of comparisons i won against j, a tie half (null on the diagonal);
        ``pairs`` with intervals; ``strengths``, the strongest first: Elo and the chance to beat the first model.
        A strength without bound (a model that never lost) is null.
    """
    battles = Battles.of(Battle(j.a["model"], j.b["model"], 1 - j.verdict(), unit=j.prompt_id) for j in judgements)
    wins, order = battles.wins(), [battles.models.index(n) for n in names]
    shares = [[wins[i, j] / (wins[i, j] + wins[j, i]) if i != j else math.nan for j in order] for i in order]
    ranked = bradley_terry.ranking(battles, anchor=names[0], rounds=rounds, seed=seed)
    return {
        "models": list(names),
        "matrix": [[x if math.isfinite(x) else None for x in row] for row in shares],
        "pairs": pairs(judgements, rounds, seed),
        "strengths": [
            {"name": s.model, "elo": plain(s.elo), "win_rate": plain(s.win_rate) if s.win_rate else None}
            for s in ranked
        ],
    }
