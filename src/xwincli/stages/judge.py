"""Compare answers in pairs, in both orders, and keep the reasons.

    xwin judge --data groups.jsonl --out judgements.jsonl

Pairs are drawn within each group (`--pairs`), or between two files of groups joined by prompt
(`--against other.jsonl`: a is from `--data`, b from the other). Both orders of showing are asked and a
winner must win both: disagreement is a tie, since a judge that only likes what stands first says nothing.
Answers that are equal cost no call and are a tie.

`--rate NAME` compares nothing: every response is rated by itself and the groups come out with the rating in
`scores[NAME]`.

A language model judges through a server, or in this process:

    xwin judge --data groups.jsonl --judge pairwise --judge-base-url http://127.0.0.1:8000/v1 --judge-model NAME

`--judge` then is one of the folders that come with us (pairwise, alpaca-eval-2, mt-bench-single, mt-bench-pair,
arena-hard, rubric, faithfulness) or one of your own. Replies are kept in a cache that runs share, so no call whose
answer came is made twice; `--estimate` prices a run before its first call, `--max-usd` stops it, `--batch-export` and
`--batch-import` go through the Batch API.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

from xwincli import formats, judges, manifest, settings, sources
from xwincli.console import Progress, progress, say, stdout, table
from xwincli.errors import USAGE, XwinError
from xwincli.journal import Journal
from xwincli.judges import Answer, Item, Judge, Rated
from xwincli.judges.matches import Match, Tally, answer, compare, draw
from xwincli.records import Group, Judgement, Record, decode
from xwincli.settings import flag, group

T = TypeVar("T")
# several groups -> the records of each, or why it has none
Work = Callable[[list[Group]], Sequence[Sequence[Record] | XwinError]]
WINDOW = 32  # groups judged at once; a judge that is a model batches them
LISTED = 5  # missing prompts named one by one


@dataclass(kw_only=True)
class Config:
    """Options of ``xwin judge``."""

    data: list[str] = flag(["-"], "groups: files, globs, hf:NAME, or - for standard input; repeatable")
    out: str = flag("-", "file of judgements to write, or - for standard output")
    options: judges.Options = group(judges.Options)
    against: list[str] = flag([], "other groups, joined to --data by prompt; repeatable")
    common: bool = flag(False, "judge the prompts both sides have instead of refusing when some are missing")
    pairs: str = flag("1", "random pairs per prompt, or all")
    orders: str = flag("both", "both orders, or one whose first is drawn by chance", choices=("both", "one"))
    rate: str = flag("", "rate single responses into scores[NAME] instead of comparing")
    estimate: bool = flag(False, "print what the calls would cost, and stop: nothing is asked", execution=True)
    batch_export: str = flag("", "write the calls as requests of a batch to this file, and stop", execution=True)
    seed: int = flag(0, "of the pairs drawn and of the judge's noise; each prompt has its own stream")
    limit: int = flag(0, "use only the first rows; 0 uses all", low=0)
    allow_failed: float = flag(0.0, "share of groups that may fail", low=0.0, high=1.0)
    force: bool = flag(False, "start anew even if the result or a journal is there", execution=True)
    thinking: settings.Thinking = group(settings.Thinking)
    device: settings.Device = group(settings.Device)


def join(config: Config, rows: Iterable[Group]) -> tuple[list[Group], dict[str, Group]]:
    """Both sides by prompt: the rows of ``--data`` to judge, and the other side's by prompt_id.

    Raises:
        XwinError: a prompt comes twice on one side, or, without ``--common``, is missing on one.
    """
    ours = _by_prompt(rows, config.data)
    theirs = _by_prompt(formats.read(config.against, Group), config.against)
    for there, here, names in ((ours, theirs, config.against), (theirs, ours, config.data)):
        missing = [p for p in there if p not in here]
        if config.limit and names is config.data:
            continue  # the rows beyond --limit are not missing
        if missing and not config.common:
            some = "; ".join(f"{p} ({_opening(there[p])})" for p in missing[:LISTED])
            more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
            hint = "--common judges the prompts that both have"
            message = f"{', '.join(names)}: lacks {len(missing)} of {len(there)} prompts: {some}{more}"
            raise XwinError(message, hint)
        if missing:
            say(f"judge: {len(missing)} prompts are not in {', '.join(names)} and are left out")
    both = [row for p, row in ours.items() if p in theirs]
    if not both:
        raise XwinError(f"{', '.join(config.data)} and {', '.join(config.against)} have no prompt in common")
    return both, theirs


def _by_prompt(rows: Iterable[Group], names: list[str]) -> dict[str, Group]:
    found: dict[str, Group] = {}
    for row in rows:
        if row.prompt_id in found:
            which = f"prompt {row.prompt_id} ({_opening(row)})"
            raise XwinError(f"{', '.join(names)}: {which} comes twice", "two sides need one group a prompt")
        found[row.prompt_id] = row
    return found


def _opening(row: Group) -> str:
    text = " ".join(str(row.prompt[-1]["content"]).split())
    return repr(text if len(text) <= 40 else text[:39] + "…")


def _before(judge: Judge, rows: Iterable[Group], drawn: Callable[[Group], list[Match]], config: Config) -> None:
    """Instead of judging: what it would cost, or the calls as a batch."""
    from xwincli.judges.llm import Llm
    from xwincli.judges.llm.money import counter

    if not isinstance(judge, Llm):
        raise XwinError(f"the judge {judge.name} asks nobody: there is nothing to pay or to export", "", USAGE)
    items: list[Item | Answer] = []
    for row in rows:
        items += [a for _, a in _answers(row)] if config.rate else [i for match in drawn(row) for i in match.items()]
    if config.batch_export:
        judge.export(items, config.batch_export)
        return
    header = ["model", "calls", "prompt tokens", "reply tokens at most", "USD at most", "by batch"]
    prices, counted = judge.budget.prices, counter(config.options.judge_tokenizer)[1]
    stdout().write(f"{table(header, judge.estimate(items))}\n")
    stdout().write(f"prices of {prices.date} ({prices.path}); prompt tokens {counted}\n")


def _answers(row: Group) -> Iterator[tuple[tuple[str, str, str | None], Answer]]:
    """A group's different responses as a judge rates them."""
    for r in {(r.text, r.finish): r for r in row.responses}.values():
        yield (row.id, r.text, r.finish), answer(row, r)


