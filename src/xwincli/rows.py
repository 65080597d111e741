"""Groups laid end to end as one row without padding: a prompt's tokens once, then each of its responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

Span = tuple[int, int]


@dataclass
class Branch:
    """One prompt and its responses as ids. ``learned`` (per response, or None for all) marks the targets.

    A conversation of supervised finetuning is a branch with an empty prompt and one response.
    """

    prompt: list[int]
    responses: list[list[int]]
    learned: list[list[bool]] | None = None

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.responses))


@dataclass
class Row:
    """Several branches end to end.

    Shapes: T tokens, N predicted tokens, R responses in all.

    Attributes:
        ids: (T,) token ids.
        positions: (T,) positions; every response restarts at its prompt's length.
        layout: per branch, the prompt's span and the responses' spans of token indices.
        predict: (N,) index of the token whose hidden state predicts a target.
        target: (N,) the token id it should predict.
        response: (N,) the response (0..R-1, in order) the target belongs to.
        last: (R,) index of each response's last token.
        branch: (R,) the branch each response belongs to.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    layout: list[tuple[Span, list[Span]]]
    predict: torch.Tensor
    target: torch.Tensor
    response: torch.Tensor
    last: torch.Tensor
    branch: torch.Tensor

    def to(self, device: torch.device) -> Row:
        """The same row on another device."""
        names = ("ids", "positions", "predict", "target", "response", "last", "branch")
        return Row(layout=self.layout, **{n: getattr(self, n).to(device) for n in names})


def lay(branches: Sequence[Branch]) -> Row:
    """Lay branches end to end."""
    ids: list[int] = []
    positions: list[int] = []
    layout: list[tuple[Span, list[Span]]] = []
    predict: list[int] = []
    target: list[int] = []
    response: list[int] = []
    last: list[int] = []
    owner: list[int] = []
    for b, branch in enumerate(branches):
        start = len(ids)
        ids += branch.prompt
        positions += range(len(branch.prompt))
        prompt = (start, len(ids))
        spans: list[Span] = []
        for r, tokens in enumerate(branch.responses):
            at = len(ids)
            ids += tokens
            positions += range(len(branch.prompt), len(branch.prompt) + len(tokens))
            spans.append((at, len(ids)))
            for j, token in enumerate(tokens):
                before = at + j - 1 if j else prompt[1] - 1
                predictable = j > 0 or branch.prompt
                if predictable and (branch.learned is None or branch.learned[r][j]):
                    predict.append(before)
                    target.append(token)
                    response.append(len(last))
            last.append(len(ids) - 1)
            owner.append(b)
        layout.append((prompt, spans))
    return Row(
        layout=layout,
        ids=_whole(ids),
        positions=_whole(positions),
        predict=_whole(predict),
        target=_whole(target),
        response=_whole(response),
        last=_whole(last),
        branch=_whole(owner),
    )


def _whole(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.long)


def segment_sum(values: torch.Tensor, row: Row) -> torch.Tensor:
    """Sum per-target values (N,) into per-response sums (R,), in float64: sums near -2000 lose 1e-3 in float32."""
    out = torch.zeros(len(row.last), dtype=torch.float64, device=values.device)
    return out.index_add(0, row.response, values.double())


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack items into rows of at most ``capacity`` tokens (first fit decreasing); an oversized item has its own."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    rows: list[list[int]] = []
    room: list[int] = []
    for i in order:
        fits = next((r for r, free in enumerate(room) if free >= lengths[i]), None)
        if fits is None:
            rows.append([i])
            room.append(capacity - lengths[i])
        else:
            rows[fits].append(i)
            room[fits] -= lengths[i]
    return rows
