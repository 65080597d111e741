"""Score every response of every group with a reward model.

    xwin score --data groups.jsonl --rm rm --out scored.jsonl

A response cut by the length limit is scored without its end-of-turn token, so that the model sees it did
not end. Each score is kept in ``scores[NAME]`` of its response.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from xwincli import formats, manifest, settings
from xwincli.console import progress, warn
from xwincli.errors import XwinError
from xwincli.journal import Journal
from xwincli.records import Group
from xwincli.settings import flag, group


@dataclass(kw_only=True)
class Config:
    """Options of ``xwin score``."""

    data: list[str] = flag(["-"], "groups: files, globs, hf:NAME, or - for standard input; repeatable")
    out: str = flag("-", "file of groups to write, or - for standard output")
    rm: str = flag(help="reward model folder or hub name")
    name: str = flag("rm", "under which name scores are kept")
    max_tokens_per_row: int = flag(4096, "tokens per forward: bounds memory, never the result", execution=True, low=8)
    window: int = flag(16, "groups worked on at once", execution=True, low=1)
    limit: int = flag(0, "use only the first rows; 0 uses all", low=0)
    seed: int = flag(0, "scoring draws nothing; taken so that every stage takes it", execution=True)
    allow_failed: float = flag(0.0, "share of groups that may fail (too long)", low=0.0, high=1.0)
    force: bool = flag(False, "start anew even if the result or a journal is there", execution=True)
    chat: settings.Chat = group(settings.Chat)
    thinking: settings.Thinking = group(settings.Thinking)
    device: settings.Device = group(settings.Device)


def run(config: Config) -> None:
    """Score and write."""
    plan = manifest.plan("score", config, [*config.data, config.rm])
    if manifest.skip_if_current(config.out, plan, config.force):
        return
    rows = formats.read(config.data, Group, limit=config.limit)
    total = formats.count(config.data, Group, limit=config.limit)
    first = next(rows, None)
    if first is None:
        raise XwinError(f"{', '.join(config.data)}: no rows")
    from xwincli import chat, models, scoring

    loaded = models.load_reward(config.rm, models.place(config.device))
    loaded.template = loaded.template.given(config.chat.template_arg)
    manifest.note_template(plan, loaded.template.facts(), config.rm)
    warned = False
    with (
        Journal(config.out, plan, config, allow_failed=config.allow_failed, force=config.force) as journal,
        progress("score", total, "groups", len(journal.offsets)) as bar,
    ):
        responses = 0
        for window in scoring.windows(journal.todo(chain([first], rows)), config.window):
            fitting = []
            for key, row in window:
                if config.thinking.split_thinking:
                    chat.set_thinking_aside(row.responses)
                if not warned and loaded.template.differs(row.sampling or {}):
                    warn(f"{config.rm}: reads its own chat template; the responses were drawn with another")
                    warned = True
                item = (row.prompt, [(r.text, r.finish != "length") for r in row.responses])
                try:
                    fitting.append((key, row, scoring.branch(loaded, item, tail=True)))
                except XwinError as e:
                    journal.fail(key, row, e.message)
            scored = scoring.branch_rewards(loaded, [b for _, _, b in fitting], config.max_tokens_per_row)
            for (key, row, _), scores in zip(fitting, scored, strict=True):
                for response, score in zip(row.responses, scores, strict=True):
                    response.scores[config.name] = round(score, 6)
                row.scorers = {**(row.scorers or {}), config.name: f"reward model {config.rm}"}
                journal.add(key, [row])
                responses += len(row.responses)
            bar.advance(len(window), note=f"{responses} responses")
        journal.counts["responses"] = responses
        journal.machine = loaded.place.facts()
