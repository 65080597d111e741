"""Choose among each prompt's scored responses: SFT conversations or DPO pairs, with a receipt.

`xwin rs-filter --data scored.jsonl --out rs.jsonl --emit best` keeps every prompt's highest-scoring response
(rejection sampling). `--emit random` takes as many at random from the same responses: finetune on it as well,
since without that control a gain is not shown to be the reward model's. `--emit pairs` pairs the best with
a rejected one; which one is the setting that matters most (`--rejected`).

Responses cut off by the length limit, empty ones and repeats of the same text never take part.
"""

from __future__ import annotations

import itertools
import math
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from xwincli import jsonl, manifest
from xwincli.console import say, warn
from xwincli.errors import USAGE, XwinError
from xwincli.records import Conversation, Group, Message, Pair, Record, Response, content_id, encode
from xwincli.settings import flag


@dataclass(kw_only=True)
class Config:
    """Options of ``xwin rs-filter``."""

    data: list[str] = flag(["-"], "scored groups: files, globs, or - for standard input")
    out: str = flag("-", "conversations or pairs, as JSONL")
    score: str = flag("rm", "name of the score to choose by")
    emit: str = flag(
        "best",
        "conversations with the best, the one of rank R, random ones or all above a threshold; or pairs",
        choices=("best", "rank", "random", "threshold", "pairs"),
    )
    top: int = flag(1, "rows per prompt at most (threshold: no limit)", low=1)
    rank: int = flag(1, "for --emit rank: 1 is the best", low=1)
    min_score: float | None = flag(None, "never choose a response that scores below this")
    rejected: str = flag(
        "mu-2sigma", "for --emit pairs: rank:R, quantile:Q (0 is the worst), mu-2sigma, worst or random"
    )
    margin: bool = flag(False, "write the scores' difference as margin, which trainers feed into the loss")
    keep_cut: bool = flag(False, "let responses that the length limit cut off be chosen, not only rejected")
    seed: int = flag(0, "of the random choices; each prompt has its own stream")
    limit: int = flag(0, "read only the first rows; 0 reads all", low=0)
    force: bool = flag(False, "make it anew even if it is up to date", execution=True)


@dataclass(frozen=True)
class Ranked:
    """A response of a prompt's pool, its score, and its rank there (1 is the best)."""

    response: Response
    score: float
    rank: int

    @property
    def cut(self) -> bool:
        """Cut off by the length limit: it may be rejected, and is chosen only on request."""
        return self.response.finish == "length"


@dataclass
class Receipt:
    """What choosing did. Averages are over the prompts that came out: each counts once."""

    prompts: int = 0
    kept: int = 0
    rows: int = 0
    tied: int = 0
    cut: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    means: dict[str, list[float]] = field(default_factory=dict)

    def note(self, name: str, values: Sequence[float | None]) -> None:
        """Keep one prompt's mean of a figure, if every value is known."""
        known = [v for v in values if v is not None]
        if values and len(known) == len(values):
            self.means.setdefault(name, []).append(statistics.fmean(known))

    def metrics(self) -> dict[str, Any]:
        """The receipt as plain values for the manifest."""
        m: dict[str, Any] = {name: statistics.fmean(v) for name, v in self.means.items()}
        m["gain"] = m["score_chosen"] - m["score_pool"]
        return {**m, "tied": self.tied, "cut": self.cut, "lost": dict(self.lost), "dropped": dict(self.dropped)}

    def show(self, score: str) -> None:
        """A few lines on standard error."""
        m = self.metrics()
        say(f"rs-filter: {self.prompts} prompts in, {self.kept} out, {self.rows} rows")
        line = f"  {score}: chosen {m['score_chosen']:.3f}, pool {m['score_pool']:.3f}, gain {m['gain']:+.3f}"
        say(line + (f", rejected {m['score_rejected']:.3f}" if "score_rejected" in m else ""))
        units = [(u, f"{u}_chosen", f"{u}_pool") for u in ("characters", "tokens")]
        shifts = [f"{u} {m[a]:.1f} (pool {m[b]:.1f})" for u, a, b in units if a in m and b in m]
        say(f"  length of the chosen: {', '.join(shifts)}")
        if self.lost:
            say("  prompts lost: " + ", ".join(f"{n} {why}" for why, n in self.lost.most_common()))
        if self.dropped:
            say("  responses left out: " + ", ".join(f"{n} {why}" for why, n in self.dropped.most_common()))
        if self.cut:
            say(f"  cut by the length limit, so never chosen unless --keep-cut: {self.cut} responses")
        if self.tied:
            say(f"  ties for the best score: {self.tied} prompts")


