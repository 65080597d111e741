"""Which tokens of a row see which: a prompt token its prompt, a response token its prompt and its response."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

import torch

from xwincli.rows import Span

Layout = list[tuple[Span, list[Span]]]
GATHER = 1 << 16  # keys gathered at once, in tokens


@dataclass(frozen=True)
class Part:
    """Segments that one call of a kernel computes, their keys end to end.

    Attributes:
        own: the tokens whose queries take part, consecutive in the row.
        index: (K,) the tokens whose keys they see, segment by segment; None if these are the own tokens.
        starts: (S+1,) int32, where each segment's queries begin, from 0.
        key_starts: (S+1,) int32, where each segment's keys begin.
        longest: most queries of a segment.
        most_keys: most keys of a segment.
    """

    own: Span
    index: torch.Tensor | None
    starts: torch.Tensor
    key_starts: torch.Tensor
    longest: int
    most_keys: int


@dataclass
class Plan:
    """A row's layout as segments, with everything made from it once and used by every layer of a forward.

    A prompt and its first response are one segment, since plain causal attention is what they need; each further
    response is a segment of its own that also sees the prompt.

    Attributes:
        layout: from ``Row``.
        device: where indices and masks live.
        segments: (own tokens, prompt tokens they also see, an empty span for the first) in the row's order.
        groups: (tokens of a branch's further responses, their prompt).
        calls: how many layers asked for attention so far; the probe reads it.
    """

    layout: Layout
    device: torch.device
    segments: list[tuple[Span, Span]] = field(init=False)
    groups: list[tuple[Span, Span]] = field(init=False)
    calls: int = field(init=False, default=0)
    _parts: dict[tuple[int, int], list[Part]] = field(init=False, default_factory=dict)
    _masks: dict[tuple[int, int, int], torch.Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.segments, self.groups = [], []
        for (a, b), responses in self.layout:
            first = responses[0][1] if responses else b
            end = responses[-1][1] if responses else b
            self.segments.append(((a, first), (a, a)))
            self.segments += [(r, (a, b)) for r in responses[1:]]
            if end > first and b > a:
                self.groups.append(((first, end), (a, b)))
        self.segments = [s for s in self.segments if s[0][1] > s[0][0]]
        ends = [0, *(own[1] for own, _ in self.segments)]
        assert [own[0] for own, _ in self.segments] == ends[:-1], "a row's branches lie end to end"

    @property
    def reach(self) -> int:
        """Keys that the token that sees most sees: a sliding window at least that long changes nothing."""
        return max((b - a) + (d - c) for (a, b), (c, d) in self.segments)

    def parts(self, window: int, limit: int = GATHER) -> list[Part]:
        """The segments in calls that gather at most ``limit`` keys, or one segment each if ``limit`` is 0.

        ``window`` > 0: nobody sees more than the last ``window - 1`` tokens of its prompt, so no more are gathered.
        """
        if (window, limit) not in self._parts:
            self._parts[window, limit] = self._cut(window, limit)
        return self._parts[window, limit]

    def _cut(self, window: int, limit: int) -> list[Part]:
        chosen: list[list[tuple[Span, Span]]] = []
        room = -1
        for (a, b), (c, d) in self.segments:
            c = max(c, d - window + 1) if window else c
            room -= b - a + d - c
            if room < 0 or not limit:
                chosen.append([])
                room = limit - (b - a + d - c)
            chosen[-1].append(((a, b), (c, d)))
        return [self._part(segments) for segments in chosen]

    def _part(self, segments: list[tuple[Span, Span]]) -> Part:
        lengths = [b - a for (a, b), _ in segments]
        keys = [b - a + d - c for (a, b), (c, d) in segments]
        index = [torch.arange(*span) for own, prompt in segments for span in (prompt, own)]
        return Part(
            own=(segments[0][0][0], segments[-1][0][1]),
            index=torch.cat(index).to(self.device) if lengths != keys else None,
            starts=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=self.device),
            key_starts=torch.tensor([0, *accumulate(keys)], dtype=torch.int32, device=self.device),
            longest=max(lengths),
            most_keys=max(keys),
        )

    def mask(self, length: int, keys: int, window: int) -> torch.Tensor:
        """(length, keys) bool: what the last ``length`` of ``keys`` tokens see, causal and within the window."""
        if (length, keys, window) not in self._masks:
            mask = torch.ones(length, keys, dtype=torch.bool, device=self.device).tril(keys - length)
            self._masks[length, keys, window] = mask.triu(keys - length - window + 1) if window else mask
        return self._masks[length, keys, window]
