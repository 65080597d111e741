"""How a training run's folder comes to be: ``out.partial`` with metrics and checkpoints, then the model, renamed."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import msgspec
import torch

from xwincli import manifest, models
from xwincli.console import is_main, say, warn
from xwincli.errors import XwinError
from xwincli.settings import Saving
from xwincli.train import trackers
from xwincli.train.checkpoints import Checkpoints

STATE = "state.pt"


class Folder:
    """The artifact of one training run.

    Args:
        out: the model folder to make.
        plan: from ``manifest.plan``; a checkpoint is continued only by a run of the same plan.
        config: the stage's config.
        force: forget earlier checkpoints.
        saving: how often to write one, and how many to hold.
    """

    def __init__(
        self, out: str, plan: manifest.Manifest, config: Any, *, force: bool = False, saving: Saving | None = None
    ) -> None:
        if out == "-":
            raise XwinError("--out must name a folder: a model cannot go to standard output")
        self.out, self.plan, self.config = Path(out), plan, config
        if self.out.is_file():
            raise XwinError(f"{out} is a file, --out must name a folder")
        self.started = time.time()
        self.counts: dict[str, Any] = {}
        self.metrics: dict[str, Any] = {}
        self.part = self.out.with_name(self.out.name + ".partial")
        self.saving = saving or Saving()
        self.checkpoints = Checkpoints(self.part / "checkpoints", self.saving.keep_last)
        self.tracker = trackers.find(self.out, config)
        if is_main():  # of several processes rank 0 alone puts things in order and writes
            self._open(force)

    def _open(self, force: bool) -> None:
        mark, key = self.part / "key", manifest.key(self.plan)
        if self.part.exists() and (force or not mark.is_file()):
            shutil.rmtree(self.part)
        if self.part.exists() and (old := mark.read_text()) != key:
            aside = self.part.with_name(f"{self.part.name}.{old}")
            shutil.rmtree(aside, ignore_errors=True)
            self.part.replace(aside)
            say(f"{self.part} was made with other options or inputs: kept as {aside.name}")
        self.part.mkdir(parents=True, exist_ok=True)
        mark.write_text(key)

    @property
    def _log_path(self) -> Path:
        return self.part / "metrics.jsonl"

    def log(self, row: dict[str, Any]) -> None:
        """Append one step's figures to ``metrics.jsonl`` (rank 0)."""
        if not is_main():
            return
        with self._log_path.open("ab") as f:
            f.write(msgspec.json.encode(row) + b"\n")
        self.tracker.log(row)

    def save_state(self, step: int, state: dict[str, Any], size: int) -> bool:
        """Write a checkpoint of everything ``state`` holds (rank 0); False where the disk has no room for it.

        Args:
            step: how many are done.
            state: tensors, numbers and texts.
            size: bytes it takes, about.
        """
        if not self.checkpoints.room(size):
            return False
        part = self.checkpoints.begin(step)
        try:
            self.write_state(part, step, state)
        except (OSError, RuntimeError) as e:
            self.checkpoints.drop(part)
            warn(f"{part}: cannot write the checkpoint: {e}\n  hint: training goes on; free disk space")
            return False
        return True

    def write_state(self, part: Path, step: int, state: dict[str, Any]) -> None:
        """Complete what ``checkpoints.begin`` gave with ``state`` and the length of the log."""
        torch.save({"step": step, "logged": self._logged(), **state}, part / STATE)
        self.checkpoints.finish(part)

    def newest(self) -> Path | None:
        """The checkpoint to go on from, with the log cut back to it (rank 0); None at a fresh start."""
        if (found := self.checkpoints.newest()) is None:
            self._log_path.unlink(missing_ok=True)
            return None
        state = read_state(found, mmap=True)  # of all that stands there only two numbers are wanted here
        with self._log_path.open("r+b") as f:
            f.truncate(state["logged"])
        say(f"{self.out}: going on after step {state['step']}")
        return found

    def _logged(self) -> int:
        return self._log_path.stat().st_size if self._log_path.exists() else 0

    def finish(self, loaded: models.Loaded, *, keep_adapter: bool = False) -> None:
        """Save the model, bring the metrics along, write the manifest, forget the checkpoint."""
        models.save(loaded, self.out, keep_adapter=keep_adapter)
        for name in ("metrics.jsonl", "audit.json"):
            if (self.part / name).exists():
                shutil.copy(self.part / name, self.out / name)
        manifest.write(
            self.out,
            self.plan,
            self.config,
            started=self.started,
            counts=self.counts,
            metrics=self.metrics,
            machine=loaded.place.facts(),
        )
        shutil.rmtree(self.part)
        self.tracker.close()
        say(f"saved {self.out}")


def read_state(checkpoint: Path, *, mmap: bool = False) -> dict[str, Any]:
    """What ``save_state`` was given, with ``step``; with ``mmap`` tensors are read from the file when they are used."""
    state: dict[str, Any] = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True, mmap=mmap)
    return state
