"""The small pieces foreign rows are made of: texts, messages, typed content, tool calls, scores."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from xwincli.errors import XwinError
from xwincli.records import Message, Record
from xwincli.strict import Strict

Row = dict[str, Any]
Convert = Callable[[Row, str], Row]  # (row, file:line) -> the columns of a canonical record
ID_NAMES = ("question_id", "uid", "custom_id")  # what others call a row's id


class Format(NamedTuple):
    """One layout of rows in the wild.

    ``needs`` are the columns that every row has, ``to`` the conversion for each kind it can become, the
    natural one first; ``refusal`` says instead why there is none. ``ours`` marks the layouts that canonical
    rows have too, which are read without a word; ``shares_ids`` those with one candidate a row, all of a prompt's
    under one id.
    """

    name: str
    needs: tuple[str, ...]
    to: Mapping[type[Record], Convert]
    refusal: str = ""
    ours: bool = False
    shares_ids: bool = False


def wrong(where: str, field: str, text: str, hint: str = "") -> XwinError:
    """``file:line: field F: what is wrong``."""
    return XwinError(f"{where}: field {field}: {text}", hint)


def named(value: Any) -> str:
    """A value's type in the words of JSON."""
    names = {str: "text", bool: "a truth value", dict: "an object", list: "a list", type(None): "null"}
    return names.get(type(value), "a number")


def text(row: Row, key: str, where: str, *, may_be_empty: bool = False, path: str = "") -> str:
    """The text of a field; XwinError where it is missing, no text, or blank."""
    field = f"{path}.{key}" if path else key
    if key not in row:
        raise wrong(where, field, "is missing")
    value = row[key]
    if not isinstance(value, str):
        raise wrong(where, field, f"expected text, got {named(value)}")
    if not may_be_empty and not value.strip():
        raise wrong(where, field, "is empty")
    return value


def optional(row: Row, key: str, where: str) -> str:
    """The text of a field that may be missing, null or blank: then an empty text."""
    return "" if row.get(key) is None else text(row, key, where, may_be_empty=True)


def listed(row: Row, key: str, where: str) -> list[Any]:
    """The non-empty list of a field."""
    if key not in row:
        raise wrong(where, key, "is missing")
    value = row[key]
    if not isinstance(value, list):
        raise wrong(where, key, f"expected a list, got {named(value)}")
    if not value:
        raise wrong(where, key, "is an empty list")
    return value


def number(value: Any, where: str, field: str) -> float:
    """A score; XwinError for anything but a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(where, field, f"expected a number, got {named(value)}")
    return float(value)


def rest(row: Row, *used: str) -> Row:
    """The columns a conversion did not use, kept as they are; another name for the id becomes ``id``."""
    kept = {k: v for k, v in row.items() if k not in used and k != "kind"}
    for name in ID_NAMES:
        if name in kept and "id" not in kept:
            kept["id"] = kept.pop(name)
    return kept


def user(content: str) -> Message:
    """A message of the user."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """A message of the assistant."""
    return {"role": "assistant", "content": content}


def opening(row: Row, where: str) -> list[Message]:
    """The system message of a row with a ``system`` (or ``system_prompt``) column, if it says anything."""
    for key in ("system", "system_prompt"):
        if content := optional(row, key, where):
            return [{"role": "system", "content": content}]
    return []


def messages(value: Any, where: str, field: str) -> list[Message]:
    """Messages in OpenAI's form: typed content parts become text, null fields are left out.

    Raises:
        XwinError: not a list of objects, or a content part that is not text.
    """
    if not isinstance(value, list):
        raise wrong(where, field, f"expected a list of messages, got {named(value)}")
    return [_message(m, where, f"{field}[{i}]") for i, m in enumerate(value)]


def _message(value: Any, where: str, field: str) -> Message:
    if not isinstance(value, dict):
        raise wrong(where, field, f"a message is an object with role and content, this is {named(value)}")
    made = {k: v for k, v in value.items() if v is not None or k == "content"}
    if isinstance(made.get("content"), list):
        made.update(_joined(made["content"], where, f"{field}.content"))
    weight = made.pop("loss_weight", None)  # LLaMA-Factory's name of OpenAI's weight
    if weight is not None and made.get("role") == "assistant" and weight != 1:
        made["weight"] = number(weight, where, f"{field}.loss_weight")
    return made


def transcript(said: str) -> list[Message]:
    """The messages of ``\\n\\nHuman: …\\n\\nAssistant: …``, the form of Anthropic's HH data."""
    parts = re.split(r"\n\n(Human|Assistant):", said)
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    found = [(user if who == "Human" else assistant)(content.strip()) for who, content in pairs]
    return found[:-1] if found and found[-1] == assistant("") else found


def is_transcript(value: Any) -> bool:
    """True for text in the form ``transcript`` reads."""
    return isinstance(value, str) and value.startswith("\n\nHuman:")


def prompt(row: Row, where: str, key: str = "prompt") -> list[Message]:
    """The prompt of a field that holds text (one message of the user) or messages."""
    value = row.get(key)
    if is_transcript(value):
        return transcript(str(value))
    said = messages(value, where, key) if isinstance(value, list) else [user(text(row, key, where))]
    return [*opening(row, where), *said]


TEXTS = ("text", "input_text", "output_text")


def _joined(parts: list[Any], where: str, field: str) -> Row:
    """Typed content as the keys of a message: text, reasoning and tool calls; anything else is refused."""
    found: dict[str, list[Any]] = {"content": [], "reasoning_content": [], "tool_calls": []}
    for j, part in enumerate(parts):
        at = f"{field}[{j}]"
        if not isinstance(part, dict):
            raise wrong(where, at, f"a content part is an object with a type, this is {named(part)}")
        kind = part.get("type")
        if kind not in (*TEXTS, "reasoning", "tool_call"):
            raise wrong(where, f"{at}.type", f"{kind!r} is no text", "this toolkit trains on text alone")
        said = text(part, "value" if "value" in part else "text", where, path=at, may_be_empty=True)
        if kind == "tool_call":
            found["tool_calls"] += calls(said, where, at)
        else:
            found["content" if kind in TEXTS else "reasoning_content"].append(said)
    made: Row = {"content": "".join(found["content"])}
    if found["reasoning_content"]:
        made["reasoning_content"] = "".join(found["reasoning_content"])
    if found["tool_calls"]:
        made["tool_calls"] = found["tool_calls"]
    return made


def calls(said: str, where: str, field: str) -> list[Row]:
    """Tool calls in OpenAI's form, of JSON text: one ``{"name", "arguments"}`` or a list of them."""
    try:
        value = Strict()(said)
    except ValueError:
        raise wrong(where, field, f"a tool call is JSON, this is {said[:40]!r}") from None
    value = value if isinstance(value, list) else [value]
    if not value or not all(isinstance(c, dict) and isinstance(c.get("name"), str) for c in value):
        raise wrong(where, field, "a tool call is an object with name and arguments")
    return [{"type": "function", "function": {"arguments": {}, **call}} for call in value]


def with_tools(row: Row, where: str) -> Row:
    """The row with its tools as a list, where they are given as JSON text; none where they are blank."""
    tools = row.get("tools")
    if not isinstance(tools, str):
        return row if tools is not None else {k: v for k, v in row.items() if k != "tools"}
    try:
        value = Strict()(tools) if tools.strip() else []
    except ValueError:
        raise wrong(where, "tools", f"expected a list or its JSON text, got {tools[:40]!r}") from None
    return {**row, "tools": value} if value else {k: v for k, v in row.items() if k != "tools"}
