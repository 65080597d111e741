"""`xwin sample` stopped by a scheduler or a full disk: it says so, and the same command goes on."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_sample import prompts, write


def command(*options: object) -> list[str]:
    return [sys.executable, "-m", "xwincli", "sample", *map(str, options)]


def test_sigterm_keeps_what_is_finished(xwin, tmp_path, policy):
    data = write(tmp_path / "p.jsonl", prompts(40))
    options = ["--model", policy, "--data", data, "--n", 4, "--max-tokens", 40, "--rows", 8, "--deterministic"]
    xwin("sample", *options, "--out", "whole.jsonl")
    running = subprocess.Popen(command(*options, "--out", "cut.jsonl"), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    partial, deadline = tmp_path / "cut.jsonl.partial", time.monotonic() + 200
    while not (partial.exists() and partial.read_bytes().count(b"\n") > 5):
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(running.pid, signal.SIGTERM)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130 and "the same command goes on" in said and "Traceback" not in said
    done = partial.read_bytes().count(b"\n") - 1
    assert f"going on after {done} finished rows" in xwin("sample", *options, "--out", "cut.jsonl").stderr
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("room", [0.0, 0.3, 0.6, 0.99])
def test_a_full_disk_is_one_sentence_and_costs_nothing_finished(xwin, tmp_path, room):
    """A limit on the size of files stands for the disk: writing fails in the middle of a line, as it does there."""
    data = write(tmp_path / "p.jsonl", prompts(200))
    options = ["--engine", "echo", "--data", data, "--n", 4]
    xwin("sample", *options, "--out", "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    limit = int(len(whole) * room) + 10

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    cut = command(*options, "--out", "cut.jsonl")
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(cut, cwd=tmp_path, capture_output=True, text=True, preexec_fn=full, env=env)
    assert done.returncode == 1, done.stderr
    assert "cannot write: File too large" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "cut.jsonl").exists() and not list(Path(tmp_path).glob(".*.tmp"))
    again = xwin("sample", *options, "--out", "cut.jsonl")
    assert (tmp_path / "cut.jsonl").read_bytes() == whole
    assert ("going on after" in again.stderr) == (room > 0)
