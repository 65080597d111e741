"""Choose among each prompt's scored responses: SFT conversations or DPO pairs, with a receipt.

`xwin rs-filter --data scored.jsonl --out rs.jsonl --emit best` keeps every prompt's highest-scoring response
(rejection sampling). `--emit random` takes as many at random from the same responses: finetune on it as well,
since without that control a gain is not shown to be the reward model's. `--emit pairs` pairs the best with
a rejected one; which one is the setting that matters most (`--rejected`).

Responses cut off by the length limit, empty ones and repeats of the same text never take part. `--merge` joins the
rounds of several files by their prompts, `--against` loses prompts that an evaluation set holds, and `--lost FILE`
says of every prompt that gave nothing why.
"""

from __future__ import annotations

import itertools
import math
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import msgspec

from xwincli import contamination, jsonl, manifest
from xwincli.console import warn
from xwincli.errors import USAGE, XwinError
from xwincli.records import Conversation, Group, Message, Pair, Record, content_id, encode
from xwincli.selection.choose import Choosing, choose
from xwincli.selection.pool import Ranked, mark, pool
from xwincli.selection.receipt import Outcome, Receipt
from xwincli.selection.reject import Rejecting, pairs
from xwincli.selection.rounds import merged
from xwincli.settings import flag, group


@dataclass(kw_only=True)
class Config:
    """Options of ``xwin rs-filter``."""

    data: list[str] = flag(["-"], "scored groups: files, globs, or - for standard input")
    out: str = flag("-", "conversations or pairs, as JSONL")
    score: str = flag("rm", "name of the score to choose by")
    choosing: Choosing = group(Choosing)
    rejecting: Rejecting = group(Rejecting)
    keep_percent: float = flag(
        100.0, "of the prompts keep those whose chosen score highest, so many percent", low=0.0, high=100.0
    )
    merge: bool = flag(False, "join groups of the same prompt_id, as from several rounds, before choosing")
    dedupe: str = flag(
        "none",
        "lose prompts that came before, never choose a response chosen for an earlier prompt, or both",
        choices=("none", "prompts", "responses", "both"),
    )
    against: contamination.Against = group(contamination.Against)
    lost: str = flag("", "file for the prompts that gave nothing, each with its reason", execution=True)
    seed: int = flag(0, "of the random choices; each prompt has its own stream")
    limit: int = flag(0, "read only the first rows; 0 reads all", low=0)
    force: bool = flag(False, "make it anew even if it is up to date", execution=True)

    def __post_init__(self) -> None:
        rank = re.fullmatch(r"rank:(\d+)", self.rejecting.rejected)
        most = self.choosing.most
        if self.choosing.emit == "pairs" and rank and int(rank[1]) <= most:
            message = f"--rejected {self.rejecting.rejected} is among the chosen, which are ranks 1 to {most}"
            raise XwinError(message, f"name rank:{most + 1} or a later one", USAGE)


