"""An engine without a model: answers made of the prompt's own words. For tests and dry runs of a pipeline."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from xwincli.engines import Ask
from xwincli.errors import XwinError
from xwincli.records import Response
from xwincli.settings import Sampling


class Echo:
    """Response i repeats some of the last message's words, chosen by (seed, prompt, i)."""

    def generate(
        self, asks: Iterable[Ask], sampling: Sampling, seed: int
    ) -> Iterator[tuple[str, list[Response] | XwinError]]:
        """See ``Engine``."""
        for ask in asks:
            yield ask.key, [self._answer(ask, i, sampling, seed) for i in range(ask.first, ask.first + ask.n)]

    def facts(self) -> dict[str, str]:
        """See ``Engine``."""
        return {"engine": "echo"}

    def _answer(self, ask: Ask, index: int, sampling: Sampling, seed: int) -> Response:
        words = str(ask.messages[-1]["content"]).split()
        number = index if sampling.temperature else 0
        rng = random.Random(f"{seed}/{ask.prompt_id}/{number}")
        answer = ["Answer", f"{number}:", *rng.sample(words, min(len(words), rng.randint(1, 12)))]
        cut = len(answer) > sampling.max_tokens
        text = " ".join(answer[: sampling.max_tokens])
        if found := [at for stop in sampling.stop if (at := text.find(stop)) >= 0]:
            text, cut = text[: min(found)], False
        return Response(text=text, index=index, finish="length" if cut else "stop", tokens=len(text.split()))
