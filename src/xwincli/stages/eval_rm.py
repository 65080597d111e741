"""Evaluate a reward model: RewardBench 1 and 2, any file of pairs, or its picks among samples with known answers.

    xwin eval rm --rm rm --data reward-bench.jsonl --out eval
    xwin eval rm --data scored.jsonl --scores rm --out eval

Which it is, the data say. Pairs give the accuracy, by subset too where rows have a `subset`; where all subsets are
RewardBench's, its sections and its score (the mean of four sections; with prior sets at half weight besides). Lists of
answers (`chosen`, `rejected` and `subset`) are RewardBench 2's, Ties included. Groups with a `reference`, and
Qwen2.5-Math's samples, give rm@k, maj@k and pass@k over the first k samples. Equal scores are wrong in a pair, and
share the credit in a list. Every figure has a 95 % bootstrap interval over prompts.

Scores are the reward model's, or given: `scores_chosen` and `scores_rejected` of a pair, `scores` with `num_correct` of
a list (right answers first), a group's `scores.NAME`. Items beyond the model's context are left out: the exit code is
then 3. `--out` gets `eval.json` and `results.jsonl`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xwincli import manifest, settings
from xwincli.console import say, table, warn
from xwincli.errors import XwinError
from xwincli.records import Group, Pair
from xwincli.settings import flag, group

if TYPE_CHECKING:
    from xwincli.manifest import Manifest
    from xwincli.protocols.answered import Sampled
    from xwincli.protocols.reward_bench import Item


@dataclass(kw_only=True)
class Config:
    """Options of ``xwin eval rm``."""

    data: list[str] = flag(["-"], "pairs, RewardBench's rows or groups: files, globs, hf:NAME, or -; repeatable")
    rm: str = flag("", "reward model folder or hub name; left out, the rows carry scores")
    scores: str = flag("", "groups: which of their scores to pick by, without --rm")
    out: str = flag(help="folder for eval.json and results.jsonl")
    rounds: int = flag(2000, "bootstrap resamples", low=100)
    seed: int = flag(0, "of the bootstrap")
    max_tokens_per_row: int = flag(4096, "tokens per forward: bounds memory, never the result", execution=True, low=8)
    force: bool = flag(False, "make it anew even if it is up to date", execution=True)
    chat: settings.Chat = group(settings.Chat)
    device: settings.Device = group(settings.Device)


def run(config: Config) -> None:
    """Read, score, count, write; the manifest comes last."""
    from xwincli.protocols import answered, evaluation, reward_bench

    started = time.time()
    plan = evaluation.begin("eval rm", config, [*config.data, *([config.rm] if config.rm else [])])
    if plan is None:
        return
    rows = list(evaluation.rows(config.data))
    protocol: Any = answered if answered.is_sampled(rows[0][1]) else reward_bench
    found = _samples(rows, config) if protocol is answered else _items(rows)
    total = len(found)
    left_out: list[str] = []
    machine: dict[str, Any] = {}
    if config.rm:
        found, left_out, machine = _scored(found, config, plan)
    elif lost := next((item for item in found if not item.scores), None):
        raise XwinError(f"{lost.where}: has no scores", "--rm names the reward model to score with")
    figures = protocol.figures(found, config.rounds, config.seed)
    facts = {**figures, "rm": config.rm or None, "left_out": left_out, "rounds": config.rounds, "seed": config.seed}
    say(_summary(facts))
    figure = facts["rm_at_k"][-1] if protocol is answered else facts.get("score") or facts.get("accuracy")
    evaluation.finish(
        plan,
        config,
        facts,
        protocol.result_rows(found),
        started=started,
        counts={"total": total, "missing": len(left_out)},
        metrics={facts["protocol"]: figure["value"] if figure else None},
        machine=machine,
    )


def _items(rows: Sequence[tuple[str, Any]]) -> list[Item]:
    from xwincli.protocols import evaluation, reward_bench

    made = evaluation.records(rows, Pair, reward_bench.own_row)
    items = [reward_bench.of_pair(row, where) if isinstance(row, Pair) else row for where, row in made]
    reward_bench.protocol(items)  # what does not belong together is refused before a model is loaded
    return items


def _samples(rows: Sequence[tuple[str, Any]], config: Config) -> list[Sampled]:
    from xwincli.protocols import answered, evaluation

    scores = "" if config.rm else config.scores or "rm"
    made = evaluation.records(rows, Group, answered.own_row)
    return [answered.of_group(row, where, scores) if isinstance(row, Group) else row for where, row in made]


def _scored(found: list[Any], config: Config, plan: Manifest) -> tuple[list[Any], list[str], dict[str, Any]]:
    """The items that fit the model, with its scores; the ids of those that do not; where it computes."""
    if bare := next((item for item in found if not (item.prompt and item.sides)), None):
        raise XwinError(f"{bare.where}: has scores but no texts", "leave out --rm to evaluate the scores given")
    from xwincli import models, scoring

    loaded = models.load_reward(config.rm, models.place(config.device))
    loaded.template = loaded.template.given(config.chat.template_arg)
    manifest.note_template(plan, loaded.template.facts(), config.rm)
    kept, branches, left_out, reason = [], [], [], ""
    for item in found:
        try:
            branches.append(scoring.branch(loaded, (item.prompt, item.sides), tail=True))
            kept.append(item)
        except XwinError as e:
            left_out.append(item.id)
            reason = reason or f"{item.where}: {e.message}"
    if not kept:
        raise XwinError(f"nothing is left to evaluate: {reason}")
    if reason:
        warn(f"{len(left_out)} of {len(found)} are left out: {reason}")
    for item, scores in zip(kept, scoring.branch_rewards(loaded, branches, config.max_tokens_per_row), strict=True):
        item.scores = [round(s, 6) for s in scores]
    return kept, left_out, loaded.place.facts()


def _summary(facts: dict[str, Any]) -> str:
    """The figures as a table."""
    from xwincli.protocols.evaluation import bounds

    rows = []
    for name in ("score", "score_with_prior_sets", "accuracy", "mean"):
        if facts.get(name):
            rows.append([name.replace("_", " "), *bounds(facts[name])])
    for name, short in (("rm_at_k", "rm@"), ("maj_at_k", "maj@"), ("pass_at_k", "pass@")):
        rows += [[f"{short}{point['k']}", *bounds(point)] for point in facts.get(name, [])]
    rows += [[name, *bounds(f)] for name, f in facts.get("sections", {}).items()]
    rows += [[f"  {name or 'no subset'} ({f['n']})", *bounds(f)] for name, f in facts.get("subsets", {}).items()]
    count = f"{facts['items']} items" if "items" in facts else f"{facts['prompts']} prompts"
    told = table([f"{facts['protocol']}: {count}", "value", "95 %"], rows)
    if missing := facts.get("missing_subsets"):
        told += f"\nno score: {len(missing)} subsets are missing: {', '.join(missing)}"
    return told
