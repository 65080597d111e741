"""Which weights learn, four-bit weights, layers computed twice: memory is saved, the computation stays."""

from __future__ import annotations

import sys

import pytest
import torch

from xwincli import models, scoring, settings, weights
from xwincli.errors import USAGE, XwinError
from xwincli.rows import Branch, lay
from xwincli.states import hidden, prepare

ROW = [Branch([5, 6, 7], [[8, 9, 10], [11, 12]]), Branch([13, 14], [[15, 16, 17, 18]])]
PLACE = models.Place(torch.device("cpu"), torch.float32)


def fill(model) -> None:
    """Give new adapters' zero matrices a value, so that they matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=generator) / 10)


def step(loaded) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of a row's log-probabilities, and the bytes autograd keeps for them beside the weights."""
    held: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in loaded.model.parameters()}

    def keep(t: torch.Tensor) -> torch.Tensor:
        if t.untyped_storage().data_ptr() not in own:
            held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    row = lay(ROW)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        states = hidden(loaded, row)
    kept = sum(held.values())
    scoring.token_logprobs(loaded, row, states).sum().backward()
    return {n: p.grad for n, p in loaded.model.named_parameters() if p.grad is not None}, kept


@pytest.fixture(scope="module")
def families(policy, tmp_path_factory):
    """Micro models by family; OPT draws dropout in the layer itself."""
    from transformers import AutoModelForCausalLM, OPTConfig

    import micro

    folder = tmp_path_factory.mktemp("families")
    micro.policy(folder / "gemma3_text", family="gemma3_text", layers=3)
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=400, hidden_size=32, ffn_dim=64, num_hidden_layers=3, num_attention_heads=4, dropout=0.5,
        word_embed_proj_dim=32, max_position_embeddings=64,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "opt")
    micro.tokenizer().save_pretrained(folder / "opt")
    return {"llama": policy, "gemma3_text": folder / "gemma3_text", "opt": folder / "opt"}


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "opt"])
@pytest.mark.parametrize("adapt", [{}, {"lora_r": 2}, {"train_top": 1}])
def test_checkpointing_keeps_less_and_changes_no_gradient(families, family, adapt):
    found = []
    for on in (False, True):
        torch.manual_seed(0)
        loaded = models.load_policy(str(families[family]), PLACE, train=True)
        weights.adapt(loaded, settings.Adapt(**adapt, checkpointing=on))
        fill(loaded.model)
        found.append(step(prepare(loaded)))
    (plain, much), (twice, less) = found
    assert plain.keys() == twice.keys()
    assert any(g.abs().max() > 0 for g in plain.values())
    for name in plain:
        torch.testing.assert_close(twice[name], plain[name], rtol=1e-5, atol=1e-6)
    assert less < much / 2


def test_lora_on_the_top_layers_alone(policy):
    for quantize in ("none", "nf4"):
        loaded = models.load_policy(str(policy), PLACE, train=True, quantize=quantize)
        named = weights.adapt(loaded, settings.Adapt(lora_r=2, train_top=1, quantize=quantize))
        assert len(named) == 2 * 7
        assert all(".layers.1." in n and "lora_" in n for n, _ in named)


def test_checkpointing_leaves_generation_its_cache(policy):
    loaded = models.load_policy(str(policy), PLACE, train=True)
    ids = torch.tensor([[5, 6, 7, 8]])
    before = loaded.model.generate(ids, max_new_tokens=6, do_sample=False)
    weights.adapt(loaded, settings.Adapt(checkpointing=True))
    calls = []
    loaded.model.model.layers[0].register_forward_pre_hook(
        lambda m, a, k: calls.append(a[0].shape[1]), with_kwargs=True
    )
    after = loaded.model.generate(ids, max_new_tokens=6, do_sample=False)
    assert torch.equal(before, after)
    assert set(calls[1:]) == {1}, "each new token alone passes the layers"
    assert not any(m.training for m in loaded.model.modules())


def test_a_model_that_cannot_be_checkpointed_is_refused():
    with pytest.raises(XwinError, match="toy: transformers cannot checkpoint Linear"):
        weights.checkpoint_layers(torch.nn.Linear(2, 2), "toy")


def test_nf4_needs_lora_and_bitsandbytes(policy, monkeypatch):
    with pytest.raises(XwinError, match="--quantize nf4 needs --lora-r") as e:
        settings.Adapt(quantize="nf4")
    assert e.value.code == USAGE
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(XwinError, match="bitsandbytes") as e:
        models.load_policy(str(policy), PLACE, train=True, quantize="nf4")
    assert "pip install" in e.value.hint


def four(policy, **more):
    """A policy in four bits with filled adapters."""
    loaded = models.load_policy(str(policy), PLACE, train=True, quantize="nf4")
    weights.adapt(loaded, settings.Adapt(lora_r=4, quantize="nf4", **more))
    fill(loaded.model)
    return loaded


