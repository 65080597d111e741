"""Compare answers in pairs, in both orders, and keep the reasons.

    xwin judge --data groups.jsonl --out judgements.jsonl

Pairs are drawn within each group (`--pairs`), or between two files of groups joined by prompt
(`--against other.jsonl`: a is from `--data`, b from the other). Both orders of showing are asked and a
winner must win both: disagreement is a tie, since a judge that only likes what stands first says nothing.
Answers that are equal cost no call and are a tie.

`--rate NAME` compares nothing: every response is rated by itself and the groups come out with the rating in
`scores[NAME]`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TypeVar

from xwincli import formats, judges, manifest, settings, sources
from xwincli.console import Progress, progress, say
from xwincli.errors import USAGE, XwinError
from xwincli.journal import Journal
from xwincli.judges import Answer, Judge
from xwincli.judges.matches import Tally, compare, draw
from xwincli.records import Group, Judgement, Record, content_id, decode
from xwincli.settings import flag, group

T = TypeVar("T")
Work = Callable[[list[Group]], Sequence[Sequence[Record]]]  # the records of each of several groups
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


def rate(judge: Judge, rows: Sequence[Group], name: str) -> list[list[Group]]:
    """The same groups with each response's rating in ``scores[name]``; equal responses are rated once."""
    distinct: dict[tuple[str, str, str | None], Answer] = {}
    for row in rows:
        for r in row.responses:
            key = (row.id, r.text, r.finish)
            id_ = content_id(row.prompt_id, r.text)
            distinct[key] = Answer(id=id_, prompt=row.prompt, text=r.text, finish=r.finish, checks=row.checks)
    rated = dict(zip(distinct, judge.ratings(list(distinct.values())), strict=True))
    for row in rows:
        for r in row.responses:
            r.scores[name] = rated[(row.id, r.text, r.finish)].rating
        row.scorers = {**(row.scorers or {}), name: judge.scorer}
    return [[row] for row in rows]


def settle(window: Sequence[tuple[str, Group]], work: Work, journal: Journal) -> list[Record]:
    """Judge a window of rows; if that fails, row by row, so that only the row at fault is noted as failed."""
    try:
        made = work([row for _, row in window])
    except XwinError as e:
        if len(window) > 1:
            return [r for one in window for r in settle([one], work, journal)]
        key, row = window[0]
        journal.fail(key, row, f"prompt {row.prompt_id}: {e.message}")
        return []
    for (key, _), records in zip(window, made, strict=True):
        journal.add(key, records)
    return [r for records in made for r in records]


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
    rm = [config.options.rm] if config.options.rm else []
    plan = manifest.plan("judge", config, [*sources.expand(config.data), *other, *rm])
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

    def work(groups: list[Group]) -> Sequence[Sequence[Record]]:
        if config.thinking.split_thinking:
            from xwincli.chat import set_thinking_aside

            for row in [*groups, *filter(None, (theirs.get(g.prompt_id) for g in groups))]:
                set_thinking_aside(row.responses)
        if config.rate:
            return rate(judge, groups, config.rate)
        drawn = [draw(g, theirs.get(g.prompt_id), wanted, config.orders, config.seed) for g in groups]
        return compare(judge, drawn)

    with (
        Journal(config.out, plan, config, allow_failed=config.allow_failed, force=config.force) as journal,
        progress("judge", total, "prompts") as bar,
    ):
        _judge(rows, work, journal, bar, config)


def _judge(rows: Iterator[Group], work: Work, journal: Journal, bar: Progress, config: Config) -> None:
    """Window by window, with the figures kept along the way (those of an interrupted run included)."""
    tally, ratings = Tally(), list[float]()
    done: Iterable[Record] = (decode(row, Group if config.rate else Judgement) for row in journal.recovered())
    for record in chain(done, _settled(rows, work, journal, bar)):
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


def _settled(rows: Iterator[Group], work: Work, journal: Journal, bar: Progress) -> Iterator[Record]:
    for window in _windows(journal.todo(rows), WINDOW):
        yield from settle(window, work, journal)
        bar.advance(len(window))
