"""``xwin judge`` as a user runs it: what it writes, what it refuses, and a kill in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from xwincli.lab.instructions import prompts
from xwincli.records import Judgement, content_id, decode

GOOD = "Let the {} be a part of every day and look after it well."
BAD = ["A word, two words.", "It is.", "nothing at all to do with it", "the the the the the", "Why so?"]


def groups(n, responses=3, model="base", shift=0):
    """Groups of the demo's prompts (again and again, numbered) with good and bad answers."""
    base = list(prompts())
    for i in range(n):
        row = base[i % len(base)]
        prompt = [{"role": "user", "content": row.prompt[0]["content"] + f" ({i})"}]
        word = next(c["value"] for c in row.checks if c["kind"] == "mentions")
        texts = [GOOD.format(word), *(BAD[(i + j + shift) % len(BAD)] for j in range(responses - 1))]
        yield {
            "kind": "group",
            "id": content_id(i, model),
            "prompt_id": content_id(i),
            "prompt": prompt,
            "checks": row.checks,
            "category": row.category,
            "responses": [{"text": t, "finish": "stop", "index": j} for j, t in enumerate(texts)],
            "model": model,
        }


def put(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def get(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def manifest(path):
    return json.loads(path.with_name(path.name + ".xwin.json").read_text(encoding="utf-8"))


def test_pairs_within_groups(xwin, tmp_path):
    put(tmp_path / "g.jsonl", groups(40))
    done = xwin("judge", "--data", "g.jsonl", "--out", "j.jsonl", "--pairs", "all")
    assert done.stdout == ""
    rows = [decode(r, Judgement) for r in get(tmp_path / "j.jsonl")]
    assert len(rows) == 40 * 3
    for row in rows:
        assert [g.first for g in row.games] == ["a", "b"]
        better = (row.b["rating"] > row.a["rating"]) - (row.b["rating"] < row.a["rating"])
        assert row.verdict() == (better + 1) / 2
        assert row.games[0].reason.startswith("first rated ")
        assert row.checks
        assert row.category
        assert row.judge == "rules"
    made = manifest(tmp_path / "j.jsonl")
    assert made["counts"]["in"] == made["counts"]["prompts"] == 40
    assert made["metrics"]["flips"] == 0
    assert made["metrics"]["first_slot_wins"] == 0.5
    assert made["metrics"]["ties"] == pytest.approx(sum(r.verdict() == 0.5 for r in rows) / 120, abs=1e-5)
    assert "up to date" in xwin("judge", "--data", "g.jsonl", "--out", "j.jsonl", "--pairs", "all").stderr


def test_options_change_what_they_say(xwin, tmp_path):
    data = put(tmp_path / "g.jsonl", groups(60))
    plain = xwin("judge", "--data", data).stdout
    assert len(plain.splitlines()) == 60
    assert xwin("judge", "--data", data).stdout == plain
    assert xwin("judge", stdin=data.read_text()).stdout == plain
    assert xwin("judge", "--data", data, "--seed", 1).stdout != plain
    assert len(xwin("judge", "--data", data, "--pairs", 2).stdout.splitlines()) == 120
    assert len(xwin("judge", "--data", data, "--limit", 7).stdout.splitlines()) == 7
    one = [json.loads(line) for line in xwin("judge", "--data", data, "--orders", "one").stdout.splitlines()]
    assert {len(r["games"]) for r in one} == {1}
    assert {r["games"][0]["first"] for r in one} == {"a", "b"}
    noisy = ["judge", "--data", data, "--noise", "2"]
    assert xwin(*noisy).stdout == xwin(*noisy).stdout != plain
    biased = xwin("judge", "--data", data, "--position-bias", "20", "--out", "biased.jsonl")
    assert "flips 100.0%" in biased.stderr
    metrics = manifest(tmp_path / "biased.jsonl")["metrics"]
    assert (metrics["flips"], metrics["ties"], metrics["first_slot_wins"]) == (1, 1, 1)


def test_two_files_side_by_side(xwin, tmp_path):
    put(tmp_path / "a.jsonl", groups(20, responses=1, model="old"))
    rows = list(groups(20, responses=2, model="new"))
    put(tmp_path / "b.jsonl", reversed(rows))
    xwin("judge", "--data", "a.jsonl", "--against", "b.jsonl", "--pairs", "all", "--out", "j.jsonl")
    made = [decode(r, Judgement) for r in get(tmp_path / "j.jsonl")]
    assert len(made) == 40
    assert {(j.a["model"], j.b["model"]) for j in made} == {("old", "new")}
    equal = [j for j in made if j.a["text"] == j.b["text"]]
    assert len(equal) == 20
    assert all(j.verdict() == 0.5 and len(j.games) == 1 and "rating" not in j.a for j in equal)
    theirs = {r["prompt_id"]: {x["text"] for x in r["responses"]} for r in rows}
    assert all(j.b["text"] in theirs[j.prompt_id] for j in made)


def test_a_missing_prompt_is_named_and_refused(xwin, tmp_path):
    rows = list(groups(10, responses=1))
    put(tmp_path / "a.jsonl", rows)
    put(tmp_path / "b.jsonl", rows[:8])
    for first, second in (("a", "b"), ("b", "a")):
        args = ["judge", "--data", f"{first}.jsonl", "--against", f"{second}.jsonl", "--out", "j.jsonl"]
        error = xwin(*args, code=1).stderr
        assert "b.jsonl: lacks 2 of 10 prompts" in error
        assert rows[9]["prompt_id"] in error
        assert "--common" in error
        assert not list(tmp_path.glob("j.jsonl*"))
    xwin("judge", "--data", "a.jsonl", "--against", "b.jsonl", "--common", "--out", "j.jsonl")
    assert len(get(tmp_path / "j.jsonl")) == 8
    put(tmp_path / "b.jsonl", [*rows, rows[3]])
    assert "comes twice" in xwin("judge", "--data", "a.jsonl", "--against", "b.jsonl", code=1).stderr


def test_rate_adds_a_score_and_keeps_everything_else(xwin, tmp_path):
    rows = list(groups(12))
    rows[0]["responses"][0]["scores"] = {"rm": 1.5}
    rows[0]["note"] = "kept"
    put(tmp_path / "g.jsonl", rows)
    xwin("judge", "--data", "g.jsonl", "--rate", "gold", "--out", "r.jsonl")
    made = get(tmp_path / "r.jsonl")
    ratings = [r["scores"].pop("gold") for row in made for r in row["responses"]]
    assert len(ratings) == 36
    assert all(1 <= x <= 10 for x in ratings)
    assert all(row["responses"][0].pop("scores") in ({}, {"rm": 1.5}) for row in made)
    for row in made:
        for r in row["responses"][1:]:
            assert r.pop("scores") == {}
    rows[0]["responses"][0].pop("scores")
    assert [row.pop("scorers") for row in made] == [{"gold": "judge rules"}] * len(made)
    assert made == rows
    facts = manifest(tmp_path / "r.jsonl")
    assert facts["metrics"]["mean_rating"] == pytest.approx(sum(ratings) / 36, abs=1e-5)
    assert facts["counts"]["responses"] == 36


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--pairs", "0"], 2, "--pairs is '0'"),
        (["--pairs", "some"], 2, "--pairs is 'some'"),
        (["--judge", "gpt"], 2, "judges are: alpaca-eval-2, arena-hard"),
        (["--judge", "reward"], 2, "needs --rm"),
        (["--rm", "x"], 2, "--judge reward"),
        (["--rate", "gold", "--against", "g.jsonl"], 2, "leave one out"),
        (["--common"], 2, "--against FILE"),
        (["--noise", "-1"], 2, "at least 0"),
        (["--data", "absent.jsonl"], 1, "absent.jsonl"),
    ],
)
def test_refusals(xwin, tmp_path, args, code, words):
    put(tmp_path / "g.jsonl", groups(2))
    given = args if "--data" in args else ["--data", "g.jsonl", *args]
    done = xwin("judge", *given, "--out", "j.jsonl", code=code)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.jsonl"]


