"""Train a reward model on preferences (Bradley-Terry) or on rankings (Plackett-Luce).

Data are judgements (ties are left out and counted, unless `--soft`), pairs, or groups rated by a judge
(`xwin judge --rate`). All comparisons of one prompt are one element of the batch: its responses pass through the
model once, and its loss is the mean of its comparisons. The result opens with plain
``AutoModelForSequenceClassification.from_pretrained`` and scores equally there, which is checked on saving.

    xwin train-rm --model sft --data judgements.jsonl --out rm
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwincli import formats, jsonl, launch, manifest, settings
from xwincli.console import say, warn
from xwincli.errors import XwinError
from xwincli.settings import flag, group

if TYPE_CHECKING:
    from xwincli.models import Loaded
    from xwincli.rows import Branch
    from xwincli.train.comparisons import Comparisons
    from xwincli.train.ledger import Ledger
    from xwincli.train.loop import Work


@dataclass(kw_only=True)
class Optim(settings.Optim):
    """The recipe's defaults for reward models."""

    lr: float = flag(1e-5, "peak learning rate of the body", low=0.0)
    head_lr: float = flag(0.0, "peak learning rate of the new head; 0 means the body's", low=0.0)


@dataclass(kw_only=True)
class Config(settings.RowsRun):
    """Options of ``xwin train-rm``."""

    data: list[str] = flag(["-"], "judgements, pairs or rated groups: files, globs, hf:NAME, or -; repeatable")
    model: str = flag(help="policy whose body the reward model starts from")
    loss: str = flag("bradley-terry", "of pairs, or of whole rankings", choices=("bradley-terry", "plackett-luce"))
    scores: str = flag("", "groups: which of their scores to learn from; not needed where there is one")
    top: int = flag(0, "plackett-luce: places of the ranking that count; 0 is all", low=0)
    centring: float = flag(0.01, "weight of (r_c + r_r)^2, which keeps rewards around zero", low=0.0)
    margin: bool = flag(False, "use each pair's margin (score_chosen - score_rejected where none is given)")
    soft: bool = flag(False, "judgements: learn the mean preference of both orders, ties included")
    smoothing: float = flag(0.0, "share of the preferences taken to be wrong", low=0.0, high=0.49)
    valid: float = flag(0.1, "share of the prompts held out for the accuracy", low=0.0, high=0.9)
    max_length: int = flag(4096, "drop (and count) responses with more tokens; nothing is cut", low=8)
    chat: settings.Chat = group(settings.Chat)
    optim: Optim = group(Optim)


@launch.ranks("train-rm")
def run(config: Config) -> None:
    """Train, measure and save."""
    plan = manifest.plan("train-rm", config, [*config.data, config.model])
    if not (config.show or config.plan) and manifest.skip_if_current(config.out, plan, config.force):
        return
    items, ties = _read(config)
    from xwincli import models, scoring
    from xwincli.train import estimate, folder, loop, preflight, rehearsal, show, valid

    place = models.place(config.device)
    if config.plan:
        loaded = rehearsal.sketch(config.model, place, reward=True)
    else:
        loaded = models.new_reward(config.model, place, config.seed, quantize=config.adapt.quantize)
    loaded.template = loaded.template.given(config.chat.template_arg)
    manifest.note_template(plan, loaded.template.facts(), config.model)
    items, branches, ledger = _tokenise(items, loaded, config)
    if config.show:
        marked = [show.last_marked(b) for b in branches]
        show.show(marked, loaded.tokenizer, config.show, [show.sides(item) for item in items])
        return
    held = valid.split([item.prompt_id for item in items], config)
    learn = [i for i in range(len(items)) if i not in set(held)]
    if config.plan:
        estimate.report(loaded, [branches[i] for i in learn], config, config.optim, f"{len(learn)} prompts to learn")
        return
    preflight.report(preflight.comparisons(items, branches, set(held), loaded))
    counts = {"prompts": len(learn), "pairs": sum(len(items[i].games) for i in learn), "held_out": len(held)}
    say(f"{counts['pairs']} pairs of {len(learn)} prompts to learn, {len(held)} held out; {ties} ties left out")
    run_folder = folder.Folder(config.out, plan, config, force=config.force, saving=config.saving)
    work = _work(loaded, items, branches, held, config)
    steps = loop.fit(work, config.optim, config.seed, run_folder, loaded.place)
    loaded.model.to(loaded.place.device)  # ZeRO stage 3 leaves the weights in CPU memory
    capacity = config.optim.max_tokens_per_row
    asked = [items[i] for i in held], [branches[i] for i in held]
    run_folder.metrics |= _measure(loaded, *asked, capacity, run_folder.part / "audit.json")
    run_folder.counts = {**counts, "ties": ties, "dropped": ledger.counts(), "steps": steps}
    ours = scoring.branch_rewards(loaded, branches[:4], capacity)
    run_folder.finish(loaded, keep_adapter=config.adapt.keep_adapter)
    if not config.adapt.keep_adapter:
        if config.adapt.quantize != "none":  # saved is not what was trained, but its merge in full precision
            loaded = models.load_reward(config.out, models.CPU)
            ours = scoring.branch_rewards(loaded, branches[:4], capacity)
        _check_plain(config.out, loaded, branches[:4], ours)


