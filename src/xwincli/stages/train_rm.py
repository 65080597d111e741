"""Train a reward model on preferences (Bradley-Terry).

Data are judgements (ties are left out and counted) or pairs. The result opens with plain
``AutoModelForSequenceClassification.from_pretrained`` and scores equally there, which is checked on saving.

    xwin train-rm --model sft --data judgements.jsonl --out rm
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xwincli import formats, manifest, settings
from xwincli.console import say, warn
from xwincli.errors import XwinError
from xwincli.records import Judgement, Message, Pair, content_id
from xwincli.settings import flag, group

if TYPE_CHECKING:
    from xwincli.models import Loaded
    from xwincli.rows import Branch


@dataclass(kw_only=True)
class Optim(settings.Optim):
    """The recipe's defaults for reward models."""

    lr: float = flag(1e-5, "peak learning rate of the body", low=0.0)
    head_lr: float = flag(0.0, "peak learning rate of the new head; 0 means the body's", low=0.0)


@dataclass(kw_only=True)
class Config(settings.Run):
    """Options of ``xwin train-rm``."""

    data: list[str] = flag(["-"], "judgements or pairs: files, globs, hf:NAME, or -; repeatable")
    model: str = flag(help="policy whose body the reward model starts from")
    centring: float = flag(0.01, "weight of (r_c + r_r)^2, which keeps rewards around zero", low=0.0)
    margin: bool = flag(False, "use each pair's margin (score_chosen - score_rejected where none is given)")
    valid: float = flag(0.1, "share of the prompts held out for the accuracy", low=0.0, high=0.9)
    max_length: int = flag(4096, "drop (and count) pairs with a side of more tokens; nothing is cut", low=8)
    optim: Optim = group(Optim)


def run(config: Config) -> None:
    """Train, measure and save."""
    plan_ = manifest.plan("train-rm", config, [*config.data, config.model])
    if manifest.skip_if_current(config.out, plan_, config.force):
        return
    pairs_, ties = _read(config)
    from xwincli import models, scoring
    from xwincli.train import folder, loop, pairs
    from xwincli.train.plan import plan

    run_folder = folder.Folder(config.out, plan_, config, force=config.force)
    loaded = models.new_reward(config.model, models.place(config.device), config.seed)
    pairs_, branches = _tokenise(pairs_, loaded, config)
    held = [_held_out(p.prompt_id, config.valid) for p in pairs_]
    learn = [i for i, out in enumerate(held) if not out]
    if not learn:
        raise XwinError("no pair is left to train on", "see --max-length and --valid")
    named = models.adapt(loaded, config.adapt)
    scoring.prepare(loaded)
    optim, capacity = config.optim, config.optim.max_tokens_per_row
    lengths = [len(branches[i]) for i in learn]
    steps = plan(lengths, batch=optim.batch, capacity=capacity, epochs=optim.epochs, seed=config.seed)
    margins = [_margin(pairs_[i]) if config.margin else 0.0 for i in learn]
    objective = pairs.reward_objective(loaded, [branches[i] for i in learn], margins, config.centring)
    head = [(n, p) for n, p in named if "score" in n]
    body = [(n, p) for n, p in named if "score" not in n]
    opt = loop.optimizer([(body, optim.lr), (head, optim.head_lr or optim.lr)], optim)
    say(f"{len(learn)} pairs to learn, {len(held) - len(learn)} held out, {ties} ties left out, {len(steps)} steps")
    loop.fit("train-rm", named, opt, steps, [1] * len(learn), lengths, objective, optim, run_folder, loaded.place)
    valid = [i for i, out in enumerate(held) if out]
    run_folder.metrics = _measure(loaded, [pairs_[i] for i in valid], capacity)
    run_folder.counts = {"pairs": len(learn), "held_out": len(valid), "ties": ties, "steps": len(steps)}
    probe = pairs_[:4]
    ours = scoring.rewards(loaded, _items(probe), capacity)
    run_folder.finish(loaded, keep_adapter=config.adapt.keep_adapter)
    if not config.adapt.keep_adapter:
        _check_plain(config.out, loaded, probe, ours)


