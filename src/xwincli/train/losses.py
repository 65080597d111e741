"""The losses, as sums over their unit (tokens, pairs): whoever calls divides once by the batch's count."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid


def negative_log_likelihood(logprobs: torch.Tensor) -> torch.Tensor:
    """Sum over targets of -log p; ``logprobs`` (N,). Unit: tokens."""
    return -logprobs.sum()


def bradley_terry(
    chosen: torch.Tensor, rejected: torch.Tensor, margin: torch.Tensor | float = 0.0, centring: float = 0.0
) -> torch.Tensor:
    """Reward-model loss, summed over pairs: -log sigmoid(r_c - r_r - margin) + centring * (r_c + r_r)^2.

    The centring term keeps rewards around zero (Eisenstein et al. 2023, arXiv 2312.09244). Unit: pairs.

    Args:
        chosen, rejected: rewards (P,).
        margin: by how much the chosen should lead (P,) or one number (Llama 2, arXiv 2307.09288).
        centring: weight of the centring term.
    """
    return (-logsigmoid(chosen - rejected - margin) + centring * (chosen + rejected) ** 2).sum()


def dpo_sigmoid(margin: torch.Tensor, beta: float) -> torch.Tensor:
    """Direct preference optimisation, summed over pairs: -log sigmoid(beta * h) (arXiv 2305.18290, eq. 7).

    Args:
        margin: h (P,), how much more the policy than the reference prefers chosen to rejected, in nats:
            [log pi - log ref](chosen) - [log pi - log ref](rejected), sums over response tokens.
        beta: strength of the tie to the reference. Unit: pairs.
    """
    return -logsigmoid(beta * margin).sum()
