"""Whether answers rest on their contexts, or at least on each other: claims put to a judge, and shares of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from xwincli import jsonl
from xwincli.errors import FAILED_ROWS, USAGE, XwinError
from xwincli.judges import Answer, Judge
from xwincli.metrics import bootstrap, consistency
from xwincli.metrics.bootstrap import plain
from xwincli.protocols import entries, stability
from xwincli.protocols.claims import abstains, claims
from xwincli.protocols.compare import BLOCK, Entry, Failed, settle
from xwincli.protocols.entries import Column
from xwincli.records import Group, Message, check_messages, content_id

LABELS = {1.0: "supported", 0.0: "absent", -1.0: "contradicted"}  # by the judge's rating
CLASSES = tuple(LABELS.values())
FIGURES = ("unsupported", "contradicted", "absent", "tainted", "abstained", "claims", "agreement")
RISK = "a risk signal, not truth: answers that agree can all be wrong"


@dataclass(kw_only=True)
class Claim:
    """One claim of one answer and what the judge said; ``label`` is None where it said nothing readable."""

    prompt_id: str
    model: str
    index: int
    claim: str
    label: str | None = None
    reason: str | None = None


def asked(prompt: list[Message], claim: str, contexts: Sequence[str]) -> Answer:
    """A claim as a judge is asked about it."""
    return Answer(id=content_id(prompt, claim, contexts), prompt=prompt, text=claim, contexts=list(contexts))


def labels(judge: Judge, questions: Sequence[Answer]) -> Iterator[tuple[str | None, str | None]]:
    """(label, reason) of each claim; equal questions are asked once.

    The label is None and the reason the error where the judge gave none.

    Raises:
        XwinError: the judge's ratings are no claim judge's: not 1, 0 or −1.
    """
    distinct = {q.id: q for q in questions}
    given = settle(lambda rows: list(judge.ratings(rows)), list(distinct.values()))
    rated = dict(zip(distinct, given, strict=True))
    for q in questions:
        said = rated[q.id]
        if isinstance(said, XwinError):
            yield None, said.message
        elif (label := LABELS.get(said.rating)) is None:
            hint = "a claim judge says 1 (supported), 0 (absent) or -1 (contradicted): overlap, faithfulness"
            raise XwinError(f"judge {judge.name} rated a claim {said.rating:g}", hint, USAGE)
        else:
            yield label, said.reason


# -- answers


def grounded(models: Sequence[Entry]) -> bool:
    """True if the groups have contexts, False if none has.

    Raises:
        XwinError: some have and some have not.
    """
    having = [bool(g.contexts) for e in models for g in e.groups.values()]
    if any(having) and not all(having):
        e, g = next((e, g) for e in models for g in e.groups.values() if not g.contexts)
        hint = "judge rows with contexts and rows without in two runs"
        raise XwinError(f"{e.file}: prompt {g.prompt_id}: field contexts: is missing, though others have it", hint)
    return all(having)


def need_others(models: Sequence[Entry], prompts: Sequence[str]) -> None:
    """Refuse prompts with a single answer, which no other answer can be held against."""
    for e in models:
        if p := next((p for p in prompts if len(e.groups[p].responses) < 2), None):
            message = f"{e.file}: prompt {p} has no contexts and one answer: nothing to judge its claims by"
            raise XwinError(message, "sample more of them: --n 8")


def _rests_on(group: Group, index: int, use_contexts: bool) -> list[str]:
    """What an answer's claims must rest on: the contexts, or without any the other answers to the prompt."""
    if use_contexts:
        return group.contexts or []
    return list(dict.fromkeys(r.text for i, r in enumerate(group.responses) if i != index))


