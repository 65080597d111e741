"""Two or more models on the same prompts, each against the first: who wins, by how much, how steadily."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from xwincli import checks
from xwincli.errors import XwinError
from xwincli.judges import Answer, Judge, matches
from xwincli.metrics import best_of_n, bootstrap, stability, win_rate
from xwincli.metrics.bootstrap import Estimate
from xwincli.records import Group, Judgement, Response, content_id

GOLD = "gold"  # the score that a judge's ratings are written under
VERDICTS = {1: "better", 0: "not distinguishable", -1: "worse"}


@dataclass
class Entry:
    """One model of a comparison: its name, its file, and its groups by prompt id."""

    name: str
    file: str
    groups: dict[str, Group]


def entry(name: str, file: str, groups: Iterable[Group]) -> Entry:
    """Index one file's groups by prompt.

    Raises:
        XwinError: two rows are about one prompt, or there are none.
    """
    found: dict[str, Group] = {}
    for number, group in enumerate(groups, 1):
        if group.prompt_id in found:
            hint = "one row holds one prompt and all its responses"
            raise XwinError(f"{file}: row {number}: field prompt_id: {group.prompt_id!r} stands twice", hint)
        found[group.prompt_id] = group
    if not found:
        raise XwinError(f"{file}: there are no groups")
    return Entry(name, file, found)


def join(entries: Sequence[Entry], common: bool) -> tuple[list[str], dict[str, list[str]]]:
    """The prompts that every file has, in the first file's order, and what each file lacks.

    Raises:
        XwinError: a file lacks prompts that another has and ``common`` is off, or nothing is shared.
    """
    every = list(dict.fromkeys(p for e in entries for p in e.groups))
    missing = {e.name: [p for p in every if p not in e.groups] for e in entries}
    short = [(e, missing[e.name]) for e in entries if missing[e.name]]
    if short and not common:
        e, lacks = short[0]
        listed = ", ".join(lacks[:5]) + (f" and {len(lacks) - 5} more" if len(lacks) > 5 else "")
        hint = "--common compares the prompts that all files have"
        raise XwinError(f"{e.file}: {len(lacks)} of {len(every)} prompts are missing: {listed}", hint)
    shared = [p for p in every if all(p in e.groups for e in entries)]
    if not shared:
        raise XwinError(f"{entries[0].file} and {entries[1].file} have no prompt in common")
    return shared, {name: ids for name, ids in missing.items() if ids}


def trim(entries: Sequence[Entry], prompts: Sequence[str]) -> int:
    """Cut each prompt's responses to as many as every model has; returns the fewest of any prompt."""
    fewest = math.inf
    for p in prompts:
        n = min(len(e.groups[p].responses) for e in entries)
        for e in entries:
            del e.groups[p].responses[n:]
        fewest = min(fewest, n)
    return int(fewest)


def unique(entry: Entry) -> bool:
    """True if duplicates were resampled: such draws are not independent, n-of-n figures are then off."""
    return any((g.sampling or {}).get("unique") for g in entry.groups.values())


# -- what the judge is asked

BLOCK = 64  # prompts put to the judge at a time


def _answer(group: Group, r: Response) -> Answer:
    key = content_id(group.prompt, r.text)
    return Answer(id=key, prompt=group.prompt, text=r.text, finish=r.finish, checks=group.checks)


def rate(judge: Judge, entry: Entry, prompts: Sequence[str]) -> Iterator[int]:
    """Write the judge's rating of every response into its ``scores.gold``; yields how many at a time.

    A grade from before is overwritten: a comparison has one judge.
    """
    for start in range(0, len(prompts), BLOCK):
        groups = [entry.groups[p] for p in prompts[start : start + BLOCK]]
        flat = [(g, r) for g in groups for r in g.responses]
        rated = judge.ratings([_answer(g, r) for g, r in flat])
        for (_, r), grade in zip(flat, rated, strict=True):
            r.scores[GOLD] = grade.rating
        yield len(flat)


def play(judge: Judge, base: Entry, other: Entry, prompts: Sequence[str]) -> Iterator[Judgement]:
    """Response i of the base (``a``) against response i of the other (``b``), in both orders."""

    def match(group: Group, a: Response, b: Response) -> matches.Match:
        orders = () if a.text == b.text else ("a", "b")
        return matches.Match(group, matches.Side(a, base.name), matches.Side(b, other.name), orders)

    for start in range(0, len(prompts), BLOCK):
        shared = [(base.groups[p], other.groups[p]) for p in prompts[start : start + BLOCK]]
        rows = [[match(g, a, b) for a, b in zip(g.responses, h.responses, strict=True)] for g, h in shared]
        for played in matches.compare(judge, rows):
            yield from played


# -- what is counted


def _plain(e: Estimate) -> dict[str, float | None]:
    return {k: v if math.isfinite(v) else None for k, v in vars(e).items()}


@dataclass(frozen=True)
class Count:
    """How figures are made: the smallest number of responses, the resamples, their seed, the rating scale."""

    n: int
    rounds: int = bootstrap.ROUNDS
    seed: int = 0
    scale: tuple[float, float] | None = None

    def over(self, groups: Sequence[Group], figure: Callable[[Group], float | None]) -> dict[str, Any] | None:
        """A figure's mean over prompts with its interval; None if there are none or one lacks it."""
        values = [figure(g) for g in groups]
        known = [v for v in values if v is not None and math.isfinite(v)]
        if not known or len(known) < len(values):
            return None
        return _plain(bootstrap.mean(known, rounds=self.rounds, seed=self.seed))


