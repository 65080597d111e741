"""Proximal policy optimisation, iteration by iteration: sample, score, learn, checkpoint.

What it leaves out: no value head on the policy (the critic is a model of its own), no early stop by KL, no
scaling of the scores. ``ppo_math`` holds the formulas and their sources.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from xwincli.console import progress, warn
from xwincli.train import checkpoints, loop
from xwincli.train import ppo_math as maths
from xwincli.train.folder import Folder, read_state
from xwincli.train.ppo_learn import Lesson, Run, Steering, learn, lesson, read, shifted
from xwincli.train.ppo_rollouts import Rollouts, batches

PATIENCE = 3  # iterations of a negative KL before it is worth a warning


def order(count: int, per_iteration: int, iterations: int, seed: int) -> list[list[int]]:
    """Which prompts each iteration takes: pass after pass over all of them, each pass shuffled anew."""
    line: list[int] = []
    turn = 0
    while len(line) < per_iteration * iterations:
        numbers = list(range(count))
        random.Random(f"{seed}/{turn}").shuffle(numbers)
        line += numbers
        turn += 1
    return [line[i * per_iteration : (i + 1) * per_iteration] for i in range(iterations)]


def train(run: Run, turns: list[list[int]], folder: Folder) -> dict[str, Any]:
    """Run every iteration of ``turns`` (from ``order``); returns the last one's figures.

    Each finished iteration is a checkpoint, and draws its randomness from the seed and its own number: a run
    may be stopped at any moment, loses at most the iteration it is in, and goes on with the same result.
    """
    start, figures = _restore(run, folder)
    learning = [p for _, p in run.parameters]
    checkpoints.check_room(folder.out, run.policy.model.parameters(), learning)
    with progress("ppo", len(turns), "iterations", start) as bar:
        for i in range(start, len(turns)):
            figures = {"step": i + 1, **_iteration(run, turns, i, lambda phase: bar.advance(0, note=phase))}
            folder.log(figures)
            _save(run, folder, figures)
            note = f"reward {figures['reward']:.3f} · KL {figures['kl']:.2f} · {figures['ended']:.0%} ended"
            bar.advance(note=f"{note} · {figures['length']:.0f} tokens")
    return figures


def _save(run: Run, folder: Folder, figures: dict[str, Any]) -> None:
    weights = {name: p.detach() for name, p in run.parameters}
    state = {"weights": weights, "optimizer": run.opt.state_dict(), "steering": asdict(run.steering)}
    streams = checkpoints.random_state()
    size = checkpoints.state_bytes(weights.values())
    folder.save_state(int(figures["step"]), {**state, "figures": figures, "random": [streams]}, size)


def _restore(run: Run, folder: Folder) -> tuple[int, dict[str, Any]]:
    if (found := folder.newest()) is None:
        return 0, {}
    state = read_state(found)
    with torch.no_grad():
        for name, p in run.parameters:
            p.copy_(state["weights"][name])
    run.opt.load_state_dict(state["optimizer"])
    run.steering = Steering(**state["steering"])
    checkpoints.set_random_state(state["random"][0])
    return int(state["step"]), dict(state["figures"])


def _iteration(run: Run, turns: list[list[int]], i: int, show: Callable[[str], None]) -> dict[str, float]:
    """Sample, score, learn; returns the figures to log."""
    show("sampling")
    clock, seed = [time.monotonic()], run.seed * 1_000_003 + i
    rollouts = run.draw(turns[i], seed)
    clock.append(time.monotonic())
    show("scoring")
    raw = torch.tensor([s for scores in run.score(rollouts.items) for s in scores], dtype=torch.float64)
    scores = shifted(raw, rollouts.ended(), run.options, run.steering)
    clock.append(time.monotonic())
    show("learning")
    updates = batches(rollouts, run.optim, seed)
    learned = lesson(read(run, updates), scores, rollouts.lengths(), run.options, run.steering.beta)
    figures = {"reward": float(raw.mean()), "score": float(scores.mean()), **_describe(rollouts, learned)}
    figures["beta"] = run.steering.beta
    total = len(turns) * len(updates)
    shares = [loop.learning_rate(run.optim, i * len(updates) + k, total) for k in range(len(updates))]
    figures |= learn(run, updates, learned, shares, f"iteration {i + 1}")
    _steer(run, figures, len(raw))
    clock.append(time.monotonic())
    names = ("seconds_sampling", "seconds_scoring", "seconds_training")
    seconds = {name: end - begun for name, begun, end in zip(names, clock, clock[1:])}
    return {**figures, "lr": run.optim.lr * shares[-1], **seconds}


def _describe(rollouts: Rollouts, learned: Lesson) -> dict[str, float]:
    """Distance to the reference, spread and shape of the rollouts.

    The entropy per token is estimated by the mean -log pi of the sampled tokens.
    """
    reading, lengths = learned.reading, rollouts.lengths()
    mask = maths.real(lengths)
    log_ratio = maths.pad(reading.old - reading.ref, mask)
    figures = {
        **maths.kl_estimates(log_ratio, mask),
        "kl_error": float(log_ratio.double().sum(1).std(correction=0)) / len(lengths) ** 0.5,
        "entropy": -float(reading.old.double().mean()),
        "ended": float(rollouts.ended().double().mean()),
        "length": sum(lengths) / len(lengths),
    }
    if reading.values is not None and learned.returns is not None:
        figures["explained_variance"] = maths.explained_variance(reading.values, learned.returns)
    return figures


def _steer(run: Run, figures: dict[str, float], rollouts: int) -> None:
    """Adapt beta on request; warn once when the KL stays below zero by more than chance allows."""
    options, steering = run.options, run.steering
    if options.adaptive_kl:
        target, horizon = options.kl_target, options.kl_horizon
        steering.beta = maths.adapted(steering.beta, figures["kl"], target, rollouts, horizon)
    if steering.negative < PATIENCE:
        below = figures["kl"] < -2 * figures["kl_error"]
        steering.negative = steering.negative + 1 if below else 0
        if steering.negative == PATIENCE:
            warn(
                f"the KL to the reference was negative {PATIENCE} iterations in a row ({figures['kl']:.3g}): "
                "rollouts and log-probabilities do not belong together"
            )
