"""Which of two answers is better, or whether one is good: TRL, UltraFeedback, HH, OpenAI, LLaMA-Factory."""

from __future__ import annotations

from typing import Any

from xwincli.formats.chats import sharegpt, turn
from xwincli.formats.parts import (
    Convert,
    Format,
    Row,
    assistant,
    is_transcript,
    messages,
    named,
    number,
    prompt,
    rest,
    text,
    transcript,
    with_tools,
    wrong,
)
from xwincli.formats.turns import USED, asked, completed
from xwincli.records import Conversation, Group, Message, Pair, Record, check_messages

SCORES = {
    "score_chosen": ("score_chosen", "chosen_score", "chosen_rating", "chosen-rating"),
    "score_rejected": ("score_rejected", "rejected_score", "rejected_rating", "rejected-rating"),
}


def _scores(row: Row, where: str) -> Row:
    found = {ours: name for ours, names in SCORES.items() for name in names if row.get(name) is not None}
    return {ours: number(row[name], where, name) for ours, name in found.items()}


def _kept(row: Row, *used: str) -> Row:
    return rest(row, "chosen", "rejected", *(n for names in SCORES.values() for n in names), *used)


def _side(row: Row, key: str, where: str) -> str | list[Message]:
    """One side as it stands: text, one message, or messages with or without the prompt."""
    if key not in row:
        raise wrong(where, key, "is missing")
    value: Any = row[key]
    if isinstance(value, str):
        return transcript(value) if is_transcript(value) else text(row, key, where)
    return messages([value] if isinstance(value, dict) else value, where, key)


def _preference(row: Row, where: str) -> Row:
    """``chosen`` and ``rejected`` with the prompt apart (TRL's explicit form) or inside both (implicit)."""
    chosen, rejected = _side(row, "chosen", where), _side(row, "rejected", where)
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise wrong(where, "rejected", f"is {named(row['rejected'])} where chosen is {named(row['chosen'])}")
    kept = {**_scores(row, where), **_kept(row, "prompt", "messages", "system", "system_prompt")}
    if isinstance(chosen, str) or isinstance(rejected, str):
        if row.get("prompt") is None:
            hint = "a column `prompt` holds what both answer"
            raise wrong(where, "prompt", "is missing, and chosen and rejected are plain texts", hint)
        sides = [assistant(str(chosen))], [assistant(str(rejected))]
        return {**kept, "prompt": prompt(row, where), "chosen": sides[0], "rejected": sides[1]}
    if chosen and chosen[0].get("role") == "assistant":
        if row.get("prompt") is None:
            raise wrong(where, "chosen[0].role", "the assistant cannot speak before the user")
        return {**kept, "prompt": prompt(row, where), "chosen": chosen, "rejected": rejected}
    return {**kept, **split(chosen, rejected, where, ("chosen", "rejected"), row.get("prompt"))}


def split(chosen: list[Message], rejected: list[Message], where: str, names: tuple[str, str], given: Any = None) -> Row:
    """A pair of conversations that differ in the last message, taken apart into prompt and two answers.

    Args:
        chosen: the better conversation, with the prompt.
        rejected: the worse one.
        where: ``file:line``.
        names: the columns' names.
        given: a prompt that stands beside them and must agree with it.
    """
    for said, name in zip((chosen, rejected), names):
        check_messages(said, where, name, ends="assistant")
    if chosen[:-1] != rejected[:-1]:
        i = next((i for i, (a, b) in enumerate(zip(chosen[:-1], rejected[:-1])) if a != b), len(rejected) - 1)
        hint = "a pair is one prompt with two answers"
        raise wrong(where, names[1], f"its prompt differs from that of {names[0]} at message {i}", hint)
    asked_texts = {str(m.get("content")).strip() for m in chosen[:-1] if m["role"] == "user"}
    if isinstance(given, str) and not is_transcript(given) and given.strip() not in asked_texts:
        raise wrong(where, "prompt", f"is not what {names[0]} answers")
    return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def _alpaca(row: Row, where: str) -> Row:
    sides = {k: [assistant(text(row, k, where))] for k in ("chosen", "rejected")}
    kept = {**_scores(row, where), **_kept(row, "instruction", "input", *USED)}
    return {**kept, "prompt": asked(row, where, "instruction", "input"), **sides}


