"""A regression gate for CI: is a model, or a prompt, worse on a suite than it was? Exit code 4 if it really is.

    xwin eval gate suite.jsonl --answers new.jsonl --out new-gate.jsonl --save-baseline baseline.jsonl

    xwin eval gate suite.jsonl --model tuned --n 4 --baseline baseline.jsonl --out gate.jsonl --junit gate.xml

A suite is prompts. One with a field `judge` is rated by that judge, else one with `checks` is passed or failed by them,
else `--judge` rates it. A judge that only compares puts each answer beside the baseline's. Answers come from groups
(`--answers`) or are drawn from `--model`; with several a prompt (`--n`) its score is their mean, and prompts that pass
and fail by turns are counted as flaky.

`--out` holds one result a prompt and is the next `--baseline` as it is; `--save-baseline` writes it there as well,
unless there was a real loss. The test is paired by prompt: a loss is real if the bootstrap interval of the mean
difference lies below zero and the randomisation test agrees (p < .05), or if it is larger than `--max-loss`. Otherwise
the gate passes and says "not distinguishable", with the smallest loss that so many prompts show with 80 % power.
Without `--baseline` there is nothing to compare and the gate passes.

`--matrix FILE` runs several gates, `--jobs` at a time: a YAML or JSON table of these options, in which a list means one
gate for each of its values, in every combination. `--out`, `--baseline` and `--save-baseline` then are folders with a
file for each gate, named after its values.

    suite: [chat.jsonl, code.jsonl]
    model: [base, tuned]
    judge: rubric

Exit codes: 0 no real loss, 3 some prompts have no verdict (they stand in `OUT.failed.jsonl`), 4 a real loss.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwincli import formats, jsonl, judges, manifest, settings, sources
from xwincli.console import progress, say, table, warn
from xwincli.errors import FAILED_ROWS, LIMIT, USAGE, XwinError
from xwincli.records import Group, encode
from xwincli.settings import flag, group

if TYPE_CHECKING:
    from xwincli.protocols.gate import Case, Measure, Row


@dataclass(kw_only=True)
class Config:
    """Options of ``xwin eval gate``."""

    suite: str = flag("", "prompts with checks, or to be judged: JSONL", positional=True)
    out: str = flag(help="file of results, one a prompt; with --matrix a folder")
    baseline: str = flag("", "results of an earlier gate to compare with; with --matrix a folder")
    save_baseline: str = flag("", "write the results here too, unless there was a real loss", execution=True)
    junit: str = flag("", "write a JUnit XML report to this file", execution=True)
    answers: list[str] = flag([], "the candidate's answers: groups; repeatable")
    model: str = flag("", "instead of --answers: sample this policy")
    engine: str = flag("native", "what samples it", choices=("native", "vllm", "openai", "echo"))
    server: settings.Server = group(settings.Server)
    sampling: settings.Sampling = group(settings.Sampling)
    rows: int = flag(128, "responses decoded together: speed and memory, not the result", execution=True, low=1)
    options: judges.Options = group(judges.Options)
    max_loss: float | None = flag(None, "a larger loss of the mean is real even if it is not significant", low=0.0)
    common: bool = flag(False, "compare the prompts that suite and baseline both have")
    matrix: str = flag("", "YAML or JSON: several gates at once")
    jobs: int = flag(1, "with --matrix: gates that run at a time", execution=True, low=1)
    rounds: int = flag(2000, "bootstrap resamples", low=100)
    seed: int = flag(0, "of the draws, the judge and the bootstrap")
    force: bool = flag(False, "make it anew even if it is up to date", execution=True)
    place: settings.Device = group(settings.Device)


def _check(config: Config) -> None:
    if not config.suite:
        raise XwinError("suite is required", "prompts with checks, or to be judged", USAGE)
    if config.out == "-" or Path(config.out).is_dir():
        raise XwinError(f"--out {config.out}: is no file", "one result a prompt goes into it", USAGE)
    if config.baseline and Path(config.baseline).resolve() == Path(config.out).resolve():
        raise XwinError(f"--out {config.out}: is the baseline", "results go into a file of their own", USAGE)
    if bool(config.answers) == bool(config.model or config.engine == "echo"):
        raise XwinError("the candidate is either --answers or --model", "name one of them", USAGE)
    if config.engine == "openai" and not config.server.base_url:
        raise XwinError("--engine openai needs --base-url", "such as http://127.0.0.1:8000/v1", USAGE)


def _plan(config: Config) -> manifest.Manifest:
    """What decides the results; where files lie does not."""
    judge = config.options.judge
    local = [p for p in (config.model, judge) if p and Path(p).exists()]
    files = [config.suite, *sources.expand(config.answers), config.baseline, config.options.rm, *local]
    plan = manifest.plan("eval gate", config, [f for f in files if f])
    plan["config"] = {k: v for k, v in plan["config"].items() if k not in ("suite", "answers", "baseline", "matrix")}
    plan["config"]["model"] = config.model if config.model not in local else ""
    return plan


# -- answers and scores


@dataclass
class Work:
    """What making results left behind: prompts without a verdict, what each judge took, what sampled."""

    failed: dict[str, str] = field(default_factory=dict)
    judges: dict[str, dict[str, float]] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)


def _sample(config: Config, cases: Sequence[Case], work: Work) -> None:
    """Draw the candidate's answers; a prompt that cannot be answered has failed."""
    from xwincli import engines

    engine = engines.find(config.engine, config.model, config.place, config.rows, server=config.server)
    work.machine = engine.facts()
    by_id = {c.id: c for c in cases}
    asks = (engines.Ask(c.id, c.prompt.prompt, config.sampling.n, c.id) for c in cases)
    with progress("eval gate", len(cases), "prompts") as bar:
        for key, answer in engine.generate(asks, config.sampling, config.seed):
            if isinstance(answer, XwinError):
                work.failed[key] = answer.message
            else:
                by_id[key].answered(answer)
            bar.advance()


