"""A plan before training: rehearsed bytes and operations are those of a real step; what is told follows."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch

import micro
from xwincli import flags, models, scoring, settings, weights
from xwincli.errors import XwinError
from xwincli.rows import Branch, lay
from xwincli.stages import dpo, sft, train_rm
from xwincli.states import hidden, prepare
from xwincli.train import estimate, rehearsal
from xwincli.train.rehearsal import Alive, Need

CPU = models.Place(torch.device("cpu"), torch.float32)
ROW = [Branch([5] * 20, [[7] * 24, [8] * 12]), Branch([9] * 30, [[6] * 42])]
WAYS = [{}, {"train_top": 1}, {"lora_r": 4}]


def real_step(loaded, adapt: settings.Adapt) -> tuple[int, int]:
    """Bytes alive at most in a real forward and backward beyond weights and gradients, and operations."""
    torch.manual_seed(0)
    named = weights.adapt(loaded, adapt)
    prepare(loaded)
    alive = Alive()
    for p in loaded.model.parameters():
        alive.ignore(p)
    for _, p in named:
        p.grad = torch.zeros_like(p)
        alive.ignore(p.grad)
    with alive, loaded.place.autocast():
        row = lay(ROW)
        states = hidden(loaded, row)
        if hasattr(loaded.model, "score"):
            out = scoring.row_rewards(loaded, row, states)
        else:
            out = scoring.token_logprobs(loaded, row, states)
        out.sum().backward()
    return alive.peak, alive.flops


def near(a: float, b: float, factor: float) -> bool:
    return b / factor <= a <= b * factor


def test_alive_counts_by_hand():
    with Alive() as alive:
        a = torch.zeros(1000)
        b = a[10:].view(-1)  # shares a's storage
        c = a + 1
        assert alive.now == 8000
        del c
        assert alive.now == 4000
        a.add_(1)
        d = b.double()
        del d
    assert (alive.now, alive.peak) == (4000, 4000 + 990 * 8)
    with alive:
        torch.zeros(3, 5) @ torch.zeros(5, 7)
    assert alive.flops == 2 * 3 * 5 * 7


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("adapt", WAYS)
@pytest.mark.parametrize("reward", [False, True])
def test_a_rehearsal_counts_what_a_real_step_takes(policy, adapt, checkpointing, reward):
    way = settings.Adapt(**adapt, checkpointing=checkpointing)
    like = rehearsal.sketch(str(policy), CPU, reward=reward)
    need = rehearsal.rehearse(like, way, ROW, torch.float32)
    loaded = models.new_reward(str(policy), CPU, 0) if reward else models.load_policy(str(policy), CPU, train=True)
    peak, flops = real_step(loaded, way)
    assert near(need.row, peak, 1.1), (need.row, peak)
    assert need.flops == flops
    assert need.weights == sum(p.numel() * 4 for p in loaded.model.parameters())
    assert need.trained == sum(p.numel() for p in loaded.model.parameters() if p.requires_grad)
    assert need.tokens == sum(map(len, ROW))
    assert all(p.device.type == "meta" for p in like.model.parameters()), "no weights were loaded"


def test_operations_by_hand(policy):
    """Two a weight and token forward, four backward; the head: logits, their mean, its gradient."""
    like = rehearsal.sketch(str(policy), CPU)
    need = rehearsal.rehearse(like, settings.Adapt(), ROW, torch.float32)
    inner = sum(p.numel() for n, p in like.model.named_parameters() if "proj" in n)
    vocabulary, hidden = like.model.get_input_embeddings().weight.shape
    assert need.flops == 6 * inner * need.tokens + 6 * vocabulary * hidden * len(lay(ROW).predict)
    twice = rehearsal.rehearse(like, settings.Adapt(checkpointing=True), ROW, torch.float32)
    assert twice.flops - need.flops <= 2 * inner * need.tokens  # a layer again; what no gradient needs is left out
    assert twice.flops - need.flops > 1.3 * inner * need.tokens


@pytest.mark.parametrize("reward", [False, True])
def test_a_forward_alone_counts_what_a_real_one_takes(policy, reward):
    like = rehearsal.sketch(str(policy), CPU, reward=reward)
    need = rehearsal.rehearse(like, settings.Adapt(), ROW, torch.float32, learn=False)
    loaded = models.new_reward(str(policy), CPU, 0) if reward else models.load_policy(str(policy), CPU)
    prepare(loaded)
    alive = Alive()
    for p in loaded.model.parameters():
        alive.ignore(p)
    with alive, torch.no_grad():
        states = hidden(loaded, row := lay(ROW))
        (scoring.row_rewards if reward else scoring.token_logprobs)(loaded, row, states)
    assert near(need.row, alive.peak, 1.1), (need.row, alive.peak)
    assert (need.flops, need.trained, need.kept) == (alive.flops, 0, 0)


def test_the_reference_pass_by_hand(policy):
    """Two operations a weight and token, two at the head for each response token: over all rows, in any packing."""
    like = rehearsal.sketch(str(policy), CPU)
    inner = sum(p.numel() for n, p in like.model.named_parameters() if "proj" in n)
    vocabulary, hidden = like.model.get_input_embeddings().weight.shape
    branches = [Branch([5] * 20, [[7] * 24, [8] * 16])] * 7
    found = estimate.reading(like, settings.Adapt(), branches, 130)
    assert found.flops == pytest.approx(7 * (2 * inner * 60 + 2 * vocabulary * hidden * 40))
    assert found.weights == 0 and found.row > 0
    other = estimate.reading(like, settings.Adapt(), branches, 130, another=True)
    assert other.weights == sum(p.numel() * p.element_size() for p in like.model.parameters())
    assert (other.flops, other.row) == (found.flops, found.row)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return micro.policy(tmp_path_factory.mktemp("deep") / "policy", layers=9)


@pytest.mark.parametrize(
    "adapt,dtype",
    [
        ({}, torch.float32),
        ({"train_top": 5}, torch.bfloat16),
        ({"lora_r": 4, "train_top": 3}, torch.float32),
        ({"checkpointing": True}, torch.float32),
        ({"checkpointing": True, "lora_r": 4, "quantize": "nf4"}, torch.bfloat16),
    ],
    ids=str,
)
def test_a_deep_model_is_reckoned_from_few_layers(deep, adapt, dtype, monkeypatch):
    like = rehearsal.sketch(str(deep), CPU)
    few = rehearsal.rehearse(like, settings.Adapt(**adapt), ROW, dtype)
    monkeypatch.setattr(rehearsal, "SHALLOW", 99)
    whole = rehearsal.rehearse(like, settings.Adapt(**adapt), ROW, dtype)
    assert replace(few, row=0, kept=0) == replace(whole, row=0, kept=0)
    assert near(few.row, whole.row, 1.03), (few.row, whole.row)
    assert near(few.kept, whole.kept, 1.03), (few.kept, whole.kept)


def test_a_135m_shape_against_a_real_step(tmp_path):
    """SmolLM2-135M's width, vocabulary of a quarter, eight of its thirty layers, counted in bytes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama", vocab_size=12288, hidden_size=576, intermediate_size=1536, num_hidden_layers=8,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True, eos_token_id=1,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    micro.tokenizer().save_pretrained(tmp_path)
    like = rehearsal.sketch(str(tmp_path), CPU)
    for checkpointing in (False, True):
        way = settings.Adapt(checkpointing=checkpointing)
        need = rehearsal.rehearse(like, way, ROW, torch.float32)
        peak, flops = real_step(
            replace(like, model=AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()), way
        )
        assert near(need.row, peak, 1.1), (need.row, peak)
        assert need.flops == flops


