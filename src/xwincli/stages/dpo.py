"""Direct preference optimisation of a policy on pairs.

The reference is the starting model; its log-probabilities are computed once, before the first step.

    xwin dpo --model rs --data pairs.jsonl --beta 0.1 --out dpo
"""

from __future__ import annotations

from dataclasses import dataclass

from xwincli import formats, manifest, settings
from xwincli.console import say, warn
from xwincli.errors import XwinError
from xwincli.records import Pair
from xwincli.settings import flag, group


@dataclass(kw_only=True)
class Optim(settings.Optim):
    """The recipe's defaults for DPO."""

    lr: float = flag(5e-7, "peak learning rate", low=0.0)


@dataclass(kw_only=True)
class Config(settings.Run):
    """Options of ``xwin dpo``."""

    data: list[str] = flag(["-"], "pairs: files, globs, hf:NAME, or - for standard input; repeatable")
    model: str = flag(help="policy to start from, and the reference")
    beta: float = flag(0.1, "strength of the tie to the reference", low=0.0)
    max_length: int = flag(4096, "drop (and count) pairs with a side of more tokens; nothing is cut", low=8)
    optim: Optim = group(Optim)


def run(config: Config) -> None:
    """Train and save."""
    plan = manifest.plan("dpo", config, [*config.data, config.model])
    if manifest.skip_if_current(config.out, plan, config.force):
        return
    rows = list(formats.read(config.data, Pair, limit=config.limit))
    from xwincli import models, scoring
    from xwincli.train import dpo, folder, loop

    run_folder = folder.Folder(config.out, plan, config, force=config.force)
    loaded = models.load_policy(config.model, models.place(config.device), train=True)
    kept = [r for r in rows if r.chosen[-1]["content"] != r.rejected[-1]["content"]]
    if len(kept) < len(rows):
        warn(f"{len(rows) - len(kept)} pairs have the same chosen and rejected text and are left out")
    branches = [dpo.as_branch(loaded, row) for row in kept]
    branches = [b for b in branches if len(b.prompt) + max(map(len, b.responses)) <= config.max_length]
    if not branches:
        raise XwinError("no pair is left to train on", "see --max-length, and `xwin check` on the data")
    say(f"reference log-probabilities of {len(branches)} pairs")
    reference = scoring.logprobs(loaded, branches, config.optim.max_tokens_per_row)
    work = loop.Work(
        name="dpo",
        weights=[(models.adapt(loaded, config.adapt), config.optim.lr)],
        objective=dpo.objective(loaded, branches, reference, config.beta),
        lengths=[len(b) for b in branches],
        units=[1] * len(branches),
    )
    steps = loop.fit(work, config.optim, config.seed, run_folder, loaded.place)
    run_folder.counts = {"in": len(rows), "pairs": len(branches), "steps": steps}
    run_folder.finish(loaded, keep_adapter=config.adapt.keep_adapter)
