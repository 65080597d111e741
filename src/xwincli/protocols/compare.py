"""Two or more models on the same prompts, each against the first: who wins, by how much, how steadily."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

from xwincli import checks
from xwincli.errors import LIMIT, USAGE, XwinError
from xwincli.judges import Judge, Rated, Verdict, matches
from xwincli.metrics import best_of_n, bootstrap, paired, stability, win_rate
from xwincli.metrics.bootstrap import plain
from xwincli.records import Group, Judgement, prompt_id

T = TypeVar("T")
R = TypeVar("R")
Failed = dict[str, str]  # a prompt's id -> why it has no verdict

GOLD = "gold"  # the score that a judge's ratings are written under
VERDICTS = {1: "better", 0: "not distinguishable", -1: "worse"}


@dataclass
class Entry:
    """One model of a comparison: its name, its file, and its groups by prompt id."""

    name: str
    file: str
    groups: dict[str, Group]


def entry(name: str, file: str, groups: Iterable[Group], *, ignore_system: bool = False) -> Entry:
    """Index one file's groups by prompt.

    Args:
        name, file: of the model.
        groups: its answers.
        ignore_system: take system messages out of the prompts, so that answers under two of them can be joined.

    Raises:
        XwinError: two rows are about one prompt, or there are none.
    """
    found: dict[str, Group] = {}
    for number, group in enumerate(groups, 1):
        if ignore_system:
            group.prompt = [m for m in group.prompt if m["role"] != "system"]
            group.prompt_id = prompt_id(group.prompt)
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
        some = ", ".join(f"{p} ({_opening(entries, p)})" for p in lacks[:5])
        listed = some + (f" and {len(lacks) - 5} more" if len(lacks) > 5 else "")
        hint = "--common compares the prompts that all files have"
        raise XwinError(f"{e.file}: {len(lacks)} of {len(every)} prompts are missing: {listed}", hint)
    shared = [p for p in every if all(p in e.groups for e in entries)]
    if not shared:
        raise XwinError(f"{entries[0].file} and {entries[1].file} have no prompt in common")
    return shared, {name: ids for name, ids in missing.items() if ids}


def _opening(entries: Sequence[Entry], prompt: str) -> str:
    """How a prompt begins, by the first file that has it."""
    group = next(e.groups[prompt] for e in entries if prompt in e.groups)
    text = " ".join(str(group.prompt[-1].get("content") or "").split())
    return repr(text if len(text) <= 40 else text[:39] + "…")


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
NO_ROW = (USAGE, LIMIT)  # codes of errors that are no row's fault


def settle(ask: Callable[[Sequence[T]], Sequence[R | XwinError]], rows: Sequence[T]) -> list[R | XwinError]:
    """What a judge says of several rows; if the call fails, row by row, so that only the row at fault has none.

    Raises:
        XwinError: no row's fault: the judge cannot do this at all, or its budget is spent.
    """
    said: list[R | XwinError]
    try:
        said = list(ask(rows))
    except XwinError as e:
        alone = len(rows) == 1 or e.code in NO_ROW
        said = [e] if alone else [x for row in rows for x in settle(ask, [row])]
    if error := next((x for x in said if isinstance(x, XwinError) and x.code in NO_ROW), None):
        raise error
    return said


def grades(judge: Judge, groups: Sequence[Group]) -> list[list[Rated] | XwinError]:
    """The judge's rating of every response of several groups; an error for a group that lacks one."""
    asked = [matches.answer(g, r) for g in groups for r in g.responses]
    rated = iter(list(judge.ratings(asked)))
    return [_whole([next(rated) for _ in g.responses]) for g in groups]


def _whole(rated: Sequence[Rated | XwinError]) -> list[Rated] | XwinError:
    return next((r for r in rated if isinstance(r, XwinError)), [r for r in rated if not isinstance(r, XwinError)])


def rate(judge: Judge, entry: Entry, prompts: Sequence[str], failed: Failed) -> Iterator[int]:
    """Write the judge's rating of every response into its ``scores.gold``; yields how many at a time.

    A grade from before is overwritten: a comparison has one judge. A prompt without all its ratings is noted in
    ``failed``.

    Raises:
        XwinError: the judge only compares.
    """
    for start in range(0, len(prompts), BLOCK):
        groups = [entry.groups[p] for p in prompts[start : start + BLOCK]]
        for g, rated in zip(groups, settle(partial(grades, judge), groups), strict=True):
            if isinstance(rated, XwinError):
                failed[g.prompt_id] = f"{entry.name}: {rated.message}"
                continue
            for r, grade in zip(g.responses, rated, strict=True):
                r.scores[GOLD] = grade.rating
        yield sum(len(g.responses) for g in groups)


