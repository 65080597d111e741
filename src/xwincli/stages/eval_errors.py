"""How models fail: every answer is tagged by rule, failing ones are put into clusters, and models are compared.

`xwin eval errors base.jsonl dpo.jsonl --out DIR` writes `DIR/tags.jsonl` (a row an answer) and `DIR/eval.json`.
Tags are empty, cut off, loop, refusal, language switch, format break and prompt echo; an answer fails if it has one,
misses a demand of its prompt, or has less than `--below` of `--score`. Failing answers of all files are clustered by
their words (TF-IDF and k-means). From the second file on each tag and cluster has its lift over the first: the ratio of
their shares of answers with a 95 % interval, Fisher's exact p of prompts where it comes, and p corrected by Holm.
Tags are rules for English and its kin: they miss, and they err. Read the examples.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xwincli import jsonl, manifest
from xwincli.console import say, table
from xwincli.errors import USAGE, XwinError
from xwincli.settings import flag


@dataclass(kw_only=True)
class Config:
    """Options of ``xwin eval errors``."""

    files: list[str] = flag(help="groups, one file a model; later ones are compared with the first", positional=True)
    out: str = flag(help="folder for eval.json and tags.jsonl")
    names: list[str] = flag([], "the models' names, repeated or with commas; else from the file names")
    score: str = flag("", "with --below: the responses' score to read, such as gold or rm")
    below: float | None = flag(None, "an answer with less than this of --score fails")
    clusters: int = flag(8, "of failing answers at most; each is to hold five", low=1)
    common: bool = flag(False, "go on with the prompts that all files have")
    rounds: int = flag(2000, "bootstrap resamples", low=100)
    seed: int = flag(0, "of the clusters and the bootstrap")
    force: bool = flag(False, "make it anew even if it is up to date", execution=True)


def run(config: Config) -> None:
    """Tag, cluster, count, write; the manifest comes last."""
    from xwincli.protocols import compare, entries, error_patterns, evaluation, stability

    if bool(config.score) != (config.below is not None):
        raise XwinError("--score and --below go together", "an answer below that score fails", USAGE)
    started = time.time()
    plan = evaluation.begin("eval errors", config, config.files)
    if plan is None:
        return
    ready = stability.has_scores(config.score) if config.score else lambda group: None
    models = entries.read(config.files, config.names, ready)
    prompts, missing = entries.join(models, config.common)
    n = compare.trim(models, prompts)
    examined = [(e.name, error_patterns.examine(e, prompts, config.score, config.below or 0.0)) for e in models]
    cases = [c for _, found in examined for c in found]
    clusters = error_patterns.cluster_failing(models, cases, config.clusters, config.seed)
    failing = {name: sum(c.failing for c in own) / len(own) for name, own in examined}
    facts: dict[str, Any] = {
        "protocol": "errors",
        "prompts": len(prompts),
        "n": n,
        "missing": missing,
        "models": [{"name": e.name, "file": e.file, "failing": failing[e.name]} for e in models],
        "patterns": error_patterns.patterns(examined, prompts, clusters, rounds=config.rounds, seed=config.seed),
        "rounds": config.rounds,
        "seed": config.seed,
    }
    _write(Path(config.out), facts, [c.row() for c in cases])
    say(text(facts))
    counts = {"prompts": len(prompts), "answers": len(cases), "failing": sum(c.failing for c in cases)}
    manifest.write(config.out, plan, config, started=started, counts=counts, metrics={"failing": failing})


def _write(out: Path, facts: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    manifest.beside(out).unlink(missing_ok=True)  # an interrupted run must not look finished
    with jsonl.writer(str(out / "tags.jsonl")) as w:
        for row in rows:
            w.write(row)
    with jsonl.atomic(out / "eval.json") as f:
        f.write(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def _share(e: dict[str, Any]) -> str:
    interval = "" if e["low"] is None else f" [{100 * e['low']:.1f}, {100 * e['high']:.1f}]"
    return f"{100 * e['value']:.1f}{interval}"


def _rows(patterns: list[dict[str, Any]]) -> list[list[str]]:
    rows = []
    for found in patterns:
        row = [found["pattern"]]
        for i, m in enumerate(found["models"]):
            row.append(_share(m["share"]))
            if e := m.get("lift"):
                row += [f"{e['value']:.3g} [{e['low']:.3g}, {e['high']:.3g}]", f"{m['p']:.2g}", f"{m['p_holm']:.2g}"]
            elif i:
                row += ["-", "-", "-"]
        rows.append(row)
    return rows


def text(facts: dict[str, Any]) -> str:
    """``eval.json`` as two tables, tags and clusters, with each cluster's words and the answers nearest its middle."""
    names = [m["name"] for m in facts["models"]]
    heads = [f"{names[0]} %"] + [h for name in names[1:] for h in (f"{name} %", "lift", "p", "Holm")]
    tags = [p for p in facts["patterns"] if "terms" not in p]
    clusters = [p for p in facts["patterns"] if "terms" in p]
    parts = [table(["tag", *heads], _rows(tags))]
    if clusters:
        parts.append(table(["failing answers", *heads], _rows(clusters)))
    for c in clusters:
        near = ", ".join(f"{a['name']} {a['prompt_id']}#{a['index']}" for a in c["nearest"])
        parts.append(f"{c['pattern']} ({c['size']} answers): {', '.join(c['terms'])}\n  {near}")
    failing = ", ".join(f"{m['name']} {100 * m['failing']:.1f} %" for m in facts["models"])
    about = f"{facts['prompts']} prompts; failing answers: {failing}"
    return "\n".join([*parts, f"{about}; lift is over {names[0]}; p counts prompts"])
