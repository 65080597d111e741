"""Messages to token ids, and which of them are learned. Chat templates are rendered here and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from xwincli.chat import encoding
from xwincli.chat.arguments import parse_arguments, variables
from xwincli.chat.encoding import Encoder, any_of
from xwincli.chat.encoding import tokenizer_digest as tokenizer_digest
from xwincli.chat.thinking import set_thinking_aside as set_thinking_aside
from xwincli.chat.thinking import split_thinking as split_thinking
from xwincli.console import warn
from xwincli.errors import XwinError
from xwincli.records import Message

SHIPPED = Path(__file__).parent.parent / "templates"
PROBE = "zzqzz"  # an answer that no template writes by itself


def find_template(name: str) -> str:
    """The text of a chat template: the name of a shipped one (``vicuna``, ``chatml``) or a file."""
    for path in (SHIPPED / f"{name}.jinja", Path(name)):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    known = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.jinja")))
    raise XwinError(f"no chat template {name!r}", f"give a file, or one of: {known}")


@cache
def _warn_dated(can_be_pinned: bool) -> None:
    hint = "\n  hint: pin it: --template-arg date_string='26 Jul 2024'" if can_be_pinned else ""
    warn(f"the chat template writes today's date, so token ids change from day to day{hint}")


class Template:
    """A tokenizer's chat template, and how its text becomes token ids.

    Text that merely looks like a special token (``<|im_end|>`` typed by a user) stays text: it is hidden
    while the template renders, so that only the template's own markers become special tokens.

    Args:
        tokenizer: a fast tokenizer of transformers.
        stops: end-of-response ids known from the model's generation config.
        arguments: values of variables the template reads.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[int] = (), arguments: dict[str, Any] | None = None) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise XwinError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template",
                "a base model gets one in finetuning: xwin sft --template vicuna",
            )
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise XwinError(f"{tokenizer.name_or_path}: needs a fast tokenizer", "one with a tokenizer.json")
        self.tokenizer = tokenizer
        self.arguments = arguments or {}
        self._stops = set(stops)
        self.encoder = Encoder(tokenizer, self.text)

    def given(self, arguments: Sequence[str], *, all_read: bool = True) -> Template:
        """This template with arguments from ``KEY=VALUE`` texts.

        Args:
            arguments: see ``parse_arguments``.
            all_read: refuse a key that the template does not read; else leave it out.

        Raises:
            XwinError: the template does not read a key; names those it does.
        """
        known = variables(self.text)
        values = parse_arguments(arguments)
        if all_read and (strange := sorted(set(values) - known)):
            reads = f"it reads: {', '.join(sorted(known))}" if known else "it reads no variable"
            raise XwinError(f"--template-arg {strange[0]}: {self.name}'s chat template does not read it", reads)
        made = Template(self.tokenizer, sorted(self._stops), {k: v for k, v in values.items() if k in known})
        if "strftime_now" in self.text and "date_string" not in values:
            _warn_dated("date_string" in known)
        return made

    @property
    def name(self) -> str:
        """Of the tokenizer, for messages."""
        return str(self.tokenizer.name_or_path) or "the tokenizer"

    @property
    def text(self) -> str:
        """The Jinja source."""
        return str(self.tokenizer.get_chat_template())

    # -- rendering

    def _render(self, messages: Sequence[Message], prompt: bool) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=prompt, **self.arguments
            )
        except (ValueError, TypeError, KeyError) as e:
            raise XwinError(f"the chat template refuses this conversation: {e}") from e
        except Exception as e:
            if type(e).__module__.partition(".")[0] != "jinja2":
                raise
            raise XwinError(f"the chat template refuses this conversation: {e}") from e
        return str(text)

    # -- decoding

    @cached_property
    def _lead(self) -> str:
        """White space the template writes before an answer, as it comes back in decoding ("" for most)."""
        try:
            ids = self.response_ids([{"role": "user", "content": "q"}], PROBE)[1]
        except XwinError:  # one that does not continue its own prompts may still be sampled from
            return ""
        lead = self.encoder.decode(ids).partition(PROBE)[0]
        return lead if not lead.strip() else ""

    def decode(self, ids: Sequence[int]) -> str:
        """Generated ids as text, without special tokens; the marks around thinking stay."""
        return self.encoder.decode(ids)

    def answer(self, ids: Sequence[int]) -> str:
        """The text of a generated response: what, put in the template, is written as these ids were.

        Its stop token is left out, and the space that the template itself writes before an answer.
        """
        kept = ids[:-1] if ids and ids[-1] in self.stop_ids else ids
        return self.encoder.decode(kept).removeprefix(self._lead)

    # -- what it is

    @cached_property
    def stop_ids(self) -> set[int]:
        """Ids that end a response: the tokenizer's eos, the generation config's, the template's own."""
        ends = {self.tokenizer.eos_token_id, *self._stops} - {None}
        probe = [{"role": "user", "content": "q"}, {"role": "assistant", "content": PROBE}]
        tail = self._render(probe, False).rpartition(PROBE)[2]
        if (match := self.encoder.markers[0].search(tail)) and not tail[: match.start()].strip():
            ends.add(self.tokenizer.convert_tokens_to_ids(match.group()))
        return {int(i) for i in ends}

    @cached_property
    def _stop(self) -> re.Pattern[str]:
        return any_of({t for t in self.tokenizer.convert_ids_to_tokens(sorted(self.stop_ids)) if t})

    @cached_property
    def tokenizer_digest(self) -> str:
        """See the function of this name."""
        return tokenizer_digest(self.tokenizer)

    @cached_property
    def text_digest(self) -> str:
        """Digest of the template's text and its arguments alone: equal across tokenizers."""
        return encoding.digest([self.text, self.arguments])

    @cached_property
    def digest(self) -> str:
        """Digest of all that makes a conversation into ids (without the pad token, which reward models change)."""
        written = {m.group() for m in self.encoder.markers[0].finditer(self.text)}
        ids = {t: self.tokenizer.convert_tokens_to_ids(t) for t in written}
        return encoding.digest([self.text_digest, self.tokenizer_digest, ids])

    def facts(self) -> dict[str, str]:
        """For the manifest: the digests of the tokenizer and of the template's text."""
        return {"tokenizer": self.tokenizer_digest, "template": self.text_digest}

    def differs(self, facts: Mapping[str, Any]) -> bool:
        """Whether text came from another template over this very tokenizer; another family is no such thing.

        Args:
            facts: those of the template the text came from, or {} where nothing is known of it.
        """
        same = facts.get("tokenizer") == self.tokenizer_digest
        return same and facts.get("template") != self.text_digest

    def check_same(self, other: Template, mine: str, theirs: str) -> None:
        """Refuse a model ``theirs`` that is to read the token ids of ``mine``, but means something else by them."""
        if self.tokenizer_digest != other.tokenizer_digest:
            digests = f"{self.tokenizer_digest} and {other.tokenizer_digest}"
            raise XwinError(
                f"{theirs}: reads the token ids of {mine}, but has another vocabulary (tokenizers {digests})",
                "a critic and a reference come from the policy's family; --advantage group needs no critic",
            )
        if self.digest != other.digest:
            digests = f"templates {self.text_digest} and {other.text_digest}"
            raise XwinError(
                f"{theirs}: its chat template is not that of {mine}, whose token ids it reads ({digests})",
                "make both with the same xwin sft --template",
            )

    # -- ids

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a prompt up to the point where the assistant begins to write."""
        shown, hidden = self.encoder.hide(messages)
        return self.encoder.encode(self._render(shown, True), hidden)

    def response_ids(
        self, prompt: Sequence[Message], text: str, ended: bool = True, tail: bool = False
    ) -> tuple[list[int], list[int]]:
        """Ids of a prompt and of one response to it, as they meet in generation.

        Args:
            prompt: the messages before the response.
            text: the response.
            ended: False for a response cut by the length limit: it gets no stop token.
            tail: also what the template writes after the stop token (reward models read their score
                at the last token of the whole render).
        """
        return self._answered(prompt, {"role": "assistant", "content": text}, ended, tail)

    def _answered(
        self, prompt: Sequence[Message], message: Message, ended: bool = True, tail: bool = False
    ) -> tuple[list[int], list[int]]:
        shown, hidden = self.encoder.hide([*prompt, message])
        before, whole = self._render(shown[:-1], True), self._render(shown, False)
        if not whole.startswith(before):
            hint = "use a template whose render of a conversation starts with the render of its prompt"
            if known := variables(self.text):
                hint += f", or set one of its variables: --template-arg {sorted(known)[0]}=…"
            raise XwinError(
                "the chat template does not continue its own prompt, so a response cannot be told from it", hint
            )
        start, end = self._first_stop(whole[len(before) :])
        length = len(whole) - len(before) if ended and tail else end if ended else start
        ids, answer = self.encoder.pieces(whole, hidden, [len(before), len(before) + length])
        return ids, answer

    def _first_stop(self, answer: str) -> tuple[int, int]:
        """Where the response ends: Phi-3's template closes a conversation once more after the turn's own end."""
        found = self._stop.search(answer)
        return found.span() if found else (len(answer), len(answer))

    def conversation(self, messages: Sequence[Message]) -> list[tuple[list[int], list[bool]]]:
        """Ids of a conversation and which are learned: every assistant turn with its stop token.

        A message with ``"weight": 0`` is not learned (OpenAI's convention). Usually one row comes back;
        where the template rewrites earlier turns (dropping their reasoning, say) one row per assistant
        turn, each learning its last turn only.
        """
        shown, hidden = self.encoder.hide(messages)
        whole = self._render(shown, False)
        turns = [i for i, m in enumerate(shown) if m["role"] == "assistant" and m.get("weight", 1) != 0]
        cuts: list[int] = []
        for i in turns:
            before, upto = self._render(shown[:i], True), self._render(shown[: i + 1], False)
            end = len(before) + self._first_stop(upto[len(before) :])[1]
            if not upto.startswith(before) or whole[:end] != upto[:end]:
                return [self._single_turn(messages, i) for i in turns]
            cuts += [len(before), end]
        if not cuts:
            return []
        pieces = self.encoder.pieces(whole, hidden, cuts)
        learned = [k % 2 == 1 for k, piece in enumerate(pieces) for _ in piece]
        return [([i for piece in pieces for i in piece], learned)]

    def _single_turn(self, messages: Sequence[Message], i: int) -> tuple[list[int], list[bool]]:
        prompt, answer = self._answered(messages[:i], messages[i])
        return prompt + answer, [False] * len(prompt) + [True] * len(answer)