def test_nf4_packs_the_linear_layers_alone(policy):
    loaded = four(policy)
    kinds = {n: type(p).__name__ for n, p in loaded.model.named_parameters()}
    packed = {n for n, kind in kinds.items() if kind == "Params4bit"}
    assert len(packed) == 2 * 7
    assert all("proj" in n for n in packed)
    assert loaded.model.get_input_embeddings().weight.dtype == torch.float32
    assert {n for n, p in loaded.model.named_parameters() if p.requires_grad} == {n for n in kinds if "lora_" in n}
    whole = models.load_policy(str(policy), PLACE).model
    assert sum(map(weights.size, whole.parameters())) == sum(
        weights.size(p) for n, p in loaded.model.named_parameters() if "lora_" not in n
    )


def test_nf4_computes_in_the_place_s_precision(policy):
    place = models.Place(torch.device("cpu"), torch.bfloat16)
    loaded = models.load_policy(str(policy), place, train=True, quantize="nf4")
    assert loaded.model.model.layers[0].mlp.up_proj.compute_dtype == torch.bfloat16
    assert four(policy).model.model.layers[0].mlp.up_proj.base_layer.compute_dtype == torch.float32


def test_nf4_has_lora_s_gradients_on_the_weights_it_stands_for(policy):
    """The same adapters on plain layers that hold the unpacked four-bit weights."""
    import bitsandbytes

    packed = prepare(four(policy))
    plain = models.load_policy(str(policy), PLACE, train=True)
    weights.adapt(plain, settings.Adapt(lora_r=4))
    held, theirs = dict(packed.model.named_parameters()), dict(plain.model.named_parameters())
    with torch.no_grad():
        for name, p in theirs.items():
            whole = held[name]
            if type(whole).__name__ == "Params4bit":
                p.copy_(bitsandbytes.functional.dequantize_4bit(whole.data, whole.quant_state))
            else:
                p.copy_(whole)
    want, _ = step(prepare(plain))
    got, _ = step(packed)
    assert want.keys() == got.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-5)


def test_nf4_merges_into_the_weights_as_they_were(policy, tmp_path, capsys):
    """Saved = W + (alpha/r) B A with the unrounded W, which is what plain transformers opens."""
    from transformers import AutoModelForCausalLM

    loaded = four(policy)
    models.save(loaded, tmp_path / "whole")
    assert "float32, read anew" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["whole"]
    base = dict(AutoModelForCausalLM.from_pretrained(policy).named_parameters())
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert not getattr(saved.config, "quantization_config", None)
    learned = dict(loaded.model.named_parameters())
    for name, p in saved.named_parameters():
        at = name.removesuffix(".weight")
        delta = 0.0
        if f"{at}.lora_A.default.weight" in learned:
            delta = 2.0 * learned[f"{at}.lora_B.default.weight"] @ learned[f"{at}.lora_A.default.weight"]
            assert delta.abs().max() > 0
        torch.testing.assert_close(p, base[name] + delta)


def test_an_adapter_is_packed_merged(policy, tmp_path):
    """In four bits an adapter folder is its merged model, not its base."""
    loaded = models.load_policy(str(policy), PLACE, train=True)
    weights.adapt(loaded, settings.Adapt(lora_r=2, keep_adapter=True))
    fill(loaded.model)
    models.save(loaded, tmp_path / "adapter", keep_adapter=True)
    models.save(loaded, tmp_path / "merged")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        one, other, base = (
            models.load_policy(str(name), PLACE, train=True, quantize="nf4").model(ids).logits
            for name in (tmp_path / "adapter", tmp_path / "merged", policy)
        )
    torch.testing.assert_close(one, other)
    assert (one - base).abs().max() > 0.1


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_a_reward_model_s_adapter_keeps_its_head(policy, tmp_path, quantize):
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoModelForSequenceClassification

    loaded = models.new_reward(str(policy), PLACE, seed=3, quantize=quantize)
    assert loaded.model.score.weight.dtype == torch.float32
    named = dict(weights.adapt(loaded, settings.Adapt(lora_r=4, quantize=quantize, keep_adapter=True)))
    fill(loaded.model)
    assert any("score" in n for n in named)
    with torch.no_grad():
        for n, p in named.items():
            if "score" in n:
                p.add_(1.0)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = loaded.model(ids).logits
    models.save(loaded, tmp_path / "adapter", keep_adapter=True)
    arguments = weights.nf4(PLACE, reward=True) if quantize == "nf4" else {"dtype": torch.float32}
    again = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", num_labels=1, **arguments)
    weights.settle(again)  # where a processor has bfloat16 units, bitsandbytes packs anew and fails below 64 columns
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(ids).logits, expected, rtol=1e-4, atol=1e-4)
    models.save(loaded, tmp_path / "whole")
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole")
    assert torch.equal(whole.score.weight, next(p for n, p in named.items() if "score" in n))
    if quantize == "none":
        with torch.no_grad():
            torch.testing.assert_close(whole.eval()(ids).logits, expected, rtol=1e-4, atol=1e-4)
