"""A reward model's audit for people: a table, what to be warned of and how to mend it, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from xwincli.console import table
from xwincli.report import svg
from xwincli.report.collect import Artifact

Audit = Mapping[str, Any]

ERROR = 0.05  # calibration error above which a clear verdict is worth a warning
TASTE = 0.5  # |correlation| of reward and length within prompts above which length decides too much
ABOUT = (
    "Agreement with the judge on comparisons, beside a ruler that prefers the longer answer. Dots are means with "
    "95 % intervals over prompts; a tie counts half. r is Pearson's correlation of rewards within prompts."
)


def _number(value: float | None, places: int = 3) -> str:
    return "–" if value is None else f"{value:.{places}f}"


def _bounds(e: Mapping[str, float | None]) -> str:
    return f"{e['low']:.3f} – {e['high']:.3f}" if e["low"] is not None else ""


# -- text


def text(audit: Audit) -> str:
    """The audit as two aligned tables: the figures, and the accuracy bin by bin beside the ruler's."""
    c, within = audit["calibration"], audit["length"]["characters"]["within"]
    figures = [
        ["accuracy", _number(audit["accuracy"]["value"]), _bounds(audit["accuracy"])],
        ["ruler: the longer answer", _number(audit["ruler"]["value"]), _bounds(audit["ruler"])],
        ["lead over the ruler", _number(audit["lead"]["value"]), _bounds(audit["lead"])],
        ["calibration error", _number(c["expected_error"]), ""],
        ["Brier score (0.25 is chance)", _number(c["brier"]), ""],
        ["log loss (0.693 is chance)", _number(c["log_loss"]), ""],
        ["temperature that fits best", _number(c["temperature"]), ""],
        ["r(reward, length) within prompts", _number(within["pearson"]), ""],
        ["r(reward, rating) within prompts", _number(audit["rating"]["pearson"]), ""],
    ]
    bins = [[f"{row['name']} than the rejected" if row["name"] != "about equal" else "about equally long", *_row(row)]
            for row in audit["by_length"]]  # fmt: skip
    bins += [[f"margin {_span(row)}", *_row(row)] for row in audit["by_margin"]]
    about = f"audit on {audit['pairs']} pairs of {audit['prompts']} prompts"
    about += f", {audit['ties']} ties" if audit["ties"] else ""
    first = table([about, "value", "95 %"], figures)
    return f"{first}\n\n{table(['the chosen answer is', 'pairs', 'accuracy', 'ruler'], bins)}" if bins else first


def _row(row: Mapping[str, Any]) -> list[str]:
    return [str(row["n"]), _number(row["accuracy"]["value"]), _number(row["ruler"]["value"])]


def _span(row: Mapping[str, Any]) -> str:
    low, high = svg.number(row["from"]), svg.number(row["to"])
    return low if low == high else f"{low} to {high}"


def warnings(audit: Audit) -> list[tuple[str, str]]:
    """What is wrong with a reward model, each with what helps."""
    found = []
    lead, accuracy, ruler = audit["lead"], audit["accuracy"]["value"], audit["ruler"]["value"]
    if lead["value"] is not None and (lead["value"] if lead["low"] is None else lead["low"]) <= 0:
        beaten = "is not better" if lead["value"] <= 0 else "is not clearly better"
        found.append((
            f"the reward model {beaten} than preferring the longer answer ({accuracy:.3f} against {ruler:.3f})",
            "train on more prompts, or audit on more: a larger --valid, or xwin audit rm on other pairs",
        ))  # fmt: skip
    r = audit["length"]["characters"]["within"]["pearson"]
    if r is not None and abs(r) > TASTE:
        way = "longer" if r > 0 else "shorter"
        found.append((
            f"within a prompt the reward is mostly length (r = {r:.2f}): {way} answers win",
            f"train on pairs in which the chosen answer is not mostly the {way} one; compare with length held equal",
        ))  # fmt: skip
    c = audit["calibration"]
    if c["verdict"] in ("overconfident", "underconfident") and c["expected_error"] > ERROR:
        train = "fewer --epochs or --smoothing 0.1" if c["verdict"] == "overconfident" else "more --epochs or more --lr"
        known = f"divide rewards by {c['temperature']:.2f}, or train with {train}" if c["temperature"] else ""
        found.append((
            f"reward differences are {c['verdict']} (calibration error {c['expected_error']:.3f})",
            known or f"no scale mends them: {c['why']}",
        ))  # fmt: skip
    return found


# -- pictures


def _tip(name: str, row: Mapping[str, Any], e: Mapping[str, float | None], unit: str = "pairs") -> str:
    bounds = f" ({_bounds(e)})" if e["low"] is not None else ""
    return f"{name}: {_number(e['value'])}{bounds}, {row['n']} {unit}"


