"""What the documents say is true: commands parse, the reference is current, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from xwincli import flags
from xwincli.cli import STAGES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(?:sh)?\n(.*?)```", README, re.S)
COMMANDS = [
    re.sub(r"\s*(\s#.*|>.*)$", "", part).strip()
    for block in BLOCKS
    for line in block.splitlines()
    for part in line.split(" | ")
    if part.strip().startswith("xwin")
]
LINKS = re.findall(r"\]\(([^)#]+)\)", README)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_is_accepted(command):
    """Each parses into its stage's config: flags that no longer exist fail here."""
    words = shlex.split(command)[1:]
    name = next(n for n in sorted(STAGES, key=len, reverse=True) if words[: len(n.split())] == n.split())
    config = import_module(STAGES[name][0]).Config
    assert flags.command(name, config, "")(words[len(name.split()) :]) is not None


def test_the_readme_shows_every_stage():
    assert {n for n in STAGES if any(c.startswith(f"xwin {n}") for c in COMMANDS)} == set(STAGES)


@pytest.mark.parametrize("link", [x for x in LINKS if not x.startswith("http")])
def test_every_link_leads_somewhere(link):
    assert (ROOT / link).exists()


def test_the_readme_s_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {m for block in BLOCKS for m in re.findall(r"^make (\w+)", block, re.M)} <= targets


def test_the_reference_is_current():
    made = subprocess.run([sys.executable, ROOT / "docs" / "reference.py"], capture_output=True, text=True, check=True)
    assert made.stdout == (ROOT / "docs" / "cli.md").read_text(), "run `make docs`"


def test_the_readme_s_pipeline_runs(xwin, policy, tmp_path):
    """The stages' one-liners in their order, on a micro model: what one writes is what the next reads."""
    examples = tmp_path / "examples" / "demo"
    examples.mkdir(parents=True)
    for split in ("pair", "set", "ppo"):
        rows = (ROOT / "examples" / "demo" / f"{split}.jsonl").read_text().splitlines(keepends=True)[:4]
        (examples / f"{split}.jsonl").write_text("".join(rows))
    (tmp_path / "base").symlink_to(policy)
    (tmp_path / "prompts.jsonl").write_text('{"prompt":"why ?"}\n')
    talk = '{"messages":[{"role":"user","content":"why ?"},{"role":"assistant","content":"because ."}]}\n'
    (tmp_path / "conversations.jsonl").write_text(talk * 3)
    smaller = {
        "--train-top 15": "--train-top 1",
        "--max-tokens 48": "--max-tokens 8",
        "--iterations 6 --prompts 16": "--iterations 1 --prompts 2",
    }
    block = next(b for b in BLOCKS if "xwin convert" in b and "--model" in b)
    for line in block.splitlines():
        for before, after in smaller.items():
            line = line.replace(before, after)
        words = shlex.split(line)[1:]
        if words[0] in ("convert", "eval", "report"):
            continue  # a gguf file, and evaluation files the reader has sampled: covered by the smoke test
        if words[0] == "rs-filter":
            words.append("--keep-cut")
        xwin(*words)
    assert (tmp_path / "ppo" / "xwin.json").exists()
