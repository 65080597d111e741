"""The report's page: one HTML text without scripts or outside resources; everything from data is escaped."""

from __future__ import annotations

import time
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from typing import Any

from xwincli import checks
from xwincli.console import clock
from xwincli.records import Group, Response
from xwincli.report import graph, reward_models, svg
from xwincli.report.collect import Evaluation, Run
from xwincli.report.summary import spread_out

PROMPTS = 12  # shown with every model's answer
LEADING = ("loss", "accuracy", "margin", "reward", "gold", "kl", "length", "lr", "grad_norm")
UNDRAWN = ("step", "seconds", "time")


def colour(index: int) -> int:
    """The colour of the model at a place of the table: grey for the baseline, seven others in turn."""
    return 0 if index == 0 else 1 + (index - 1) % 7


def section(anchor: str, title: str, about: str, body: str) -> str:
    """A section with its heading; empty where there is nothing to show."""
    if not body:
        return ""
    return f'<section id="{anchor}"><h2>{escape(title)}</h2><p>{about}</p>{body}</section>'


def _key(names: Iterable[str]) -> str:
    items = (f'<span><i class="c{colour(i)}"></i>{escape(n)}</span>' for i, n in enumerate(names))
    return f'<div class="key">{"".join(items)}</div>'


# -- the table of models


def _cell(e: dict[str, Any] | None, places: int, best: float | None = None) -> str:
    if e is None or e["value"] is None:
        return "<td>–</td>"
    bounds = f"{e['low']:.{places}f} – {e['high']:.{places}f}" if e["low"] is not None else ""
    kind = ' class="best"' if best is not None and e["value"] == best else ""
    return f"<td{kind}>{e['value']:.{places}f}<small>{bounds}</small></td>"


def _rate(e: dict[str, Any] | None, index: int) -> str:
    if e is None:
        return "<td>–</td>"
    if e["low"] is None:
        return f"<td>{e['value']:.1f}</td>"
    drawn = svg.interval(e["value"], e["low"], e["high"], colour=colour(index))
    return f"<td>{e['value']:.1f}<small>{e['low']:.1f} – {e['high']:.1f}</small>{drawn}</td>"


def models_table(facts: dict[str, Any]) -> str:
    """The models' table; the best of a column stands out, every figure has its interval below."""
    n = facts["n"]
    columns = [
        ("mean", "mean", 2, max), ("std", "std within prompt", 2, min),
        ("worst_of_n", f"worst of {n}", 2, max), ("best_of_n", f"best of {n}", 2, max),
        ("all_checks", "all checks", 2, max),
        ("ended", "ended by itself", 2, max), ("words", "words", 1, None), ("tokens", "tokens", 1, None),
    ]  # fmt: skip
    names = ["model", *(c[1] for c in columns), "win rate", "length-controlled"]
    rows = ["<tr>" + "".join(f"<th>{escape(c)}</th>" for c in names) + "</tr>"]
    for i, m in enumerate(facts["models"]):
        verdict = escape(m["verdict"])
        small = f'<small class="{verdict.split()[0]}">{verdict}</small>'
        cells = [f'<td class="name"><i class="c{colour(i)}"></i>{escape(m["name"])}{small}</td>']
        for key, _, places, pick in columns:
            known = [x[key]["value"] for x in facts["models"] if x.get(key) and x[key]["value"] is not None]
            cells.append(_cell(m.get(key), places, pick(known) if pick and known else None))
        cells += [_rate(m.get(k), i) for k in ("win_rate", "length_controlled")]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table>{"".join(rows)}</table></div>'


def _about_models(e: Evaluation) -> str:
    facts = e.facts
    out = len({p for ids in (facts.get("missing") or {}).values() for p in ids})
    lacks = f" {out} prompts that not every file has were left out." if out else ""
    odd = [m["name"] for m in facts["models"] if m.get("unique")]
    drawn = f" {', '.join(odd)}: drawn to be unique, so worst and best of n are off." if odd else ""
    text = (
        f"{facts['prompts']} prompts × {facts['n']} answers, judged by {facts['judge']}; wins are against "
        f"{e.models[0]}, 50 is a draw. Small figures are 95 % bootstrap intervals over prompts: one training "
        f"run each, so they do not tell how another seed would come out.{lacks}{drawn}"
    )
    return escape(text)


