"""Audit a reward model on preferences it was not trained on: does it agree with the judge, and for the right reason?

Reports accuracy beside a ruler that prefers the longer answer, both by difference in length and by the judge's
margin; calibration of sigmoid(reward difference); and how rewards go with length, overall and within prompts.
Data are judgements (ties are left out, unless `--soft`), pairs, or groups rated by a judge. `--out` is a folder for
`audit.json`, a `.json` file, or `-`.

    xwin audit rm --rm rm --data other-pairs.jsonl --out audit
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwincli import formats, jsonl, manifest, settings
from xwincli.console import say, stdout, warn
from xwincli.errors import USAGE, XwinError
from xwincli.settings import flag, group

if TYPE_CHECKING:
    from xwincli.models import Loaded
    from xwincli.rows import Branch
    from xwincli.train.comparisons import Comparisons


@dataclass(kw_only=True)
class Config:
    """Options of ``xwin audit rm``."""

    data: list[str] = flag(["-"], "judgements, pairs or rated groups: files, globs, hf:NAME, or -; repeatable")
    rm: str = flag(help="reward model folder")
    out: str = flag("-", "folder for audit.json, a .json file, or - for standard output")
    scores: str = flag("", "groups: which of their scores to compare by; not needed where there is one")
    soft: bool = flag(False, "judgements: the mean preference of both orders is the chance to meet, ties included")
    limit: int = flag(0, "use only the first rows; 0 uses all", low=0)
    rounds: int = flag(2000, "bootstrap resamples", low=100)
    seed: int = flag(0, "of the bootstrap")
    max_tokens_per_row: int = flag(4096, "tokens per forward: bounds memory, never the result", execution=True, low=8)
    force: bool = flag(False, "make it anew even if it is up to date", execution=True)
    chat: settings.Chat = group(settings.Chat)
    device: settings.Device = group(settings.Device)


def run(config: Config) -> None:
    """Score, count, write; the manifest comes last."""
    started, out = time.time(), Path(config.out)
    if config.out != "-" and out.suffix != ".json" and out.exists() and not out.is_dir():
        raise XwinError(f"{out}: is a file", "--out names a folder or a .json file", USAGE)
    plan = manifest.plan("audit rm", config, [*config.data, config.rm])
    if manifest.skip_if_current(config.out, plan, config.force):
        return
    from xwincli.train.comparisons import gather

    source = ", ".join(config.data)
    rows = formats.read_any(config.data, limit=config.limit)
    items, ties = gather(rows, source, soft=config.soft, scores=config.scores)
    if not items:
        raise XwinError(f"{source}: no preference in {ties} rows: every one is a tie", "--soft keeps ties")
    from xwincli import models, scoring
    from xwincli.metrics import rm_audit
    from xwincli.report import reward_models

    loaded = models.load_reward(config.rm, models.place(config.device))
    loaded.template = loaded.template.given(config.chat.template_arg)
    manifest.note_template(plan, loaded.template.facts(), config.rm)
    items, branches, dropped = _fitting(items, loaded)
    rewards = scoring.branch_rewards(loaded, branches, config.max_tokens_per_row)
    tokens = [[len(r) for r in b.responses] for b in branches]
    audit = rm_audit.audit(items, rewards, tokens, rounds=config.rounds, seed=config.seed)
    say(reward_models.text(audit))
    for what, mend in reward_models.warnings(audit):
        warn(f"{what}\n  hint: {mend}")
    _write(config.out, audit)
    counts = {"prompts": audit["prompts"], "pairs": audit["pairs"], "ties": ties, "dropped": dropped}
    figures = {"accuracy": audit["accuracy"]["value"], "audit": audit}
    manifest.write(out, plan, config, started=started, counts=counts, metrics=figures, machine=loaded.place.facts())


def _fitting(items: list[Comparisons], loaded: Loaded) -> tuple[list[Comparisons], list[Branch], int]:
    """Every prompt's responses as ids; prompts with a response beyond the model's context are left out and counted."""
    from xwincli import scoring

    kept: list[Comparisons] = []
    branches: list[Branch] = []
    reason = ""
    for item in items:
        try:
            branches.append(scoring.branch(loaded, (item.prompt, item.sides), tail=True))
            kept.append(item)
        except XwinError as e:
            reason = e.message
    if not kept:
        raise XwinError(f"no prompt is left to audit on: {reason}")
    if dropped := len(items) - len(kept):
        warn(f"{dropped} prompts are left out: {reason}")
    return kept, branches, dropped


def _write(out: str, audit: dict[str, Any]) -> None:
    text = json.dumps(audit, indent=1) + "\n"
    if out == "-":
        stdout().write(text)
        return
    path = Path(out)
    manifest.beside(path).unlink(missing_ok=True)  # an interrupted run must not look finished
    with jsonl.atomic(path if path.suffix == ".json" else path / "audit.json") as f:
        f.write(text)
