"""The check of a graphics card, run whole on the CPU with micro shapes; and that it can say no."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from xwincli import attention
from xwincli.errors import XwinError

BENCH = Path(__file__).parents[1] / "bench"
MICRO = ["--device", "cpu", "--layers", "2", "--hidden", "64"]


@pytest.fixture
def check(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(BENCH)
    spec = importlib.util.spec_from_file_location("gpu_check", BENCH / "gpu_check.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_check", module)
    spec.loader.exec_module(module)
    return module


def test_all_of_it_on_the_cpu(check, capsys):
    assert check.main(MICRO) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if "│" in line]
    assert sum(" ok " in line for line in lines) == len(lines) == 15
    parts = "attention: shared|attention: segments|window 4|softcap 2|memory: shared|hidden states|bfloat16|4/2 heads"
    for part in (*parts.split("|"), "xwin sft", "xwin train-rm", "xwin dpo", "xwin sample"):
        assert part in out


def test_a_wrong_kernel_is_found(check, capsys, monkeypatch):
    right = attention.compute

    def wrong(backend, *args):
        out = right(backend, *args)
        return out * 1.05 if backend == "shared" else out

    monkeypatch.setattr(attention, "compute", wrong)
    found = check.kernels(torch.device("cpu"), 4, 2, 8, 12, 3)
    assert {f.check for f in found if not f.good} == {"attention: shared"}
    monkeypatch.setattr(check, "stages", lambda *_: [])
    assert check.main(MICRO) == 1
    assert "WRONG" in capsys.readouterr().out


def test_a_kernel_that_keeps_copies_is_found(check, monkeypatch):
    right = attention.compute

    def greedy(*args):
        out = right(*args)
        return (out * torch.ones(8, *out.shape, dtype=out.dtype)).mean(0)

    assert [f.good for f in check.long_prompt(torch.device("cpu"), 4, 2, 8, 256)] == [True]
    monkeypatch.setattr(attention, "compute", greedy)
    assert [f.good for f in check.long_prompt(torch.device("cpu"), 4, 2, 8, 256)] == [False]


def test_a_stage_that_fails_is_a_line(check, monkeypatch, tmp_path):
    def fails(*_):
        raise XwinError("out of luck")

    for name in ("train_rm", "dpo", "sample"):
        monkeypatch.setattr(check, name, lambda *_: (True, "fine", 1))
        getattr(check, name).__name__ = name
    fails.__name__ = "sft"
    monkeypatch.setattr(check, "sft", fails)
    found = check.stages(tmp_path, "", torch.device("cpu"), "float32", 2)
    assert [(f.check, f.good) for f in found] == [
        ("xwin sft", False), ("xwin train-rm", True), ("xwin dpo", True), ("xwin sample", True),
    ]  # fmt: skip
    assert "out of luck" in found[0].found


def test_without_cuda_it_says_so(check, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main([]) == 0
    out = capsys.readouterr().out
    assert out.endswith("sees no CUDA device here: nothing was checked\n")
    assert len(out.splitlines()) == 1
