"""Stages with little memory: four-bit weights, 8-bit AdamW, checkpointing, adapters that go on from adapters."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from xwincli import flags, manifest, models, settings, weights
from xwincli.errors import XwinError
from xwincli.records import Prompt
from xwincli.rows import Branch, lay
from xwincli.scoring import token_logprobs
from xwincli.stages import dpo, ppo, sft, train_rm
from xwincli.states import hidden
from xwincli.train import folder, loop

PLACE = models.Place(torch.device("cpu"), torch.float32)
IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """Wide enough that matrices are larger than the 4096 numbers below which AdamW8bit keeps 32 bits."""
    import micro

    return micro.policy(tmp_path_factory.mktemp("wide") / "policy", hidden=64)


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "talks.jsonl"
    words = ["tea", "rain", "a fox", "the moon", "coffee", "lower case", "a river", "the sun"]
    turns = [[("user", f"about {w} ?"), ("assistant", f"{w} is good .")] for w in words]
    rows = [{"messages": [{"role": r, "content": c} for r, c in t]} for t in turns]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [
        {
            "prompt": [{"role": "user", "content": f"number {i} ?"}],
            "chosen": [{"role": "assistant", "content": "tea and the rain ."}],
            "rejected": [{"role": "assistant", "content": "fox"}],
        }
        for i in range(8)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def run(stage, out: Path, **given) -> Path:
    base = {"out": str(out), "dtype": "float32", "device": "cpu", "batch": 4, "lr": 5e-3, "max_tokens_per_row": 64}
    stage.run(flags.build(stage.Config, {**base, **given}))
    return out


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def test_qlora_learns_and_saves_an_ordinary_folder(policy, talks, tmp_path):
    more = {"model": str(policy), "data": [str(talks)], "epochs": 10, "lora_r": 8}
    out = run(sft, tmp_path / "q", **more, quantize="nf4")
    assert losses(out)[-1] < 0.7 * losses(out)[0]
    assert manifest.read(out)["config"]["quantize"] == "nf4"
    saved, base = AutoModelForCausalLM.from_pretrained(out), AutoModelForCausalLM.from_pretrained(policy)
    assert (logits(saved) - logits(base)).abs().max() > 0.1
    plain = run(sft, tmp_path / "l", **more)
    assert losses(out)[0] != losses(plain)[0]
    assert losses(out)[0] == pytest.approx(losses(plain)[0], rel=0.1)  # four bits are near


def test_qlora_never_moves_the_packed_weights(policy):
    loaded = models.load_policy(str(policy), PLACE, train=True, quantize="nf4")
    named = weights.adapt(loaded, settings.Adapt(lora_r=4, quantize="nf4"))
    before = {n: p.detach().clone() for n, p in loaded.model.named_parameters()}
    opt = loop.optimizer([(named, 1e-2)], settings.Optim())
    from xwincli.states import prepare

    row = lay([Branch([5, 6], [[7, 8, 9]])])
    prepare(loaded)
    for _ in range(3):
        token_logprobs(loaded, row, hidden(loaded, row)).sum().neg().backward()
        loop.update(opt, settings.Optim(), 1.0, "step")
    moved = {n for n, p in loaded.model.named_parameters() if not torch.equal(before[n], p)}
    assert moved == {n for n, _ in named}


def test_a_kept_adapter_opens_with_peft_and_equals_the_merged_model(policy, talks, tmp_path, monkeypatch):
    from peft import AutoPeftModelForCausalLM

    more = {"data": [str(talks)], "epochs": 2, "lora_r": 4}
    monkeypatch.chdir(policy.parent)
    kept = run(sft, tmp_path / "kept", model=policy.name, keep_adapter=True, **more)
    whole = run(sft, tmp_path / "whole", model=policy.name, **more)
    monkeypatch.chdir(tmp_path)  # the base is found from anywhere
    theirs = logits(AutoPeftModelForCausalLM.from_pretrained(kept, dtype=torch.float32))
    merged = logits(AutoModelForCausalLM.from_pretrained(whole))
    torch.testing.assert_close(theirs, merged, rtol=1e-4, atol=1e-4)
    assert (theirs - logits(AutoModelForCausalLM.from_pretrained(policy))).abs().max() > 0.05


def test_new_adapters_are_drawn_by_the_seed(policy):
    def drawn(seed):
        torch.rand(3)
        return dict(weights.adapt(models.load_policy(str(policy), PLACE, train=True), settings.Adapt(lora_r=2), seed))

    one, again, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(one[n], again[n]) for n in one)
    assert any(not torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_a_reward_model_by_lora_keeps_its_head(policy, pairs, tmp_path, quantize, capsys):
    from peft import AutoPeftModelForSequenceClassification

    more = {"model": str(policy), "data": [str(pairs)], "epochs": 3, "lora_r": 4, "valid": 0.0, "quantize": quantize}
    whole = run(train_rm, tmp_path / "whole", **more)
    assert "scores agree" in capsys.readouterr().err
    kept = run(train_rm, tmp_path / "kept", **more, keep_adapter=True)
    merged = AutoModelForSequenceClassification.from_pretrained(whole)
    fresh = models.new_reward(str(policy), PLACE, seed=0).model
    assert (merged.score.weight - fresh.score.weight).abs().max() > 1e-3
    theirs = AutoPeftModelForSequenceClassification.from_pretrained(kept, num_labels=1, dtype=torch.float32)
    torch.testing.assert_close(logits(theirs), logits(merged), rtol=1e-4, atol=1e-4)


def test_checkpointing_is_execution_only(policy, talks, pairs, tmp_path, capsys):
    for stage, data in ((sft, talks), (dpo, pairs)):
        name = stage.__name__
        plain, twice = (
            run(stage, tmp_path / f"{name}{on}", model=str(policy), data=[str(data)], checkpointing=on)
            for on in (False, True)
        )
        a, b = (AutoModelForCausalLM.from_pretrained(out).state_dict() for out in (plain, twice))
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-5)
        run(stage, plain, model=str(policy), data=[str(data)], checkpointing=True)
        assert "up to date" in capsys.readouterr().err


def test_dpo_in_four_bits_refuses_a_reference_read_in_full(policy, pairs, tmp_path):
    more = {"model": str(policy), "data": [str(pairs)], "reference": str(tmp_path / "ref.jsonl"), "lora_r": 2}
    run(dpo, tmp_path / "a", **more)
    with pytest.raises(XwinError, match="computed in float32 nf4"):
        run(dpo, tmp_path / "b", **more, quantize="nf4")
    (tmp_path / "ref.jsonl").unlink()
    out = run(dpo, tmp_path / "b", **more, quantize="nf4", batch=8)
    first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)  # the policy begins at its reference
    run(dpo, tmp_path / "c", **more, quantize="nf4", seed=1)  # and the new file serves


# -- AdamW with 8-bit state


def taught(policy, out, *, optimizer="adamw8bit", stop_after=None) -> dict[str, torch.Tensor]:
    """Two epochs on fixed rows, optionally broken off; returns the weights."""
    from xwincli.states import prepare
    from xwincli.train import sft as lesson

    branches = [Branch([], [[5 + (i * 7 + j) % 90 for j in range(4 + i % 5)]]) for i in range(10)]
    config = settings.Optim(lr=1e-2, batch=4, epochs=2, optimizer=optimizer)
    run_folder = folder.Folder(
        str(out), manifest.plan("sft", config, [str(policy)]), config, saving=settings.Saving(save_every=0.0)
    )
    loaded = models.load_policy(str(policy), PLACE, train=True)
    named = weights.adapt(loaded, settings.Adapt())
    prepare(loaded)
    compute, calls = lesson.objective(loaded, branches), 0

    def objective(members):
        nonlocal calls
        calls += 1
        if stop_after is not None and calls > stop_after:
            raise KeyboardInterrupt
        return compute(members)

    lengths, units = [len(b) for b in branches], [lesson.learned(b) for b in branches]
    work = loop.Work(name="sft", weights=[(named, config.lr)], objective=objective, lengths=lengths, units=units)
    loop.fit(work, config, 0, run_folder, PLACE)
    run_folder.finish(loaded)
    return {n: p.detach().clone() for n, p in loaded.model.named_parameters()}


def test_adamw8bit_goes_on_from_a_checkpoint_bit_for_bit(policy, tmp_path):
    unbroken = taught(policy, tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        taught(policy, tmp_path / "b", stop_after=4)
    assert folder.read_state(max((tmp_path / "b.partial" / "checkpoints").iterdir()))["step"] > 1
    resumed = taught(policy, tmp_path / "b")
    assert all(torch.equal(unbroken[n], resumed[n]) for n in unbroken)
    exact = taught(policy, tmp_path / "c", optimizer="adamw")
    apart = [(unbroken[n] - exact[n]).abs().max() for n in exact]
    assert max(apart) > 0  # it is another optimizer
    assert max(apart) < 0.05  # and a near one: six steps of 0.01 at most


def test_small_tensors_keep_32_bits():
    large, small = (torch.nn.Parameter(torch.ones(n)) for n in (4096, 4095))
    opt = loop.optimizer(
        [([("a", large), ("b", small)], 1e-2)], settings.Optim(optimizer="adamw8bit", weight_decay=0.5)
    )
    for p in (large, small):
        p.grad = torch.ones_like(p)
    opt.step()
    assert opt.state[large]["state1"].dtype == opt.state[large]["state2"].dtype == torch.uint8
    assert opt.state[small]["state1"].dtype == torch.float32
    assert large[0].item() == pytest.approx(1 - 0.01 - 0.005, abs=1e-4)  # AdamW's first step by hand


def test_adamw8bit_without_bitsandbytes(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(XwinError, match="adamw8bit needs bitsandbytes") as e:
        loop.optimizer([([("p", torch.nn.Parameter(torch.ones(2)))], 1.0)], settings.Optim(optimizer="adamw8bit"))
    assert "pip install" in e.value.hint


# -- PPO


@pytest.fixture(scope="module")
def rm(policy, tmp_path_factory):
    out = tmp_path_factory.mktemp("rm") / "rm"
    models.save(models.new_reward(str(policy), PLACE, 1), out)
    return out


def asked(rm, **given):
    base = {"rm": str(rm), "out": "out", "dtype": "float32", "device": "cpu", "n": 2, "max_tokens": 4}
    return flags.build(ppo.Config, {**base, **given})


def test_ppo_s_reference_is_the_adapter_merged_not_its_base(policy, rm, talks, tmp_path):
    adapter = run(sft, tmp_path / "rs", model=str(policy), data=[str(talks)], epochs=3, lora_r=4, keep_adapter=True)
    rows = [Prompt(id="p", prompt=[{"role": "user", "content": "tea ?"}])]
    ready, _ = ppo._load(asked(rm, model=str(adapter), lora_r=2), rows)
    row = lay([Branch([5, 6], [[7, 8]])])
    with torch.no_grad():
        merged, base = (
            token_logprobs(m, row, hidden(m, row))
            for m in (
                _prepared(models.load_policy(str(adapter), PLACE)),
                _prepared(models.load_policy(str(policy), PLACE)),
            )
        )
        theirs = token_logprobs(ready.reference, row, hidden(ready.reference, row))
        mine = token_logprobs(ready.policy, row, hidden(ready.policy, row))
    torch.testing.assert_close(theirs, merged)
    assert torch.equal(mine, theirs)  # the new adapter begins at zero
    assert (theirs - base).abs().max() > 0.05
    assert not any(p.requires_grad for p in ready.reference.model.parameters())


def _prepared(loaded):
    from xwincli.states import prepare

    return prepare(loaded)


def test_ppo_in_four_bits_begins_at_its_reference(policy, rm, tmp_path):
    data = tmp_path / "prompts.jsonl"
    rows = [{"kind": "prompt", "id": f"p{i}", "prompt": [{"role": "user", "content": f"tea {i} ?"}]} for i in range(2)]
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    more = {"lora_r": 4, "quantize": "nf4", "checkpointing": True, "iterations": 2, "prompts": 2, "lr": 0.02}
    ppo.run(asked(rm, model=str(policy), data=[str(data)], **{**more, "out": str(tmp_path / "out")}))
    figures = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert figures[0]["kl"] == 0.0 != figures[1]["kl"]
    assert all(f["first_drift"] < 1e-6 for f in figures)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.float32