def _read(config: Config) -> tuple[list[Pair], int]:
    """Pairs from judgements or pairs, and how many ties were left out."""
    pairs: list[Pair] = []
    ties = 0
    for row in formats.read_any(config.data, limit=config.limit):
        pair = row.pair() if isinstance(row, Judgement) else row
        if isinstance(pair, Pair) and pair.chosen[-1]["content"] != pair.rejected[-1]["content"]:
            pairs.append(pair)
        elif isinstance(row, Judgement | Pair):
            ties += 1
        else:
            raise XwinError(f"{config.data[0]}: train-rm takes judgements or pairs, this is a {row.kind} line")
    if not pairs:
        raise XwinError(f"{', '.join(config.data)}: no preference in {ties} rows: every one is a tie")
    return pairs, ties


def _held_out(prompt_id: str, share: float) -> bool:
    """Split by prompt, by a hash of its id: the same prompt is held out in every run."""
    return int(content_id("valid", prompt_id), 16) / 16**16 < share


def _margin(pair: Pair) -> float:
    if pair.margin is not None:
        return pair.margin
    if pair.score_chosen is None or pair.score_rejected is None:
        raise XwinError(f"pair {pair.id}: --margin needs a margin or two scores")
    return pair.score_chosen - pair.score_rejected


def _tokenise(rows: list[Pair], loaded: Loaded, config: Config) -> tuple[list[Pair], list[Branch]]:
    from xwincli.train.pairs import as_branch

    branches = [as_branch(loaded, row, tail=True) for row in rows]
    fits = [len(b.prompt) + max(map(len, b.responses)) <= config.max_length for b in branches]
    if not all(fits):
        warn(f"{fits.count(False)} pairs have a side of more than {config.max_length} tokens and are left out")
    return [r for r, ok in zip(rows, fits) if ok], [b for b, ok in zip(branches, fits) if ok]


def _items(rows: list[Pair]) -> list[tuple[list[Message], list[tuple[str, bool]]]]:
    """Pairs as ``scoring.rewards`` takes them: a prompt with its two answers."""
    return [
        (
            [*row.prompt, *row.chosen[:-1]],
            [(str(m["content"]), m.get("finish") != "length") for m in (row.chosen[-1], row.rejected[-1])],
        )
        for row in rows
    ]


def _measure(loaded: Loaded, rows: list[Pair], capacity: int) -> dict[str, float]:
    """Accuracy on held-out prompts, beside that of a ruler that prefers the longer answer."""
    if not rows:
        return {}
    from xwincli import scoring

    scores = scoring.rewards(loaded, _items(rows), capacity)
    right = sum(c > r for c, r in scores)
    longer = sum(
        0.5 if (d := len(row.chosen[-1]["content"]) - len(row.rejected[-1]["content"])) == 0 else d > 0 for row in rows
    )
    found = {"valid_accuracy": right / len(rows), "longer_is_better": longer / len(rows)}
    ruler = f"the longer answer: {found['longer_is_better']:.3f}"
    say(f"held-out accuracy {found['valid_accuracy']:.3f} on {len(rows)} pairs ({ruler})")
    return found


def _check_plain(out: str, loaded: Loaded, rows: list[Pair], ours: list[list[float]]) -> None:
    """The saved folder, opened by transformers alone, must score as we do."""
    import torch
    from transformers import AutoModelForSequenceClassification

    plain = AutoModelForSequenceClassification.from_pretrained(out, dtype=loaded.model.dtype).eval()
    worst = 0.0
    for row, scores in zip(rows, ours):
        for side, score in zip((row.chosen, row.rejected), scores):
            ended = side[-1].get("finish") != "length"
            prompt, answer = loaded.template.response_ids(
                [*row.prompt, *side[:-1]], side[-1]["content"], ended, tail=True
            )
            with torch.no_grad(), loaded.place.autocast():
                there = plain(torch.tensor([prompt + answer])).logits.item()
            worst = max(worst, abs(there - score))
    tolerance = 1e-3 if loaded.place.dtype == torch.float32 else 0.2
    if worst > tolerance:
        raise XwinError(f"{out}: plain transformers scores differ by {worst:.3g}", "please report this model family")
    say(f"opened with plain transformers: scores agree within {worst:.1e}")
