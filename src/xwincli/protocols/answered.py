"""Samples of prompts whose answer is known: read off the text, compared, voted on, picked by a reward model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xwincli.errors import XwinError
from xwincli.formats.parts import listed, number, optional, user, wrong
from xwincli.metrics import best_of_n, bootstrap, majority
from xwincli.metrics.bootstrap import plain
from xwincli.protocols.demands import last_number
from xwincli.protocols.evaluation import Row
from xwincli.records import Group, Message


@dataclass
class Sampled:
    """One prompt's samples in the order drawn: their answers (None: none to be read), which are correct, scores."""

    id: str
    where: str
    answers: Sequence[Hashable]
    correct: list[bool]
    scores: list[float] = field(default_factory=list)
    prompt: list[Message] = field(default_factory=list)
    sides: list[tuple[str, bool]] = field(default_factory=list)


# -- answers


def answer(text: str) -> Hashable:
    r"""What a text answers: the inside of its last ``\boxed{…}``, else its last number; None where it has neither.

    Numbers are compared as numbers, anything else by its characters without white space.
    """
    inside = _boxed(text)
    return last_number(text) if inside is None else _bare(inside)


def reference_answer(text: str) -> Hashable:
    r"""What a reference states: inside its last ``\boxed{…}``, after its last ``####`` (GSM8K), else all of it."""
    inside = _boxed(text)
    return _bare(text.rpartition("####")[2] if inside is None else inside)


def _bare(text: str) -> Hashable:
    bare = "".join(text.split())
    try:
        return float(bare.replace(",", ""))
    except ValueError:
        return bare or None


def _boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed{")
    for i in range(begin, len(text)):
        if text[i] == "}" and depth == 0:
            return text[begin:i]
        depth += (text[i] == "{") - (text[i] == "}")
    return None


# -- rows


def is_sampled(row: Row) -> bool:
    """True for a row of several samples: a group, or Qwen2.5-Math's layout."""
    return "responses" in row or ("pred" in row and "score" in row)


def own_row(row: Row, where: str) -> Sampled | None:
    """Qwen2.5-Math's samples: ``question``, ``response``, ``pred``, ``score`` (correct or not), ``pred_score``."""
    if "pred" not in row or "score" not in row:
        return None
    answers, correct = listed(row, "pred", where), listed(row, "score", where)
    if not all(isinstance(c, bool) for c in correct):
        raise wrong(where, "score", "expected true or false for each sample: whether its answer is correct")
    given, texts = ([] if row.get(k) is None else listed(row, k, where) for k in ("pred_score", "response"))
    scores = [_only(s, where, f"pred_score[{i}]") for i, s in enumerate(given)]
    for name, column in (("score", correct), ("pred_score", scores), ("response", texts)):
        if column and len(column) != len(answers):
            raise wrong(where, name, f"has {len(column)} entries for {len(answers)} answers")
    voted = [None if a is None or not str(a).strip() else str(a) for a in answers]
    question = optional(row, "question", where)
    asked = [user(question)] if question else []
    return Sampled(str(row.get("idx", where)), where, voted, correct, scores, asked, [(str(t), True) for t in texts])


def _only(value: Any, where: str, field_: str) -> float:
    return number(value[0] if isinstance(value, list) and len(value) == 1 else value, where, field_)


def of_group(group: Group, where: str, scores: str) -> Sampled:
    """A group of ours: a response's ``correct`` and ``answer`` where it has them, else read off its text.

    Args:
        group: with a ``reference``, unless each response says whether it is correct.
        where: ``file:line``.
        scores: the name of the scores to pick by; "" takes none.

    Raises:
        XwinError: the reference or a score is missing, or the reference holds no answer.
    """
    answers = [r.extra["answer"] if "answer" in r.extra else answer(r.text) for r in group.responses]
    answers = [a if isinstance(a, str | int | float | None) else str(a) for a in answers]
    known = [r.extra.get("correct") for r in group.responses]
    if not all(isinstance(c, bool) for c in known):
        wanted = _reference(group, where)
        known = [a is not None and a == wanted for a in answers]
    found = []
    for i, r in enumerate(group.responses if scores else ()):
        if scores not in r.scores:
            hint = f"`xwin score --name {scores}` writes it, or --rm scores here"
            raise wrong(where, f"responses[{i}].scores.{scores}", "is missing", hint)
        found.append(r.scores[scores])
    sides = [(r.text, r.finish != "length") for r in group.responses]
    return Sampled(group.prompt_id, where, answers, [bool(c) for c in known], found, group.prompt, sides)


def _reference(group: Group, where: str) -> Hashable:
    if group.reference is None:
        raise wrong(where, "reference", "is missing", "rm@k needs the known answer, or `correct` on each response")
    return reference_answer(group.reference)


# -- figures


def figures(samples: Sequence[Sampled], rounds: int, seed: int) -> dict[str, Any]:
    """rm@k, maj@k and pass@k among the first k samples, for growing k, and the mean, as shares with intervals.

    Raises:
        XwinError: a sample has no scores.
    """
    n = min(len(s.answers) for s in samples)
    metrics: Mapping[str, Callable[[Sampled, int], float]] = {
        "rm_at_k": lambda s, k: majority.rm_at_k(s.scores, s.correct, k),
        "maj_at_k": lambda s, k: majority.majority_at_k(s.answers, s.correct, k),
        "pass_at_k": lambda s, k: best_of_n.pass_at_k(s.correct[:k], k),
    }
    if lost := [s for s in samples if len(s.scores) != len(s.answers)]:
        raise XwinError(f"{lost[0].where}: the samples have no scores", "--rm names the reward model to score them")
    found: dict[str, Any] = {"protocol": "rm@k", "prompts": len(samples), "n": n}
    for name, metric in metrics.items():
        found[name] = []
        for k in best_of_n.sizes(n):
            e = bootstrap.mean([metric(s, k) for s in samples], rounds=rounds, seed=seed)
            found[name].append({"k": k, **plain(e)})
    means = [sum(s.correct) / len(s.correct) for s in samples]
    found["mean"] = plain(bootstrap.mean(means, rounds=rounds, seed=seed))
    found["top_score_ties"] = sum(s.scores.count(max(s.scores)) > 1 for s in samples)
    found["unread_answers"] = sum(a is None for s in samples for a in s.answers)
    return found


def result_rows(samples: Sequence[Sampled]) -> list[Row]:
    """One row a prompt, for ``results.jsonl``: answers, scores, and whom the model and the majority pick."""
    rows = []
    for s in samples:
        n = len(s.answers)
        picks = {"rm": majority.rm_index(s.scores, n), "majority": majority.majority_index(s.answers, n)}
        rows.append({"id": s.id, "answers": s.answers, "correct": s.correct, "scores": s.scores, "picks": picks})
    return rows
