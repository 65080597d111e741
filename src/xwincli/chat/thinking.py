"""What a response thinks before its answer, told apart from the answer."""

from __future__ import annotations

from collections.abc import Iterable

from xwincli.records import Response

THINK = ("<think>", "</think>")  # what a response writes before its answer stands between these


def split_thinking(text: str) -> tuple[str, str]:
    """What a response thought before its answer, and the answer: ``("", text)`` where it did not think.

    Thinking ends at the first ``</think>``; the template may have written ``<think>`` itself. A response that
    nothing follows (cut while it thought) has no answer to split off and stays whole.
    """
    thought, end, answer = text.partition(THINK[1])
    if not end or not answer.strip():
        return "", text
    return thought.strip().removeprefix(THINK[0]).strip(), answer.lstrip()


def set_thinking_aside(responses: Iterable[Response]) -> None:
    """Keep the thinking of each response as its ``thinking``, its answer alone as its text; once is enough."""
    for response in responses:
        if "thinking" not in response.extra:
            thinking, response.text = split_thinking(response.text)
            if thinking:
                response.extra["thinking"] = thinking
