"""Several processes as one: how they meet, what they tell each other, and how an engine averages gradients.

The only file that knows ``torch.distributed`` and DeepSpeed. A loss is a sum over its units, and a step's count of
units is known beforehand, so the gradient is the same however the rows are spread:

- ``Plain``: every process holds all weights; it learns on loss / count, and gradients are summed over processes
  once a step.
- ``Zero``: DeepSpeed shares optimizer state, gradients or weights out. It averages over processes, so it is given
  loss x processes / count.
"""

from __future__ import annotations

import gc
import math
import os
import signal
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed as dist

from xwincli.errors import XwinError
from xwincli.models import Place
from xwincli.settings import Cluster
from xwincli.train import checkpoints, neighbours
from xwincli.train.folder import Folder, read_state

PARTS = "parts"  # what DeepSpeed calls a checkpoint
T = TypeVar("T")
Named = Sequence[tuple[str, torch.nn.Parameter]]
Objective = Callable[[list[int]], tuple[torch.Tensor, dict[str, float]]]
PATIENCE = timedelta(hours=2)  # how long one process may keep the others waiting, at a checkpoint say
GRACE = "3600"  # seconds a step may take to end after a Ctrl-C, before torchrun kills


# -- meeting

_watches: list[threading.Event] = []  # on the other processes, while their work depends on each other's


def world() -> int:
    """How many processes learn together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process; 0 speaks and writes."""
    return int(os.environ.get("RANK", "0"))


def begin(place: Place, cluster: Cluster) -> None:
    """Meet the other processes, once; called when the data are read and tokenised, so that nothing is waited for."""
    if dist.is_initialized() or (world() == 1 and not cluster.zero):
        return
    if place.device.type == "cuda":
        torch.cuda.set_device(place.device)
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=PATIENCE)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)
    _watches.append(neighbours.end_with(gather(neighbours.address())))


def gather(value: T) -> list[T]:
    """Every process's value, by rank; [value] where there is one."""
    if not dist.is_initialized():
        return [value]
    found: list[T] = [value] * world()
    dist.all_gather_object(found, value)
    return found


def shared(items: Sequence[T], work: Callable[[Sequence[T]], list[Any]], place: Place, cluster: Cluster) -> list[Any]:
    """Figures of items, every process working on its share of them; all get all, in the items' order."""
    begin(place, cluster)
    count = world()
    parts = gather(work(items[rank() :: count]))
    return [parts[i % count][i // count] for i in range(len(items))]


def part() -> None:
    """Wait until all are here; from now on each may end when it likes."""
    gather(0)
    while _watches:
        _watches.pop().set()


def leave() -> None:
    """Part after training: what follows (measuring, saving) is rank 0's alone, and every other process ends here."""
    if not dist.is_initialized():
        return
    part()
    dist.destroy_process_group()
    if rank():
        raise SystemExit(0)


def torchrun(count: int, command: list[str], folder: str) -> str | None:
    """Start ``python command`` ``count`` times and wait; None if all went well, else which one ended and how.

    Raises KeyboardInterrupt after a Ctrl-C or SIGTERM, which every process is told of once.
    """
    import logging

    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // count, 1)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", GRACE)
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):  # its account of a failure would bury ours
            logging.getLogger(name).setLevel(logging.CRITICAL)
    ends = [s.name for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN]
    options = ["--standalone", f"--nproc-per-node={count}", f"--log-dir={folder}/logs"]
    options.append(f"--signals-to-handle={','.join(ends)}")  # under nohup a hang-up is none
    try:
        run.run(run.parse_args([*options, *command]))
    except ChildFailedError as e:
        number, failure = e.get_first_failure()
        how = f"signal {-failure.exitcode}" if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        return f"rank {number}, {how}"
    except SignalException as e:
        raise KeyboardInterrupt from e
    return None


# -- engines


def take(opt: torch.optim.Optimizer, clip: float, share: float) -> float:
    """Clip and take one step at ``share`` of the peak learning rates; returns the gradient's norm.

    Where it is not finite the step is not taken.
    """
    parameters = [p for g in opt.param_groups for p in g["params"] if p.grad is not None]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, clip or math.inf))
    if math.isfinite(norm):
        _set_rate(opt, share)
        opt.step()
        opt.zero_grad(set_to_none=True)
    return norm


def _set_rate(opt: torch.optim.Optimizer, share: float) -> None:
    for g in opt.param_groups:
        g["lr"] = g["peak"] * share


