"""Compare two or more models on the same prompts: each against the first, response by response.

`xwin eval compare base.jsonl rs.jsonl dpo.jsonl --out DIR` writes `DIR/judgements.jsonl`,
`DIR/ratings/NAME.jsonl` (the groups with `scores.gold`) and `DIR/eval.json`: for each model its mean rating,
the spread within a prompt, worst-of-n and best-of-n, share of answers that meet all checks and that ended by
themselves, lengths, win rate against the first file and the same with length held equal, and unbiased
best-of-n curves. Every figure is a mean over prompts with a 95 % bootstrap interval over prompts.

Beside a win rate and a gain in rating stand a sign test, a randomisation test, and the smallest difference that
so many prompts show with 80 % power: "not distinguishable" means that the two are no further apart than chance, not
that they are equal. Prompts with a `category` give the same by category. `problems` lists each model's prompts where
every answer fails a check, all answers are equal, ratings spread most, or the judge changes its mind with the order.

`--all-pairs` plays every model against every other: a matrix of win rates and Bradley-Terry strengths (in Elo, the
first model at 1000). `--ignore-system` joins prompts without their system messages, to compare two system prompts on
one model. A judge that only rates decides by its ratings; one that only compares gives none.

A prompt whose verdict cannot be had is left out of every figure and stands in `DIR/failed.jsonl`; the command then
ends with exit code 3 and asks again when it is run again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwincli import jsonl, judges, manifest, settings
from xwincli.console import progress, say, table, warn
from xwincli.errors import FAILED_ROWS, USAGE, XwinError
from xwincli.records import Group, Judgement, encode
from xwincli.settings import flag, group

if TYPE_CHECKING:
    from xwincli.judges import Judge
    from xwincli.protocols.compare import Count, Entry


@dataclass(kw_only=True)
class Config:
    """Options of ``xwin eval compare``."""

    files: list[str] = flag(help="groups, one file a model; the first is the baseline", positional=True)
    out: str = flag(help="folder for the judgements, ratings and eval.json")
    names: list[str] = flag([], "the models' names, repeated or with commas; else from the file names")
    options: judges.Options = group(judges.Options)
    all_pairs: bool = flag(False, "play every model against every other, not only against the first")
    common: bool = flag(False, "go on with the prompts that all files have")
    ignore_system: bool = flag(False, "join prompts without their system messages: two system prompts on one model")
    rounds: int = flag(2000, "bootstrap resamples", low=100)
    seed: int = flag(0, "of the bootstrap and of the judge")
    force: bool = flag(False, "make it anew even if it is up to date", execution=True)
    place: settings.Device = group(settings.Device)


def model_names(files: Sequence[str], given: Sequence[str]) -> list[str]:
    """A name for each file: the given ones, or file names up to their first dot.

    Raises:
        XwinError: too few files, not one name a file, a name twice, or one that cannot name a file.
    """
    from xwincli.protocols import entries

    if len(files) < 2:
        raise XwinError("a comparison needs two files at least", "the first is the baseline", USAGE)
    names = entries.names(files, given)
    if bad := next((n for n in names if "/" in n or n.startswith(".")), None):
        raise XwinError(f"--names: {bad!r} cannot name a file", "", USAGE)
    return names


# -- asking


@dataclass
class Judged:
    """What the judge said: judgements by the numbers of two models, and prompts that have no verdict."""

    games: dict[tuple[int, int], list[Judgement]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def without_failed(self) -> None:
        """Leave out the judgements of prompts that failed anywhere: figures are of the same prompts for all."""
        self.games = {k: [j for j in rows if j.prompt_id not in self.failed] for k, rows in self.games.items()}


def _able(work: Callable[[], Iterator[int]], advance: Callable[[int], None]) -> bool:
    """Do the work; False if the judge says that it cannot do such work at all."""
    try:
        for count in work():
            advance(count)
    except XwinError as e:
        if e.code != USAGE:
            raise
        say(f"eval compare: {e.message}")
        return False
    return True


def _judged(judge: Judge, entries: Sequence[Entry], prompts: Sequence[str], all_pairs: bool) -> Judged:
    """Rate every answer, then play every later model against the first, or all against all."""
    from xwincli.protocols import compare

    judged, answers = Judged(), sum(len(entries[0].groups[p].responses) for p in prompts)
    played = list(combinations(range(len(entries)), 2)) if all_pairs else [(0, i) for i in range(1, len(entries))]
    for r in (r for e in entries for p in prompts for r in e.groups[p].responses):
        r.scores.pop(compare.GOLD, None)  # a comparison has one judge

    def todo() -> list[str]:
        return [p for p in prompts if p not in judged.failed]

    def ratings() -> Iterator[int]:
        for e in entries:
            yield from compare.rate(judge, e, todo(), judged.failed)

    def verdicts() -> Iterator[int]:
        for a, b in played:
            rows = judged.games[a, b] = []
            for judgement in compare.play(judge, entries[a], entries[b], todo(), judged.failed):
                rows.append(judgement)
                yield 1

    with progress("eval compare", answers * (len(entries) + len(played)), "verdicts") as bar:
        rates = _able(ratings, bar.advance)
        if not _able(verdicts, bar.advance):
            if not rates:
                raise XwinError(f"the judge {judge.name} neither rates nor compares", "see xwin judge --help", USAGE)
            for a, b in played:
                judged.games[a, b] = list(compare.play_ratings(judge, entries[a], entries[b], todo()))
    judged.without_failed()
    return judged


def _read(config: Config) -> tuple[list[Entry], list[str], dict[str, list[str]]]:
    """The files joined on their prompts, the shared prompt ids, and what each file lacks."""
    from xwincli import formats
    from xwincli.protocols import compare

    named = zip(model_names(config.files, config.names), config.files, strict=True)
    apart = config.ignore_system
    entries = [compare.entry(n, f, formats.read([f], Group), ignore_system=apart) for n, f in named]
    prompts, missing = compare.join(entries, config.common)
    for name, ids in missing.items():
        warn(f"{name}: {len(ids)} prompts are missing there and left out: {', '.join(ids[:5])}")
    return entries, prompts, missing


# -- counting and writing


def _models(
    entries: Sequence[Entry], prompts: Sequence[str], judged: Judged, count: Count, proxies: Sequence[str]
) -> list[dict[str, Any]]:
    """Every model's figures, its figures against the first, and its problematic prompts."""
    from xwincli.protocols import compare, problems

    models = [compare.standing(e, prompts, count, proxies) for e in entries]
    models[0] |= {"verdict": "baseline", "problems": problems.find(entries[0], prompts)}
    for i, (model, e) in enumerate(zip(models[1:], entries[1:], strict=True), 1):
        played = judged.games[0, i]
        model.update(compare.against(entries[0], e, prompts, played, count))
        model["problems"] = problems.find(e, prompts, played)
    return models


