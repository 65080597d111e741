"""MT-Bench: two-turn questions answered, graded from 1 to 10 or compared with a baseline, in FastChat's formats.

    xwin eval mt-bench --judgements gpt-4_single.jsonl --questions question.jsonl --out DIR
    xwin eval mt-bench --questions question.jsonl --model dpo --judge-model gpt-4o --judge-base-url URL --out DIR
    xwin eval mt-bench --questions question.jsonl --answers dpo.jsonl --baseline base.jsonl --judge-model … --out DIR

The whole run: `--model` answers every question (1024 new tokens, each category at its own temperature, its own first
answer before the second turn), and `--judge` grades each turn; with `--baseline` it compares instead, in both orders.
Math, reasoning and coding are judged beside the reference, from `--references` or the questions. `DIR` gets FastChat's
`model_answer/` and `model_judgment/`; a run that was killed, or had failures, goes on from there. `--answers` skips
the answering, `--judgements` all but the tables.

`DIR/eval.json` has means by turn and category, FastChat's (a rating is the first [[n]] or [n] of any size) and strict
ones (one clear [[n]] from 1 to 10), how many ratings did not parse or were out of range, and for pairs wins, losses,
ties and FastChat's rates. Judgements without a clear verdict, or that are missing, exit 3
unless `--allow-failed` permits them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwincli import jsonl, judges, manifest, settings, sources
from xwincli.console import progress, say, warn
from xwincli.errors import USAGE, XwinError
from xwincli.journal import Journal
from xwincli.records import Group, Judgement, Prompt, Rating, content_id, decode, prompt_id
from xwincli.settings import flag, group

if TYPE_CHECKING:
    from xwincli.engines import Engine
    from xwincli.judges import Judge
    from xwincli.protocols.mt_bench_files import Answers, Question

WINDOW = 64  # rows judged between two writes of the journal


@dataclass(kw_only=True)
class Answering:
    """Who answers the questions, where no answers are given."""

    model: str = flag("", "what answers: folder, hub name, adapter or .gguf; with --engine openai the server's name")
    name: str = flag("", "the model's name in the files; else that of its folder")
    engine: str = flag("native", "what runs it", choices=("native", "vllm", "openai", "echo"))
    max_tokens: int = flag(1024, "new tokens per answer at most", low=1)
    rows: int = flag(128, "answers decoded together", execution=True, low=1)
    server: settings.Server = group(settings.Server)
    thinking: settings.Thinking = group(settings.Thinking)


@dataclass(kw_only=True)
class Judging(judges.Options):
    """Who judges; the default follows from what is judged."""

    judge: str = flag("", "who judges: else mt-bench-single, with --baseline mt-bench-pair")


@dataclass(kw_only=True)
class Config:
    """Options of ``xwin eval mt-bench``."""

    judgements: list[str] = flag([], "FastChat's judgements, single or pair: only the tables are made; repeatable")
    questions: str = flag("", "FastChat's question.jsonl; needed unless there are --judgements")
    references: str = flag("", "FastChat's answers of a reference model; else the questions' own references")
    answers: list[str] = flag([], "FastChat's answers, of one model or more, instead of --model; repeatable")
    baseline: str = flag("", "FastChat's answers of one model: every answer is compared with its own")
    out: str = flag(help="folder for answers, judgements and eval.json")
    answering: Answering = group(Answering)
    options: Judging = group(Judging)
    seed: int = flag(0, "of the answers and of the judge")
    allow_failed: float = flag(0.0, "share of answers and of judgements that may be missing", low=0.0, high=1.0)
    force: bool = flag(False, "make it anew even if it is up to date", execution=True)
    device: settings.Device = group(settings.Device)

    def __post_init__(self) -> None:
        if not self.options.judge:
            self.options.judge = "mt-bench-pair" if self.baseline else "mt-bench-single"


def run(config: Config) -> None:
    """Answer and judge what is not there yet, count, write; the manifest comes last."""
    from xwincli.protocols import evaluation, mt_bench_tables
    from xwincli.protocols import mt_bench_files as files

    started = time.time()
    _check(config)
    plan = evaluation.begin("eval mt-bench", config, _inputs(config))
    if plan is None:
        return
    asked = files.questions(config.questions, config.references) if config.questions else {}
    made, receipt = (config.judgements, {}) if config.judgements else _judged(config, asked)
    found = files.judgements(made, asked or None)
    if len(found.judges) > 1:
        warn(f"the means are over several judges: {', '.join(sorted(found.judges))}")
    facts, counts = mt_bench_tables.facts(found, asked)
    say(mt_bench_tables.standings(facts))
    if counts["missing"] and counts["missing"] <= config.allow_failed * counts["total"]:
        warn(f"{counts['missing']} of {counts['total']} judgements are missing: the means are over the others")
        counts = {"total": counts["total"], "missing": 0, "allowed": counts["missing"]}
    metrics = {"average": {m["model"]: m["strict"]["average"] for m in facts["models"]}, **receipt}
    evaluation.finish(
        plan, config, facts, mt_bench_tables.results(found), started=started, counts=counts, metrics=metrics
    )


def _check(config: Config) -> None:
    if config.judgements:
        for name in ("answers", "baseline", "references"):
            if getattr(config, name):
                raise XwinError(f"--{name} means nothing beside --judgements", "leave one of them out", USAGE)
        return
    if not config.questions:
        raise XwinError("--questions is required", "FastChat's question.jsonl; or give --judgements", USAGE)
    answering = config.answering
    if config.answers and answering.model:
        raise XwinError("--model and --answers are both given", "the answers come from one of them", USAGE)
    if not config.answers and not answering.model and answering.engine in ("native", "vllm"):
        raise XwinError("there is nobody to evaluate", "give --model, --answers or --judgements", USAGE)
    if answering.engine == "openai" and not answering.server.base_url:
        raise XwinError("--engine openai needs --base-url", "such as http://127.0.0.1:8000/v1", USAGE)


def _inputs(config: Config) -> list[str]:
    given = [
        config.questions,
        config.references,
        *sources.expand([*config.answers, *config.judgements]),
        config.baseline,
    ]
    judge = config.options.judge if Path(config.options.judge).exists() else ""
    return [*filter(None, [*given, config.answering.model, config.options.rm, judge])]


def _plan(config: Config, what: str, options: Any, model: str, **facts: Any) -> manifest.Manifest:
    """What decides answers or verdicts; a model that is no folder here stands by its name."""
    read = [model, *([config.options.judge] if what == "judgements" else [])]
    local = [name for name in read if name and Path(name).exists()]
    plan = manifest.plan(f"eval mt-bench {what}", options, local)
    plan["config"] |= {"seed": config.seed, **settings.values(config.device, execution=False), **facts}
    if model not in local:
        plan["config"]["model"] = model
    return plan


# -- answering


def _answered(config: Config, asked: Mapping[Any, Question]) -> dict[str, Answers]:
    """The model's answers, turn after turn, as ``model_answer/NAME.jsonl``."""
    from xwincli.protocols import mt_bench_files as files
    from xwincli.protocols import mt_bench_judging as judging

    who = config.answering
    if who.engine == "openai" and not who.model:
        from xwincli.engines.openai import served

        who.model = served(who.server)
    name = who.name or Path(who.model).name or who.engine
    folder, engine = Path(config.out), cache(lambda: _engine(config))
    said: dict[Any, list[str]] = {}
    for turn in range(max(len(q.turns) for q in asked.values())):
        path = folder / "answers" / f"{files.file_name(name)}.turn{turn + 1}.jsonl"
        rows = judging.to_answer(asked.values(), said, turn)
        for key, answer in _turn(config, str(path), rows, engine).items():
            said.setdefault(key, []).append(answer)
    given = files.Answers(name, name, {q.id: said[q.id] for q in asked.values() if q.id in said})
    whole = {key: turns for key, turns in given.turns.items() if len(turns) == len(asked[key].turns)}
    path = folder / "model_answer" / f"{files.file_name(name)}.jsonl"
    files.write_answers(path, files.Answers(name, str(path), whole), time.time())
    return {name: given}


