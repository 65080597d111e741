"""Any known format to canonical records (or to another tool's layout), or a model file to a model folder.

    xwin convert --data alpaca.json --out sft.jsonl
    xwin convert --data pairs.jsonl --to trl-implicit --out rewardbench.jsonl
    xwin convert --data prompts.jsonl --split pair=35,set=35,ppo=15,eval=15 --out prompts
    xwin convert --model model.gguf --out model

The format of a file is read off its first row and every row is held to it. What is written appears whole
or not at all.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from xwincli import formats, jsonl, manifest, settings, sources
from xwincli.console import say, stdout
from xwincli.errors import USAGE, XwinError
from xwincli.formats.export import ARRAYS, TARGETS, export
from xwincli.records import KINDS, Asked, Record, content_id, prompt_id
from xwincli.settings import flag


@dataclass(kw_only=True)
class Config:
    """Options of ``xwin convert``."""

    data: list[str] = flag([], "rows: files, globs, hf:NAME[:SPLIT], or - for standard input; repeatable")
    model: str = flag("", "a .gguf file, adapter folder or hub name, to be saved as an ordinary folder")
    out: str = flag("-", "file of rows or model folder to write, or - for standard output")
    to: str = flag("canonical", "layout to write", choices=tuple(TARGETS))
    kind: str = flag("auto", "kind of the records", choices=("auto", *KINDS))
    format: str = flag("auto", "layout of the input", choices=("auto", *formats.NAMES))
    split: str = flag("", "deal rows into files of a folder by prompt, as NAME=SHARE,NAME=SHARE,…")
    limit: int = flag(0, "use only the first rows; 0 uses all", low=0)
    dtype: str = flag("float32", "precision of the model folder", choices=("float32", "bfloat16"))
    force: bool = flag(False, "convert even if the result is there", execution=True)


def run(config: Config) -> None:
    """Convert rows, or a model."""
    if config.model and config.data:
        raise XwinError("--data and --model are two different conversions", "run them apart", USAGE)
    if config.model:
        _model(config)
    else:
        _rows(config)


def _rows(config: Config) -> None:
    started = time.time()
    names = sources.expand(config.data or ["-"])
    plan = manifest.plan("convert", config, ["-" if sources.is_stream(n) else n for n in names])
    if manifest.skip_if_current(config.out, plan, config.force):
        return
    records = _records(config, names)
    counts = {"in": 0, "out": 0}
    if config.split:
        counts |= _write_split(config, records, counts)
    else:
        rows = _exported(records, config.to, counts)
        (_write_array if config.to in ARRAYS else _write_lines)(config.out, rows)
    manifest.write(config.out, plan, config, started=started, counts=counts)
    say(f"{config.out}: {counts['out']} rows" if config.out != "-" else f"{counts['out']} rows written")


def _records(config: Config, names: list[str]) -> Iterator[Record]:
    if config.kind != "auto":
        return formats.read(names, KINDS[config.kind], limit=config.limit, as_format=config.format)
    return _one_kind(formats.read_any(names, limit=config.limit, as_format=config.format))


def _one_kind(records: Iterable[Record]) -> Iterator[Record]:
    """Refuse files of different kinds: what is written is read again as rows of one kind."""
    kind: type[Record] | None = None
    for record in records:
        kind = kind or type(record)
        if type(record) is not kind:
            text = f"the inputs hold {formats.plural(kind)} and {formats.plural(type(record))}"
            raise XwinError(text, f"--kind {kind.kind} makes one kind of them, or convert them apart")
        yield record


def _exported(records: Iterable[Record], to: str, counts: dict[str, int]) -> Iterator[dict[str, object]]:
    for record in records:
        counts["in"] += 1
        for row in export(record, to, f"row {counts['in']} (id {record.id})"):
            counts["out"] += 1
            yield row


def _write_lines(out: str, rows: Iterable[dict[str, object]]) -> None:
    with jsonl.writer(out) as w:
        for row in rows:
            w.write(row)


def _write_split(config: Config, records: Iterable[Record], counts: dict[str, int]) -> dict[str, int]:
    """One file a part, all of one prompt's rows in one part, chosen by a hash of the prompt's text."""
    if config.out == "-" or config.to in ARRAYS:
        raise XwinError("--split writes JSON lines into a folder", "name it with --out", USAGE)
    shares = _shares(config.split)
    total = sum(shares.values())
    out = Path(config.out)
    dealt = dict.fromkeys(shares, 0)
    with ExitStack() as stack:
        writers = {name: stack.enter_context(jsonl.writer(str(out / f"{name}.jsonl"))) for name in shares}
        for record in records:
            key = prompt_id(record.prompt) if isinstance(record, Asked) else record.id
            place = int(content_id("split", key), 16) / 16**16 * total
            name = next(n for n, end in zip(shares, accumulate(shares.values()), strict=True) if place < end)
            for row in _exported([record], config.to, counts):
                writers[name].write(row)
                dealt[name] += 1
    return dealt


def _shares(text: str) -> dict[str, float]:
    """``pair=35,set=65`` as numbers; they need not sum to anything."""
    try:
        shares = {name: float(share) for name, _, share in (part.partition("=") for part in text.split(","))}
    except ValueError:
        shares = {}
    if not shares or not all(re.fullmatch(r"[\w-]+", n) and 0 < s < float("inf") for n, s in shares.items()):
        raise XwinError(f"--split is {text!r}", "write names and positive shares: pair=35,set=65", USAGE)
    return shares


def _write_array(out: str, rows: Iterable[dict[str, object]]) -> None:
    """One JSON array, a row on each line."""
    with nullcontext(stdout()) if out == "-" else jsonl.atomic(Path(out)) as f:
        f.write("[")
        for i, row in enumerate(rows):
            f.write((",\n" if i else "\n") + jsonl.dumps(row))
        f.write("\n]\n")


def _model(config: Config) -> None:
    if config.out == "-":
        raise XwinError("--out is required", "name the model folder to write", USAGE)
    started = time.time()
    plan = manifest.plan("convert", config, [config.model])
    if manifest.skip_if_current(config.out, plan, config.force):
        return
    from xwincli.models import load_policy, place, save

    loaded = load_policy(config.model, place(settings.Device(device="cpu", dtype=config.dtype)))
    save(loaded, config.out)
    parameters = sum(p.numel() for p in loaded.model.parameters())
    manifest.write(config.out, plan, config, started=started, counts={"parameters": parameters})
    say(f"{config.out}: {parameters / 1e6:.4g}M parameters in {config.dtype}")
