"""The reward model's objective: every prompt's comparisons (or ranking), its responses computed once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from xwincli.models import Loaded
from xwincli.rows import Branch, lay
from xwincli.scoring import row_rewards
from xwincli.states import hidden
from xwincli.train import losses
from xwincli.train.comparisons import Comparisons
from xwincli.train.loop import Objective


def objective(
    loaded: Loaded,
    branches: Sequence[Branch],
    items: Sequence[Comparisons],
    *,
    centring: float = 0.0,
    smoothing: float = 0.0,
    ranking: bool = False,
    top: int = 0,
) -> Objective:
    """Rows of prompt indices -> loss summed over prompts, each the mean of its comparisons.

    Args:
        loaded: the reward model.
        branches: each prompt's responses as ids, in the order of its sides.
        items: the comparisons.
        centring: weight of (r_c + r_r)^2.
        smoothing: share of the preferences taken to be wrong.
        ranking: Plackett-Luce on the ratings instead of Bradley-Terry on the comparisons.
        top: places of the ranking that count; 0 is all.

    Reports accuracy, lead of the chosen and the middle of both rewards, as means over prompts.
    """

    def compute(members: list[int]) -> tuple[torch.Tensor, dict[str, float]]:
        row = lay([branches[i] for i in members]).to(loaded.place.device)
        rewards = row_rewards(loaded, row, hidden(loaded, row))
        better, worse, chance, margin, weight = _games([items[i] for i in members], rewards)
        chosen, rejected = rewards[better], rewards[worse]
        values = centring * losses.centring(chosen, rejected)
        if not ranking:
            chance = chance * (1 - smoothing) + (1 - chance) * smoothing
            values = values + losses.bradley_terry(chosen - rejected, margin, chance)
        loss = (values * weight).sum()
        if ranking:
            parts = rewards.split([len(items[i].sides) for i in members])
            for part, i in zip(parts, members, strict=True):
                loss = loss + losses.plackett_luce(part, _ratings(items[i], part), top)
        lead, middle = (chosen - rejected).detach(), ((chosen + rejected) / 2).detach()
        return loss, {
            "accuracy": float(((lead > 0) * weight).sum()),
            "lead": float((lead * weight).sum()),
            "reward": float((middle * weight).sum()),
        }

    return compute


def _ratings(item: Comparisons, like: torch.Tensor) -> torch.Tensor:
    return torch.tensor([item.marks[i] for i in range(len(item.sides))], device=like.device)


def _games(items: Sequence[Comparisons], like: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(better, worse, chance, margin, weight) of a row's comparisons, numbering its responses through."""
    rows: list[tuple[int, int, float, float, float]] = []
    start = 0
    for item in items:
        rows += [(start + a, start + b, p, m, 1 / len(item.games)) for a, b, p, m in item.games]
        start += len(item.sides)
    table = torch.tensor(rows, dtype=torch.float64, device=like.device)
    better, worse = table[:, 0].long(), table[:, 1].long()
    chance, margin, weight = table[:, 2:].to(like.dtype).unbind(1)
    return better, worse, chance, margin, weight
