"""What evaluations of given files share: rows with the places they stand at, and the folder that is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from xwincli import jsonl, manifest, sources
from xwincli.errors import FAILED_ROWS, USAGE, XwinError
from xwincli.formats.kinds import as_kind
from xwincli.formats.parts import Format
from xwincli.formats.table import sniff
from xwincli.manifest import Manifest
from xwincli.records import Record, decode

R = TypeVar("R", bound=Record)
T = TypeVar("T")
Row = dict[str, Any]


class Config(Protocol):
    """What a config must have to be evaluated by: a folder to write, and whether it is made anew."""

    out: str
    force: bool


# -- rows


def rows(data: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """Every row of ``--data`` with its ``file:line``. Raises XwinError as ``jsonl.read`` and ``sources.expand`` do."""
    for name in sources.expand(data):
        yield from jsonl.read(name)


def records(
    found: Iterable[tuple[str, Row]], kind: type[R], own: Callable[[Row, str], T | None] | None = None
) -> Iterator[tuple[str, R | T]]:
    """Rows as records of one kind, each with its place; the first row's format holds for all.

    Args:
        found: rows with their places.
        kind: the record wanted.
        own: makes something else of a row, or gives None for the formats to read it.

    Raises:
        XwinError: names the file, the line and the field.
    """
    form: Format | None = None
    for where, row in found:
        if own is not None and (made := own(row, where)) is not None:
            yield where, made
            continue
        form = form or sniff(row, where, kind)
        for key in form.needs:
            if key not in row:
                raise XwinError(f"{where}: field {key}: is missing", f"the file is read as {form.name}")
        natural = kind if kind in form.to else next(iter(form.to))
        columns = form.to[natural](row, where)
        record = as_kind(decode(columns, natural, where), kind, where, named=bool(columns.get("id")))
        yield where, cast(R, record)


# -- figures


def bounds(figure: dict[str, float | None], places: int = 3) -> tuple[str, str]:
    """A figure and its interval as two cells of a table."""
    value, low, high = figure["value"], figure["low"], figure["high"]
    interval = "" if low is None or high is None else f"{low:.{places}f} – {high:.{places}f}"
    return ("–" if value is None else f"{value:.{places}f}"), interval


# -- the folder


def begin(stage: str, config: Config, inputs: Sequence[str]) -> Manifest | None:
    """The plan of an evaluation; None where its folder is up to date and lacks nothing.

    Raises:
        XwinError: ``--out`` is a file.
    """
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise XwinError(f"{out}: is a file", "--out names a folder", USAGE)
    plan = manifest.plan(stage, config, list(inputs))
    made = manifest.read(out) if out.is_dir() else None
    if made and made.get("counts", {}).get("missing"):
        return plan
    return None if manifest.skip_if_current(out, plan, config.force) else plan


def finish(
    plan: Manifest,
    config: Config,
    evaluation: dict[str, Any],
    results: Iterable[Row],
    *,
    started: float,
    counts: dict[str, int],
    metrics: dict[str, Any],
    machine: dict[str, Any] | None = None,
    pictures: dict[str, str] | None = None,
) -> None:
    """Write ``results.jsonl``, pictures, ``eval.json`` and, last, the manifest.

    Args:
        plan: from ``begin``.
        config: the stage's.
        evaluation: what ``eval.json`` holds.
        results: the rows of ``results.jsonl``.
        started: ``time.time()`` at the start.
        counts: of rows; ``total`` and ``missing`` decide about the exit code.
        metrics: figures worth a line in the report.
        machine: device and precision, where a model was run.
        pictures: SVG texts by file name.

    Raises:
        XwinError: exit code 3, after all is written: ``counts["missing"]`` of ``counts["total"]`` are not in it.
    """
    out = Path(config.out)
    manifest.beside(out).unlink(missing_ok=True)  # an interrupted run must not look finished
    with jsonl.writer(str(out / "results.jsonl")) as w:
        for row in results:
            w.write(row)
    for name, svg in (pictures or {}).items():
        with jsonl.atomic(out / name) as f:
            f.write(svg)
    with jsonl.atomic(out / "eval.json") as f:
        f.write(json.dumps(evaluation, indent=1, ensure_ascii=False) + "\n")
    manifest.write(out, plan, config, started=started, counts=counts, metrics=metrics, machine=machine)
    if missing := counts.get("missing"):
        total = counts["total"]
        share = 100 * (total - missing) / total
        message = f"{config.out}: covers n = {total - missing} of {total} ({share:.1f} %)"
        raise XwinError(message, "eval.json lists what is missing", FAILED_ROWS)
