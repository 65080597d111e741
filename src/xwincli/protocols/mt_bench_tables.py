"""MT-Bench's tables: means by turn and category, FastChat's and strict ones, wins and losses, what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from xwincli.console import table
from xwincli.metrics import bootstrap
from xwincli.protocols.mt_bench import HIGH, LOW, Compared, Rated
from xwincli.protocols.mt_bench_files import Judgements, Question


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _interval(values: Iterable[tuple[Any, float | None]]) -> list[float] | None:
    """The 95 % bootstrap interval of a mean over judgements, whole questions drawn; None for fewer than two."""
    sums: dict[Any, tuple[float, int]] = {}
    for question, value in values:
        if value is not None:
            total, count = sums.get(question, (0.0, 0))
            sums[question] = total + value, count + 1
    if len(sums) < 2:
        return None
    total, count = np.array(list(sums.values()), dtype=np.float64).T
    draws = [(n @ total) / (n @ count) for n in bootstrap.resamples(len(sums), bootstrap.ROUNDS, 0)]
    e = bootstrap.percentile(0.0, np.concatenate(draws))
    return [e.low, e.high]


def _means(rows: Sequence[Rated], name: str) -> dict[str, Any]:
    """The mean over all turns, of each turn and of each category of one kind of score."""

    def of(some: Iterable[Rated]) -> float | None:
        return _mean(getattr(r, name) for r in some)

    turns = {f"turn{t}": of(r for r in rows if r.turn == t) for t in sorted({r.turn for r in rows})}
    names = sorted({r.category for r in rows if r.category is not None})
    by_category = {c: of(r for r in rows if r.category == c) for c in names}
    return {
        **turns,
        "average": of(rows),
        "n_valid": sum(getattr(r, name) is not None for r in rows),
        "by_category": by_category,
    }


def single_table(rows: Iterable[Rated]) -> list[dict[str, Any]]:
    """One entry a model, the best compatible mean first.

    FastChat's figures have its names: ``turn1``, ``turn2``, ``average`` (over all turns' ratings, unparsed ones left
    out), ``n_valid``, ``by_category``. ``strict`` holds the same of the strict ratings, and the ``interval`` (95 %,
    over questions) of their average; ``n`` is all judgements, ``n_unparsed`` those without one clear rating,
    ``n_out_of_range`` those whose rating is not within 1 to 10.
    """
    models: dict[str, list[Rated]] = {}
    for row in rows:
        models.setdefault(row.model, []).append(row)
    made = []
    for model, mine in models.items():
        strict, compatible = _means(mine, "strict"), _means(mine, "compatible")
        strict["interval"] = _interval((r.question_id, r.strict) for r in mine)
        off = sum(r.strict is None and r.compatible is not None and not LOW <= r.compatible <= HIGH for r in mine)
        lost = len(mine) - strict["n_valid"]
        made.append(
            {
                "model": model,
                "n": len(mine),
                **compatible,
                "strict": strict,
                "n_unparsed": lost - off,
                "n_out_of_range": off,
            }
        )
    return sorted(made, key=lambda m: -(m["average"] if m["average"] is not None else -1.0))


def pair_table(rows: Iterable[Compared]) -> list[dict[str, Any]]:
    """One entry a model with FastChat's figures (``win``, ``loss``, ``tie``, ``win_rate``, ``loss_rate``,
    ``win_rate_adjusted`` = (win + tie/2) / all), the best first, and the ``interval`` (95 %, over questions) of the
    last; ``n_error`` judgements without a verdict do not count.
    """
    models: dict[str, dict[str, int]] = {}
    won: dict[str, list[tuple[Any, float | None]]] = {}
    for row in rows:
        result = row.result()
        for name, model in (("model_1", row.model_1), ("model_2", row.model_2)):
            count = models.setdefault(model, {"win": 0, "loss": 0, "tie": 0, "n_error": 0})
            said = {"tie": "tie", "error": "n_error", name: "win"}.get(result, "loss")
            count[said] += 1
            worth = {"tie": 0.5, "win": 1.0, "loss": 0.0}.get(said)
            won.setdefault(model, []).append((row.question_id, worth))
    made = [
        {"model": model, **count, **_rates(count), "interval": _interval(won[model])} for model, count in models.items()
    ]
    return sorted(made, key=lambda m: -(m["win_rate_adjusted"] if m["win_rate_adjusted"] is not None else -1.0))


def _rates(count: dict[str, int]) -> dict[str, float | None]:
    total = count["win"] + count["loss"] + count["tie"]
    shares = {
        "win_rate": count["win"],
        "loss_rate": count["loss"],
        "win_rate_adjusted": count["win"] + 0.5 * count["tie"],
    }
    return {name: share / total if total else None for name, share in shares.items()}


def facts(found: Judgements, asked: Mapping[Any, Question]) -> tuple[dict[str, Any], dict[str, int]]:
    """What ``eval.json`` holds, and the counts the exit code comes from."""
    lost = [
        _row(r, "unparsed" if r.compatible is None else "not one rating from 1 to 10")
        for r in found.singles
        if r.strict is None
    ]
    lost += [_row(r, "a game without a verdict") for r in found.pairs if r.result() == "error"]
    absent = _absent(found, asked)
    known = {r.question_id for r in found.singles} | {p.question_id for p in found.pairs}
    total = len(found.singles) + len(found.pairs) + len(absent)
    made = {
        "protocol": "mt-bench",
        "judges": sorted(found.judges),
        "questions": len(asked) or len(known),
        "judgements": total,
        "coverage": 1 - (len(lost) + len(absent)) / total,
        "models": single_table(found.singles),
        "pairs": pair_table(found.pairs),
        "missing": lost + absent,
    }
    return made, {"total": total, "missing": len(lost) + len(absent)}


def _row(r: Any, why: str) -> dict[str, Any]:
    who = {k: v for k, v in vars(r).items() if k in ("model", "model_1", "model_2")}
    return {**who, "question_id": r.question_id, "turn": r.turn, "why": why}


def _absent(found: Judgements, asked: Mapping[Any, Question]) -> list[dict[str, Any]]:
    """The turns of the questions that nobody judged, for every model or pair of models that was judged."""
    seen: dict[tuple[str, ...], set[tuple[Any, int]]] = {}
    for r in found.singles:
        seen.setdefault((r.model,), set()).add((r.question_id, r.turn))
    for p in found.pairs:
        seen.setdefault((p.model_1, p.model_2), set()).add((p.question_id, p.turn))
    made = []
    for models, judged in seen.items():
        who = {"model": models[0]} if len(models) == 1 else {"model_1": models[0], "model_2": models[1]}
        for q in asked.values():
            turns = range(1, len(q.turns) + 1)
            made += [
                {**who, "question_id": q.id, "turn": t, "why": "not judged"} for t in turns if (q.id, t) not in judged
            ]
    return made


def results(found: Judgements) -> Iterator[dict[str, Any]]:
    """Every judgement as a row of ``results.jsonl``."""
    for row in found.singles:
        yield {k: v for k, v in asdict(row).items() if v is not None}
    for pair in found.pairs:
        yield {**{k: v for k, v in asdict(pair).items() if v is not None}, "result": pair.result()}


# -- shown


def _number(value: float | None, places: int = 2) -> str:
    return "-" if value is None else f"{value:.{places}f}"


def _cell(compatible: float | None, strict: float | None) -> str:
    """A mean; where FastChat's and the strict one differ, both."""
    one, two = _number(compatible), _number(strict)
    return one if one == two else f"{one} (strict {two})"


