"""What PPO does with one iteration's rollouts: read them with the models, find advantages, update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from xwincli.models import Loaded
from xwincli.rows import Row
from xwincli.scoring import Item, token_logprobs
from xwincli.states import hidden
from xwincli.train import loop
from xwincli.train import ppo_math as maths
from xwincli.train.ppo_options import Optim, Options
from xwincli.train.ppo_rollouts import Batch, Rollouts, Update, first_epoch

Forward = tuple[torch.Tensor, torch.Tensor | None]  # log-probabilities and, with a critic, values (M,)


@dataclass
class Steering:
    """What one iteration hands to the next besides weights; ``negative`` counts towards a warning."""

    beta: float
    shift: float | None = None
    negative: int = 0


@dataclass
class Run:
    """The models of a run, whom it asks, and how it learns. Dropout is off in all models.

    Attributes:
        policy, reference: causal language models; the reference never changes.
        critic: a reward model by shape, or None for group baselines.
        draw: (numbers of prompts, seed) -> rollouts of the policy as it is now.
        score: the reward model on texts, one list of scores an item.
        parameters: every weight that learns, by name.
        opt: their optimiser.
        options, optim: what PPO optimises, and how.
        seed: every iteration makes its own of it.
        values_shifted: the critic began as the run's reward model, so its values get the shift the scores
            get: it starts where its returns are.
    """

    policy: Loaded
    reference: Loaded
    critic: Loaded | None
    draw: Callable[[list[int], int], Rollouts]
    score: Callable[[Sequence[Item]], list[list[float]]]
    parameters: loop.Parameters
    opt: torch.optim.AdamW
    options: Options
    optim: Optim
    seed: int = 0
    values_shifted: bool = True
    steering: Steering = field(init=False)

    def __post_init__(self) -> None:
        shift = None if self.options.score_shift == "auto" else float(self.options.score_shift)
        self.steering = Steering(self.options.kl, shift)

    @property
    def value_shift(self) -> float:
        """What is added to the critic's values."""
        return self.steering.shift or 0.0 if self.values_shifted else 0.0


# -- what the models say


@dataclass
class Reading:
    """What the models say about an iteration's tokens (N,), rollout after rollout; ``values`` with a critic.

    ``kept`` is a forward with its graph, where the only update can learn from it directly.
    """

    old: torch.Tensor
    ref: torch.Tensor
    values: torch.Tensor | None
    kept: Forward | None = None


def row_logprobs(loaded: Loaded, row: Row, temperature: float) -> torch.Tensor:
    """Log-probability (M,) of a row's targets at the sampling temperature."""
    with loaded.place.autocast():
        return token_logprobs(loaded, row, hidden(loaded, row), temperature)


def row_values(critic: Loaded, row: Row, shift: float) -> torch.Tensor:
    """The critic's value (M,) before each target: its score head on the state that predicts the target."""
    with critic.place.autocast():
        states = hidden(critic, row)[row.predict]
        return torch.add(critic.model.score(states).float()[:, 0], shift)


def _forward(run: Run, batch: Batch) -> Forward:
    row = batch.row.to(run.policy.place.device)
    logprobs = row_logprobs(run.policy, row, run.options.temperature)
    return logprobs, row_values(run.critic, row, run.value_shift) if run.critic else None


def read(run: Run, updates: list[Update]) -> Reading:
    """Log-probabilities under policy and reference, and values, before the first update.

    They come from the trainer's own forward on the very rows of the first epoch, so the first ratio is
    exactly 1. Where one row is all there is to learn from, its graph is kept and no forward is done twice.
    """
    rows = list(first_epoch(updates, run.optim.epochs))
    count = sum(len(b.tokens) for b in rows)
    found = Reading(torch.zeros(count), torch.zeros(count), torch.zeros(count) if run.critic else None)
    keep = len(updates) == len(rows) == 1
    for batch in rows:
        with torch.set_grad_enabled(keep):
            logprobs, values = now = _forward(run, batch)
        with torch.no_grad():
            row = batch.row.to(run.reference.place.device)
            found.ref[batch.tokens] = row_logprobs(run.reference, row, run.options.temperature).cpu()
        found.old[batch.tokens] = logprobs.detach().cpu()
        if found.values is not None and values is not None:
            found.values[batch.tokens] = values.detach().cpu()
        found.kept = now if keep else None
    return found


# -- what is to be learned


@dataclass
class Lesson:
    """What the updates learn from, per token (N,); ``returns`` with a critic."""

    reading: Reading
    advantages: torch.Tensor
    returns: torch.Tensor | None