def judge_claims(
    judge: Judge, entry: Entry, prompts: Sequence[str], use_contexts: bool, failed: Failed
) -> Iterator[tuple[int, list[Claim]]]:
    """Every claim of every answer with its label, in blocks of so many prompts.

    Args:
        judge: a claim judge.
        entry: one model's groups.
        prompts: the ids to judge.
        use_contexts: judge by the contexts; else by the other answers.
        failed: a prompt with a claim that has no verdict is noted here.
    """
    for start in range(0, len(prompts), BLOCK):
        found: list[Claim] = []
        questions: list[Answer] = []
        block = prompts[start : start + BLOCK]
        for g in (entry.groups[p] for p in block):
            for i, r in enumerate(g.responses):
                for text in claims(r.text):
                    found.append(Claim(prompt_id=g.prompt_id, model=entry.name, index=r.index, claim=text))
                    questions.append(asked(g.prompt, text, _rests_on(g, i, use_contexts)))
        for claim, (label, reason) in zip(found, labels(judge, questions), strict=True):
            claim.label, claim.reason = label, reason
            if label is None:
                failed.setdefault(claim.prompt_id, f"{entry.name}: {reason}")
        yield len(block), found


def columns(entry: Entry, prompts: Sequence[str], found: Sequence[Claim], equal: str | None) -> dict[str, Column]:
    """Every figure of every prompt, by the name it has in ``eval.json``; None where a prompt has no claim.

    unsupported (not supported: absent or contradicted), contradicted and absent are shares of a prompt's claims;
    tainted is the share of its answers with an unsupported claim among those that have claims; abstained the share
    of its answers that abstain; claims their mean number. With ``equal``, agreement of the answers.
    """
    by: dict[str, list[Claim]] = {p: [] for p in prompts}
    for c in found:
        if c.prompt_id in by:
            by[c.prompt_id].append(c)
    made: dict[str, Column] = {name: [] for name in FIGURES if equal or name != "agreement"}
    for p in prompts:
        group, own = entry.groups[p], by[p]
        answers = {c.index for c in own}
        bad = {c.index for c in own if c.label != "supported"}
        shares = {label: sum(c.label == label for c in own) / len(own) if own else None for label in CLASSES}
        made["unsupported"].append(None if shares["supported"] is None else 1 - shares["supported"])
        made["contradicted"].append(shares["contradicted"])
        made["absent"].append(shares["absent"])
        made["tainted"].append(len(bad) / len(answers) if answers else None)
        made["abstained"].append(sum(abstains(r.text) for r in group.responses) / len(group.responses))
        made["claims"].append(len(own) / len(group.responses))
        if equal:
            made["agreement"].append(stability.agreement(group, equal))
    return made