def test_four_bit_weights_need_what_bitsandbytes_holds(tmp_path):
    name = str(micro.policy(tmp_path / "wide", hidden=128))
    way = settings.Adapt(lora_r=4, quantize="nf4")
    need = rehearsal.rehearse(rehearsal.sketch(name, CPU), way, ROW, torch.float32)
    loaded = models.load_policy(name, CPU, train=True, quantize="nf4")
    peak, _ = real_step(loaded, way)
    held = 0
    for p in loaded.model.parameters():
        held += p.numel() * p.element_size()
        if (state := getattr(p, "quant_state", None)) is not None:
            held += sum(t.numel() * t.element_size() for t in (state.absmax, state.state2.absmax))
    assert near(need.weights, held, 1.01), (need.weights, held)
    assert need.trained == sum(p.numel() for p in loaded.model.parameters() if p.requires_grad)
    assert near(need.row, peak, 1.5), (need.row, peak)
    plain = rehearsal.rehearse(rehearsal.sketch(name, CPU), settings.Adapt(lora_r=4), ROW, torch.float32)
    assert need.weights < 0.5 * plain.weights


def test_a_model_that_looks_at_its_numbers_is_one_sentence(policy, monkeypatch):
    def looks(loaded, row):
        states = hidden(loaded, row)
        return states * float(states.sum().item() > 0)

    monkeypatch.setattr(rehearsal, "hidden", looks)
    with pytest.raises(XwinError, match="--plan cannot foresee"):
        rehearsal.rehearse(rehearsal.sketch(str(policy), CPU), settings.Adapt(), ROW, torch.float32)


