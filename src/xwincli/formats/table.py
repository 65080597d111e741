"""Every known layout in one table, the more specific first, and how a row finds its own."""

from __future__ import annotations

from xwincli.errors import USAGE, XwinError
from xwincli.formats import candidates, chats, preferences, questions, turns
from xwincli.formats.parts import Format, Row, wrong
from xwincli.records import KINDS, Conversation, Group, Pair, Prompt, Record

TABLE: tuple[Format, ...] = (
    *questions.FORMATS,
    *preferences.FORMATS,
    *candidates.FORMATS,
    *chats.FORMATS,
    *turns.FORMATS,
    *questions.PLAIN,
)
EXPECTED: dict[type[Record] | None, str] = {
    Prompt: "prompt",
    Conversation: "messages",
    Group: "prompt and responses",
    Pair: "chosen and rejected",
    None: "messages or prompt",
}


def _canonical(kind: type[Record]) -> Format:
    """The layout of our own lines, which say their kind themselves."""

    def convert(row: Row, where: str) -> Row:
        if row["kind"] != kind.kind:
            hint = "a file holds rows of one kind"
            raise wrong(where, "kind", f"is {row['kind']!r} in a file of {kind.kind!r}", hint)
        return row

    return Format("canonical", ("kind",), {kind: convert}, ours=True)


CANONICAL = {name: _canonical(kind) for name, kind in KINDS.items()}
NAMES = tuple(f.name for f in TABLE if f.to)


def by_name(name: str) -> Format:
    """The format a user names with ``--format``; XwinError where there is none."""
    for f in TABLE:
        if f.name == name and f.to:
            return f
    raise XwinError(f"--format {name!r} is not known", f"use one of: {', '.join(NAMES)}", USAGE)


def sniff(row: Row, where: str, wanted: type[Record] | None) -> Format:
    """The format of a file, read off its first row.

    Raises:
        XwinError: no format has these columns, or the one that has holds no rows of any kind.
    """
    kind = row.get("kind")
    if isinstance(kind, str) and kind in CANONICAL:
        return CANONICAL[kind]
    for f in TABLE:
        if all(key in row for key in f.needs):
            if f.refusal:
                raise XwinError(f"{where}: looks like {f.name}: {f.refusal}")
            return f
    seen = ", ".join(list(row)[:12]) or "none at all"
    hint = "`xwin convert --help` lists the formats; rename the columns to one of them"
    raise wrong(where, EXPECTED.get(wanted, "kind"), f"is missing; the fields are: {seen}", hint)
