"""The loop: rows never change a gradient, a resumed run equals an unbroken one, bad gradients stop it."""

from __future__ import annotations

import json

import pytest
import torch

from xwincli import manifest, models, scoring, settings
from xwincli.errors import XwinError
from xwincli.rows import Branch
from xwincli.train import folder, loop, sft

BRANCHES = [Branch([], [[5 + (i * 7 + j) % 90 for j in range(4 + i % 5)]]) for i in range(10)]


def train(policy, out, *, capacity=64, batch=4, stop_after=None, adapt=None):
    """Two epochs of finetuning on fixed rows; returns the trained weights."""
    config = settings.Optim(lr=1e-2, batch=batch, epochs=2, max_tokens_per_row=capacity)
    run = folder.Folder(str(out), manifest.plan("sft", config, [str(policy)]), config)
    loaded = models.load_policy(str(policy), models.place(settings.Device(device="cpu", dtype="float32")), train=True)
    named = models.adapt(loaded, adapt or settings.Adapt())
    scoring.prepare(loaded)
    compute = sft.objective(loaded, BRANCHES)
    calls = 0

    def objective(members):
        nonlocal calls
        calls += 1
        if stop_after is not None and calls > stop_after:
            raise KeyboardInterrupt
        return compute(members)

    work = loop.Work(
        name="sft",
        weights=[(named, config.lr)],
        objective=objective,
        lengths=[len(b) for b in BRANCHES],
        units=[sft.learned(b) for b in BRANCHES],
    )
    loop.fit(work, config, 0, run, loaded.place)
    run.finish(loaded)
    return {n: p.detach().clone() for n, p in loaded.model.named_parameters()}


def test_rows_are_execution_only(policy, tmp_path):
    whole = train(policy, tmp_path / "a", capacity=1000)
    split = train(policy, tmp_path / "b", capacity=8)
    for name in whole:
        torch.testing.assert_close(whole[name], split[name], rtol=1e-4, atol=1e-5)


def test_one_step_equals_plain_torch(policy, tmp_path):
    """Batch of all rows, one step: loss and gradient are means over learned tokens, as in plain transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(policy)
    total, count = 0.0, 0
    for b in BRANCHES:
        ids = torch.tensor(b.responses)
        out = model(ids, labels=ids)  # mean over len - 1 targets
        total, count = total + out.loss * (ids.shape[1] - 1), count + ids.shape[1] - 1
    (total / count).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    train(policy, tmp_path / "a", batch=10)
    first = json.loads((tmp_path / "a" / "metrics.jsonl").read_text().split("\n")[0])
    assert first["loss"] == pytest.approx((total / count).item(), rel=1e-5)
    assert first["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


def test_resume_equals_an_unbroken_run(policy, tmp_path, monkeypatch):
    unbroken = train(policy, tmp_path / "a", capacity=8)
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        train(policy, tmp_path / "b", capacity=8, stop_after=17)
    assert not (tmp_path / "b").exists()
    resumed = train(policy, tmp_path / "b", capacity=8)
    for name in unbroken:
        assert torch.equal(unbroken[name], resumed[name]), name
    logs = [(tmp_path / x / "metrics.jsonl").read_text().splitlines() for x in "ab"]
    assert [json.loads(r)["step"] for r in logs[1]] == [json.loads(r)["step"] for r in logs[0]] == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / "b.partial").exists()


def test_a_checkpoint_of_other_options_is_kept_aside(policy, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        train(policy, tmp_path / "b", stop_after=4)
    train(policy, tmp_path / "b", batch=5)
    assert [p.name for p in tmp_path.glob("b.partial.*")]


def test_train_top_moves_only_the_top(policy, tmp_path):
    before = {
        n: p.clone()
        for n, p in models.load_policy(
            str(policy), models.place(settings.Device(device="cpu", dtype="float32"))
        ).model.named_parameters()
    }
    after = train(policy, tmp_path / "a", adapt=settings.Adapt(train_top=1))
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved == {n for n in before if ".layers.1." in n or n == "model.norm.weight"}


def test_lora_is_merged_and_changes_only_linear_layers(policy, tmp_path):
    from transformers import AutoModelForCausalLM

    train(policy, tmp_path / "a", adapt=settings.Adapt(lora_r=4))
    before = dict(AutoModelForCausalLM.from_pretrained(policy).named_parameters())
    after = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "a").named_parameters())
    assert before.keys() == after.keys()
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved
    assert all("proj" in n for n in moved)


def test_a_gradient_that_is_not_finite_stops_before_the_step():
    p = torch.nn.Parameter(torch.ones(2))
    config = settings.Optim()
    opt = loop.optimizer([([("p", p)], 1.0)], config)
    p.grad = torch.tensor([float("nan"), 1.0])
    with pytest.raises(XwinError, match="step 3"):
        loop.update(opt, config, 1.0, "step 3")
    assert p.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("schedule,half,end", [("cosine", 0.5, 0.0), ("linear", 0.5, 0.0), ("constant", 1.0, 1.0)])
def test_schedules(schedule, half, end):
    config = settings.Optim(schedule=schedule, warmup=0.1)
    rates = [loop.learning_rate(config, s, 110) for s in range(110)]
    assert rates[0] == pytest.approx(1 / 11)
    assert max(rates) == 1.0
    assert rates[60] == pytest.approx(half, abs=0.02)
    assert rates[-1] == pytest.approx(end, abs=0.02)