def standings(
    models: Sequence[Entry],
    prompts: Sequence[str],
    found: Sequence[Sequence[Claim]],
    *,
    equal: str | None,
    rounds: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Each model's figures as means over prompts with intervals, and what changed against the first, paired.

    Args:
        models, found: each model's groups and its claims.
        prompts: the ids counted; every claim of theirs has a label.
        equal: how answers agree, where they are judged by each other.
        rounds, seed: of the bootstrap.
    """
    made: list[dict[str, Any]] = []
    base: dict[str, Column] = {}
    counted = set(prompts)
    for e, own in zip(models, found, strict=True):
        values = columns(e, prompts, own, equal)
        counts = {label: sum(c.label == label for c in own if c.prompt_id in counted) for label in CLASSES}
        facts: dict[str, Any] = {"name": e.name, "file": e.file, "model": e.groups[prompts[0]].model}
        facts |= {"counts": counts, "with_claims": sum(v is not None for v in values["unsupported"])}
        facts |= {name: entries.mean(v, rounds=rounds, seed=seed) for name, v in values.items()}
        if made:
            facts["change"] = {n: entries.change(base[n], v, rounds=rounds, seed=seed) for n, v in values.items()}
        else:
            base = values
        made.append(facts)
    return made


# -- the judge against labels


@dataclass(kw_only=True)
class Labelled:
    """A prompt with contexts and claims whose label is known; ``kind`` says what makes a claim easy or hard."""

    id: str
    prompt: list[Message]
    contexts: list[str]
    claims: list[dict[str, str]]


def _text(where: str, name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise XwinError(f"{where}: field {name}: expected text")
    return value


def read_labelled(file: str) -> list[Labelled]:
    """Rows ``{"id", "prompt", "contexts": […], "claims": [{"text", "label"[, "kind"]}]}``.

    Raises:
        XwinError: names the file, the line and the field.
    """
    rows = []
    for where, row in jsonl.read(file):
        for name in ("prompt", "contexts", "claims"):
            if not isinstance(row.get(name), list) or not row[name]:
                raise XwinError(f"{where}: field {name}: expected a list with something in it")
        check_messages(row["prompt"], where, "prompt", ends="user")
        contexts = [_text(where, f"contexts[{i}]", c) for i, c in enumerate(row["contexts"])]
        known = []
        for i, c in enumerate(row["claims"]):
            if not isinstance(c, dict) or c.get("label") not in CLASSES:
                raise XwinError(f"{where}: field claims[{i}].label: is none of {', '.join(CLASSES)}")
            text = _text(where, f"claims[{i}].text", c.get("text"))
            known.append({"text": text, "label": str(c["label"]), "kind": str(c.get("kind", "other"))})
        identity = str(row.get("id") or content_id(row["prompt"], contexts))
        rows.append(Labelled(id=identity, prompt=row["prompt"], contexts=contexts, claims=known))
    return rows


def against_labels(judge: Judge, rows: Sequence[Labelled], *, rounds: int, seed: int) -> dict[str, Any]:
    """How good the judge is: precision, recall, F1 of each class, accuracy, the confusion, and accuracy by kind.

    A text with a claim that got no verdict is left out and noted in ``failed``. ``by_text`` is the mean over texts of
    their accuracy, with its interval; ``wrong`` lists every claim judged wrongly.

    Raises:
        XwinError: no text is left, or the judge is no claim judge.
    """
    asks = [(i, c) for i, row in enumerate(rows) for c in row.claims]
    said = list(labels(judge, [asked(rows[i].prompt, c["text"], rows[i].contexts) for i, c in asks]))
    failed: dict[int, str] = {}
    for (i, _), (label, reason) in zip(asks, said, strict=True):
        if label is None:
            failed.setdefault(i, reason or "")
    done = [(i, c, label) for (i, c), (label, _) in zip(asks, said, strict=True) if label and i not in failed]
    if not done:
        raise XwinError(f"judge {judge.name} gave no verdict (first: {next(iter(failed.values()))})", "", FAILED_ROWS)
    texts: dict[int, list[bool]] = {}
    kinds: dict[str, list[bool]] = {}
    for i, c, label in done:
        texts.setdefault(i, []).append(label == c["label"])
        kinds.setdefault(c["kind"], []).append(label == c["label"])
    by_text = bootstrap.mean([sum(v) / len(v) for v in texts.values()], rounds=rounds, seed=seed)
    return {
        "texts": len(rows),
        "judged": len(texts),
        "failed": {rows[i].id: why for i, why in failed.items()},
        "claims": len(done),
        "accuracy": sum(map(sum, texts.values())) / len(done),
        "by_text": plain(by_text),
        **_by_class([c["label"] for _, c, _ in done], [label for _, _, label in done]),
        "kinds": {k: {"claims": len(v), "right": sum(v)} for k, v in sorted(kinds.items())},
        "wrong": [{"id": rows[i].id, **c, "said": label} for i, c, label in done if label != c["label"]],
    }


def _by_class(truth: list[str], said: list[str]) -> dict[str, Any]:
    """Scores of each class (null where nothing is below a share), their mean F1, and who was taken for whom."""
    found = consistency.per_class(truth, said, CLASSES)
    f1s = [0.0 if math.isnan(s.f1) else s.f1 for s in found.values() if s.support]
    return {
        "classes": {
            name: {k: v if math.isfinite(v) else None for k, v in vars(s).items()} for name, s in found.items()
        },
        "macro_f1": sum(f1s) / len(f1s),
        "confusion": {"of": CLASSES, "truth_by_said": consistency.confusion(truth, said, CLASSES)},
    }