def _matches(base: Entry, other: Entry, p: str, orders: tuple[str, ...]) -> list[matches.Match]:
    """Response i of the base (``a``) against response i of the other (``b``); equal texts are not put to a judge."""
    group, sides = base.groups[p], (base.groups[p].responses, other.groups[p].responses)
    return [
        matches.Match(group, matches.Side(a, base.name), matches.Side(b, other.name), orders * (a.text != b.text))
        for a, b in zip(*sides, strict=True)
    ]


def play(judge: Judge, base: Entry, other: Entry, prompts: Sequence[str], failed: Failed) -> Iterator[Judgement]:
    """Response i of the base (``a``) against response i of the other (``b``), in both orders.

    A prompt without all its verdicts is noted in ``failed`` and gives no judgement.

    Raises:
        XwinError: the judge only rates.
    """
    for start in range(0, len(prompts), BLOCK):
        block = prompts[start : start + BLOCK]
        rows = [_matches(base, other, p, ("a", "b")) for p in block]
        for p, played in zip(block, settle(partial(matches.compare, judge), rows), strict=True):
            if isinstance(played, XwinError):
                failed[p] = f"{base.name} against {other.name}: {played.message}"
            else:
                yield from played


def play_ratings(judge: Judge, base: Entry, other: Entry, prompts: Sequence[str]) -> Iterator[Judgement]:
    """The same for a judge that only rates: the higher ``scores.gold`` wins, and there is no order of showing."""
    for p in prompts:
        for m in _matches(base, other, p, ("a",)):
            a, b = (side.response.scores[GOLD] for side in (m.a, m.b))
            verdict = Verdict(preference=0.5 if a == b else float(b > a), rating_a=a, rating_b=b)
            yield m.judgement([verdict] * len(m.orders), judge.name)


# -- what is counted


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
        return plain(bootstrap.mean(known, rounds=self.rounds, seed=self.seed))


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
        "mean": _mean,
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
        points.append({"n": n, **plain(e), "kl_bound": best_of_n.kl_bound(n)})
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
    """One model against the first: win rate, ties, length-controlled win rate, paired gain, tests, verdict.

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
    means = [100 * sum(v) / len(v) for v in verdicts]
    tests = {"win_rate": _tests(paired.compare([50.0] * len(means), means, rounds=count.rounds, seed=count.seed))}
    gain = _gain(base, other, prompts, count)
    return {
        "win_rate": plain(rate),
        "wins": flat.count(1.0),
        "ties": flat.count(0.5),
        "losses": flat.count(0.0),
        "length_controlled": plain(fair),
        "gain": plain(gain.difference) if gain else None,
        "tests": {**tests, "gain": _tests(gain)} if gain else tests,
        "verdict": VERDICTS[rate.excludes(50)],
        "categories": _by_category(base, other, won, count),
    }


def _gain(base: Entry, other: Entry, prompts: Sequence[str], count: Count) -> paired.Comparison | None:
    """The mean rating's paired difference; None where the judge does not rate."""
    means = []
    for e in (base, other):
        scores = [_scores(e.groups[p], GOLD) for p in prompts]
        means.append([sum(s) / len(s) for s in scores if s])
    if any(len(m) < len(prompts) for m in means):
        return None
    return paired.compare(*means, rounds=count.rounds, seed=count.seed)


def _tests(c: paired.Comparison) -> dict[str, Any]:
    """Prompts that went up and down with the sign test, the randomisation test, what 80 % power would see."""
    least = c.detectable if math.isfinite(c.detectable) else None
    return {"sign_test": asdict(c.signs), "p": c.p, "detectable": least}


def categories(entry: Entry, prompts: Sequence[str]) -> dict[str, list[str]]:
    """The prompts of each category, in order of appearance; those without one are left out."""
    found: dict[str, list[str]] = {}
    for p in prompts:
        if name := entry.groups[p].category:
            found.setdefault(name, []).append(p)
    return found


def _by_category(base: Entry, other: Entry, won: dict[str, list[float]], count: Count) -> dict[str, Any]:
    """Win rate, mean rating and its gain within each category."""
    table: dict[str, Any] = {}
    for name, some in categories(base, list(won)).items():
        gain = _gain(base, other, some, count)
        rate = win_rate.win_rate([won[p] for p in some], rounds=count.rounds, seed=count.seed)
        table[name] = {
            "prompts": len(some),
            "win_rate": plain(rate),
            "mean": count.over([other.groups[p] for p in some], _mean),
            "gain": plain(gain.difference) if gain else None,
            "verdict": VERDICTS[rate.excludes(50)],
        }
    return table


def _mean(group: Group) -> float | None:
    scores = _scores(group, GOLD)
    return sum(scores) / len(scores) if scores else None
