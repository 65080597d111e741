"""Memory straight from the operating system: zeros that take room only where they are written to.

A buffer may so be laid out for the longest response of every row at no cost, is never copied to grow, and gives back
what a response has filled when that one leaves. Linux and tensors on the CPU only; elsewhere these are plain zeros.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

NORESERVE = 0x4000  # MAP_NORESERVE: the kernel does not count on all of it being written
LAZY = sys.platform == "linux" and hasattr(mmap, "MADV_DONTNEED")


def lazy(device: torch.device) -> bool:
    """True where memory costs nothing until it is written to."""
    return LAZY and device.type == "cpu"


class Pages:
    """Zeros of a shape.

    Args:
        shape: slots first.
        like: whose dtype and device they have.

    Attributes:
        cells: the tensor.
    """

    def __init__(self, shape: Sequence[int], like: Tensor) -> None:
        self._memory: mmap.mmap | None = None
        if type(like) is Tensor and lazy(like.device):  # not of tensors without numbers, which plans are made with
            size = math.prod(shape) * like.element_size()
            with suppress(OSError):  # a kernel that promises no more than it has
                self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
        if self._memory is None:
            self.cells = like.new_zeros(*shape)
            return
        self._memory.madvise(mmap.MADV_NOHUGEPAGE)  # a huge page would take room for its unwritten part
        self.cells = torch.frombuffer(self._memory, dtype=like.dtype).view(*shape)

    def forget(self, slot: int) -> None:
        """Give a slot's memory back; what it held is zeros or stays."""
        if self._memory is None:
            return
        size = self.cells[0].nbytes
        first = -(-slot * size // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (slot + 1) * size // mmap.PAGESIZE * mmap.PAGESIZE
        if end > first:
            self._memory.madvise(mmap.MADV_DONTNEED, first, end - first)
