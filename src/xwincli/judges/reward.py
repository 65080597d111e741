"""The judge that is a reward model: the chance that b is better is the Bradley-Terry sigmoid(r_b - r_a)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xwincli import manifest
from xwincli.errors import USAGE, XwinError
from xwincli.judges import Answer, Item, Options, Rated, Verdict
from xwincli.records import Message, content_id
from xwincli.settings import Device

Key = tuple[str, str, bool]  # prompt, answer, whether it ended by itself


def _ended(finish: str | None) -> bool:
    """A response cut by the length limit is scored without its end-of-turn token."""
    return finish != "length"


def _prompt_key(prompt: Sequence[Message]) -> str:
    return content_id(list(prompt))


class Reward:
    """A loaded reward model as a judge. It has no order of showing, so both orders agree."""

    def __init__(self, loaded: Any, name: str) -> None:
        self.loaded, self.name = loaded, name
        self.scorer = "reward model " + name.removeprefix("reward:")

    def _score(self, answers: Sequence[Answer]) -> dict[Key, float]:
        """Rewards of all distinct answers: each prompt goes in once with its answers, each answer once."""
        from xwincli.scoring import rewards

        prompts: dict[str, Sequence[Message]] = {}
        texts: dict[str, dict[tuple[str, bool], None]] = {}
        for answer in answers:
            key = _prompt_key(answer.prompt)
            prompts[key] = answer.prompt
            texts.setdefault(key, {})[(answer.text, _ended(answer.finish))] = None
        scored = rewards(self.loaded, [(prompts[key], list(texts[key])) for key in prompts])
        return {
            (key, text, ended): value
            for key, values in zip(prompts, scored, strict=True)
            for (text, ended), value in zip(texts[key], values, strict=True)
        }

    def receipt(self) -> dict[str, float]:
        """See ``Judge``: it asks nobody."""
        return {}

    def verdicts(self, items: Sequence[Item]) -> Iterator[Verdict]:
        """Compare by reward; ratings are the raw rewards."""
        sides = [
            Answer(id=item.id, prompt=item.prompt, text=text, finish=finish)
            for item in items
            for text, finish in ((item.a, item.a_finish), (item.b, item.b_finish))
        ]
        found = list(self.ratings(sides))
        for first, second in zip(found[::2], found[1::2], strict=True):
            a, b = first.rating, second.rating
            yield Verdict(
                preference=0.5 * (1 + math.tanh((b - a) / 2)),
                rating_a=a,
                rating_b=b,
                reason=f"rewards {a:.4g} first, {b:.4g} second",
            )

    def ratings(self, answers: Sequence[Answer]) -> Iterator[Rated]:
        """The raw reward of each answer."""
        scores = self._score(answers)
        for answer in answers:
            value = scores[(_prompt_key(answer.prompt), answer.text, _ended(answer.finish))]
            yield Rated(rating=round(value, 5))


def make(options: Options, seed: int, device: Device) -> Reward:
    """Load the reward model ``--rm``; the weaknesses of the rules judge are refused."""
    from xwincli.models import load_reward, place

    if not options.rm:
        raise XwinError("the reward judge needs --rm", "the folder of a reward model (xwin train-rm)", USAGE)
    for name in ("noise", "position_bias"):
        if getattr(options, name):
            raise XwinError(f"--{name.replace('_', '-')} is the rules judge's", "leave it out", USAGE)
    loaded = load_reward(options.rm, place(device))
    loaded.template = loaded.template.given(options.chat.template_arg)
    manifest.note_template({}, loaded.template.facts(), options.rm)  # warns; what it notes is the stage's affair
    return Reward(loaded, f"reward:{Path(options.rm).name}")
