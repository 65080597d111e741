"""The Makefile: what it would run, in which order, and what a changed variable redoes. No stage runs here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def make(tmp_path: Path):
    """``make`` on a copy of the recipe whose ``xwin`` only notes its call and makes its artifact."""
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    fake = tmp_path / ".venv" / "bin" / "xwin"
    fake.parent.mkdir(parents=True)
    fake.write_text(
        "#!/bin/sh\n"
        'echo "$@" >> calls\n'
        'while [ $# -gt 0 ]; do [ "$1" = --out ] && out=$2; shift; done\n'
        'case "$out" in *.jsonl|*.html) mkdir -p "$(dirname "$out")"; echo > "$out";;'
        ' *) mkdir -p "$out"; echo > "$out/xwin.json";; esac\n'
    )
    fake.chmod(0o755)
    (tmp_path / ".venv" / ".ready").touch()
    (tmp_path / "model").mkdir()

    def call(*args: str) -> list[str]:
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
        command = ["make", "--no-print-directory", "all", "MODEL=model", *args]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        lines = calls.read_text().splitlines() if calls.exists() else []
        found = [re.search(r"--out \S*?([\w-]+)(\.jsonl|\.html)?$", line) for line in lines if "--text" not in line]
        return [m[1] for m in found if m]

    return call


def test_the_recipe_in_order_once(make):
    order = make()
    assert sorted(order) == sorted(
        ["pair", "judgements", "rm", "set", "scored", "rs-data", "control-data", "pairs", "rs", "control", "dpo", "ppo"]
        + ["base", "control", "rs", "dpo", "ppo", "compare", "report"]
    )
    for first, then in (
        ("pair", "judgements"),
        ("judgements", "rm"),
        ("rm", "scored"),
        ("pairs", "dpo"),
        ("rs", "ppo"),
    ):
        assert order.index(first) < order.index(then)
    assert make() == []


@pytest.mark.parametrize(
    "change,redone",
    [
        ("BETA=0.5", ["dpo", "dpo", "compare", "report"]),
        ("N_EVAL=3", ["base", "control", "rs", "dpo", "ppo", "compare", "report"]),
        ("PPO_ARGS=--iterations 1", ["ppo", "ppo", "compare", "report"]),
    ],
)
def test_a_changed_variable_redoes_only_what_follows(make, change, redone):
    make()
    assert sorted(make(change)) == sorted(redone)
    assert make(change) == []


def test_a_changed_input_redoes_only_what_follows(make, tmp_path):
    make()
    prompts = tmp_path / "examples" / "demo" / "ppo.jsonl"
    os.utime(prompts, (2**31, 2**31))
    assert sorted(make()) == sorted(["ppo", "ppo", "compare", "report"])
