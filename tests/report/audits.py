"""An audit of a pretended reward model, which likes length and is too sure of itself."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from xwincli.metrics import rm_audit
from xwincli.records import Message
from xwincli.train.comparisons import Comparisons


def make(seed: int = 0, prompts: int = 120, *, taste: float = 1.0, scale: float = 2.0) -> dict[str, Any]:
    """Pairs whose quality makes the rating; the reward is quality, ``taste`` times length and noise, ``scale``d."""
    rng = random.Random(seed)
    ask: list[Message] = [{"role": "user", "content": "q"}]
    items, rewards, tokens = [], [], []
    for i in range(prompts):
        sizes = [rng.randint(20, 400) for _ in range(2)]
        quality = [rng.gauss(0, 1) + size / 400 for size in sizes]
        better = int(quality[1] + rng.gauss(0, 0.7) > quality[0])
        ratings = [round(5 + 1.5 * q) for q in quality]
        items.append(
            Comparisons(
                str(i),
                ask,
                [("x" * size, True) for size in sizes],
                [(better, 1 - better, 1.0, 0.0)],
                leads=[float(ratings[better] - ratings[1 - better])],
                marks=dict(enumerate(map(float, ratings))),
            )
        )
        rewards.append([scale * (q + taste * s / 200 + rng.gauss(0, 0.5)) for q, s in zip(quality, sizes, strict=True)])
        tokens.append([s // 4 for s in sizes])
    return rm_audit.audit(items, np.round(rewards, 4).tolist(), tokens, rounds=300)
