"""What judging costs: a dated, editable file of prices, tokens counted before any call, and a limit that holds."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from xwincli.errors import LIMIT, XwinError
from xwincli.judges.llm.said import Question, Said

SHIPPED = Path(__file__).with_name("prices.toml")
MILLION = 1e6
BYTES_PER_TOKEN = 4.0  # of English, for a first look; a tokenizer counts exactly


@dataclass(frozen=True)
class Price:
    """US dollars a million tokens."""

    input: float
    output: float

    def of(self, prompt: float, reply: float) -> float:
        """Dollars for so many tokens."""
        return (prompt * self.input + reply * self.output) / MILLION


class _File(msgspec.Struct):
    date: str
    models: dict[str, dict[str, float]]
    batch: float = 1.0


class Prices:
    """A file of prices.

    Args:
        path: TOML with ``date``, ``batch`` and ``[models]``; "" is the one we ship.

    Attributes:
        date: the day they were read off.
        batch: share of the price a batch costs.
    """

    def __init__(self, path: str = "") -> None:
        self.path = Path(path) if path else SHIPPED
        try:
            read = msgspec.convert(tomllib.loads(self.path.read_text(encoding="utf-8")), _File)
            self.models = {name: Price(**price) for name, price in read.models.items()}
        except OSError as e:
            raise XwinError(f"{self.path}: cannot read the prices: {e.strerror}") from e
        except (ValueError, TypeError) as e:
            hint = 'as: date = "2026-03-21" and [models] "NAME" = { input = 2.5, output = 10 }'
            raise XwinError(f"{self.path}: not a file of prices: {e}", hint) from None
        self.date, self.batch = read.date, read.batch

    def find(self, model: str) -> Price | None:
        """A model's price; that of ``gpt-4o`` stands for ``gpt-4o-2024-08-06`` too."""
        names = [name for name in self.models if model == name or model.startswith(f"{name}-20")]
        return self.models[max(names, key=len)] if names else None


class Budget:
    """Dollars this command has spent and may spend; calls in flight count at the most they may cost.

    Args:
        prices: what a token costs.
        most: dollars; 0 is no limit.
        count: tokens of a question's prompt.
    """

    def __init__(self, prices: Prices, most: float, count: Callable[[Question], int]) -> None:
        self.prices, self.most, self.count = prices, most, count
        self.spent = self._open = 0.0
        self._flying = self.calls = self.prompt_tokens = self.reply_tokens = 0

    async def reserve(self, question: Question) -> float:
        """Wait until a call surely fits; the dollars set aside.

        Raises:
            XwinError: it will never fit.
        """
        price = self.prices.find(question.model)
        if price is None:
            if self.most:
                hint = f'add it to a copy of {self.prices.path}: "{question.model}" = {{ input = …, output = … }}'
                raise XwinError(f"--max-usd: {question.model!r} has no price", f"{hint}, and name it with --prices")
            self._flying += 1
            return 0.0
        cost = price.of(self.count(question), question.max_tokens)
        while self.most and self.spent + self._open + cost > self.most:
            if not self._flying:
                text = f"--max-usd {self.most:g} is reached: {self.spent:.4f} spent, the next call may cost {cost:.4f}"
                raise XwinError(text, "what was judged is kept; the same command goes on from here", LIMIT)
            await asyncio.sleep(0.02)
        self._open += cost
        self._flying += 1
        return cost

    def settle(self, question: Question, reserved: float, said: Said | None) -> float | None:
        """After the call: what it did cost, None if that is not known; no reply costs nothing."""
        self._flying -= 1
        self._open = self._open - reserved if self._flying else 0.0
        if said is None:
            return None
        self.calls += 1
        self.prompt_tokens += said.prompt_tokens or 0
        self.reply_tokens += said.reply_tokens or 0
        cost = self.cost(question, said)
        self.spent += cost or 0.0
        return cost

    def cost(self, question: Question, said: Said) -> float | None:
        """Dollars for a reply; None without a price or a count."""
        price = self.prices.find(question.model)
        if price is None or said.prompt_tokens is None or said.reply_tokens is None:
            return None
        return price.of(said.prompt_tokens, said.reply_tokens)


def counter(tokenizer: str) -> tuple[Callable[[Question], int], str]:
    """How prompts are counted, and what to call it: exact with a tokenizer, else from the length of the text.

    Args:
        tokenizer: folder or hub name of a tokenizer with the judge's chat template; "" has none.
    """
    if not tokenizer:
        return lambda q: round(_bytes(q) / BYTES_PER_TOKEN), "about, from the texts' length: --judge-tokenizer is exact"
    from xwincli import models

    tok: Any = models.load_tokenizer(tokenizer)

    def exact(question: Question) -> int:
        if getattr(tok, "chat_template", None):
            return len(
                tok.apply_chat_template(question.messages, add_generation_prompt=True, tokenize=True)["input_ids"]
            )
        return sum(len(tok(str(m["content"]))["input_ids"]) for m in question.messages)

    return exact, f"counted with {tokenizer}"


def _bytes(question: Question) -> int:
    return sum(len(str(m["content"]).encode()) for m in question.messages)