class Plain:
    """All weights in every process; gradients are summed once a step.

    Args:
        opt: AdamW over the named parameters, each group with its ``peak`` learning rate.
        named: the parameters that learn; rank 0's values count.
        clip: largest gradient norm, 0 for none.
    """

    every_row = False  # an empty row needs no forward

    def __init__(self, opt: torch.optim.Optimizer, named: Named, clip: float):
        self.opt, self.named, self.clip = opt, named, clip
        _agree(named)

    def run(self, objective: Objective, row: list[int]) -> tuple[torch.Tensor, dict[str, float]]:
        """A row through the model."""
        return objective(row)

    def backward(self, loss: torch.Tensor, count: int, last: bool) -> None:
        """Add the gradient of a row's loss (a sum) over the step's ``count``, which is all processes' together."""
        (loss / count).backward()

    def take(self, share: float) -> float:
        """Sum gradients over processes, clip, step; returns the norm. Where that is not finite nothing moved."""
        if dist.is_initialized():
            for _, p in self.named:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            waits = [dist.all_reduce(p.grad, async_op=True) for _, p in self.named]
            for wait in waits:
                wait.wait()
        return take(self.opt, self.clip, share)

    def save(self, folder: Folder, step: int) -> bool:
        """A checkpoint by rank 0, from which any number of processes can go on; False where it was not written."""
        streams = gather(checkpoints.random_state())
        if rank():
            return True
        state = {"weights": {n: p.detach() for n, p in self.named}, "optimizer": self.opt.state_dict()}
        size = checkpoints.state_bytes(p for _, p in self.named)
        return folder.save_state(step, {**state, "random": streams}, size)

    def restore(self, folder: Folder) -> int:
        """Go on from the last checkpoint; returns the steps that are done."""
        _, state = _newest(folder)
        if not state:
            return 0
        if "weights" not in state:
            raise _other_engine(folder, state)
        with torch.no_grad():
            for n, p in self.named:
                p.copy_(state["weights"][n])
        self.opt.load_state_dict(state["optimizer"])
        return int(state["step"])

    def finish(self) -> None:
        """Nothing to do: rank 0 has the trained weights."""


class _Step(torch.nn.Module):
    """The objective as a module, so that DeepSpeed sees where a forward begins and ends."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, objective: Objective, row: list[int]) -> tuple[torch.Tensor, dict[str, float]]:
        return objective(row)


class Zero:
    """DeepSpeed's ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054) with torch's AdamW.

    Args:
        opt, named, clip: as for ``Plain``.
        model: what holds the weights; at stage 3 each process keeps a part of every matrix.
        cluster: stage and offload.
        place: its bfloat16 makes the weights bfloat16, with float32 ones at the optimizer.
    """

    every_row = True  # at stage 3 a forward gathers weights, which all processes must do together

    def __init__(
        self, opt: torch.optim.Optimizer, named: Named, clip: float, model: Any, cluster: Cluster, place: Place
    ):
        if cluster.zero == 3 and not getattr(model, "xwin_branches", True):
            message = "ZeRO stage 3 needs a model that may share prompts: the others take a forward a response"
            raise XwinError(message, "use --zero 2")
        _agree(named)
        self.deepspeed = _deepspeed(place)
        self.opt, self.named, self.stage = opt, named, cluster.zero
        self.module = _Step(model)
        self.engine, *_ = self.deepspeed.initialize(
            model=self.module,
            optimizer=opt,
            config=deepspeed_options(model, cluster, clip, place),
            dist_init_required=False,
        )
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if self.stage == 3 and head is not None:  # our losses read its weight without calling it
            for p in head.parameters():
                self.deepspeed.zero.register_external_parameter(self.module, p)

    def run(self, objective: Objective, row: list[int]) -> tuple[torch.Tensor, dict[str, float]]:
        """A row through the model."""
        found: tuple[torch.Tensor, dict[str, float]] = self.engine(objective, row)
        return found

    def backward(self, loss: torch.Tensor, count: int, last: bool) -> None:
        """As ``Plain.backward``; DeepSpeed's mean over processes is undone beforehand."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * (world() / count), scale_wrt_gas=False)

    def take(self, share: float) -> float:
        """As ``Plain.take``."""
        _set_rate(self.opt, share)
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return math.nan if norm is None else float(norm)

    def save(self, folder: Folder, step: int) -> bool:
        """A checkpoint in parts, one a process; False where it was not written."""
        store = folder.checkpoints
        part: Path | None = None
        if rank() == 0 and store.room(checkpoints.state_bytes(p for _, p in self.named)):
            part = store.begin(step)
        if (part := gather(part)[0]) is None:
            return False
        self.engine.save_checkpoint(str(part), tag=PARTS, save_latest=False)
        streams = gather(checkpoints.random_state())
        if rank() == 0:
            folder.write_state(part, step, {"stage": self.stage, "world": world(), "random": streams})
        return True

    def restore(self, folder: Folder) -> int:
        """Go on from the last checkpoint, which the same number of processes at the same stage made."""
        where, state = _newest(folder)
        if not state:
            return 0
        if (state.get("stage"), state.get("world")) != (self.stage, world()):
            raise _other_engine(folder, state)
        self.engine.load_checkpoint(str(where), tag=PARTS)
        return int(state["step"])

    def finish(self) -> None:
        """Give rank 0 the whole weights, in CPU memory at stage 3, and make the model an ordinary one again."""
        model = self.module.model
        whole: dict[int, torch.nn.Parameter] = {}
        if self.stage == 3:
            for p in model.parameters():
                with self.deepspeed.zero.GatheredParameters([p]):
                    if rank() == 0:
                        whole[id(p)] = torch.nn.Parameter(p.detach().to("cpu", copy=True), p.requires_grad)
        self.engine.destroy()
        for module in model.modules() if whole else ():
            module._parameters = {n: None if p is None else whole[id(p)] for n, p in module._parameters.items()}
        for _, p in model.named_parameters() if rank() == 0 else ():
            assert p.numel() == math.prod(getattr(p, "ds_shape", p.shape)), "a weight is not whole"
        del self.engine
        gc.collect()


