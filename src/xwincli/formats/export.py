"""Records in the layouts other tools read; a combination that would lose something is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from xwincli.errors import XwinError
from xwincli.formats.kinds import plural
from xwincli.records import Conversation, Group, Message, Pair, Prompt, Record, encode

Row = dict[str, Any]
Export = Callable[[Any, str], list[Row]]  # (record, its name in messages) -> the rows to write


def _canonical(record: Record, where: str) -> list[Row]:
    return [encode(record)]


def _tools(record: Record) -> Row:
    return {"tools": record.extra["tools"]} if "tools" in record.extra else {}


def _trl_prompt(record: Prompt, where: str) -> list[Row]:
    return [{"prompt": record.prompt, **_tools(record)}]


def _messages(record: Conversation, where: str) -> list[Row]:
    return [{"messages": record.messages, **_tools(record)}]


def _trl_pair(record: Pair, where: str) -> list[Row]:
    margin = {} if record.margin is None else {"margin": record.margin}
    sides = {"chosen": record.chosen, "rejected": record.rejected}
    return [{"prompt": record.prompt, **sides, **margin, **_tools(record)}]


def _trl_group(record: Group, where: str) -> list[Row]:
    """One row of prompt and completion for each response."""
    answers = [[{"role": "assistant", "content": r.text}] for r in record.responses]
    return [{"prompt": record.prompt, "completion": answer, **_tools(record)} for answer in answers]


def _implicit_pair(record: Pair, where: str) -> list[Row]:
    """The prompt inside both sides, where RewardBench looks for it."""
    sides = {name: [*record.prompt, *getattr(record, name)] for name in ("chosen", "rejected")}
    return [{**sides, **_tools(record)}]


SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


def _turn(message: Message) -> Row:
    if calls := message.get("tool_calls"):
        made = [call.get("function", call) for call in calls]
        value = msgspec.json.encode(made[0] if len(made) == 1 else made).decode()
        return {"from": "function_call", "value": value}
    return {"from": SPEAKERS[message["role"]], "value": message["content"]}


def _sharegpt(messages: list[Message]) -> Row:
    system = messages[0]["role"] == "system"
    turns = [_turn(m) for m in messages[system:]]
    return {**({"system": messages[0]["content"]} if system else {}), "conversations": turns}


def _sharegpt_conversation(record: Conversation, where: str) -> list[Row]:
    return [{**_sharegpt(record.messages), **_tools(record)}]


def _sharegpt_pair(record: Pair, where: str) -> list[Row]:
    if len(record.chosen) != 1 or len(record.rejected) != 1:
        raise XwinError(f"{where}: ShareGPT's chosen and rejected are one turn each, these are more")
    sides = {"chosen": _turn(record.chosen[0]), "rejected": _turn(record.rejected[0])}
    return [{**_sharegpt(record.prompt), **sides, **_tools(record)}]


def _openai_pair(record: Pair, where: str) -> list[Row]:
    given = {"messages": record.prompt, **_tools(record)}
    return [{"input": given, "preferred_output": record.chosen, "non_preferred_output": record.rejected}]


def _alpaca_eval(record: Group, where: str) -> list[Row]:
    """AlpacaEval's model_outputs, which knows one instruction and one output a row."""
    if len(record.prompt) != 1:
        text = f"{where}: field prompt: has {len(record.prompt)} messages, an AlpacaEval row has one"
        raise XwinError(text, "system messages and earlier turns have no place there")
    if len(record.responses) != 1:
        text = f"{where}: field responses: there are {len(record.responses)}, AlpacaEval has one output a row"
        raise XwinError(text, "sample with --n 1")
    if not record.model:
        raise XwinError(f"{where}: field model: is missing; AlpacaEval's rows name their generator")
    more: Row = {k: record.extra[k] for k in ("dataset", "datasplit") if k in record.extra}
    said: Row = {"instruction": record.prompt[0]["content"], "output": record.responses[0].text}
    return [{**said, "generator": record.model, **more}]


TARGETS: dict[str, dict[type[Record], Export]] = {
    "canonical": {Record: _canonical},
    "trl": {Prompt: _trl_prompt, Conversation: _messages, Group: _trl_group, Pair: _trl_pair},
    "trl-implicit": {Pair: _implicit_pair},
    "sharegpt": {Conversation: _sharegpt_conversation, Pair: _sharegpt_pair},
    "openai": {Conversation: _messages, Pair: _openai_pair},
    "alpaca-eval": {Group: _alpaca_eval},
}
ARRAYS = ("alpaca-eval",)  # written as one JSON array instead of lines


def export(record: Record, to: str, where: str) -> list[Row]:
    """The rows that hold a record in the layout ``to``.

    Raises:
        XwinError: the layout has no room for this kind, or for something in this record.
    """
    kinds = TARGETS[to]
    write = kinds.get(type(record), kinds.get(Record))
    if write is None:
        hint = f"{to} holds {' or '.join(plural(k) for k in kinds)}"
        raise XwinError(f"{where}: a {record.kind} cannot be written as {to}", hint)
    return write(record, where)
