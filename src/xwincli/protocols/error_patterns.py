"""How answers fail: clusters of failing ones by their words, and what one model does more often than another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from xwincli.metrics import lift
from xwincli.metrics.bootstrap import plain
from xwincli.protocols import entries, stability
from xwincli.protocols.compare import Entry
from xwincli.protocols.error_tags import TAGS, tags

UNMET, LOW = "unmet demand", "low score"
EXAMPLES = 3  # answers named of each pattern


# -- every answer


@dataclass(kw_only=True)
class Case:
    """One answer: its ``patterns`` are its tags, an unmet demand, a low score; failing answers are in a ``cluster``."""

    model: str
    prompt_id: str
    index: int
    tags: list[str]
    unmet: list[str] = field(default_factory=list)
    low: bool = False
    cluster: int | None = None

    @property
    def failing(self) -> bool:
        """True if anything is wrong with it."""
        return bool(self.tags or self.unmet or self.low)

    def patterns(self) -> Iterator[str]:
        """The names it is counted under."""
        yield from self.tags
        if self.unmet:
            yield UNMET
        if self.low:
            yield LOW

    def row(self) -> dict[str, Any]:
        """As it stands in ``tags.jsonl``."""
        return {**vars(self), "failing": self.failing}


def examine(entry: Entry, prompts: Sequence[str], score: str = "", below: float = 0.0) -> list[Case]:
    """Every answer of a model with what is wrong with it; with ``score``, one of less than ``below`` is low."""
    found = []
    for p in prompts:
        group = entry.groups[p]
        asked = stability.demanded(group, f"{entry.file}: prompt {p}")
        for r in group.responses:
            unmet = [d.kind for d in asked if not d.strict(r.text)]
            low = bool(score) and r.scores[score] < below
            case = Case(model=entry.name, prompt_id=p, index=r.index, tags=tags(group, r, unmet), unmet=unmet, low=low)
            found.append(case)
    return found


# -- clusters


@dataclass(frozen=True)
class Cluster:
    """Failing answers that share words: the weightiest of these, how many answers, and those nearest the middle."""

    terms: list[str]
    size: int
    nearest: list[Case]


def by_words(texts: Sequence[str], most: int, seed: int) -> tuple[list[int], list[list[str]], list[list[int]]]:
    """Texts in clusters by their words: TF-IDF (sublinear, English stop words out) and k-means (Lloyd 1982).

    Args:
        texts: shape (N,).
        most: clusters at most; fewer where they would hold fewer than five texts each.
        seed: of k-means.

    Returns:
        Each text's cluster, numbered from 1 by falling size (0 for all where no text holds a word); of each cluster
        its weightiest words, and its texts by their distance from the middle.
    """
    import numpy as np
    from sklearn.cluster import KMeans
    from sklearn.feature_extraction.text import TfidfVectorizer

    letters = r"(?u)\b[^\W\d_]{2,}\b"
    vectoriser = TfidfVectorizer(sublinear_tf=True, stop_words="english", token_pattern=letters, max_features=20000)
    try:
        matrix = vectoriser.fit_transform(texts)
    except ValueError:  # an empty vocabulary
        return [0] * len(texts), [], []
    k = max(1, min(most, len(texts) // 5, len(set(texts))))
    fitted = KMeans(k, n_init=10, random_state=seed).fit(matrix)
    labels, away = fitted.labels_.tolist(), fitted.transform(matrix)
    sizes = Counter(labels)
    order = sorted(sizes, key=lambda c: (-sizes[c], c))
    names = vectoriser.get_feature_names_out()
    heavy = [np.argsort(-fitted.cluster_centers_[c], kind="stable")[:5] for c in order]
    near = [[int(i) for i in np.argsort(away[:, c], kind="stable") if labels[i] == c] for c in order]
    return [order.index(c) + 1 for c in labels], [[str(names[i]) for i in row] for row in heavy], near


def cluster_failing(models: Sequence[Entry], cases: Sequence[Case], most: int, seed: int) -> list[Cluster]:
    """Put all models' failing answers, each with its prompt's last message, into clusters; cases note theirs."""
    failing = [c for c in cases if c.failing]
    if not failing:
        return []
    texts: dict[tuple[str, str, int], str] = {}
    for e in models:
        for g in e.groups.values():
            asked = str(g.prompt[-1].get("content") or "")
            texts |= {(e.name, g.prompt_id, r.index): f"{asked}\n{r.text}" for r in g.responses}
    labels, terms, near = by_words([texts[(c.model, c.prompt_id, c.index)] for c in failing], most, seed)
    for c, label in zip(failing, labels, strict=True):
        c.cluster = label or None
    return [Cluster(t, len(own), [failing[i] for i in own[:EXAMPLES]]) for t, own in zip(terms, near, strict=True)]


# -- figures

Model = tuple[str, Sequence[Case]]
Shows = Callable[[Case], bool]


def _lift(first: list[float], second: list[float]) -> dict[str, Any]:
    """How many times as large the share of answers is; where one has none, of prompts with half a prompt added."""
    counts = [(sum(v > 0 for v in column), len(column)) for column in (first, second)]
    both = all(hits for hits, _ in counts) and sum(a + b > 0 for a, b in zip(first, second, strict=True)) > 1
    found = lift.paired_lift(first, second) if both else lift.lift(*counts[0], *counts[1])
    return {"lift": plain(found), "p": lift.fisher(*counts[0], *counts[1])}


def _figures(
    models: Sequence[Model], prompts: Sequence[str], name: str, shows: Shows, rounds: int, seed: int
) -> dict[str, Any]:
    """How often a pattern comes in each model, and from the second on its lift over the first."""
    columns: list[list[float]] = []
    made: list[dict[str, Any]] = []
    for model, cases in models:
        by: dict[str, list[bool]] = {p: [] for p in prompts}
        for c in cases:
            by[c.prompt_id].append(shows(c))
        columns.append([sum(v) / len(v) for v in by.values()])
        shown = [c for c in cases if shows(c)]
        facts: dict[str, Any] = {"name": model, "answers": len(shown), "prompts": sum(map(any, by.values()))}
        facts["share"] = entries.mean([*columns[-1]], rounds=rounds, seed=seed)
        if len(columns) > 1 and (facts["answers"] or made[0]["answers"]):
            facts |= _lift(columns[0], columns[-1])
        facts["examples"] = [{"prompt_id": c.prompt_id, "index": c.index} for c in shown[:EXAMPLES]]
        made.append(facts)
    return {"pattern": name, "models": made}


def patterns(
    models: Sequence[Model], prompts: Sequence[str], clusters: Sequence[Cluster], *, rounds: int, seed: int
) -> list[dict[str, Any]]:
    """Figures of every tag and every cluster of failing answers, in each model.

    Shares are of answers, a mean over prompts with a bootstrap interval; lift is their ratio with an interval over
    prompts. Fisher's p is of prompts where the pattern comes at least once, since answers to one prompt are no
    independent draws; ``p_holm`` corrects for how many patterns there are. What neither model shows has no lift.

    Args:
        models: names and cases; the first is the one that others are compared with.
        prompts: the ids counted.
        clusters: as ``cluster_failing`` made them.
        rounds, seed: of the bootstrap.
    """
    seen = {name for _, cases in models for c in cases for name in c.patterns()}
    every = []
    for name in (*TAGS, UNMET, LOW):
        if name in TAGS or name in seen:
            every.append(_figures(models, prompts, name, _showing(name), rounds, seed))
    for number, found in enumerate(clusters, 1):
        figures = _figures(models, prompts, f"cluster {number}", _in_cluster(number), rounds, seed)
        middle = [{"name": c.model, "prompt_id": c.prompt_id, "index": c.index} for c in found.nearest]
        every.append({**figures, "terms": found.terms, "size": found.size, "nearest": middle})
    for i in range(1, len(models)):
        tested = [e["models"][i] for e in every if "p" in e["models"][i]]
        for facts, p in zip(tested, lift.holm([t["p"] for t in tested]), strict=True):
            facts["p_holm"] = p
    return every


def _showing(name: str) -> Shows:
    return lambda case: name in case.patterns()


def _in_cluster(number: int) -> Shows:
    return lambda case: case.cluster == number
