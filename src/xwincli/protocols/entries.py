"""Files of groups under their models' names, and figures of prompts as they stand in eval.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from xwincli.console import warn
from xwincli.errors import USAGE, XwinError
from xwincli.metrics import bootstrap, paired
from xwincli.metrics.bootstrap import plain
from xwincli.protocols import compare, evaluation
from xwincli.protocols.compare import Entry, entry
from xwincli.records import Group

Prepare = Callable[[Group], None]
Column = list[float | None]  # a figure of each prompt; None where a prompt has none
MOVES = {1: "rises", 0: "not distinguishable", -1: "falls"}


def names(files: Sequence[str], given: Sequence[str]) -> list[str]:
    """A name for each file: the given ones (repeated or with commas), or file names up to their first dot.

    Raises:
        XwinError: not one name a file, or a name is empty or stands twice.
    """
    found = [n.strip() for text in given for n in text.split(",")] or [Path(f).name.split(".")[0] for f in files]
    if len(found) != len(files):
        raise XwinError(f"--names: {len(found)} names for {len(files)} files", "", USAGE)
    if "" in found:
        raise XwinError("--names: a name is empty", "", USAGE)
    if twice := next((n for n in found if found.count(n) > 1), None):
        raise XwinError(f"two files are called {twice!r}", "--names A,B,… tells them apart", USAGE)
    return found


def read(files: Sequence[str], given: Sequence[str], prepare: Prepare = lambda group: None) -> list[Entry]:
    """Each file of groups by prompt, under its model's name.

    Args:
        files: one a model.
        given: ``--names``.
        prepare: makes a group ready, or refuses it by an XwinError; the file and line are put before its message.

    Raises:
        XwinError: names the file, the line and the field.
    """
    made = []
    for name, file in zip(names(files, given), files, strict=True):
        rows = evaluation.records(evaluation.rows([file]), Group)
        made.append(entry(name, file, _prepared(rows, prepare)))
    return made


def _prepared(rows: Iterable[tuple[str, Group]], prepare: Prepare) -> Iterator[Group]:
    for where, row in rows:
        try:
            prepare(row)
        except XwinError as e:
            raise XwinError(f"{where}: {e.message}", e.hint, e.code) from None
        yield row


def join(models: Sequence[Entry], common: bool) -> tuple[list[str], dict[str, list[str]]]:
    """As ``compare.join``: the prompts that every file has, and what each lacks; warns of what is left out."""
    prompts, missing = compare.join(models, common)
    for name, ids in missing.items():
        warn(f"{name}: {len(ids)} prompts are missing there and left out: {', '.join(ids[:5])}")
    return prompts, missing


def mean(column: Column, *, rounds: int, seed: int) -> dict[str, float | None] | None:
    """The mean over the prompts that have the figure, with its interval; None where none has it."""
    known = [v for v in column if v is not None and math.isfinite(v)]
    return plain(bootstrap.mean(known, rounds=rounds, seed=seed)) if known else None


def change(first: Column, second: Column, *, rounds: int, seed: int) -> dict[str, Any] | None:
    """``second`` − ``first`` over the prompts where both have the figure, paired; None where there are none.

    ``p`` is the randomisation test's; ``verdict`` is rises or falls where ``paired.Comparison.side`` says so.
    """
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    both = [(a, b) for a, b in both if math.isfinite(a) and math.isfinite(b)]
    if not both:
        return None
    found = paired.compare([a for a, _ in both], [b for _, b in both], rounds=rounds, seed=seed)
    return {**plain(found.difference), "p": found.p, "prompts": len(both), "verdict": MOVES[found.side]}
