"""How much of what a model says is hallucinated: answers are cut into claims, and each claim is judged.

`xwin eval grounding base.jsonl rs.jsonl --judge faithfulness --out DIR` reads groups with `contexts` and writes
`DIR/eval.json` and the claims in `DIR/results.jsonl`: shares of claims that are unsupported (contradicted by the
contexts, or absent from them), of answers that hold such a claim, of answers that abstain (a refusal, "not in the
context": rules, English). Without contexts every claim is judged by the other answers to its prompt: self-consistency,
a risk signal and not truth. The default judge `overlap` is word overlap, a baseline; `--labelled FILE` measures a judge
against claims whose label is known.

`--emit-ablation DIR` writes a file of prompts with contexts once for each arm: `none`, `right`, `shuffled` (another
prompt's passages) and `distractor` (the right ones among another prompt's). Draw answers from each with `xwin sample`
and evaluate them together: `--contexts right,none,shuffled,distractor`, one a file; claims are judged by the right
passages whatever was shown, and later files are compared with the first, prompt by prompt.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwincli import jsonl, judges, manifest, settings
from xwincli.console import progress, say, table
from xwincli.errors import FAILED_ROWS, USAGE, XwinError
from xwincli.settings import flag, group

if TYPE_CHECKING:
    from xwincli.judges import Judge
    from xwincli.protocols.compare import Entry
    from xwincli.protocols.grounding import Claim
    from xwincli.records import Group

COLUMNS = ("unsupported", "contradicted", "absent", "tainted", "abstained", "claims")


@dataclass(kw_only=True)
class Options(judges.Options):
    """Who judges claims: the default is another than for answers."""

    judge: str = flag("overlap", "overlap (word overlap, a baseline), faithfulness (a language model), or your own")


@dataclass(kw_only=True)
class Config:
    """Options of ``xwin eval grounding``."""

    files: list[str] = flag([], "groups, one file a model or an arm; or prompts for --emit-ablation", positional=True)
    out: str = flag("", "folder for eval.json and the claims in results.jsonl; --labelled alone does without")
    names: list[str] = flag([], "the models' names, repeated or with commas; else from the file names")
    contexts: str = flag("", "what each file's answers were drawn with: none, right, shuffled, distractor; with commas")
    equal: str = flag("exact", "without contexts, answers that agree: the same text or last number",
                      choices=("exact", "numeric"))  # fmt: skip
    emit_ablation: str = flag("", "write the prompts of every arm into this folder, and stop")
    labelled: str = flag("", "measure the judge on this file of labelled claims, and stop")
    options: Options = group(Options)
    common: bool = flag(False, "go on with the prompts that all files have")
    rounds: int = flag(2000, "bootstrap resamples", low=100)
    seed: int = flag(0, "of the bootstrap, the judge and the arms")
    force: bool = flag(False, "make it anew even if it is up to date", execution=True)
    device: settings.Device = group(settings.Device)


def _check(config: Config) -> None:
    if config.labelled and (config.files or config.emit_ablation):
        raise XwinError("--labelled measures the judge alone", "leave the other files out", USAGE)
    if not config.labelled and not config.files:
        raise XwinError("there is no file", "files of groups, or --labelled FILE", USAGE)
    if config.emit_ablation and (len(config.files) > 1 or config.out):
        raise XwinError("--emit-ablation takes one file of prompts and writes into its own folder", "", USAGE)
    if not (config.out or config.labelled or config.emit_ablation):
        raise XwinError("--out is required", "a folder for eval.json and results.jsonl", USAGE)


def run(config: Config) -> None:
    """Write the arms, measure the judge, or judge claims; the manifest comes last."""
    _check(config)
    if config.emit_ablation:
        _emit(config)
        return
    from xwincli.protocols import evaluation

    started = time.time()
    judged_by = config.options.judge
    named = [config.labelled, *config.files, config.options.rm, judged_by if Path(judged_by).is_dir() else ""]
    plan = evaluation.begin("eval grounding", config, list(filter(None, named))) if config.out else manifest.Manifest()
    if plan is None:
        return
    judge = judges.find(config.options.judge, config.options, seed=config.seed, device=config.device)
    facts, claims = _measure(config, judge) if config.labelled else _evaluate(config, judge)
    say(_labelled_text(facts) if config.labelled else _text(facts))
    total, missing = facts["texts"] if config.labelled else facts["asked"], len(facts["failed"])
    if config.out:
        counts = {"total": total, "missing": missing, "claims": facts["claims"]}
        metrics = {**_metrics(facts), **judge.receipt()}
        rows = map(asdict, claims)
        evaluation.finish(plan, config, facts, rows, started=started, counts=counts, metrics=metrics)
    elif missing:
        first = next(iter(facts["failed"].values()))
        raise XwinError(f"{missing} of {total} texts have a claim without verdict (first: {first})", "", FAILED_ROWS)


def _metrics(facts: dict[str, Any]) -> dict[str, Any]:
    if "models" not in facts:
        return {"accuracy": facts["accuracy"], "macro_f1": facts["macro_f1"]}
    return {"unsupported": {m["name"]: (m["unsupported"] or {}).get("value") for m in facts["models"]}}


# -- the arms


def _emit(config: Config) -> None:
    """One file of prompts an arm."""
    from xwincli.protocols import ablation, evaluation
    from xwincli.records import Prompt

    started, out = time.time(), Path(config.emit_ablation)
    if out.exists() and not out.is_dir():
        raise XwinError(f"{out}: is a file", "--emit-ablation names a folder", USAGE)
    plan = manifest.plan("eval grounding", config, config.files)
    if manifest.skip_if_current(out, plan, config.force):
        return
    rows: list[Prompt] = []
    for where, row in evaluation.records(evaluation.rows(config.files), Prompt):
        try:
            ablation.question(row)
        except XwinError as e:
            raise XwinError(f"{where}: {e.message}", e.hint) from None
        rows.append(row)
    made = {arm: ablation.emit(rows, arm, config.seed) for arm in ablation.ARMS}
    for arm, prompts in made.items():
        jsonl.write(str(out / f"{arm}.jsonl"), prompts)
    say(f"{out}: {len(rows)} prompts each in {', '.join(f'{a}.jsonl' for a in made)}")
    manifest.write(out, plan, config, started=started, counts={"prompts": len(rows)})


def _arms(config: Config) -> list[str]:
    """The arm of each file as ``--contexts`` has it; empty where it is not given."""
    from xwincli.protocols.ablation import ARMS

    arms = [a.strip() for a in config.contexts.split(",") if a.strip()]
    if wrong := next((a for a in arms if a not in ARMS), None):
        raise XwinError(f"--contexts: {wrong!r} is no arm", f"arms are: {', '.join(ARMS)}", USAGE)
    if arms and len(arms) != len(config.files):
        raise XwinError(f"--contexts: {len(arms)} arms for {len(config.files)} files", "", USAGE)
    return arms


def _read(config: Config, arms: list[str]) -> tuple[list[Entry], list[str | None]]:
    """The files' groups, and each file's arm where it is of one."""
    from xwincli.protocols import ablation, entries

    models, said = [], []
    for i, (file, name) in enumerate(zip(config.files, entries.names(config.files, config.names), strict=True)):
        noted: set[str | None] = set()

        def prepare(row: Group, noted: set[str | None] = noted, given: str = arms[i] if arms else "") -> None:
            arm = ablation.note(row).get("arm")
            noted.add(arm)
            if given and arm not in (None, given):
                raise XwinError(f"field ablation.arm: is {arm!r}, --contexts says {given!r}")
            if len(noted) > 1:
                raise XwinError(f"field ablation.arm: is {arm!r}, unlike the rows before", "one file is one arm")
            ablation.origin(row)

        models += entries.read([file], [name], prepare)
        said.append(arms[i] if arms else noted.pop())
    return models, said


# -- claims


def _judged(
    judge: Judge, models: list[Entry], prompts: list[str], use: bool
) -> tuple[list[list[Claim]], dict[str, str]]:
    """Every model's claims with their labels, and why prompts lack one; stops where none has all."""
    from xwincli.protocols import grounding

    found: list[list[Claim]] = [[] for _ in models]
    failed: dict[str, str] = {}
    with progress("eval grounding", len(models) * len(prompts), "prompts") as bar:
        for e, own in zip(models, found, strict=True):
            for size, block in grounding.judge_claims(judge, e, prompts, use, failed):
                own += block
                bar.advance(size)
    if len(failed) == len(prompts):
        raise XwinError(f"no prompt has all its verdicts (first: {next(iter(failed.values()))})", "", FAILED_ROWS)
    return found, failed


