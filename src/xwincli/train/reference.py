"""Reference log-probabilities as an artifact: computed once, used by every later run on the same pairs.

One line a pair, ``{"pair", "chosen", "rejected", "tokens"}``: a digest of the pair's token ids, the two summed
log-probabilities (nats) and the two lengths. The manifest beside it names the model and the template. A line whose
digest matches was made of exactly these ids, so other data, or another template, can never pass for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from xwincli import jsonl, manifest
from xwincli.console import say
from xwincli.errors import XwinError
from xwincli.records import content_id
from xwincli.rows import Branch

Logprobs = list[list[float]]  # per pair: chosen, rejected


def pair_id(branch: Branch) -> str:
    """Digest of a pair's token ids."""
    return content_id(branch.prompt, branch.responses)


def recall(path: Path, branches: Sequence[Branch], model: str, template: str) -> Logprobs | None:
    """The log-probabilities a file holds for these pairs; None if there is no file.

    Args:
        path: the artifact.
        branches: the pairs as ids.
        model: name or folder of the reference that is wanted.
        template: digest of its chat template.

    Raises:
        XwinError: it was made from another model or template, or lacks pairs.
    """
    if not path.exists():
        return None
    made = manifest.read(path)
    if made is None or made.get("stage") != "reference":
        raise XwinError(f"{path}: not a file of reference log-probabilities", "name another with --reference")
    remedy = "name another file with --reference, or delete this one"
    wanted, there = manifest.inputs([model])[0], made["inputs"][0]
    same = wanted["digest"] == there.get("digest") if "digest" in wanted else wanted["path"] == there["path"]
    if not same:
        raise XwinError(f"{path}: made with the model {there['path']}, the reference here is {model}", remedy)
    if made.get("template") != template:
        raise XwinError(f"{path}: made with another chat template than {model} has now", remedy)
    held = {row["pair"]: [row["chosen"], row["rejected"]] for _, row in jsonl.read(str(path))}
    missing = sum(pair_id(b) not in held for b in branches)
    if missing:
        message = f"{path}: lacks {missing} of {len(branches)} pairs (other data, tokenizer or --max-length)"
        raise XwinError(message, remedy)
    return [held[pair_id(b)] for b in branches]


def keep(path: Path, branches: Sequence[Branch], values: Logprobs, model: str, template: str, config: Any) -> None:
    """Write the artifact and its manifest."""
    started = time.time()
    lines: dict[str, dict[str, Any]] = {}
    for b, (chosen, rejected) in zip(branches, values, strict=True):
        tokens = [len(r) for r in b.responses]
        lines[pair_id(b)] = {"pair": pair_id(b), "chosen": chosen, "rejected": rejected, "tokens": tokens}
    manifest.beside(path).unlink(missing_ok=True)
    with jsonl.atomic(path) as f:
        f.writelines(jsonl.dumps(row) + "\n" for row in lines.values())
    plan = {**manifest.plan("reference", config, [model]), "template": template}
    manifest.write(path, plan, config, started=started, counts={"pairs": len(lines)})
    say(f"kept {path}: reference log-probabilities of {len(lines)} pairs")


def logprobs(
    file: str, branches: Sequence[Branch], model: str, template: str, config: Any, compute: Callable[[], Logprobs]
) -> Logprobs:
    """From the file where there is one; else computed, and kept in it if it is named."""
    if file and (found := recall(Path(file), branches, model, template)) is not None:
        say(f"reference log-probabilities of {len(branches)} pairs from {file}")
        return found
    say(f"reference log-probabilities of {len(branches)} pairs")
    values = compute()
    if file:
        keep(Path(file), branches, values, model, template, config)
    return values
