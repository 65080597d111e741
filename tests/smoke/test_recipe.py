"""The whole recipe through the real command line on a micro model: every stage, a Unix pipe, kills, and make."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import micro
import process

TRAIN = ("--batch", 8, "--lr", "1e-3")
DEMO = Path(__file__).parents[2] / "examples" / "demo"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    """A folder with a micro policy and some prompts, and ``xwin`` in it; stages add their artifacts."""
    folder = tmp_path_factory.mktemp("run")
    micro.policy(folder / "base")
    for split, count in (("pair", 12), ("set", 8), ("eval", 6), ("ppo", 4)):
        rows = (DEMO / f"{split}.jsonl").read_text().splitlines(keepends=True)[:count]
        (folder / f"{split}.jsonl").write_text("".join(rows))

    def xwin(*args: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = process.run(args, folder)
        assert done.returncode == code, f"{done.args}: {done.stderr[-3000:]}"
        return done

    xwin.folder = folder  # type: ignore[attr-defined]
    return xwin


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_stage(run):
    """sample, judge, train-rm, score, rs-filter, sft, dpo, ppo, eval, report: each feeds the next."""
    f = run.folder
    draw = ("--temperature", 1, "--max-tokens", 12)
    run("sample", "--model", "base", "--data", "pair.jsonl", "--n", 4, *draw, "--out", "pairs.jsonl")
    run("judge", "--data", "pairs.jsonl", "--pairs", 2, "--out", "judgements.jsonl")
    run("train-rm", "--model", "base", "--data", "judgements.jsonl", "--valid", 0.3, *TRAIN, "--out", "rm")
    run("sample", "--model", "base", "--data", "set.jsonl", "--n", 6, *draw, "--unique", "--out", "groups.jsonl")
    run("score", "--rm", "rm", "--data", "groups.jsonl", "--out", "scored.jsonl")
    run("rs-filter", "--data", "scored.jsonl", "--emit", "best", "--keep-cut", "--out", "rs.jsonl")
    run("rs-filter", "--data", "scored.jsonl", "--emit", "random", "--keep-cut", "--out", "control.jsonl")
    run("rs-filter", "--data", "scored.jsonl", "--emit", "pairs", "--keep-cut", "--out", "dpo.jsonl")
    run("sft", "--model", "base", "--data", "rs.jsonl", *TRAIN, "--out", "rs")
    run("sft", "--model", "base", "--data", "control.jsonl", *TRAIN, "--lora-r", 2, "--out", "control")
    run("dpo", "--model", "rs", "--data", "dpo.jsonl", *TRAIN, "--train-top", 1, "--out", "dpo")
    ppo = ("--iterations", 1, "--prompts", 2, "--n", 2, "--max-tokens", 8, "--advantage", "group")
    run("ppo", "--model", "rs", "--rm", "rm", "--data", "ppo.jsonl", *ppo, "--out", "ppo")
    for name in ("base", "control", "rs", "dpo", "ppo"):
        run("sample", "--model", name, "--data", "eval.jsonl", "--n", 2, *draw, "--out", f"eval/{name}.jsonl")
    answers = [f"eval/{name}.jsonl" for name in ("base", "control", "rs", "dpo", "ppo")]
    run("eval", "compare", *answers, "--judge", "rules", "--out", "compare")
    run("report", "--data", ".", "--out", "report.html")
    table = run("report", "--data", ".", "--text", "--out", "report.html").stdout

    assert [m["name"] for m in json.loads((f / "compare" / "eval.json").read_text())["models"]] == [
        "base", "control", "rs", "dpo", "ppo",
    ]  # fmt: skip
    assert all(name in table for name in ("base", "control", "rs", "dpo", "ppo", "report.html"))
    assert len(rows(f / "groups.jsonl")) == 8
    assert all(
        len(g["responses"]) == 6 and all("rm" in r["scores"] for r in g["responses"]) for g in rows(f / "scored.jsonl")
    )
    assert len(rows(f / "rs.jsonl")) == len(rows(f / "control.jsonl")) == 8
    for manifest in f.rglob("*xwin.json"):
        made = json.loads(manifest.read_text())
        for source in made["inputs"]:
            assert (f / source["path"]).exists(), (manifest, source)
    assert not list(f.rglob("*.partial")) + list(f.rglob("*.failed.jsonl")) + list(f.rglob(".*tmp"))


def test_the_artifacts_open_with_plain_transformers(run):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    for name in ("rs", "control", "dpo", "ppo"):
        AutoModelForCausalLM.from_pretrained(run.folder / name)
        assert AutoTokenizer.from_pretrained(run.folder / name).chat_template
    assert AutoModelForSequenceClassification.from_pretrained(run.folder / "rm").config.num_labels == 1


def test_a_second_run_does_nothing(run):
    again = run("score", "--rm", "rm", "--data", "groups.jsonl", "--out", "scored.jsonl")
    assert "up to date" in again.stderr


def test_a_pipe_equals_the_files(run):
    """xwin sample | xwin score | xwin rs-filter, streaming through standard input and output."""
    x = f"{sys.executable} -m xwincli"
    draw = "--n 6 --temperature 1 --max-tokens 12 --unique"
    line = (
        f"set -o pipefail; {x} sample --model base --data set.jsonl {draw}"
        f" | {x} score --rm rm | {x} rs-filter --emit best --keep-cut > piped.jsonl"
    )
    subprocess.run(["bash", "-c", line], cwd=run.folder, check=True, capture_output=True, timeout=120)
    texts = [[m["content"] for m in r["messages"]] for r in rows(run.folder / "piped.jsonl")]
    assert texts == [[m["content"] for m in r["messages"]] for r in rows(run.folder / "rs.jsonl")]


@pytest.mark.parametrize(
    "args",
    [
        ("sample", "--model", "base", "--data", "pair.jsonl", "--n", 6, "--max-tokens", 32, "--rows", 2),
        ("judge", "--data", "many.jsonl", "--pairs", "all"),
    ],
    ids=["sample", "judge"],
)
def test_kill_9_and_the_same_command_again(run, args):
    """Nothing lost, repeated or different after a kill in the middle."""
    f = run.folder
    if not (f / "many.jsonl").exists():
        group = rows(f / "pairs.jsonl")[0]
        lines = [json.dumps({**group, "id": str(i), "category": str(i)}) for i in range(2000)]
        (f / "many.jsonl").write_text("\n".join(lines) + "\n")
    run(*args, "--out", "whole.jsonl", "--force")
    for name in ("killed.jsonl", "killed.jsonl.xwin.json"):
        (f / name).unlink(missing_ok=True)
    null = Path(os.devnull)
    stage = process.start((*args, "--out", "killed.jsonl"), f, null, null, null)
    journal = f / "killed.jsonl.partial"
    while stage.is_alive() and not (journal.exists() and journal.read_bytes().count(b"\n") > 3):
        time.sleep(0.005)
    stage.kill()
    stage.join()
    assert stage.exitcode == -signal.SIGKILL, "it was over before the kill"
    assert not (f / "killed.jsonl").exists()
    assert "going on after" in run(*args, "--out", "killed.jsonl").stderr
    whole, killed = rows(f / "whole.jsonl"), rows(f / "killed.jsonl")
    for a, b in zip(whole, killed, strict=True):  # a log-probability's last digits depend on who shared the batch
        for r, s in zip(a.get("responses", ()), b.get("responses", ()), strict=True):
            assert r.pop("logprob") == pytest.approx(s.pop("logprob"), abs=1e-3)
    assert killed == whole
