"""Files of battles read strictly: Chatbot Arena's, Arena-Hard's, judgements of ours; and how their answers look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from xwincli import jsonl, sources
from xwincli.errors import XwinError
from xwincli.formats.parts import listed, named, number, text, wrong
from xwincli.metrics import style
from xwincli.metrics.bradley_terry import Battle
from xwincli.protocols.arena import LABELS, Field, Fought, label_v2
from xwincli.records import Judgement, decode

WINNERS = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5, "tie (bothbad)": 0.5}
LISTED = 5  # missing answers named one by one


def read(files: Sequence[str], baseline: str = "", category: str = "", strong: int = 3) -> Field:
    """Battles of every file.

    Args:
        files: Chatbot Arena battles (``model_a, model_b, winner``), Arena-Hard judgements (``games``), or judgements
            of ours.
        baseline: whom Arena-Hard's rows were judged against, where they do not say.
        category: only rows of this category; "" takes all.
        strong: how many battles an Arena-Hard verdict of ``>>`` counts for.

    Raises:
        XwinError: a row is malformed, names an unknown winner, or a model against itself.
    """
    made = Field()
    for file in sources.expand(files):
        for where, row in jsonl.read(file):
            if category and row.get("category") != category:
                continue
            made.rows += 1
            if row.get("kind") == Judgement.kind:
                made.battles.append(_ours(row, where))
            elif "games" in row:
                _games(made, row, where, baseline, strong)
            else:
                made.battles.append(_battle(row, where))
    if not made.rows:
        raise XwinError(f"{', '.join(files)}: no row has the category {category!r}", "leave --category out to see all")
    if not made.battles:
        raise XwinError(f"{', '.join(files)}: no row has a verdict")
    return made


def _id(row: Mapping[str, Any], where: str) -> Any:
    """The question's id, None where there is none."""
    found = row.get("question_id", row.get("uid"))
    if found is not None and not isinstance(found, int | str):
        raise wrong(where, "question_id" if "question_id" in row else "uid", f"expected text, got {named(found)}")
    return found


def _sides(a: str, b: str, where: str, name: str) -> None:
    if a == b:
        raise wrong(where, name, f"{a!r} meets itself")


def _battle(row: dict[str, Any], where: str) -> Fought:
    a, b, winner = (text(row, key, where) for key in ("model_a", "model_b", "winner"))
    if winner not in WINNERS:
        raise wrong(where, "winner", f"{winner!r} is no winner", f"winners are {', '.join(WINNERS)}")
    _sides(a, b, where, "model_b")
    return Fought(where, Battle(a, b, WINNERS[winner]), _id(row, where))


def _ours(row: dict[str, Any], where: str) -> Fought:
    made = decode(row, Judgement, where)
    a, b = (text(side, "model", where, path=name) for name, side in (("a", made.a), ("b", made.b)))
    _sides(a, b, where, "b.model")
    said = tuple(looks(text(side, "text", where, may_be_empty=True)) for side in (made.a, made.b))
    return Fought(where, Battle(a, b, 1 - made.verdict()), made.prompt_id, (said[0], said[1]))


def _games(made: Field, row: dict[str, Any], where: str, baseline: str, strong: int) -> None:
    """Arena-Hard: the baseline is A in the first game, the model in the second; both must have a verdict."""
    model = text(row, "model", where)
    base = text(row, "baseline", where) if "baseline" in row else baseline
    if not base:
        raise wrong(where, "baseline", "is missing", "--baseline names the model all were judged against")
    _sides(model, base, where, "model")
    made.baselines.add(base)
    verdicts = [_verdict(game, where, i) for i, game in enumerate(listed(row, "games", where))]
    first, second = verdicts if len(verdicts) == 2 else (None, None)
    if first is None or second is None:
        made.missing.append({"model": model, "question_id": _id(row, where), "why": "a game without a verdict"})
        return
    for share, heavy in (second, (1 - first[0], first[1])):  # in upstream's order
        made.battles += [Fought(where, Battle(model, base, share), _id(row, where))] * (strong if heavy else 1)


