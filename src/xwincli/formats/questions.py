"""Files of benchmarks and raw text: MT-Bench's questions, and the files that hold no conversation at all."""

from __future__ import annotations

from xwincli.formats.parts import Format, Row, listed, rest, text, user
from xwincli.records import Prompt


def _mt_bench(row: Row, where: str) -> Row:
    """MT-Bench's question: its first turn is the prompt; later turns and their references are kept."""
    turns = [t if isinstance(t, dict) else {"content": t} for t in listed(row, "turns", where)]
    said = [text(t, "content", where, path=f"turns[{i}]") for i, t in enumerate(turns)]
    made: Row = {**rest(row, "turns", "reference"), "prompt": [user(said[0])], "turns": said[1:]}
    references = row.get("reference")
    if isinstance(references, list) and references:
        made["reference"] = text({"reference[0]": references[0]}, "reference[0]", where, may_be_empty=True)
        made["references"] = references[1:]
    elif isinstance(references, str):
        made["reference"] = references
    return made


FORMATS = (
    Format("mt-bench questions", ("question_id", "turns"), {Prompt: _mt_bench}),
    Format(
        "mt-bench answers",
        ("question_id", "choices"),
        {},
        "the questions they answer are not in the file",
    ),
    Format(
        "answers",
        ("question_id", "answer_id", "text"),
        {},
        "the questions they answer are not in the file",
    ),
    Format(
        "alpaca-eval annotations",
        ("instruction", "output_1", "output_2"),
        {},
        "a judge's verdicts are no rows to learn or sample from",
    ),
    Format(
        "judgments",
        ("question_id", "judgment"),
        {},
        "a judge's verdicts are no rows to learn or sample from",
    ),
)
PLAIN = (Format("plain text", ("text",), {}, "there is no question and no answer in it"),)
