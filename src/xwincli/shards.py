"""A run in shards: which rows are whose, where the parts lie, and how they become the file of one process.

No shard knows of another: each has a journal and a file of its own, ``x.shard-2-of-8.jsonl``, and what a row becomes
does not depend on who works on it. Whoever finishes last joins the parts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xwincli import jsonl, manifest, sources
from xwincli.console import say
from xwincli.errors import USAGE, XwinError


@dataclass(frozen=True)
class Shard:
    """One of ``of`` shares of the rows, counted from 1; ``block`` consecutive rows stay together."""

    index: int = 1
    of: int = 1
    block: int = 1

    @classmethod
    def parse(cls, text: str, block: int = 1) -> Shard:
        """``I/N``; "" is the whole."""
        if not text:
            return cls(block=block)
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise XwinError(f"--shard is {text!r}", "1/8 is the first of eight shards, 8/8 the last", USAGE)
        return cls(int(found[1]), int(found[2]), block)

    def owns(self, row: int) -> bool:
        """Whether a row, numbered from 0 over all inputs, belongs to this shard."""
        return row // self.block % self.of == self.index - 1

    def count(self, rows: int) -> int:
        """How many of so many rows belong to this shard."""
        whole, rest = divmod(rows, self.block * self.of)
        return whole * self.block + min(max(rest - (self.index - 1) * self.block, 0), self.block)

    def part(self, out: str) -> str:
        """Where this shard's rows of ``out`` lie."""
        if self.of == 1:
            return out
        if out == "-":
            raise XwinError("shards cannot share standard output", "name a file with --out", USAGE)
        path = Path(out)
        return str(path.with_name(f"{path.stem}.shard-{self.index}-of-{self.of}{path.suffix}"))

    def parts(self, out: str) -> list[str]:
        """Where all shards' rows lie, in order."""
        return [Shard(i, self.of, self.block).part(out) for i in range(1, self.of + 1)]


WHOLE = Shard()


def done(out: str, plan: manifest.Manifest, shard: Shard, force: bool) -> bool:
    """True if there is nothing left to do for this shard: the whole is up to date, or its part is.

    Where the parts are all there, the whole is made of them.
    """
    if manifest.skip_if_current(out, plan, force):
        return True
    if shard.of == 1 or not manifest.skip_if_current(shard.part(out), plan, force):
        return False
    settle(out, plan, shard)
    return True


def settle(out: str, plan: manifest.Manifest, shard: Shard) -> None:
    """After a part is finished: join all parts and remove them, if this was the last."""
    if shard.of == 1:
        return
    parts = shard.parts(out)
    missing = [p for p in parts if not manifest.is_current(p, plan)]
    if missing:
        say(f"{shard.part(out)}: {len(missing)} of {shard.of} shards are still missing for {out}")
        return
    try:
        join(out, parts)
    except (FileNotFoundError, XwinError):  # another shard finished in the same moment and has joined and removed them
        if not manifest.is_current(out, plan):
            raise
        return
    for part in parts:
        for path in (Path(part), manifest.beside(part)):
            with suppress(FileNotFoundError):
                path.unlink()


def join(out: str, parts: Sequence[str]) -> int:
    """Write the file one process would have written, with its manifest; returns its rows.

    Args:
        out: the whole.
        parts: all shards' files, in any order.

    Raises:
        XwinError: a part is missing, is no part, or was made by another run.
    """
    made = _facts(parts)
    first = made[0][1]
    of, block = first["shard"]["of"], first["shard"]["block"]
    total = sum(facts["counts"]["in"] for _, facts in made)
    lines = [_lines(path, facts) for path, facts in made]
    for i, (path, facts) in enumerate(made, 1):
        if facts["counts"]["in"] != Shard(i, of, block).count(total):
            raise XwinError(f"{path}: has {facts['counts']['in']} rows of {total}, which do not fit together")
    rows = 0
    with jsonl.atomic(Path(out)) as f:
        for number in range(total):
            line = next(lines[number // block % of])
            if line is not None:
                f.write(line)
                rows += 1
    with jsonl.atomic(manifest.beside(out)) as f:
        f.write(json.dumps(_whole([facts for _, facts in made], rows), indent=2, ensure_ascii=False) + "\n")
    say(f"{out}: {rows} rows, joined from {of} shards")
    return rows


def _facts(parts: Sequence[str]) -> list[tuple[str, manifest.Manifest]]:
    """Every part with its manifest, in the shards' order."""
    found: dict[int, tuple[str, manifest.Manifest]] = {}
    for path in parts:
        facts = manifest.read(path) if Path(path).exists() else None
        if facts is None or "shard" not in facts:
            if not Path(path).exists():
                raise FileNotFoundError(path)
            raise XwinError(f"{path}: is no shard of a run", "xwin sample … --shard I/N makes shards")
        if facts["counts"]["out"] != facts["counts"]["in"] - facts["counts"]["failed"]:
            raise XwinError(f"{path}: its rows are not one a row of the input", "such files cannot be joined in order")
        index = facts["shard"]["index"]
        if index in found:
            raise XwinError(f"{found[index][0]} and {path} are the same shard, {index}/{facts['shard']['of']}")
        found[index] = (path, facts)
    (one, first), *others = found.values()
    for path, facts in others:
        same = all(facts["shard"][k] == first["shard"][k] for k in ("of", "block"))
        if not same or facts["key"] != first["key"]:
            raise XwinError(f"{one} and {path} were made with other options or inputs", "join shards of one run")
    of = first["shard"]["of"]
    if missing := [f"{i}/{of}" for i in range(1, of + 1) if i not in found]:
        raise XwinError(f"shards are missing: {', '.join(missing)}", "run the stage with --shard for each of them")
    return [found[i] for i in range(1, of + 1)]


def _lines(path: str, facts: manifest.Manifest) -> Iterator[str | None]:
    """A part's lines in order, None where a row failed."""
    failed = set(facts["shard"]["failed"])
    text = iter(sources.lines(path))
    for number in range(facts["counts"]["in"]):
        if number in failed:
            yield None
        else:
            line = next(text, b"")
            if not line.endswith(b"\n"):
                raise XwinError(f"{path}: has fewer rows than its manifest says", "make this shard again with --force")
            yield line.decode()


def _whole(made: list[manifest.Manifest], rows: int) -> manifest.Manifest:
    """The manifest of the joined file: whole numbers add up, shares and means are weighed by rows."""
    counts: dict[str, Any] = {k: sum(m["counts"].get(k, 0) for m in made) for k in made[0]["counts"]}
    metrics = {}
    weights = [m["counts"]["out"] for m in made]
    for name, value in next((m["metrics"] for m in made if m["counts"]["out"]), {}).items():
        each = [m["metrics"].get(name, 0) for m in made]
        if isinstance(value, int):
            metrics[name] = sum(each)
        elif isinstance(value, float) and name != "tokens_per_second":
            metrics[name] = sum(w * x for w, x in zip(weights, each, strict=True)) / max(sum(weights), 1)
    body = {k: v for k, v in made[0].items() if k != "shard"}
    body |= {"counts": {**counts, "out": rows}, "metrics": metrics}
    return {**body, "started": min(m["started"] for m in made), "seconds": max(m["seconds"] for m in made)}
