"""What choosing did: counts, means, and why each lost prompt was lost."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from xwincli.console import say
from xwincli.records import Group
from xwincli.selection.pool import Ranked


class Outcome(msgspec.Struct):
    """What became of one prompt.

    Attributes:
        prompt_id, id: the group's.
        responses: how many it had.
        rows: what is written, encoded.
        lost: why nothing is; "" if something is.
        best: its pool's best score, if it has one.
        score: mean of the chosen, by which prompts are compared.
        tied: its best score was had by several.
        cut: responses of the pool that the length limit cut off.
        figures: name -> mean over the prompt's chosen, rejected or pool.
    """

    prompt_id: str
    id: str
    responses: int
    rows: list[dict[str, Any]] = []
    lost: str = ""
    best: float | None = None
    score: float = 0.0
    tied: bool = False
    cut: int = 0
    figures: dict[str, float] = {}

    @classmethod
    def of(cls, group: Group, ranked: Sequence[Ranked]) -> Outcome:
        """The outcome of a group of which nothing is known but its pool."""
        made = cls(group.prompt_id, group.id, len(group.responses), cut=sum(r.cut for r in ranked))
        if ranked:
            made.best = ranked[0].score
            made.tied = len(ranked) > 1 and ranked[0].score == ranked[1].score
        return made

    def note(self, side: str, picked: Sequence[Ranked]) -> None:
        """Keep the mean score and lengths of one side, as far as all are known."""
        values: dict[str, list[float | None]] = {
            f"score_{side}": [p.score for p in picked],
            f"characters_{side}": [len(p.response.text) for p in picked],
            f"tokens_{side}": [p.response.tokens for p in picked],
        }
        for name, each in values.items():
            known = [v for v in each if v is not None]
            if known and len(known) == len(each):
                self.figures[name] = statistics.fmean(known)

    def loss(self) -> dict[str, Any]:
        """A line of ``--lost``."""
        named = {"prompt_id": self.prompt_id, "id": self.id, "reason": self.lost.removeprefix("with ")}
        return {**named, "responses": self.responses, "best": self.best}


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

    def take(self, outcome: Outcome) -> None:
        """Count one prompt."""
        self.prompts += 1
        self.tied += outcome.tied
        self.cut += outcome.cut
        if outcome.lost:
            self.lost[outcome.lost.partition(": ")[0]] += 1
            return
        self.kept += 1
        self.rows += len(outcome.rows)
        for name, value in outcome.figures.items():
            self.means.setdefault(name, []).append(value)

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
