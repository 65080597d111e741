"""What a run of PPO will need, told before any weight is loaded: its models, sampling and learning, on which cards.

How long rollouts are is known only when they are drawn: here each is as long as ``--max-tokens`` allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from xwincli import settings, weights
from xwincli.console import clock, say, table
from xwincli.models import Loaded
from xwincli.rows import Branch, pack
from xwincli.scoring import split
from xwincli.train import estimate
from xwincli.train.estimate import CARDS, GB, REACHED, SPARE, gb
from xwincli.train.ppo_options import Optim, Options
from xwincli.train.ppo_rehearsal import Drawing, rehearse_drawing
from xwincli.train.rehearsal import Need, rehearse

BANDWIDTH = {24: 1008e9, 48: 864e9, 80: 2039e9}  # bytes a second of the cards' memory (NVIDIA's data sheets)


@dataclass(frozen=True)
class Models:
    """Sketches of a run's models; ``reference`` is the policy's where none is named."""

    policy: Loaded
    reference: Loaded
    reward: Loaded
    critic: Loaded | None


@dataclass(frozen=True)
class Iteration:
    """An iteration with the longest prompts, as it will be sampled and learned.

    Attributes:
        prompts: tokens of each.
        row: the fullest packed row.
        rows: how many rows there are.
        updates: optimizer steps.
        read: tokens of all rows.
        drawn: tokens of all rollouts.
    """

    prompts: list[int]
    row: list[Branch]
    rows: int
    updates: int
    read: int
    drawn: int


def iteration(prompts: Sequence[int], options: Options, optim: Optim) -> Iteration:
    """``prompts``: tokens of every prompt of the run."""
    chosen = sorted(prompts, reverse=True)[: options.prompts]
    chosen = (chosen * options.prompts)[: options.prompts]  # fewer prompts come again
    size = min(optim.batch or len(chosen), len(chosen))
    branches = [Branch([0] * n, [[0] * options.max_tokens] * options.n) for n in chosen]
    parts, owner = split(branches, optim.max_tokens_per_row)
    rows: list[list[Branch]] = []
    for at in range(0, len(chosen), size):
        mine = [part for part, i in zip(parts, owner, strict=True) if at <= i < at + size]
        rows += [[mine[i] for i in row] for row in pack([len(b) for b in mine], optim.max_tokens_per_row)]
    fullest = max(rows, key=lambda row: sum(map(len, row)))
    updates = -(-len(chosen) // size) * optim.epochs
    drawn = len(chosen) * options.n * options.max_tokens
    return Iteration(chosen, estimate.alike(fullest), len(rows), updates, sum(map(len, parts)), drawn)


@dataclass(frozen=True)
class Needs:
    """What each part of an iteration takes; ``critic`` is None without one."""

    policy: Need
    critic: Need | None
    reads: list[Need]  # policy, critic: forwards before the first update
    reference: Need
    reward: Need
    drawing: Drawing

    @property
    def held(self) -> dict[str, float]:
        """Bytes of every model's weights."""
        found = {
            "policy": float(self.policy.weights),
            "copies": self.drawing.copies,
            "reference": float(self.reference.weights),
            "reward": float(self.reward.weights),
        }
        return found | ({"critic": float(self.critic.weights)} if self.critic else {})

    @property
    def learned(self) -> Need:
        """Policy and critic as one: the row's forward through both, then backward through the one and the other."""
        p, c = self.policy, self.critic
        if c is None:
            return replace(p, weights=int(sum(self.held.values())))
        return Need(
            weights=int(sum(self.held.values())),
            trained=p.trained + c.trained,
            largest=max(p.largest, c.largest),
            small=p.small + c.small,
            row=max(p.forward, p.kept + c.forward, p.backward + c.kept, c.backward),
            flops=p.flops + c.flops,
            tokens=p.tokens,
            kept=p.kept + c.kept,
        )

    def memory(self, optimizer: str, cuda: bool) -> tuple[estimate.Memory, float]:
        """Bytes while learning, and those of the fullest moment of all: while sampling or scoring there are no
        gradients.
        """
        learning = estimate.memory(self.learned, optimizer, cuda=cuda)
        waiting = learning.weights + learning.optimizer
        return learning, max(learning.total, waiting + self.drawing.alive, waiting + self.reward.row)

    def work(self, it: Iteration, epochs: int) -> tuple[float, float, float]:
        """Operations of an iteration's sampling, scoring and learning (with the forwards before it)."""

        def each(need: Need) -> float:
            return need.flops / need.tokens * it.read

        sampling = self.drawing.prefill * sum(it.prompts) + self.drawing.token * it.drawn
        learning = epochs * each(self.learned) + sum(each(n) for n in (*self.reads, self.reference))
        return sampling, each(self.reward), learning


