"""A run's health, seen on a few fixed prompts: what the model writes before, during and after, and what that warns of.

The draws are seeded by prompt and number, so that between two looks only the weights differ; no random state of
the training is touched, and no weight: a run gives the same model with and without it. Cost: about 5 % of the
time besides the first and the last look (as long again as the last one took, times 19, is trained between two),
unless ``--probe-every`` says how often.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from xwincli import attention, scoring
from xwincli.console import is_main, say, warn
from xwincli.engines import Ask
from xwincli.engines.native import Native
from xwincli.errors import XwinError
from xwincli.models import Loaded
from xwincli.records import Message, prompt_id
from xwincli.rows import Branch
from xwincli.settings import Cluster, Probe, Sampling

DRAWS = 4  # answers to each prompt
TEMPERATURE = 0.7
SHARE = 0.05  # of the time that looks may take
GRAM = 4

Figures = dict[str, float]
Watching = Callable[[int, Figures], Figures]  # a watch of the loop


def repetition(ids: Sequence[int], n: int = GRAM) -> float:
    """Share of a text's n-grams that repeat an earlier one (seq-rep-n: Welleck et al. 2020, arXiv 1908.04319)."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclass(frozen=True)
class Sign:
    """Something to warn of once: whether (start, now) show it, what to say of them, what to do."""

    shown: Callable[[Figures, Figures], bool]
    text: str
    mend: str


SIGNS = (
    Sign(
        lambda a, b: b["ended"] < a["ended"] - 0.3,
        "answers that end by themselves fell from {a[ended]:.0%} to {b[ended]:.0%}",
        "look whether rows end with a stop token (--show 3), or lower --lr",
    ),
    Sign(
        lambda a, b: b["length"] < 0.5 * a["length"],
        "answers shrank from {a[length]:.0f} to {b[length]:.0f} tokens",
        "look at the length of what is learned (--show 3), or lower --lr",
    ),
    Sign(
        lambda a, b: b["length"] > 2 * a["length"],
        "answers grew from {a[length]:.0f} to {b[length]:.0f} tokens",
        "look at the length of what is learned (--show 3), or lower --lr",
    ),
    Sign(
        lambda a, b: b["repetition"] > max(0.3, a["repetition"]),
        "{b[repetition]:.0%} of the answers' 4-grams repeat ({a[repetition]:.0%} at the start)",
        "lower --lr or --epochs, and look for repeated rows",
    ),
    Sign(
        lambda a, b: (
            b.get("chosen_logprob", 0) < a.get("chosen_logprob", 0) - 0.1 and b.get("margin", 0) > a.get("margin", 0)
        ),
        "the chosen responses fell from {a[chosen_logprob]:.2f} to {b[chosen_logprob]:.2f} nats a token while the "
        "margin grows",
        "add --nll 0.1, or lower --lr",
    ),
)


