"""Several processes from one command: who takes part, what is refused, and one voice when something goes wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from importlib import import_module
from pathlib import Path

import pytest

import process
from xwincli import flags, launch, manifest
from xwincli.cli import STAGES
from xwincli.errors import XwinError
from xwincli.stages import ppo, sft
from xwincli.train import parallel
from xwincli.train.folder import read_state

RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
ROOT = Path(__file__).parents[1]
CPU = ["--device", "cpu", "--dtype", "float32", "--batch", "2"]


@pytest.fixture(autouse=True)
def nobody_started_us(monkeypatch):
    """What the code sets in the environment, and how signals are taken, is as before after the test."""
    for name in [*RANKS, *(n for n in os.environ if n.startswith("SLURM"))]:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, taken in before.items():
        signal.signal(number, taken)


def talks(file: Path, count: int = 6) -> Path:
    turns = lambda i: [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": "so " * (1 + i % 3)}]
    file.write_text("".join(json.dumps({"id": f"row-{i}", "messages": turns(i)}) + "\n" for i in range(count)))
    return file


def config(tmp_path, **options):
    return flags.build(sft.Config, {"model": "m", "out": str(tmp_path / "o"), "data": ["d.jsonl"], **options})


# -- who takes part


def test_torchrun_s_variables(monkeypatch):
    assert launch.taking_part() is None
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert launch.taking_part() == 4
    assert (parallel.world(), parallel.rank()) == (4, 1)


def test_slurm_s_variables(monkeypatch):
    slurm = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    assert launch.taking_part() is None, "a batch script is no task of a step"
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    with pytest.raises(XwinError, match="MASTER_ADDR") as e:
        launch.taking_part()
    assert "scontrol" in e.value.hint
    monkeypatch.setenv("MASTER_ADDR", "node-1")
    assert launch.taking_part() == 8
    assert [os.environ[n] for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["3", "8", "1"]


def test_a_step_of_one_task_is_one_process(monkeypatch):
    for name, value in (("SLURM_PROCID", "0"), ("SLURM_NTASKS", "1"), ("SLURM_STEP_ID", "0")):
        monkeypatch.setenv(name, value)
    assert launch.taking_part() is None


# -- what is refused


@pytest.mark.parametrize(
    "options,message",
    [
        ({"offload": "optimizer"}, "needs --zero"),
        ({"zero": 2, "offload": "all"}, "--offload all needs --zero 3, not 2"),
        ({"gpus": 2, "device": "cuda:1"}, "--gpus 2 needs more than --device cuda:1"),
        ({"gpus": 64}, "--gpus is 64, but torch sees"),
        ({"zero": 3, "lora_r": 2, "quantize": "nf4"}, "--zero 3 cannot share out weights in nf4"),
        ({"zero": 2, "optimizer": "adamw8bit"}, "8-bit blocks"),
    ],
)
def test_refused_before_anything_starts(tmp_path, options, message):
    with pytest.raises(XwinError, match=message):
        sft.run(config(tmp_path, **options))


def test_zero_without_deepspeed(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    with pytest.raises(XwinError, match="needs DeepSpeed") as e:
        sft.run(config(tmp_path, zero=2))
    assert "pip install" in e.value.hint


def test_ppo_runs_in_one_process(tmp_path, monkeypatch):
    make = lambda **more: flags.build(ppo.Config, {"model": "m", "rm": "r", "out": str(tmp_path / "o"), **more})
    for more in ({"gpus": 2}, {"zero": 1}):
        with pytest.raises(XwinError, match="xwin ppo runs in one process"):
            ppo.run(make(**more))
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(XwinError, match="xwin ppo runs in one process"):
        ppo.run(make())


@pytest.mark.parametrize(
    "options,message",
    [({"gpus": 3}, "--gpus is 3, but the launcher started 2"), ({"data": ["-"]}, "cannot share standard input")],
)
def test_refused_under_a_launcher(tmp_path, monkeypatch, options, message):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(launch.CLAIM, str(tmp_path / "claim"))
    with pytest.raises(XwinError, match=message):
        sft.run(config(tmp_path, **options))


def test_only_the_first_that_fails_speaks(tmp_path, monkeypatch):
    monkeypatch.setenv(launch.CLAIM, str(tmp_path / "claim"))
    with pytest.raises(XwinError), launch.one_voice():
        raise XwinError("first", code=4)
    assert (tmp_path / "claim").read_text() == "4"
    assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == signal.SIG_IGN, "it ends anyhow"
    for error, code in ((XwinError("second", code=3), 3), (RuntimeError("third"), 1), (KeyboardInterrupt(), 130)):
        with pytest.raises(SystemExit) as e, launch.one_voice():
            raise error
        assert e.value.code == code


def test_a_claim_of_processes_long_gone_does_not_silence_anyone(tmp_path, monkeypatch):
    claim = tmp_path / "claim"
    monkeypatch.setenv(launch.CLAIM, str(claim))
    claim.write_text("1")
    os.utime(claim, (1, 1))
    with pytest.raises(XwinError, match="now"), launch.one_voice():
        raise XwinError("now")


def test_under_nohup_a_hang_up_ends_nothing(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr("torch.distributed.run.run", given.append)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        parallel.torchrun(2, ["script.py"], str(tmp_path))
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        parallel.torchrun(2, ["script.py"], str(tmp_path))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert [a.signals_to_handle for a in given] == ["SIGTERM,SIGINT", "SIGTERM,SIGINT,SIGHUP"]
    assert [a.nproc_per_node for a in given] == ["2", "2"]


@pytest.mark.parametrize("option,shown", [(["--show", 1], "row 1 of 6"), (["--plan"], "0.0M parameters")])
def test_what_only_shows_starts_no_processes(xwin, policy, tmp_path, option, shown):
    """So it answers for a machine with more GPUs than are here."""
    data = talks(tmp_path / "d.jsonl")
    done = xwin("sft", "--model", policy, "--data", data, "--gpus", 64, "--out", "m", *option)
    assert shown in done.stderr
    assert [p.name for p in tmp_path.glob("m*")] == []


# -- examples


def test_the_recipe_for_eight_gpus_is_accepted():
    text = (ROOT / "examples" / "7b-8gpu" / "recipe.mk").read_text().replace("\\\n", " ")
    values = dict(re.findall(r"^(\w+) *[?:]= *(.*)$", text, re.M))
    for name, stage in (("SFT", "sft"), ("RM", "train-rm"), ("DPO", "dpo"), ("PPO", "ppo")):
        words = f"{values['TRAIN']} {values[f'{name}_ARGS']}".replace("$(CLUSTER)", values["CLUSTER"]).split()
        module = import_module(STAGES[stage][0])
        needed = ["--model", "m", "--out", "o", "--data", "d", *(["--rm", "r"] if stage == "ppo" else [])]
        made = flags.command(stage, module.Config, "")([*needed, *words])
        assert (made.cluster.gpus, made.cluster.zero) == ((8, 3) if stage != "ppo" else (1, 0))


def test_the_batch_script_runs_the_command_under_srun(tmp_path):
    for name, text in (("srun", 'echo "$MASTER_ADDR $MASTER_PORT $*"'), ("scontrol", "echo node-7; echo node-8")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "node-[7-8]"}
    script = ROOT / "examples" / "slurm" / "train.sbatch"
    done = subprocess.run(["bash", script, "sft", "--out", "a b"], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "node-7 20041 --kill-on-bad-exit=1 xwin sft --out a b\n"


# -- the command line with two processes


def test_standard_input_is_read_once_for_all(xwin, policy, tmp_path):
    data = talks(tmp_path / "d.jsonl").read_text()
    one = xwin("sft", "--model", policy, *CPU, "--out", "one", stdin=data)
    two = xwin("sft", "--model", policy, *CPU, "--out", "two", "--gpus", 2, stdin=data)
    assert one.stdout == two.stdout == ""
    notes = [line for line in two.stderr.splitlines() if not line.startswith("sft: ")]
    assert sorted(notes) == sorted({*notes}), "something was said twice"
    assert [n for n in notes if "saved" in n] == ["saved two"]
    logs = [[json.loads(r) for r in (tmp_path / f / "metrics.jsonl").read_text().splitlines()] for f in ("one", "two")]
    assert [r["loss"] for r in logs[1]] == pytest.approx([r["loss"] for r in logs[0]], abs=1e-5)
    made = [manifest.read(tmp_path / f) for f in ("one", "two")]
    assert made[0]["key"] == made[1]["key"], "--gpus does not decide the result"
    assert made[1]["inputs"][0] == {"path": "-"}
    assert made[1]["execution"]["gpus"] == 2


def test_an_error_of_all_is_said_once(xwin, policy, tmp_path):
    data = talks(tmp_path / "d.jsonl")
    command = ("sft", "--model", policy, "--data", data, *CPU, "--gpus", 2, "--lr", "1e30", "--clip", 0, "--out", "m")
    done = xwin(*command, code=1)
    assert done.stderr.count("so the step was not taken") == 1
    assert done.stderr.count("error: ") == 1
    assert "row-" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "m").exists()


BROKEN = """
import ctypes, os, signal, sys
from xwincli import cli
from xwincli.errors import XwinError
from xwincli.train import sft
make = sft.objective

