"""FastChat's files of MT-Bench: questions, answers and judgements read strictly, answers and judgements written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xwincli import jsonl, sources
from xwincli.console import say
from xwincli.errors import XwinError
from xwincli.formats.parts import listed, named, text, wrong
from xwincli.protocols import mt_bench
from xwincli.protocols.mt_bench import Compared, Rated
from xwincli.records import content_id

LISTED = 5  # missing questions named one by one
SIDES = ("model_1", "model_2")
UNKNOWN = "unknown"  # a model or judge that a file of bare replies does not name


@dataclass(frozen=True)
class Question:
    """One question: what the user says turn by turn, known good answers, its category."""

    id: Any
    category: str | None
    turns: list[str]
    references: list[str] | None = None
    temperature: float = mt_bench.OTHERWISE

    @property
    def guided(self) -> bool:
        """True if the judge is shown the reference."""
        return self.category in mt_bench.GUIDED and bool(self.references)


@dataclass
class Answers:
    """One model's answers: by question id the text of each turn."""

    model: str
    file: str
    turns: dict[Any, list[str]] = field(default_factory=dict)


def _question_id(row: Mapping[str, Any], where: str, other: str = "question_id") -> Any:
    value = row.get("question_id", row.get(other))
    if value is None:
        raise wrong(where, "question_id", "is missing")
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise wrong(where, "question_id", f"expected a number or text, got {named(value)}")
    return value


def questions(file: str, references: str = "") -> dict[Any, Question]:
    """FastChat's ``question.jsonl`` by question id.

    Args:
        file: the questions.
        references: answers of a reference model (``reference_answer/gpt-4.jsonl``); "" takes the questions' own.

    Raises:
        XwinError: a question is malformed or stands twice.
    """
    known: dict[Any, Question] = {}
    for where, row in jsonl.read(file):
        key = _question_id(row, where)
        if key in known:
            raise wrong(where, "question_id", f"{key!r} stands twice")
        turns = listed(row, "turns", where)
        own = row.get("reference")
        said = [text({"turns": t}, "turns", where) for t in turns]
        warm = row.get("required_temperature")
        if warm is not None and (isinstance(warm, bool) or not isinstance(warm, int | float) or warm < 0):
            raise wrong(where, "required_temperature", "expected a number, 0 or more")
        known[key] = Question(
            id=key,
            category=text(row, "category", where) if "category" in row else mt_bench.category(key),
            turns=said,
            references=[r for r in own if isinstance(r, str)] if isinstance(own, list) and not references else None,
            temperature=mt_bench.temperature(row),
        )
    for reference in answers([references], known).values() if references else ():
        for key, turns in reference.turns.items():
            known[key] = Question(key, known[key].category, known[key].turns, turns, known[key].temperature)
    return known


def answers(files: Sequence[str], asked: Mapping[Any, Question]) -> dict[str, Answers]:
    """FastChat's answer files by model: the first choice's turns. Answers to other questions are left out and counted.

    Raises:
        XwinError: a row is malformed, answers a question twice, or none in a file answers any question.
    """
    found: dict[str, Answers] = {}
    for file in sources.expand(files):
        others, read, where = 0, 0, file
        for where, row in jsonl.read(file):
            key, read = _question_id(row, where), read + 1
            if key not in asked:
                others += 1
                continue
            model = text(row, "model_id", where)
            choice = listed(row, "choices", where)[0]
            if not isinstance(choice, dict):
                raise wrong(where, "choices[0]", f"expected an object, got {named(choice)}")
            turns = listed(choice, "turns", where)
            said = [text({"turns": t}, "turns", where, may_be_empty=True, path="choices[0]") for t in turns]
            if len(said) < len(asked[key].turns):
                raise wrong(where, "choices[0].turns", f"answers {len(said)} of {len(asked[key].turns)} turns")
            mine = found.setdefault(model, Answers(model, file))
            if key in mine.turns:
                raise wrong(where, "question_id", f"{model} answers {key!r} twice")
            mine.turns[key] = said
        if others == read > 0:
            raise wrong(where, "question_id", "answers none of the questions", "--questions names their file")
        if others:
            say(f"{file}: {others} of {read} rows answer other questions and are left out")
    return found


def complete(given: Answers, asked: Mapping[Any, Question]) -> None:
    """Refuse answers that leave a question out; the error lists which."""
    if missing := [key for key in asked if key not in given.turns]:
        some = ", ".join(map(str, missing[:LISTED]))
        more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
        hint = "a shorter file of questions compares what there is"
        raise XwinError(f"{given.file}: {given.model} leaves {len(missing)} questions unanswered: {some}{more}", hint)


