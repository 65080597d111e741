"""Battles of models, ranked: Bradley-Terry, online Elo, separability, style control; Arena-Hard's labels."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xwincli.errors import XwinError
from xwincli.metrics import bradley_terry, style
from xwincli.metrics.bootstrap import plain
from xwincli.metrics.bradley_terry import Battle, Battles, Standing

# a verdict -> (A's share of the win, whether it is strong)
LABELS = {
    "A>>B": (1.0, True), "A>B": (1.0, False), "A=B": (0.5, False), "B>A": (0.0, False), "B>>A": (0.0, True),
    "B<<A": (1.0, True), "B<A": (1.0, False), "B=A": (0.5, False), "A<B": (0.0, False), "A<<B": (0.0, True),
}  # fmt: skip

_DOUBLE, _SINGLE = re.compile(r"\[\[([AB<>=]+)\]\]"), re.compile(r"\[([AB<>=]+)\]")


# -- what a reply says


def label_v01(reply: str | None) -> tuple[str | None, bool]:
    """Arena-Hard v0.1's reading: the label in ``[[ ]]``, and whether it asks again; several different: neither."""
    found = set(_DOUBLE.findall(reply or ""))
    return (next(iter(found)) if len(found) == 1 else None), not found


def label_v2(reply: str | None) -> str | None:
    """Arena-Hard v2's reading: the last label in ``[[ ]]``, else the last in ``[ ]``, upper or lower case.

    What it returns need not be one of ``LABELS``: ``[[A]]`` gives ``A``.
    """
    said = (reply or "").upper()
    found = _DOUBLE.findall(said) or _SINGLE.findall(said)
    return str(found[-1]) if found else None


# -- battles


@dataclass(frozen=True)
class Fought:
    """One battle and where it stands; ``looks`` are length and counts of both answers, where they are known."""

    where: str
    battle: Battle
    question: Any = None
    looks: tuple[tuple[float, ...], tuple[float, ...]] | None = None


@dataclass
class Field:
    """All battles in file order, the rows without a verdict, the baselines the rows name."""

    battles: list[Fought] = field(default_factory=list)
    missing: list[dict[str, Any]] = field(default_factory=list)
    baselines: set[str] = field(default_factory=set)
    rows: int = 0


# -- what is counted


@dataclass(frozen=True)
class Count:
    """How strengths are made: the anchor's name or "", the ridge, what is resampled, resamples, their seed, Elo's k."""

    anchor: str = ""
    ridge: float = 0.0
    unit: str = "battle"
    rounds: int = 1500
    seed: int = 42
    k: float = 4.0


def standings(found: Field, count: Count) -> dict[str, Any]:
    """Every model's strength, record and online Elo, the wins' matrix, separability; style control if looks are known.

    Raises:
        XwinError: the anchor fought no battle.
    """
    rows = [f.battle._replace(unit=f.question if count.unit == "question" else None) for f in found.battles]
    battles = Battles.of(rows)
    if count.anchor and count.anchor not in battles.models:
        raise XwinError(f"--baseline {count.anchor!r}: fought no battle", f"models are: {', '.join(battles.models)}")
    ranked = bradley_terry.ranking(
        battles, anchor=count.anchor or None, ridge=count.ridge, rounds=count.rounds, seed=count.seed
    )
    wins, online = battles.wins(), bradley_terry.online_elo(rows, k=count.k)
    order = [battles.models.index(s.model) for s in ranked]
    apart, pairs = bradley_terry.separability(s.elo for s in ranked)
    dressed = all(f.looks for f in found.battles)
    return {
        "models": [{**_standing(s), "online_elo": online[s.model], **_record(rows, s.model)} for s in ranked],
        "matrix": {"models": [s.model for s in ranked], "wins": wins[np.ix_(order, order)].tolist()},
        "separability": {"apart": apart, "pairs": pairs, "share": apart / pairs if pairs else None},
        "style": _styled(found, battles, count, ranked[0].model) if dressed else None,
    }


def _standing(s: Standing) -> dict[str, Any]:
    return {"model": s.model, "elo": plain(s.elo), "win_rate": plain(s.win_rate) if s.win_rate else None}


def _record(rows: Iterable[Battle], model: str) -> dict[str, int]:
    mine = [r.score if r.a == model else 1 - r.score for r in rows if model in (r.a, r.b)]
    ties = mine.count(0.5)
    return {
        "battles": len(mine),
        "wins": sum(s > 0.5 for s in mine),
        "ties": ties,
        "losses": sum(s < 0.5 for s in mine),
    }


def _styled(found: Field, battles: Battles, count: Count, first: str) -> dict[str, Any]:
    """Win rates against the anchor (or the strongest) with style controlled as Arena-Hard does, and at equal style."""
    anchor = battles.models.index(count.anchor or first)
    sides = [np.array([f.looks[i] for f in found.battles if f.looks]) for i in (0, 1)]
    raw = style.differences(*sides)
    made: dict[str, Any] = {"against": battles.models[anchor], "features": style.NAMES}
    for name, centre in (("controlled", True), ("equal", False)):
        features = style.standardised(raw, centre=centre)
        fit = style.controlled(battles, features, anchor)
        if not fit.converged:
            return {**made, "why_not": "no finite strengths fit these battles: a model or a look wins them all"}
        s, c = style.bootstrap(battles, features, anchor, fit, rounds=min(count.rounds, style.ROUNDS), seed=count.seed)
        rates, drawn = 100 / (1 + np.exp(-fit.strength)), 100 / (1 + np.exp(-s))
        made[name] = {
            m: plain(bradley_terry.interval(float(rates[i]), drawn[:, i])) for i, m in enumerate(battles.models)
        }
        made["coefficients"] = {
            f: plain(bradley_terry.interval(float(fit.coefficient[i]), c[:, i])) for i, f in enumerate(style.NAMES)
        }
    return made