Engine = Plain | Zero


def engine(opt: torch.optim.Optimizer, named: Named, clip: float, model: Any, cluster: Cluster, place: Place) -> Engine:
    """Meet the other processes and take the engine that ``--zero`` asks for."""
    begin(place, cluster)
    assert model is not None or not cluster.zero, "Work.model is what DeepSpeed shares out"
    return Zero(opt, named, clip, model, cluster, place) if cluster.zero else Plain(opt, named, clip)


def _agree(named: Named) -> None:
    """Everyone starts from rank 0's weights: new adapters are drawn at random."""
    if dist.is_initialized():
        for _, p in named:
            dist.broadcast(p.data, 0)


def _newest(folder: Folder) -> tuple[Path | None, dict[str, Any]]:
    """The checkpoint all go on from (rank 0 looks which is whole), and what it holds: {} where there is none."""
    if (where := gather(folder.newest() if rank() == 0 else None)[0]) is None:
        return None, {}
    state = read_state(where)
    if len(streams := state["random"]) == world():
        checkpoints.set_random_state(streams[rank()])
    return where, state


def _other_engine(folder: Folder, state: dict[str, Any]) -> XwinError:
    made = f"--zero {state['stage']} and {state['world']} processes" if "stage" in state else "no --zero"
    return XwinError(
        f"{folder.part}: the checkpoint was made with {made}, this run has --zero or --gpus otherwise",
        "go on with the same, or start anew with --force",
    )


def _deepspeed(place: Place) -> Any:
    """DeepSpeed, without compiling anything on a CPU and without its talk."""
    if place.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import warnings

    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import logger

    if place.device.type == "cpu":  # its shared-memory kernels take a minute of compiling
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logger.setLevel("ERROR")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend="nccl" if place.device.type == "cuda" else "gloo", verbose=False)
    return deepspeed


def deepspeed_options(model: Any, cluster: Cluster, clip: float, place: Place) -> dict[str, Any]:
    """DeepSpeed's configuration.

    The loop says which row of a step is the last, since their number varies: the accumulation of 2 is no count, but
    at 1 DeepSpeed would take shortcuts that hold for one row a step.
    """
    zero: dict[str, Any] = {"stage": cluster.zero}
    if cluster.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if cluster.offload == "all":
        zero["offload_param"] = {"device": "cpu"}
    if cluster.zero == 3:
        zero["stage3_param_persistence_threshold"] = 10 * model.config.get_text_config().hidden_size
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": clip,
        "bf16": {"enabled": place.dtype == torch.bfloat16, "check_grad_overflow": True},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 30,
    }
