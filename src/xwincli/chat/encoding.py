"""Rendered text to ids and back, so that look-alikes of special tokens stay the text they are."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from xwincli.chat.thinking import THINK
from xwincli.records import Message

ROLES = ("eos_token", "bos_token", "unk_token", "sep_token", "cls_token", "mask_token")  # all but the pad
ANCHOR = "\U0010fffd"  # a character that merges with nothing

Hidden = dict[str, str]  # private-use character -> the look-alike of a special token that it stands for


def digest(value: Any) -> str:
    """Digest of a JSON value (sha256, 16 hex digits)."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest of what makes text into ids: vocabulary, merges, normalisation, and the special tokens with a role.

    The pad token, which reward models must change, does not count, nor do spare special tokens without a role:
    text never becomes one of them, and those that a template writes are in ``Template.digest``.
    """
    body = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {t["content"] for t in body["added_tokens"] if t["special"]}
    model = body["model"]
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = {t: i for t, i in model["vocab"].items() if t not in special}
    elif isinstance(model.get("vocab"), list):  # [piece, score] in the order of their ids
        model["vocab"] = [[i, *entry] for i, entry in enumerate(model["vocab"]) if entry[0] not in special]
    roles = {str(t) for role in ROLES if (t := getattr(tokenizer, role, None)) is not None}
    facts = {
        "model": model,
        "normalizer": body["normalizer"],
        "pre_tokenizer": body["pre_tokenizer"],
        "added": [t for t in body["added_tokens"] if not t["special"]],
        "roles": {t: tokenizer.convert_tokens_to_ids(t) for t in roles},
    }
    return digest(facts)


class Encoder:
    """A tokenizer that knows which special tokens are a template's own.

    Args:
        tokenizer: a fast tokenizer of transformers.
        written: the template's text.
    """

    def __init__(self, tokenizer: Any, written: str) -> None:
        self.tokenizer, self.written = tokenizer, written
        self._twins: dict[str, tuple[Any, dict[str, str]]] = {}
        self._last: tuple[str, Hidden, list[int]] = ("", {}, [])

    @cached_property
    def markers(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        """What stays text in a user's message, and in an assistant's.

        Both: every special token. The user alone: thinking and other marks the template writes, which are the
        assistant's to write. Added tokens beyond those (Gemma's runs of newlines) are ordinary vocabulary.
        """
        added = self.tokenizer.added_tokens_decoder.values()
        special = {t.content for t in added if t.special} | set(map(str, self.tokenizer.all_special_tokens))
        own = {t.content for t in added if t.content.strip() and (t.content in self.written or t.content in THINK)}
        return any_of(special | own), any_of(special - set(THINK))

    def hide(self, messages: Sequence[Message]) -> tuple[list[Message], Hidden]:
        """Replace look-alikes of special tokens in all that messages say by private-use characters."""
        hidden: Hidden = {}
        texts = json.dumps(list(messages), ensure_ascii=False, default=str)
        free = (c for c in map(chr, range(0xF0000, 0xFFFFE)) if c not in texts)
        codes: dict[str, str] = {}

        def cover(match: re.Match[str]) -> str:
            text = match.group()
            if text not in codes:
                codes[text] = next(free)
                hidden[codes[text]] = text
            return codes[text]

        def walk(value: Any, pattern: re.Pattern[str]) -> Any:
            if isinstance(value, str):
                return pattern.sub(cover, value)
            if isinstance(value, dict):
                return {k: v if k == "role" else walk(v, pattern) for k, v in value.items()}
            return [walk(v, pattern) for v in value] if isinstance(value, list) else value

        theirs, own = self.markers
        return [walk(m, own if m["role"] == "assistant" else theirs) for m in messages], hidden

    def encode(self, text: str, hidden: Hidden) -> list[int]:
        """Ids of rendered text: its own markers as special tokens, what is hidden as the text it is."""
        if not hidden:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        mark = next(c for c in map(chr, range(0x10FF00, 0x10FFFD)) if c not in text)
        twin, names = self._twin(mark)
        either = re.compile(f"{self.markers[0].pattern}|{'|'.join(hidden)}")
        text = either.sub(lambda m: names.get(m.group()) or hidden[m.group()], text)
        return list(twin.encode(text, add_special_tokens=False).ids)

    def _twin(self, mark: str) -> tuple[Any, dict[str, str]]:
        """The tokenizer with its markers under other names, so that theirs are mere text; and those names.

        Args:
            mark: a character that is not in the text; the new names begin with it.
        """
        if mark in self._twins:
            return self._twins[mark]
        from tokenizers import Tokenizer

        body = json.loads(self.tokenizer.backend_tokenizer.to_str())
        tokens = [t for t in body["added_tokens"] if self.markers[0].fullmatch(t["content"])]
        names = {t["content"]: mark + chr(0xF0000 + k) for k, t in enumerate(tokens)}
        for token in tokens:
            token["content"] = names[token["content"]]
        model = body["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(t, t): i for t, i in model["vocab"].items()}
        else:  # Unigram: [piece, score]
            model["vocab"] = [[names.get(t, t), score] for t, score in model["vocab"]]
        if "unk_token" in model:
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
        body |= {"post_processor": None, "truncation": None, "padding": None}
        twin = Tokenizer.from_str(json.dumps(body))
        assert all(twin.token_to_id(t["content"]) == t["id"] for t in tokens), "a marker changed its id"
        self._twins[mark] = (twin, names)
        return twin, names

    def pieces(self, text: str, hidden: Hidden, cuts: Sequence[int]) -> list[list[int]]:
        """Ids of a render between cuts, the first piece from its beginning, as they meet in generation.

        Joined they are the ids of the plain render, unless a token reaches across a cut: a prompt is encoded
        without its answer, so there what follows is encoded apart.

        Args:
            text: the render.
            hidden: see ``hide``.
            cuts: ascending positions in it, the last one where the last piece ends.
        """
        pieces: list[list[int]] = []
        start, before = 0, list[int]()
        for cut in cuts:
            if cut == cuts[0] and self._last[:2] == (text[:cut], hidden):  # a prompt comes again for each response
                upto = self._last[2]
            else:
                upto = self.encode(text[:cut], hidden)
            if cut == cuts[0]:
                self._last = (text[:cut], hidden, upto)
            whole = upto[: len(before)] == before
            pieces.append(upto[len(before) :] if whole else self._apart(text[start:cut], hidden))
            start, before = cut, upto
        return pieces

    def _apart(self, text: str, hidden: Hidden) -> list[int]:
        """Ids of text that goes on from other text: without the space that SentencePiece writes before a text."""
        first = self.tokenizer.convert_ids_to_tokens(self.encode("x", {})[:1])
        if first and first[0].startswith(("▁", "Ġ")):
            anchor, ids = self.encode(ANCHOR, hidden), self.encode(ANCHOR + text, hidden)
            if ids[: len(anchor)] == anchor:
                return ids[len(anchor) :]
        return self.encode(text, hidden)

    @cached_property
    def _silent(self) -> set[int]:
        """Ids that decoding leaves out: special tokens but the marks around thinking."""
        added = self.tokenizer.added_tokens_decoder
        return {i for i, t in added.items() if t.special and t.content not in THINK}

    def decode(self, ids: Sequence[int]) -> str:
        """Generated ids as text, without special tokens; the marks around thinking stay."""
        kept = [i for i in ids if i not in self._silent]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def any_of(texts: set[str]) -> re.Pattern[str]:
    """A pattern of any of these texts, the longest first; of nothing where there are none."""
    return re.compile("|".join(map(re.escape, sorted(texts - {""}, key=len, reverse=True))) or r"(?!)")
