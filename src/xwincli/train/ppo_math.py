"""PPO's arithmetic on plain tensors: rewards per token, advantages, both clipped losses, the KL controller.

Shapes: R rollouts, L tokens of the longest, N tokens in all. Padded figures are (R, L) and zero after a
rollout's end; the losses take flat figures (N,) and return sums, which whoever calls divides by the count
of tokens, so that packing and minibatches of rows never change a gradient.

The formulas are those of openai/lm-human-preferences (Ziegler et al. 2019, arXiv 1909.08593; Stiennon et al.
2020, arXiv 2009.01325) as TRL 1.12 writes them. One difference: TRL's trainer pays the score at the position
after the end-of-turn token, which then has a value of its own; here, as in the original, it is paid at the
last token of the rollout, and the value after it is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


def real(lengths: Sequence[int]) -> torch.Tensor:
    """Mask (R, L) of the real tokens of rollouts of these lengths."""
    return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]


def pad(flat: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Flat figures (N,), rollout after rollout, as (R, L), zero after each end; ``[mask]`` undoes it."""
    return torch.zeros(mask.shape, dtype=flat.dtype).masked_scatter_(mask, flat)


# -- rewards and distance


def token_rewards(log_ratio: torch.Tensor, scores: torch.Tensor, mask: torch.Tensor, beta: float) -> torch.Tensor:
    """Reward (R, L) of every token: -beta * k1, and the score at the last one.

    Args:
        log_ratio: k1 (R, L): log pi - log ref of the sampled token, both at the sampling temperature.
        scores: (R,) shifted reward-model scores, penalties taken off.
        mask: (R, L) real tokens.
        beta: the KL coefficient.
    """
    rewards = -beta * log_ratio * mask
    rewards[torch.arange(len(mask)), mask.sum(1) - 1] += scores.to(rewards.dtype)
    return rewards


def kl_estimates(log_ratio: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    """Three estimates of the sequence KL (nats, mean over rollouts) between policy and reference.

    With r = log ref - log pi: k1 = -r (unbiased, may be negative), k2 = r^2 / 2 (biased, low variance),
    k3 = e^r - 1 - r (unbiased, never negative). http://joschu.net/blog/kl-approx.html
    """
    r = -log_ratio.double() * mask
    return {
        "kl": float((-r).sum(1).mean()),
        "k2": float((r * r / 2).sum(1).mean()),
        "k3": float((r.expm1() - r).sum(1).mean()),
    }


def adapted(beta: float, kl: float, target: float, rollouts: int, horizon: int) -> float:
    """The next KL coefficient: e = clip(kl / target - 1, +-.2), beta * (1 + e * rollouts / horizon)."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * rollouts / horizon)


# -- advantages


def whiten(values: torch.Tensor, mask: torch.Tensor, *, shift_mean: bool = True) -> torch.Tensor:
    """Scale to unit variance (n - 1) over real tokens; their mean becomes 0, or stays on request."""
    picked = values[mask]
    mean = picked.mean()
    # a single token has no variance: it is left at its mean
    variance = picked.var() if len(picked) > 1 else torch.zeros(())
    out = (values - mean) * torch.rsqrt(variance + 1e-8)
    return (out if shift_mean else out + mean) * mask


def gae(rewards: torch.Tensor, values: torch.Tensor, gamma: float, lam: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation, backwards (Schulman et al. 2015, arXiv 1506.02438, eq. 16).

    Args:
        rewards, values: (R, L), zero after each rollout's end: the value there is 0 by definition.
        gamma, lam: discount and lambda.

    Returns:
        advantages (R, L), not whitened, and returns = advantages + values.
    """
    advantages = torch.zeros_like(rewards)
    following = carried = torch.zeros(len(rewards), dtype=rewards.dtype)
    for t in reversed(range(rewards.shape[1])):
        carried = rewards[:, t] + gamma * following - values[:, t] + gamma * lam * carried
        advantages[:, t] = carried
        following = values[:, t]
    return advantages, advantages + values


def group_advantages(totals: torch.Tensor, n: int, *, by_std: bool = False) -> torch.Tensor:
    """Advantage (R,) of every rollout: its total reward minus the mean of its prompt's ``n`` rollouts.

    Args:
        totals: (R,) what a rollout earned, rollouts of one prompt together.
        n: rollouts per prompt.
        by_std: divide by the group's standard deviation (n - 1; arXiv 2402.03300, eq. 3's reward form).
    """
    groups = totals.view(-1, n)
    centred = groups - groups.mean(1, keepdim=True)
    if by_std and n > 1:
        centred = centred / (groups.std(1, keepdim=True) + 1e-4)
    return centred.reshape(-1)


def explained_variance(values: torch.Tensor, returns: torch.Tensor) -> float:
    """1 - var(returns - values) / var(returns) over tokens (N,): 1 is a perfect critic, 0 a constant."""
    variance = returns.var()
    return float(1 - (returns - values).var() / variance) if variance > 0 else 0.0


# -- losses


@dataclass
class Loss:
    """A clipped loss: its sum over tokens and on how many of them the clip decided."""

    total: torch.Tensor
    clipped: float


def policy_loss(new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, clip: float) -> Loss:
    """Sum over tokens of max(-A * ratio, -A * clip(ratio, 1 +- clip)) (arXiv 1707.06347, eq. 7).

    Args:
        new, old: (N,) log-probabilities under the policy now and when it sampled.
        advantages: (N,).
        clip: half-width of the interval around 1.
    """
    ratio = (new - old).exp()
    free, bounded = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    return Loss(torch.maximum(free, bounded).sum(), float((bounded > free).sum()))


def value_loss(new: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, clip: float) -> Loss:
    """Half the sum over tokens of max((V - R)^2, (clip(V, V_old +- clip) - R)^2).

    Args:
        new, old: (N,) values now and when the rollouts were drawn.
        returns: (N,).
        clip: half-width of the interval around the old value.
    """
    free = (new - returns) ** 2
    bounded = (torch.minimum(torch.maximum(new, old - clip), old + clip) - returns) ** 2
    return Loss(0.5 * torch.maximum(free, bounded).sum(), float((bounded > free).sum()))
