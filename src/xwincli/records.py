"""The nouns on disk: one line of JSONL is one prompt and what belongs to it."""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar, TypeVar

import msgspec

from xwincli.errors import XwinError

Message = dict[str, Any]  # {"role": "system" | "user" | "assistant", "content": str, ...}

R = TypeVar("R", bound="Record")


class Record(msgspec.Struct, kw_only=True):
    """What every line shares. Keys a kind does not know are kept in ``extra`` and written back."""

    kind: ClassVar[str] = ""
    id: str = ""
    extra: dict[str, Any] = msgspec.field(default_factory=dict)


class Asked(Record, kw_only=True):
    """A line about one prompt; the optional fields travel with the prompt through every stage.

    ``checks`` are verifiable demands ``{"kind": …, "value": …}``, ``reference`` a known good answer,
    ``contexts`` the passages an answer must rest on.
    """

    prompt: list[Message]
    checks: list[dict[str, Any]] | None = None
    reference: str | None = None
    contexts: list[str] | None = None
    category: str | None = None


class Prompt(Asked, kw_only=True):
    """A conversation that waits for its next assistant message."""

    kind: ClassVar[str] = "prompt"


class Conversation(Record, kw_only=True):
    """A conversation that ends with the assistant: one row of supervised finetuning."""

    kind: ClassVar[str] = "conversation"
    messages: list[Message]


class Response(msgspec.Struct, kw_only=True):
    """One of a group's responses.

    ``finish`` is "stop" (ended by itself) or "length" (cut off); ``tokens`` counts the generated ones
    with the end-of-turn token; ``logprob`` is their summed log-probability (nats) under the sampling
    distribution's model at temperature 1; ``scores`` maps a scorer's name to its score.
    """

    text: str
    index: int = 0
    finish: str | None = None
    tokens: int | None = None
    logprob: float | None = None
    scores: dict[str, float] = msgspec.field(default_factory=dict)
    extra: dict[str, Any] = msgspec.field(default_factory=dict)


class Group(Asked, kw_only=True):
    """One prompt and all its responses.

    ``sampling`` says how they were drawn (and if ``unique``), ``scorers`` who gave each name in their scores:
    "reward model NAME" or "judge NAME".
    """

    kind: ClassVar[str] = "group"
    prompt_id: str = ""
    responses: list[Response]
    model: str | None = None
    sampling: dict[str, Any] | None = None
    scorers: dict[str, str] | None = None


class Game(msgspec.Struct, kw_only=True):
    """One comparison in one order. ``preference`` is the chance that b is better: 0 a, .5 tie, 1 b.

    ``raw`` is a language model's reply, ``tokens`` what its prompt and its reply took, ``usd`` their price.
    """

    first: str
    preference: float
    raw: str | None = None
    reason: str | None = None
    tokens: tuple[int, int] | None = None
    usd: float | None = None


class Judgement(Asked, kw_only=True):
    """Two responses to one prompt, compared once or in both orders. The verdict is derived."""

    kind: ClassVar[str] = "judgement"
    prompt_id: str = ""
    a: dict[str, Any]
    b: dict[str, Any]
    games: list[Game]
    judge: str = ""

    def verdict(self) -> float:
        """0 if a wins, 1 if b wins, .5 for a tie: every order must agree on a winner."""
        sides = {(g.preference > 0.5) - (g.preference < 0.5) for g in self.games}
        return 0.5 if len(sides) != 1 else (sides.pop() + 1) / 2

    def pair(self) -> Pair | None:
        """The preference this judgement states; None for a tie. A cut response says so in its message."""
        verdict = self.verdict()
        return None if verdict == 0.5 else self.as_pair(swapped=verdict == 1)

    def as_pair(self, *, swapped: bool = False) -> Pair:
        """a as chosen and b as rejected, whatever the verdict; or the other way round."""
        chosen, rejected = (self.b, self.a) if swapped else (self.a, self.b)
        fields = ("prompt", "prompt_id", "checks", "reference", "contexts", "category")
        carried = {k: getattr(self, k) for k in fields}
        return Pair(
            id=self.id,
            chosen=[_answer(chosen)],
            rejected=[_answer(rejected)],
            score_chosen=chosen.get("rating"),
            score_rejected=rejected.get("rating"),
            **carried,
        )


