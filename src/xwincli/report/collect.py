"""What a run folder holds: manifests, evaluations with their rated groups, and training curves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

from xwincli import formats, jsonl, manifest
from xwincli.errors import XwinError
from xwincli.records import Group


@dataclass
class Artifact:
    """A file or folder with a manifest; ``path`` is relative to the run folder."""

    path: str
    manifest: dict[str, Any]
    sources: list[str] = field(default_factory=list)  # other artifacts, or what came from outside

    @property
    def seconds(self) -> float:
        """How long its stage worked."""
        return float(self.manifest.get("seconds") or 0)


@dataclass
class Evaluation:
    """One ``eval.json`` and the groups it rated, by model and prompt id."""

    path: str
    facts: dict[str, Any]
    groups: dict[str, dict[str, Group]]

    @property
    def models(self) -> list[str]:
        """The models' names, the baseline first."""
        return [str(m["name"]) for m in self.facts["models"]]

    @cached_property
    def prompts(self) -> list[str]:
        """The ids compared, in file order."""
        return list(self.groups[self.models[0]])

    def scores(self, model: str, name: str) -> list[float]:
        """Every response's score of one name; empty where any is missing."""
        rows = [r.scores.get(name) for g in self.groups[model].values() for r in g.responses]
        return [s for s in rows if s is not None] if None not in rows else []


@dataclass
class Run:
    """Everything a report is made of."""

    folder: Path
    artifacts: list[Artifact]
    evaluations: list[Evaluation]
    curves: dict[str, list[dict[str, Any]]]
    page: Path | None = None

    @property
    def audits(self) -> list[tuple[Artifact, dict[str, Any]]]:
        """The artifacts that hold a reward model's audit, and the audit."""
        found = ((a, (a.manifest.get("metrics") or {}).get("audit")) for a in self.artifacts)
        return [(a, audit) for a, audit in found if isinstance(audit, dict)]

    @property
    def main(self) -> Evaluation | None:
        """The evaluation of the most models; of equals the last by name."""
        return max(self.evaluations, key=lambda e: (len(e.models), e.path), default=None)


def _visible(folder: Path, pattern: str) -> Iterator[Path]:
    """Files below a folder, those in hidden or unfinished (``.partial``) places left out."""
    for path in sorted(folder.rglob(pattern)):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(p.startswith(".") or ".partial" in p for p in parts):
            yield path


def manifests(folder: Path) -> list[Path]:
    """Every manifest below a folder, reports' own left out.

    Raises:
        XwinError: the folder does not exist or holds no manifest.
    """
    if not folder.is_dir():
        raise XwinError(f"{folder}: no such folder", "--data names a run's folder")
    found = [p for p in _visible(folder, "*xwin.json") if f".{p.name}".endswith(".xwin.json")]
    found = [p for p in found if not p.name.endswith(".html.xwin.json")]
    if not found:
        raise XwinError(f"{folder}: there is no manifest below it", "is this the folder the stages wrote to?")
    return found


def _artifact(folder: Path, path: Path) -> Artifact:
    made = path.parent if path.name == "xwin.json" else path.with_name(path.name.removesuffix(".xwin.json"))
    return Artifact(made.relative_to(folder).as_posix(), manifest.read(made) or {})


def _source(name: str, known: dict[tuple[str, ...], str]) -> str:
    """The artifact an input's path means, as far as it ends in that artifact's; else the path itself.

    Paths in manifests are as they were typed, from wherever that was, so only their ends are compared; an
    input inside an artifact folder means that folder.
    """
    parts = PurePath(name).parts
    for end in range(len(parts), 0, -1):
        for start in range(end):
            if parts[start:end] in known:
                return known[parts[start:end]]
    return name


def link(artifacts: list[Artifact]) -> None:
    """Fill each artifact's ``sources``: paths of artifacts, or outside inputs by the name they were given."""
    known = {PurePath(a.path).parts: a.path for a in artifacts}
    for a in artifacts:
        names = (_source(str(i.get("path")), known) for i in a.manifest.get("inputs") or [])
        a.sources = [n for n in dict.fromkeys(names) if n != a.path]


def _evaluation(folder: Path, path: Path) -> Evaluation | None:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise XwinError(f"{path}: not valid JSON: {e}", "run xwin eval compare again") from e
    if not isinstance(facts, dict) or facts.get("protocol") != "compare":
        return None
    groups: dict[str, dict[str, Group]] = {}
    for model in facts["models"]:
        rated = path.parent / "ratings" / f"{model['name']}.jsonl"
        groups[model["name"]] = {g.prompt_id: g for g in formats.read([str(rated)], Group, checked=False)}
    return Evaluation(path.parent.relative_to(folder).as_posix(), facts, groups)


def collect(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        XwinError: it has no manifest, or one of its files cannot be read.
    """
    artifacts = [_artifact(folder, p) for p in manifests(folder)]
    link(artifacts)
    evaluations = [e for p in _visible(folder, "eval.json") if (e := _evaluation(folder, p))]
    curves = {
        p.parent.relative_to(folder).as_posix(): [row for _, row in jsonl.read(str(p))]
        for p in _visible(folder, "metrics.jsonl")
    }
    pages = sorted(folder.glob("*.html"), key=lambda p: p.stat().st_mtime)
    return Run(folder, artifacts, evaluations, curves, pages[-1] if pages else None)
