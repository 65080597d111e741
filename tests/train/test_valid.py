"""Held-out items: never learned, measured by hand; the best weights win, also after a kill."""

from __future__ import annotations

import json

import pytest
import torch

from xwincli import manifest, settings
from xwincli.errors import USAGE, XwinError
from xwincli.models import Place
from xwincli.train import folder, loop, valid

PLACE = Place(torch.device("cpu"), torch.float32)
POINTS = [3.0, 3.0, 3.0, 3.0, 1.0, 1.2]  # the last two are held out: the way to 3 passes by their mean, 1.1


def fit(out, *, keep_best, every=1, stop=0, save_every=0.0, capacity=4):
    """One number drawn from 0 to 3 in steps of 0.4 or so (Adam's); returns it and the log."""
    config = settings.Optim(lr=0.4, batch=4, epochs=8, schedule="constant", warmup=0.0, max_tokens_per_row=capacity)
    saving = settings.Saving(save_every=save_every)
    run = folder.Folder(str(out), manifest.plan("sft", config, []), config, saving=saving)
    p = torch.nn.Parameter(torch.zeros(1))
    learned: list[int] = []

    def objective(members):
        if torch.is_grad_enabled():
            learned.extend(members)
        return sum(2 * (p - POINTS[i]).square().sum() for i in members), {}

    def watch(step, figures):
        if step == stop:
            raise KeyboardInterrupt
        return {}

    work = loop.Work(
        name="sft",
        weights=[([("p", p)], 0.4)],
        objective=objective,
        lengths=[2] * 6,
        units=[2] * 6,
        watch=watch,
        held=[4, 5],
        schedule=valid.Schedule(every, keep_best),
    )
    steps = loop.fit(work, config, 0, run, PLACE)
    assert set(learned) <= {0, 1, 2, 3}
    log = [json.loads(line) for line in (run.part / "metrics.jsonl").read_text().splitlines()]
    assert len(log) == steps == 8
    return p.item(), log, run.metrics


def loss(p):
    return ((p - 1.0) ** 2 + (p - 1.2) ** 2) / 2


@pytest.mark.parametrize("capacity", [2, 4, 100])
def test_the_held_out_loss_by_hand(tmp_path, capacity):
    last, log, metrics = fit(tmp_path / "a", keep_best=False, capacity=capacity)
    assert log[-1]["valid_loss"] == pytest.approx(loss(last), rel=1e-5)
    assert metrics == {"valid_loss": log[-1]["valid_loss"]}
    assert log[0]["valid_loss"] == pytest.approx(loss(0.4), rel=1e-4)  # Adam's first step is the rate


def test_the_best_weights_win(tmp_path, capsys):
    found, log, metrics = fit(tmp_path / "a", keep_best=True)
    losses = [row["valid_loss"] for row in log]
    best = losses.index(min(losses)) + 1
    assert 1 < best < 8
    assert metrics == {"best_step": best, "best_valid_loss": min(losses), "valid_loss": losses[-1]}
    assert loss(found) == pytest.approx(min(losses), rel=1e-5)
    assert f"the best weights are those of step {best} of 8" in capsys.readouterr().err
    last, *_ = fit(tmp_path / "b", keep_best=False)
    assert last != found


@pytest.mark.parametrize("stop", range(2, 9))
def test_a_run_that_stops_anywhere_finds_the_same_best(tmp_path, stop):
    whole = fit(tmp_path / "a", keep_best=True)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "b", keep_best=True, stop=stop, save_every=1e9 if stop % 2 else 0.0)
    again = fit(tmp_path / "b", keep_best=True)
    assert (again[0], again[2]) == (whole[0], whole[2])


def test_when_it_is_measured():
    due = lambda schedule, steps: [s for s in range(1, steps + 1) if schedule.due(s, steps)]
    assert due(valid.Schedule(), 25) == [25]
    assert due(valid.Schedule(every=10), 25) == [10, 20, 25]
    assert due(valid.Schedule(keep_best=True), 25) == [*range(2, 25, 2), 25]
    assert due(valid.Schedule(keep_best=True), 3) == [1, 2, 3]


def test_the_same_prompts_are_held_out_whatever_else_is_there():
    config = settings.RowsRun(out="x", valid=0.3)
    keys = [f"k{i}" for i in range(1000)]
    held = valid.split(keys, config)
    assert 250 < len(held) < 350
    assert {keys[i] for i in held} & set(keys[:10]) == {keys[i] for i in valid.split(keys[:10], config)}
    assert valid.split(keys, settings.RowsRun(out="x")) == []


def test_refusals():
    with pytest.raises(XwinError, match="no prompt is left"):
        valid.split([], settings.RowsRun(out="x"))
    with pytest.raises(XwinError, match="no prompt is held out"):
        valid.split(["k1"], settings.RowsRun(out="x", valid=1e-9, keep_best=True))
    for more in ({}, {"valid": 0.1, "cluster": settings.Cluster(zero=2)}):
        with pytest.raises(XwinError, match="--keep-best") as e:
            settings.RowsRun(out="x", keep_best=True, **more)
        assert e.value.code == USAGE


def test_a_disk_without_room_for_the_best_weights_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(valid.Checkpoints, "room", lambda *_: False)
    with pytest.raises(XwinError, match="cannot keep the best weights"):
        fit(tmp_path / "a", keep_best=True)