def shifted(raw: torch.Tensor, ended: torch.Tensor, options: Options, steering: Steering) -> torch.Tensor:
    """Scores (R,) from the reward model's: shifted, and less where a rollout did not end by itself.

    The automatic shift is found on the first iteration's rollouts and then kept.
    """
    if steering.shift is None:
        steering.shift = -float(raw.mean())
    return raw + steering.shift - options.no_end_penalty * (~ended).double()


def lesson(reading: Reading, scores: torch.Tensor, lengths: list[int], options: Options, beta: float) -> Lesson:
    """Advantages and returns.

    With a critic: rewards per token (-beta * k1, the score at the end), whitened on request, generalised
    advantage estimation, advantages whitened over the iteration's tokens; returns are taken before that.

    With group baselines (no critic): a rollout's reward is its score minus beta times its sequence KL, the
    sum of its tokens' k1; its advantage, that reward minus the mean of its prompt's rollouts, stands at
    every one of its tokens (REINFORCE with the rollout as one action, arXiv 2402.14740); not whitened.

    Args:
        reading: from ``read``.
        scores: (R,) shifted, penalties taken off.
        lengths: tokens of each rollout (R).
        options: what PPO optimises.
        beta: the KL coefficient.
    """
    mask = maths.real(lengths)
    log_ratio = maths.pad(reading.old - reading.ref, mask)
    if reading.values is None:
        totals = scores - beta * log_ratio.double().sum(1)
        each = maths.group_advantages(totals, options.n, by_std=options.group_std)
        return Lesson(reading, each.float()[:, None].expand(mask.shape)[mask], None)
    rewards = maths.token_rewards(log_ratio, scores, mask, beta)
    if options.whiten_rewards:
        rewards = maths.whiten(rewards, mask, shift_mean=False)
    advantages, returns = maths.gae(rewards, maths.pad(reading.values, mask), options.gamma, options.lam)
    return Lesson(reading, maths.whiten(advantages, mask)[mask], returns[mask])


# -- learning


def learn(run: Run, updates: list[Update], lesson: Lesson, shares: Sequence[float], where: str) -> dict[str, float]:
    """Take every update of an iteration; returns the losses' figures, averaged over the updates.

    ``first_drift`` is the largest |log ratio| in the first update: 0 unless forwards disagree.

    Args:
        run: whose policy and critic learn.
        updates: from ``batches``.
        lesson: of the same name.
        shares: each update's share of the peak learning rate.
        where: the iteration, for messages.
    """
    found: dict[str, float] = {}
    drift = 0.0
    for number, (update, share) in enumerate(zip(updates, shares, strict=True)):
        count = sum(len(b.tokens) for b in update)
        for batch in update:
            kept, lesson.reading.kept = lesson.reading.kept, None
            forward = kept or _forward(run, batch)
            if number == 0:
                old = lesson.reading.old[batch.tokens]
                drift = max(drift, float((forward[0].detach().cpu() - old).abs().max()))
            for key, value in backward(run.options, batch, forward, lesson, count).items():
                found[key] = found.get(key, 0.0) + value / len(updates)
        norm = loop.update(run.opt, run.optim, share, f"{where}, update {number + 1}")
        found["grad_norm"] = found.get("grad_norm", 0.0) + norm / len(updates)
    return {**found, "first_drift": drift}


def backward(options: Options, batch: Batch, forward: Forward, lesson: Lesson, count: int) -> dict[str, float]:
    """Add one row's gradients to its update's; all is divided by the update's ``count`` of tokens.

    Returns the row's part of the losses and of the shares the clips decided.
    """
    (new, values), reading = forward, lesson.reading

    def pick(flat: torch.Tensor) -> torch.Tensor:
        return flat[batch.tokens].to(new.device)

    policy = maths.policy_loss(new, pick(reading.old), pick(lesson.advantages), options.ratio_clip)
    (policy.total / count).backward()
    moved = (new - pick(reading.old)).detach()
    sums = {
        "pg_loss": policy.total.item(),
        "clip_fraction": policy.clipped,
        "approx_kl": 0.5 * float((moved**2).sum()),
    }
    if values is not None and reading.values is not None and lesson.returns is not None:
        value = maths.value_loss(values, pick(reading.values), pick(lesson.returns), options.value_clip)
        (options.vf_coef * value.total / count).backward()
        sums |= {"value_loss": value.total.item(), "value_clip_fraction": value.clipped}
    return {key: total / count for key, total in sums.items()}
