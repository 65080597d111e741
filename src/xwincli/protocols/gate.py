"""A regression gate: how each prompt of a suite does now and did in a baseline, and whether a loss is real."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import msgspec

from xwincli import checks, formats, jsonl
from xwincli.errors import USAGE, XwinError
from xwincli.judges import Judge, matches
from xwincli.metrics import bootstrap, paired
from xwincli.metrics.bootstrap import plain
from xwincli.protocols.compare import Failed, grades, settle
from xwincli.records import Group, Judgement, Prompt, Response, prompt_id

CHECKS = "checks"  # the measure of a prompt that carries checks; every other one is a judge's name
VERDICTS = {1: "better", 0: "not distinguishable", -1: "worse"}
EVEN = 0.5  # what a baseline scores against itself where a judge only compares


class Row(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One prompt's result, and the next run's baseline.

    Attributes:
        id: the prompt's.
        measure: "checks" or the judge that gave the scores.
        score: the mean of ``scores``.
        scores: one an answer: 1 if it meets every check, a judge's rating, or its win (1, .5, 0) over the baseline.
        answers: the texts, which a judge that only compares puts beside the next run's.
        prompt: its opening, for people.
        duel: True if the scores are wins over the baseline's answers.
        baseline: what the baseline scored; absent where there is none.
        missed: checks that an answer did not meet.
    """

    id: str
    measure: str
    score: float
    scores: list[float]
    answers: list[str] = msgspec.field(default_factory=list)
    prompt: str = ""
    category: str | None = None
    duel: bool = False
    baseline: float | None = None
    missed: list[str] = msgspec.field(default_factory=list)

    @property
    def flaky(self) -> bool:
        """True if answers to this prompt pass and fail its checks by turns."""
        return self.measure == CHECKS and 0 < self.score < 1

    @property
    def change(self) -> float | None:
        """Score minus baseline."""
        return None if self.baseline is None else self.score - self.baseline


@dataclass
class Case:
    """A prompt of the suite, how it is measured, and the candidate's answers to it."""

    prompt: Prompt
    measure: str
    group: Group | None = None

    @property
    def id(self) -> str:
        """The prompt's id, by which answers and baselines are joined."""
        return prompt_id(self.prompt.prompt)

    @property
    def opening(self) -> str:
        """The start of what the user says last."""
        text = " ".join(str(self.prompt.prompt[-1].get("content") or "").split())
        return text if len(text) <= 60 else text[:59] + "…"

    def answered(self, responses: list[Response]) -> None:
        """Take the candidate's answers; the suite decides about checks and references, not the answers' file."""
        carried = {f: getattr(self.prompt, f) for f in ("prompt", "checks", "reference", "contexts", "category")}
        self.group = Group(id=self.id, prompt_id=self.id, responses=responses, **carried)


# -- reading


def suite(file: str, judge: str) -> list[Case]:
    """The prompts of a suite: each is measured by its own ``judge``, else by its checks, else by ``judge``.

    Raises:
        XwinError: a prompt stands twice, or a check is of no known kind; names the file and the line.
    """
    cases: dict[str, Case] = {}
    rows = formats.Rows(file, Prompt)
    for row in rows:
        assert isinstance(row, Prompt)
        own = row.extra.get("judge")
        if own is not None and not (isinstance(own, str) and own):
            raise XwinError(f"{rows.where}: field judge: {own!r} is no judge's name", "such as rules or rubric")
        for i, check in enumerate(row.checks or []):
            try:
                checks.describe(check)
            except XwinError as e:
                raise XwinError(f"{rows.where}: field checks[{i}]: {e.message}", e.hint) from None
        case = Case(row, own or (CHECKS if row.checks else judge))
        if case.id in cases:
            raise XwinError(f"{rows.where}: field prompt: {case.opening!r} stands twice", "one row holds one prompt")
        cases[case.id] = case
    return list(cases.values())