def _answer(side: dict[str, Any]) -> Message:
    cut = {"finish": "length"} if side.get("finish") == "length" else {}
    return {"role": "assistant", "content": side["text"], **cut}


class Rating(Record, kw_only=True):
    """A grade of one single answer."""

    kind: ClassVar[str] = "rating"
    prompt_id: str = ""
    response: dict[str, Any]
    rating: float
    raw: str | None = None
    judge: str = ""


class Pair(Asked, kw_only=True):
    """A preference: ``chosen`` and ``rejected`` continue ``prompt`` (TRL's explicit-prompt form).

    ``margin`` is written only when asked for, since TRL and OpenRLHF feed it into the loss.
    """

    kind: ClassVar[str] = "pair"
    prompt_id: str = ""
    chosen: list[Message]
    rejected: list[Message]
    score_chosen: float | None = None
    score_rejected: float | None = None
    margin: float | None = None


KINDS: dict[str, type[Record]] = {k.kind: k for k in (Prompt, Conversation, Group, Judgement, Rating, Pair)}


def content_id(*parts: Any) -> str:
    """A short id made of content: equal content gives an equal id on every machine."""
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()[:16]


def prompt_id(prompt: list[Message]) -> str:
    """The id of a prompt: of its roles, texts and tool calls alone, so rows about one prompt join."""
    said = [[m["role"], m.get("content"), m.get("tool_calls")] for m in prompt]
    return content_id([m if m[-1] else m[:-1] for m in said])


def _keep_unknown(value: dict[str, Any], kind: type[msgspec.Struct]) -> dict[str, Any]:
    known = set(kind.__struct_fields__) - {"extra"}
    row = {k: v for k, v in value.items() if k in known}
    row["extra"] = {k: v for k, v in value.items() if k not in known and k != "kind"}
    return row


def decode(value: dict[str, Any], kind: type[R], where: str = "record") -> R:
    """A canonical line as a record.

    Args:
        value: the decoded JSON object.
        kind: the record wanted.
        where: ``file:line`` for messages.

    Raises:
        XwinError: a field is missing, of the wrong type, or impossible; names ``where`` and the field.
    """
    row = _keep_unknown(value, kind)
    for name in ("id", "prompt_id"):
        if isinstance(row.get(name), int) and not isinstance(row[name], bool):
            row[name] = str(row[name])
    if kind is Group and isinstance(row.get("responses"), list):
        rows = row["responses"]
        row["responses"] = [_keep_unknown(r, Response) if isinstance(r, dict) else r for r in rows]
    try:
        record = msgspec.convert(row, kind)
    except msgspec.ValidationError as e:
        hint = f"expected a {kind.kind} line; `xwin check` explains files"
        raise XwinError(f"{where}: {_sentence(str(e))}", hint) from None
    _check(record, where)
    _fill_ids(record)
    return record


def _sentence(message: str) -> str:
    """msgspec's ``Expected `str`, got `int` - at `$.id``` with the path first."""
    text, _, path = message.partition(" - at `$")
    field = path.rstrip("`").lstrip(".")
    if text.startswith("Object missing required field"):
        lost = text.split("`")[1]
        return f"field {f'{field}.{lost}' if field else lost}: is missing"
    return f"field {field}: {text}" if field else text


def _check(record: Record, where: str) -> None:
    if isinstance(record, Conversation):
        check_messages(record.messages, where, "messages", ends="assistant")
    if isinstance(record, Asked):
        check_messages(record.prompt, where, "prompt", ends="user")
    if isinstance(record, Pair):
        before = str(record.prompt[-1]["role"])
        for name in ("chosen", "rejected"):
            check_messages(getattr(record, name), where, name, ends="assistant", before=before)
        if record.chosen == record.rejected:
            hint = "a pair of equals teaches nothing; leave the row out"
            raise XwinError(f"{where}: field rejected: is equal to chosen", hint)
    if isinstance(record, Group) and not record.responses:
        raise XwinError(f"{where}: field responses: a group without responses")