def pool(group: Group, config: Config, receipt: Receipt) -> list[Ranked]:
    """A prompt's usable responses, best first; equal scores stand in the order they were drawn."""
    seen: set[str] = set()
    found: list[tuple[float, Response]] = []
    for r in group.responses:
        text, score = r.text.strip(), r.scores.get(config.score, math.nan)
        if not text:
            receipt.dropped["empty"] += 1
        elif not math.isfinite(score):
            receipt.dropped["without a score"] += 1
        elif text in seen:
            receipt.dropped["duplicates"] += 1
        else:
            seen.add(text)
            found.append((score, r))
            receipt.cut += r.finish == "length"
    found.sort(key=lambda f: -f[0])
    return [Ranked(r, score, i) for i, (score, r) in enumerate(found, 1)]


def rejection(rule: str) -> Callable[[Sequence[Ranked], random.Random], list[Ranked]]:
    """A rule for the rejected response, as a function that orders a pool by how well each one fits it.

    ``mu-2sigma`` prefers the score nearest to mean − 2 standard deviations of the prompt's scores
    (arXiv 2502.16825); any other multiple may be named.

    Raises:
        XwinError: the rule is none of those that ``--rejected`` names.
    """
    if rule == "worst":
        return lambda ranked, _: list(reversed(ranked))
    if rule == "random":
        return lambda ranked, rng: rng.sample(list(ranked), len(ranked))
    if m := re.fullmatch(r"rank:([1-9]\d*)", rule):
        first = int(m[1])
        return lambda ranked, _: list(ranked[first - 1 :])
    if (m := re.fullmatch(r"quantile:(\d*\.?\d+)", rule)) and (q := float(m[1])) <= 1:
        return lambda all, _: sorted(all, key=lambda r: abs(len(all) - r.rank - q * (len(all) - 1)))
    if m := re.fullmatch(r"mu-(\d*\.?\d+)sigma", rule):
        k = float(m[1])

        def nearest(ranked: Sequence[Ranked], _: random.Random) -> list[Ranked]:
            scores = [r.score for r in ranked]
            aim = statistics.fmean(scores) - k * statistics.pstdev(scores)
            return sorted(ranked, key=lambda r: (abs(r.score - aim), -r.rank))

        return nearest
    rules = "use rank:R (from 2), quantile:Q (0 to 1), mu-2sigma, worst or random"
    raise XwinError(f"--rejected is {rule!r}", rules, USAGE)


def choose(ranked: list[Ranked], config: Config, rng: random.Random) -> list[Ranked] | str:
    """The chosen of one prompt's pool, best first, or why there are none."""
    may = [r for r in ranked if config.keep_cut or not r.cut]
    good = [r for r in may if config.min_score is None or r.score >= config.min_score]
    if not may:
        return "with every response cut off" if ranked else "without a usable response"
    if not good:
        return "with every response below --min-score"
    if config.emit == "threshold":
        return good
    if config.emit == "random":
        return sorted(rng.sample(may, min(config.top, len(good))), key=lambda r: r.rank)
    start = config.rank - 1 if config.emit == "rank" else 0
    return good[start : start + config.top] or f"with fewer than {config.rank} responses"


def pairs(
    ranked: list[Ranked], chosen: list[Ranked], rule: str, rng: random.Random
) -> list[tuple[Ranked, Ranked]] | str:
    """Each chosen with its own rejected, which scores lower, or why there are none."""
    rest = [r for r in rejection(rule)(ranked, rng) if r not in chosen]
    if not rest:
        return "with too few different responses"
    made = [(c, r) for c, r in zip(chosen, rest, strict=False) if r.score < c.score]
    return made or "with chosen and rejected tied"