def _evaluate(config: Config, judge: Judge) -> tuple[dict[str, Any], list[Claim]]:
    """Read, judge every claim, count."""
    from xwincli.protocols import entries, grounding

    models, arms = _read(config, _arms(config))
    use = grounding.grounded(models)
    if not use and any(arms):
        raise XwinError("--contexts: the rows have no contexts to judge by", "keep them in every arm", USAGE)
    prompts, missing = entries.join(models, config.common)
    if not use:
        grounding.need_others(models, prompts)
    found, failed = _judged(judge, models, prompts, use)
    counted = [p for p in prompts if p not in failed]
    equal = None if use else config.equal
    standings = grounding.standings(models, counted, found, equal=equal, rounds=config.rounds, seed=config.seed)
    for facts, arm in zip(standings, arms, strict=True):
        facts["shown"] = arm
    evaluation = {
        "protocol": "grounding",
        "judge": judge.name,
        "judged_by": "contexts" if use else "the other answers",
        "meaning": None if use else grounding.RISK,
        "prompts": len(counted),
        "asked": len(prompts),
        "coverage": len(counted) / len(prompts),
        "claims": sum(sum(m["counts"].values()) for m in standings),
        "rounds": config.rounds,
        "seed": config.seed,
        "missing": missing,
        "failed": failed,
        "models": standings,
    }
    return evaluation, [c for own in found for c in own]