def _sharegpt(row: Row, where: str) -> Row:
    said = sharegpt(row, where, "user")
    sides = {k: _turns(row[k], where, k) for k in ("chosen", "rejected")}
    kept = {**_scores(row, where), **_kept(with_tools(row, where), "conversations", "system")}
    return {**kept, "prompt": said, **sides}


def _turns(value: Any, where: str, field: str) -> list[Message]:
    if isinstance(value, str):
        return [assistant(value)]
    if isinstance(value, dict):
        return messages([value], where, field) if "role" in value else [turn(value, where, field)]
    if not isinstance(value, list):
        raise wrong(where, field, f"expected a turn, got {named(value)}")
    return [turn(m, where, f"{field}[{i}]") for i, m in enumerate(value)]


def _openai(row: Row, where: str) -> Row:
    given = row["input"]
    if not isinstance(given, dict):
        raise wrong(where, "input", f"expected an object with messages, got {named(given)}")
    if "messages" not in given:
        raise wrong(where, "input.messages", "is missing")
    sides = {
        ours: messages(row[theirs], where, theirs)
        for ours, theirs in (("chosen", "preferred_output"), ("rejected", "non_preferred_output"))
    }
    tools = {k: v for k, v in with_tools(given, where).items() if k == "tools"}
    kept = rest(row, "input", "preferred_output", "non_preferred_output")
    return {**kept, "prompt": messages(given["messages"], where, "input.messages"), **sides, **tools}


def _both_messages(row: Row, where: str) -> Row:
    names = ("chosen_messages", "rejected_messages")
    chosen, rejected = (messages(row[name], where, name) for name in names)
    return {**rest(row, *names), **split(chosen, rejected, where, names)}


def _stack_exchange(row: Row, where: str) -> Row:
    chosen, rejected = (assistant(text(row, k, where)) for k in ("response_j", "response_k"))
    kept = rest(row, "question", "response_j", "response_k", *USED)
    return {**kept, "prompt": asked(row, where, "question"), "chosen": [chosen], "rejected": [rejected]}


def _judged(row: Row, where: str) -> tuple[list[Message], bool]:
    """An unpaired row's conversation and whether it is labelled good."""
    label = row["label"]
    if not isinstance(label, bool):
        raise wrong(where, "label", f"expected true or false, got {named(label)} ({str(label)[:20]!r})")
    if "completion" in row:
        return completed(row, where), label
    return messages(row["messages"], where, "messages"), label


def _unpaired_group(row: Row, where: str) -> Row:
    """Lossless: a group of one response with the score ``label``, 1 or 0."""
    said, label = _judged(row, where)
    check_messages(said, where, "completion" if "completion" in row else "messages", ends="assistant")
    response = {"text": said[-1]["content"] or "", "scores": {"label": float(label)}}
    return {**rest(row, *_UNPAIRED_USED), "prompt": said[:-1], "responses": [response]}


def _unpaired_conversation(row: Row, where: str) -> Row:
    said, label = _judged(row, where)
    if not label:
        hint = "leave such rows out; xwin convert keeps all, as groups with the score `label`"
        raise wrong(where, "label", "is false: not an answer to learn from", hint)
    return {**rest(row, *_UNPAIRED_USED), "messages": said}


_UNPAIRED_USED = ("messages", "prompt", "completion", "label", "system", "system_prompt")
_UNPAIRED: dict[type[Record], Convert] = {Group: _unpaired_group, Conversation: _unpaired_conversation}

FORMATS = (
    Format("sharegpt preferences", ("conversations", "chosen", "rejected"), {Pair: _sharegpt}),
    Format("alpaca preferences", ("instruction", "chosen", "rejected"), {Pair: _alpaca}),
    Format("openai preferences", ("input", "preferred_output", "non_preferred_output"), {Pair: _openai}),
    Format("chosen-rejected messages", ("chosen_messages", "rejected_messages"), {Pair: _both_messages}),
    Format("stack-exchange", ("question", "response_j", "response_k"), {Pair: _stack_exchange}),
    Format("preferences", ("chosen", "rejected"), {Pair: _preference}, ours=True),
    Format("unpaired", ("prompt", "completion", "label"), _UNPAIRED),
    Format("unpaired messages", ("messages", "label"), _UNPAIRED),
)
