"""Fixtures every test may use: the micro policy, and the command line as a user runs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes of two threads would each be many times slower
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random micro Llama and its tokenizer."""
    import micro

    return micro.policy(tmp_path_factory.mktemp("micro") / "policy")


@pytest.fixture
def xwin(tmp_path: Path):
    """Run ``xwin …`` as a process in a fresh folder: ``xwin("sample", "--n", 2, stdin=…)``."""
    import process

    def call(*args: object, stdin: str | None = None, code: int = 0, cwd: Path = tmp_path):
        done = process.run(args, cwd, stdin)
        assert done.returncode == code, f"{done.args} -> {done.returncode}\n{done.stderr[-4000:]}"
        return done

    return call