def records(group: Group, config: Config, receipt: Receipt) -> Iterator[Record]:
    """One group's rows; the receipt is kept along the way."""
    receipt.prompts += 1
    rng = random.Random(f"{config.seed}:{group.id}")
    ranked = pool(group, config, receipt)
    receipt.tied += len(ranked) > 1 and ranked[0].score == ranked[1].score
    chosen = choose(ranked, config, rng)
    if config.emit == "pairs" and not isinstance(chosen, str):
        made = pairs(ranked, chosen, config.rejected, rng)
        if isinstance(made, str):
            chosen = made
        else:
            chosen = [c for c, _ in made]
            receipt.note("score_rejected", [r.score for _, r in made])
            yield from (_pair(group, c, r, config.margin) for c, r in made)
    if isinstance(chosen, str):
        receipt.lost[chosen] += 1
        return
    if config.emit != "pairs":
        yield from (_conversation(group, c) for c in chosen)
    receipt.kept += 1
    receipt.rows += len(chosen)
    for name, picked in (("chosen", chosen), ("pool", ranked)):
        receipt.note(f"score_{name}", [p.score for p in picked])
        receipt.note(f"characters_{name}", [len(p.response.text) for p in picked])
        receipt.note(f"tokens_{name}", [p.response.tokens for p in picked])


def _message(side: Ranked) -> Message:
    """The answer as a message; a cut one says so, since it is learned without its stop token."""
    message = {"role": "assistant", "content": side.response.text}
    return {**message, "finish": "length"} if side.cut else message


def _conversation(group: Group, c: Ranked) -> Conversation:
    messages = [*group.prompt, {"role": "assistant", "content": c.response.text}]
    extra = {"prompt_id": group.prompt_id, "score": c.score, "rank": c.rank}
    return Conversation(id=content_id(messages), messages=messages, extra=extra)


def _pair(group: Group, chosen: Ranked, rejected: Ranked, margin: bool) -> Pair:
    sides = [[_message(side)] for side in (chosen, rejected)]
    return Pair(
        id=content_id(group.prompt, *sides),
        prompt_id=group.prompt_id,
        prompt=group.prompt,
        chosen=sides[0],
        rejected=sides[1],
        score_chosen=chosen.score,
        score_rejected=rejected.score,
        margin=chosen.score - rejected.score if margin else None,
        checks=group.checks,
        reference=group.reference,
        contexts=group.contexts,
        category=group.category,
        extra={"rank_chosen": chosen.rank, "rank_rejected": rejected.rank},
    )


def _refuse(group: Group, name: str, where: str) -> NoReturn:
    """Say that no response of a group has the score, and which scores there are."""
    there = sorted({n for r in group.responses for n in r.scores})
    hint = f"there are: {', '.join(there)}; --score NAME chooses" if there else "run xwin score first"
    raise XwinError(f"{where}: field responses[0].scores.{name}: is missing", hint)


def _check(config: Config) -> None:
    if config.emit == "threshold" and config.min_score is None:
        raise XwinError("--emit threshold needs --min-score", "", USAGE)
    rejection(config.rejected)
    rank = re.fullmatch(r"rank:(\d+)", config.rejected)
    if config.emit == "pairs" and rank and int(rank[1]) <= config.top:
        message = f"--rejected {config.rejected} is among the chosen, which are ranks 1 to {config.top}"
        raise XwinError(message, f"name rank:{config.top + 1} or a later one", USAGE)


def _locate(sources: list[str], number: int) -> str:
    """``file:line`` of the row that was read as the given number; a stream is counted as it came."""
    if "-" in sources:
        return f"-:{number}"
    lines = (where for source in sources for where, _ in jsonl.read(source))
    return next(itertools.islice(lines, number - 1, None), f"row {number}")


def run(config: Config) -> None:
    """Read groups one at a time, write what is chosen, say what that did."""
    from xwincli import formats, sources

    _check(config)
    started, files = time.time(), sources.expand(config.data)
    plan = manifest.plan("rs-filter", config, files)
    if manifest.skip_if_current(config.out, plan, config.force):
        return
    receipt = Receipt()
    with jsonl.writer(config.out) as w:
        for number, group in enumerate(formats.read(config.data, Group, limit=config.limit), 1):
            if not any(config.score in r.scores for r in group.responses):
                _refuse(group, config.score, _locate(files, number))
            for record in records(group, config, receipt):
                w.write(encode(record))
        if not receipt.kept:
            reasons = ", ".join(f"{n} {why}" for why, n in receipt.lost.most_common()) or "there were none"
            raise XwinError(f"nothing was chosen from {receipt.prompts} prompts: {reasons}")
    receipt.show(config.score)
    if receipt.dropped["without a score"]:
        warn(f"{receipt.dropped['without a score']} responses have no finite score {config.score!r}")
    counts = {"in": receipt.prompts, "out": receipt.rows, "prompts": receipt.kept}
    manifest.write(config.out, plan, config, started=started, counts=counts, metrics=receipt.metrics())
