"""The one training loop: forward, backward, divide once, step; with checkpoints and metrics."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from xwincli.console import progress
from xwincli.errors import XwinError
from xwincli.models import Place
from xwincli.settings import Optim
from xwincli.train.folder import Folder
from xwincli.train.plan import plan

SAVE_EVERY = 120.0  # seconds of work a kill may cost

Objective = Callable[[list[int]], tuple[torch.Tensor, dict[str, float]]]
Parameters = Sequence[tuple[str, torch.nn.Parameter]]


@contextmanager
def between_steps() -> Iterator[Callable[[], bool]]:
    """Hold a first Ctrl-C or SIGTERM until the step is over; yields a function that tells if one came.

    A second one stops at once.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

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
    """AdamW over groups of parameters, each with its own peak learning rate."""
    return torch.optim.AdamW(
        [{"params": [p for _, p in named], "lr": lr, "peak": lr} for named, lr in groups],
        betas=(0.9, 0.999),
        eps=eps,
        weight_decay=config.weight_decay,
    )


def update(opt: torch.optim.Optimizer, config: Optim, share: float, what: str) -> float:
    """Clip, check and take one step at ``share`` of the peak learning rate; returns the gradient's norm.

    A non-finite gradient stops the run before it can reach the weights; ``what`` tells where.
    """
    parameters = [p for g in opt.param_groups for p in g["params"] if p.grad is not None]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.clip or math.inf))
    if not math.isfinite(norm):
        raise XwinError(f"{what}: the gradient is {norm}, so the step was not taken", "lower --lr, or look at its rows")
    for g in opt.param_groups:
        g["lr"] = g["peak"] * share
    opt.step()
    opt.zero_grad(set_to_none=True)
    return norm


@dataclass(kw_only=True)
class Work:
    """What a training run does, over items numbered 0, 1, …

    Attributes:
        name: the stage, for the progress line.
        weights: what learns: named parameters, each list with its peak learning rate.
        objective: one row of items -> (loss summed over its units, further sums to report).
        lengths: tokens of each item.
        units: what each item counts in the loss's denominator (learned tokens, or 1 a pair or prompt).
        watch: called after a step with its number (1-based) and figures; returns further figures to log.
    """

    name: str
    weights: list[tuple[Parameters, float]]
    objective: Objective
    lengths: Sequence[int]
    units: Sequence[int]
    watch: Callable[[int, dict[str, float]], dict[str, float]] | None = None


def fit(work: Work, config: Optim, seed: int, folder: Folder, place: Place) -> int:
    """Plan the steps, run them all, with metrics and checkpoints in ``folder``; returns how many there were."""
    lengths, units = work.lengths, work.units
    steps = plan(lengths, batch=config.batch, capacity=config.max_tokens_per_row, epochs=config.epochs, seed=seed)
    parameters = [named for some, _ in work.weights for named in some]
    opt = optimizer(work.weights, config)
    start = _restore(folder, parameters, opt)
    saved = time.monotonic()
    with progress(work.name, len(steps), "steps", start) as bar, between_steps() as stopped:
        for step in range(start, len(steps)):
            begun = time.monotonic()
            members = [i for row in steps[step] for i in row]
            means = _accumulate(steps[step], work.objective, sum(units[i] for i in members), place)
            share = learning_rate(config, step, len(steps))
            norm = update(opt, config, share, f"step {step + 1}")
            seconds = time.monotonic() - begun
            tokens = sum(lengths[i] for i in members)
            figures = {**means, "lr": config.lr * share, "grad_norm": norm, "tokens": tokens, "seconds": seconds}
            if work.watch:
                figures |= work.watch(step + 1, figures)
            folder.log({"step": step + 1, **figures})
            bar.advance(note=f"loss {means['loss']:.4f} · {tokens / seconds:.0f} tok/s")
            if stopped() or (time.monotonic() - saved > SAVE_EVERY and step + 1 < len(steps)):
                folder.save_state(step + 1, _state(parameters, opt))
                saved = time.monotonic()
            if stopped():
                raise KeyboardInterrupt
    return len(steps)


def _accumulate(rows: list[list[int]], objective: Objective, count: int, place: Place) -> dict[str, float]:
    """Gradients of all rows of a step, divided once by its count; returns the loss and reports as means."""
    sums: dict[str, float] = {}
    for row in rows:
        with place.autocast():
            loss, more = objective(row)
        (loss / count).backward()
        for key, value in {"loss": loss.item(), **more}.items():
            sums[key] = sums.get(key, 0.0) + value
    return {k: v / count for k, v in sums.items()}


def _state(parameters: Parameters, opt: torch.optim.AdamW) -> dict[str, Any]:
    return {"weights": {n: p.detach() for n, p in parameters}, "optimizer": opt.state_dict()}


def _restore(folder: Folder, parameters: Parameters, opt: torch.optim.AdamW) -> int:
    state = folder.load_state()
    if state is None:
        return 0
    with torch.no_grad():
        for n, p in parameters:
            p.copy_(state["weights"][n])
    opt.load_state_dict(state["optimizer"])
    return int(state["step"])