def _write(out: Path, entries: Sequence[Entry], prompts: Sequence[str], judged: Judged) -> None:
    ratings = out / "ratings"
    for old in ratings.glob("*.jsonl"):
        if old.stem not in {e.name for e in entries}:
            old.unlink()
    for e in entries:
        jsonl.write(str(ratings / f"{e.name}.jsonl"), (e.groups[p] for p in prompts))
    jsonl.write(str(out / "judgements.jsonl"), (j for played in judged.games.values() for j in played))


def _write_failed(out: Path, base: Entry, failed: dict[str, str]) -> Path:
    """The prompts without a verdict, each with why; the file of an earlier run goes where there are none."""
    path = out / "failed.jsonl"
    if not failed:
        path.unlink(missing_ok=True)
        return path
    with jsonl.atomic(path) as f:
        f.writelines(jsonl.dumps({"error": why, "row": encode(base.groups[p])}) + "\n" for p, why in failed.items())
    return path


def _figure(e: dict[str, Any] | None, places: int = 1) -> str:
    if e is None or e["value"] is None:
        return "-"
    bounds = f" [{e['low']:.{places}f}, {e['high']:.{places}f}]" if e["low"] is not None else ""
    return f"{e['value']:.{places}f}{bounds}"


def _shown(evaluation: dict[str, Any]) -> Iterator[str]:
    """What stands on the terminal below the models' table: tests, categories, all pairs."""
    base, *others = evaluation["models"]
    rows = []
    for m in others:
        t, signs = m["tests"]["win_rate"], m["tests"]["win_rate"]["sign_test"]
        seen = "-" if t["detectable"] is None else f"{t['detectable']:.1f}"
        prompts = f"{signs['up']} / {signs['equal']} / {signs['down']}"
        rows.append([m["name"], prompts, f"{signs['p']:.3g}", f"{t['p']:.3g}", seen, _figure(m["gain"], 2)])
    header = [f"against {base['name']}", "prompts won / even / lost", "sign test p", "randomisation p"]
    yield table([*header, "seen from (points)", "gain in rating [95 %]"], rows)
    rows = [
        [f"{m['name']}: {name}", c["prompts"], _figure(c["win_rate"]), _figure(c["gain"], 2), c["verdict"]]
        for m in others
        for name, c in m["categories"].items()
    ]
    if rows:
        yield table(["by category", "prompts", "win rate [95 %]", "gain [95 %]", "verdict"], rows)
    names = ("all_fail", "all_equal", "judge_disagrees")
    rows = [[m["name"], *(len(m["problems"][k]) for k in names)] for m in evaluation["models"]]
    yield table(["problem prompts (in eval.json)", "all fail", "all equal", "judge disagrees with itself"], rows)
    if found := evaluation.get("all_pairs"):
        rows = [[p["b"], p["a"], _figure(p["win_rate"]), p["verdict"]] for p in found["pairs"]]
        yield table(["model", "against", "win rate [95 %]", "verdict"], rows)
        rows = [[s["name"], _figure(s["elo"], 0), _figure(s["win_rate"])] for s in found["strengths"]]
        yield table(["Bradley-Terry", "Elo [95 %]", f"chance against {base['name']}"], rows)


