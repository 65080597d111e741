"""How steady a model's answers are: one or more files of groups, k answers a prompt, each answer with a score.

`xwin eval stability sft.jsonl rs.jsonl dpo.jsonl --score rm --out DIR` writes `DIR/eval.json`, the prompts' figures in
`DIR/results.jsonl`, and a picture, `DIR/stability.svg`. Without `--score` the judge rates. For each model: mean, spread
within a prompt, worst-of-n and best-of-n, agreement of equal answers, consistency 1 − spread / (high − low) where the
scale is known, and pass^k (all of k meet every check) beside pass@k (one does); from the second file on what changed
against the first, prompt by prompt. Alignment that mostly stabilises lifts mean and worst-of-n, and leaves best-of-n
where it was. Every figure is a mean over prompts with a 95 % bootstrap interval over prompts.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwincli import judges, settings
from xwincli.console import progress, say, table, warn
from xwincli.errors import FAILED_ROWS, USAGE, XwinError
from xwincli.settings import flag, group

if TYPE_CHECKING:
    from xwincli.judges import Judge
    from xwincli.protocols.compare import Entry

COLUMNS = ("mean", "worst_of_n", "best_of_n", "std", "consistency", "agreement")
DRAWN = (("best_of_n", "best of {n}", 3), ("mean", "mean", 1), ("worst_of_n", "worst of {n}", 5))


@dataclass(kw_only=True)
class Config:
    """Options of ``xwin eval stability``."""

    files: list[str] = flag(help="groups, one file a model; later ones are compared with the first", positional=True)
    out: str = flag(help="folder for eval.json and stability.svg")
    names: list[str] = flag([], "the models' names, repeated or with commas; else from the file names")
    score: str = flag("", "the responses' score to read, such as gold or rm; without it the judge rates")
    scale: str = flag("", "LOW,HIGH: the ends of the score's scale, for consistency; known for --judge rules")
    equal: str = flag(
        "exact", "answers that agree: the same text, or the same last number", choices=("exact", "numeric")
    )
    options: judges.Options = group(judges.Options)
    common: bool = flag(False, "go on with the prompts that all files have")
    rounds: int = flag(2000, "bootstrap resamples", low=100)
    seed: int = flag(0, "of the bootstrap and of the judge")
    force: bool = flag(False, "make it anew even if it is up to date", execution=True)
    device: settings.Device = group(settings.Device)


def _scale(config: Config) -> tuple[float, float] | None:
    if not config.scale:
        from xwincli.judges.rules import HIGH, LOW

        return (LOW, HIGH) if not config.score and config.options.judge == "rules" else None
    try:
        low, high = (float(x) for x in config.scale.split(","))
    except ValueError:
        raise XwinError(f"--scale is {config.scale!r}", "two numbers, such as 1,10", USAGE) from None
    if not low < high:
        raise XwinError(f"--scale is {config.scale!r}", "the first must be lower", USAGE)
    return low, high


def _read(config: Config) -> tuple[list[Entry], list[str], dict[str, list[str]]]:
    """The files joined on their prompts, the shared prompt ids, and what each file lacks."""
    from xwincli.protocols import compare, entries, stability

    ready = stability.has_scores(config.score) if config.score else lambda group: None
    models = entries.read(config.files, config.names, ready)
    prompts, missing = entries.join(models, config.common)
    if odd := [e.name for e in models if compare.unique(e)]:
        warn(f"{', '.join(odd)}: responses were drawn to be unique, so worst-of-n, best-of-n and agreement are off")
    return models, prompts, missing


def _rated(config: Config, models: list[Entry], prompts: list[str]) -> tuple[Judge, dict[str, str]]:
    """Have every answer rated; returns the judge and why prompts have no rating."""
    from xwincli.protocols import compare

    judge = judges.find(config.options.judge, config.options, seed=config.seed, device=config.device)
    failed: dict[str, str] = {}
    with progress("eval stability", sum(len(e.groups[p].responses) for e in models for p in prompts), "ratings") as bar:
        for e in models:
            for count in compare.rate(judge, e, prompts, failed):
                bar.advance(count)
    return judge, failed


def run(config: Config) -> None:
    """Read, have rated what has no score, count, draw, write; the manifest comes last."""
    from xwincli.protocols import compare, evaluation, stability

    started, scale = time.time(), _scale(config)
    if config.score and config.options != judges.Options():
        raise XwinError("--score reads scores that are there, a judge makes new ones", "leave one of them out", USAGE)
    judged_by = config.options.judge
    named = [config.options.rm, judged_by if Path(judged_by).is_dir() else ""]
    plan = evaluation.begin("eval stability", config, [*config.files, *filter(None, named)])
    if plan is None:
        return
    models, prompts, missing = _read(config)
    n = compare.trim(models, prompts)
    if n < 2:
        raise XwinError(f"{config.files[0]}: a prompt has one answer, which says nothing about spread", "sample --n 8")
    judge, failed = (None, {}) if config.score else _rated(config, models, prompts)
    counted = [p for p in prompts if p not in failed]
    if not counted:
        raise XwinError(f"no prompt has all its ratings (first: {next(iter(failed.values()))})", "", FAILED_ROWS)
    score = config.score or compare.GOLD
    count = stability.Count(score, n, scale, config.equal, config.rounds, config.seed)
    standings, rows = stability.standings(models, counted, count)
    facts = {
        "protocol": "stability",
        **asdict(count),
        "judge": judge and judge.name,
        "prompts": len(counted),
        "asked": len(prompts),
        "coverage": len(counted) / len(prompts),
        "missing": missing,
        "failed": failed,
        "models": standings,
    }
    say(text(facts))
    counts = {"total": len(prompts), "missing": len(failed)}
    metrics: dict[str, Any] = {name: {m["name"]: m[name]["value"] for m in standings} for name in ("mean", "std")}
    metrics |= judge.receipt() if judge else {}
    drawn = {"stability.svg": picture(facts)}
    evaluation.finish(plan, config, facts, rows, started=started, counts=counts, metrics=metrics, pictures=drawn)


# -- for people


def _cell(e: dict[str, Any] | None) -> str:
    if e is None or e["value"] is None:
        return "-"
    return f"{e['value']:.3g}" + ("" if e["low"] is None else f" [{e['low']:.3g}, {e['high']:.3g}]")


def text(evaluation: dict[str, Any]) -> str:
    """``eval.json`` as a table, one model a line, and a line of what changed for each later model."""
    n, models = evaluation["n"], evaluation["models"]
    heads = [c.replace("_", " ").replace("of n", f"of {n}") for c in COLUMNS]
    passes = [f"pass@{n}", f"pass^{n}"] if "pass_at_k" in models[0] else []
    rows = [
        [m["name"], *(_cell(m.get(c)) for c in COLUMNS)]
        + ([_cell(m["pass_at_k"][-1]), _cell(m["pass_hat_k"][-1])] if passes else [])
        for m in models
    ]
    by = f"judged by {evaluation['judge']}" if evaluation["judge"] else f"score {evaluation['score']}"
    lines = [table(["model", *heads, *passes], rows)]
    for m in models[1:]:
        moved = [(h, m["change"].get(c)) for h, c in zip(heads, COLUMNS, strict=True)]
        said = [f"{h} {e['verdict']} ({e['value']:+.3g})" for h, e in moved if e]
        lines.append(f"{m['name']} against {models[0]['name']}: {', '.join(said)}")
    return "\n".join([*lines, f"{evaluation['prompts']} prompts x {n} answers, {by}; intervals are 95 % over prompts"])


def picture(evaluation: dict[str, Any]) -> str:
    """Best-of-n, mean and worst-of-n of each model with their intervals, as an SVG file that stands by itself."""
    from importlib.resources import files

    from xwincli.report import svg

    models, n = evaluation["models"], evaluation["n"]
    series = [(title.format(n=n), colour, [m[name] for m in models]) for name, title, colour in DRAWN]
    known = [v for _, _, es in series for e in es for v in e.values() if v is not None]
    marks = svg.ticks(min(known), max(known), 5)
    x, y = (-0.4, len(models) - 0.2), (marks[0], marks[-1])
    drawn = [
        svg.Point(i, e["value"], e["low"], e["high"], colour, f"{models[i]['name']}: {title} {_cell(e)}")
        for title, colour, es in series
        for i, e in enumerate(es)
    ]
    names = [(i, m["name"]) for i, m in enumerate(models)]
    notes = [(i, f"spread {_cell(m['std']).split()[0]}") for i, m in enumerate(models)]
    width, height = 160.0 + 110 * len(models), 300.0
    by = evaluation["judge"] or evaluation["score"]
    chart = svg.points(
        f"{n} answers a prompt, {by}", drawn, x=x, y=y, x_marks=names, notes=notes, width=width, height=height
    )
    frame = svg.Frame(x, y, width, height, bottom=33)  # the one ``points`` draws in
    over, above = [], float("-inf")
    for title, colour, es in series:
        over.append(f'<path class="curve c{colour}" d="{frame.path([(i, e["value"]) for i, e in enumerate(es)])}"/>')
        above = max(above + 12, frame.py(es[-1]["value"]) + 3.5)
        over.append(svg.text(frame.px(len(models) - 1) + 9, above, title))
    colours, _, rules = files("xwincli.report").joinpath("style.css").read_text(encoding="utf-8").partition("* {")
    style = colours + "\n".join(line for line in rules.splitlines() if line.startswith(("svg", ".c")))
    head = f'<style>{style.replace("<", "&lt;")}</style><rect width="100%" height="100%" fill="var(--paper)"/>'
    opened = chart.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{head}", 1)
    return opened.replace("</svg>", "".join(over) + "</svg>") + "\n"
