"""Audit a judge: does it change its mind, favour a place, length or its own kin, and do people agree with it?

    xwin audit judge --data judgements.jsonl --labels people.jsonl --out audit

Reports how often a verdict flips when the answers change places, how often the first shown, the longer and the listed
answer wins, agreement with labels with and without ties and Cohen's kappa, and with itself: with the same comparisons
judged before (`--again FILE`) or asked once more (`--re-ask SHARE`, with `--judge` and its options). Intervals are 95 %
over prompts.

Data and labels are judgements of ours, preferences in any known format, or AlpacaEval's annotations.json. They are
joined by prompt and both answers' texts; a and b may have changed places, and several labels of one comparison count
by their mean. Flags are answers that are the same for many prompts or talk to the judge; `--answers` looks at more of
them, such as a model's outputs. `--out` is a folder for `audit.json`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwincli import formats, jsonl, judges, manifest, settings, sources
from xwincli.console import say, table, warn
from xwincli.errors import FAILED_ROWS, USAGE, XwinError
from xwincli.records import Group, Judgement
from xwincli.settings import flag, group

if TYPE_CHECKING:
    from xwincli.protocols.answer_flags import Said

AGAIN = 500  # added to the judge's seed when it is asked again: the same seed would give the reply it remembers


@dataclass(kw_only=True)
class Config:
    """Options of ``xwin audit judge``."""

    data: list[str] = flag(help="the judge's judgements: files or globs; repeatable")
    out: str = flag(help="folder for audit.json")
    labels: list[str] = flag([], "what people or another judge say of the same comparisons; repeatable")
    common: bool = flag(False, "leave out judgements without a label instead of refusing")
    again: list[str] = flag([], "the same judge's judgements from another run; repeatable")
    re_ask: float = flag(0.0, "share of the judgements to ask --judge for once more", low=0.0, high=1.0)
    answers: list[str] = flag([], "further answers to look at for flags: groups, model_outputs.json; repeatable")
    options: judges.Options = group(judges.Options)
    rounds: int = flag(2000, "bootstrap resamples", low=100)
    seed: int = flag(0, "of the bootstrap, of the share asked again and of the judge")
    force: bool = flag(False, "make it anew even if it is up to date", execution=True)
    place: settings.Device = group(settings.Device)


def _inputs(config: Config) -> list[str]:
    """Every file that is read; the judge's only if it is asked."""
    judge = config.options.judge
    asked = [config.options.rm, judge if Path(judge).is_dir() else ""] if config.re_ask else []
    read = sources.expand([*config.data, *config.labels, *config.again, *config.answers])
    return [*read, *filter(None, asked)]


def _asked_again(rows: Sequence[Judgement], config: Config) -> tuple[list[Judgement], dict[str, str]]:
    """A share of the comparisons put to the judge once more, in the same orders; those without a verdict and why."""
    from xwincli.judges import matches
    from xwincli.protocols import judge_audit
    from xwincli.protocols.compare import settle

    judge = judges.find(config.options.judge, config.options, seed=config.seed + AGAIN, device=config.place)
    if (named := {j.judge for j in rows}) != {judge.name}:
        warn(f"--data was judged by {', '.join(sorted(named))}, asked again is {judge.name}")
    some = judge_audit.share_of(rows, config.re_ask, config.seed)
    said = settle(lambda part: matches.compare(judge, part), [[judge_audit.match(j)] for j in some])
    again, failed = [], {}
    for j, answer in zip(some, said, strict=True):
        if isinstance(answer, XwinError):
            failed[j.id] = answer.message
        else:
            again += answer
    return again, failed


def _more(config: Config) -> Iterator[Said]:
    from xwincli.protocols.answer_flags import Said

    for name in sources.expand(config.answers):
        for g in formats.read([name], Group):
            yield from (Said(g.model or Path(name).name, g.prompt_id, r.text) for r in g.responses)


# -- for people


def _percent(e: dict[str, Any]) -> list[str]:
    value = "-" if e["value"] is None else f"{e['value']:.1%}"
    return [value, f"{e['low']:.1%} – {e['high']:.1%}" if e["low"] is not None else ""]


def _agreed(name: str, found: dict[str, Any]) -> list[list[object]]:
    kappa = found["kappa"]
    bounds = f"{kappa['low']:.3f} – {kappa['high']:.3f}" if kappa["low"] is not None else ""
    return [
        [f"agrees with {name}", *_percent(found["with_ties"]), found["n"]],
        ["  where neither says tie", *_percent(found["without_ties"]), found["decided"]],
        ["  Cohen's kappa", "-" if kappa["value"] is None else f"{kappa['value']:.3f}", bounds, found["n"]],
    ]


def text(audit: dict[str, Any]) -> str:
    """The audit as aligned tables: the figures, and the flagged answers if there are any."""
    names = {
        "flips": "flips when the answers change places",
        "first_slot": "the answer shown first wins",
        "longer_wins": "the longer answer wins",
        "list_wins": "the answer with a list wins",
    }
    rows: list[list[object]] = [[what, *_percent(audit[name]), audit[name]["n"]] for name, what in names.items()]
    for name, what in (("self_agreement", "itself, asked again"), ("labels", "the labels")):
        rows += _agreed(what, audit[name]) if audit[name] else []
    about = f"{', '.join(audit['judge']) or 'judge'}: {audit['judgements']} judgements of {audit['prompts']} prompts"
    parts = [table([about, "value", "95 %", "of"], rows)]
    if audit["flags"]:
        flagged = [[f["model"], f["prompts"], f"{', '.join(f['what'])}: {f['text']}"] for f in audit["flags"][:10]]
        parts.append(table(["flagged answers of", "prompts", "why"], flagged))
    return "\n\n".join(parts)


def run(config: Config) -> None:
    """Read, ask again if wished, count, write; the manifest comes last."""
    from xwincli.protocols import evaluation, judge_audit

    started, out = time.time(), Path(config.out)
    if config.out == "-":
        raise XwinError("--out -: is no folder", "audit.json goes into it", USAGE)
    if config.again and config.re_ask:
        raise XwinError("--again and --re-ask are two ways to the same figure", "leave one out", USAGE)
    plan = evaluation.begin("audit judge", config, _inputs(config))
    if plan is None:
        return
    rows = list(judge_audit.read(config.data))
    if not rows:
        raise XwinError(f"{', '.join(config.data)}: there are no judgements")
    again, failed = _asked_again(rows, config) if config.re_ask else (list(judge_audit.read(config.again)), {})
    audit = judge_audit.audit(
        rows,
        judge_audit.Count(config.rounds, config.seed),
        labels=list(judge_audit.read(config.labels)) if config.labels else None,
        again=again if config.again or again else None,
        more=_more(config),
        common=config.common,
    )
    manifest.beside(out).unlink(missing_ok=True)  # an interrupted run must not look finished
    with jsonl.atomic(out / "audit.json") as f:
        f.write(json.dumps({**audit, "failed": failed}, indent=1, ensure_ascii=False) + "\n")
    say(text(audit))
    for what, mend in judge_audit.warnings(audit):
        warn(f"{what}\n  hint: {mend}")
    counts = {"judgements": audit["judgements"], "missing": len(failed), "flags": len(audit["flags"])}
    manifest.write(out, plan, config, started=started, counts=counts, metrics={"judge_audit": audit})
    if failed:
        why = next(iter(failed.values()))
        asked = len(again) + len(failed)
        message = f"n = {len(again)} of {asked} judgements asked again have a verdict (first failure: {why})"
        raise XwinError(message, "the same command asks again", FAILED_ROWS)
