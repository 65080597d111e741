"""Whole conversations: OpenAI's messages, ShareGPT's conversations, verifiable prompts of open-instruct."""

from __future__ import annotations

from typing import Any

from xwincli.formats.parts import (
    Format,
    Row,
    assistant,
    calls,
    listed,
    messages,
    named,
    opening,
    rest,
    text,
    with_tools,
    wrong,
)
from xwincli.records import Conversation, Group, Message, Prompt, check_messages

SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool": "tool",
}


def _conversation(row: Row, where: str) -> Row:
    said = messages(row["messages"], where, "messages")
    return {**rest(with_tools(row, where), "messages"), "messages": said}


def _waiting(said: list[Message], where: str, field: str) -> list[Message]:
    """The prompt in a conversation: up to the last message of the user."""
    if said and said[-1].get("role") == "assistant":
        check_messages(said, where, field, ends="assistant")
        return said[:-1]
    check_messages(said, where, field, ends="user")
    return said


def _messages_prompt(row: Row, where: str) -> Row:
    said = _waiting(messages(row["messages"], where, "messages"), where, "messages")
    return {**rest(with_tools(row, where), "messages"), "prompt": said}


def sharegpt(row: Row, where: str, ends: str) -> list[Message]:
    """The messages of ``conversations`` (from, value; or role, content) with the ``system`` column before."""
    value = listed(row, "conversations", where)
    system = opening(row, where)
    before = "system" if system else ""
    if isinstance(value[0], dict) and "role" in value[0]:
        said = messages(value, where, "conversations")
        check_messages(said, where, "conversations", ends, before)
    else:
        said = [turn(m, where, f"conversations[{i}]") for i, m in enumerate(value)]
        check_messages(said, where, "conversations", ends, before, ("from", "value"))
    return [*system, *said]


def turn(value: Any, where: str, field: str) -> Message:
    """One ``{"from", "value"}`` as a message; a ``function_call`` becomes tool calls."""
    if not isinstance(value, dict):
        raise wrong(where, field, f"a turn is an object with from and value, this is {named(value)}")
    speaker = value.get("from")
    if "from" not in value:
        raise wrong(where, f"{field}.from", "is missing")
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise wrong(where, f"{field}.from", f"{speaker!r} is no speaker", f"known are {', '.join(SPEAKERS)}")
    said = text(value, "value", where, path=field, may_be_empty=True)
    others = {k: v for k, v in value.items() if k not in ("from", "value") and v is not None}
    if speaker == "function_call":
        made = calls(said, where, f"{field}.value")
        return {"role": "assistant", "content": "", "tool_calls": made, **others}
    return {"role": SPEAKERS[speaker], "content": said, **others}


def _sharegpt_conversation(row: Row, where: str) -> Row:
    said = sharegpt(row, where, "assistant")
    return {**rest(with_tools(row, where), "conversations", "system"), "messages": said}


def _sharegpt_prompt(row: Row, where: str) -> Row:
    last = listed(row, "conversations", where)[-1]
    speaker = last.get("from", last.get("role")) if isinstance(last, dict) else None
    answered = isinstance(speaker, str) and SPEAKERS.get(speaker) == "assistant"
    said = sharegpt(row, where, "assistant" if answered else "user")
    kept = rest(with_tools(row, where), "conversations", "system")
    return {**kept, "prompt": said[:-1] if answered else said}


def _verifiable(row: Row, where: str) -> Row:
    """open-instruct's RLVR rows: the known answer becomes the reference, the constraint stays beside it."""
    truth = row["ground_truth"]
    said = _waiting(messages(row["messages"], where, "messages"), where, "messages")
    reference = {"reference": truth} if isinstance(truth, str) else {"ground_truth": truth}
    return {**rest(row, "messages", "ground_truth"), "prompt": said, **reference}


def _drawn(row: Row, where: str) -> Row:
    """open-instruct's rejection sampling: one drawn answer a row, perhaps scored."""
    said = _waiting(messages(row["messages"], where, "messages"), where, "messages")
    response: Row = {"text": text(row, "model_completion", where, may_be_empty=True)}
    if isinstance(row.get("score"), int | float):
        response["scores"] = {"score": row["score"]}
    reference = {"reference": row["reference_completion"]} if row.get("reference_completion") else {}
    kept = rest(row, "messages", "model_completion", "reference_completion", "score")
    return {**kept, "prompt": said, "responses": [response], **reference}


def _arena_answer(row: Row, where: str) -> Row:
    """Arena-Hard's answers: the last message's content is an object with the answer."""
    said = [dict(m) if isinstance(m, dict) else m for m in listed(row, "messages", where)]
    last = said[-1]
    if isinstance(last, dict) and isinstance(last.get("content"), dict):
        path = f"messages[{len(said) - 1}].content"
        said[-1] = assistant(text(last["content"], "answer", where, path=path))
    asked = _waiting(messages(said, where, "messages"), where, "messages")
    response = {"text": said[-1]["content"]}
    return {**rest(row, "messages"), "prompt": asked, "responses": [response]}


FORMATS = (
    Format("arena-hard answers", ("uid", "ans_id", "messages"), {Group: _arena_answer}),
    Format("open-instruct samples", ("messages", "model_completion"), {Group: _drawn}),
    Format("rlvr", ("messages", "ground_truth"), {Prompt: _verifiable}),
    Format("messages", ("messages",), {Conversation: _conversation, Prompt: _messages_prompt}, ours=True),
    Format("sharegpt", ("conversations",), {Conversation: _sharegpt_conversation, Prompt: _sharegpt_prompt}),
)
