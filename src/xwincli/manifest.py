"""What made an artifact: stage, configuration, digests of its inputs, seed, counts. One JSON beside it."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import msgspec

from xwincli import __version__, jsonl, settings
from xwincli.errors import XwinError

WHOLE = 64 << 20  # files up to this size are digested whole
SAMPLES, SAMPLE = 64, 1 << 18  # larger ones by this many evenly spaced blocks of this many bytes

Manifest = dict[str, Any]


def beside(artifact: str | Path) -> Path:
    """Where an artifact's manifest lies: ``x.jsonl.xwin.json``, or ``xwin.json`` inside a folder."""
    path = Path(artifact)
    return path / "xwin.json" if path.is_dir() or not path.suffix else path.with_name(path.name + ".xwin.json")


def read(artifact: str | Path) -> Manifest | None:
    """The manifest of an artifact, or None where there is none."""
    path = beside(artifact)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise XwinError(f"{path}: not a readable manifest: {e}", "delete it and run the stage again") from e
    return data if isinstance(data, dict) else None


def digest(path: str | Path) -> str:
    """Digest of a file's or folder's content (sha256, 16 hex digits).

    Files above 64 MiB (weights) are digested by their size and 64 evenly spaced blocks: any training step
    changes every block, and a 140 GB model must not cost minutes at each start. In a folder, the manifest
    and hidden files do not count.
    """
    p = Path(path)
    h = hashlib.sha256()
    if p.is_dir():
        for child in sorted(c for c in p.rglob("*") if c.is_file()):
            name = child.relative_to(p).as_posix()
            if not any(part.startswith(".") for part in name.split("/")) and name != "xwin.json":
                h.update(f"{name}:{digest(child)}\n".encode())
        return h.hexdigest()[:16]
    size = p.stat().st_size
    with p.open("rb") as f:
        if size <= WHOLE:
            while block := f.read(1 << 20):
                h.update(block)
        else:
            h.update(str(size).encode())
            for i in range(SAMPLES):
                f.seek((size - SAMPLE) * i // (SAMPLES - 1))
                h.update(f.read(SAMPLE))
    return h.hexdigest()[:16]


def inputs(paths: list[str]) -> list[dict[str, Any]]:
    """Name and digest of every input; ``-``, pipes and hub names stand without a digest."""
    return [{"path": p, "digest": digest(p)} if Path(p).is_file() or Path(p).is_dir() else {"path": p} for p in paths]


def plan(stage: str, config: Any, sources: list[str]) -> Manifest:
    """The part of a manifest that is known before the work: what decides the result.

    Args:
        stage: the command's name.
        config: its config dataclass.
        sources: files, folders, hub names or ``-`` that are read.
    """
    decisive = settings.values(config, execution=False)
    paths = {"data", "out", "model", "rm", "critic", "reference", "files", "against"}
    return {
        "xwin": __version__,
        "stage": stage,
        "config": {k: v for k, v in decisive.items() if k not in paths},
        "inputs": inputs(sources),
    }


def note_template(plan: Manifest, facts: dict[str, str], model: str = "") -> None:
    """Add to a plan what made text into token ids; warns where ``model`` was made with another template.

    Args:
        plan: from ``plan()``. These facts are no part of its key: the digests of its inputs hold them.
        facts: digests of the ``tokenizer`` and the ``template``, from ``chat.Template.facts``.
        model: the model folder that is read as it was taught; "" where it is about to learn another template.
    """
    plan |= facts
    made = read(model) if model and Path(model).is_dir() else None
    if made and made.get("tokenizer") == facts["tokenizer"] and made.get("template") != facts["template"]:
        from xwincli.console import warn

        arguments = " ".join(made.get("config", {}).get("template_arg", []))
        hint = f"it was made with --template-arg {arguments}" if arguments else "it was made without --template-arg"
        warn(f"{model}: was made with another chat template or other arguments\n  hint: {hint}")


def key(plan: Manifest) -> str:
    """A digest of what decides the result; equal keys make equal artifacts. A hub name stands for its content."""
    sources = [i.get("digest", i["path"]) for i in plan["inputs"]]
    facts = {"stage": plan["stage"], "config": plan["config"], "inputs": sources}
    return hashlib.sha256(msgspec.json.encode(facts, order="sorted")).hexdigest()[:16]


def is_current(out: str | Path, plan: Manifest) -> bool:
    """True if ``out`` exists and was made by exactly this plan. A stream input is never current."""
    if str(out) == "-" or not Path(out).exists() or any("digest" not in i for i in plan["inputs"]):
        return False
    made = read(out)
    return made is not None and made.get("key") == key(plan)


def skip_if_current(out: str | Path, plan: Manifest, force: bool) -> bool:
    """Say so and freshen the file times if ``out`` is already what ``plan`` would make."""
    if force or not is_current(out, plan):
        return False
    from xwincli.console import say

    for path in (Path(out), beside(out)):
        os.utime(path)
    say(f"{out} is up to date (same options and inputs); --force makes it anew")
    return True


def write(
    out: str | Path,
    plan: Manifest,
    config: Any,
    *,
    started: float,
    counts: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    machine: dict[str, Any] | None = None,
) -> None:
    """Write the manifest of a finished artifact, last of all its files.

    Args:
        out: the artifact; ``-`` writes nothing.
        plan: from ``plan()``, taken before the work.
        config: the stage's config.
        started: ``time.time()`` at the start.
        counts: rows in, rows out, dropped, …
        metrics: final figures worth a line in the report.
        machine: device, dtype.
    """
    if str(out) == "-":
        return
    body = {
        **plan,
        "key": key(plan),
        "execution": settings.values(config, execution=True),
        "counts": counts or {},
        "metrics": metrics or {},
        "machine": machine or {},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 2),
    }
    with jsonl.atomic(beside(out)) as f:
        f.write(json.dumps(body, indent=2, ensure_ascii=False, default=str) + "\n")