def _engine(config: Config) -> Engine:
    from xwincli import engines
    from xwincli.chat.arguments import parse_arguments

    who, template = config.answering, config.options.chat.template_arg
    arguments = parse_arguments(template) if template and who.engine == "openai" else {}
    engine = engines.find(
        who.engine, who.model, config.device, who.rows, server=who.server, template_arguments=arguments
    )
    if loaded := getattr(engine, "loaded", None):
        loaded.template = loaded.template.given(template)
    return engine


def _turn(config: Config, path: str, rows: Sequence[Prompt], engine: Callable[[], Engine]) -> dict[Any, str]:
    """One turn's answers by question id; those an earlier run finished are kept.

    Raises:
        XwinError: more answers failed than may (exit 3): the same command tries them again.
    """
    from xwincli.chat.thinking import set_thinking_aside
    from xwincli.engines import Ask

    who, chat = config.answering, settings.values(config.options.chat)
    plan = _plan(config, "answers", who, who.model, asked=content_id([r.id for r in rows]), **chat)
    if manifest.is_current(path, plan) and not config.force:
        return dict(_text(row) for _, row in jsonl.read(path))
    with (
        Journal(path, plan, who, allow_failed=config.allow_failed, force=config.force) as journal,
        progress("answers", len(rows), "questions", journal.finished) as bar,
    ):
        todo = list(journal.todo(rows))
        for warm in sorted({p.extra["temperature"] for _, p in todo}):
            some = {key: p for key, p in todo if p.extra["temperature"] == warm}
            sampling = settings.Sampling(temperature=warm, max_tokens=who.max_tokens)
            asks = (Ask(key, p.prompt, 1, prompt_id(p.prompt)) for key, p in some.items())
            for key, answer in engine().generate(asks, sampling, config.seed):
                bar.advance()
                if isinstance(answer, XwinError):
                    journal.fail(key, some[key], answer.message)
                    continue
                if who.thinking.split_thinking:
                    set_thinking_aside(answer)
                journal.add(key, [_group(some[key], answer, who, config.seed)])
        if todo:
            journal.machine = engine().facts()
    return dict(_text(row) for _, row in jsonl.read(path))


