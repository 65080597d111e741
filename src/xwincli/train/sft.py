"""Supervised finetuning's objective: the likelihood of the learned tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from xwincli.models import Loaded
from xwincli.rows import Branch, lay
from xwincli.scoring import summed_nll
from xwincli.states import hidden
from xwincli.train.loop import Objective


def learned(branch: Branch) -> int:
    """How many of a branch's tokens are targets (a sequence's first token has nothing before it)."""
    marks = branch.learned or [[True] * len(r) for r in branch.responses]
    return sum(sum(m if branch.prompt else m[1:]) for m in marks)


def objective(loaded: Loaded, branches: Sequence[Branch]) -> Objective:
    """Rows of branch indices -> negative log-likelihood summed over their learned tokens."""

    def compute(members: list[int]) -> tuple[torch.Tensor, dict[str, float]]:
        row = lay([branches[i] for i in members]).to(loaded.place.device)
        return summed_nll(loaded, row, hidden(loaded, row)), {}

    return compute