def _bounds(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.2f} – {interval[1]:.2f}"


def _by_turn(models: Sequence[dict[str, Any]]) -> str:
    turns = sorted({k for m in models for k in m if k.startswith("turn")})
    head = ["model", *(f"turn {t.removeprefix('turn')}" for t in turns), "FastChat mean", "strict mean", "95 %"]
    rows = []
    for m in models:
        strict = m["strict"]
        means = [_cell(m.get(t), strict.get(t)) for t in turns]
        both = [_number(m["average"], 4), _number(strict["average"], 4), _bounds(strict["interval"])]
        rows.append([m["model"], *means, *both, m["n"], m["n_unparsed"], m["n_out_of_range"]])
    return table([*head, "n", "unparsed", "out of range"], rows)


def _by_category(models: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    means = [(m["model"], m["by_category"], m["strict"]["by_category"]) for m in models]
    return table(["model", *names], [[m, *(_cell(of.get(c), strict.get(c)) for c in names)] for m, of, strict in means])


def _of_pairs(pairs: Sequence[dict[str, Any]]) -> str:
    counts, rates = ("win", "loss", "tie"), ("win_rate", "loss_rate", "win_rate_adjusted")
    rows = []
    for p in pairs:
        figures = [*(p[k] for k in counts), *(_number(p[k], 4) for k in rates), _bounds(p["interval"]), p["n_error"]]
        rows.append([p["model"], *figures])
    return table(["model", *counts, *rates, "95 %", "error"], rows)


def standings(facts: Mapping[str, Any]) -> str:
    """``eval.json`` as tables: turns, categories, pairs."""
    models, pairs, parts = facts["models"], facts["pairs"], []
    if models:
        parts.append(_by_turn(models))
    if names := sorted({c for m in models for c in m["by_category"]}):
        parts.append(_by_category(models, names))
    if pairs:
        parts.append(_of_pairs(pairs))
    about = f"{facts['judgements']} judgements of {facts['questions']} questions by {', '.join(facts['judges'])}"
    return "\n\n".join([*parts, about])
