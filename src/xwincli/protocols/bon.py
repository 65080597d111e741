"""Best-of-n under reward models' scores against a gold score: curves, the oracle's, and where more is no better."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xwincli.errors import XwinError
from xwincli.formats.parts import number, wrong
from xwincli.metrics import best_of_n, bootstrap, overoptimisation
from xwincli.metrics.bootstrap import plain
from xwincli.metrics.overoptimisation import UNKNOWNS, Fit, Law
from xwincli.protocols.evaluation import Row
from xwincli.records import Group

Floats = npt.NDArray[np.float64]

KL_NAME = "KL(best-of-n ‖ base), upper bound log n − (n−1)/n, nats"
FLAT = 1e-12  # a gain below this share of gold's size is rounding
POOR = 0.25  # a residual above this share of the curve's largest gain: the law does not describe it


@dataclass(frozen=True)
class Scored:
    """Every prompt's scores by name, in the order of its responses: (prompts) of {name: (responses,)}."""

    ids: list[str]
    scores: list[dict[str, list[float]]]

    @property
    def n(self) -> int:
        """The fewest responses of a prompt: as far as the curves go."""
        return min(len(next(iter(s.values()))) for s in self.scores)


def scored(groups: Sequence[tuple[str, Group]], proxies: Sequence[str], gold: str) -> Scored:
    """The groups' scores.

    Raises:
        XwinError: a response lacks one, a prompt stands twice, or the gold is one of the models that pick.
    """
    found = Scored([], [])
    seen: dict[str, str] = {}
    for where, group in groups:
        if group.prompt_id in seen:
            first = seen[group.prompt_id]
            raise wrong(where, "prompt_id", f"{group.prompt_id!r} stands in {first} already", "one row a prompt")
        seen[group.prompt_id] = where
        _check_gold(group, where, proxies, gold)
        found.ids.append(group.prompt_id)
        found.scores.append({name: _column(group, where, name, gold) for name in dict.fromkeys((*proxies, gold))})
    for name in proxies:
        if found.scores and all(s[name] == s[gold] for s in found.scores):
            raise XwinError(f"the scores {name!r} and {gold!r} are the same numbers", "a gold must not be what selects")
    return found


def _column(group: Group, where: str, name: str, gold: str) -> list[float]:
    for i, r in enumerate(group.responses):
        if name not in r.scores:
            made = f"xwin judge --rate {name}" if name == gold else f"xwin score --name {name}"
            raise wrong(where, f"responses[{i}].scores.{name}", "is missing", f"`{made}` writes it")
    return [r.scores[name] for r in group.responses]


def _check_gold(group: Group, where: str, proxies: Sequence[str], gold: str) -> None:
    """Refuse a gold that the selecting model gave, by its name or by whom the group names as its scorer."""
    hint = "judge with another: `xwin judge --rate gold`, or `xwin score` with a larger reward model"
    if gold in proxies:
        raise XwinError(f"the gold {gold!r} is the score that selects", hint)
    given = group.scorers or {}
    for name in proxies:
        if shared := _behind(name, given) & _behind(gold, given):
            text = f"the gold comes from {min(shared)}, which selects as {name!r}"
            raise wrong(where, f"scorers.{gold}", text, hint)


def _behind(name: str, given: Mapping[str, str]) -> set[str]:
    """Who gave a score: its scorer, or all the models it combines; the name itself where no one is noted."""
    by = given.get(name, "")
    mixed = re.fullmatch(r"reward models (.+): \w+", by)
    return {given.get(part, part) for part in mixed[1].split(", ")} if mixed else {by or name}


def unique(groups: Sequence[tuple[str, Group]]) -> bool:
    """True if duplicates were resampled: the draws are then not independent, and the figures are off."""
    return any((g.sampling or {}).get("unique") for _, g in groups)


# -- curves


def curve(found: Scored, proxy: str, gold: str, sizes: Sequence[int]) -> Floats:
    """Expected gold of the proxy's pick among n, for each prompt and each n: shape (prompts, sizes)."""
    return np.array([[best_of_n.best_of_n(s[proxy], s[gold], n) for n in sizes] for s in found.scores])


def figures(found: Scored, proxies: Sequence[str], gold: str, rounds: int, seed: int) -> dict[str, Any]:
    """Each proxy's curve with its fit, and the oracle's (gold itself picks), with 95 % intervals over prompts."""
    sizes = best_of_n.sizes(found.n)
    curves, fits = {}, {}
    for name in dict.fromkeys((gold, *proxies)):
        values = curve(found, name, gold, sizes)
        draws = _draws(values, rounds, seed)
        label = "oracle" if name == gold else name
        curves[label] = _points(values, draws, sizes)
        if name != gold:
            fits[label] = _bon_fit(values.mean(axis=0), draws, sizes)
    return {
        "prompts": len(found.ids),
        "n": found.n,
        "gold": gold,
        "kl_axis": KL_NAME,
        "curves": curves,
        "fits": fits,
    }


def _draws(values: Floats, rounds: int, seed: int) -> Floats | None:
    """The curve's resamples (rounds, sizes), whole prompts drawn; None for a single prompt."""
    if len(values) < 2:
        return None
    return np.concatenate([c @ values / len(values) for c in bootstrap.resamples(len(values), rounds, seed)])


def _points(values: Floats, draws: Floats | None, sizes: Sequence[int]) -> list[dict[str, Any]]:
    points = []
    for j, n in enumerate(sizes):
        value = float(values[:, j].mean())
        e = bootstrap.percentile(value, draws[:, j]) if draws is not None else None
        interval = plain(e) if e else {"value": value, "low": None, "high": None}
        points.append({"n": n, "kl_upper_bound": best_of_n.kl_bound(n), **interval})
    return points


