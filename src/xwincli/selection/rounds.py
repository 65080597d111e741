"""Several rounds of responses to the same prompts, as one group a prompt.

The groups wait in a temporary file, of which only the places are held: rounds may be larger than memory, come from
standard input, and need not be in the same order.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from typing import IO

import msgspec

from xwincli.errors import XwinError
from xwincli.records import Group


def merged(groups: Iterable[Group]) -> Iterator[Group]:
    """One group for each ``prompt_id``, in the order of their first lines, with the responses of all.

    Raises:
        XwinError: two groups have the same ``prompt_id`` and different prompts.
    """
    encoder, decoder = msgspec.json.Encoder(), msgspec.json.Decoder(Group)
    with tempfile.TemporaryFile() as file:
        places: dict[str, list[int]] = {}
        end = 0
        for group in groups:
            places.setdefault(group.prompt_id, []).append(end)
            end += file.write(encoder.encode(group) + b"\n")
        for offsets in places.values():
            yield _joined([decoder.decode(_line(file, at)) for at in offsets])


def _line(file: IO[bytes], at: int) -> bytes:
    file.seek(at)
    return file.readline()


def _joined(rounds: list[Group]) -> Group:
    first, *others = rounds
    for other in others:
        if other.prompt != first.prompt:
            message = f"groups {first.id} and {other.id} have the prompt_id {first.prompt_id} and different prompts"
            raise XwinError(message, "--merge joins rounds of the same prompts")
        first.responses += other.responses
    return first