def _scored(config: Config, cases: Sequence[Case], baseline: dict[str, Row], work: Work) -> list[Row]:
    """Every answered prompt's result, in the suite's order."""
    from xwincli.protocols import gate

    rows = gate.by_checks(c for c in cases if c.group and c.measure == gate.CHECKS)
    for name in dict.fromkeys(c.measure for c in cases if c.measure != gate.CHECKS):
        judge = judges.find(name, _options(config, name), seed=config.seed, device=config.place)
        rows += gate.by_judge(judge, [c for c in cases if c.group and c.measure == name], baseline, work.failed)
        work.judges[judge.name] = judge.receipt()
    order = {c.id: i for i, c in enumerate(cases)}
    return sorted(rows, key=lambda r: order[r.id])


def _options(config: Config, name: str) -> judges.Options:
    """What a judge that the suite names is told: of the options of ``--judge`` those it can have a use for."""
    from xwincli.judges.llm.kinds import shipped

    if name == config.options.judge:
        return config.options
    asks = name in shipped() or Path(name).is_dir()
    others: dict[str, Any] = {"rm": "", "noise": 0.0, "position_bias": 0.0} if asks else {}
    return replace(config.options, **(others or {"judge_model": [], "judge_base_url": ""}))


def _made(config: Config, baseline: dict[str, Row], work: Work) -> list[Row]:
    """Answers and scores from the beginning; failed prompts are written beside ``--out``."""
    from xwincli.protocols import gate

    cases = gate.suite(config.suite, config.options.judge)
    if config.answers:
        gate.join(cases, formats.read(config.answers, Group), ", ".join(config.answers))
    else:
        _sample(config, cases, work)
    rows, failed = _scored(config, cases, baseline, work), work.failed
    path = Path(config.out).with_suffix(".failed" + Path(config.out).suffix)
    path.unlink(missing_ok=True)
    if failed:
        lost = {c.id: encode(c.prompt) for c in cases if c.id in failed}
        with jsonl.atomic(path) as f:
            f.writelines(jsonl.dumps({"error": failed[p], "row": row}) + "\n" for p, row in lost.items())
    if not rows:
        why = next(iter(failed.values()))
        raise XwinError(f"no prompt has a verdict (first: {why})", f"see {path}", FAILED_ROWS)
    return rows


def _write(path: str, rows: Sequence[Row]) -> None:
    with jsonl.atomic(Path(path)) as f:
        f.writelines(jsonl.dumps(row) + "\n" for row in rows)


# -- one gate


def _shown(measures: Sequence[Measure]) -> str:
    """The verdicts for people."""
    header = ["measure", "prompts", "flaky", "baseline", "now", "difference [95 %]", "up / even / down", "seen from"]
    rows = []
    for m in measures:
        d, s = m.difference, m.sign_test
        bounds = f" [{d['low']:+.3g}, {d['high']:+.3g}]" if d and d["low"] is not None else ""
        moved = f"{s['up']} / {s['equal']} / {s['down']}" if s else "-"
        before = "-" if m.before is None else f"{m.before:.4g}"
        seen = "-" if m.detectable is None else f"{m.detectable:.3g}"
        change = f"{d['value']:+.3g}{bounds}" if d else "-"
        rows.append([m.name, m.compared or m.prompts, m.flaky, before, f"{m.now:.4g}", change, moved, seen, m.verdict])
    return table([*header, "verdict"], rows)