def _text(row: dict[str, Any]) -> tuple[Any, str]:
    """Question id and answer of a group's line, which is not held to a prompt's rules: answers may be empty."""
    return row["question_id"], row["responses"][0]["text"]


def _group(asked: Prompt, answer: list[Any], who: Answering, seed: int) -> Group:
    sampling = {"temperature": asked.extra["temperature"], "max_tokens": who.max_tokens, "seed": seed}
    return Group(
        id=content_id(asked.id, who.model, sampling),
        prompt=asked.prompt,
        prompt_id=prompt_id(asked.prompt),
        category=asked.category,
        responses=answer,
        model=who.model or who.engine,
        sampling=sampling,
        extra={k: asked.extra[k] for k in ("question_id", "turn")},
    )


# -- judging


def _judged(config: Config, asked: Mapping[Any, Question]) -> tuple[list[str], dict[str, float]]:
    """FastChat's file of judgements, made of what earlier runs judged and what is asked now; and what it took."""
    from xwincli.protocols import mt_bench_files as files
    from xwincli.protocols import mt_bench_judging as judging

    subjects = files.answers(config.answers, asked) if config.answers else {}
    baselines = list(files.answers([config.baseline], asked).values()) if config.baseline else []
    for given in [*subjects.values(), *baselines]:
        files.complete(given, asked)
    if len(baselines) > 1:
        raise XwinError(f"{config.baseline}: holds answers of {len(baselines)} models", "a baseline is one model")
    judge = judges.find(config.options.judge, config.options, seed=config.seed, device=config.device)
    subjects = subjects or _answered(config, asked)
    base = baselines[0] if baselines else None
    if base and base.model in subjects:
        raise XwinError(f"{config.baseline}: the baseline {base.model!r} is what is evaluated", "name another", USAGE)
    rows = [row for given in subjects.values() for row in judging.to_judge(asked.values(), given, base)]
    made, failed = _verdicts(config, judge, rows)
    at = time.time()
    kept = [judging.pair_row(m, at) if isinstance(m, Judgement) else judging.single_row(m, at) for m in made]
    kept += [judging.unjudged(row, judge.name, at) for row in failed]
    kind = "pair" if base else "single"
    path = Path(config.out) / "model_judgment" / f"{files.file_name(judge.name)}_{kind}.jsonl"
    files.write_rows(path, kept)
    return [str(path)], dict(judge.receipt())


def _verdicts(
    config: Config, judge: Judge, rows: Sequence[Prompt]
) -> tuple[list[Rating] | list[Judgement], list[Prompt]]:
    """The records of all rows that have a verdict, in ``judgements.jsonl``, and the rows without."""
    from xwincli.protocols import mt_bench_judging as judging

    kind: Any = Judgement if config.baseline else Rating
    work: Any = judging.compare if config.baseline else judging.rate
    path = str(Path(config.out) / "judgements.jsonl")
    asked = content_id([r.id for r in rows])
    plan = _plan(config, "judgements", config.options, config.options.rm, asked=asked)
    if manifest.is_current(path, plan) and not config.force:
        return [decode(row, kind, where) for where, row in jsonl.read(path)], []
    journal = Journal(path, plan, config.options, force=config.force)
    failed: list[Prompt] = []
    made: dict[str, Any] = {}
    try:
        with journal, progress("judging", len(rows), "judgements", journal.finished) as bar:
            made = {row["prompt_id"]: decode(row, kind, path) for row in journal.recovered()}
            todo = iter(journal.todo(rows))
            while window := list(islice(todo, WINDOW)):
                for (key, row), records in zip(window, work(judge, [r for _, r in window]), strict=True):
                    if isinstance(records, XwinError):
                        failed.append(row)
                        journal.fail(key, row, records.message)
                    else:
                        made[row.id] = records[0]
                        journal.add(key, records)
                bar.advance(len(window))
            journal.metrics = dict(judge.receipt())
    except XwinError:
        if not journal.failed:
            raise
    return [made[row.id] for row in rows if row.id in made], failed
