"""AlpacaEval's files: annotations, outputs and calibration read strictly, annotations and leaderboard written."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from xwincli import formats, jsonl, sources
from xwincli.errors import XwinError
from xwincli.formats.parts import number, text, wrong
from xwincli.metrics.length_control import Calibration
from xwincli.records import Group, Message

LISTED = 5  # rows named one by one in a message
COLUMNS = (
    "win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "n_total", "discrete_win_rate", "mode",
    "avg_length", "length_controlled_winrate", "lc_standard_error",
)  # fmt: skip  # of the published leaderboards, in their order


@dataclass
class Outputs:
    """One file of a model's answers: groups of one response by instruction, in file order."""

    file: str
    generator: str
    groups: dict[str, Group]


@dataclass(frozen=True)
class Annotation:
    """A row of annotations.json: its place, itself, and the chance that output_2 is better (None: no value)."""

    where: str
    row: dict[str, Any]
    chance: float | None


def holds_annotations(file: str) -> bool:
    """True where a file's first row is an annotation, not a model's output."""
    return not {"output_1", "output_2", "preference"}.isdisjoint(_first(file))


def _first(file: str) -> dict[str, Any]:
    return next((row for _, row in jsonl.read(file)), {})


class _Once:
    """Where each instruction stood first; those that stand twice are refused together."""

    def __init__(self) -> None:
        self.first: dict[str, str] = {}
        self.again: list[tuple[str, str]] = []

    def see(self, instruction: str, where: str) -> None:
        """Note one row."""
        if instruction in self.first:
            self.again.append((where, instruction))
        self.first.setdefault(instruction, where)

    def check(self) -> None:
        """Raise XwinError if an instruction was seen twice."""
        if not self.again:
            return
        (where, instruction), *others = self.again
        more = f"; so do {len(others)} more, at {', '.join(at for at, _ in others[:LISTED])}" if others else ""
        message = f"{brief(instruction)} stands twice, first at {self.first[instruction]}{more}"
        raise wrong(where, "instruction", message, "rows are joined by instruction: one row each")


def brief(said: str) -> str:
    """An instruction's opening in quotes, for messages."""
    line = " ".join(said.split())
    return repr(line if len(line) <= 40 else line[:39] + "…")


def listed(instructions: Sequence[str]) -> str:
    """The first few instructions, and how many more there are."""
    more = f" and {len(instructions) - LISTED} more" if len(instructions) > LISTED else ""
    return ", ".join(map(brief, instructions[:LISTED])) + more


def read_annotations(files: Sequence[str]) -> dict[str, Annotation]:
    """The rows of several annotation files about one model, by instruction.

    Raises:
        XwinError: a field is missing or impossible, an instruction stands twice, or there are two models or baselines.
    """
    found: dict[str, Annotation] = {}
    first: dict[str, str] = {}
    once = _Once()
    for file in files:
        for where, row in jsonl.read(file):
            said = text(row, "instruction", where)
            for name in ("output_1", "output_2"):
                text(row, name, where, may_be_empty=True)
            for name in ("generator_1", "generator_2"):
                value = text(row, name, where)
                if value != first.setdefault(name, value):
                    raise wrong(where, name, f"is {value!r} after rows of {first[name]!r}", "one model a run")
            once.see(said, where)
            found[said] = Annotation(where, row, _chance(row, where))
    once.check()
    return found


def _chance(row: Mapping[str, Any], where: str) -> float | None:
    """The preference 1..2 as a chance 0..1; AlpacaEval's older 0 is a draw, null is no value."""
    if "preference" not in row:
        raise wrong(where, "preference", "is missing", "null stands for no value")
    if row["preference"] is None:
        return None
    value = number(row["preference"], where, "preference")
    if value == 0:
        return 0.5
    if not 1 <= value <= 2:
        raise wrong(where, "preference", f"is {value:g}", "1 is the baseline, 2 the model, 1.5 or 0 a draw")
    return value - 1


