"""Finetune a policy on conversations.

The loss is on the assistant's tokens and their stop tokens alone, for every turn, with any chat template.

    xwin sft --model base --data conversations.jsonl --out sft
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from xwincli import formats, launch, manifest, settings
from xwincli.records import Conversation, Message, prompt_id
from xwincli.settings import flag, group

if TYPE_CHECKING:
    from xwincli.models import Loaded
    from xwincli.rows import Branch
    from xwincli.train.ledger import Ledger


@dataclass(kw_only=True)
class Config(settings.RowsRun):
    """Options of ``xwin sft``."""

    data: list[str] = flag(["-"], "conversations: files, globs, hf:NAME, or - for standard input; repeatable")
    model: str = flag(help="policy to start from: folder, hub name, adapter or .gguf")
    template: str = flag("", "chat template in place of the tokenizer's own: vicuna, chatml or a .jinja file")
    max_length: int = flag(4096, "drop (and count) conversations with more tokens; nothing is cut", low=8)
    chat: settings.Chat = group(settings.Chat)
    optim: settings.Optim = group(settings.Optim)
    probe: settings.Probe = group(settings.Probe)


@launch.ranks("sft")
def run(config: Config) -> None:
    """Train and save."""
    plan = manifest.plan("sft", config, [*config.data, config.model])
    if not (config.show or config.plan) and manifest.skip_if_current(config.out, plan, config.force):
        return
    rows = list(formats.read(config.data, Conversation, limit=config.limit))
    from xwincli import chat, models, states, weights
    from xwincli.train import estimate, folder, health, loop, preflight, rehearsal, sft, valid
    from xwincli.train.show import show

    template = chat.find_template(config.template) if config.template else ""
    place, four = models.place(config.device), config.adapt.quantize
    if config.plan:
        loaded = rehearsal.sketch(config.model, place, template=template)
    else:
        loaded = models.load_policy(config.model, place, train=True, template=template, quantize=four)
    loaded.template = loaded.template.given(config.chat.template_arg)
    manifest.note_template(plan, loaded.template.facts(), "" if config.template else config.model)
    branches, names, ledger = _tokenise(rows, loaded, config)
    if config.show:
        show(branches, loaded.tokenizer, config.show)
        return
    prompts = {row.id: prompt_id(_question(row)) for row in rows}
    held = valid.split((prompts[n] for n in names), config)
    if config.plan:
        learned = [b for i, b in enumerate(branches) if i not in set(held)]
        estimate.report(loaded, learned, config, config.optim, f"{sum(map(sft.learned, learned))} tokens learned")
        return
    preflight.report(preflight.conversations(branches, loaded.template))
    run_folder = folder.Folder(config.out, plan, config, force=config.force, saving=config.saving)
    parameters = weights.adapt(loaded, config.adapt, config.seed)
    asked = [row.messages[:-1] for row in rows]
    watch = health.begin(loaded, config.probe, asked, [], config.seed, config.cluster)
    states.prepare(loaded)
    work = loop.Work(
        name="sft",
        weights=[(parameters, config.optim.lr)],
        objective=sft.objective(loaded, branches),
        lengths=[len(b) for b in branches],
        units=[sft.learned(b) for b in branches],
        watch=watch,
        ids=names,
        held=held,
        schedule=valid.Schedule.of(config),
        model=loaded.model,
        cluster=config.cluster,
    )
    steps = loop.fit(work, config.optim, config.seed, run_folder, loaded.place)
    run_folder.metrics |= watch.close() if watch else {}
    run_folder.counts = {"in": len(rows), "rows": len(branches), "dropped": ledger.counts(), "steps": steps}
    run_folder.finish(loaded, keep_adapter=config.adapt.keep_adapter)


def _question(row: Conversation) -> list[Message]:
    """What stands before the first answer: conversations that begin alike are held out, or learned, together."""
    return list(takewhile(lambda m: m["role"] != "assistant", row.messages))


def _tokenise(rows: list[Conversation], loaded: Loaded, config: Config) -> tuple[list[Branch], list[str], Ledger]:
    """Conversations as branches, with the id of each; what cannot be learned whole is left out and counted."""
    from xwincli import scoring
    from xwincli.rows import Branch
    from xwincli.train.ledger import Ledger

    ledger = Ledger("conversations", {"too long": "raise --max-length", "without a turn to learn": "see weight"})
    limit = min(config.max_length, scoring.context(loaded))
    branches: list[Branch] = []
    names: list[str] = []
    for row in rows:
        pieces = loaded.template.conversation(row.messages)
        if not pieces:
            ledger.drop("without a turn to learn", row.id)
        elif max(len(ids) for ids, _ in pieces) > limit:
            ledger.drop("too long", row.id)
        else:
            ledger.keep()
            branches += [Branch([], [ids], [learned]) for ids, learned in pieces]
            names += [row.id] * len(pieces)
    ledger.close(config.max_drop)
    return branches, names, ledger