def _finish(config: Config, measures: Sequence[Measure], failed: dict[str, str], total: int) -> None:
    """Say how the gate stands; a real loss and missing verdicts end with their exit codes."""
    if lost := [m for m in measures if m.lost]:
        text = "; ".join(f"{m.name} {m.before or 0:.4g} -> {m.now:.4g} ({m.verdict})" for m in lost)
        fell = sum((r.change or 0) < 0 for m in lost for r in m.rows)
        raise XwinError(f"a real loss: {text}", f"{fell} prompts fell, see {config.out}", LIMIT)
    if failed:
        why = next(iter(failed.values()))
        text = f"n = {total} of {total + len(failed)} prompts: the others have no verdict (first: {why})"
        raise XwinError(text, "the same command asks again", FAILED_ROWS)
    say(f"eval gate: passed: {', '.join(f'{m.name}: {m.verdict}' for m in measures)}")


def run(config: Config) -> None:
    """Answer, score, compare, report; several gates with ``--matrix``."""
    if config.matrix:
        _matrix(config)
        return
    from xwincli.protocols import gate, junit

    _check(config)
    started, plan, work = time.time(), _plan(config), Work()
    baseline = gate.read(config.baseline) if config.baseline else {}
    made = manifest.read(config.out) or {}
    incomplete = bool(made.get("counts", {}).get("missing"))  # what had no verdict is asked for again
    current = manifest.skip_if_current(config.out, plan, config.force or incomplete)
    rows = list(gate.read(config.out).values()) if current else _made(config, baseline, work)
    if config.baseline:
        kept = {p: row for p, row in baseline.items() if p not in work.failed}
        if odd := gate.against(rows, kept, config.common, config.baseline):
            warn(f"{len(odd)} prompts are not in both suite and baseline and are not compared: {', '.join(odd[:5])}")
    measures = gate.decide(rows, config.max_loss, rounds=config.rounds, seed=config.seed)
    outs = [] if current else [config.out]
    if config.save_baseline and not work.failed and not any(m.lost for m in measures):
        outs.append(config.save_baseline)
    facts: dict[str, Any] = {
        "counts": {"prompts": len(rows), "missing": len(work.failed)},
        "metrics": {"measures": {m.name: m.facts() for m in measures}, "judges": work.judges},
        "machine": work.machine,
    }
    for out in outs:
        manifest.beside(out).unlink(missing_ok=True)  # an interrupted run must not look finished
        _write(out, rows)
        manifest.write(out, plan, config, started=started, **facts)
    if config.junit:
        junit.write(junit.report(measures, work.failed, Path(config.suite).name), config.junit)
    say(_shown(measures))
    _finish(config, measures, work.failed, len(rows))


# -- several gates


def _matrix(config: Config) -> None:
    """Run every combination as a process of its own; one report, and the gravest exit code."""
    from concurrent.futures import ThreadPoolExecutor

    from xwincli.protocols import gate_matrix, junit

    if Path(config.out).is_file():
        raise XwinError(f"--out {config.out}: is a file", "with --matrix it is a folder", USAGE)
    gates = gate_matrix.read(config.matrix, settings.values(config))
    with tempfile.TemporaryDirectory() as folder:
        work = partial(_child, config, Path(folder))
        with ThreadPoolExecutor(config.jobs) as pool:
            codes = dict(zip(gates, pool.map(work, gates, gates.values()), strict=True))
        if config.junit:
            junit.write(
                junit.joined([p for name in gates if (p := Path(folder) / f"{name}.xml").exists()]), config.junit
            )
    say(table(["gate", "exit code"], list(codes.items())))
    bad = [name for name, code in codes.items() if code]
    if bad:
        code = next((c for c in (LIMIT, *codes.values()) if c and c in codes.values()), 1)
        raise XwinError(
            f"{len(bad)} of {len(gates)} gates did not pass: {', '.join(bad)}", "what each says is above", code
        )


def _child(config: Config, folder: Path, name: str, values: dict[str, Any]) -> int:
    """One gate of a matrix; what it says is shown as one piece."""
    import subprocess

    values |= {"out": str(Path(config.out) / f"{name}.jsonl"), "matrix": "", "jobs": 1}
    for key in ("baseline", "save_baseline"):
        if getattr(config, key):
            values[key] = str(Path(getattr(config, key)) / f"{name}.jsonl")
    if config.junit:
        values["junit"] = str(folder / f"{name}.xml")
    options = folder / f"{name}.json"
    with jsonl.atomic(options) as f:
        f.write(json.dumps(values))
    command = [sys.executable, "-m", "xwincli", "eval", "gate", "--config", str(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    say(f"-- {name}\n{done.stderr.rstrip()}")
    return done.returncode