def test_an_unknown_check_is_refused_before_any_work(xwin, tmp_path):
    rows = list(groups(60))
    rows[49]["checks"] = [{"kind": "max_words", "value": 9}, {"kind": "rhymes", "value": True}]
    text = put(tmp_path / "g.jsonl", rows).read_text()
    error = xwin("judge", "--data", "g.jsonl", "--out", "j.jsonl", code=1).stderr
    assert "g.jsonl:50: field checks[1]: unknown check kind 'rhymes'" in error
    assert "max_words" in error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.jsonl"]
    assert len(xwin("judge", "--data", "g.jsonl", "--limit", 49).stdout.splitlines()) == 49
    # a stream cannot be read twice: there the row fails, the others are judged
    done = xwin("judge", "--out", "j.jsonl", stdin=text, code=3)
    assert "1 of 60 rows failed" in done.stderr
    assert rows[49]["prompt_id"] in (tmp_path / "j.failed.jsonl").read_text()
    assert not (tmp_path / "j.jsonl").exists()
    xwin("judge", "--out", "j.jsonl", "--allow-failed", "0.1", stdin=text)
    assert len(get(tmp_path / "j.jsonl")) == 59


def test_groups_without_two_different_answers_are_said(xwin, tmp_path):
    put(tmp_path / "g.jsonl", groups(3, responses=1))
    assert "two different responses" in xwin("judge", "--data", "g.jsonl", code=1).stderr


