"""What is this file or model, and is anything wrong with it?

    xwin check --data pairs.jsonl
    xwin check --data 'runs/*.jsonl' --tokenizer model
    xwin check --data prompts.jsonl --against eval.jsonl
    xwin check --model rm --json

Of a file: format, kind, rows, problems (each with its line and field), lengths, duplicates, and with --against
prompts that an evaluation set holds. Of a model
folder: architecture, parameters, precision, template, stop tokens, and what makes loaders disagree.
The exit code is 1 if there is any problem.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from xwincli import checkpoint, contamination, formats, jsonl, settings, sources
from xwincli.console import say, stdout
from xwincli.errors import USAGE, XwinError
from xwincli.records import Asked, Conversation, Group, Pair, Record, content_id, encode
from xwincli.settings import flag, group

Facts = dict[str, Any]


@dataclass(kw_only=True)
class Config:
    """Options of ``xwin check``."""

    data: list[str] = flag([], "rows: files, globs, hf:NAME[:SPLIT], or - for standard input; repeatable")
    model: str = flag("", "a model folder")
    tokenizer: str = flag("", "model folder whose tokenizer and template give the lengths in tokens")
    format: str = flag("auto", "layout of the input", choices=("auto", *formats.NAMES))
    against: contamination.Against = group(contamination.Against)
    problems: int = flag(20, "problems to show at most; all are counted", low=0)
    json: bool = flag(False, "one JSON object on standard output")
    chat: settings.Chat = group(settings.Chat)


def run(config: Config) -> None:
    """Report, and exit 1 if there are problems."""
    if bool(config.data) == bool(config.model):
        raise XwinError("name either --data or --model", "xwin check --data FILE", USAGE)
    if config.against.against and not config.data:
        raise XwinError("--against means nothing here", "--data names the prompts to look at", USAGE)
    if config.chat.template_arg and not (config.data and config.tokenizer):
        raise XwinError("--template-arg means nothing here", "--data with --tokenizer has a chat template", USAGE)
    if config.model:
        facts, problems = checkpoint.inspect(config.model)
        reports = [{"model": config.model, **facts, "problem_count": len(problems), "problems": problems}]
    else:
        template = _template(config) if config.tokenizer else None
        index = contamination.index(config.against)
        reports = [_file(name, config, template, index) for name in sources.expand(config.data)]
    if config.json:
        body = reports[0] if config.model else {"files": reports}
        stdout().write(jsonl.dumps(body) + "\n")
    else:
        for report in reports:
            _show(report)
    if count := sum(r["problem_count"] for r in reports):
        raise XwinError(f"{count} problem{'s' * (count > 1)} found")


def _template(config: Config) -> Any:
    from xwincli.chat import Template
    from xwincli.models import load_tokenizer

    return Template(load_tokenizer(config.tokenizer)).given(config.chat.template_arg)


def _file(name: str, config: Config, template: Any, index: contamination.Index | None) -> Facts:
    """Everything about one source; problems beyond the wanted number are only counted."""
    found: list[XwinError] = []
    rows = formats.Rows(name, None, config.format, found)
    tally = Tally(template, index)
    try:
        for record in rows:
            tally.add(record, rows.where, found)
    except XwinError as e:  # the source itself broke off
        found.append(e)
    problems = [e.message for e in found]
    return {
        "path": sources.shown(name),
        "format": rows.format.name if rows.format else None,
        "kind": rows.kind.kind if rows.kind else None,
        "rows": rows.count,
        **tally.facts(),
        "problem_count": len(problems),
        "problems": problems[: config.problems],
    }


class Tally:
    """Counts and lengths over the records of one source."""

    def __init__(self, template: Any, index: contamination.Index | None) -> None:
        self.template, self.index = template, index
        self.prompts: set[str] = set()
        self.lengths: dict[str, list[int]] = {}
        self.scores: dict[str, list[float]] = {}
        self.counts: Counter[str] = Counter()
        self._ids: dict[str, tuple[str, str]] = {}
        self._contents: set[str] = set()

    def add(self, record: Record, where: str, problems: list[XwinError]) -> None:
        """Take one record into account; an id given twice to different content is a problem."""
        row = {k: v for k, v in encode(record).items() if k != "id"}
        content = content_id(row)
        self.counts["duplicate_rows"] += content in self._contents
        self._contents.add(content)
        before, there = self._ids.setdefault(record.id, (content, _place(where)))
        if before != content:
            text = f"{where}: field id: {record.id!r} is also that of {there}, which differs"
            problems.append(XwinError(text))
        if isinstance(record, Asked):
            self.prompts.add(content_id(record.prompt))
            self._long("prompt_characters", _characters(record.prompt))
        if self.index and (shared := self.index.find(contamination.asked(record))):
            self.counts["contaminated_prompts"] += 1
            problems.append(XwinError(f"{where}: shares “{shared[0]}” with {shared[1]}"))
        try:
            self._of_kind(record)
        except XwinError as e:  # a template refuses the conversation
            problems.append(XwinError(f"{where}: {e.message}"))

    def _of_kind(self, record: Record) -> None:
        if isinstance(record, Conversation):
            self.counts["messages"] += len(record.messages)
            self.counts["answers"] += sum(m["role"] == "assistant" for m in record.messages)
            self._long("characters", _characters(record.messages))
            if self.template:
                rows = self.template.conversation(record.messages)
                self._long("tokens", max((len(ids) for ids, _ in rows), default=0))
            return
        if self.template and isinstance(record, Asked):
            self._long("prompt_tokens", len(self.template.prompt_ids(record.prompt)))
        if isinstance(record, Group):
            self._group(record)
        elif isinstance(record, Pair):
            self._pair(record)

    def _group(self, record: Group) -> None:
        texts = [r.text for r in record.responses]
        self.counts["responses"] += len(texts)
        self.counts["duplicate_responses"] += len(texts) - len(set(texts))
        self.counts["empty_responses"] += sum(not t.strip() for t in texts)
        self._long("responses_per_prompt", len(texts))
        for r in record.responses:
            self._long("response_characters", len(r.text))
            for name, score in r.scores.items():
                self.scores.setdefault(name, []).append(score)
            if self.template:
                ids = self.template.response_ids(record.prompt, r.text, r.finish != "length")[1]
                self._long("response_tokens", len(ids))

    def _pair(self, record: Pair) -> None:
        chosen, rejected = record.score_chosen, record.score_rejected
        if chosen is not None and rejected is not None:
            self.counts["chosen_scored_lower"] += chosen < rejected
        for name in ("chosen", "rejected"):
            side = getattr(record, name)
            self._long(f"{name}_characters", _characters(side))
            if self.template and len(side) == 1:
                ids = self.template.response_ids(record.prompt, side[0]["content"], True)[1]
                self._long(f"{name}_tokens", len(ids))

    def _long(self, name: str, length: int) -> None:
        self.lengths.setdefault(name, []).append(length)

    def facts(self) -> Facts:
        """The summary; lengths as min, median, mean and max."""
        prompts = {"distinct_prompts": len(self.prompts)} if self.prompts else {}
        scores = {name: {"count": len(v), **_summary(v)} for name, v in self.scores.items()}
        return {
            **prompts,
            **self.counts,
            "lengths": {name: _summary(v) for name, v in self.lengths.items()},
            **({"scores": scores} if scores else {}),
        }


def _place(where: str) -> str:
    """``line 3`` of ``file:3``, ``element 3`` of ``file[3]``."""
    if where.endswith("]"):
        return f"element {where[:-1].rpartition('[')[2]}"
    return f"line {where.rpartition(':')[2]}"


def _characters(messages: Sequence[Facts]) -> int:
    return sum(len(m.get("content") or "") for m in messages)


def _summary(values: Sequence[float]) -> Facts:
    middle = {"median": median(values), "mean": round(mean(values), 4)}
    return {"min": min(values), **middle, "max": max(values)}


def _show(report: Facts) -> None:
    """A report as lines for people."""
    for name, value in report.items():
        if name in ("lengths", "scores"):
            for inner, summary in value.items():
                figures = " · ".join(f"{k} {v:g}" for k, v in summary.items())
                say(f"  {inner.replace('_', ' ')}: {figures}")
        elif name == "problems":
            for problem in value:
                say(f"  - {problem}")
        elif name in ("path", "model"):
            say(str(value))
        elif isinstance(value, dict):
            say(f"  {name.replace('_', ' ')}: {', '.join(f'{k} {v}'.strip() for k, v in value.items())}")
        elif value is not None:
            say(f"  {name.replace('_', ' ')}: {value}")