def write_answers(out: Path, given: Answers, tstamp: float) -> None:
    """A model's answers in FastChat's form."""
    with jsonl.writer(str(out)) as w:
        for key, turns in given.turns.items():
            choice = {"index": 0, "turns": turns}
            made = content_id(given.model, key, turns)
            w.write(
                {"question_id": key, "answer_id": made, "model_id": given.model, "choices": [choice], "tstamp": tstamp}
            )


def write_rows(out: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Judgements in FastChat's form."""
    with jsonl.writer(str(out)) as w:
        for row in rows:
            w.write(dict(row))


# -- judgements


@dataclass
class Judgements:
    """What judgement files hold: single grades, pairs of games, and who judged."""

    singles: list[Rated] = field(default_factory=list)
    pairs: list[Compared] = field(default_factory=list)
    judges: set[str] = field(default_factory=set)


def judgements(files: Sequence[str], asked: Mapping[Any, Question] | None) -> Judgements:
    """FastChat's single and pair judgements of several files, in file order.

    A stored score counts as FastChat's reading; where there is none, the text is read. The strict rating comes from
    the text, or from the score where no text was kept. Bare replies (``id``, ``judgment``) are read too.

    Args:
        files: files and globs.
        asked: the questions; None takes categories from the standard ids.

    Raises:
        XwinError: a row is malformed, about an unknown question, or judges the same twice.
    """
    found = Judgements()
    seen: set[tuple[Any, ...]] = set()
    for file in sources.expand(files):
        for where, row in jsonl.read(file):
            made: Rated | Compared
            if "model_1" in row:
                made = _compared(row, where, asked)
                models: tuple[str, ...] = (made.model_1, made.model_2)
                found.pairs.append(made)
            else:
                made = _rated(row, where, asked)
                models = (made.model,)
                found.singles.append(made)
            judge = _judge(row)
            what = (models, made.question_id, made.turn, judge)
            if what in seen:
                raise wrong(where, "question_id", f"turn {made.turn} of {made.question_id!r} is judged twice")
            seen.add(what)
            found.judges.add(judge)
    return found


def _judge(row: Mapping[str, Any]) -> str:
    """Who judged; FastChat notes the model and its prompt."""
    judge = row.get("judge")
    return str(judge[0]) if isinstance(judge, list) and judge else str(judge or UNKNOWN)


def _about(row: Mapping[str, Any], where: str, asked: Mapping[Any, Question] | None) -> tuple[Any, str | None, int]:
    key = _question_id(row, where, "id")
    if asked is not None and key not in asked:
        raise wrong(where, "question_id", f"{key!r} is not among the questions", "--questions names their file")
    turn = row.get("turn", 1)
    if isinstance(turn, bool) or not isinstance(turn, int) or turn < 1:
        raise wrong(where, "turn", "expected a whole number from 1")
    return key, asked[key].category if asked is not None else mt_bench.category(key), turn


def _rated(row: dict[str, Any], where: str, asked: Mapping[Any, Question] | None) -> Rated:
    model = text(row, "model", where) if "model" in row else UNKNOWN
    key, category, turn = _about(row, where, asked)
    score, said = row.get("score"), row.get("judgment")
    if said is not None and not isinstance(said, str):
        raise wrong(where, "judgment", f"expected text, got {named(said)}")
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float)):
        raise wrong(where, "score", f"expected a number, got {named(score)}")
    if score is None and "judgment" not in row:
        raise wrong(where, "score", "is missing")
    compatible = mt_bench.rating_compatible(said) if score is None else None if score == -1 else float(score)
    known = None if score is None or not mt_bench.LOW <= score <= mt_bench.HIGH else float(score)
    strict = mt_bench.rating_strict(said) if said else known
    return Rated(model, key, category, turn, compatible, strict)


def _compared(row: dict[str, Any], where: str, asked: Mapping[Any, Question] | None) -> Compared:
    one, two = (text(row, side, where) for side in SIDES)
    if one == two:
        raise wrong(where, "model_2", f"is model_1 ({one}) too")
    key, category, turn = _about(row, where, asked)
    verdicts = [_verdict(row, game, where) for game in ("g1", "g2")]
    return Compared(one, two, key, category, turn, *verdicts)


def _verdict(row: dict[str, Any], game: str, where: str) -> str:
    said = text(row, f"{game}_winner", where)
    if said not in (*SIDES, "tie", "error"):
        raise wrong(where, f"{game}_winner", f"{said!r} is no winner", "winners are model_1, model_2, tie and error")
    return said


def file_name(model: str) -> str:
    """A model's name as a file's: what is no letter, digit, dot, dash or underscore becomes a dash."""
    return re.sub(r"[^\w.-]+", "-", model).lstrip(".") or "model"
