"""Score every response of every group with a reward model, or with several.

    xwin score --data groups.jsonl --rm rm --out scored.jsonl
    xwin score --data groups.jsonl --rm helpful=rm-a --rm harmless=rm-b --combine min --out scored.jsonl

A response cut by the length limit is scored without its end-of-turn token, so that the model sees it did
not end. Each score is kept in ``scores[NAME]`` of its response; with several models each under its own name (the
folder's, where none is given), and what `--combine` makes of them under `--name`. Scores of models that were not
trained on the same data may have other scales: look at both before their mean decides.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from xwincli import formats, launch, manifest, settings, shards
from xwincli.console import progress, warn
from xwincli.errors import USAGE, XwinError
from xwincli.journal import Journal
from xwincli.records import Group
from xwincli.settings import flag, group

if TYPE_CHECKING:
    from xwincli.models import Loaded

WAYS: dict[str, Any] = {"mean": fmean, "min": min}


@dataclass(kw_only=True)
class Config:
    """Options of ``xwin score``."""

    data: list[str] = flag(["-"], "groups: files, globs, hf:NAME, or - for standard input; repeatable")
    out: str = flag("-", "file of groups to write, or - for standard output")
    rm: list[str] = flag(help="reward model folder or hub name, or NAME=FOLDER; repeatable")
    name: str = flag("rm", "under which name scores are kept; of several models, the combined ones")
    combine: str = flag("none", "of several models' scores, besides each one", choices=("none", *WAYS))
    max_tokens_per_row: int = flag(4096, "tokens per forward: bounds memory, never the result", execution=True, low=8)
    window: int = flag(16, "groups worked on at once, longest first", execution=True, low=1)
    limit: int = flag(0, "use only the first rows; 0 uses all", low=0)
    seed: int = flag(0, "scoring draws nothing; taken so that every stage takes it", execution=True)
    allow_failed: float = flag(0.0, "share of groups that may fail (too long)", low=0.0, high=1.0)
    force: bool = flag(False, "start anew even if the result or a journal is there", execution=True)
    chat: settings.Chat = group(settings.Chat)
    thinking: settings.Thinking = group(settings.Thinking)
    scale: settings.Scale = group(settings.Scale)
    device: settings.Device = group(settings.Device)


@dataclass
class Scorer:
    """A reward model under the name its scores are kept by."""

    name: str
    path: str
    _loaded: Loaded | None = field(default=None, repr=False)
    _warned: bool = False

    def load(self, plan: manifest.Manifest, config: Config) -> dict[str, Any]:
        """Load it; returns where it computes."""
        from xwincli import models

        self._loaded = models.load_reward(self.path, models.place(config.device))
        self._loaded.template = self._loaded.template.given(config.chat.template_arg)
        manifest.note_template(plan, self._loaded.template.facts(), self.path)
        return self._loaded.place.facts()

    def branch(self, row: Group) -> Any:
        """A group as token ids; refuses one beyond the model's context."""
        from xwincli import scoring

        assert self._loaded is not None
        if not self._warned and self._loaded.template.differs(row.sampling or {}):
            warn(f"{self.path}: reads its own chat template; the responses were drawn with another")
            self._warned = True
        item = (row.prompt, [(r.text, r.finish != "length") for r in row.responses])
        return scoring.branch(self._loaded, item, tail=True)

    def scores(self, branches: list[Any], capacity: int) -> list[list[float]]:
        """Scores of every response of every group."""
        from xwincli import scoring

        assert self._loaded is not None
        return scoring.branch_rewards(self._loaded, branches, capacity)


def scorers(config: Config) -> list[Scorer]:
    """The models asked for, by name.

    Raises:
        XwinError: two have one name, or one has the combination's.
    """
    found = []
    for text in config.rm:
        named = re.fullmatch(r"([A-Za-z][\w-]*)=(.+)", text)
        if named and not Path(text).exists():
            found.append(Scorer(named[1], named[2]))
        else:
            found.append(Scorer(config.name if len(config.rm) == 1 else Path(text).name, text))
    if config.combine != "none" and len(found) == 1:
        raise XwinError(f"--combine {config.combine} needs several --rm", "leave it out", USAGE)
    taken = Counter([s.name for s in found] + ([config.name] if config.combine != "none" else []))
    if twice := [name for name, count in taken.items() if count > 1]:
        raise XwinError(f"two scores would be named {twice[0]!r}", "name them: --rm NAME=FOLDER, --name NAME", USAGE)
    return found


def run(config: Config) -> None:
    """Score and write."""
    models = scorers(config)
    plan = manifest.plan("score", config, [*config.data, *(m.path for m in models)])
    plan["config"]["rm"] = [m.name for m in models]
    shard = shards.Shard.parse(config.scale.shard)
    if shards.done(config.out, plan, shard, config.force) or launch.fan_out("score", config):
        return
    rows = formats.read(config.data, Group, limit=config.limit)
    total = formats.count(config.data, Group, limit=config.limit)
    first = next(rows, None)
    if first is None:
        raise XwinError(f"{', '.join(config.data)}: no rows")
    machine = [m.load(plan if m is models[0] else {}, config) for m in models]
    from xwincli import scoring

    with (
        Journal(config.out, plan, config, allow_failed=config.allow_failed, force=config.force, shard=shard) as journal,
        progress("score", shard.count(total) if total else None, "groups", journal.finished) as bar,
    ):
        journal.machine = machine[0]
        journal.counts["responses"] = 0
        for window in scoring.windows(journal.todo(chain([first], rows)), config.window):
            _window(window, models, config, journal)
            bar.advance(len(window), note=f"{journal.counts['responses']} responses")
    shards.settle(config.out, plan, shard)


def _window(window: list[tuple[str, Group]], models: list[Scorer], config: Config, journal: Journal) -> None:
    """Score some groups with every model, and keep them."""
    from xwincli import chat

    fitting = []
    for key, row in window:
        if config.thinking.split_thinking:
            chat.set_thinking_aside(row.responses)
        try:
            fitting.append((key, row, [m.branch(row) for m in models]))
        except XwinError as e:
            journal.fail(key, row, e.message)
    for i, m in enumerate(models):
        found = m.scores([branches[i] for _, _, branches in fitting], config.max_tokens_per_row)
        for (_, row, _), scores in zip(fitting, found, strict=True):
            for response, score in zip(row.responses, scores, strict=True):
                response.scores[m.name] = round(score, 6)
            row.scorers = {**(row.scorers or {}), m.name: f"reward model {m.path}"}
    for key, row, _ in fitting:
        if config.combine != "none":
            _combine(row, [m.name for m in models], config)
        journal.add(key, [row])
        journal.counts["responses"] += len(row.responses)


def _combine(row: Group, names: list[str], config: Config) -> None:
    for response in row.responses:
        response.scores[config.name] = round(WAYS[config.combine](response.scores[n] for n in names), 6)
    row.scorers = {**(row.scorers or {}), config.name: f"reward models {', '.join(names)}: {config.combine}"}
