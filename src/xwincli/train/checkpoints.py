"""Checkpoints of a run in progress: written under another name, digested, renamed; damaged ones are passed over."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from xwincli.console import warn
from xwincli.errors import XwinError

DIGESTS = "digests.json"
ADAM = 8  # bytes AdamW keeps for each number that learns


class Checkpoints:
    """The folders ``step-00000120`` of one run, the newest of which a rerun goes on from.

    A folder of this name is whole: its files lie on disk, with their digests, before it is renamed. One process
    (rank 0) calls these; others may write into the folder between ``begin`` and ``finish``.

    Args:
        folder: where they lie; it need not exist.
        keep: how many to hold; older ones go once a new one stands.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._warned = False

    def _all(self) -> list[Path]:
        """Finished ones, the newest first."""
        return sorted(self.folder.glob("step-" + "[0-9]" * 8), reverse=True)

    def room(self, size: int) -> bool:
        """Whether ``size`` bytes fit on the disk, if need be in place of all checkpoints but the last; warns if not."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in reversed(self._all()[1:]):
            if free(self.folder) > size:
                break
            shutil.rmtree(old)
        if (there := free(self.folder)) > size:
            return True
        if not self._warned:
            self._warned = True
            warn(
                f"{self.folder}: no checkpoint is written: it takes {gigabytes(size)}, {gigabytes(there)} are free\n"
                "  hint: training goes on; free disk space, or what is lost at a kill is all since the last one"
            )
        return False

    def begin(self, step: int) -> Path:
        """An empty folder to fill; call ``finish`` when all is written."""
        part = self.folder / f"step-{step:08}.new"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        return part

    def finish(self, part: Path) -> None:
        """Put what ``begin`` gave on disk for good, and let the oldest go."""
        names = sorted(str(p.relative_to(part)) for p in part.rglob("*") if p.is_file())
        (part / DIGESTS).write_text(json.dumps({name: _digest(part / name) for name in names}))
        for path in (*part.rglob("*"), part):
            _sync(path)
        whole = part.with_suffix("")
        shutil.rmtree(whole, ignore_errors=True)  # of a run that went on from an older one
        part.replace(whole)
        _sync(self.folder)
        for old in self._all()[self.keep :]:
            shutil.rmtree(old)

    def drop(self, part: Path) -> None:
        """Forget what ``begin`` gave."""
        shutil.rmtree(part, ignore_errors=True)

    def newest(self) -> Path | None:
        """The newest that is as it was written; damaged ones are named and go. None where there is none."""
        for rest in self.folder.glob("*.new"):
            shutil.rmtree(rest)
        for path in self._all():
            if not (wrong := _damage(path)):
                return path
            warn(f"{path}: {wrong}, so it is left out\n  hint: the checkpoint before it is taken, if there is one")
            shutil.rmtree(path)
        return None


def check_room(out: Path, whole: Iterable[torch.Tensor], learning: Iterable[torch.Tensor]) -> None:
    """Refuse at once a run whose finished model and one checkpoint do not fit beside ``out``.

    Args:
        out: the folder to make.
        whole: all weights of the model.
        learning: those in the optimizer.

    Raises:
        XwinError: with what is needed and what is free.
    """
    model, state = sum(map(_bytes, whole)), state_bytes(learning)
    place = next(p for p in (out, *out.absolute().parents) if p.is_dir())
    if (there := free(place)) < model + state:
        need = f"the model takes {gigabytes(model)} and a checkpoint {gigabytes(state)}, {gigabytes(there)} are free"
        raise XwinError(f"{out}: not enough disk space: {need}", "free some, or name another --out")


def state_bytes(learning: Iterable[torch.Tensor]) -> int:
    """Bytes of a checkpoint of weights that learn, with AdamW's state."""
    return sum(_bytes(p) + ADAM * _count(p) for p in learning)


def _count(p: torch.Tensor) -> int:
    return int(getattr(p, "ds_numel", p.numel()))  # DeepSpeed's shares know how much the whole is


def _bytes(p: torch.Tensor) -> int:
    return _count(p) * p.element_size()


def free(place: Path) -> int:
    """Bytes free on a folder's disk."""
    return shutil.disk_usage(place).free


def gigabytes(size: int) -> str:
    """A size for a message."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def random_state() -> dict[str, Any]:
    """Torch's random streams, of the CPU and of every card in use."""
    cards = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), "cuda": cards}


def set_random_state(state: dict[str, Any]) -> None:
    """Go on with ``random_state``'s streams."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_initialized():
        torch.cuda.set_rng_state_all(state["cuda"])


def _damage(path: Path) -> str:
    """What is wrong with a checkpoint, or ""."""
    try:
        digests = json.loads((path / DIGESTS).read_text())
        for name, digest in digests.items():
            if _digest(path / name) != digest:
                return f"{name} is not as it was written"
    except (OSError, ValueError, AttributeError) as e:
        return f"cannot be read ({e})"
    return ""


def _digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Have a file or folder on disk before anything that relies on it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