def read(file: str) -> dict[str, Row]:
    """A gate's results by prompt id.

    Raises:
        XwinError: a row is no result, or a prompt stands twice.
    """
    found: dict[str, Row] = {}
    for where, value in jsonl.read(file):
        try:
            row = msgspec.convert(value, Row)
        except msgspec.ValidationError as e:
            raise XwinError(f"{where}: {e}", "a baseline is the --out of an earlier xwin eval gate") from None
        if row.id in found:
            raise XwinError(f"{where}: field id: {row.id!r} stands twice")
        found[row.id] = row
    return found


def join(cases: Sequence[Case], groups: Iterable[Group], source: str) -> None:
    """Give every prompt of the suite the answers of a file of groups.

    Raises:
        XwinError: a prompt is answered twice or not at all.
    """
    found: dict[str, Group] = {}
    for group in groups:
        if group.prompt_id in found:
            raise XwinError(f"{source}: field prompt_id: {group.prompt_id!r} stands twice")
        found[group.prompt_id] = group
    if lacking := [c for c in cases if c.id not in found]:
        listed = "; ".join(f"{c.id} ({c.opening!r})" for c in lacking[:5]) + (" …" if len(lacking) > 5 else "")
        hint = "answer them: xwin sample, or --model here"
        raise XwinError(f"{source}: {len(lacking)} of {len(cases)} prompts of the suite are missing: {listed}", hint)
    for case in cases:
        case.answered(found[case.id].responses)


# -- scoring


def by_checks(cases: Iterable[Case]) -> list[Row]:
    """1 for an answer that meets every check of its prompt, else 0."""
    rows = []
    for case in cases:
        assert case.group is not None
        demands, texts = case.prompt.checks or [], [r.text for r in case.group.responses]
        met = [[checks.passes(c, text) for c in demands] for text in texts]
        missed = [checks.describe(c) for i, c in enumerate(demands) if not all(m[i] for m in met)]
        rows.append(_row(case, CHECKS, [float(all(m)) for m in met], missed))
    return rows


def by_judge(judge: Judge, cases: Sequence[Case], baseline: dict[str, Row], failed: Failed) -> list[Row]:
    """A judge's ratings; a judge that only compares puts each answer beside the baseline's.

    Args:
        judge: who is asked.
        cases: answered prompts.
        baseline: earlier results by prompt id; may be empty.
        failed: prompts without a verdict are noted here.
    """
    groups = [c.group for c in cases if c.group is not None]
    try:
        said = settle(partial(grades, judge), groups)
    except XwinError as e:
        if e.code != USAGE:
            raise
        return _duels(judge, cases, baseline, failed)
    rows = []
    for case, rated in zip(cases, said, strict=True):
        if isinstance(rated, XwinError):
            failed[case.id] = rated.message
        else:
            rows.append(_row(case, judge.name, [r.rating for r in rated]))
    return rows


def _duels(judge: Judge, cases: Sequence[Case], baseline: dict[str, Row], failed: Failed) -> list[Row]:
    """Answer i against the baseline's answer i, in both orders; without a baseline every answer is even."""
    if bare := next((c for c in cases if c.id in baseline and not baseline[c.id].answers), None):
        hint = f"{judge.name} compares answers; make a new baseline: --save-baseline"
        raise XwinError(f"the baseline's row {bare.id}: field answers: is missing", hint)
    met = [(c, _matches(c, baseline[c.id].answers)) for c in cases if c.id in baseline]
    new = [c for c in cases if c.id not in baseline]
    rows = [_row(c, judge.name, [EVEN] * len(c.group.responses), duel=True) for c in new if c.group]
    for (case, _), said in zip(met, settle(partial(matches.compare, judge), [m for _, m in met]), strict=True):
        if isinstance(said, XwinError):
            failed[case.id] = said.message
        else:
            rows.append(_row(case, judge.name, list(map(Judgement.verdict, said)), duel=True))
    return rows


def _matches(case: Case, before: Sequence[str]) -> list[matches.Match]:
    assert case.group is not None
    old = [matches.Side(Response(text=text, index=i), "baseline") for i, text in enumerate(before)]
    new = [matches.Side(r, "candidate") for r in case.group.responses]
    pairs = zip(old, new, strict=False)  # as many as both have
    return [matches.Match(case.group, a, b, ("a", "b") * (a.response.text != b.response.text)) for a, b in pairs]


