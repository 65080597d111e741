"""A record as another kind, where that loses nothing that matters; a clear sentence where it cannot be."""

from __future__ import annotations

from typing import Any

from xwincli.errors import XwinError
from xwincli.records import (
    Asked,
    Conversation,
    Group,
    Judgement,
    Pair,
    Prompt,
    Record,
    Response,
    content_id,
    encode,
    prompt_id,
)

INSTEAD: dict[tuple[type[Record], type[Record]], str] = {
    (Prompt, Conversation): "a prompt has no answer to learn from; `xwin sample` draws some",
    (Prompt, Group): "a prompt has no responses; `xwin sample` draws some",
    (Prompt, Pair): "a prompt has no responses; `xwin sample` draws some",
    (Prompt, Judgement): "a prompt has no responses; `xwin sample` draws some, `xwin judge` compares them",
    (Conversation, Pair): "a conversation has one answer, and a pair needs two",
    (Group, Conversation): "which response to learn from is what `xwin rs-filter` decides",
    (Group, Pair): "which responses make a pair is what `xwin rs-filter --emit pairs` decides",
    (Group, Judgement): "`xwin judge` compares a group's responses",
    (Pair, Conversation): "to learn from the better side: jq -c '{messages: (.prompt + .chosen)}'",
}


def plural(kind: type[Record]) -> str:
    """A kind's name for several of it."""
    return f"{kind.kind}s"


def as_kind(record: Record, wanted: type[Record], where: str, *, named: bool = True) -> Record:
    """The record as ``wanted``.

    Args:
        record: any record.
        wanted: the kind a stage works on.
        where: ``file:line``.
        named: False if the row had no id of its own, so that the new record's id is made of its content.

    Raises:
        XwinError: a record of this kind cannot become one of that; the hint says which stage helps.
    """
    if isinstance(record, wanted):
        return record
    if wanted is Prompt and isinstance(record, Asked):
        return _prompt_of(record)
    if wanted is Prompt and isinstance(record, Conversation):
        asked = record.messages[:-1]
        return Prompt(id=record.id if named else prompt_id(asked), prompt=asked, extra=record.extra)
    if wanted is Group and isinstance(record, Conversation):
        return _group_of(record, named)
    hint = INSTEAD.get((type(record), wanted), "")
    raise XwinError(f"{where}: holds a {record.kind}, and a {wanted.kind} is needed", hint)


TRAVELS = ("checks", "reference", "contexts", "category")  # what goes with a prompt through every stage


def _prompt_of(record: Asked) -> Prompt:
    """The prompt alone: responses are dropped, and its id is the one that rows about it share."""
    shared: Any = getattr(record, "prompt_id", "") or prompt_id(record.prompt)
    travels = {name: getattr(record, name) for name in TRAVELS}
    return Prompt(id=shared, prompt=record.prompt, extra=record.extra, **travels)


def _group_of(record: Conversation, named: bool) -> Group:
    """A conversation as a group of the one response it ends with."""
    asked, last = record.messages[:-1], record.messages[-1]
    response = Response(text=last["content"] or "")
    group = Group(prompt_id=prompt_id(asked), prompt=asked, responses=[response], extra=record.extra)
    group.id = record.id if named else content_id(encode(group))
    return group
