"""Evaluate best-of-n: what a reward model's pick among n responses is worth by a gold score it does not know.

    xwin eval bon --data rated.jsonl --scores rm --gold gold --out bon

Data are groups with both scores: `xwin score` writes a reward model's, `xwin judge --rate gold` a judge's ratings. For
each of `--scores` the expected gold of its pick among n (without bias, from all N >= n responses), beside the oracle's,
which picks by gold. The horizontal axis is log n - (n-1)/n, an upper bound of the KL from the base, not its value.

Over-optimisation (arXiv 2210.10760): R_bon = d(a - b d) with d the root of that bound is fitted to the gain over n = 1,
with the residual, the intervals of a and b, and a sentence of what the fit says, if anything. `--rl FILE` fits
R_RL = d(a - b log d) to checkpoints trained against the reward model: rows of `kl` (nats) and `gold` (mean).

A gold that comes from the model that selects is refused. `--out` gets `eval.json`, `bon.svg` and, with each prompt's
picks, `results.jsonl`. Bands and intervals are 95 %, bootstrapped over prompts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from xwincli.console import say, table, warn
from xwincli.errors import USAGE, XwinError
from xwincli.records import Group
from xwincli.settings import flag


@dataclass(kw_only=True)
class Config:
    """Options of ``xwin eval bon``."""

    data: list[str] = flag(["-"], "groups with scores: files, globs, hf:NAME, or - for standard input; repeatable")
    scores: list[str] = flag(["rm"], "names of the scores that select; repeatable")
    gold: str = flag("gold", "name of the score that counts: another reward model's, or a judge's rating")
    rl: str = flag("", "checkpoints of a policy trained against the reward model: rows of kl and gold")
    out: str = flag(help="folder for eval.json, results.jsonl and bon.svg")
    rounds: int = flag(2000, "bootstrap resamples", low=100)
    seed: int = flag(0, "of the bootstrap")
    force: bool = flag(False, "make it anew even if it is up to date", execution=True)


def run(config: Config) -> None:
    """Read, count, fit, draw, write; the manifest comes last."""
    from xwincli.protocols import bon, evaluation

    started = time.time()
    if len(set(config.scores)) < len(config.scores) or "oracle" in config.scores:
        raise XwinError(
            "--scores names a score twice, or 'oracle'", "each selecting score has a name of its own", USAGE
        )
    plan = evaluation.begin("eval bon", config, [*config.data, *([config.rl] if config.rl else [])])
    if plan is None:
        return
    groups = list(evaluation.records(evaluation.rows(config.data), Group))
    if bon.unique(groups):
        warn("responses were drawn to be unique, so they are not independent: best-of-n and its KL bound are off")
    found = bon.scored(groups, config.scores, config.gold)
    facts: dict[str, Any] = {"protocol": "best-of-n", **bon.figures(found, config.scores, config.gold, *_draws(config))}
    if config.rl:
        points = bon.rl_points(list(evaluation.rows([config.rl])))
        base = facts["curves"]["oracle"][0]["value"]
        facts["rl"] = {"points": [{"kl": kl, "gold": gold} for kl, gold in points], **bon.rl_fit(points, base)}
    facts |= {"unique": bon.unique(groups), "rounds": config.rounds, "seed": config.seed}
    say(_summary(facts))
    evaluation.finish(
        plan,
        config,
        facts,
        bon.result_rows(found, config.scores, config.gold),
        started=started,
        counts={"total": len(groups), "missing": 0},
        metrics={name: points[-1]["value"] for name, points in facts["curves"].items()},
        pictures={"bon.svg": _picture(facts)},
    )


def _draws(config: Config) -> tuple[int, int]:
    return config.rounds, config.seed


def _summary(facts: dict[str, Any]) -> str:
    """The curves side by side as a table, and what each fit says."""
    from xwincli.protocols.evaluation import bounds

    curves = facts["curves"]
    head = [f"gold of the pick, {facts['prompts']} prompts", "KL ≤", *(x for name in curves for x in (name, "95 %"))]
    rows = []
    for points in zip(*curves.values(), strict=True):
        cells = [cell for p in points for cell in bounds(p)]
        rows.append([f"best of {points[0]['n']}", f"{points[0]['kl_upper_bound']:.2f}", *cells])
    told = [table(head, rows)]
    fits = {f"best-of-n by {name}": fit for name, fit in facts["fits"].items()}
    for name, fit in {**fits, **({"rl": facts["rl"]} if "rl" in facts else {})}.items():
        numbers = f" (a {fit['a']:.3g}, b {fit['b']:.3g}, residual {fit['residual']:.2g})" if "a" in fit else ""
        told.append(f"{name}: {fit['says']}{numbers}")
    return "\n".join(told)


def _picture(facts: dict[str, Any]) -> str:
    """The curves over the KL bound as one SVG file that stands by itself."""
    from importlib.resources import files

    from xwincli.protocols import bon
    from xwincli.report import svg

    drawn = [
        svg.Series(name, points, i, bounds) for i, (name, points, bounds) in enumerate(bon.series(facts["curves"]))
    ]
    width, height = 520.0, 320.0
    title = f"{facts['gold']} of the pick among n = 1 … {facts['n']}"
    picture = svg.lines(title, drawn, x_name=facts["kl_axis"], width=width, height=height)
    legend = []
    for i, s in enumerate(drawn):
        y = 40 + 15 * i
        legend.append(f'<circle class="dot c{i % svg.COLOURS}" cx="58" cy="{y - 4}" r="3.5"/>')
        legend.append(svg.text(66, y, s.name))
    style = files("xwincli.report").joinpath("style.css").read_text(encoding="utf-8")
    head, _, rest = picture.partition(">")
    head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f"{head}><style>{style}</style>{rest.removesuffix('</svg>')}{''.join(legend)}</svg>\n"
