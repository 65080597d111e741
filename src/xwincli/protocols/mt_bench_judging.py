"""What MT-Bench asks a model and its judge: the second turn's context, references, both orders, and the rows kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from xwincli.errors import XwinError
from xwincli.judges import Answer, Item, Judge, Rated, Verdict
from xwincli.protocols import mt_bench
from xwincli.protocols.mt_bench_files import Answers, Question
from xwincli.records import Game, Judgement, Message, Prompt, Rating, content_id

OWN = "(Each assistant's own answer: it stands with its answer to the last question.)"


def context(question: Question, said: Sequence[str], turn: int) -> list[Message]:
    """The conversation a turn answers (turns count from 0): the model's own earlier answers stand in it."""
    messages: list[Message] = []
    for asked, answer in zip(question.turns[:turn], said, strict=False):
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": question.turns[turn]}]


def to_answer(asked: Iterable[Question], said: Mapping[Any, Sequence[str]], turn: int) -> list[Prompt]:
    """What the model is asked in a turn: every question whose earlier turns it has answered."""
    made = []
    for q in asked:
        before = said.get(q.id, ())
        if turn < len(q.turns) and len(before) >= turn:
            facts = {"question_id": q.id, "turn": turn + 1, "temperature": q.temperature}
            prompt = context(q, before, turn)
            made.append(Prompt(id=content_id(q.id, turn, prompt), prompt=prompt, category=q.category, extra=facts))
    return made


def to_judge(asked: Iterable[Question], model: Answers, baseline: Answers | None = None) -> list[Prompt]:
    """One row a question and turn: the context, and in ``extra`` the answer (``a``) and the baseline's (``b``)."""
    made = []
    for q in asked:
        ours = model.turns.get(q.id, [])
        theirs = ours if baseline is None else baseline.turns.get(q.id, [])
        for turn in range(min(len(q.turns), len(ours), len(theirs))):
            facts: dict[str, Any] = {"question_id": q.id, "turn": turn + 1, "model_1": model.model, "a": ours[turn]}
            prompt = context(q, ours, turn)
            if baseline is not None:
                facts |= {"model_2": baseline.model, "b": theirs[turn]}
                if ours[:turn] != theirs[:turn] or not all(map(str.strip, ours[:turn])):
                    prompt = context(q, [OWN] * turn, turn)
                    facts |= {"shown_a": _all(ours, turn), "shown_b": _all(theirs, turn)}
            if q.guided:
                facts["references"] = (q.references or [])[: turn + 1]
            made.append(Prompt(id=content_id(prompt, facts), prompt=prompt, category=q.category, extra=facts))
    return made


def _all(said: Sequence[str], turn: int) -> str:
    """All of an assistant's answers up to a turn, as the judge of a pair reads them."""
    return "\n\n".join(f"(to question {i}) {text}" for i, text in enumerate(said[: turn + 1], 1))


# -- single answers


def rate(judge: Judge, rows: Sequence[Prompt]) -> list[list[Rating] | XwinError]:
    """The judge's grade of each row's answer, or why there is none."""
    grades = judge.ratings(
        [
            Answer(id=content_id(r.prompt, r.extra["a"]), prompt=r.prompt, text=r.extra["a"], references=_known(r))
            for r in rows
        ]
    )
    return [g if isinstance(g, XwinError) else [_rating(r, g, judge.name)] for r, g in zip(rows, grades, strict=True)]


def _known(row: Prompt) -> list[str] | None:
    return row.extra.get("references")


def _rating(row: Prompt, grade: Rated, judge: str) -> Rating:
    facts = {"question_id": row.extra["question_id"], "turn": row.extra["turn"], "category": row.category}
    return Rating(
        id=content_id(judge, row.id),
        prompt_id=row.id,
        response={"text": row.extra["a"], "model": row.extra["model_1"]},
        rating=grade.rating,
        raw=grade.raw,
        judge=judge,
        extra={**facts, "guided": _known(row) is not None},
    )


