"""How one command becomes several processes, and how they come to speak with one voice.

A training stage is started anew under torchrun, or takes part where torchrun, DeepSpeed's launcher or srun started it.
A stage that works row by row is started several times, each process on its own share of the rows.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from xwincli import settings
from xwincli.errors import INTERRUPTED, USAGE, USER_ERROR, XwinError
from xwincli.shards import Shard

STDIN, CLAIM = "XWIN_STDIN", "XWIN_CLAIM"  # what a launch tells its processes: files
LOST = re.compile(r"closed by peer|reset by peer|remote process exited|communicator was aborted", re.IGNORECASE)
Stage = Callable[[Any], None]


def ranks(name: str) -> Callable[[Stage], Stage]:
    """Decorator of a training stage's ``run``: its config's ``--gpus`` and ``--zero`` decide how it runs.

    One process runs it plainly. Several are started by torchrun, each with the same config; started so already,
    this process takes its part, and only the first that fails says why.
    """

    def decorate(run: Stage) -> Stage:
        @wraps(run)
        def start(config: Any) -> None:
            cluster: settings.Cluster = config.cluster
            _check(config)
            world = taking_part()
            only_shown = config.show or config.plan  # which learns nothing, and may speak of GPUs that are not here
            if world is not None:
                with one_voice():
                    _settle(config, world)
                    run(config)
            elif (cluster.gpus > 1 or cluster.zero) and not only_shown:
                _launch(name, config)
            else:
                run(config)

        return start

    return decorate


def alone(name: str, cluster: settings.Cluster) -> None:
    """Refuse several processes for a stage that runs in one."""
    if cluster.gpus > 1 or cluster.zero or (taking_part() or 1) > 1:
        raise XwinError(f"xwin {name} runs in one process", "leave --gpus, --zero and torchrun out", USAGE)


def taking_part() -> int | None:
    """The number of processes if a launcher started this one as one of them, else None.

    torchrun and DeepSpeed's launcher set RANK, WORLD_SIZE and LOCAL_RANK; inside an ``srun`` step they are taken
    from Slurm's own variables.
    """
    env = os.environ
    if "SLURM_STEP_ID" in env and "SLURM_PROCID" in env and "RANK" not in env:
        count = env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1"))
        if int(count) == 1:
            return None
        if "MASTER_ADDR" not in env:
            raise XwinError(
                "srun started several tasks, but MASTER_ADDR is not set",
                "export MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -1) MASTER_PORT=29500",
            )
        env.setdefault("MASTER_PORT", "29500")
        env |= {"RANK": env["SLURM_PROCID"], "WORLD_SIZE": count, "LOCAL_RANK": env.get("SLURM_LOCALID", "0")}
    if not all(name in env for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")):
        return None
    return int(env["WORLD_SIZE"])


def _check(config: Any) -> None:
    cluster: settings.Cluster = config.cluster
    if cluster.offload != "none" and not cluster.zero:
        raise XwinError("--offload is DeepSpeed's and needs --zero", "add --zero 2 or --zero 3", USAGE)
    if cluster.offload == "all" and cluster.zero != 3:
        raise XwinError(f"--offload all needs --zero 3, not {cluster.zero}: weights are whole below it", "", USAGE)
    if cluster.zero == 3 and config.adapt.quantize != "none":
        raise XwinError(f"--zero 3 cannot share out weights in {config.adapt.quantize}", "use --zero 2 or none", USAGE)
    if cluster.zero and config.optim.optimizer == "adamw8bit":
        message = "--zero cuts the optimizer's state where its 8-bit blocks are not, so the result would depend on it"
        raise XwinError(message, "leave --optimizer adamw8bit out: --zero shares the state out already", USAGE)
    if cluster.zero and find_spec("deepspeed") is None:
        raise XwinError("--zero needs DeepSpeed, which is not installed", "pip install 'xwincli[deepspeed]'")


# -- in each process


def _settle(config: Any, world: int) -> None:
    """This process's own standard input and device."""
    if (gpus := config.cluster.gpus) > 1 and gpus not in (world, int(os.environ.get("LOCAL_WORLD_SIZE", world))):
        raise XwinError(f"--gpus is {gpus}, but the launcher started {world} processes", "leave --gpus out", USAGE)
    if CLAIM in os.environ:
        _end_with_the_launcher()
    if path := os.environ.get(STDIN):
        os.dup2(os.open(path, os.O_RDONLY), 0)
    elif world > 1 and "-" in config.data:
        raise XwinError("several processes cannot share standard input", "name a file with --data")
    if config.device.device in ("auto", "cuda"):
        import torch

        if torch.cuda.is_available():
            config.device.device = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"


def _end_with_the_launcher() -> None:
    """On Linux: where the command that started us is killed, no process stays on its GPU; each saves and ends."""
    with suppress(OSError, AttributeError):
        set_parent_death_signal = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


@contextmanager
def one_voice() -> Iterator[None]:
    """Of all the processes on a machine only the first that fails says why; the others leave in silence."""
    try:
        yield
    except XwinError as e:
        if not _first(e.code):
            raise SystemExit(e.code) from None
        raise
    except KeyboardInterrupt:
        if not _first(INTERRUPTED):
            raise SystemExit(INTERRUPTED) from None
        raise
    except Exception as e:
        if not _first(USER_ERROR):
            raise SystemExit(USER_ERROR) from None
        if isinstance(e, RuntimeError) and LOST.search(str(e)):
            raise XwinError("another process of this run ended without a word", "was it out of memory?") from e
        raise