# -- memory by hand


NEED = Need(weights=4000, trained=1000, largest=600, small=100, row=900, flops=0, tokens=1)


def test_memory_by_hand():
    found = estimate.memory(NEED, "adamw", cuda=False)
    assert (found.weights, found.gradients, found.optimizer) == (4000, 4000, 8000)
    assert found.row == 2 * 4 * 600  # a step's own copies of one tensor outweigh the row
    assert found.total == 4000 + 4000 + 8000 + 4800
    assert estimate.memory(NEED, "adamw", cuda=True).row == 4 * 1000
    assert estimate.memory(replace(NEED, row=9999), "adamw", cuda=True).row == 9999


def test_8_bit_state_by_hand():
    found = estimate.memory(NEED, "adamw8bit", cuda=False)
    assert found.optimizer == 100 * 8 + 900 * (2 + 2 * 4 / 256)


@pytest.mark.parametrize("zero,shared", [(0, (1, 1, 1)), (1, (1, 1, 4)), (2, (1, 4, 4)), (3, (4, 4, 4))])
def test_zero_shares_out(zero, shared):
    found = estimate.memory(NEED, "adamw", cuda=True, zero=zero, world=4)
    assert (found.weights, found.gradients, found.optimizer) == (4000 / shared[0], 4000 / shared[1], 8000 / shared[2])


def test_zero_in_bfloat16_by_hand():
    """Two bytes of weight, two of gradient, twelve at the optimizer: 16 a parameter, as ZeRO's paper counts."""
    need = replace(NEED, weights=4000, trained=1000, small=0)
    found = estimate.memory(need, "adamw", cuda=True, zero=1, world=1, half=True)
    assert (found.weights, found.gradients, found.optimizer) == (2000, 2000, 12000)
    assert estimate.memory(need, "adamw", cuda=True, zero=0, half=True).optimizer == 8000


def test_real_optimizer_states_are_as_large_as_told():
    from xwincli.train.loop import optimizer

    p = torch.nn.Parameter(torch.ones(64, 256))
    for name in ("adamw", "adamw8bit"):
        opt = optimizer([([("p", p)], 1.0)], settings.Optim(optimizer=name))
        p.grad = torch.ones_like(p)
        opt.step()
        state = opt.state[p]
        held = sum(t.numel() * t.element_size() for k, t in state.items() if "qmap" not in k and torch.is_tensor(t))
        need = Need(weights=0, trained=p.numel(), largest=p.numel(), small=0, row=0, flops=0, tokens=1)
        assert near(estimate.memory(need, name, cuda=False).optimizer, held, 1.001), name


def test_a_card_fits_plainly_with_checkpointing_or_not():
    plain, twice = replace(NEED, flops=100), replace(NEED, flops=130)
    cell = lambda size, needs: estimate._fits(size, plain, twice, needs, tokens=36000, speed=1e5)
    assert cell(24, [22.5, 9.0]) == "fits, 1m30s"  # 100 x 36000 / 1e5 / 0.4
    assert cell(24, [22.6, 9.0]) == "fits, 1m57s*"
    assert cell(24, [40.0, 22.6]) == "no"
    assert estimate._fits(24, plain, twice, [1.0, 1.0], 36000, 1e5, before=1.2e6) == "fits, 2m00s"


def test_the_probe_measures_something(policy):
    assert estimate.probe(rehearsal.sketch(str(policy), CPU), seconds=0.01) > 1e6


# -- as a user sees it


@pytest.fixture(scope="module")
def hollow(policy, tmp_path_factory):
    """The policy's folder without its weights."""
    folder = tmp_path_factory.mktemp("hollow") / "policy"
    shutil.copytree(policy, folder)
    (folder / "model.safetensors").unlink()
    return folder


DATA = {
    sft: [{"messages": [{"role": "user", "content": "tea ?"}, {"role": "assistant", "content": "the tea ."}]}],
    dpo: [
        {
            "prompt": [{"role": "user", "content": "tea ?"}],
            "chosen": [{"role": "assistant", "content": "the tea ."}],
            "rejected": [{"role": "assistant", "content": "no"}],
        }
    ],
}
DATA[train_rm] = DATA[dpo]


