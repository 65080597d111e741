"""One question, one answer, under the many names they go by: alpaca, dolly, gsm8k, prompt and completion."""

from __future__ import annotations

from typing import Any

from xwincli.formats.parts import (
    Convert,
    Format,
    Row,
    assistant,
    listed,
    messages,
    named,
    opening,
    optional,
    prompt,
    rest,
    text,
    user,
    wrong,
)
from xwincli.records import Conversation, Message, Prompt, Record


def asked(row: Row, where: str, question: str, context: str = "") -> list[Message]:
    """The prompt of a single-turn row: system, ``history`` (pairs of texts), then question and context."""
    said = opening(row, where)
    for i, pair in enumerate(row.get("history") or []):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(t, str) for t in pair):
            raise wrong(where, f"history[{i}]", "is no pair of question and answer")
        said += [user(pair[0]), assistant(pair[1])]
    more = optional(row, context, where) if context else ""
    return [*said, user("\n".join(t for t in (text(row, question, where), more) if t))]


USED = ("system", "system_prompt", "history")


def _answered(question: str, context: str, answer: str) -> Convert:
    def convert(row: Row, where: str) -> Row:
        said = [*asked(row, where, question, context), assistant(text(row, answer, where))]
        return {**rest(row, question, context, answer, *USED), "messages": said}

    return convert


def _referenced(question: str, answer: str) -> Convert:
    """As a prompt, whose known answer is the reference."""

    def convert(row: Row, where: str) -> Row:
        known = {"reference": text(row, answer, where)}
        return {**rest(row, question, answer, *USED), "prompt": asked(row, where, question), **known}

    return convert


def _unanswered(question: str, context: str = "", answer: str = "") -> Convert:
    def convert(row: Row, where: str) -> Row:
        return {**rest(row, question, context, answer, *USED), "prompt": asked(row, where, question, context)}

    return convert


def _prompt(row: Row, where: str) -> Row:
    return {**rest(row, "prompt", "system", "system_prompt"), "prompt": prompt(row, where)}


def completed(row: Row, where: str) -> list[Message]:
    """The messages of TRL's ``prompt`` and ``completion``, each text or messages."""
    value: Any = row["completion"]
    if isinstance(value, list):
        ends = messages(value, where, "completion")
    elif isinstance(value, dict):
        ends = messages([value], where, "completion")
    else:
        ends = [assistant(text(row, "completion", where))]
    return [*prompt(row, where), *ends]


def _completion(row: Row, where: str) -> Row:
    return {**rest(row, "prompt", "completion", "system", "system_prompt"), "messages": completed(row, where)}


def _completion_prompt(row: Row, where: str) -> Row:
    return {**rest(row, "prompt", "completion", "system", "system_prompt"), "prompt": prompt(row, where)}


def _seed_task(row: Row, where: str) -> Row:
    """Self-Instruct's seed tasks: the instruction with its one instance."""
    instances = listed(row, "instances", where)
    if not isinstance(instances[0], dict):
        raise wrong(where, "instances[0]", f"expected an object, got {named(instances[0])}")
    if len(instances) > 1:
        raise wrong(where, "instances", f"has {len(instances)} instances, and a row is one conversation")
    given = {**instances[0], "instruction": row["instruction"]}
    answer = assistant(text(given, "output", where))
    said = [*asked(given, where, "instruction", "input"), answer]
    return {**rest(row, "instruction", "instances"), "messages": said}


def _turn(name: str, question: str, answer: str, context: str = "", *more: str) -> Format:
    to: dict[type[Record], Convert] = {
        Conversation: _answered(question, context, answer),
        Prompt: _unanswered(question, context, answer),
    }
    return Format(name, (question, answer, *more), to)


FORMATS = (
    Format("seed-tasks", ("instruction", "instances"), {Conversation: _seed_task}),
    _turn("dolly", "instruction", "response", "context", "context"),
    _turn("alpaca", "instruction", "output", "input"),
    _turn("instruction-response", "instruction", "response", "input"),
    _turn("instruction-completion", "instruction", "completion", "input"),
    Format(
        "question-answer",
        ("question", "answer"),
        {Conversation: _answered("question", "", "answer"), Prompt: _referenced("question", "answer")},
    ),
    Format(
        "problem-solution",
        ("problem", "solution"),
        {Conversation: _answered("problem", "", "solution"), Prompt: _referenced("problem", "solution")},
    ),
    _turn("question-response", "question", "response"),
    _turn("query-response", "query", "response"),
    _turn("input-output", "input", "output"),
    Format(
        "prompt-completion",
        ("prompt", "completion"),
        {Conversation: _completion, Prompt: _completion_prompt},
    ),
    _turn("prompt-response", "prompt", "response"),
    Format("prompt", ("prompt",), {Prompt: _prompt}, ours=True),
    Format("instruction", ("instruction",), {Prompt: _unanswered("instruction", "input")}),
    Format("question", ("question",), {Prompt: _unanswered("question")}),
)