def _claim() -> Path:
    """The file that the first to fail makes: one a launch and machine."""
    made_for = f"xwin-{os.getuid()}-{os.getppid()}"
    return Path(os.environ.get(CLAIM) or Path(tempfile.gettempdir()) / made_for)


_started = time.time()


def _first(code: int) -> bool:
    """True for the first process that asks; its exit code is kept.

    Whoever asks is on its way out, so that no signal, as a launcher sends when another failed, is of use to it.
    """
    for number in (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ():
        signal.signal(number, signal.SIG_IGN)
    path = _claim()
    with suppress(OSError):
        if path.stat().st_mtime < _started - 60:  # left by processes that are long gone
            path.unlink()
    try:
        with path.open("x") as f:
            f.write(str(code))
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


# -- in the process that starts the others


def _launch(name: str, config: Any) -> None:
    """Run the stage under torchrun and leave with its exit code."""
    cluster: settings.Cluster = config.cluster
    _check_devices(cluster.gpus, config.device.device)
    from xwincli.train import parallel

    with tempfile.TemporaryDirectory(prefix="xwin-") as folder:
        claim, options = Path(folder) / "claim", Path(folder) / "options.json"
        environment = {CLAIM: str(claim), **_spooled(config, Path(folder))}
        options.write_text(json.dumps(settings.values(config)))
        command = ["-m", "xwincli", *name.split(), "--config", str(options)]
        try:
            with _set(environment):
                lost = parallel.torchrun(cluster.gpus, command, folder)
        finally:
            if claim.exists():  # one of them has said why
                raise SystemExit(int(claim.read_text() or USER_ERROR))
    if lost is not None:
        raise XwinError(f"a process of this run ended: {lost}", "a kill without a word is mostly lack of memory")


def fan_out(name: str, config: Any) -> bool:
    """With ``--gpus N``: run the stage N times at once, each on a shard and a GPU of its own; False with one.

    No process waits for another. Where one fails the others go on; where this one is told to end, all are.

    Raises:
        SystemExit: with the exit code of the first that failed; it has said why.
    """
    scale: settings.Scale = config.scale
    if CLAIM in os.environ:
        _end_with_the_launcher()
    if scale.gpus == 1:
        return False
    if config.out == "-":
        raise XwinError("--gpus makes shards, which cannot share standard output", "name a file with --out", USAGE)
    _check_devices(scale.gpus, config.device.device)
    here = Shard.parse(scale.shard)
    with tempfile.TemporaryDirectory(prefix="xwin-") as folder:
        environment = _spooled(config, Path(folder))
        config.data = [environment.get(STDIN, source) if source == "-" else source for source in config.data]
        threads = str(max((os.cpu_count() or 1) // scale.gpus, 1))
        processes = []
        for i in range(scale.gpus):
            number = f"{(here.index - 1) * scale.gpus + i + 1}/{here.of * scale.gpus}"
            options = Path(folder) / f"options{i}.json"
            given = {"shard": number, "gpus": 1, "device": _device(config.device.device, i)}
            options.write_text(json.dumps(settings.values(config) | given))
            env = {"OMP_NUM_THREADS": threads, **os.environ, "RANK": str(i), CLAIM: str(Path(folder) / "claim")}
            command = [sys.executable, "-m", "xwincli", *name.split(), "--config", str(options)]
            processes.append(subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL))
        codes = _all_ended(processes)
    if failed := [code for code in codes if code]:
        if any(code < 0 for code in failed):
            code = next(code for code in failed if code < 0)
            hint = "a kill without a word is mostly lack of memory; the same command goes on"
            raise XwinError(f"a process of this run ended: signal {-code}", hint)
        raise SystemExit(failed[0])
    return True


def _device(device: str, number: int) -> str:
    """The device of one process of several."""
    if device not in ("auto", "cuda"):
        return device
    import torch

    return f"cuda:{number}" if torch.cuda.is_available() else "cpu"


def _all_ended(processes: list[subprocess.Popen[bytes]]) -> list[int]:
    """Exit codes; told to end, this process ends the others first."""
    try:
        return [p.wait() for p in processes]
    except KeyboardInterrupt:
        for p in processes:
            p.terminate()
        for p in processes:
            p.wait()
        raise


def _check_devices(gpus: int, device: str) -> None:
    kind, _, number = device.partition(":")
    if gpus > 1 and (number or kind == "mps"):
        raise XwinError(f"--gpus {gpus} needs more than --device {device}", "use --device cuda or cpu", USAGE)
    if kind == "cpu":
        return
    import torch

    found = torch.cuda.device_count()
    if gpus > max(found, 1):
        seen = f"only {found} here" if found else "none here"
        raise XwinError(f"--gpus is {gpus}, but torch sees {seen}", "--device cpu runs the processes on the CPU")


def _spooled(config: Any, folder: Path) -> dict[str, str]:
    """Copy what can be read only once into files; returns what the processes must know of it."""
    environment = {}
    for i, source in enumerate(config.data):
        if source == "-":
            environment[STDIN] = str(folder / "stdin")
            with (folder / "stdin").open("wb") as f:
                shutil.copyfileobj(sys.stdin.buffer, f)
        elif Path(source).is_fifo():
            with Path(source).open("rb") as pipe, (folder / f"pipe{i}").open("wb") as f:
                shutil.copyfileobj(pipe, f)
            config.data[i] = str(folder / f"pipe{i}")
    return environment


@contextmanager
def _set(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