# -- the laws


def _bon_fit(value: Floats, draws: Floats | None, sizes: Sequence[int]) -> dict[str, Any]:
    """R_bon(d) = d(a − b·d) over the n above 1; gold is counted from n = 1, the base's mean."""
    if len(sizes) - 1 <= UNKNOWNS:
        return {"says": f"nothing: {len(sizes) - 1} sizes above 1 cannot test a law of two unknowns; sample n ≥ 8"}
    d = np.sqrt([best_of_n.kl_bound(n) for n in sizes[1:]])
    gain = value[1:] - value[0]
    gain[np.abs(gain) <= FLAT * np.abs(value).max()] = 0
    curves = None if draws is None else draws[:, 1:] - draws[:, :1]
    return law_fit(d, gain, "best-of-n", curves)


def law_fit(d: Floats, gain: Floats, law: Law, draws: Floats | None = None) -> dict[str, Any]:
    """A law's fit to a curve, with the interval of its coefficients and a plain sentence of what it says.

    Args:
        d: square roots of KL, shape (points,), more than two.
        gain: of gold above the base's, shape (points,).
        law: whose form.
        draws: the gain's resamples, shape (rounds, points).
    """
    f = overoptimisation.fit(d, gain, law)
    found: dict[str, Any] = {"a": f.a, "b": f.b, "residual": f.residual}
    found["explained"] = f.explained if math.isfinite(f.explained) else None
    over = 0
    if draws is not None:
        for name, value, column in zip("ab", (f.a, f.b), overoptimisation.coefficients(d, draws, law).T, strict=True):
            e = bootstrap.percentile(value, column)
            found[f"{name}_interval"] = [e.low, e.high]
            over = e.excludes(0.0) if name == "b" else over
    peak = f.peak()
    found["peak"] = None if peak is None else {"kl": peak**2, "gain": float(f.at(peak))}
    return {**found, "says": says(f, d, gain, over, tested=draws is not None)}


def says(f: Fit, d: Floats, gain: Floats, over: int, *, tested: bool) -> str:
    """What the fit says of over-optimisation in one sentence; "nothing: …" where it says nothing.

    Args:
        f: the fit.
        d, gain: what it was made to.
        over: 1 where the interval of b lies above 0, -1 where below, else 0.
        tested: whether there is such an interval.
    """
    largest = float(np.abs(gain).max())
    if largest == 0:
        return "nothing: gold does not move"
    if f.residual > POOR * largest:
        return f"nothing: the law leaves {f.residual / largest:.0%} of the largest gain over, it is not of this shape"
    if not tested and f.law == "best-of-n":
        return "nothing: one prompt gives no interval"
    if tested and over == 0:
        return "nothing: the bend b cannot be told from 0, more prompts or a larger n may tell"
    peak, reach = f.peak(), float(d.max())
    if peak is None:
        falls = f.law == "best-of-n" and f.b > 0
        return "gold falls from the start" if falls else "gold rises throughout, there is no sign of over-optimisation"
    where = f"KL {peak**2:.2f} nats"
    if peak <= reach:
        return f"over-optimisation: gold peaks near {where}, within what was measured"
    return f"gold still rises; by the law it peaks near {where}, beyond what was measured (KL {reach**2:.2f})"


def rl_points(rows: Sequence[tuple[str, Row]]) -> list[tuple[float, float]]:
    """Checkpoints of a policy trained against the reward model: (KL from the base in nats, mean gold).

    Raises:
        XwinError: ``kl`` or ``gold`` is missing or no number, or KL is negative.
    """
    found = []
    for where, row in rows:
        for key in ("kl", "gold"):
            if key not in row:
                raise wrong(where, key, "is missing", 'a row is {"kl": nats, "gold": mean}')
        kl = number(row["kl"], where, "kl")
        if kl < 0:
            raise wrong(where, "kl", f"{kl} is negative", "the mean KL from the first policy, summed over tokens")
        found.append((kl, number(row["gold"], where, "gold")))
    return sorted(found)


def rl_fit(points: Sequence[tuple[float, float]], base: float) -> dict[str, Any]:
    """R_RL(d) = d(a − b·log d) over checkpoints; gold is counted from ``base``, the first policy's mean."""
    moved = [(kl, gold) for kl, gold in points if kl > 0]
    if len({kl for kl, _ in moved}) <= UNKNOWNS:
        return {"says": f"nothing: {len(moved)} checkpoints with a KL above 0 cannot test a law of two unknowns"}
    d = np.sqrt([kl for kl, _ in moved])
    return law_fit(d, np.array([gold for _, gold in moved]) - base, "rl")


# -- what is written


def result_rows(found: Scored, proxies: Sequence[str], gold: str) -> list[Row]:
    """One row a prompt, for ``results.jsonl``: the response each score would pick of all, and its gold."""
    rows = []
    for id_, scores in zip(found.ids, found.scores, strict=True):
        picks: dict[str, Any] = {}
        for name in (*proxies, gold):
            best = max(range(len(scores[name])), key=lambda i, s=scores[name]: s[i])  # type: ignore[misc]
            picks["oracle" if name == gold else name] = {"index": best, "gold": scores[gold][best]}
        rows.append({"prompt_id": id_, "mean": sum(scores[gold]) / len(scores[gold]), "picks": picks})
    return rows


def series(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, list[tuple[float, float]], list[Any]]]:
    """Each curve as (name, points over the KL bound, their intervals where there are any)."""
    found = []
    for name, points in curves.items():
        known = all(p["low"] is not None for p in points)
        bounds = [(p["low"], p["high"]) for p in points] if known else []
        found.append((name, [(p["kl_upper_bound"], p["value"]) for p in points], bounds))
    return found