# -- curves and distributions


def best_of_n(e: Evaluation) -> str:
    """One chart for each way to pick: by the oracle, by a proxy score."""
    proxies = dict.fromkeys(p for m in e.facts["models"] for p in m["curves"])
    charts = []
    for proxy in proxies:
        series = []
        for i, m in enumerate(e.facts["models"]):
            points = m["curves"].get(proxy, [])
            bounds = [(p["low"], p["high"]) for p in points if p["low"] is not None]
            known = bounds if len(bounds) == len(points) else ()
            series.append(svg.Series(m["name"], [(p["n"], p["value"]) for p in points], colour(i), known))
        title = "picked by the judge itself (the bound)" if proxy == "oracle" else f"picked by {proxy}"
        charts.append(svg.lines(title, series, x_name="n samples", log2=True, width=480, height=280))
    body = "".join(charts)
    return f'{_key(e.models)}<div class="wide">{body}</div>' if body else ""


def distributions(e: Evaluation) -> str:
    """Histograms of every score, model by model on one scale, the baseline's outline over each."""
    scored = (n for g in e.groups[e.models[0]].values() for r in g.responses for n in r.scores)
    names = dict.fromkeys(["gold", *scored])
    parts = []
    for name in names:
        columns = {m: c for m in e.models if (c := e.scores(m, name))}
        every = [s for column in columns.values() for s in column]
        if not every:
            continue
        scale = e.facts.get("scale") if name == "gold" else None
        bounds = (scale[0], scale[1]) if scale else (min(every), max(every))
        tallest = max(max(svg.bins(c, bounds)) for c in columns.values())
        first = columns.get(e.models[0], [])
        charts = (
            svg.histogram(
                m,
                c,
                ghost=first if m != e.models[0] else (),
                bounds=bounds,
                tallest=tallest,
                colour=colour(e.models.index(m)),
            )
            for m, c in columns.items()
        )
        parts.append(f'<h3>{escape(name)}</h3><div class="grid">{"".join(charts)}</div>')
    return "".join(parts)


def curves(run: Run) -> str:
    """Every figure of every training run over its steps, small and side by side."""
    parts = []
    depth = graph.depths(run.artifacts)
    for name in sorted(run.curves, key=lambda n: (depth.get(n, 0), n)):
        rows = run.curves[name]
        columns: dict[str, list[tuple[float, float]]] = {}
        for i, row in enumerate(rows):
            for k, v in row.items():
                if k not in UNDRAWN and isinstance(v, int | float) and not isinstance(v, bool):
                    columns.setdefault(k, []).append((float(row.get("step", i)), float(v)))
        order = sorted(columns, key=lambda k: (LEADING.index(k) if k in LEADING else len(LEADING), k))
        shown = [k for k in order if len(columns[k]) > 1][:12]
        charts = "".join(svg.lines(k, [svg.Series(k, columns[k])], x_name="step", height=160) for k in shown)
        if charts:
            parts.append(f'<h3>{escape(name)}</h3><div class="grid">{charts}</div>')
    return "".join(parts)


# -- texts


def _answer(index: int, name: str, group: Group, r: Response) -> str:
    score = f"<span>{r.scores['gold']:.1f}</span>" if "gold" in r.scores else ""
    notes = []
    if group.checks:
        met = sum(checks.passes(c, r.text) for c in group.checks)
        notes.append(f"{met} of {len(group.checks)} checks")
    notes += ["cut off"] if r.finish == "length" else []
    head = f'<h4 class="c{colour(index)}">{escape(name)}{score}</h4>'
    small = f"<small>{' · '.join(notes)}</small>" if notes else ""
    return f'<div class="answer c{colour(index)}">{head}<div>{escape(r.text)}</div>{small}</div>'


