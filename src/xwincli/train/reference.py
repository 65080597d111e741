"""Reference log-probabilities as an artifact: computed once, used by every later run on the same pairs.

One line a pair, ``{"pair", "chosen", "rejected", "tokens"}``: a digest of the pair's token ids, the two summed
log-probabilities (nats) and the two lengths. The manifest beside it names the model, the template and the precision.
A line whose digest matches was made of exactly these ids, so other data can never pass for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xwincli import jsonl, manifest
from xwincli.console import is_main, say
from xwincli.errors import XwinError
from xwincli.records import content_id
from xwincli.rows import Branch

Logprobs = list[list[float]]  # per pair: chosen, rejected


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


def pair_id(branch: Branch) -> str:
    """Digest of a pair's token ids."""
    return content_id(branch.prompt, branch.responses)


def recall(path: Path, branches: Sequence[Branch], source: Source) -> Logprobs | None:
    """The log-probabilities a file holds for these pairs; None if there is no file.

    Raises:
        XwinError: it was made from another model, template or precision, lacks pairs, or is no such file.
    """
    if not path.exists():
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
    if made.get("template") != source.template:
        raise XwinError(f"{path}: made with another chat template than {model} has now", remedy)
    if made.get("dtype") != source.dtype:
        there_is = f"made in {made.get('dtype')}, the reference here is computed in {source.dtype}"
        raise XwinError(f"{path}: {there_is}", f"give {_flags(made.get('dtype'), source.dtype)}, or {remedy}")
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


def keep(path: Path, branches: Sequence[Branch], values: Logprobs, source: Source, config: Any) -> None:
    """Write the artifact and its manifest."""
    started = time.time()
    lines: dict[str, dict[str, Any]] = {}
    for b, (chosen, rejected) in zip(branches, values, strict=True):
        tokens = [len(r) for r in b.responses]
        lines[pair_id(b)] = {"pair": pair_id(b), "chosen": chosen, "rejected": rejected, "tokens": tokens}
    manifest.beside(path).unlink(missing_ok=True)
    with jsonl.atomic(path) as f:
        f.writelines(jsonl.dumps(row) + "\n" for row in lines.values())
    plan = {**manifest.plan("reference", config, [source.model]), "template": source.template, "dtype": source.dtype}
    manifest.write(path, plan, config, started=started, counts={"pairs": len(lines)})
    say(f"kept {path}: reference log-probabilities of {len(lines)} pairs")


def make(
    file: str, branches: Sequence[Branch], source: Source, config: Any, compute: Callable[[], Logprobs]
) -> Logprobs:
    """Compute the log-probabilities, and keep them in a file if one is named.

    Raises:
        XwinError: one of them is not finite.
    """
    say(f"reference log-probabilities of {len(branches)} pairs")
    values = compute()
    if bad := sum(not all(map(math.isfinite, pair)) for pair in values):
        remedy = "look at the model with xwin check, or give --dtype float32"
        raise XwinError(f"{source.model}: the log-probabilities of {bad} of {len(values)} pairs are not finite", remedy)
    if file and is_main():
        keep(Path(file), branches, values, source, config)
    return values