def _row(case: Case, measure: str, scores: list[float], missed: Sequence[str] = (), *, duel: bool = False) -> Row:
    assert case.group is not None
    return Row(
        id=case.id,
        measure=measure,
        score=sum(scores) / len(scores),
        scores=scores,
        answers=[r.text for r in case.group.responses],
        prompt=case.opening,
        category=case.prompt.category,
        duel=duel,
        missed=list(missed),
    )


def against(rows: Sequence[Row], baseline: dict[str, Row], common: bool, file: str) -> list[str]:
    """Note each row's baseline; returns the ids that only one of both has.

    Args:
        rows: results now.
        baseline: results before.
        common: go on where prompts are missing from one.
        file: the baseline's, for messages.

    Raises:
        XwinError: a prompt is missing from one of both, or is measured in another way than before.
    """
    new = [r.id for r in rows if r.id not in baseline]
    gone = [p for p in baseline if p not in {r.id for r in rows}]
    if (new or gone) and not common:
        what = f"{len(new)} prompts of the suite are not in it" if new else f"{len(gone)} of its prompts are gone"
        hint = "--common compares those that both have; --save-baseline makes a new one"
        raise XwinError(f"{file}: {what}: {', '.join((new or gone)[:5])}", hint)
    for row in rows:
        before = baseline.get(row.id)
        if before and before.measure != row.measure:
            message = f"{file}: field measure: {row.id} was measured by {before.measure!r}, now by {row.measure!r}"
            raise XwinError(message, "make a new baseline: --save-baseline")
        row.baseline = (EVEN if row.duel else before.score) if before else None
    return new + gone


# -- deciding


@dataclass(frozen=True)
class Measure:
    """What one measure says: means now and before, the paired tests, and the verdict.

    ``lost`` is True for a real loss: a significant one, or one beyond the largest permitted.
    """

    name: str
    prompts: int
    flaky: int
    now: float
    before: float | None = None
    compared: int = 0
    difference: dict[str, float | None] | None = None
    sign_test: dict[str, Any] | None = None
    p: float | None = None
    detectable: float | None = None
    verdict: str = "no baseline"
    lost: bool = False
    rows: list[Row] = field(default_factory=list, repr=False)

    def facts(self) -> dict[str, Any]:
        """Without the rows."""
        return {k: v for k, v in asdict(self).items() if k != "rows"}


def decide(
    rows: Sequence[Row], max_loss: float | None, *, rounds: int = bootstrap.ROUNDS, seed: int = 0
) -> list[Measure]:
    """Each measure's verdict over the prompts that have a baseline.

    A loss is significant if the paired bootstrap interval of the mean difference lies below zero and the randomisation
    test agrees (p < .05); one larger than ``max_loss`` counts even if it is not.
    """
    return [
        _decided(name, [r for r in rows if r.measure == name], max_loss, rounds, seed)
        for name in dict.fromkeys(r.measure for r in rows)
    ]


def _decided(name: str, rows: list[Row], max_loss: float | None, rounds: int, seed: int) -> Measure:
    about: dict[str, Any] = {"name": name, "prompts": len(rows), "flaky": sum(r.flaky for r in rows), "rows": rows}
    known = [(r.baseline, r.score) for r in rows if r.baseline is not None]
    if not known:
        return Measure(now=_mean([r.score for r in rows]), **about)
    before, now = map(list, zip(*known, strict=True))
    c = paired.compare(before, now, rounds=rounds, seed=seed)
    loss = -c.difference.value
    too_large = max_loss is not None and loss > max_loss + 1e-12
    beyond = f", but the loss of {loss:.4g} is beyond --max-loss {max_loss:g}" if too_large and c.side >= 0 else ""
    return Measure(
        now=_mean(now),
        before=_mean(before),
        compared=len(known),
        difference=plain(c.difference),
        sign_test=asdict(c.signs),
        p=c.p,
        detectable=c.detectable if math.isfinite(c.detectable) else None,
        verdict=VERDICTS[c.side] + beyond,
        lost=c.side < 0 or too_large,
        **about,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