def planned(stage, hollow, tmp_path, capsys, **more) -> str:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in DATA[stage] * 6))
    given = {"model": str(hollow), "data": [str(data)], "out": str(tmp_path / "m"), "device": "cpu", "batch": 4}
    stage.run(flags.build(stage.Config, {"dtype": "float32", "plan": True, **given, **more}))
    assert [p.name for p in tmp_path.iterdir()] == ["data.jsonl"], "a plan makes nothing"
    return capsys.readouterr().err


@pytest.mark.parametrize("stage", [sft, dpo, train_rm])
def test_a_stage_tells_its_plan_without_weights(stage, hollow, tmp_path, capsys, monkeypatch):
    if stage is not sft:  # the table of cards once is enough
        monkeypatch.setattr(estimate, "fit_table", lambda loaded, row, *_: f"cards, {len(row)}")
    text = planned(stage, hollow, tmp_path, capsys, **({"valid": 0.0} if stage is train_rm else {}))
    assert "2 layers, hidden 32, vocabulary 384" in text
    rows = 1 if stage is train_rm else 6  # all comparisons of a prompt are one
    assert f"{rows} rows of " in text
    for word in ("steps: ", "weights (float32)", "gradients of", "adamw's state", "together", "time: "):
        assert word in text
    cards = ("24 GB", "48 GB", "80 GB", "QLoRA r16") if stage is sft else ("cards, ",)
    assert all(word in text for word in cards)


def test_the_plan_follows_the_options(hollow, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(estimate, "fit_table", lambda *_: "")  # it follows only the model and the row
    text = planned(sft, hollow, tmp_path, capsys, epochs=3, optimizer="adamw8bit", lora_r=2, checkpointing=True)
    assert "steps: 6 of 4 rows" in text  # three epochs of six rows, four and two a step
    assert "adamw8bit's state" in text
    assert "without --checkpointing" in text
    assert "gradients of 0.0M that learn" in text
    text = planned(sft, hollow, tmp_path, capsys, lora_r=2, quantize="nf4", max_tokens_per_row=50)
    assert "weights (nf4 and float32)" in text
    length = int(text.split("the longest has ")[1].split()[0])
    assert f"the fullest of {50 // length * length} tokens" in text
    with pytest.raises(XwinError, match="3, but"):
        planned(sft, hollow, tmp_path, capsys, train_top=3)


def test_a_plan_of_dpo_counts_the_reference_pass(policy, hollow, tmp_path, capsys, monkeypatch):
    """A quarter of all operations is the reference's forward; nothing is counted where nothing is computed."""
    monkeypatch.setattr(estimate, "fit_table", lambda *_: "")
    told = lambda **more: planned(dpo, hollow, tmp_path, capsys, **more).split("products")[1].split(" of them for")
    assert 20 < int(told()[0].strip(", %")) < 30
    assert 10 < int(told(epochs=2)[0].strip(", %")) < 18
    assert len(told(loss="simpo")) == 1
    twice = micro.policy(tmp_path.with_name("twice"), layers=4)
    assert int(told(reference_model=str(twice))[0].strip(", %")) > 30
    both = "while the reference model is read beside the policy"
    assert both in planned(dpo, hollow, tmp_path, capsys, reference_model=str(twice))
    assert both not in planned(dpo, hollow, tmp_path, capsys)
    data, file = tmp_path.with_name("data.jsonl"), tmp_path.with_name("ref.jsonl")
    data.write_text("".join(json.dumps(row) + "\n" for row in DATA[dpo] * 6))
    given = {"model": str(policy), "data": [str(data)], "out": str(tmp_path.with_name("m")), "device": "cpu"}
    dpo.run(flags.build(dpo.Config, {**given, "dtype": "float32", "reference": str(file)}))
    capsys.readouterr()
    dpo.run(flags.build(dpo.Config, {**given, "dtype": "float32", "reference": str(file), "plan": True}))
    assert "of them for the reference" not in capsys.readouterr().err


def test_an_adapter_s_plan_is_its_base_s(policy, hollow, tmp_path, capsys):
    loaded = models.load_policy(str(policy), CPU, train=True)
    weights.adapt(loaded, settings.Adapt(lora_r=2, keep_adapter=True))
    models.save(loaded, tmp_path / "adapter", keep_adapter=True)
    like = rehearsal.sketch(str(tmp_path / "adapter"), CPU)
    assert len(weights.layers(like.model)) == 2
    assert like.tokenizer.get_vocab() == loaded.tokenizer.get_vocab()
    assert like.template.stop_ids == loaded.template.stop_ids
