"""Finetune a policy on conversations.

The loss is on the assistant's tokens and their stop tokens alone, for every turn, with any chat template.

    xwin sft --model base --data conversations.jsonl --out sft
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xwincli import formats, manifest, settings
from xwincli.console import say
from xwincli.records import Conversation
from xwincli.settings import flag, group

if TYPE_CHECKING:
    from xwincli.models import Loaded
    from xwincli.rows import Branch
    from xwincli.train.ledger import Ledger


@dataclass(kw_only=True)
class Config(settings.Run):
    """Options of ``xwin sft``."""

    data: list[str] = flag(["-"], "conversations: files, globs, hf:NAME, or - for standard input; repeatable")
    model: str = flag(help="policy to start from: folder, hub name, adapter or .gguf")
    template: str = flag("", "chat template in place of the tokenizer's own: vicuna, chatml or a .jinja file")
    max_length: int = flag(4096, "drop (and count) conversations with more tokens; nothing is cut", low=8)
    optim: settings.Optim = group(settings.Optim)


def run(config: Config) -> None:
    """Train and save."""
    plan = manifest.plan("sft", config, [*config.data, config.model])
    if manifest.skip_if_current(config.out, plan, config.force):
        return
    rows = list(formats.read(config.data, Conversation, limit=config.limit))
    from xwincli import chat, models, scoring
    from xwincli.train import folder, loop, sft

    run_folder = folder.Folder(config.out, plan, config, force=config.force)
    template = chat.find_template(config.template) if config.template else ""
    loaded = models.load_policy(config.model, models.place(config.device), train=True, template=template)
    branches, ledger = _tokenise(rows, loaded, config)
    parameters = models.adapt(loaded, config.adapt)
    scoring.prepare(loaded)
    work = loop.Work(
        name="sft",
        weights=[(parameters, config.optim.lr)],
        objective=sft.objective(loaded, branches),
        lengths=[len(b) for b in branches],
        units=[sft.learned(b) for b in branches],
    )
    say(f"{len(branches)} rows, {sum(work.units)} of {sum(work.lengths)} tokens learned")
    steps = loop.fit(work, config.optim, config.seed, run_folder, loaded.place)
    run_folder.counts = {"in": len(rows), "rows": len(branches), "dropped": ledger.counts(), "steps": steps}
    run_folder.finish(loaded, keep_adapter=config.adapt.keep_adapter)


def _tokenise(rows: list[Conversation], loaded: Loaded, config: Config) -> tuple[list[Branch], Ledger]:
    """Conversations as branches; what cannot be learned whole is left out and counted."""
    from xwincli import scoring
    from xwincli.rows import Branch
    from xwincli.train.ledger import Ledger

    ledger = Ledger("conversations", {"too long": "raise --max-length", "without a turn to learn": "see weight"})
    limit = min(config.max_length, scoring.context(loaded))
    branches: list[Branch] = []
    for row in rows:
        pieces = loaded.template.conversation(row.messages)
        if not pieces:
            ledger.drop("without a turn to learn", row.id)
        elif max(len(ids) for ids, _ in pieces) > limit:
            ledger.drop("too long", row.id)
        else:
            ledger.keep()
            branches += [Branch([], [ids], [learned]) for ids, learned in pieces]
    ledger.close(config.max_drop)
    return branches, ledger