class Selection:
    """Chooses one prompt at a time; knows what was chosen before.

    Args:
        config: the rules.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.index = contamination.index(config.against)
        self.dropped: Counter[str] = Counter()
        self._prompts: set[int] = set()
        self._texts: set[int] = set()

    def of(self, group: Group) -> Outcome:
        """What becomes of a group."""
        ranked = pool(group, self.config.score, self.dropped)
        outcome = Outcome.of(group, ranked)
        made = self._barred(group) or self._chosen(group, ranked)
        if isinstance(made, str):
            outcome.lost = made
            return outcome
        chosen, rejected = made
        if rejected:
            outcome.note("rejected", rejected)
            records: list[Record] = [_pair(group, *p, self.config.rejecting.margin) for p in zip(chosen, rejected)]
        else:
            records = [_conversation(group, c) for c in chosen]
        outcome.rows = [encode(r) for r in records]
        outcome.note("chosen", chosen)
        outcome.note("pool", ranked)
        outcome.score = outcome.figures["score_chosen"]
        if self.config.dedupe in ("responses", "both"):
            self._texts |= {mark(c.response.text) for c in chosen}
        return outcome

    def _barred(self, group: Group) -> str | None:
        """Why a prompt is lost whatever its responses are."""
        if self.index and (shared := self.index.find(group.prompt)):
            return f"that an evaluation set holds: {shared[1]}, “{shared[0]}”"
        if self.config.dedupe in ("prompts", "both"):
            value = mark("\n".join(f"{m['role']}: {m.get('content')}" for m in group.prompt))
            if value in self._prompts:
                return "that came before"
            self._prompts.add(value)
        return None

    def _chosen(self, group: Group, ranked: list[Ranked]) -> tuple[list[Ranked], list[Ranked]] | str:
        """The chosen, and the rejected beside them if pairs are wanted; or why there are none."""
        config, rng = self.config, random.Random(f"{self.config.seed}:{group.id}")
        fresh = [r for r in ranked if mark(r.response.text) not in self._texts] if self._texts else ranked
        if ranked and not fresh:
            return "with every response chosen for an earlier prompt"
        chosen = choose(fresh, config.choosing, rng)
        if isinstance(chosen, str) or config.choosing.emit != "pairs":
            return chosen if isinstance(chosen, str) else (chosen, [])
        made = pairs(ranked, chosen, config.rejecting, rng)
        return made if isinstance(made, str) else ([c for c, _ in made], [r for _, r in made])


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


def best(outcomes: Iterable[Outcome], percent: float) -> Iterator[Outcome]:
    """Of the prompts that gave something only so many percent, those whose chosen score highest; the others are lost.

    The outcomes wait in a temporary file; of those that tie at the bound the earlier are kept.
    """
    if percent >= 100:
        yield from outcomes
        return
    scores: list[float] = []
    encoder, decoder = msgspec.json.Encoder(), msgspec.json.Decoder(Outcome)
    with tempfile.TemporaryFile() as file:
        for outcome in outcomes:
            file.write(encoder.encode(outcome) + b"\n")
            if not outcome.lost:
                scores.append(outcome.score)
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        kept = set(order[: math.ceil(len(scores) * percent / 100)])
        file.seek(0)
        number = 0
        for line in file:
            outcome = decoder.decode(line)
            if not outcome.lost:
                if number not in kept:
                    outcome.lost = "below the best of --keep-percent"
                number += 1
            yield outcome


def _refuse(group: Group, name: str, where: str) -> NoReturn:
    """Say that no response of a group has the score, and which scores there are."""
    there = sorted({n for r in group.responses for n in r.scores})
    hint = f"there are: {', '.join(there)}; --score NAME chooses" if there else "run xwin score first"
    raise XwinError(f"{where}: field responses[0].scores.{name}: is missing", hint)


def _locate(sources: list[str], number: int) -> str:
    """``file:line`` of the row that was read as the given number; a stream is counted as it came."""
    if "-" in sources:
        return f"-:{number}"
    lines = (where for source in sources for where, _ in jsonl.read(source))
    return next(itertools.islice(lines, number - 1, None), f"row {number}")


def _scored(config: Config, files: list[str]) -> Iterator[Group]:
    """The groups; each must have the score somewhere."""
    from xwincli import formats

    for number, row in enumerate(formats.read(config.data, Group, limit=config.limit), 1):
        if not any(config.score in r.scores for r in row.responses):
            _refuse(row, config.score, _locate(files, number))
        yield row


def run(config: Config) -> None:
    """Read groups one at a time, write what is chosen, say what that did."""
    from xwincli import sources

    started, files = time.time(), sources.expand(config.data)
    plan = manifest.plan("rs-filter", config, [*files, *config.against.against])
    again = config.force or bool(config.lost and not Path(config.lost).exists())
    if manifest.skip_if_current(config.out, plan, again):
        return
    selection, receipt = Selection(config), Receipt()
    groups = _scored(config, files)
    outcomes = map(selection.of, merged(groups) if config.merge else groups)
    with jsonl.writer(config.out) as w, jsonl.writer(config.lost) if config.lost else nullcontext() as lost:
        for outcome in best(outcomes, config.keep_percent):
            receipt.take(outcome)
            for row in outcome.rows if not outcome.lost else []:
                w.write(row)
            if outcome.lost and lost:
                lost.write(outcome.loss())
        receipt.dropped = selection.dropped
        if not receipt.kept:
            reasons = ", ".join(f"{n} {why}" for why, n in receipt.lost.most_common()) or "there were none"
            raise XwinError(f"nothing was chosen from {receipt.prompts} prompts: {reasons}")
    receipt.show(config.score)
    if receipt.dropped["without a score"]:
        warn(f"{receipt.dropped['without a score']} responses have no finite score {config.score!r}")
    counts = {"in": receipt.prompts, "out": receipt.rows, "prompts": receipt.kept}
    manifest.write(config.out, plan, config, started=started, counts=counts, metrics=receipt.metrics())