def rate(judge: Judge, rows: Sequence[Group], name: str) -> list[list[Group] | XwinError]:
    """The same groups with each response's rating in ``scores[name]``; equal responses are rated once."""
    distinct = dict(chain.from_iterable(map(_answers, rows)))
    rated = dict(zip(distinct, judge.ratings(list(distinct.values())), strict=True))
    return [_noted(row, [rated[(row.id, r.text, r.finish)] for r in row.responses], name, judge.scorer) for row in rows]


def _noted(row: Group, ratings: Sequence[Rated | XwinError], name: str, scorer: str) -> list[Group] | XwinError:
    for r, rating in zip(row.responses, ratings, strict=True):
        if isinstance(rating, XwinError):
            return rating
        r.scores[name] = rating.rating
    row.scorers = {**(row.scorers or {}), name: scorer}
    return [row]


def settle(window: Sequence[tuple[str, Group]], work: Work, journal: Journal) -> list[Record]:
    """Judge a window of rows; if that fails, row by row, so that only the row at fault is noted as failed."""
    try:
        made = work([row for _, row in window])
    except XwinError as e:
        if len(window) > 1:
            return [r for one in window for r in settle([one], work, journal)]
        made = [e]
    kept: list[Record] = []
    for (key, row), records in zip(window, made, strict=True):
        if isinstance(records, XwinError):
            journal.fail(key, row, f"prompt {row.prompt_id}: {records.message}")
        else:
            journal.add(key, records)
            kept += records
    return kept


def _windows(rows: Iterator[T], size: int) -> Iterator[list[T]]:
    while window := list(islice(rows, size)):
        yield window


def _check(config: Config) -> None:
    if not re.fullmatch(r"all|0*[1-9][0-9]*", config.pairs):
        raise XwinError(f"--pairs is {config.pairs!r}", "it must be all, or a number from 1", USAGE)
    if config.rate and config.against:
        raise XwinError("--rate rates one side's responses; --against compares two", "leave one out", USAGE)
    if config.common and not config.against:
        raise XwinError("--common is about two sides", "name the other: --against FILE", USAGE)
    if "-" in config.data and "-" in config.against:
        raise XwinError("standard input cannot be both sides", "name a file on one", USAGE)


