"""OpenAI's Batch API (and vLLM's ``run_batch``): questions as a file of requests, results into the cache by their ids.

Results come in any order and errors in files of their own; what has no reply stands in the next export.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from xwincli import jsonl
from xwincli.console import say, warn
from xwincli.engines import wire
from xwincli.errors import XwinError
from xwincli.judges.llm.asking import read, request
from xwincli.judges.llm.cache import Cache
from xwincli.judges.llm.said import Question

MOST_REQUESTS, MOST_BYTES = 50_000, 200_000_000  # of a file, by OpenAI's rules


def body(question: Question) -> dict[str, Any]:
    """The body of a chat completion, its limit by the name that every model takes."""
    chat = request(question)
    return wire.body(question.model, chat, wire.optional(chat) - {"max_tokens"})


def export(questions: Sequence[Question], where: str, path: str) -> list[str]:
    """Write requests; returns the files: ``x.jsonl``, and ``x.2.jsonl`` … where one would hold too much.

    Args:
        questions: what is to be asked; equal ones are asked once.
        where: the server's address, part of each request's id.
        path: the first file.
    """
    lines = {q.key(where): q for q in questions}
    files: list[list[str]] = [[]]
    size = 0
    for key, question in lines.items():
        row = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body(question)}
        line = jsonl.dumps(row) + "\n"
        size += len(line.encode())
        if len(files[-1]) == MOST_REQUESTS or size > MOST_BYTES:
            files.append([])
            size = len(line.encode())
        files[-1].append(line)
    first = Path(path)
    names = [
        str(first if i == 1 else first.with_name(f"{first.stem}.{i}{first.suffix}")) for i in range(1, len(files) + 1)
    ]
    for name, content in zip(names, files, strict=True):
        with jsonl.atomic(Path(name)) as f:
            f.writelines(content)
    return names


class _Response(msgspec.Struct):
    status_code: int = 0
    body: msgspec.Raw = msgspec.Raw(b"null")


class _Result(msgspec.Struct):
    custom_id: str
    response: _Response | None = None
    error: Any = None


def read_results(paths: Sequence[str], cache: Cache) -> int:
    """Put results into the cache; returns how many replies there were. Errors are counted and said.

    Raises:
        XwinError: a line is no result; names file and line.
    """
    kept = failed = 0
    first = ""
    for path in paths:
        try:
            lines = Path(path).read_bytes().split(b"\n")
        except OSError as e:
            raise XwinError(f"{path}: cannot read the batch's results: {e.strerror}") from e
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                result = msgspec.json.decode(line, type=_Result)
                ok = result.response is not None and result.response.status_code == 200 and not result.error
                reply = msgspec.json.decode(result.response.body, type=wire.Reply) if ok and result.response else None
            except msgspec.DecodeError as e:
                hint = "a result has custom_id and response, as the Batch API writes them"
                raise XwinError(f"{path}:{number}: not a batch's result: {e}", hint) from None
            if reply is None or not reply.choices:
                failed += 1
                first = first or f"{path}:{number}: {line[:200].decode(errors='replace')}"
                continue
            cache.put(result.custom_id, read(reply.choices[0], reply.usage))
            kept += 1
    say(f"batch: {kept} replies kept")
    if failed:
        warn(f"batch: {failed} requests failed and stand in the next export (first: {first})")
    return kept
