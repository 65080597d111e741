"""The loop: rows never change a gradient, a resumed run equals an unbroken one, bad gradients stop it."""

from __future__ import annotations

import json
import signal

import pytest
import torch

from xwincli import manifest, models, settings, weights
from xwincli.errors import XwinError
from xwincli.rows import Branch
from xwincli.states import prepare
from xwincli.train import folder, loop, sft

BRANCHES = [Branch([], [[5 + (i * 7 + j) % 90 for j in range(4 + i % 5)]]) for i in range(10)]


def train(policy, out, *, capacity=64, batch=4, stop_after=None, adapt=None, **saving):
    """Two epochs of finetuning on fixed rows; returns the trained weights."""
    config = settings.Optim(lr=1e-2, batch=batch, epochs=2, max_tokens_per_row=capacity)
    saving = settings.Saving(**saving)
    run = folder.Folder(str(out), manifest.plan("sft", config, [str(policy)]), config, saving=saving)
    loaded = models.load_policy(str(policy), models.place(settings.Device(device="cpu", dtype="float32")), train=True)
    named = weights.adapt(loaded, adapt or settings.Adapt())
    prepare(loaded)
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


def test_resume_equals_an_unbroken_run(policy, tmp_path):
    unbroken = train(policy, tmp_path / "a", capacity=8)
    with pytest.raises(KeyboardInterrupt):
        train(policy, tmp_path / "b", capacity=8, stop_after=17, save_every=0.0)
    assert not (tmp_path / "b").exists()
    resumed = train(policy, tmp_path / "b", capacity=8)
    for name in unbroken:
        assert torch.equal(unbroken[name], resumed[name]), name
    logs = [(tmp_path / x / "metrics.jsonl").read_text().splitlines() for x in "ab"]
    assert [json.loads(r)["step"] for r in logs[1]] == [json.loads(r)["step"] for r in logs[0]] == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / "b.partial").exists()


def test_a_checkpoint_of_other_options_is_kept_aside(policy, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(policy, tmp_path / "b", stop_after=4, save_every=0.0)
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


def broken(policy, tmp_path, objective, units=None, **options):
    """A run of one step over four items whose loss is ``objective(p, members)``; returns what stopped it."""
    config = settings.Optim(lr=1.0, batch=4, **options)
    run = folder.Folder(str(tmp_path / "m"), manifest.plan("sft", config, []), config)
    p = torch.nn.Parameter(torch.ones(2))
    work = loop.Work(
        name="sft",
        weights=[([("p", p)], 1.0)],
        objective=lambda members: (objective(p, members), {}),
        lengths=[3] * 4,
        units=units or [1] * 4,
        ids=["ada", "bob", "cyd", "dee"],
    )
    with pytest.raises(XwinError) as e:
        loop.fit(work, config, 0, run, models.Place(torch.device("cpu"), torch.float32))
    assert p.tolist() == [1.0, 1.0], "the step was taken"
    assert not (tmp_path / "m.partial" / "metrics.jsonl").exists()
    return e.value.message


def test_a_loss_that_is_not_finite_is_named_by_its_row(policy, tmp_path):
    """Item 2 alone is the cause, though it shares its row with the others."""
    message = broken(policy, tmp_path, lambda p, members: p.sum() * sum(float("inf") if i == 2 else 1 for i in members))
    assert message == "step 1: the loss is inf (of cyd), so the step was not taken"


def test_a_gradient_that_is_not_finite_is_named_by_its_row(policy, tmp_path):
    """sqrt at 0 has a finite value and an infinite slope."""
    loss = lambda p, members: sum((p - float(i in (1, 3))).sqrt().sum() for i in members)
    message = broken(policy, tmp_path, loss)
    assert message.startswith("step 1: the gradient is ")
    assert set(message.split("(of ")[1].split(")")[0].split(", ")) == {"bob", "dee"}


def test_a_step_too_large_only_together_names_all_its_rows(policy, tmp_path):
    message = broken(policy, tmp_path, lambda p, members: sum(p.sum() * 1.2e38 for i in members), max_tokens_per_row=12)
    assert "of none of them alone, but of all: " in message
    assert set(message.split("all: ")[1].split(")")[0].split(", ")) == {"ada", "bob", "cyd", "dee"}


def test_a_second_signal_stops_at_once_but_not_an_echo_of_the_first(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    with loop.between_steps() as stopped:
        assert not stopped()
        signal.raise_signal(signal.SIGTERM)
        now[0] = 0.1
        signal.raise_signal(signal.SIGTERM)
        assert stopped()
        now[0] = 1.5
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_message_names_five_rows_at_most():
    work = loop.Work(name="", weights=[], objective=None, lengths=[], units=[], ids=[*"abcdefg"])
    assert work.shown(range(7)) == "a, b, c, d, e, …"
    assert work.shown([0, 0, 6]) == "a, g"
    assert loop.Work(name="", weights=[], objective=None, lengths=[], units=[]).shown([3]) == "3"


@pytest.mark.parametrize("schedule,half,end", [("cosine", 0.5, 0.0), ("linear", 0.5, 0.0), ("constant", 1.0, 1.0)])
def test_schedules(schedule, half, end):
    config = settings.Optim(schedule=schedule, warmup=0.1)
    rates = [loop.learning_rate(config, s, 110) for s in range(110)]
    assert rates[0] == pytest.approx(1 / 11)
    assert max(rates) == 1.0
    assert rates[60] == pytest.approx(half, abs=0.02)
    assert rates[-1] == pytest.approx(end, abs=0.02)