def _start(tmp_path, *args):
    command = [sys.executable, "-m", "xwincli", "judge", *args]
    return subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("extra", [("--pairs", "all", "--noise", "1"), ("--rate", "gold")], ids=["compare", "rate"])
def test_a_kill_in_the_middle_loses_repeats_and_changes_nothing(xwin, tmp_path, extra):
    put(tmp_path / "g.jsonl", groups(700, responses=4))
    xwin("judge", "--data", "g.jsonl", "--out", "whole.jsonl", *extra)
    partial, kills = tmp_path / "cut.jsonl.partial", 0
    for target in (60, 250):
        process = _start(tmp_path, "--data", "g.jsonl", "--out", "cut.jsonl", *extra)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if partial.exists() and partial.read_bytes().count(b"\n") > target:
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.002)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills == 2
    assert not (tmp_path / "cut.jsonl").exists()
    with partial.open("ab") as f:  # and the last line was torn
        f.write(b'{"key":"torn')
    done = xwin("judge", "--data", "g.jsonl", "--out", "cut.jsonl", *extra)
    assert "going on after" in done.stderr
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not partial.exists()
    assert manifest(tmp_path / "cut.jsonl")["metrics"] == manifest(tmp_path / "whole.jsonl")["metrics"]
    assert manifest(tmp_path / "cut.jsonl")["counts"] == manifest(tmp_path / "whole.jsonl")["counts"]


def test_a_reward_model_judges(xwin, tmp_path, policy):
    from xwincli import models, settings

    place = models.place(settings.Device(device="cpu", dtype="float32"))
    models.save(models.new_reward(str(policy), place, 0), tmp_path / "rm")
    put(tmp_path / "g.jsonl", groups(5))
    args = ["--data", "g.jsonl", "--judge", "reward", "--rm", "rm", "--dtype", "float32"]
    xwin("judge", *args, "--out", "j.jsonl", "--pairs", "all")
    rows = [decode(r, Judgement) for r in get(tmp_path / "j.jsonl")]
    assert len(rows) == 15
    for row in rows:
        assert row.judge == "reward:rm"
        assert row.games[0].preference == pytest.approx(row.games[1].preference, abs=1e-4)
        assert (row.games[0].preference > 0.5) == (row.b["rating"] > row.a["rating"])
    xwin("judge", *args, "--out", "r.jsonl", "--rate", "rm")
    scores = {r["text"]: r["scores"]["rm"] for r in get(tmp_path / "r.jsonl")[0]["responses"]}
    for row in rows[:3]:
        for side in (row.a, row.b):
            assert side["rating"] == pytest.approx(scores[side["text"]], abs=1e-3)