def _work(loaded: Loaded, items: list[Comparisons], branches: list[Branch], held: list[int], config: Config) -> Work:
    """What the loop does: the body and the new head learn, each at its own rate."""
    from xwincli import states, weights
    from xwincli.train import loop, rm, valid

    named = weights.adapt(loaded, config.adapt, config.seed)
    states.prepare(loaded)
    head = [(n, p) for n, p in named if "score" in n]
    body = [(n, p) for n, p in named if "score" not in n]
    terms = {"centring": config.centring, "smoothing": config.smoothing}
    return loop.Work(
        name="train-rm",
        weights=[(body, config.optim.lr), (head, config.optim.head_lr or config.optim.lr)],
        objective=rm.objective(
            loaded, branches, items, **terms, ranking=config.loss == "plackett-luce", top=config.top
        ),
        lengths=[len(b) for b in branches],
        units=[1] * len(branches),
        ids=[item.prompt_id for item in items],
        held=held,
        schedule=valid.Schedule.of(config),
        model=loaded.model,
        cluster=config.cluster,
    )


def _read(config: Config) -> tuple[list[Comparisons], int]:
    """The preferences by prompt, and how many ties were left out."""
    from xwincli.train.comparisons import gather

    if config.loss == "plackett-luce" and (config.soft or config.margin or config.smoothing):
        raise XwinError("--soft, --margin and --smoothing are about pairs", "leave them out with plackett-luce")
    rows = formats.read_any(config.data, limit=config.limit)
    source = ", ".join(config.data)
    items, ties = gather(rows, source, soft=config.soft, margin=config.margin, scores=config.scores)
    if not items:
        raise XwinError(f"{source}: no preference in {ties} rows: every one is a tie")
    if config.loss == "plackett-luce" and not all(len(item.marks) == len(item.sides) for item in items):
        raise XwinError(f"{source}: plackett-luce needs a rating of every response", "xwin judge --rate gold")
    return items, ties


def _tokenise(
    items: list[Comparisons], loaded: Loaded, config: Config
) -> tuple[list[Comparisons], list[Branch], Ledger]:
    """Every prompt's responses as ids; responses that are too long are left out and counted."""
    from xwincli import scoring
    from xwincli.rows import Branch
    from xwincli.train.ledger import Ledger

    ledger = Ledger("responses", {"too long": "raise --max-length"})
    limit = min(config.max_length, scoring.context(loaded))
    kept: list[Comparisons] = []
    branches: list[Branch] = []
    for item in items:
        ids = scoring.branch(loaded, (item.prompt, item.sides), tail=True, any_length=True)
        long = {i for i, r in enumerate(ids.responses) if len(ids.prompt) + len(r) > limit}
        for i in range(len(ids.responses)):
            if i in long:
                ledger.drop("too long", item.prompt_id)
            else:
                ledger.keep()
        if (item := item.without(long)).games:
            kept.append(item)
            branches.append(Branch(ids.prompt, [r for i, r in enumerate(ids.responses) if i not in long]))
    ledger.close(config.max_drop)
    return kept, branches, ledger


def _measure(
    loaded: Loaded, items: list[Comparisons], branches: list[Branch], capacity: int, file: Path
) -> dict[str, Any]:
    """The audit on held-out pairs, written to ``file``; its accuracy and the ruler's stand first."""
    if not items:
        return {}
    from xwincli import scoring
    from xwincli.metrics import rm_audit
    from xwincli.report import reward_models

    rewards = scoring.branch_rewards(loaded, branches, capacity)
    audit = rm_audit.audit(items, rewards, [[len(r) for r in b.responses] for b in branches])
    say(f"held out: {reward_models.text(audit)}")
    for what, mend in reward_models.warnings(audit):
        warn(f"{what}\n  hint: {mend}")
    with jsonl.atomic(file) as f:
        f.write(json.dumps(audit, indent=1) + "\n")
    found = {"valid_accuracy": audit["accuracy"]["value"], "longer_is_better": audit["ruler"]["value"]}
    return {**found, "audit": audit}


def _check_plain(out: str, loaded: Loaded, branches: list[Branch], ours: list[list[float]]) -> None:
    """The saved folder, opened by transformers alone, must score as we do."""
    import torch
    from transformers import AutoModelForSequenceClassification

    plain = AutoModelForSequenceClassification.from_pretrained(out, dtype=loaded.model.dtype).eval()
    worst = 0.0
    for row, scores in zip(branches, ours, strict=True):
        for response, score in zip(row.responses, scores, strict=True):
            with torch.no_grad(), loaded.place.autocast():
                there = plain(torch.tensor([row.prompt + response])).logits.item()
            worst = max(worst, abs(there - score))
    tolerance = 1e-3 if loaded.place.dtype == torch.float32 else 0.2
    if worst > tolerance:
        raise XwinError(f"{out}: plain transformers scores differ by {worst:.3g}", "please report this model family")
    say(f"opened with plain transformers: scores agree within {worst:.1e}")
