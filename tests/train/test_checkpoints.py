"""Checkpoints: whole or not there, damaged ones passed over, no more than the disk holds; killed runs end the same."""

from __future__ import annotations

import json
import random
import time
from collections import namedtuple

import pytest
import torch

import process
from xwincli import manifest, models, settings
from xwincli.errors import XwinError
from xwincli.train import checkpoints, folder, loop
from xwincli.train.checkpoints import Checkpoints

PLACE = models.Place(torch.device("cpu"), torch.float32)
Usage = namedtuple("Usage", "total used free")


def write(store, step, text="x"):
    part = store.begin(step)
    (part / "state.pt").write_text(text)
    store.finish(part)


def names(store):
    return sorted(p.name for p in store.folder.iterdir())


def test_the_last_ones_are_kept(tmp_path):
    store = Checkpoints(tmp_path / "c", keep=2)
    assert store.newest() is None
    for step in (1, 20, 300):
        write(store, step)
    assert names(store) == ["step-00000020", "step-00000300"]
    assert store.newest().name == "step-00000300"


def test_an_unfinished_one_is_none(tmp_path):
    store = Checkpoints(tmp_path, keep=2)
    write(store, 1)
    (store.begin(2) / "state.pt").write_text("half")
    assert store.newest().name == "step-00000001"
    assert names(store) == ["step-00000001"]


@pytest.mark.parametrize("harm", ["flip", "cut", "lose", "no digests"])
def test_a_damaged_one_is_passed_over_and_named(tmp_path, capsys, harm):
    store = Checkpoints(tmp_path, keep=3)
    for step in (1, 2):
        write(store, step, "some text")
    file = tmp_path / "step-00000002" / "state.pt"
    if harm == "flip":
        file.write_text("some tezt")
    elif harm == "cut":
        file.write_text("some")
    elif harm == "lose":
        file.unlink()
    else:
        (tmp_path / "step-00000002" / "digests.json").write_text("[]")
    assert store.newest().name == "step-00000001"
    assert "step-00000002" in capsys.readouterr().err
    assert names(store) == ["step-00000001"]


def disk(monkeypatch, free):
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: Usage(0, 0, free() if callable(free) else free))


def test_older_ones_make_room_but_not_the_last(tmp_path, monkeypatch, capsys):
    store = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        write(store, step)
    disk(monkeypatch, lambda: 100 - 30 * len(store._all()))
    assert store.room(35)
    assert names(store) == ["step-00000002", "step-00000003"]
    assert not store.room(80)
    assert names(store) == ["step-00000003"]
    assert not store.room(80)
    said = capsys.readouterr().err
    assert said.count("no checkpoint is written") == 1 and "0.0 MB" in said


# -- in a run


def fit(out, *, stop=0, saving=None, steps=6):
    """Steps on one number, whose gradient draws from torch's stream; returns it."""
    config = settings.Optim(lr=0.1, batch=1, schedule="constant", warmup=0.0)
    saving = saving or settings.Saving(save_every=0.0)
    run = folder.Folder(str(out), manifest.plan("sft", config, []), config, saving=saving)
    p = torch.nn.Parameter(torch.ones(3))

    def objective(members):
        return (p * torch.randn(3)).sum(), {}

    def watch(step, figures):
        if step == stop:
            raise KeyboardInterrupt
        return {}

    weights, ones = [([("p", p)], 0.1)], [1] * steps
    work = loop.Work(name="sft", weights=weights, objective=objective, lengths=ones, units=ones, watch=watch)
    loop.fit(work, config, 0, run, PLACE)
    return p.tolist()


def unbroken(tmp_path, stop):
    """Leave a run in ``b`` that stopped in a step; returns what it would have come to."""
    torch.manual_seed(3)
    whole = fit(tmp_path / "a")
    torch.manual_seed(3)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "b", stop=stop)
    return whole


@pytest.mark.parametrize("stop", [2, 3, 6])
def test_random_streams_go_on(tmp_path, stop):
    whole = unbroken(tmp_path, stop)
    torch.manual_seed(99)
    assert fit(tmp_path / "b") == whole


