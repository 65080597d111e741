"""Reference log-probabilities as an artifact: computed once, used by every later run on the same pairs.

One line a pair, ``{"kind", "pair", "chosen", "rejected", "tokens"}``: a digest of the pair's token ids, the two summed
log-probabilities (nats) and the two lengths. The manifest beside it names the model, the template and the precision.
A line whose digest matches was made of exactly these ids, so other data can never pass for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from xwincli import jsonl, manifest
from xwincli.console import is_main, progress, say
from xwincli.errors import XwinError
from xwincli.journal import Journal
from xwincli.records import Record, content_id
from xwincli.rows import Branch
from xwincli.train import parallel

Logprobs = list[list[float]]  # per pair: chosen, rejected
Work = Callable[[Sequence[Branch]], Logprobs]


@dataclass(frozen=True)
class Source:
    """What decides a reference log-probability besides the pair.

    Attributes:
        model: the reference's name or folder.
        template: digest of its chat template and vocabulary.
        dtype: the precision it computes in, such as ``float32``.
    """

    model: str
    template: str
    dtype: str


class Line(Record, kw_only=True):
    """A pair's line of the file."""

    kind: ClassVar[str] = "reference"
    pair: str
    chosen: float
    rejected: float
    tokens: list[int]


def pair_id(branch: Branch) -> str:
    """Digest of a pair's token ids."""
    return content_id(branch.prompt, branch.responses)


def recall(path: Path, branches: Sequence[Branch], source: Source) -> Logprobs | None:
    """The log-probabilities a file holds for these pairs; None if there is no finished file.

    Raises:
        XwinError: it was made from another model, template or precision, lacks pairs, or is no such file.
    """
    if not _whole(path):
        return None
    made = manifest.read(path)
    if made is None or made.get("stage") != "reference":
        hint = "name another with --reference; one that a killed run left without its manifest may be deleted"
        raise XwinError(f"{path}: not a file of reference log-probabilities", hint)
    remedy = "name another file with --reference, or delete this one"
    model = source.model
    wanted, there = manifest.inputs([model])[0], made["inputs"][0]
    same = wanted["digest"] == there.get("digest") if "digest" in wanted else wanted["path"] == there["path"]
    if not same:
        raise XwinError(f"{path}: made with the model {there['path']}, the reference here is {model}", remedy)
    if made["config"].get("template") != source.template:
        raise XwinError(f"{path}: made with another chat template than {model} has now", remedy)
    if (dtype := made["config"].get("dtype")) != source.dtype:
        there_is = f"made in {dtype}, the reference here is computed in {source.dtype}"
        raise XwinError(f"{path}: {there_is}", f"give {_flags(dtype, source.dtype)}, or {remedy}")
    held = _held(path)
    missing = sum(pair_id(b) not in held for b in branches)
    if missing:
        message = f"{path}: lacks {missing} of {len(branches)} pairs (other data, tokenizer or --max-length)"
        raise XwinError(message, remedy)
    say(f"reference log-probabilities of {len(branches)} pairs from {path}")
    return [held[pair_id(b)] for b in branches]


def _flags(made: Any, here: str) -> str:
    """The options that turn one precision into another: ``float32 nf4`` is a dtype and ``--quantize``."""
    (dtype, _, four), (dtype_here, _, four_here) = str(made).partition(" "), here.partition(" ")
    wanted = [f"--dtype {dtype}"] if dtype != dtype_here else []
    wanted += [f"--quantize {four or 'none'}"] if four != four_here else []
    return " ".join(wanted)


def _held(path: Path) -> dict[str, list[float]]:
    held: dict[str, list[float]] = {}
    for where, row in jsonl.read(str(path)):
        pair, values = row.get("pair"), [row.get("chosen"), row.get("rejected")]
        if not isinstance(pair, str) or not all(type(v) in (int, float) for v in values):
            raise XwinError(f"{where}: needs a pair and two log-probabilities", "the file was changed: delete it")
        held[pair] = [float(v) for v in values if v is not None]
    return held


# -- computing them


def make(
    path: Path, branches: Sequence[Branch], source: Source, config: Any, begin: Callable[[], Work], tokens: int
) -> Logprobs:
    """The log-probabilities a file holds, which is made if it is not there; all processes call this together.

    They are journalled as they are computed, so that a run that was killed goes on. What is computed together
    depends only on the pairs, ``tokens`` and the number of processes: a run that was killed finds the same numbers
    as one that was not.

    Args:
        path: the file; while it is made, ``.partial`` stands after its name.
        branches: the pairs.
        source: what the file is tied to.
        config: the stage's config, for the manifest.
        begin: gives what computes the log-probabilities of some pairs; called if there is any to compute.
        tokens: computed between two entries in the journal, about.

    Raises:
        XwinError: the file does not fit (see ``recall``), or a log-probability is not finite.
    """
    if parallel.gather(_whole(path))[0]:
        found = recall(path, branches, source)
        assert found is not None
        return found
    pairs = {pair_id(b): b for b in branches}
    with _journal(path, source, config) if is_main() else nullcontext() as journal:
        wanted = journal.todo(Record(id=p) for p in pairs) if journal else ()
        missing = parallel.gather({row.id: key for key, row in wanted})[0]
        if missing:
            _fill(pairs, missing, _checked(begin(), source), tokens, journal)
    parallel.gather(0)  # rank 0 has written it
    held = _held(path)
    return [held[pair_id(b)] for b in branches]


def _whole(path: Path) -> bool:
    """Whether a file is there and its journal gone, which goes last."""
    return path.exists() and not Path(f"{path}.partial").exists()


def _journal(path: Path, source: Source, config: Any) -> Journal:
    plan = manifest.plan("reference", source, [source.model])
    if "digest" not in plan["inputs"][0]:
        plan["config"]["model"] = source.model
    manifest.beside(path).unlink(missing_ok=True)
    return Journal(str(path), plan, config)


def _fill(pairs: dict[str, Branch], missing: dict[str, str], work: Work, tokens: int, journal: Journal | None) -> None:
    """Compute what is missing, by pair its key in the journal, in the parts that all pairs would be computed in."""
    with progress("reference", len(pairs), "pairs", len(pairs) - len(missing)) as bar:
        for part in _parts(pairs, tokens):
            if not (new := missing.keys() & part):
                continue
            for p, values in zip(part, work([pairs[p] for p in part]), strict=True):
                if journal and p in new:
                    journal.add(missing[p], [_line(p, pairs[p], values)])
            bar.advance(len(new))


def _parts(pairs: dict[str, Branch], tokens: int) -> Iterator[list[str]]:
    """The pairs in order, at least ``tokens`` at a time; in a part the longest first, so that its shares are even."""
    part: list[str] = []
    size = 0
    for p, b in pairs.items():
        part.append(p)
        size += len(b)
        if size >= tokens:
            yield sorted(part, key=lambda p: -len(pairs[p]))
            part, size = [], 0
    if part:
        yield sorted(part, key=lambda p: -len(pairs[p]))


def _checked(work: Work, source: Source) -> Work:
    def finite(pairs: Sequence[Branch]) -> Logprobs:
        values = work(pairs)
        if bad := sum(not all(map(math.isfinite, pair)) for pair in values):
            wrong = f"the log-probabilities of {bad} of {len(values)} pairs are not finite"
            raise XwinError(f"{source.model}: {wrong}", "look at the model with xwin check, or give --dtype float32")
        return values

    return finite


def _line(pair: str, branch: Branch, values: Sequence[float]) -> Line:
    return Line(pair=pair, chosen=values[0], rejected=values[1], tokens=[len(r) for r in branch.responses])
