"""The one training loop: forward, backward, divide once, step; with checkpoints and metrics."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from xwincli.console import progress, warn
from xwincli.errors import XwinError
from xwincli.models import Place
from xwincli.settings import Cluster, Optim
from xwincli.train import checkpoints, parallel
from xwincli.train.folder import Folder
from xwincli.train.parallel import Engine
from xwincli.train.plan import Rows, Steps, plan
from xwincli.train.valid import Best, Schedule

SHOWN = 5  # items named in a message

Objective = parallel.Objective
Parameters = Sequence[tuple[str, torch.nn.Parameter]]


@contextmanager
def between_steps() -> Iterator[Callable[[], bool]]:
    """Hold a first Ctrl-C or SIGTERM until the step is over; yields a function that tells if one came.

    Another, a second later or more, stops at once; sooner it is the same one, told twice by a launcher that dies.
    """
    asked: list[float] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: Any) -> None:
        now = time.monotonic()
        if asked and now - asked[0] > 1.0:
            raise KeyboardInterrupt
        asked.append(now)

    before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def learning_rate(config: Optim, step: int, total: int) -> float:
    """The learning rate's share of its peak at ``step`` of ``total`` (0-based): warm-up, then the schedule."""
    warm = math.ceil(config.warmup * total)
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(total - warm, 1)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if config.schedule == "linear" else 1.0


def optimizer(groups: list[tuple[Parameters, float]], config: Optim, eps: float = 1e-8) -> torch.optim.AdamW:
    """AdamW over groups of parameters, each with its own peak learning rate.

    ``adamw8bit`` keeps its state in blocks of 8-bit numbers (Dettmers et al. 2022, arXiv 2110.02861); tensors under
    4096 elements, norms and biases say, stay in 32 bits.
    """
    kind: Any = partial(torch.optim.AdamW, fused=True)
    if config.optimizer == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise XwinError("--optimizer adamw8bit needs bitsandbytes", "pip install 'xwincli[qlora]'") from None
        kind = AdamW8bit
    opt: torch.optim.AdamW = kind(
        [{"params": [p for _, p in named], "lr": lr, "peak": lr} for named, lr in groups],
        betas=(0.9, 0.999),
        eps=eps,
        weight_decay=config.weight_decay,
    )
    return opt


def update(opt: torch.optim.Optimizer, config: Optim, share: float, what: str) -> float:
    """Clip, check and take one step at ``share`` of the peak learning rate; returns the gradient's norm.

    A non-finite gradient stops the run before it can reach the weights; ``what`` tells where.
    """
    norm = parallel.take(opt, config.clip, share)
    if not math.isfinite(norm):
        raise XwinError(f"{what}: the gradient is {norm}, so the step was not taken", "lower --lr, or look at its rows")
    return norm


@dataclass(kw_only=True)
class Work:
    """What a training run does, over items numbered 0, 1, …

    Attributes:
        name: the stage, for the progress line.
        weights: what learns: named parameters, each list with its peak learning rate.
        objective: one row of items -> (loss summed over its units, further sums to report).
        held: the items that are held out: measured, never learned.
        schedule: when they are measured.
        lengths: tokens of each item.
        units: what each item counts in the loss's denominator (learned tokens, or 1 a pair or prompt).
        watch: called after a step with its number (1-based) and figures; returns further figures to log. With several
            processes each calls it, with the same figures.
        ids: a name of each item, for messages; without them its number.
        model: what ``weights`` belong to (needed with ``--zero``).
        cluster: the processes.
    """

    name: str
    weights: list[tuple[Parameters, float]]
    objective: Objective
    lengths: Sequence[int]
    units: Sequence[int]
    watch: Callable[[int, dict[str, float]], dict[str, float]] | None = None
    ids: Sequence[str] = ()
    model: torch.nn.Module | None = None
    held: Sequence[int] = ()
    schedule: Schedule = Schedule()
    cluster: Cluster = field(default_factory=Cluster)

    def shown(self, members: Sequence[int]) -> str:
        """Items by name, up to five."""
        names = list(dict.fromkeys(self.ids[i] if self.ids else str(i) for i in members))
        return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def fit(work: Work, config: Optim, seed: int, folder: Folder, place: Place) -> int:
    """Plan the steps, run them all, with metrics and checkpoints in ``folder``; returns how many there were.

    Of several processes only rank 0 returns, with the trained weights; the others are done and end.
    """
    held = set(work.held)
    steps = _laid(work, [i for i in range(len(work.lengths)) if i not in held], config, seed)
    parameters = [named for some, _ in work.weights for named in some]
    opt = optimizer(work.weights, config)
    engine = parallel.engine(opt, parameters, config.clip, work.model, work.cluster, place)
    start = engine.restore(folder)
    if parallel.rank() == 0:
        whole = work.model.parameters() if work.model else [p for _, p in parameters]
        checkpoints.check_room(folder.out, whole, [p for _, p in parameters])
    clock = _Clock(folder.saving.save_every)
    best = Best(folder, parameters) if work.schedule.keep_best else None
    with progress(work.name, len(steps), "steps", start) as bar, between_steps() as stopped:
        for step in range(start, len(steps)):
            begun = time.monotonic()
            share = learning_rate(config, step, len(steps))
            means, norm = _step(work, engine, steps[step], share, f"step {step + 1}", place)
            seconds = time.monotonic() - begun
            tokens = sum(work.lengths[i] for rows in steps[step] for row in rows for i in row)
            figures = {**means, "lr": config.lr * share, "grad_norm": norm, "tokens": tokens, "seconds": seconds}
            if work.watch:
                figures |= work.watch(step + 1, figures)
            if work.held and work.schedule.due(step + 1, len(steps)):
                figures["valid_loss"] = folder.metrics["valid_loss"] = _measure(work, engine, config, place)
                if best:
                    best.see(step + 1, figures["valid_loss"])
            folder.log({"step": step + 1, **figures})
            bar.advance(note=f"loss {means['loss']:.4f} · {tokens / seconds:.0f} tok/s")
            due = clock.due() and step + 1 < len(steps)
            said = parallel.gather((stopped(), due))  # all must do the same: any may stop, rank 0 has the clock
            stop = any(flag for flag, _ in said)
            if stop or said[0][1]:
                with clock:
                    kept = engine.save(folder, step + 1)
            if stop:
                if not kept:
                    warn("this step is not saved: the same command goes on from the checkpoint before")
                parallel.part()  # a process that ends may take the others along: not before all is saved
                raise KeyboardInterrupt
    engine.finish()
    parallel.leave()
    if best:
        folder.metrics |= best.restore(len(steps))
    return len(steps)