def _measure(config: Config, judge: Judge) -> tuple[dict[str, Any], list[Claim]]:
    """The judge against labels."""
    from xwincli.protocols import grounding

    rows = grounding.read_labelled(config.labelled)
    found = grounding.against_labels(judge, rows, rounds=config.rounds, seed=config.seed)
    return {"protocol": "grounding labelled", "judge": judge.name, "seed": config.seed, **found}, []


# -- for people


def _cell(e: dict[str, Any] | None, scale: float = 100) -> str:
    if e is None or e["value"] is None:
        return "-"
    interval = "" if e["low"] is None else f" [{scale * e['low']:.1f}, {scale * e['high']:.1f}]"
    return f"{scale * e['value']:.1f}{interval}"


def _text(facts: dict[str, Any]) -> str:
    models = facts["models"]
    columns = [*COLUMNS, *(["agreement"] if "agreement" in models[0] else [])]
    heads = [c if c == "claims" else f"{c} %" for c in columns]
    rows = []
    for m in models:
        figures = [_cell(m[c], 1 if c == "claims" else 100) for c in columns]
        rows.append([m["name"], m["shown"] or "-", *figures])
    lines = [table(["model", "shown", *heads], rows)]
    for m in models[1:]:
        moved = ((c, m["change"][c]) for c in ("unsupported", "contradicted", "abstained"))
        said = [f"{c} {e['verdict']} ({100 * e['value']:+.1f} points)" for c, e in moved if e]
        lines.append(f"{m['name']} against {models[0]['name']}: {', '.join(said)}")
    about = f"{facts['claims']} claims on {facts['prompts']} of {facts['asked']} prompts judged by {facts['judge']}"
    lines.append(f"{about} against {facts['judged_by']}; the claims column is their number an answer")
    lines += [facts["meaning"]] if facts["meaning"] else []
    if facts["judge"] == "overlap":
        lines.append("overlap is a baseline that knows words alone: --labelled says how far to trust it")
    return "\n".join(lines)


def _labelled_text(facts: dict[str, Any]) -> str:
    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    def rows() -> Iterable[list[object]]:
        for name, s in facts["classes"].items():
            yield [name, *(share(s[k]) for k in ("precision", "recall", "f1")), s["support"], s["called"]]

    kinds = (f"{kind} {k['right']}/{k['claims']}" for kind, k in facts["kinds"].items())
    about = f"{facts['claims']} claims on {facts['judged']} of {facts['texts']} texts judged by {facts['judge']}"
    figures = f"accuracy {share(facts['accuracy'])} % (mean over texts {_cell(facts['by_text'])})"
    return "\n".join(
        [
            table(["class", "precision %", "recall %", "F1 %", "labelled so", "judged so"], list(rows())),
            f"{about}: {figures}, macro F1 {share(facts['macro_f1'])} %",
            f"right by kind: {', '.join(kinds)}",
        ]
    )