def single_row(made: Rating, tstamp: float) -> dict[str, Any]:
    """A grade as FastChat's judgement file has it; a whole number is written as one."""
    score = int(made.rating) if made.rating == int(made.rating) else made.rating
    name = mt_bench.prompt_name(False, made.extra["guided"], made.extra["turn"])
    return _single(made.extra, made.response["model"], [made.judge, name], made.raw or "", score, tstamp)


def _single(
    facts: Mapping[str, Any], model: str, judge: list[str], said: str, score: float, at: float
) -> dict[str, Any]:
    what = {"question_id": facts["question_id"], "model": model, "judge": judge, "user_prompt": ""}
    return {**what, "judgment": said, "score": score, "turn": facts["turn"], "tstamp": at}


# -- pairs


def compare(judge: Judge, rows: Sequence[Prompt]) -> list[list[Judgement] | XwinError]:
    """Both games of each row, or why one of them has no verdict; equal answers are a tie and cost no call."""
    items = [item for r in rows for item in _items(r)]
    verdicts = iter(list(judge.verdicts(items)) if items else [])
    return [_played(r, list(islice(verdicts, len(_items(r)))), judge.name) for r in rows]


def _items(row: Prompt) -> list[Item]:
    a, b = (row.extra.get(f"shown_{side}", row.extra[side]) for side in "ab")
    if a == b:
        return []
    return [
        Item(id=content_id(row.prompt, x, y), prompt=row.prompt, a=x, b=y, references=_known(row))
        for x, y in ((a, b), (b, a))
    ]


def _played(row: Prompt, verdicts: Sequence[Verdict | XwinError], judge: str) -> list[Judgement] | XwinError:
    games = []
    for first, v in zip("ab", verdicts, strict=False):
        if isinstance(v, XwinError):
            return v
        games.append(Game(first=first, preference=v.preference if first == "a" else 1 - v.preference, raw=v.raw))
    if not games:
        games = [Game(first=first, preference=0.5, reason="the answers are equal") for first in "ab"]
    facts = {"question_id": row.extra["question_id"], "turn": row.extra["turn"], "guided": _known(row) is not None}
    return [
        Judgement(
            id=content_id(judge, row.id),
            prompt_id=row.id,
            prompt=row.prompt,
            a={"text": row.extra["a"], "model": row.extra["model_1"]},
            b={"text": row.extra["b"], "model": row.extra["model_2"]},
            games=games,
            judge=judge,
            category=row.category,
            extra=facts,
        )
    ]


def pair_row(made: Judgement, tstamp: float) -> dict[str, Any]:
    """A pair of games as FastChat's judgement file has it: model_1 is shown first in the first game."""
    name = mt_bench.prompt_name(True, made.extra["guided"], made.extra["turn"])
    row = {"question_id": made.extra["question_id"], "model_1": made.a["model"], "model_2": made.b["model"]}
    for i, game in enumerate(made.games, 1):
        row[f"g{i}_winner"] = "tie" if game.preference == 0.5 else "model_2" if game.preference > 0.5 else "model_1"
    row["judge"] = [made.judge, name]
    for i, game in enumerate(made.games, 1):
        row |= {f"g{i}_user_prompt": "", f"g{i}_judgment": game.raw or ""}
    return {**row, "turn": made.extra["turn"], "tstamp": tstamp}


def unjudged(row: Prompt, judge: str, tstamp: float) -> dict[str, Any]:
    """A row without a verdict as FastChat writes it: a score of −1, or two errors."""
    guided, turn = _known(row) is not None, row.extra["turn"]
    names = [judge, mt_bench.prompt_name("b" in row.extra, guided, turn)]
    if "b" not in row.extra:
        return _single(row.extra, row.extra["model_1"], names, "", -1, tstamp)
    models = {k: row.extra[k] for k in ("question_id", "model_1", "model_2")}
    games = {
        k: v
        for g in ("g1", "g2")
        for k, v in ((f"{g}_winner", "error"), (f"{g}_user_prompt", ""), (f"{g}_judgment", ""))
    }
    return {**models, **games, "judge": names, "turn": turn, "tstamp": tstamp}
