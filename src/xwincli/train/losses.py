"""The losses of preferences, one value per pair or prompt: the objective sums them, the loop divides once."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

# -- reward models


def bradley_terry(
    lead: torch.Tensor, margin: torch.Tensor | float = 0.0, chance: torch.Tensor | float = 1.0
) -> torch.Tensor:
    """-p log sigmoid(d - m) - (1 - p) log sigmoid(m - d), per pair (Bradley & Terry 1952; Ouyang et al. 2022, eq. 1).

    Args:
        lead: d = r_chosen - r_rejected (P,).
        margin: m, by how much the chosen should lead (P,) or one number (Llama 2, arXiv 2307.09288).
        chance: p, how sure it is that the chosen is better (P,) or one number: soft labels, smoothing.
    """
    d = lead - margin
    return -chance * logsigmoid(d) - (1 - chance) * logsigmoid(-d)


def centring(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """(r_c + r_r)^2 per pair, which keeps rewards around zero (Eisenstein et al. 2023, arXiv 2312.09244)."""
    return (chosen + rejected) ** 2


def plackett_luce(rewards: torch.Tensor, ratings: torch.Tensor, top: int = 0) -> torch.Tensor:
    """-log chance that the rewards draw the responses of one prompt in the order of their ratings.

    -sum_k [s_(k) - logsumexp_{j >= k} s_(j)] over the ranking, best first (Plackett 1975, Luce 1959); with two
    responses it is Bradley-Terry. Equal ratings share their places evenly: at the l-th of m tied places the
    tied ones count 1 - l/m in the denominator (Efron 1977, for the same likelihood in survival analysis).

    Args:
        rewards: s (K,).
        ratings: by a judge (K,), higher is better.
        top: look only at the best ``top`` places; 0 looks at all.
    """
    order = ratings.argsort(descending=True, stable=True)
    s, g = rewards[order], ratings[order]
    total = s.new_zeros(())
    at, places = 0, top or len(s)
    while at < min(places, len(s) - 1):
        tied = int((g == g[at]).sum())
        block = s[at : at + tied]
        for i in range(min(tied, places - at)):
            share = torch.full((tied,), (tied - i) / tied, dtype=s.dtype, device=s.device).log()
            total = total + torch.cat((block + share, s[at + tied :])).logsumexp(0) - block.mean()
        at += tied
    return total


# -- direct preference optimisation: h (P,) is how much more the policy than the reference prefers chosen to
# rejected, [log pi - log ref](chosen) - [log pi - log ref](rejected), in nats; sums over response tokens or, where
# said, means over them. ``beta`` is the strength of the tie to the reference.


def dpo_sigmoid(h: torch.Tensor, beta: float) -> torch.Tensor:
    """-log sigmoid(beta h) (Rafailov et al. 2023, arXiv 2305.18290, eq. 7); log 2 at the first step."""
    return -logsigmoid(beta * h)


def dpo_conservative(h: torch.Tensor, beta: float, smoothing: float) -> torch.Tensor:
    """-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h): a share e of the labels is wrong (cDPO, Mitchell 2023)."""
    return -(1 - smoothing) * logsigmoid(beta * h) - smoothing * logsigmoid(-beta * h)


def dpo_robust(h: torch.Tensor, beta: float, smoothing: float) -> torch.Tensor:
    """[-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)] / (1 - 2e): unbiased under flipped labels.

    (Chowdhury et al. 2024, arXiv 2403.00409, eq. 12.)
    """
    return (-(1 - smoothing) * logsigmoid(beta * h) + smoothing * logsigmoid(-beta * h)) / (1 - 2 * smoothing)


def dpo_hinge(h: torch.Tensor, beta: float) -> torch.Tensor:
    """max(0, 1 - beta h) (SLiC, Zhao et al. 2023, arXiv 2305.10425, with beta h as the margin)."""
    return torch.relu(1 - beta * h)


def dpo_ipo(h: torch.Tensor, beta: float) -> torch.Tensor:
    """(h - 1 / (2 beta))^2 (Azar et al. 2023, arXiv 2310.12036, eq. 17)."""
    return (h - 1 / (2 * beta)) ** 2


def simpo(lead: torch.Tensor, beta: float, gamma: float) -> torch.Tensor:
    """-log sigmoid(beta d - gamma), d the difference of mean log-probabilities (Meng et al. 2024, 2405.14734, eq. 6).

    There is no reference; gamma is the lead in reward that is asked for.
    """
    return -logsigmoid(beta * lead - gamma)