def _evaluation(
    config: Config, entries: Sequence[Entry], prompts: Sequence[str], judged: Judged, judge: Judge
) -> dict[str, Any]:
    """All figures of the prompts that have every verdict."""
    from xwincli.judges.rules import HIGH, LOW
    from xwincli.protocols import compare, league

    scale = (LOW, HIGH) if judge.name == "rules" else None
    count = compare.Count(compare.trim(entries, prompts), config.rounds, config.seed, scale)
    evaluation: dict[str, Any] = {
        "protocol": "compare",
        "judge": judge.name,
        "scale": scale,
        "prompts": len(prompts),
        "coverage": len(prompts) / (len(prompts) + len(judged.failed)),
        "n": count.n,
        "rounds": config.rounds,
        "seed": config.seed,
        "failed": judged.failed,
        "models": _models(entries, prompts, judged, count, () if config.options.judge == "reward" else ("rm",)),
    }
    if config.all_pairs:
        games = [j for played in judged.games.values() for j in played]
        evaluation["all_pairs"] = league.league(games, [e.name for e in entries], config.rounds, config.seed)
    return evaluation


def run(config: Config) -> None:
    """Read, judge, count, write; the manifest comes last."""
    from xwincli.protocols import compare, evaluation
    from xwincli.report.summary import standings

    started, out = time.time(), Path(config.out)
    judged_by = config.options.judge
    named = [config.options.rm, judged_by if Path(judged_by).is_dir() else ""]
    plan = evaluation.begin("eval compare", config, [*config.files, *filter(None, named)])
    if plan is None:
        return
    entries, every, missing = _read(config)
    compare.trim(entries, every)
    if odd := [e.name for e in entries if compare.unique(e)]:
        warn(f"{', '.join(odd)}: responses were drawn to be unique, so worst-of-n and best-of-n are off")
    judge = judges.find(config.options.judge, config.options, seed=config.seed, device=config.place)
    judged = _judged(judge, entries, every, config.all_pairs)
    manifest.beside(out).unlink(missing_ok=True)  # an interrupted run must not look finished
    failures = _write_failed(out, entries[0], judged.failed)
    prompts = [p for p in every if p not in judged.failed]
    why = next(iter(judged.failed.values()), "")
    if not prompts:
        raise XwinError(f"no prompt has a verdict (first: {why})", f"see {failures}", FAILED_ROWS)
    facts = {**_evaluation(config, entries, prompts, judged, judge), "missing": missing}
    _write(out, entries, prompts, judged)
    with jsonl.atomic(out / "eval.json") as f:
        f.write(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    say("\n\n".join([standings(facts), *_shown(facts)]))
    counts = {"prompts": len(prompts), "missing": len(judged.failed)}
    counts["judgements"] = sum(map(len, judged.games.values()))
    metrics = {"win_rate": {m["name"]: m["win_rate"]["value"] for m in facts["models"][1:]}, **judge.receipt()}
    manifest.write(out, plan, config, started=started, counts=counts, metrics=metrics)
    if judged.failed:
        text = f"n = {len(prompts)} of {len(every)} prompts: the others have no verdict and are left out (first: {why})"
        raise XwinError(text, f"they stand in {failures}; the same command asks again", FAILED_ROWS)