def _scores(group: Group, name: str) -> list[float] | None:
    found = [r.scores[name] for r in group.responses if name in r.scores]
    return found if len(found) == len(group.responses) and all(map(math.isfinite, found)) else None


def _figures(n: int, scale: tuple[float, float] | None) -> dict[str, Callable[[Group], float | None]]:
    """Every figure of one prompt's responses by the name it has in ``eval.json``."""

    def rated(f: Callable[[list[float]], float]) -> Callable[[Group], float | None]:
        return lambda g: None if (s := _scores(g, GOLD)) is None else f(s)

    def each(f: Callable[[Any], float | None]) -> Callable[[Group], float | None]:
        def mean(g: Group) -> float | None:
            values = [v for r in g.responses if (v := f(r)) is not None]
            return sum(values) / len(values) if len(values) == len(g.responses) else None

        return mean

    def passed(g: Group) -> float | None:
        return each(lambda r: all(checks.passes(c, r.text) for c in g.checks or []))(g)

    return {
        "mean": rated(lambda s: sum(s) / len(s)),
        "std": rated(stability.spread),
        "worst_of_n": rated(lambda s: best_of_n.worst_of_n(s, n)),
        "best_of_n": rated(lambda s: best_of_n.best_of_n(s, s, n)),
        "consistency": rated(lambda s: stability.consistency(s, *scale) if scale else math.nan),
        "all_checks": passed,
        "ended": each(lambda r: None if r.finish is None else r.finish == "stop"),
        "words": each(lambda r: len(checks.words(r.text))),
        "characters": each(lambda r: len(r.text)),
        "tokens": each(lambda r: r.tokens),
    }


def _curve(groups: Sequence[Group], proxy: str, count: Count) -> list[dict[str, Any]] | None:
    """Gold of the proxy's favourite among n, for growing n; None where a score is missing."""
    columns = [(_scores(g, proxy), _scores(g, GOLD)) for g in groups]
    points = []
    for n in best_of_n.sizes(count.n):
        values = [best_of_n.best_of_n(p, g, n) for p, g in columns if p is not None and g is not None]
        if len(values) < len(groups):
            return None
        e = bootstrap.mean(values, rounds=count.rounds, seed=count.seed)
        points.append({"n": n, **_plain(e), "kl_bound": best_of_n.kl_bound(n)})
    return points


def standing(entry: Entry, prompts: Sequence[str], count: Count, proxies: Sequence[str] = ("rm",)) -> dict[str, Any]:
    """One model by itself: quality, spread, ends and lengths, each a mean over prompts with its interval.

    Args:
        entry: the model; its responses carry ``scores.gold`` where the judge rates.
        prompts: the ids compared.
        count: how to count.
        proxies: scores that may pick for a best-of-n curve beside the oracle (gold itself).
    """
    groups = [entry.groups[p] for p in prompts]
    checked = [g for g in groups if g.checks]
    figures = {
        name: count.over(checked if name == "all_checks" else groups, f)
        for name, f in _figures(count.n, count.scale).items()
    }
    curves = {"oracle": _curve(groups, GOLD, count), **{p: _curve(groups, p, count) for p in proxies}}
    return {
        "name": entry.name,
        "file": entry.file,
        "model": groups[0].model,
        "unique": unique(entry),
        **figures,
        "curves": {name: points for name, points in curves.items() if points},
    }


def against(
    base: Entry, other: Entry, prompts: Sequence[str], judgements: Iterable[Judgement], count: Count
) -> dict[str, Any]:
    """One model against the first: win rate, ties, length-controlled win rate, paired gain, verdict.

    Args:
        base, other: the two; ``judgements`` have the base as ``a`` and the other as ``b``.
        prompts: the ids compared.
        judgements: of response i against response i of every prompt.
        count: how to count.
    """
    won: dict[str, list[float]] = {p: [] for p in prompts}
    lengths: dict[str, tuple[list[int], list[int]]] = {p: ([], []) for p in prompts}
    for j in judgements:
        won[j.prompt_id].append(j.verdict())
        for column, side in zip(lengths[j.prompt_id], (j.a, j.b), strict=True):
            column.append(len(side["text"]))
    verdicts, flat = list(won.values()), [v for row in won.values() for v in row]
    rate = win_rate.win_rate(verdicts, rounds=count.rounds, seed=count.seed)
    fair = win_rate.length_controlled(
        verdicts,
        [a for a, _ in lengths.values()],
        [b for _, b in lengths.values()],
        rounds=min(count.rounds, win_rate.LC_ROUNDS),
        seed=count.seed,
    )
    return {
        "win_rate": _plain(rate),
        "wins": flat.count(1.0),
        "ties": flat.count(0.5),
        "losses": flat.count(0.0),
        "length_controlled": _plain(fair),
        "gain": _gain(base, other, prompts, count),
        "verdict": VERDICTS[rate.excludes(50)],
    }


def _gain(base: Entry, other: Entry, prompts: Sequence[str], count: Count) -> dict[str, float | None] | None:
    """The mean rating's paired difference with its interval; None where the judge does not rate."""
    means = []
    for e in (base, other):
        scores = [_scores(e.groups[p], GOLD) for p in prompts]
        means.append([sum(s) / len(s) for s in scores if s])
    if any(len(m) < len(prompts) for m in means):
        return None
    return _plain(bootstrap.difference(*means, rounds=count.rounds, seed=count.seed))