ROLES = ("system", "user", "assistant", "tool")


def check_messages(
    messages: list[Message],
    where: str,
    field: str,
    ends: str,
    before: str = "",
    names: tuple[str, str] = ("role", "content"),
) -> None:
    """Refuse a conversation no chat template can render faithfully; names the message and its field.

    Args:
        messages: the turns.
        where: ``file:line``.
        field: the field's name in the message of an error.
        ends: role of the last message, "user" (a prompt; "tool" will do) or "assistant".
        before: role of the message they continue, if there is one.
        names: what the file calls a message's role and content (ShareGPT says from and value).
    """
    if not messages:
        raise XwinError(f"{where}: field {field}: there are no messages")
    for i, m in enumerate(messages):
        at = f"{where}: field {field}[{i}]"
        if not isinstance(m, dict):
            raise XwinError(f"{at}: a message is an object with role and content, this is {_named(m)}")
        _check_role(m, f"{at}.{names[0]}", before)
        _check_content(m, f"{at}.{names[1]}")
        before = str(m["role"])
    if ends == "assistant" and before != "assistant":
        raise XwinError(f"{where}: field {field}: ends with {before}, not with the assistant", "nothing to learn here")
    if ends == "user" and before not in ("user", "tool"):
        raise XwinError(f"{where}: field {field}: a prompt ends with the user, this ends with {before}")


def _named(value: Any) -> str:
    """A wrong value in a message: its type, with the value where that is short."""
    if value is None:
        return "null"
    kinds = {str: "text", dict: "an object", list: "a list", bool: "a truth value"}
    kind, shown = kinds.get(type(value), "a number"), repr(value)
    return f"{kind} ({shown})" if len(shown) <= 40 else kind


def _check_role(m: Message, at: str, before: str) -> None:
    role = m.get("role")
    if "role" not in m:
        raise XwinError(f"{at}: is missing", f"a message has a role: {', '.join(ROLES)}")
    if role not in ROLES:
        raise XwinError(f"{at}: {role!r} is no role", f"roles are {', '.join(ROLES)}, in lower case")
    if role == "system" and before:
        raise XwinError(f"{at}: a system message stands first or not at all")
    if role in ("assistant", "tool") and before in ("", "system"):
        raise XwinError(f"{at}: the {role} cannot speak before the user")


def _check_content(m: Message, at: str) -> None:
    role, content = m["role"], m.get("content")
    calls = role == "assistant" and m.get("tool_calls")
    if "content" not in m and not calls:
        raise XwinError(f"{at}: is missing")
    if not isinstance(content, str) and not (content is None and calls):
        raise XwinError(f"{at}: expected text, got {_named(content)}")
    if not calls and role in ("user", "assistant") and not str(content).strip():
        raise XwinError(f"{at}: the {'answer' if role == 'assistant' else 'message'} is empty")


def _fill_ids(record: Record) -> None:
    if isinstance(record, Asked) and hasattr(record, "prompt_id") and not record.prompt_id:
        record.prompt_id = prompt_id(record.prompt)
    if record.id:
        return
    if isinstance(record, Prompt):
        record.id = prompt_id(record.prompt)
    else:
        record.id = content_id(encode(record))


def encode(record: Record) -> dict[str, Any]:
    """A record as the object written to disk: ``kind`` first, absent fields left out, ``extra`` merged."""
    row = {"kind": record.kind, **msgspec.to_builtins(record)}
    if isinstance(record, Group):
        row["responses"] = [_drop_absent(r) for r in row["responses"]]
    return _drop_absent(row)


def _drop_absent(row: dict[str, Any]) -> dict[str, Any]:
    extra = row.pop("extra", {})
    kept = {k: v for k, v in row.items() if v is not None and not (k in ("scores", "id") and not v)}
    return {**kept, **extra}
