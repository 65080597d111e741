"""What each rank of the parallel tests does: several training stages one after another, in one launch.

    python -m torch.distributed.run … ranks.py JOBS.json

A job is {"stage", "options"}, with "stop": the step at whose end the run is interrupted, or "error": what it says,
and "bad": finetuning's gradient is nan while its loss is not.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path

import torch
from torch import distributed as dist

from xwincli import flags
from xwincli.errors import XwinError
from xwincli.train import folder, sft

log, objective, step = folder.Folder.log, sft.objective, torch.optim.AdamW.step


def with_nan_gradients(*arguments):
    """An objective of the same value: the root of zero has an infinite slope."""

    def compute(members):
        loss, more = objective(*arguments)(members)
        return loss + (loss - loss.detach()).abs().sqrt(), more

    return compute


def forbidden(*arguments, **more) -> None:
    """Stands for the optimizer's step where none may be taken."""
    raise AssertionError("a step was taken on a gradient that is not finite")


def run(stage: str, options: dict, stop: int = 0, error: str = "", bad: bool = False) -> None:
    """One stage in this process; a run that is to be stopped saves after every step."""
    sft.objective = with_nan_gradients if bad else objective
    torch.optim.AdamW.step = forbidden if bad else step

    def stopping(self, row):
        if row["step"] == stop:
            raise KeyboardInterrupt
        log(self, row)

    folder.Folder.log = stopping
    torch.manual_seed(0)  # of new adapters
    module = import_module(f"xwincli.stages.{stage}")
    module.run(flags.build(module.Config, {**options, "save_every": 0.0 if stop else 1e9}))


if __name__ == "__main__":
    leave, dist.destroy_process_group = dist.destroy_process_group, lambda: None  # the next job meets in the same one
    for number, job in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        os.environ["XWIN_CLAIM"] = f"{sys.argv[1]}.{number}"
        expected = 130 if job.get("stop") else 1 if job.get("error") else 0
        try:
            run(**job)
            assert expected == 0, f"{job} ran through"
        except (SystemExit, KeyboardInterrupt) as e:
            assert getattr(e, "code", 130) == expected, (job, e)
        except XwinError as e:
            assert job.get("error") and job["error"] in e.message, (job, e)
    dist.barrier()
    leave()  # threads of a group that is left standing may abort the interpreter's end