def test_a_run_goes_on_from_the_one_before_a_damaged_one(tmp_path, capsys):
    whole = unbroken(tmp_path, 5)
    store = tmp_path / "b.partial" / "checkpoints"
    assert [p.name for p in sorted(store.iterdir())] == ["step-00000003", "step-00000004"]
    state = store / "step-00000004" / "state.pt"
    state.write_bytes(state.read_bytes()[:-100])
    assert fit(tmp_path / "b") == whole
    said = capsys.readouterr().err
    assert "state.pt is not as it was written" in said
    assert "going on after step 3" in said
    lines = (tmp_path / "b.partial" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_all_damaged_is_a_new_start(tmp_path, capsys):
    whole = unbroken(tmp_path, 4)
    for state in (tmp_path / "b.partial" / "checkpoints").glob("*/state.pt"):
        state.unlink()
    torch.manual_seed(3)
    assert fit(tmp_path / "b") == whole
    assert "going on" not in capsys.readouterr().err


def test_no_room_is_said_before_the_first_step(tmp_path, monkeypatch):
    disk(monkeypatch, 30)  # three numbers: 12 bytes of weights, a checkpoint of 36
    with pytest.raises(XwinError, match=r"not enough disk space: the model takes 0\.0 MB and a checkpoint") as e:
        fit(tmp_path / "a")
    assert not (tmp_path / "a.partial" / "metrics.jsonl").exists()
    assert "--out" in e.value.hint


def test_a_disk_that_fills_up_ends_no_training(tmp_path, monkeypatch, capsys):
    torch.manual_seed(3)
    whole = fit(tmp_path / "a")
    monkeypatch.setattr(checkpoints, "check_room", lambda *_: None)
    disk(monkeypatch, 30)
    torch.manual_seed(3)
    assert fit(tmp_path / "b") == whole
    assert capsys.readouterr().err.count("no checkpoint is written") == 1


def test_a_write_that_fails_leaves_the_last_one(tmp_path, monkeypatch, capsys):
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "b", stop=3)
    before = folder.torch.save

    def full(state, path):
        before(state, path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder.torch, "save", full)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "b", stop=5)
    assert "No space left on device" in capsys.readouterr().err
    assert names(Checkpoints(tmp_path / "b.partial" / "checkpoints", 2)) == ["step-00000001", "step-00000002"]


def test_saving_takes_a_tenth_of_the_time_at_most(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    clock = loop._Clock(10.0)
    now[0] = 11.0
    assert clock.due()
    with clock:
        now[0] += 5.0
    now[0] += 44.0
    assert not clock.due()
    now[0] += 2.0
    assert clock.due()
    assert loop._Clock(0.0).due()


# -- killed for real

CPU = ("--device", "cpu", "--dtype", "float32", "--seed", 1, "--save-every", 0)


def data(path):
    words = ["sun", "tea", "rain", "stone", "green", "cloud", "moon", "river"]
    with path.open("w") as f:
        for i, word in enumerate(words * 2):
            ask = [{"role": "user", "content": f"say {word} {i}"}]
            chosen, rejected = ([{"role": "assistant", "content": t}] for t in (f"{word} {word}", "no " * (1 + i % 3)))
            f.write(json.dumps({"prompt": ask, "chosen": chosen, "rejected": rejected}) + "\n")
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("sft", "--optimizer", "adamw", "--epochs", 6),
        ("dpo", "--lora-r", 2, "--epochs", 4),
        ("train-rm", "--valid", 0.3, "--epochs", 6),
    ],
    ids=lambda c: c[0],
)
def test_kill_9_at_any_moment_gives_the_same_weights(policy, tmp_path, command):
    """Run after run of the same command, each killed at a random moment: in the end one that was never killed."""
    pairs = data(tmp_path / "pairs.jsonl")
    if command[0] == "sft":
        talks = [json.loads(line) for line in pairs.read_text().splitlines()]
        pairs.write_text("".join(json.dumps({"messages": r["prompt"] + r["chosen"]}) + "\n" for r in talks))
    args = (*command, "--model", policy, "--data", pairs, "--batch", 2, "--lr", 1e-3, *CPU)
    whole = process.run((*args, "--out", "whole"), tmp_path)
    assert whole.returncode == 0, whole.stderr
    draw, kills = random.Random(command[0]), 0
    nothing = tmp_path / "nothing"
    nothing.write_text("")
    for _ in range(12):
        begun = time.monotonic()
        stage = process.start((*args, "--out", "killed"), tmp_path, nothing, tmp_path / "out", tmp_path / "err")
        log = tmp_path / "killed.partial" / "metrics.jsonl"
        size = log.stat().st_size if log.exists() else 0
        while stage.is_alive() and not (log.exists() and log.stat().st_size > size) and time.monotonic() - begun < 60:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.15))
        stage.kill()
        stage.join()
        if stage.exitcode == 0:
            break
        kills += 1
    last = process.run((*args, "--out", "killed"), tmp_path)
    assert last.returncode == 0, last.stderr
    assert kills >= 2
    for file in (tmp_path / "whole").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "killed" / file.name).read_bytes()
    logs = [
        [json.loads(x) for x in (tmp_path / n / "metrics.jsonl").read_text().splitlines()] for n in ("whole", "killed")
    ]
    timeless = [[{k: v for k, v in row.items() if k != "seconds"} for row in log] for log in logs]
    assert timeless[0] == timeless[1]
    assert not (tmp_path / "killed.partial").exists()
