"""Messages to token ids, and which of them are learned. Chat templates are rendered here and nowhere else."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from xwincli.errors import XwinError
from xwincli.records import Message

SHIPPED = Path(__file__).parent / "templates"


def find_template(name: str) -> str:
    """The text of a chat template: the name of a shipped one (``vicuna``, ``chatml``) or a file."""
    for path in (SHIPPED / f"{name}.jinja", Path(name)):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    known = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.jinja")))
    raise XwinError(f"no chat template {name!r}", f"give a file, or one of: {known}")


class Template:
    """A tokenizer's chat template, and how its text becomes token ids.

    Text that merely looks like a special token (``<|im_end|>`` typed by a user) stays text: it is hidden
    while the template renders, so that only the template's own markers become special tokens.

    Args:
        tokenizer: a fast tokenizer of transformers.
        stops: end-of-response ids known from the model's generation config.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[int] = ()) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise XwinError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template",
                "a base model gets one in finetuning: xwin sft --template vicuna",
            )
        self.tokenizer = tokenizer
        self._stops = set(stops)

    # -- text

    def _render(self, messages: Sequence[Message], prompt: bool) -> str:
        try:
            text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)
        except (ValueError, TypeError, KeyError) as e:
            raise XwinError(f"the chat template refuses this conversation: {e}") from e
        except Exception as e:
            if type(e).__module__.partition(".")[0] != "jinja2":
                raise
            raise XwinError(f"the chat template refuses this conversation: {e}") from e
        return str(text)

    @cached_property
    def _special(self) -> re.Pattern[str]:
        tokens = [str(t) for t in self.tokenizer.get_added_vocab()] + list(self.tokenizer.all_special_tokens)
        return re.compile("|".join(map(re.escape, sorted(set(tokens), key=len, reverse=True))) or r"(?!)")

    def _hide(self, messages: Sequence[Message]) -> tuple[list[Message], dict[str, str]]:
        """Replace special-token look-alikes in the texts by private-use characters."""
        hidden: dict[str, str] = {}
        texts = "".join(str(m.get("content")) for m in messages)
        free = (c for c in map(chr, range(0xF0000, 0xFFFFE)) if c not in texts)

        def cover(match: re.Match[str]) -> str:
            code = next(free)
            hidden[code] = match.group()
            return code

        out: list[Message] = []
        for m in messages:
            text = m.get("content")
            out.append({**m, "content": self._special.sub(cover, text)} if isinstance(text, str) else m)
        return out, hidden

    def _encode(self, text: str, hidden: dict[str, str]) -> list[int]:
        if not hidden:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        ids: list[int] = []
        at = 0
        for match in [*self._special.finditer(text), None]:
            piece = text[at : match.start() if match else len(text)]
            for code, original in hidden.items():
                piece = piece.replace(code, original)
            if piece:
                ids += self.tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            if match:
                ids.append(self.tokenizer.convert_tokens_to_ids(match.group()))
                at = match.end()
        return ids

    # -- ids

    @cached_property
    def stop_ids(self) -> set[int]:
        """Ids that end a response: the tokenizer's eos, the generation config's, the template's own."""
        ends = {self.tokenizer.eos_token_id, *self._stops} - {None}
        probe = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "zzqzz"}]
        tail = self._render(probe, False).rpartition("zzqzz")[2]
        if (match := self._special.search(tail)) and not tail[: match.start()].strip():
            ends.add(self.tokenizer.convert_tokens_to_ids(match.group()))
        return {int(i) for i in ends}

    @cached_property
    def _stop(self) -> re.Pattern[str]:
        tokens = self.tokenizer.convert_ids_to_tokens(sorted(self.stop_ids))
        return re.compile("|".join(re.escape(t) for t in tokens))

    @cached_property
    def digest(self) -> str:
        """Digest of the template and the vocabulary (without the pad token, which reward models change)."""
        vocab = sorted(self.tokenizer.get_vocab().items(), key=lambda kv: kv[1])
        text = f"{self.tokenizer.chat_template}\n{vocab}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a prompt up to the point where the assistant begins to write."""
        shown, hidden = self._hide(messages)
        return self._encode(self._render(shown, True), hidden)

    def response_ids(
        self, prompt: Sequence[Message], text: str, ended: bool = True, tail: bool = False
    ) -> tuple[list[int], list[int]]:
        """Ids of a prompt and of one response to it, encoded apart, as they meet in generation.

        Args:
            prompt: the messages before the response.
            text: the response.
            ended: False for a response cut by the length limit: it gets no stop token.
            tail: also what the template writes after the stop token (reward models read their score
                at the last token of the whole render).
        """
        shown, hidden = self._hide([*prompt, {"role": "assistant", "content": text}])
        before, whole = self._render(shown[:-1], True), self._render(shown, False)
        if not whole.startswith(before):
            raise XwinError(
                "the chat template does not continue its own prompt, so a response cannot be told from it",
                "use a template whose render of a conversation starts with the render of its prompt",
            )
        answer = whole[len(before) :]
        start, end = self._last_stop(answer)
        if not ended:
            answer = answer[:start]
        elif not tail:
            answer = answer[:end]
        return self._encode(before, hidden), self._encode(answer, hidden)

    def _last_stop(self, answer: str) -> tuple[int, int]:
        found = list(self._stop.finditer(answer))
        return found[-1].span() if found else (len(answer), len(answer))

    def conversation(self, messages: Sequence[Message]) -> list[tuple[list[int], list[bool]]]:
        """Ids of a conversation and which are learned: every assistant turn with its stop token.

        A message with ``"weight": 0`` is not learned (OpenAI's convention). Usually one row comes back;
        where the template rewrites earlier turns (dropping their reasoning, say) one row per assistant
        turn, each learning its last turn only.
        """
        shown, hidden = self._hide(messages)
        whole = self._render(shown, False)
        turns = [i for i, m in enumerate(shown) if m["role"] == "assistant" and m.get("weight", 1) != 0]
        spans: list[tuple[int, int]] = []
        for i in turns:
            before, upto = self._render(shown[:i], True), self._render(shown[: i + 1], False)
            end = len(before) + self._last_stop(upto[len(before) :])[1]
            if not upto.startswith(before) or whole[:end] != upto[:end]:
                return [self._single_turn(messages, i) for i in turns]
            spans.append((len(before), end))
        if not spans:
            return []
        whole = whole[: max(end for _, end in spans)]
        ids: list[int] = []
        learned: list[bool] = []
        at = 0
        for start, end in spans:
            for piece, learn in ((whole[at:start], False), (whole[start:end], True)):
                new = self._encode(piece, hidden)
                ids += new
                learned += [learn] * len(new)
            at = end
        return [(ids, learned)]

    def _single_turn(self, messages: Sequence[Message], i: int) -> tuple[list[int], list[bool]]:
        prompt, answer = self.response_ids(messages[:i], str(messages[i]["content"]))
        return prompt + answer, [False] * len(prompt) + [True] * len(answer)