def needs(
    models: Models, adapt: settings.Adapt, it: Iteration, options: Options, rows: int, known: dict[Any, Any]
) -> Needs:
    """Rehearse all that an iteration does with its fullest row, in the precision of the policy's place.

    ``known`` holds what was rehearsed before: which weights learn changes nothing in what is only read.
    """
    place = models.policy.place
    sampling = settings.Sampling(n=options.n, temperature=options.temperature, max_tokens=options.max_tokens)

    def step(like: Loaded) -> Need:
        return rehearse(like, adapt, it.row, place.dtype)

    def read(like: Loaded, lora_r: int = 0, quantize: str = "none", held: torch.dtype = torch.float32) -> Need:
        key = (id(like.model), place.dtype, lora_r, quantize, held)
        if key not in known:
            how = settings.Adapt(lora_r=lora_r, quantize=quantize)
            known[key] = rehearse(like, how, it.row, place.dtype, learn=False, held=held)
        found: Need = known[key]
        return found

    if (key := (place.dtype, adapt.lora_r, adapt.quantize)) not in known:
        known[key] = rehearse_drawing(models.policy, adapt, it.prompts, sampling, rows)
    learners = [models.policy, *([models.critic] if models.critic else [])]
    return Needs(
        policy=step(models.policy),
        critic=step(models.critic) if models.critic else None,
        reads=[read(like, adapt.lora_r, adapt.quantize) for like in learners],
        # four bits without an adapter are no way of training: the smallest one stands for none
        reference=read(models.reference, int(adapt.quantize != "none"), adapt.quantize),
        reward=read(models.reward, held=place.dtype),
        drawing=known[key],
    )


def report(
    models: Models,
    prompts: Sequence[int],
    config: settings.Run,
    optim: Optim,
    options: Options,
    iterations: int,
    rows: int,
) -> None:
    """Print the plan of a run.

    Args:
        models: sketches.
        prompts: tokens of every prompt.
        config, optim, options: of the run.
        iterations: how many.
        rows: rollouts decoded together at most.
    """
    it = iteration(prompts, options, optim)
    say(_about(models, prompts, it, options, iterations, rows))
    say("")
    adapt, known = config.adapt, dict[Any, Any]()
    both = adapt, replace(adapt, checkpointing=not adapt.checkpointing)
    asked, other = (needs(models, a, it, options, rows, known) for a in both)
    say(_memory_table(models, asked, other, adapt, optim, it))
    say("")
    say(_time_here(models, asked, it, optim, iterations, min(rows, len(it.prompts) * options.n)))
    say("")
    say(_fit_table(models, it, optim, options, iterations, rows))


def _about(models: Models, prompts: Sequence[int], it: Iteration, options: Options, iterations: int, rows: int) -> str:
    lines = [f"policy: {estimate.shape(models.policy)}"]
    lines.append(
        "reference: " + ("the starting policy" if models.reference is models.policy else models.reference.name)
    )
    lines.append(f"reward model: {estimate.shape(models.reward)}")
    lines.append(f"critic: {estimate.shape(models.critic)}" if models.critic else "critic: none (group baselines)")
    count, tokens = len(it.prompts) * options.n, sum(map(len, it.row))
    lines += [
        f"data: {len(prompts)} prompts of {sum(prompts)} tokens; the longest has {max(prompts)} tokens",
        f"steps: {iterations} iterations of {count} rollouts ({len(it.prompts)} prompts x {options.n}), "
        f"{min(rows, count)} decoded together; {it.updates} updates an iteration, "
        f"{it.rows} packed rows an epoch, the fullest of {tokens} tokens",
        f"how long rollouts are is known only when they are drawn: each is taken as --max-tokens {options.max_tokens}, "
        "and what ends by itself needs less",
    ]
    return "\n".join(lines)


