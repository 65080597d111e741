"""One prompt with several answers, or with one of a named model: UltraFeedback, AlpacaEval's outputs."""

from __future__ import annotations

from typing import Any

from xwincli.formats.parts import (
    Format,
    Row,
    listed,
    messages,
    named,
    number,
    prompt,
    rest,
    text,
    user,
    wrong,
)
from xwincli.formats.turns import FORMATS as TURNS
from xwincli.records import Conversation, Group, Prompt

TEXTS = ("text", "completion", "response", "output", "content")  # what others call a response's text
ALPACA = next(f for f in TURNS if f.name == "alpaca")


def _responses(row: Row, key: str, where: str) -> list[Row]:
    """The answers of a list column, with ``scores`` and ``models`` columns that run beside it."""
    found = [_response(v, where, f"{key}[{i}]") for i, v in enumerate(listed(row, key, where))]
    scores, models = _beside(row, "scores", found, where), _beside(row, "models", found, where)
    for i, response in enumerate(found):
        response.setdefault("index", i)
        if scores and scores[i] is not None:
            score = number(scores[i], where, f"scores[{i}]")
            response["scores"] = {"score": score, **response.get("scores", {})}
        if models:
            response.setdefault("model", models[i])
    return found


def _beside(row: Row, key: str, found: list[Row], where: str) -> list[Any]:
    """A column with one value for each answer; empty where there is none."""
    if row.get(key) is None:
        return []
    values = listed(row, key, where)
    if len(values) != len(found):
        raise wrong(where, key, f"has {len(values)} entries for {len(found)} responses")
    if key == "scores" and all(v is None for v in values):
        raise wrong(where, key, "every score is null")
    return values


def _response(value: Any, where: str, field: str) -> Row:
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise wrong(where, field, f"expected text or an object, got {named(value)}")
    name = next((n for n in TEXTS if n in value), "text")
    made: Row = {"text": text(value, name, where, path=field, may_be_empty=True)}
    made |= {k: v for k, v in value.items() if k not in (name, "score") and v is not None}
    if value.get("score") is not None:
        made["scores"] = {"score": number(value["score"], where, f"{field}.score"), **made.get("scores", {})}
    return made


def _completions(row: Row, where: str) -> Row:
    kept = rest(row, "prompt", "completions", "scores", "models", "system", "system_prompt")
    return {**kept, "prompt": prompt(row, where), "responses": _responses(row, "completions", where)}


def _given_responses(row: Row, where: str) -> Row:
    kept = rest(row, "prompt", "responses", "scores", "models", "system", "system_prompt")
    return {**kept, "prompt": prompt(row, where), "responses": _responses(row, "responses", where)}


def _annotation_request(row: Row, where: str) -> Row:
    said = [user(text(row, "raw_text", where))]
    kept = rest(row, "raw_text", "completions", "models")
    return {**kept, "prompt": said, "responses": _responses(row, "completions", where)}


def _ultrafeedback(row: Row, where: str) -> Row:
    """UltraFeedback as released: each aspect's rating becomes a score, "N/A" none."""
    responses = _responses(row, "completions", where)
    for response in responses:
        scores = dict(response.get("scores", {}))
        for aspect, note in (response.get("annotations") or {}).items():
            if isinstance(note, dict) and _is_number(note.get("Rating")):
                scores[aspect] = float(note["Rating"])
        for name in ("overall_score", "fine-grained_score"):
            if _is_number(response.get(name)):
                scores[name] = float(response.pop(name))
        response["scores"] = scores
    kept = rest(row, "instruction", "completions", "models")
    return {**kept, "prompt": [user(text(row, "instruction", where))], "responses": responses}


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return value.replace(".", "", 1).isascii() and value.replace(".", "", 1).isdigit()
    return isinstance(value, int | float) and not isinstance(value, bool)


def _scored_completion(row: Row, where: str) -> Row:
    said = row["completion"]
    if isinstance(said, list) and said:
        said = messages(said, where, "completion")[-1].get("content")
    response: Row = {"text": text({"completion": said}, "completion", where, may_be_empty=True)}
    if row["score"] is not None:
        response["scores"] = {"score": number(row["score"], where, "score")}
    kept = rest(row, "prompt", "completion", "score", "system", "system_prompt")
    return {**kept, "prompt": prompt(row, where), "responses": [response]}


def _alpaca_eval(row: Row, where: str) -> Row:
    """AlpacaEval's model_outputs: the generator is the model."""
    response = {"text": text(row, "output", where, may_be_empty=True)}
    model = text(row, "generator", where)
    said = [user(text(row, "instruction", where))]
    kept = rest(row, "instruction", "output", "generator")
    return {**kept, "prompt": said, "responses": [response], "model": model}


FORMATS = (
    Format("ultrafeedback", ("instruction", "completions"), {Group: _ultrafeedback}),
    Format("annotation-requests", ("raw_text", "completions"), {Group: _annotation_request}),
    Format(
        "stepwise supervision",
        ("prompt", "completions", "labels"),
        {},
        "its completions are labelled steps of one answer, not answers to choose from",
    ),
    Format("completions", ("prompt", "completions"), {Group: _completions}),
    Format("responses", ("prompt", "responses"), {Group: _given_responses}, ours=True),
    Format("scored completions", ("prompt", "completion", "score"), {Group: _scored_completion}, shares_ids=True),
    Format(
        "alpaca-eval",
        ("instruction", "output", "generator"),
        {Group: _alpaca_eval, Conversation: ALPACA.to[Conversation], Prompt: ALPACA.to[Prompt]},
    ),
)
