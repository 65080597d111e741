"""Rank many models from battles of two: Bradley-Terry strengths on Elo's scale, Arena-Hard's scores, style control.

    xwin eval arena battles.jsonl --baseline gpt-4-0314 --out DIR
    xwin eval arena judgment.jsonl --answers base.jsonl --answers dpo.jsonl --out DIR

Reads Chatbot Arena's battles (`model_a, model_b, winner`), Arena-Hard's judgements (`games`; a verdict of >> counts
three times, the answers' order is swapped back) and judgements of `xwin judge`. With `--baseline` (Arena-Hard's rows
name it themselves) it stands at 1000, and every other model gets its win rate against it; else the mean is 1000.

`DIR/eval.json` has each model's strength and win rate with 95 % bootstrap intervals, wins, ties and losses, online Elo
(which depends on the order of the rows), the matrix of wins, and separability: the share of pairs of models whose
intervals do not overlap. The bootstrap draws battles, as the published tables do; `--unit question` draws whole
questions, the honest unit where a question has several battles. With `--answers` (or judgements of ours, which hold
the answers) style is controlled: a logistic regression on length, headers, lists and bold, at the battles' usual
difference of style (Arena-Hard's number) and at equal style. Rows without a verdict exit 3.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xwincli import sources
from xwincli.console import say, table, warn
from xwincli.errors import USAGE, XwinError
from xwincli.settings import flag

if TYPE_CHECKING:
    from xwincli.protocols.arena import Field


@dataclass(kw_only=True)
class Config:
    """Options of ``xwin eval arena``."""

    files: list[str] = flag(help="battles or judgements", positional=True)
    out: str = flag(help="folder for eval.json and results.jsonl")
    baseline: str = flag("", "the model at 1000, against which win rates are; else the one Arena-Hard's rows name")
    answers: list[str] = flag([], "Arena-Hard's or FastChat's answers: style is controlled too; repeatable")
    category: str = flag("", "only rows of this category")
    strong: int = flag(3, "how often a verdict of >> counts", low=1)
    ridge: float = flag(
        0.0, "weight of half the squared strengths: keeps those of models that always win finite", low=0.0
    )
    unit: str = flag("battle", "what the bootstrap draws", choices=("battle", "question"))
    rounds: int = flag(1500, "bootstrap resamples", low=100)
    seed: int = flag(42, "of the bootstrap; Arena-Hard's own", low=0)
    k: float = flag(4.0, "points a battle moves the online Elo at most", low=0.0)
    force: bool = flag(False, "make it anew even if it is up to date", execution=True)


def run(config: Config) -> None:
    """Read, fit, count, write; the manifest comes last."""
    from xwincli.protocols import arena, arena_files, evaluation

    started = time.time()
    plan = evaluation.begin("eval arena", config, [*sources.expand(config.files), *sources.expand(config.answers)])
    if plan is None:
        return
    found = arena_files.read(config.files, config.baseline, config.category, config.strong)
    if config.answers:
        arena_files.dress(found, arena_files.answers(config.answers))
    count = arena.Count(_anchor(config, found), config.ridge, config.unit, config.rounds, config.seed, config.k)
    total, lost = found.rows, len(found.missing)
    facts: dict[str, Any] = {
        "protocol": "arena",
        "battles": len(found.battles),
        "rows": total,
        "coverage": (total - lost) / total,
        "baseline": count.anchor or None,
        "unit": config.unit,
        "rounds": config.rounds,
        "seed": config.seed,
        **arena.standings(found, count),
        "missing": found.missing,
    }
    if odd := [m["model"] for m in facts["models"] if m["elo"]["value"] is None]:
        warn(f"{', '.join(odd)}: no finite strength: won or lost everything, or met nobody; see --ridge")
    say(shown(facts))
    metrics = {"elo": {m["model"]: m["elo"]["value"] for m in facts["models"]}}
    counts = {"total": total, "missing": lost, "battles": len(found.battles)}
    evaluation.finish(plan, config, facts, _results(found), started=started, counts=counts, metrics=metrics)


def _anchor(config: Config, found: Field) -> str:
    if config.baseline or not found.baselines:
        return config.baseline
    if len(found.baselines) > 1:
        names = ", ".join(sorted(found.baselines))
        raise XwinError(
            f"the rows were judged against {names}", "--category takes the rows of one, --baseline one", USAGE
        )
    return next(iter(found.baselines))


def _results(found: Field) -> Iterator[dict[str, Any]]:
    for f in found.battles:
        about = {} if f.question is None else {"question_id": f.question}
        yield {**about, "model_a": f.battle.a, "model_b": f.battle.b, "score_a": f.battle.score}


# -- shown


def _figure(e: Mapping[str, float | None] | None, places: int) -> str:
    if e is None or e["value"] is None:
        return "-"
    low, high = ("-" if e[k] is None else f"{e[k]:.{places}f}" for k in ("low", "high"))
    return f"{e['value']:.{places}f} [{low}, {high}]"


def shown(facts: Mapping[str, Any]) -> str:
    """``eval.json`` as tables: standings, the wins of each model (row) over each other one, style."""
    style, based = facts["style"] or {}, facts["baseline"] is not None
    fair = style.get("controlled")
    head = ["model", "Elo [95 %]", *(["win rate [95 %]"] if based else []), *(["style controlled"] if fair else [])]
    rows = []
    for m in facts["models"]:
        figures = [_figure(m["elo"], 0), *([_figure(m["win_rate"], 1)] if based else [])]
        figures += [_figure(fair[m["model"]], 1)] if fair else []
        rows.append([m["model"], *figures, m["wins"], m["ties"], m["losses"], f"{m['online_elo']:.0f}"])
    parts = [table([*head, "won", "tied", "lost", "online Elo"], rows)]
    names, wins = facts["matrix"]["models"], facts["matrix"]["wins"]
    cells = [["·" if i == j else f"{w:g}" for j, w in enumerate(row)] for i, row in enumerate(wins)]
    head = ["wins over", *(str(i + 1) for i in range(len(names)))]
    parts.append(table(head, [[f"{i} {n}", *row] for i, (n, row) in enumerate(zip(names, cells, strict=True), 1)]))
    if fair:
        pulls = ", ".join(f"{f} {_figure(e, 2)}" for f, e in style["coefficients"].items())
        parts.append(f"a standard deviation more of it moves the log-odds of a win by: {pulls}")
    elif style:
        parts.append(f"style is not controlled: {style['why_not']}")
    s = facts["separability"]
    share = "" if s["share"] is None else f" ({100 * s['share']:.1f} %)"
    parts.append(
        f"{facts['battles']} battles; intervals of {s['apart']} of {s['pairs']} pairs of models lie apart{share}"
    )
    return "\n\n".join(parts)