def _plan(config: Config) -> manifest.Manifest:
    other = sources.expand(config.against)
    named = [config.options.rm, config.options.judge if Path(config.options.judge).is_dir() else ""]
    plan = manifest.plan("judge", config, [*sources.expand(config.data), *other, *filter(None, named)])
    plan["config"]["against"] = len(other)  # which side an input is on, not where it lies
    return plan


def _check_demands(config: Config) -> None:
    """Refuse files whose checks the rules cannot read before any work; names the file and the line."""
    from xwincli.checks import describe

    for name in sources.expand(config.data):
        rows = formats.Rows(name, Group)
        for row in islice(() if sources.is_stream(name) else rows, config.limit or None):
            for i, check in enumerate((isinstance(row, Group) and row.checks) or []):
                try:
                    describe(check)
                except XwinError as e:
                    raise XwinError(f"{rows.where}: field checks[{i}]: {e.message}", e.hint) from None


def run(config: Config) -> None:
    """Read groups, draw their pairs, judge, write."""
    _check(config)
    plan = _plan(config)
    if manifest.skip_if_current(config.out, plan, config.force):
        return
    rows: Iterator[Group] = formats.read(config.data, Group, limit=config.limit)
    judge = judges.find(config.options.judge, config.options, seed=config.seed, device=config.device)
    if judge.name == "rules":
        _check_demands(config)
    first = next(rows, None)
    if first is None:
        raise XwinError(f"{', '.join(config.data)}: no rows")
    rows, theirs, total = chain([first], rows), dict[str, Group](), None
    if config.against:
        both, theirs = join(config, rows)
        rows, total = iter(both), len(both)
    wanted = None if config.pairs == "all" else int(config.pairs)

    def work(groups: list[Group]) -> Sequence[Sequence[Record] | XwinError]:
        if config.thinking.split_thinking:
            from xwincli.chat import set_thinking_aside

            for row in [*groups, *filter(None, (theirs.get(g.prompt_id) for g in groups))]:
                set_thinking_aside(row.responses)
        if config.rate:
            return rate(judge, groups, config.rate)
        return compare(judge, [drawn(g) for g in groups])

    def drawn(row: Group) -> list[Match]:
        return draw(row, theirs.get(row.prompt_id), wanted, config.orders, config.seed)

    if config.estimate or config.batch_export:
        _before(judge, rows, drawn, config)
        return
    with (
        Journal(config.out, plan, config, allow_failed=config.allow_failed, force=config.force) as journal,
        progress("judge", total, "prompts") as bar,
    ):
        _judge(rows, work, journal, bar, config, getattr(judge, "window", WINDOW))
        journal.metrics.update(judge.receipt())


def _judge(rows: Iterator[Group], work: Work, journal: Journal, bar: Progress, config: Config, size: int) -> None:
    """Window by window, with the figures kept along the way (those of an interrupted run included)."""
    tally, ratings = Tally(), list[float]()
    done: Iterable[Record] = (decode(row, Group if config.rate else Judgement) for row in journal.recovered())
    for record in chain(done, _settled(rows, work, journal, bar, size)):
        if isinstance(record, Judgement):
            tally.add(record)
            bar.note = f"{tally.count} pairs"
        elif isinstance(record, Group):
            ratings += [r.scores[config.rate] for r in record.responses]
    if config.rate:
        journal.counts["responses"] = len(ratings)
        journal.metrics["mean_rating"] = round(sum(ratings) / max(len(ratings), 1), 6)
        return
    journal.counts["prompts"] = len(tally.prompts)
    if not tally.count and not journal.failed:
        raise XwinError("no prompt has two different responses to compare", "sample more of them: --n 4")
    journal.metrics.update(tally.metrics())
    shares = ", ".join(f"{name.replace('_', ' ')} {value:.1%}" for name, value in tally.metrics().items())
    say(f"judge: {tally.count} pairs: {shares}")


def _settled(rows: Iterator[Group], work: Work, journal: Journal, bar: Progress, size: int) -> Iterator[Record]:
    for window in _windows(journal.todo(rows), size):
        yield from settle(window, work, journal)
        bar.advance(len(window))
