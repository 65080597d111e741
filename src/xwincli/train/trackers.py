"""Where metrics go besides ``metrics.jsonl``: TensorBoard or Weights & Biases, imported only when asked for.

Nothing phones home: W&B keeps its run on this machine (``wandb sync`` uploads it) unless ``WANDB_MODE`` is set.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from xwincli import settings
from xwincli.console import is_main, say
from xwincli.errors import XwinError

Row = dict[str, Any]


class Tracker:
    """Takes the rows of ``metrics.jsonl``; this one keeps none."""

    def log(self, row: Row) -> None:
        """Take one row: a ``step`` and its figures."""

    def close(self) -> None:
        """Write what is still held back."""


class TensorBoard(Tracker):
    """Event files in ``runs/NAME`` beside the model; a resumed run replaces the steps it does again."""

    def __init__(self, out: Path) -> None:
        self.open: Callable[..., Any] = _need("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self.folder = out.parent / "runs" / out.name
        self.writer: Any = None
        say(f"tracking: tensorboard --logdir {self.folder.parent}")

    def log(self, row: Row) -> None:
        """See ``Tracker``."""
        if self.writer is None:
            self.writer = self.open(log_dir=str(self.folder), purge_step=row["step"])
        for name, value in _numbers(row):
            self.writer.add_scalar(name, value, row["step"])
        self.writer.flush()

    def close(self) -> None:
        """See ``Tracker``."""
        if self.writer is not None:
            self.writer.close()


class Wandb(Tracker):
    """A run in ``wandb/`` beside the model, offline unless the user chose otherwise."""

    def __init__(self, out: Path, config: Any) -> None:
        wandb = _need("wandb", "wandb")
        mode = os.environ.get("WANDB_MODE", "offline")
        if mode == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        out.parent.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project="xwin", name=out.name, dir=str(out.parent), mode=mode, config=settings.values(config)
        )
        say(f"tracking: wandb, {mode}" + (f"; upload: wandb sync {out.parent}/wandb/*" if mode == "offline" else ""))

    def log(self, row: Row) -> None:
        """See ``Tracker``."""
        self.run.log(dict(_numbers(row)), step=row["step"])

    def close(self) -> None:
        """See ``Tracker``."""
        self.run.finish()


def find(out: Path, config: Any) -> Tracker:
    """The tracker that a config's ``track`` names; in the process that may talk, elsewhere none.

    Args:
        out: the model folder to make; its name is the run's.
        config: the stage's config, which W&B shows beside the curves.

    Raises:
        XwinError: the package is not installed.
    """
    name = getattr(config, "track", "none")
    if name == "none" or not is_main():
        return Tracker()
    return TensorBoard(out) if name == "tensorboard" else Wandb(out, config)


def _need(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as e:
        raise XwinError(f"--track {package} needs the package {package}", f"pip install {package}") from e


def _numbers(row: Row) -> list[tuple[str, float]]:
    return [(k, v) for k, v in row.items() if k != "step" and isinstance(v, int | float)]
