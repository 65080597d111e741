"""One iteration's rollouts, and which of them go through the models together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from xwincli.rows import Branch, Row, lay, pack
from xwincli.scoring import Item, split
from xwincli.train.plan import plan
from xwincli.train.ppo_options import Optim


@dataclass
class Rollouts:
    """What the policy answered; R rollouts of N tokens in all, equally many of each prompt, together.

    Attributes:
        branches: a prompt's ids and its rollouts' ids, with the stop token where one ended by itself.
        items: the same as text, for the reward model.
    """

    branches: list[Branch]
    items: list[Item]

    def lengths(self) -> list[int]:
        """Tokens of every rollout (R)."""
        return [len(r) for b in self.branches for r in b.responses]

    def ended(self) -> torch.Tensor:
        """Which rollouts ended by themselves (R)."""
        return torch.tensor([ended for _, responses in self.items for _, ended in responses])


@dataclass
class Batch:
    """Rollouts laid as one row, and where its M targets stand among the iteration's N tokens."""

    row: Row
    tokens: torch.Tensor


Update = list[Batch]  # the rows whose gradients one optimiser step sums


def batches(rollouts: Rollouts, optim: Optim, seed: int) -> list[Update]:
    """Every update of an iteration, epoch after epoch.

    Each takes exactly ``optim.batch`` prompts (an epoch's last may take fewer) with all their rollouts, in
    rows of at most ``max_tokens_per_row`` tokens.
    """
    count = len(rollouts.branches)
    size = min(optim.batch or count, count)
    steps = plan([1] * count, batch=size, capacity=size, world=1, epochs=optim.epochs, seed=seed)
    parts = _parts(rollouts, optim.max_tokens_per_row)
    updates: list[Update] = []
    for ((members,),) in steps:
        chosen = [part for i in members for part in parts[i]]
        rows = pack([len(branch) for branch, _ in chosen], optim.max_tokens_per_row)
        updates.append([_batch([chosen[i] for i in row]) for row in rows])
    return updates


def first_epoch(updates: list[Update], epochs: int) -> Iterator[Batch]:
    """The rows of the first epoch: together they hold every token once."""
    for update in updates[: len(updates) // epochs]:
        yield from update


Part = tuple[Branch, torch.Tensor]  # some rollouts of one prompt, and where their tokens stand


def _parts(rollouts: Rollouts, capacity: int) -> list[list[Part]]:
    found: list[list[Part]] = []
    start = 0
    for branch in rollouts.branches:
        found.append([])
        for part in split([branch], capacity)[0]:
            end = start + sum(map(len, part.responses))
            found[-1].append((part, torch.arange(start, end)))
            start = end
    return found


def _batch(parts: list[Part]) -> Batch:
    return Batch(lay([branch for branch, _ in parts]), torch.cat([tokens for _, tokens in parts]))
