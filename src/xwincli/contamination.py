"""Do prompts share text with an evaluation set? Word n-grams, kept as 64-bit hashes.

The rule is that of GPT-3's report (arXiv 2005.14165, appendix C): a prompt is contaminated if any 13 consecutive
words of it stand in an evaluation prompt. Case, punctuation and spacing do not count. A prompt of fewer words is
compared as a whole.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from xwincli.errors import USAGE, XwinError
from xwincli.records import Asked, Conversation, Message, Prompt, Record
from xwincli.settings import flag

# a word is a run of letters and digits; scripts that write no spaces (kana, Han) count by the character
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")


@dataclass(kw_only=True)
class Against:
    """Evaluation sets that prompts must not overlap with."""

    against: list[str] = flag([], "evaluation prompts in any format: prompts that share words with them are found")
    ngram: int = flag(13, "with --against: so many consecutive words", low=1)


def words(messages: Sequence[Message]) -> list[str]:
    """The words of what a user says, in lower case (system prompts and answers are shared by many prompts)."""
    text = "\n".join(str(m.get("content") or "") for m in messages if m.get("role") == "user")
    return WORD.findall(text.casefold())


def hashes(found: Sequence[str], n: int) -> Iterator[int]:
    """64-bit hashes of all runs of ``n`` words; of the whole where there are fewer."""
    for i in range(max(len(found) - n + 1, 1)):
        part = " ".join(found[i : i + n]).encode()
        yield int.from_bytes(hashlib.blake2b(part, digest_size=8).digest(), "big")


class Index:
    """The n-grams of evaluation sets.

    Args:
        n: words in an n-gram.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self._where: dict[int, str] = {}

    def add(self, messages: Sequence[Message], where: str) -> None:
        """Take in an evaluation prompt; ``where`` names it in what is found."""
        if found := words(messages):
            for value in hashes(found, self.n):
                self._where.setdefault(value, where)

    def find(self, messages: Sequence[Message]) -> tuple[str, str] | None:
        """The first shared run of words and the evaluation prompt that holds it; None if there is none."""
        found = words(messages)
        if not found:
            return None
        for i, value in enumerate(hashes(found, self.n)):
            if where := self._where.get(value):
                return " ".join(found[i : i + self.n]), where
        return None

    def __len__(self) -> int:
        return len(self._where)


def index(options: Against) -> Index | None:
    """The index of ``--against``; None without it.

    Raises:
        XwinError: a file cannot be read, or holds no words.
    """
    if not options.against:
        return None
    from xwincli import formats

    made = Index(options.ngram)
    for source in options.against:
        before = len(made)
        for number, record in enumerate(formats.read([source], Prompt), 1):
            made.add(record.prompt, f"{source}, prompt {number}")
        if len(made) == before:
            raise XwinError(f"{source}: no words that were not there before", "--against names evaluation sets", USAGE)
    return made


def asked(record: Record) -> Sequence[Message]:
    """What a record of any kind asks."""
    if isinstance(record, Asked):
        return record.prompt
    return record.messages if isinstance(record, Conversation) else []