def _agreement(title: str, rows: Sequence[Mapping[str, Any]], names: Sequence[str], x_name: str) -> str:
    """Accuracy of the reward model and of the ruler, bin by bin."""
    drawn = []
    for i, (row, name) in enumerate(zip(rows, names, strict=True)):
        for shift, who, colour, label in ((-0.09, "ruler", 0, "ruler"), (0.09, "accuracy", 1, "reward model")):
            e = row[who]
            tip = _tip(f"{label}, {name}", row, e)
            drawn.append(svg.Point(i + shift, e["value"], e["low"], e["high"], colour, tip))
    ends = (-0.5, len(rows) - 0.5)
    notes = [(i, f"{row['n']} pair{'s' if row['n'] != 1 else ''}") for i, row in enumerate(rows)]
    guide = [(x, 0.5) for x in ends]
    return svg.points(title, drawn, x=ends, x_marks=list(enumerate(names)), notes=notes, guide=guide, x_name=x_name)


def _reliability(rows: Sequence[Mapping[str, Any]]) -> str:
    """Confidence against agreement: on the dotted line a reward difference means the chance it claims."""
    most = max((row["n"] for row in rows), default=1)
    drawn, counts = [], []
    for row in rows:
        e, confidence = row["agreement"], row["confidence"]["value"]
        tip = _tip(f"confidence {confidence:.2f}, agreement", row, e)
        drawn.append(svg.Point(confidence, e["value"], e["low"], e["high"], 1, tip))
        at = min(int((confidence - 0.5) * 20), 9) / 20 + 0.5
        counts.append((at, at + 0.05, row["n"] / most))
    marks = [(x / 10, svg.number(x / 10)) for x in range(5, 11)]
    guide = [(0.5, 0.5), (1.0, 1.0)]
    return svg.points(
        "Calibration: how often the judge agrees", drawn, x=(0.5, 1), x_marks=marks, guide=guide, counts=counts,
        x_name="confidence: sigmoid of the reward difference",
    )  # fmt: skip


def _taste(rows: Sequence[Mapping[str, Any]]) -> str:
    """Mean reward of the responses by their length."""
    at = [(row["characters"]["value"], row["reward"]["value"]) for row in rows]
    known = [(r["reward"]["low"], r["reward"]["high"]) for r in rows if r["reward"]["low"] is not None]
    series = svg.Series("mean reward", at, 1, known if len(known) == len(at) else ())
    title = "Mean reward by length of the answer"
    return svg.lines(title, [series], x_name="characters", width=480, height=260) if len(at) > 1 else ""


def _charts(audit: Audit) -> str:
    lengths = [row["name"] for row in audit["by_length"]]
    margins = [_span(row) for row in audit["by_margin"]]
    parts = [
        _agreement("Accuracy by length of the chosen answer", audit["by_length"], lengths, "than the rejected one"),
        _agreement("Accuracy by the judge's margin", audit["by_margin"], margins, "margin"),
        _reliability(audit["calibration"]["bins"]),
        _taste(audit["reward_by_length"]),
    ]
    key = '<div class="key"><span><i class="c1"></i>reward model</span><span><i class="c0"></i>ruler</span></div>'
    return f'{key}<div class="wide">{"".join(parts)}</div>'


def _cell(e: Mapping[str, float | None]) -> str:
    return f"<td>{_number(e['value'])}<small>{_bounds(e)}</small></td>"


def _table(audits: Sequence[tuple[Artifact, Audit]]) -> str:
    names = [
        "reward model", "pairs", "accuracy", "ruler", "lead over it", "calibration error", "Brier", "log loss",
        "temperature", "r with length", "r with rating",
    ]  # fmt: skip
    rows = ["<tr>" + "".join(f"<th>{n}</th>" for n in names) + "</tr>"]
    for a, audit in audits:
        c = audit["calibration"]
        small = f"<small>{escape(c['verdict'])}</small>" if c["verdict"] not in ("fits", "unknown") else ""
        figures = [c["brier"], c["log_loss"], c["temperature"]]
        figures += [audit["length"]["characters"]["within"]["pearson"], audit["rating"]["pearson"]]
        cells = [
            f"<td>{escape(a.path)}</td>",
            f"<td>{audit['pairs']}<small>{audit['prompts']} prompts</small></td>",
            *(_cell(audit[k]) for k in ("accuracy", "ruler", "lead")),
            f"<td>{_number(c['expected_error'])}{small}</td>",
            *(f"<td>{_number(v)}</td>" for v in figures),
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table>{"".join(rows)}</table></div>'


def section(audits: Sequence[tuple[Artifact, Audit]]) -> str:
    """All audits of a run, those made on training first: a table, then each one's warnings and pictures."""
    audits = sorted(audits, key=lambda found: found[0].manifest.get("stage") == "audit rm")
    parts = [_table(audits)] if audits else []
    for a, audit in audits:
        *data, rm = a.sources or [""]
        on = f": {rm} on {', '.join(data)}" if a.manifest.get("stage") == "audit rm" else ""
        listed = "".join(f"<li>{escape(what)} <span>— {escape(mend)}</span></li>" for what, mend in warnings(audit))
        parts.append(f"<h3>{escape(a.path + on)}</h3>")
        parts.append(f'<ul class="warnings">{listed}</ul>' if listed else "")
        parts.append(_charts(audit))
    return "".join(parts)
