"""AlpacaEval 2: a model against a baseline, one answer an instruction, with win rates at equal lengths.

    xwin eval alpaca annotations.json --out DIR

    xwin eval alpaca outputs.json --baseline baseline.json --judge alpaca-eval-2 --out DIR

Counts AlpacaEval's `annotations.json`, or judges a model's outputs (`model_outputs.json`, or groups of one response)
against the baseline's. Given both, only what the annotations lack is judged. Which answer is shown first is
AlpacaEval's own coin for each instruction. Equal answers are a draw without a call. Rows are joined by instruction.

`DIR` gets AlpacaEval's `annotations.json` and `leaderboard.csv`, and `eval.json`: win rate, standard error, discrete
win rate, lengths, and the win rate at equal lengths with a 95 % bootstrap interval. With `--calibration df_gamed.csv`
also the length-controlled win rate exactly as the alpaca_eval package computes it. Rows without a value exit 3.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwincli import jsonl, judges, manifest, settings, sources
from xwincli.console import Progress, progress, say, table, warn
from xwincli.errors import FAILED_ROWS, USAGE, XwinError
from xwincli.journal import Journal
from xwincli.judges import Judge
from xwincli.records import Judgement, decode
from xwincli.settings import flag, group

if TYPE_CHECKING:
    from xwincli.protocols.alpaca import Battle, Missing

WINDOW = 64  # instructions judged between two writes of the journal


@dataclass(kw_only=True)
class Config:
    """Options of ``xwin eval alpaca``."""

    files: list[str] = flag(help="annotations.json files of one model, its outputs, or both", positional=True)
    out: str = flag(help="folder for annotations.json, leaderboard.csv and eval.json")
    baseline: str = flag("", "the baseline's outputs, against which a model's outputs are judged")
    name: str = flag("", "the model's name; else the outputs' generator, else their file's name")
    calibration: str = flag("", "AlpacaEval's df_gamed.csv: length control as its package does it, beside ours")
    options: judges.Options = group(judges.Options)
    orders: str = flag("one", "one order, AlpacaEval's coin, or both and their mean", choices=("one", "both"))
    common: bool = flag(False, "go on with the instructions that all files have; exits 3")
    rounds: int = flag(2000, "bootstrap resamples", low=100)
    seed: int = flag(0, "of the bootstrap and of the judge")
    force: bool = flag(False, "make it anew even if it is up to date", execution=True)
    thinking: settings.Thinking = group(settings.Thinking)
    device: settings.Device = group(settings.Device)


def _sort(config: Config) -> tuple[list[str], str]:
    """The annotation files, and the one file of outputs or ""."""
    from xwincli.protocols.alpaca_files import holds_annotations

    names = sources.expand(config.files)
    if "-" in [*names, config.baseline]:
        raise XwinError("standard input cannot be read here", "name files", USAGE)
    annotated = [name for name in names if holds_annotations(name)]
    rest = [name for name in names if name not in annotated]
    if len(rest) > 1:
        hint = "one model a run; --baseline names the other"
        raise XwinError(f"{rest[0]} and {rest[1]} are both outputs", hint, USAGE)
    if rest and not config.baseline:
        raise XwinError(f"{rest[0]}: these are outputs", "--baseline FILE names what they are judged against", USAGE)
    return annotated, rest[0] if rest else ""


def gather(config: Config) -> tuple[list[Battle], Missing]:
    """The battles of all files, one an instruction, and what each file lacks.

    Raises:
        XwinError: a file is not as it must be, or lacks instructions and ``--common`` is off.
    """
    from xwincli.protocols import alpaca, alpaca_files
    from xwincli.protocols.alpaca import Battle

    annotated, file = _sort(config)
    known = alpaca_files.read_annotations(annotated)
    base = alpaca_files.read_outputs(config.baseline) if config.baseline else None
    if base and file:
        model = alpaca_files.read_outputs(file, config.name)
        if config.thinking.split_thinking:
            from xwincli.chat import set_thinking_aside

            set_thinking_aside(r for o in (base, model) for g in o.groups.values() for r in g.responses)
        battles, missing = alpaca.join(base, model, known, config.common)
        if known:
            same = sum(b.chance is not None for b in battles)
            say(f"{same} of {len(known)} annotations are about these answers and are kept")
        return battles, missing
    missing = alpaca.absent({config.baseline: base.groups, ", ".join(annotated): known}, config.common) if base else {}
    named = {"generator_2": config.name} if config.name else {}
    kept = [a for said, a in known.items() if not base or said in base.groups]
    return [Battle({**a.row, **named}, a.chance) for a in kept], missing


def _judging(config: Config) -> manifest.Manifest:
    """What decides the verdicts, so that another bootstrap or calibration asks nothing again."""
    options = config.options
    given = [f for f in (config.baseline, options.rm) if f]
    given += [options.judge] if Path(options.judge).is_dir() else []  # a judge of the user's own
    plan = manifest.plan("eval alpaca", options, [*sources.expand(config.files), *given])
    decisive = ("name", "orders", "common", "seed")
    plan["config"] |= {name: getattr(config, name) for name in decisive}
    plan["config"] |= settings.values(config.device, execution=False) | settings.values(config.thinking)
    return plan


def judge(config: Config, battles: Sequence[Battle]) -> dict[str, float]:
    """Judge the battles without a value whose answers are at hand; returns what it took.

    Verdicts are journalled in ``judgements.jsonl``: a run that was killed, or had failures, goes on from there.
    """
    from xwincli.protocols import alpaca, alpaca_files

    todo = {b.instruction: b for b in battles if b.chance is None and b.groups}
    path, plan = str(Path(config.out) / "judgements.jsonl"), _judging(config)
    if not todo:
        return {}
    if manifest.skip_if_current(path, plan, config.force):
        for where, row in jsonl.read(path):
            made = decode(row, Judgement, where)
            alpaca.annotate(todo[alpaca_files.instruction(made.prompt, where)], made)
        return {}
    found = judges.find(config.options.judge, config.options, seed=config.seed, device=config.device)
    journal = Journal(path, plan, config, force=config.force)
    try:
        with journal, progress("eval alpaca", len(todo), "instructions", journal.finished) as bar:
            for row in journal.recovered():
                made = decode(row, Judgement, path)
                alpaca.annotate(todo[alpaca_files.instruction(made.prompt, path)], made)
            _ask(found, todo, journal, bar, config.orders == "both")
            journal.metrics = dict(found.receipt())
    except XwinError as e:
        if e.code != FAILED_ROWS:
            raise
    return dict(found.receipt())


def _ask(found: Judge, todo: Mapping[str, Battle], journal: Journal, bar: Progress, both: bool) -> None:
    """Window by window, so that what is known survives a kill."""
    from xwincli.judges import matches
    from xwincli.protocols import alpaca, alpaca_files

    rows = journal.todo(b.groups[1] for b in todo.values() if b.groups)
    while window := list(islice(rows, WINDOW)):
        asked = [todo[alpaca_files.instruction(row.prompt, "")] for _, row in window]
        played = matches.compare(found, [[alpaca.match(b, both)] for b in asked])
        for (key, row), battle, made in zip(window, asked, played, strict=True):
            if isinstance(made, XwinError):
                alpaca.give_up(battle, found.name, made.message)
                journal.fail(key, row, made.message)
            else:
                alpaca.annotate(battle, made[0])
                journal.add(key, made)
        bar.advance(len(window))


def _plan(config: Config) -> manifest.Manifest:
    plan = manifest.plan("eval alpaca", config, [i["path"] for i in _judging(config)["inputs"]])
    plan["inputs"] += manifest.inputs([config.calibration] if config.calibration else [])
    plan["config"] |= {name: bool(getattr(config, name)) for name in ("baseline", "calibration")}  # not where they lie
    return plan


def _is_whole(out: Path) -> bool:
    """False if an earlier run lacks values: it is made anew, so that what failed is tried again."""
    counts = (manifest.read(out) or {}).get("counts", {})
    return not counts.get("missing")


def _expected(config: Config, battles: Sequence[Battle], missing: Missing, calibrated: int) -> int:
    """How many instructions there should be: all that any file has, or that the calibration knows."""
    rows = len(battles) + len({i for lost in missing.values() for i in lost})
    if calibrated and len(battles) > calibrated:
        hint = "it is for AlpacaEval's own set; leave --calibration out for yours"
        raise XwinError(f"{config.calibration}: knows {calibrated} instructions, there are {len(battles)}", hint)
    if calibrated > len(battles):
        warn(f"{len(battles)} rows of {calibrated}: the package finds an instruction's difficulty by row number")
    return max(rows, calibrated)


def standing(facts: dict[str, Any]) -> str:
    """``eval.json`` as a small table."""

    def percent(value: float | None, *more: str) -> str:
        return "n/a" if value is None else " ".join([f"{value:.2f}", *more])

    def bounds(e: dict[str, Any]) -> str:
        return "" if e["low"] is None else f"[{e['low']:.2f}, {e['high']:.2f}]"

    fair, rows = facts["length_controlled"], []
    rows.append(["win rate [95 %]", percent(facts["win_rate"], bounds(facts["interval"]))])
    rows.append(["standard error", percent(facts["standard_error"])])
    rows.append(["discrete win rate", percent(facts["discrete_win_rate"])])
    rows.append(["wins, losses, draws", f"{facts['n_wins']}, {facts['n_wins_base']}, {facts['n_draws']}"])
    rows.append(["characters (baseline)", f"{facts['avg_length']} ({facts['avg_length_base']})"])
    rows.append(["at equal lengths [95 %]", percent(fair["value"], bounds(fair))])
    if fit := facts["package"].get("length_controlled_v1"):
        rows.append(["package's LC (error)", percent(fit["value"], f"({percent(fit['standard_error'])})")])
    return table([facts["model"], f"n = {facts['n_total']} of {facts['expected']}"], rows)


def run(config: Config) -> None:
    """Read, judge, count, write; the manifest comes last."""
    from xwincli.protocols import alpaca, alpaca_files

    started, out = time.time(), Path(config.out)
    if out.exists() and not out.is_dir():
        raise XwinError(f"{out}: is a file", "--out names a folder", USAGE)
    plan = _plan(config)
    if _is_whole(out) and manifest.skip_if_current(out, plan, config.force):
        return
    calibration = alpaca_files.read_calibration(config.calibration) if config.calibration else None
    battles, missing = gather(config)
    expected = _expected(config, battles, missing, len(calibration.difficulty) if calibration else 0)
    receipt = judge(config, battles)
    figures = alpaca.evaluate(battles, calibration, config.rounds, config.seed)
    facts = _facts(config, battles, figures) | {"receipt": receipt, "expected": expected, "missing": missing}
    _write(out, battles, facts)
    say(standing(facts))
    counts = {"total": expected, "missing": expected - facts["n_total"]}
    metrics = {k: figures[k] for k in ("win_rate", "standard_error")}
    metrics["length_controlled"] = figures["length_controlled"]["value"]
    manifest.write(out, plan, config, started=started, counts=counts, metrics=metrics)
    if counts["missing"]:
        raise _short(facts)


def _facts(config: Config, battles: Sequence[Battle], figures: dict[str, Any]) -> dict[str, Any]:
    """What was compared, by whom, and with which figures."""
    annotators = Counter(str(b.row.get("annotator")) for b in battles)
    if len(annotators) > 1:
        warn(f"verdicts of {len(annotators)} judges are mixed: {', '.join(annotators)}")
    return {
        "protocol": "alpaca",
        "model": battles[0].row["generator_2"],
        "baseline": battles[0].row["generator_1"],
        "judge": ", ".join(annotators),
        "annotators": dict(annotators),
        "orders": config.orders,
        "rounds": config.rounds,
        "seed": config.seed,
        **figures,
        "without_value": [{"instruction": b.instruction, "error": b.error} for b in battles if b.chance is None],
    }


def _write(out: Path, battles: Sequence[Battle], facts: dict[str, Any]) -> None:
    from xwincli.protocols import alpaca, alpaca_files

    manifest.beside(out).unlink(missing_ok=True)  # an interrupted run must not look finished
    alpaca_files.write_annotations(out / "annotations.json", [b.row for b in battles])
    alpaca_files.write_leaderboard(out / "leaderboard.csv", facts["model"], alpaca.leaderboard(facts))
    with jsonl.atomic(out / "eval.json") as f:
        f.write(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def _short(facts: dict[str, Any]) -> XwinError:
    """What exit 3 says: how many values there are, which are missing, and why the first has none."""
    from xwincli.protocols.alpaca_files import listed

    lost = [*(r["instruction"] for r in facts["without_value"]), *(i for ids in facts["missing"].values() for i in ids)]
    missing = f"; missing: {listed(lost)}" if lost else ""
    why = next((f" (first: {r['error']})" for r in facts["without_value"] if r["error"]), "")
    hint = "the same command tries again what failed" if why else ""
    if facts["without_value"] and not why:
        hint = "the model's outputs with --baseline and --judge get them judged"
    text = f"n = {facts['n_total']} of {facts['expected']} instructions have a value{missing}{why}"
    return XwinError(text, hint, FAILED_ROWS)