def _verdict(game: Any, where: str, number: int) -> tuple[float, bool] | None:
    """A's share of the win and whether it is strong; None where the judge gave no known label."""
    if game is None:
        return None
    if not isinstance(game, dict):
        raise wrong(where, f"games[{number}]", f"expected an object, got {named(game)}")
    label = game.get("score")
    if "score" not in game:
        said = game.get("judgment")
        said = said.get("answer") if isinstance(said, dict) else said
        label = label_v2(said) if isinstance(said, str) else said
    if label is not None and not isinstance(label, str):
        raise wrong(where, f"games[{number}].score", f"expected text, got {named(label)}")
    return LABELS.get(label or "")


# -- how answers look


def looks(answer: str) -> tuple[float, ...]:
    """Length in characters, and how many headers, list items and bold spans: as ``style.NAMES``."""
    return _looks(len(answer), style.markdown_counts(answer))


def _looks(length: float, counts: Mapping[str, Mapping[str, int]]) -> tuple[float, ...]:
    return (float(length), *(float(sum(counts[f"{name}_count"].values())) for name in style.NAMES[1:]))


def answers(files: Sequence[str]) -> dict[tuple[str, Any], tuple[float, ...]]:
    """How every answer of Arena-Hard's or FastChat's files looks, by (model, question).

    Arena-Hard's ``metadata`` (``token_len`` and counts) is taken where it stands; else the text is counted, in
    characters. One file must not mix the two.

    Raises:
        XwinError: a row is malformed, or a model answers a question twice.
    """
    found: dict[tuple[str, Any], tuple[float, ...]] = {}
    for file in sources.expand(files):
        for where, row in jsonl.read(file):
            model = text(row, "model" if "model" in row else "model_id", where)
            key = model, _id(row, where)
            if key[1] is None:
                raise wrong(where, "uid", "is missing")
            if key in found:
                raise wrong(where, "uid", f"{model} answers {key[1]!r} twice")
            found[key] = _look(row, where)
    return found


def _look(row: dict[str, Any], where: str) -> tuple[float, ...]:
    metadata = row.get("metadata")
    if isinstance(metadata, dict) and "token_len" in metadata:
        length = number(metadata["token_len"], where, "metadata.token_len")
        for name in style.NAMES[1:]:
            if not isinstance(metadata.get(f"{name}_count"), dict):
                raise wrong(where, f"metadata.{name}_count", "is missing")
        return _looks(length, metadata)
    if "choices" in row:
        choice = listed(row, "choices", where)[0]
        turns = listed(choice, "turns", where) if isinstance(choice, dict) else []
        said: Any = turns[0] if turns else None
    else:
        last = listed(row, "messages", where)[-1]
        said = last.get("content") if isinstance(last, dict) else None
    for key in ("content", "answer"):
        if isinstance(said, dict) and key in said:
            said = said[key]
    if not isinstance(said, str):
        raise wrong(where, "messages", "holds no answer")
    return looks(said)


def dress(found: Field, known: Mapping[tuple[str, Any], tuple[float, ...]]) -> None:
    """Give every battle how its answers look; XwinError lists answers that are missing."""
    missing: dict[tuple[str, Any], None] = {}
    dressed = []
    for f in found.battles:
        keys = (f.battle.a, f.question), (f.battle.b, f.question)
        missing |= dict.fromkeys(k for k in keys if k not in known)
        dressed.append(f if any(k in missing for k in keys) else replace(f, looks=(known[keys[0]], known[keys[1]])))
    if missing:
        some = ", ".join(f"{model} to {question!r}" for model, question in list(missing)[:LISTED])
        more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
        raise XwinError(f"--answers: {len(missing)} answers are missing: {some}{more}", "without it style is left out")
    found.battles = dressed
