"""Held-out items: which they are, their loss while the others are learned, and the weights that did best on them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from xwincli.console import say
from xwincli.errors import XwinError
from xwincli.records import content_id
from xwincli.settings import RowsRun
from xwincli.train import parallel
from xwincli.train.checkpoints import Checkpoints
from xwincli.train.folder import STATE, Folder, read_state

TIMES = 10  # measurements in a run that keeps its best weights


def split(keys: Iterable[str], config: RowsRun) -> list[int]:
    """The numbers of the items that are held out: by a hash of their prompt, so the same prompts in every run.

    Raises:
        XwinError: nothing is left to learn, or the best weights are asked for and nothing is held out.
    """
    keys = list(keys)
    held = [i for i, key in enumerate(keys) if int(content_id("valid", key), 16) / 16**16 < config.valid]
    if len(held) == len(keys):
        raise XwinError("no prompt is left to train on", "see --max-length and --valid")
    if config.keep_best and not held:
        raise XwinError("--keep-best: no prompt is held out", f"raise --valid, which is {config.valid:g}")
    return held


@dataclass(frozen=True)
class Schedule:
    """When the held-out loss is measured, and whether the best weights are kept."""

    every: int = 0
    keep_best: bool = False

    @classmethod
    def of(cls, config: RowsRun) -> Schedule:
        """As the options say."""
        return cls(config.valid_every, config.keep_best)

    def due(self, step: int, steps: int) -> bool:
        """Whether to measure after ``step`` (1-based) of ``steps``; always after the last."""
        every = self.every or (max(steps // TIMES, 1) if self.keep_best else steps)
        return step == steps or step % every == 0


class Best:
    """The weights of the step with the lowest held-out loss so far, on disk (rank 0).

    A run that is killed takes the same steps again and finds the same losses, so what it kept stays right.
    """

    def __init__(self, folder: Folder, named: list[tuple[str, torch.nn.Parameter]]) -> None:
        self.store, self.named = Checkpoints(folder.part / "best", keep=1), named
        found = self.store.newest() if parallel.rank() == 0 else None
        self.loss = read_state(found)["loss"] if found else float("inf")

    def see(self, step: int, loss: float) -> None:
        """Keep the weights of this step if none were better."""
        if parallel.rank() or not loss < self.loss:
            return
        weights = {n: p.detach() for n, p in self.named}
        try:
            if not self.store.room(sum(p.nbytes for p in weights.values())):
                raise OSError("the disk is full")
            part = self.store.begin(step)
            torch.save({"step": step, "loss": loss, "weights": weights}, part / STATE)
            self.store.finish(part)
        except (OSError, RuntimeError) as e:
            hint = "free disk space and give the same command, which goes on from the last checkpoint"
            raise XwinError(f"{self.store.folder}: cannot keep the best weights: {e}", hint) from e
        self.loss = loss

    def restore(self, steps: int) -> dict[str, float]:
        """Give the model its best weights back (rank 0, when training is over); figures for the manifest."""
        if (found := self.store.newest()) is None:
            return {}
        state = read_state(found)
        with torch.no_grad():
            for n, p in self.named:
                p.copy_(state["weights"][n])
        say(f"the best weights are those of step {state['step']} of {steps}: held-out loss {state['loss']:.4f}")
        return {"best_step": state["step"], "best_valid_loss": state["loss"]}
