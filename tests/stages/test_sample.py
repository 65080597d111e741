"""`xwin sample` as people run it: groups, resumption after a kill, unique responses, prompts that do not fit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import process

TOPICS = ["rain", "tea and coffee", "the moon", "a quick brown fox", "the river", "light of the sun"]


def prompts(count: int) -> list[dict]:
    return [
        {"id": f"q{i}", "prompt": [{"role": "user", "content": f"write {i} sentences about {TOPICS[i % 6]} ."}]}
        for i in range(count)
    ]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def exact(rows: list[dict]) -> list[dict]:
    """Without log-probabilities: batches of other sizes may round their last digit otherwise."""
    return [{**r, "responses": [{k: v for k, v in x.items() if k != "logprob"} for x in r["responses"]]} for r in rows]


def texts(rows: list[dict]) -> list[list[str]]:
    return [[x["text"] for x in r["responses"]] for r in rows]


def test_groups_carry_their_prompt_and_how_they_were_drawn(xwin, tmp_path):
    rows = prompts(3)
    rows[1] |= {"checks": [{"kind": "max_words", "value": 9}], "reference": "r", "category": "c", "note": {"a": 1}}
    data, out = write(tmp_path / "p.jsonl", rows), tmp_path / "g.jsonl"
    xwin("sample", "--engine", "echo", "--data", data, "--out", out, "--n", 4, "--temperature", 0.7, "--seed", 3)
    groups = read(out)
    assert [g["prompt"] for g in groups] == [r["prompt"] for r in rows]
    assert len({g["prompt_id"] for g in groups} | {g["id"] for g in groups}) == 6
    for field in ("checks", "reference", "category", "note"):
        assert groups[1][field] == rows[1][field] and field not in groups[0]
    for g in groups:
        assert g["kind"] == "group" and g["model"] == "echo"
        assert [r.get("index", 0) for r in g["responses"]] == [0, 1, 2, 3]
        assert g["sampling"] == {
            "n": 4, "temperature": 0.7, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
            "max_tokens": 512, "stop": [], "seed": 3, "engine": "echo",
        }  # fmt: skip
    made = json.loads((tmp_path / "g.jsonl.xwin.json").read_text())
    tokens = sum(r["tokens"] for g in groups for r in g["responses"])
    assert made["counts"] == {"in": 3, "out": 3, "failed": 0}
    assert (made["metrics"]["responses"], made["metrics"]["tokens"], made["metrics"]["ended"]) == (12, tokens, 1.0)
    assert made["metrics"]["tokens_per_second"] > 0


def test_a_policy_answers_the_same_whatever_the_rows_and_the_order(xwin, tmp_path, policy):
    data, other = write(tmp_path / "p.jsonl", prompts(7)), write(tmp_path / "q.jsonl", prompts(7)[::-1])
    options = ["--model", policy, "--n", 3, "--temperature", 0.8, "--top-p", 0.9, "--max-tokens", 8]
    xwin("sample", *options, "--data", data, "--out", "a.jsonl", "--rows", 4)
    piped = xwin("sample", *options, stdin=other.read_text()).stdout.strip().split("\n")
    a, b = read(tmp_path / "a.jsonl"), [json.loads(line) for line in piped][::-1]
    assert exact(a) == exact(b)
    for g, h in zip(a, b, strict=True):
        for r, s in zip(g["responses"], h["responses"], strict=True):
            assert r["logprob"] == pytest.approx(s["logprob"], abs=1e-3)
            assert r["finish"] in ("stop", "length") and 1 <= r["tokens"] <= 8
    xwin("sample", *options, "--data", data, "--out", "c.jsonl", "--seed", 1)
    assert texts(read(tmp_path / "c.jsonl")) != texts(a)


def test_a_row_that_stands_twice_gets_draws_of_its_own(xwin, tmp_path):
    data = write(tmp_path / "p.jsonl", [*prompts(1), *prompts(1)])
    xwin("sample", "--engine", "echo", "--data", data, "--out", "g.jsonl", "--n", 4)
    one, two = texts(read(tmp_path / "g.jsonl"))
    assert one != two


def test_kill_9_in_the_middle_and_a_rerun_give_the_uninterrupted_file(xwin, tmp_path, policy):
    data = write(tmp_path / "p.jsonl", prompts(60))
    options = ["--model", policy, "--data", data, "--n", 4, "--max-tokens", 40, "--rows", 8]
    xwin("sample", *options, "--out", "whole.jsonl")
    command = [sys.executable, "-m", "xwincli", "sample", *map(str, options), "--out", "cut.jsonl"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    partial = tmp_path / "cut.jsonl.partial"
    deadline = time.monotonic() + 200
    while not (partial.exists() and partial.read_bytes().count(b"\n") > 10):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = partial.read_bytes().count(b"\n") - 1
    assert 0 < done < 60 and not (tmp_path / "cut.jsonl").exists()
    again = xwin("sample", *options, "--out", "cut.jsonl")
    assert f"going on after {done} finished rows" in again.stderr
    whole, cut = read(tmp_path / "whole.jsonl"), read(tmp_path / "cut.jsonl")
    assert exact(cut) == exact(whole)
    made = [json.loads((tmp_path / f"{n}.jsonl.xwin.json").read_text())["metrics"] for n in ("whole", "cut")]
    for figure in ("responses", "tokens", "ended", "mean_tokens", "repeated"):
        assert made[0][figure] == made[1][figure]


def test_killed_at_twenty_random_moments_nothing_is_lost_or_repeated(xwin, tmp_path, policy):
    data = write(tmp_path / "p.jsonl", prompts(30))
    options = ["--model", policy, "--data", data, "--n", 3, "--max-tokens", 40, "--rows", 6, "--deterministic"]
    begun = time.monotonic()
    xwin("sample", *options, "--out", "whole.jsonl")
    longest = time.monotonic() - begun
    draw, kills = random.Random(7), 0
    for name in ("stdin", "stdout", "stderr"):
        (tmp_path / name).touch()
    out, partial = tmp_path / "cut.jsonl", tmp_path / "cut.jsonl.partial"
    while kills < 20:
        files = [tmp_path / name for name in ("stdin", "stdout", "stderr")]
        started = process.start(("sample", *options, "--out", "cut.jsonl"), tmp_path, *files)
        started.join(draw.uniform(0.3, 1.0) * longest)
        if started.exitcode is None:
            started.kill()
            started.join()
            kills += 1
        else:  # it came to its end: once more from the start
            assert started.exitcode == 0 and out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
            out.unlink()
    assert out.exists() or partial.exists()
    xwin("sample", *options, "--out", "cut.jsonl")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_deterministic_shards_and_processes_give_the_bytes_of_one(xwin, tmp_path, policy):
    data = write(tmp_path / "p.jsonl", prompts(13))
    options = ["--model", policy, "--data", data, "--n", 4, "--max-tokens", 30, "--deterministic"]
    options += ["--rows", 12, "--device", "cpu", "--unique"]
    xwin("sample", *options, "--out", "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    for i in (3, 1, 2):
        xwin("sample", *options, "--out", "g.jsonl", "--shard", f"{i}/3")
    assert (tmp_path / "g.jsonl").read_bytes() == whole
    xwin("sample", *options, "--out", "two.jsonl", "--gpus", 2)
    assert (tmp_path / "two.jsonl").read_bytes() == whole, "--gpus"
    assert not list(tmp_path.glob("two.shard*")), "joined"
    again = xwin("sample", *options, "--out", "two.jsonl", "--rows", 8)
    assert "up to date" not in again.stderr, "other blocks may give other bytes"


def test_gpus_reads_standard_input_once_and_tells_how_one_ended(xwin, tmp_path, policy):
    text = write(tmp_path / "p.jsonl", prompts(5)).read_text()
    options = ["--model", policy, "--n", 2, "--max-tokens", 4, "--device", "cpu", "--gpus", 2]
    xwin("sample", *options, "--out", "g.jsonl", stdin=text)
    assert len(read(tmp_path / "g.jsonl")) == 5
    assert "standard output" in xwin("sample", *options, stdin=text, code=2).stderr
    long = json.loads(text.splitlines()[0]) | {"prompt": [{"role": "user", "content": "fox " * 2000}]}
    refused = xwin("sample", *options, "--out", "h.jsonl", stdin=text + json.dumps(long) + "\n", code=3)
    assert "leaves no room in" in refused.stderr and not (tmp_path / "h.jsonl").exists()


def test_unique_draws_repeats_again_and_says_what_stayed(xwin, tmp_path, policy):
    data = write(tmp_path / "p.jsonl", prompts(4))
    options = ["--model", policy, "--data", data, "--n", 12, "--max-tokens", 1, "--temperature", 0.7]
    xwin("sample", *options, "--out", "plain.jsonl")
    done = xwin("sample", *options, "--out", "unique.jsonl", "--unique", "--unique-rounds", 2)
    plain, unique = texts(read(tmp_path / "plain.jsonl")), texts(read(tmp_path / "unique.jsonl"))
    assert [len(t) for t in unique] == [12] * 4
    assert sum(len(set(t)) for t in unique) > sum(len(set(t)) for t in plain)
    for before, after in zip(plain, unique, strict=True):
        assert set(before) <= set(after)
    stayed = sum(len(t) - len(set(t)) for t in unique)
    metrics = json.loads((tmp_path / "unique.jsonl.xwin.json").read_text())["metrics"]
    assert metrics["repeated"] == pytest.approx(stayed / 48)
    assert (f"{stayed} of 48 responses stayed repeats" in done.stderr) == bool(stayed)
    assert all(g["sampling"]["unique"] for g in read(tmp_path / "unique.jsonl"))


def test_a_prompt_beyond_the_context_fails_alone_and_is_told(xwin, tmp_path, policy):
    rows = prompts(3)
    rows[1]["prompt"][0]["content"] = "fox " * 2000
    data = write(tmp_path / "p.jsonl", rows)
    options = ["--model", policy, "--data", data, "--out", "g.jsonl", "--max-tokens", 4]
    refused = xwin("sample", *options, code=3)
    assert "leaves no room in" in refused.stderr and "context of 512" in refused.stderr
    assert not (tmp_path / "g.jsonl").exists()
    assert [r["row"]["id"] for r in read(tmp_path / "g.failed.jsonl")] == ["q1"]
    xwin("sample", *options, "--allow-failed", 0.4)
    assert [g["prompt"] for g in read(tmp_path / "g.jsonl")] == [rows[0]["prompt"], rows[2]["prompt"]]


def test_nothing_to_do_and_no_model_are_user_errors(xwin, tmp_path):
    assert "no rows" in xwin("sample", "--engine", "echo", stdin="", code=1).stderr
    assert "--model is required" in xwin("sample", stdin=json.dumps(prompts(1)[0]), code=1).stderr


def test_a_system_message_for_every_prompt(xwin, tmp_path):
    own = [{"role": "system", "content": "old"}, {"role": "user", "content": "question 1"}]
    data = write(tmp_path / "p.jsonl", [*prompts(1), {"prompt": own}])
    for name, text in (("a.txt", "Be brief.\n"), ("b.txt", "Be kind.")):
        (tmp_path / name).write_text(text)
    options = ["--engine", "echo", "--data", data, "--out", "g.jsonl"]
    xwin("sample", *options, "--system", "a.txt")
    rows = read(tmp_path / "g.jsonl")
    assert [m["content"] for m in rows[0]["prompt"]] == ["Be brief.", "write 0 sentences about rain ."]
    assert [m["content"] for m in rows[1]["prompt"]] == ["Be brief.", "question 1"]
    assert len({r["prompt_id"] for r in rows}) == 2
    assert "up to date" in xwin("sample", *options, "--system", "a.txt").stderr
    xwin("sample", *options, "--system", "b.txt")
    assert read(tmp_path / "g.jsonl")[0]["prompt"][0]["content"] == "Be kind."
    assert "cannot read it" in xwin("sample", *options, "--system", "no.txt", code=2).stderr
    (tmp_path / "a.txt").write_text(" \n")
    assert "is empty" in xwin("sample", *options, "--system", "a.txt", code=2).stderr