def _memory_table(
    models: Models, asked: Needs, other: Needs, adapt: settings.Adapt, optim: Optim, it: Iteration
) -> str:
    cuda = models.policy.place.device.type == "cuda"
    dtype = str(models.policy.place.dtype).removeprefix("torch.")
    held = "nf4 and float32" if adapt.quantize == "nf4" else "float32"
    names = {
        "policy": f"policy's weights ({held})",
        "copies": f"its linear layers in {dtype}, to sample with",
        "reference": f"reference's weights ({held})",
        "reward": f"reward model's weights ({dtype})",
        "critic": f"critic's weights ({held})",
    }
    both = asked, other
    lines = [[text, *(gb(n.held[key]) for n in both)] for key, text in names.items() if asked.held.get(key)]
    found = [n.memory(optim.optimizer, cuda) for n in both]
    learned = asked.learned
    lines += [
        [f"{optim.optimizer}'s state", *(gb(m.optimizer) for m, _ in found)],
        [f"learning: gradients of {learned.trained / 1e6:.1f}M that learn", *(gb(m.gradients) for m, _ in found)],
        [f"learning: a row of {learned.tokens} tokens, in {dtype}", *(gb(m.row) for m, _ in found)],
        [f"sampling: keys, values ({gb(asked.drawing.cache)}), a step", *(gb(n.drawing.alive) for n in both)],
        ["scoring: a row", *(gb(n.reward.row) for n in both)],
        ["at the fullest moment", *(gb(total) for _, total in found)],
    ]
    change = "without" if adapt.checkpointing else "with"
    return table(["GiB", "as asked", f"{change} --checkpointing"], lines)


def _time_here(models: Models, asked: Needs, it: Iteration, optim: Optim, iterations: int, live: int) -> str:
    sampling, scoring, learning = asked.work(it, optim.epochs)
    speed, narrow = estimate.probe(models.policy), estimate.probe(models.policy, tokens=live)
    seconds = [sampling / narrow, scoring / speed, learning / speed]
    total = sum(seconds) * iterations
    return (
        f"time: this machine does {speed / 1e9:.0f} G operations a second in matrix products, "
        f"{narrow / 1e9:.0f} G with {live} tokens at a time; so an iteration samples for {clock(seconds[0])}, "
        f"scores for {clock(seconds[1])} and learns for {clock(seconds[2])} at least, "
        f"all take at least {clock(total)}, and with all the rest rather {clock(2 * total)}"
    )


# -- what would fit


def _fit_table(models: Models, it: Iteration, optim: Optim, options: Options, iterations: int, rows: int) -> str:
    """As ``estimate.fit_table``; times are of all iterations."""
    place = replace(models.policy.place, dtype=torch.bfloat16)

    def short(like: Loaded) -> Loaded:
        return replace(like, place=place)

    critic = short(models.critic) if models.critic else None
    those = Models(short(models.policy), short(models.reference), short(models.reward), critic)
    live = min(rows, len(it.prompts) * options.n)
    lines, known = [], dict[Any, Any]()
    for name, adapt in estimate.ways(len(weights.layers(models.policy.model))).items():
        pair = [needs(those, replace(adapt, checkpointing=on), it, options, rows, known) for on in (False, True)]
        used = [n.memory(optim.optimizer, cuda=True)[1] / GB for n in pair]
        cells = []
        for size, _, speed in CARDS:
            fitting = next((i for i, one in enumerate(used) if one + SPARE <= size), None)
            if fitting is None:
                cells.append("no")
                continue
            seconds = iterations * _seconds(pair[fitting], it, optim, live, speed * REACHED, BANDWIDTH[size])
            cells.append(f"fits, {clock(seconds)}{'*' * fitting}")
        lines.append([name, *(f"{one:.1f}" for one in used), *cells])
    return estimate.cards(lines)


def _seconds(needed: Needs, it: Iteration, optim: Optim, live: int, speed: float, bandwidth: float) -> float:
    """Of an iteration on a card; a step of sampling reads all weights once, which may take longer than its products."""
    sampling, scoring, learning = needed.work(it, optim.epochs)
    steps = it.drawn / live
    read = needed.drawing.copies or needed.policy.weights
    return max(sampling / speed, steps * read / bandwidth) + (scoring + learning) / speed
