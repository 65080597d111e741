"""Direct preference optimisation: pairs as branches of two responses, and the objective on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from xwincli.models import Loaded
from xwincli.records import Message, Pair
from xwincli.rows import Branch, lay, segment_sum
from xwincli.scoring import branch, hidden, token_logprobs
from xwincli.train import losses
from xwincli.train.loop import Objective


def as_branch(loaded: Loaded, pair: Pair) -> Branch:
    """A pair as ids: the prompt once, then the chosen and the rejected response.

    Messages before the last one of each side must be equal: they belong to the prompt.
    """
    prompt: list[Message] = [*pair.prompt, *pair.chosen[:-1]]
    sides = [(str(m["content"]), m.get("finish") != "length") for m in (pair.chosen[-1], pair.rejected[-1])]
    return branch(loaded, (prompt, sides), tail=False)


def objective(
    loaded: Loaded, branches: Sequence[Branch], reference: Sequence[Sequence[float]], beta: float
) -> Objective:
    """Rows of pair indices -> DPO loss. ``reference`` holds each pair's two log-probs under the reference."""

    def compute(members: list[int]) -> tuple[torch.Tensor, dict[str, float]]:
        row = lay([branches[i] for i in members]).to(loaded.place.device)
        logp = segment_sum(token_logprobs(loaded, row, hidden(loaded, row)), row).view(-1, 2)
        ref = torch.tensor([reference[i] for i in members], dtype=torch.float64, device=logp.device)
        ratio = logp - ref
        margin = ratio[:, 0] - ratio[:, 1]
        loss = losses.dpo_sigmoid(margin, beta).sum().float()
        kept = ratio.detach()
        return loss, {
            "accuracy": float((margin > 0).sum()),
            "margin": beta * float(margin.detach().sum()),
            "chosen": float(kept[:, 0].sum()),
            "rejected": float(kept[:, 1].sum()),
        }

    return compute