def _laid(work: Work, items: Sequence[int], config: Optim, seed: int) -> Steps:
    """The plan over some of the items, in their own numbers."""
    lengths, capacity, world = [work.lengths[i] for i in items], config.max_tokens_per_row, parallel.world()
    steps = plan(lengths, batch=config.batch, capacity=capacity, world=world, epochs=config.epochs, seed=seed)
    return [[[[items[i] for i in row] for row in rows] for rows in ranks] for ranks in steps]


def _measure(work: Work, engine: Engine, config: Optim, place: Place) -> float:
    """The held-out items' loss, a mean over their units; all processes share the work."""
    steps = _laid(work, work.held, replace(config, epochs=1, batch=len(work.held)), 0)
    with torch.no_grad():
        sums, _ = _accumulate(work, engine, steps[0][parallel.rank()], 0, place)
    total = sum(loss for loss in parallel.gather(sums["loss"]))
    return total / max(sum(work.units[i] for i in work.held), 1)


class _Clock:
    """When a checkpoint is due: every so many seconds, but never for more than a tenth of the time."""

    def __init__(self, every: float) -> None:
        self.every, self.cost, self.saved = every, 0.0, time.monotonic()

    def due(self) -> bool:
        """Whether enough time has passed since the last."""
        return not self.every or time.monotonic() - self.saved > max(self.every, 9 * self.cost)

    def __enter__(self) -> None:
        self.begun = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.saved = time.monotonic()
        self.cost = self.saved - self.begun


def _step(
    work: Work, engine: Engine, ranks: list[Rows], share: float, what: str, place: Place
) -> tuple[dict[str, float], float]:
    """One step over all processes' rows: the loss and reports as means over its units, and the gradient's norm.

    Raises XwinError before the weights move if the loss or the gradient is not finite, with the rows to look at.
    """
    count = sum(work.units[i] for rows in ranks for row in rows for i in row)
    mine = ranks[parallel.rank()]
    sums, bad = _accumulate(work, engine, mine, count, place)
    reports = parallel.gather((sums, bad))
    total: dict[str, float] = {}
    for part, _ in reports:
        for key, value in part.items():
            total[key] = total.get(key, 0.0) + value
    means = {key: value / count for key, value in total.items()}
    bad = [i for _, some in reports for i in some]
    norm = math.nan if bad else engine.take(share)
    if not math.isfinite(norm):
        if not engine.every_row:  # each item by itself: no other process is needed for that
            mine = [[i] for row in mine for i in row]
            bad = [i for some in parallel.gather(_suspects(work, mine, place)) for i in some]
        said = f"the loss is {means['loss']}" if not math.isfinite(means["loss"]) else f"the gradient is {norm}"
        rows = work.shown(bad) if bad else work.shown([i for rows in ranks for row in rows for i in row])
        whose = "of" if bad else "among" if engine.every_row else "of none of them alone, but of all:"
        raise XwinError(
            f"{what}: {said} ({whose} {rows}), so the step was not taken", "lower --lr, or look at the rows"
        )
    return means, norm


def _accumulate(work: Work, engine: Engine, rows: Rows, count: int, place: Place) -> tuple[dict[str, float], list[int]]:
    """Add up the gradients of this process's rows, each divided by the step's count; no gradients where that is 0.

    Returns the loss and reports as sums, and the items of rows whose loss is not finite.
    """
    sums: dict[str, float] = {"loss": 0.0}
    bad: list[int] = []
    for number, row in enumerate(rows):
        if not row and not engine.every_row:
            continue
        with place.autocast():
            loss, more = engine.run(work.objective, row or [_shortest(work)])
        if not row:  # it keeps the others company and counts nothing
            loss, more = loss * 0.0, {}
        if count:
            engine.backward(loss, count, last=number + 1 == len(rows))
        value = loss.item()
        if not math.isfinite(value):
            bad += row
        for key, figure in {"loss": value, **more}.items():
            sums[key] = sums.get(key, 0.0) + figure
    return sums, bad


def _shortest(work: Work) -> int:
    return min(range(len(work.lengths)), key=work.lengths.__getitem__)


def _suspects(work: Work, rows: Rows, place: Place) -> list[int]:
    """The items of rows whose own loss or gradient is not finite; all gradients are gone afterwards."""
    parameters = [p for named, _ in work.weights for _, p in named]
    found: list[int] = []
    for row in rows:
        for p in parameters:
            p.grad = None
        with place.autocast():
            loss, _ = work.objective(row)
        loss.backward()
        if not all(bool(torch.isfinite(t).all()) for t in (loss, *(p.grad for p in parameters if p.grad is not None))):
            found += row
    return found