class Watch:
    """Looks at the model now and then; a watch of the loop, to be made before the model is prepared for training.

    The first look is at the weights as they are loaded, also where a run goes on from a checkpoint.

    Args:
        loaded: the policy that learns.
        prompts: messages to answer, ``DRAWS`` times each.
        pairs: pairs as ids whose mean log-probability per token is followed; may be empty.
        options: how many tokens, how often.
        seed: of the draws.
    """

    def __init__(
        self,
        loaded: Loaded,
        prompts: Sequence[Sequence[Message]],
        pairs: Sequence[Branch],
        options: Probe,
        seed: int,
    ) -> None:
        self.loaded, self.pairs, self.options, self.seed = loaded, pairs, options, seed
        self.asks = [
            Ask(key=str(k), messages=list(p), n=DRAWS, prompt_id=prompt_id(list(p))) for k, p in enumerate(prompts)
        ]
        self.before = loaded.model.config._attn_implementation
        self.engine = Native(loaded)
        self.told: set[int] = set()
        self.step = self.seen = 0
        self.start = self.now = self.look()
        self.last, self.cost = time.monotonic(), 0.0

    def look(self) -> Figures:
        """What the model writes now: mean length in tokens, share that ended, repetition; log-probabilities."""
        sampling = Sampling(n=DRAWS, temperature=TEMPERATURE, max_tokens=self.options.probe_tokens)
        texts: list[list[int]] = []
        ended = 0
        with _Lent(self):
            for _, drawn in self.engine.draw(self.asks, sampling, self.seed):
                if isinstance(drawn, XwinError):
                    raise drawn
                texts += [d.ids for d in drawn]
                ended += sum(d.finish == "stop" for d in drawn)
        figures = {
            "length": sum(map(len, texts)) / len(texts),
            "ended": ended / len(texts),
            "repetition": sum(map(repetition, texts)) / len(texts),
        }
        return figures | self._likelihood()

    def _likelihood(self) -> Figures:
        """Mean over pairs of the mean log-probability (nats) per token, chosen and rejected, and their difference."""
        if not self.pairs:
            return {}
        sums = scoring.logprobs(self.loaded, self.pairs)
        means = [
            sum(values[side] / len(b.responses[side]) for values, b in zip(sums, self.pairs, strict=True))
            / len(self.pairs)
            for side in (0, 1)
        ]
        return {"chosen_logprob": means[0], "rejected_logprob": means[1], "margin": means[0] - means[1]}

    def __call__(self, step: int, figures: Figures) -> Figures:
        """After a step: look if it is time; returns ``probe_*`` figures to log."""
        self.step = step
        every, now = self.options.probe_every, time.monotonic()
        due = step % every == 0 if every else now - self.last >= self.cost * (1 - SHARE) / SHARE
        if not due:
            return {}
        self.now, self.seen = self.look(), step
        self.last = time.monotonic()
        self.cost = self.last - now
        self._warn()
        return {f"probe_{k}": v for k, v in self.now.items()} | {"probe_seconds": self.cost}

    def _warn(self) -> None:
        for i, sign in enumerate(SIGNS):
            if i not in self.told and sign.shown(self.start, self.now):
                self.told.add(i)
                text = sign.text.format(a=self.start, b=self.now)
                warn(f"step {self.step}: {text}\n  hint: {sign.mend}" + (", or raise --beta" if self.pairs else ""))

    def close(self) -> dict[str, Figures]:
        """Look a last time, say what changed; returns both looks, for the manifest."""
        if self.seen != self.step:
            self.now = self.look()
            self._warn()
        a, b = self.start, self.now
        say(
            f"probe: length {a['length']:.0f} -> {b['length']:.0f} tokens, ended {a['ended']:.0%} -> {b['ended']:.0%}, "
            f"repetition {a['repetition']:.0%} -> {b['repetition']:.0%}"
        )
        return {"probe_start": a, "probe_end": b}


class _Lent:
    """Where the engine must go the slow way, it is lent the attention from before row attention."""

    def __init__(self, watch: Watch) -> None:
        self.model: Any = watch.loaded.model
        self.slow, self.before = bool(watch.engine.obstacle), watch.before

    def __enter__(self) -> None:
        if self.slow:
            self.model.set_attn_implementation(self.before)

    def __exit__(self, *_: object) -> None:
        if self.slow and getattr(self.model, "xwin_branches", False):
            self.model.set_attn_implementation(attention.NAME)


def begin(
    loaded: Loaded,
    options: Probe,
    prompts: Sequence[Sequence[Message]],
    pairs: Sequence[Branch],
    seed: int,
    cluster: Cluster,
) -> Watch | None:
    """A watch over the first distinct prompts that fit and the first pairs; None where none is asked for.

    Args:
        loaded: the policy, before it is prepared for row attention.
        options: ``--probe`` and its kin.
        prompts: of the rows to learn.
        pairs: as ids, for their log-probabilities; may be empty.
        seed: of the draws.
        cluster: who holds the weights; of several processes rank 0 looks, and the others wait at the next step.

    Raises:
        XwinError: DeepSpeed holds the weights, so that none may be read beside it; or no prompt fits.
    """
    if not options.probe:
        return None
    if cluster.zero:
        raise XwinError(
            "--probe reads the weights where they are, which --zero does not allow", "leave one of them out"
        )
    if not is_main():
        return None
    room = scoring.context(loaded) - options.probe_tokens
    chosen: dict[str, list[Message]] = {}
    for prompt in prompts:
        if len(chosen) == options.probe:
            break
        if prompt and len(loaded.template.prompt_ids(prompt)) <= room:
            chosen.setdefault(prompt_id(list(prompt)), list(prompt))
    if not chosen:
        raise XwinError(f"--probe: no prompt leaves room for {options.probe_tokens} tokens", "lower --probe-tokens")
    return Watch(loaded, list(chosen.values()), pairs[: options.probe], options, seed)


def together(*watches: Watching | None) -> Watching | None:
    """Several watches as one; None where there is none."""
    there = [w for w in watches if w is not None]
    if not there:
        return None

    def watch(step: int, figures: Figures) -> Figures:
        found: Figures = {}
        for one in there:
            found |= one(step, {**figures, **found})
        return found

    return watch