def texts(e: Evaluation) -> str:
    """A dozen prompts with every model's first answer side by side."""
    parts = []
    for p in spread_out(e.prompts, PROMPTS):
        group = e.groups[e.models[0]][p]
        turns = [f"{m['role']}: {m['content']}" for m in group.prompt] if len(group.prompt) > 1 else []
        asked = "\n".join(turns) or str(group.prompt[0]["content"])
        wanted = "; ".join(checks.describe(c) for c in group.checks or [])
        small = f'<span class="wanted">{escape(wanted)}</span>' if wanted else ""
        cells = (_answer(i, m, e.groups[m][p], e.groups[m][p].responses[0]) for i, m in enumerate(e.models))
        head = f'<div class="ask">{escape(asked)}{small}</div>'
        parts.append(f'<article>{head}<div class="answers">{"".join(cells)}</div></article>')
    return "".join(parts)


# -- the page


def _seconds(run: Run) -> str:
    rows = [(a.path, a.seconds, f"{clock(a.seconds)} · {a.manifest.get('stage', '')}") for a in run.artifacts]
    rows.sort(key=lambda r: -r[1])
    return f'<div class="scroll">{svg.bars(rows)}</div>' if rows else ""


def _footer(run: Run) -> str:
    def every(*values: Any) -> str:
        return ", ".join(dict.fromkeys(str(v) for v in values if v not in (None, "")))

    made = [a.manifest for a in run.artifacts]
    machines = [" ".join(f"{k}={v}" for k, v in (m.get("machine") or {}).items()) for m in made]
    facts = {
        "xwincli": every(*(m.get("xwin") for m in made)),
        "seeds": every(*(m.get("config", {}).get("seed") for m in made)),
        "machine": every(*machines),
        "started": every(min((m["started"] for m in made if m.get("started")), default="")),
        "work": clock(sum(a.seconds for a in run.artifacts)),
        "folder": run.folder.name,
    }
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items() if v)
    return f"<footer><dl>{rows}</dl></footer>"


def render(run: Run, title: str = "") -> str:
    """The whole page.

    Args:
        run: from ``collect.collect``.
        title: of the page; the run folder's name if left out.
    """
    title = title or f"Alignment run: {run.folder.resolve().name}"
    total = clock(sum(a.seconds for a in run.artifacts))
    sections: list[tuple[str, str, str, str]] = []
    for e in sorted(run.evaluations, key=lambda e: e is not run.main):
        name = f"Models ({e.path})" if len(run.evaluations) > 1 else "Models"
        sections.append((f"models-{len(sections)}", name, _about_models(e), models_table(e.facts)))
    made = "Each box is an artifact with its stage and time, below what it was made from; dashed: inputs."
    flow = f'<div class="scroll">{graph.draw(run.artifacts)}</div>'
    sections.append(("made", "What was made from what", made, flow))
    sections.append(("training", "Training", "Every logged figure over the steps of each run.", curves(run)))
    sections.append(("rewards", "Reward models", reward_models.ABOUT, reward_models.section(run.audits)))
    if main := run.main:
        about = "Expected rating of the answer picked among n samples (unbiased); bands are 95 % intervals."
        sections.append(("best", "Best of n", about, best_of_n(main)))
        about = "Share of answers by score; the line is the baseline's outline, the dotted one the mean."
        sections.append(("scores", "Scores", about, distributions(main)))
        about = "Prompts at even distances through the list, each model's first answer: nothing is picked."
        sections.append(("answers", "Answers side by side", about, texts(main)))
    sections.append(("time", "Where the time goes", f"{total} of work in all, by artifact.", _seconds(run)))
    sections = [s for s in sections if s[3]]
    links = "".join(f'<a href="#{anchor}">{escape(name)}</a>' for anchor, name, _, _ in sections)
    style = files("xwincli.report").joinpath("style.css").read_text(encoding="utf-8")
    stamp = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    lead = f"<p>{len(run.artifacts)} artifacts, {total} of work; written {stamp} from its manifests.</p>"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>'
        f"<body><header><h1>{escape(title)}</h1>{lead}<nav>{links}</nav></header>"
        f"<main>{''.join(section(*s) for s in sections)}</main>{_footer(run)}</body></html>\n"
    )