def objective(*arguments):
    compute, calls = make(*arguments), []
    def broken(members):
        calls.append(members)
        if os.environ["RANK"] == "1" and len(calls) == 2:
            {what}
        while {stuck} and len(calls) == 2:
            ctypes.CDLL(None).sleep(99)
        return compute(members)
    return broken

sft.objective = objective
cli.main(sys.argv[1:])
"""


FAIL = 'raise XwinError("only rank 1 sees this", "mend it", 4)'
KILL = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(
    "what,code,message,stuck",
    [
        (FAIL, 4, "error: only rank 1 sees this\n  hint: mend it\n", False),
        (FAIL, 4, "error: only rank 1 sees this\n  hint: mend it\n", True),
        (KILL, 1, "error: another process of this run ended without a word\n", False),
        (KILL, 1, "error: a process of this run ended: rank 1, signal 9\n  hint: a kill without a word", True),
    ],
    ids=["error", "error-stuck", "kill", "kill-stuck"],
)
def test_a_failure_of_one_ends_all(policy, tmp_path, monkeypatch, capfd, what, code, message, stuck):
    """In seconds, with one message, which the process that failed writes.

    Also where the other waits for it in a library that returns neither then nor at a signal, as NCCL may.
    """
    script = tmp_path / "broken.py"
    script.write_text(BROKEN.format(what=what, stuck=stuck))
    start = parallel.torchrun
    monkeypatch.setattr(parallel, "torchrun", lambda n, command, folder: start(n, [str(script), *command[2:]], folder))
    data = str(talks(tmp_path / "d.jsonl"))
    options = {"data": [data], "model": str(policy), "device": "cpu", "dtype": "float32", "batch": 2, "gpus": 2}
    begun = time.monotonic()
    with pytest.raises((SystemExit, XwinError)) as e:
        sft.run(config(tmp_path, **options))
    said = capfd.readouterr().err
    if isinstance(e.value, XwinError):  # which the command line prints
        said += f"error: {e.value.message}\n  hint: {e.value.hint}\n"
    assert e.value.code == code
    assert said.count(message) == said.count("error: ") == 1, said
    assert "Traceback" not in said
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_ctrl_c_finishes_the_step_and_saves(policy, tmp_path, sign):
    """SIGTERM, as a scheduler sends it, to the command alone: both processes save the same step and end.

    Where the command is killed they do so too, instead of running on without it.
    """
    data = talks(tmp_path / "d.jsonl")
    files = [tmp_path / n for n in ("in", "out", "err")]
    files[0].write_text("")
    command = ("sft", "--model", policy, "--data", data, *CPU, "--gpus", 2, "--epochs", 3000, "--out", "m")
    running = process.start(command, tmp_path, *files)
    log, begun = tmp_path / "m.partial" / "metrics.jsonl", time.monotonic()
    while not (log.exists() and log.stat().st_size) and time.monotonic() - begun < 100:
        time.sleep(0.1)
    os.kill(running.pid, sign)
    running.join(60)
    while not files[2].read_text().count("interrupted") and time.monotonic() - begun < 160:
        time.sleep(0.1)
    said = files[2].read_text()
    assert running.exitcode == (130 if sign == signal.SIGTERM else -9), said
    assert said.count("interrupted; the same command goes on where it stopped") == 1
    assert "Traceback" not in said
    state = read_state(max((tmp_path / "m.partial" / "checkpoints").iterdir()))
    assert state["step"] == len(log.read_text().splitlines())
