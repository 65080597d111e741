"""Compare two or more models on the same prompts: each against the first, response by response.

`xwin eval compare base.jsonl rs.jsonl dpo.jsonl --out DIR` writes `DIR/judgements.jsonl`,
`DIR/ratings/NAME.jsonl` (the groups with `scores.gold`) and `DIR/eval.json`: for each model its mean rating,
the spread within a prompt, worst-of-n and best-of-n, share of answers that meet all checks and that ended by
themselves, lengths, win rate against the first file and the same with length held equal, and unbiased
best-of-n curves. Every figure is a mean over prompts with a 95 % bootstrap interval over prompts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwincli import jsonl, manifest, settings
from xwincli.console import progress, say, warn
from xwincli.errors import USAGE, XwinError
from xwincli.records import Group, Judgement
from xwincli.settings import flag

if TYPE_CHECKING:
    from xwincli.judges import Judge
    from xwincli.protocols.compare import Entry


@dataclass(kw_only=True)
class Config:
    """Options of ``xwin eval compare``."""

    files: list[str] = flag(help="groups, one file a model; the first is the baseline", positional=True)
    out: str = flag(help="folder for the judgements, ratings and eval.json")
    names: list[str] = flag([], "the models' names, repeated or with commas; else from the file names")
    judge: str = flag("rules", "who judges: rules or reward")
    rm: str = flag("", "the reward model of --judge reward; never the one that trained a model compared")
    common: bool = flag(False, "go on with the prompts that all files have")
    rounds: int = flag(2000, "bootstrap resamples", low=100)
    seed: int = flag(0, "of the bootstrap and of the judge")
    force: bool = flag(False, "make it anew even if it is up to date", execution=True)
    chat: settings.Chat = settings.group(settings.Chat)
    place: settings.Device = settings.group(settings.Device)


def model_names(files: Sequence[str], given: Sequence[str]) -> list[str]:
    """A name for each file: the given ones, or file names up to their first dot.

    Raises:
        XwinError: too few files, not one name a file, a name twice, or one that cannot name a file.
    """
    if len(files) < 2:
        raise XwinError("a comparison needs two files at least", "the first is the baseline", USAGE)
    names = [n.strip() for text in given for n in text.split(",")]
    names = names or [Path(f).name.split(".")[0] for f in files]
    if len(names) != len(files):
        raise XwinError(f"--names: {len(names)} names for {len(files)} files", "", USAGE)
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise XwinError(f"two files are called {twice!r}", "--names A,B,… tells them apart", USAGE)
    if bad := next((n for n in names if not n or "/" in n or n.startswith(".")), None):
        raise XwinError(f"--names: {bad!r} cannot name a file", "", USAGE)
    return names


def _judged(judge: Judge, entries: Sequence[Entry], prompts: Sequence[str]) -> list[list[Judgement]]:
    """Rate every answer, then play every later model against the first."""
    from xwincli.protocols import compare

    games: list[list[Judgement]] = [[] for _ in entries[1:]]
    one = sum(len(entries[0].groups[p].responses) for p in prompts)
    with progress("eval compare", one * (2 * len(entries) - 1), "verdicts") as bar:
        for e in entries:
            for rated in compare.rate(judge, e, prompts):
                bar.advance(rated)
        for e, played in zip(entries[1:], games, strict=True):
            for judgement in compare.play(judge, entries[0], e, prompts):
                played.append(judgement)
                bar.advance()
    return games


def _write(out: Path, entries: Sequence[Entry], prompts: Sequence[str], games: list[list[Judgement]]) -> None:
    ratings = out / "ratings"
    for old in ratings.glob("*.jsonl"):
        if old.stem not in {e.name for e in entries}:
            old.unlink()
    for e in entries:
        jsonl.write(str(ratings / f"{e.name}.jsonl"), (e.groups[p] for p in prompts))
    jsonl.write(str(out / "judgements.jsonl"), (j for played in games for j in played))


def _read(config: Config) -> tuple[list[Entry], list[str], dict[str, list[str]]]:
    """The files joined on their prompts, the shared prompt ids, and what each file lacks."""
    from xwincli import formats
    from xwincli.protocols import compare

    named = zip(model_names(config.files, config.names), config.files, strict=True)
    entries = [compare.entry(name, file, formats.read([file], Group)) for name, file in named]
    prompts, missing = compare.join(entries, config.common)
    for name, ids in missing.items():
        warn(f"{name}: {len(ids)} prompts are missing there and left out: {', '.join(ids[:5])}")
    return entries, prompts, missing


def run(config: Config) -> None:
    """Read, judge, count, write; the manifest comes last."""
    from xwincli import judges
    from xwincli.judges.rules import HIGH, LOW
    from xwincli.protocols import compare
    from xwincli.report.summary import standings

    started, out = time.time(), Path(config.out)
    if out.exists() and not out.is_dir():
        raise XwinError(f"{out}: is a file", "--out names a folder", USAGE)
    plan = manifest.plan("eval compare", config, [*config.files, *([config.rm] if config.rm else [])])
    if manifest.skip_if_current(out, plan, config.force):
        return
    entries, prompts, missing = _read(config)
    n = compare.trim(entries, prompts)
    if odd := [e.name for e in entries if compare.unique(e)]:
        warn(f"{', '.join(odd)}: responses were drawn to be unique, so worst-of-n and best-of-n are off")
    options = judges.Options(judge=config.judge, rm=config.rm, chat=config.chat)
    judge = judges.find(config.judge, options, seed=config.seed, device=config.place)
    games = _judged(judge, entries, prompts)
    scale = (LOW, HIGH) if config.judge == "rules" else None
    count = compare.Count(n, config.rounds, config.seed, scale)
    proxies = () if config.judge == "reward" else ("rm",)
    models = [compare.standing(e, prompts, count, proxies) for e in entries]
    models[0]["verdict"] = "baseline"
    for model, e, played in zip(models[1:], entries[1:], games, strict=True):
        model.update(compare.against(entries[0], e, prompts, played, count))
    evaluation: dict[str, Any] = {
        "protocol": "compare",
        "judge": judge.name,
        "scale": scale,
        "prompts": len(prompts),
        "n": n,
        "rounds": config.rounds,
        "seed": config.seed,
        "missing": missing,
        "models": models,
    }
    manifest.beside(out).unlink(missing_ok=True)  # an interrupted run must not look finished
    _write(out, entries, prompts, games)
    with jsonl.atomic(out / "eval.json") as f:
        f.write(json.dumps(evaluation, indent=1, ensure_ascii=False) + "\n")
    say(standings(evaluation))
    counts = {"prompts": len(prompts), "judgements": sum(map(len, games))}
    metrics = {m["name"]: m["win_rate"]["value"] for m in models[1:]}
    manifest.write(out, plan, config, started=started, counts=counts, metrics={"win_rate": metrics})
