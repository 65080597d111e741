"""The operating system's side of memory: what glibc keeps, and weights that lie in a mapped checkpoint."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

DONTNEED = 4  # MADV_DONTNEED


@cache
def _libc() -> Any:
    """glibc, or None where there is another C library."""
    if sys.platform != "linux":
        return None
    try:
        libc = ctypes.CDLL("libc.so.6", use_errno=True)
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        return libc if libc.mallopt else None
    except (OSError, AttributeError):
        return None


@cache
def keep() -> None:
    """Let glibc keep freed memory: returning large tensors' pages to the kernel costs a third of the time.

    And let oneDNN keep few kernels: it makes one for every shape of a bfloat16 product, megabytes each. Call this
    before the first product.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # glibc's malloc.h
    if (libc := _libc()) is not None:
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 1 << 30)
        libc.mallopt(top_pad, 256 << 20)


def leave_files(model: Any) -> None:
    """Copy the weights of a model just loaded out of its mapped checkpoint, letting each one's pages go.

    Weights are read anyway; left in the file, they count twice as soon as they are laid out in another way.
    Nothing may have changed them: the file's pages are dropped, and changes with them.
    """
    if (libc := _libc()) is None or not (mapped := _mapped()):
        return
    page = mmap.PAGESIZE
    for weight in model.parameters():
        at, end = weight.data_ptr(), weight.data_ptr() + weight.nbytes
        if not weight.is_contiguous() or not any(a <= at and end <= b for a, b in mapped):
            continue
        weight.data = weight.data.clone()
        first, last = -(-at // page) * page, end // page * page
        if last > first:
            libc.madvise(first, last - first, DONTNEED)


def _mapped() -> list[tuple[int, int]]:
    """Address ranges of checkpoints in this process."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(".safetensors"):
            first, _, end = line.split(maxsplit=1)[0].partition("-")
            found.append((int(first, 16), int(end, 16)))
    return found
