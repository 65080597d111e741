"""Preferences as branches of two responses, and the objectives on them: reward model and DPO."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from xwincli.models import Loaded
from xwincli.records import Message, Pair
from xwincli.rows import Branch, lay, segment_sum
from xwincli.scoring import branch, hidden, row_rewards, token_logprobs
from xwincli.train import losses
from xwincli.train.loop import Objective


def as_branch(loaded: Loaded, pair: Pair, *, tail: bool) -> Branch:
    """A pair as ids: the prompt once, then the chosen and the rejected response.

    Messages before the last one of each side must be equal: they belong to the prompt.
    """
    prompt: list[Message] = [*pair.prompt, *pair.chosen[:-1]]
    sides = [(str(m["content"]), m.get("finish") != "length") for m in (pair.chosen[-1], pair.rejected[-1])]
    return branch(loaded, (prompt, sides), tail=tail)


def reward_objective(
    loaded: Loaded, branches: Sequence[Branch], margins: Sequence[float], centring: float
) -> Objective:
    """Rows of pair indices -> Bradley-Terry loss; reports accuracy and the mean lead of the chosen."""

    def compute(members: list[int]) -> tuple[torch.Tensor, dict[str, float]]:
        row = lay([branches[i] for i in members]).to(loaded.place.device)
        reward = row_rewards(loaded, row, hidden(loaded, row)).view(-1, 2)
        chosen, rejected = reward[:, 0], reward[:, 1]
        margin = torch.tensor([margins[i] for i in members], device=reward.device)
        loss = losses.bradley_terry(chosen, rejected, margin, centring)
        lead, mean = (chosen - rejected).detach(), reward.detach().mean(1)
        return loss, {
            "accuracy": float((lead > 0).sum()),
            "lead": float(lead.sum()),
            "reward": float(mean.sum()),
        }

    return compute


def dpo_objective(
    loaded: Loaded, branches: Sequence[Branch], reference: Sequence[Sequence[float]], beta: float
) -> Objective:
    """Rows of pair indices -> DPO loss. ``reference`` holds each pair's two log-probs under the reference."""

    def compute(members: list[int]) -> tuple[torch.Tensor, dict[str, float]]:
        row = lay([branches[i] for i in members]).to(loaded.place.device)
        logp = segment_sum(token_logprobs(loaded, row, hidden(loaded, row)), row).view(-1, 2)
        ref = torch.tensor([reference[i] for i in members], dtype=torch.float64, device=logp.device)
        ratio = logp - ref
        margin = ratio[:, 0] - ratio[:, 1]
        loss = losses.dpo_sigmoid(margin, beta).float()
        kept = ratio.detach()
        return loss, {
            "accuracy": float((margin > 0).sum()),
            "margin": beta * float(margin.detach().sum()),
            "chosen": float(kept[:, 0].sum()),
            "rejected": float(kept[:, 1].sum()),
        }

    return compute
