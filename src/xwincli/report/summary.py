"""A finished run on a terminal: the table of models, three prompts with answers before and after."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from xwincli.console import table
from xwincli.records import Group

if TYPE_CHECKING:
    from xwincli.report.collect import Evaluation, Run

WIDTH = 100


def _figure(model: dict[str, Any], name: str, places: int = 2) -> str:
    e = model.get(name)
    return "-" if e is None or e["value"] is None else f"{e['value']:.{places}f}"


def _rate(model: dict[str, Any], name: str) -> str:
    e = model.get(name)
    if e is None:
        return "-"
    return f"{e['value']:.1f}" + (f" [{e['low']:.1f}, {e['high']:.1f}]" if e["low"] is not None else "")


def standings(evaluation: dict[str, Any]) -> str:
    """``eval.json`` as an aligned table, one model a line; intervals are 95 % over prompts."""
    n = evaluation["n"]
    header = [
        "model", "mean", "std", f"worst of {n}", f"best of {n}", "all checks", "ended", "words", "tokens",
        "win rate [95 %]", "length-controlled", "verdict",
    ]  # fmt: skip
    rows = []
    for m in evaluation["models"]:
        figures = [_figure(m, k) for k in ("mean", "std", "worst_of_n", "best_of_n", "all_checks", "ended")]
        lengths = [_figure(m, k, 1) for k in ("words", "tokens")]
        rates = [_rate(m, "win_rate"), _rate(m, "length_controlled")]
        rows.append([m["name"], *figures, *lengths, *rates, m["verdict"]])
    base = evaluation["models"][0]["name"]
    about = f"{evaluation['prompts']} prompts x {n} answers, judged by {evaluation['judge']}"
    return f"{table(header, rows)}\n{about}; wins are against {base}"


def spread_out(prompts: Sequence[str], count: int) -> list[str]:
    """``count`` prompts at even distances through the list: nobody picked them."""
    count = min(count, len(prompts))
    return [prompts[(2 * i + 1) * len(prompts) // (2 * count)] for i in range(count)]


def _shown(name: str, group: Group) -> str:
    r = group.responses[0]
    score = f" ({r.scores['gold']:.1f})" if "gold" in r.scores else ""
    cut = " …" if r.finish == "length" else ""
    lines = textwrap.wrap(" / ".join(r.text.split("\n")) + cut, WIDTH - 4) or ["(empty)"]
    return "\n".join([f"  {name}{score}", *(f"    {line}" for line in lines)])


def examples(evaluation: Evaluation, count: int = 3) -> str:
    """A few prompts, each with the first answer of the baseline and of the recipe's last model."""
    before, *others = evaluation.facts["models"]
    after = others[-1]
    blocks = []
    for p in spread_out(evaluation.prompts, count):
        groups = [(m["name"], evaluation.groups[m["name"]][p]) for m in (before, after)]
        asked = textwrap.fill(f"> {groups[0][1].prompt[-1]['content']}", WIDTH, subsequent_indent="> ")
        blocks.append("\n".join([asked, *(_shown(name, g) for name, g in groups)]))
    return "\n\n".join(blocks)


def terminal(run: Run) -> str:
    """All of it, the last line naming the page if there is one."""
    parts = []
    if evaluation := run.main:
        parts += [standings(evaluation.facts), examples(evaluation)]
    parts.append(f"report: {run.page}" if run.page else f"no page yet: xwin report --data {run.folder}")
    return "\n\n".join(parts)