def read_outputs(file: str, name: str = "") -> Outputs:
    """A model's answers: model_outputs.json, groups of one response, or any rows with an instruction and an answer.

    Args:
        file: what to read.
        name: what to call the model, else its rows' generator, else the file's name.

    Raises:
        XwinError: a row has several answers or turns, an instruction stands twice, or there are two generators.
    """
    theirs = {"instruction", "generator"} <= _first(file).keys()
    rows, once = formats.Rows(file, Group, "alpaca-eval" if theirs else "auto"), _Once()
    groups: dict[str, Group] = {}
    generator: str | None = None
    for group in cast(Iterable[Group], rows):
        said = instruction(group.prompt, rows.where)
        if len(group.responses) != 1:
            hint = "AlpacaEval compares one answer a prompt: xwin sample --n 1"
            raise wrong(rows.where, "responses", f"has {len(group.responses)} responses", hint)
        if groups and group.model != generator:
            raise wrong(rows.where, "generator", f"is {group.model!r} after rows of {generator!r}", "one model a file")
        once.see(said, rows.where)
        generator = group.model
        groups[said] = group
    once.check()
    rows.echo(known=True)
    return Outputs(file, name or generator or Path(file).name.split(".")[0], groups)


def instruction(prompt: Sequence[Message], where: str) -> str:
    """The one message of the user that AlpacaEval calls the instruction; a system message may stand before it."""
    said = [m for m in prompt if m["role"] != "system"]
    if len(said) != 1:
        raise wrong(where, "prompt", f"has {len(said)} turns", "AlpacaEval's instruction is one message of the user")
    return str(said[0]["content"])


GAMED = ("index", "preference", "std_delta_len", "instruction_difficulty")


def read_calibration(file: str) -> Calibration:
    """AlpacaEval's ``df_gamed.csv``: its difficulty of every instruction and the gamed baselines' annotations.

    Raises:
        XwinError: a column is missing, a cell is no number, or instructions are missing from the count.
    """
    lines = [line.decode("utf-8", "replace") for line in sources.lines(file)]
    table = csv.DictReader(lines)
    if lost := [name for name in GAMED if name not in (table.fieldnames or ())]:
        hint = "it is AlpacaEval's df_gamed.csv"
        raise XwinError(f"{file}:1: field {lost[0]}: is missing from a calibration file", hint)
    rows = [{name: _cell(row, name, f"{file}:{n}") for name in GAMED} for n, row in enumerate(table, 2)]
    difficulty: dict[int, float] = {}
    for row in rows:
        difficulty.setdefault(int(row["index"]), row["instruction_difficulty"])
    if not rows or set(difficulty) != set(range(len(difficulty))):
        raise XwinError(f"{file}: field index: does not count the instructions from 0 without a gap")
    column = {name: np.array([row[name] for row in rows]) for name in GAMED}
    return Calibration(
        difficulty=np.array([difficulty[i] for i in range(len(difficulty))]),
        gamed_delta=column["std_delta_len"],
        gamed_difficulty=column["instruction_difficulty"],
        gamed_preference=column["preference"],
    )


def _cell(row: Mapping[str, str | None], name: str, where: str) -> float:
    try:
        value = float(row[name] or "")
    except ValueError:
        raise wrong(where, name, f"expected a number, got {row[name]!r}") from None
    if not math.isfinite(value) or (name == "preference" and not 0 <= value <= 1):
        raise wrong(where, name, f"is {value:g}")
    return value


def write_annotations(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """``annotations.json``, whole or not at all."""
    with jsonl.atomic(path) as f:
        f.write(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")


def write_leaderboard(path: Path, generator: str, figures: Mapping[str, float | int | None]) -> None:
    """``leaderboard.csv`` with one row in the columns of the published ones; a figure not known stays empty."""
    row = {"mode": "community", **{k: v for k, v in figures.items() if v is not None}}
    with jsonl.atomic(path) as f:
        table = csv.writer(f, lineterminator="\n")
        table.writerow(["", *COLUMNS])
        table.writerow([generator, *(row.get(name, "") for name in COLUMNS)])
