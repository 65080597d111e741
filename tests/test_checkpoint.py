"""Model folders read by their headers: the facts, and each defect by name."""

from __future__ import annotations

import json
import shutil

import pytest

from xwincli import checkpoint
from xwincli.errors import XwinError


@pytest.fixture
def folder(policy, tmp_path):
    return shutil.copytree(policy, tmp_path / "m")


def change(path, **values):
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def reward(folder, **values):
    """Make the folder look like a reward model, whose head is written apart."""
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    hidden = json.loads((folder / "config.json").read_text())["hidden_size"]
    import numpy as np

    weights["score.weight"] = np.zeros((values.pop("rows", 1), hidden), dtype="float32")
    save_file(weights, folder / "model.safetensors")
    change(folder / "config.json", architectures=["LlamaForSequenceClassification"], id2label={"0": "r"}, **values)


def test_facts_equal_those_of_the_loaded_model(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    facts, problems = checkpoint.inspect(str(folder))
    assert problems == []
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert facts["kind"] == "policy"
    assert facts["architecture"] == type(model).__name__
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert facts["dtypes"] == {"F32": facts["parameters"]}
    assert facts["bytes"] == 4 * facts["parameters"]
    assert facts["stop_tokens"] == {str(tokenizer.eos_token_id): "<|im_end|>"}
    assert facts["pad_token"] == {str(tokenizer.pad_token_id): "<|pad|>"}
    assert facts["template"] is True


def test_a_sound_reward_model(folder):
    reward(folder)
    facts, problems = checkpoint.inspect(str(folder))
    assert (facts["kind"], problems) == ("reward", [])


def test_what_makes_loaders_disagree_about_a_reward_model(folder):
    eos = json.loads((folder / "config.json").read_text())["eos_token_id"]
    reward(folder, rows=2, pad_token_id=eos)
    change(folder / "config.json", id2label={"0": "a", "1": "b"})
    found = "\n".join(checkpoint.inspect(str(folder))[1])
    assert "pad_token_id: equals eos" in found
    assert "id2label: has 2 labels" in found
    assert "score.weight is [2, 32]" in found
    change(folder / "config.json", pad_token_id=None)
    assert "pad_token_id: is missing" in "\n".join(checkpoint.inspect(str(folder))[1])


def test_a_reward_model_without_its_head(folder):
    change(folder / "config.json", architectures=["LlamaForSequenceClassification"], id2label={"0": "r"})
    assert any("no score.weight" in p for p in checkpoint.inspect(str(folder))[1])


def test_weights_cut_off_missing_or_damaged(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert "its header asks for" in checkpoint.inspect(str(folder))[1][0]
    path.write_bytes(whole[:5])
    assert "cut off" in checkpoint.inspect(str(folder))[1][0]
    path.write_bytes(whole[:8] + b"x" + whole[9:])
    assert "damaged" in checkpoint.inspect(str(folder))[1][0]
    path.unlink()
    assert "is missing" in checkpoint.inspect(str(folder))[1][0]


def test_shards(folder):
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    whole = checkpoint.inspect(str(folder))[0]
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({n: weights[n] for n in part}, folder / file)
    index = {"weight_map": {n: file for file, part in shards.items() for n in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    facts, problems = checkpoint.inspect(str(folder))
    assert (facts["parameters"], problems) == (whole["parameters"], [])
    index["weight_map"]["lost"] = "a.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "such as lost" in checkpoint.inspect(str(folder))[1][0]
    (folder / "b.safetensors").unlink()
    assert "b.safetensors: is missing" in checkpoint.inspect(str(folder))[1][0]


def test_tokenizers_that_do_not_fit(folder):
    change(folder / "config.json", vocab_size=10)
    assert "beyond the model's vocabulary of 10" in checkpoint.inspect(str(folder))[1][0]
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json: is missing" in checkpoint.inspect(str(folder))[1][0]


def test_no_stop_token(folder):
    change(folder / "config.json", eos_token_id=None)
    change(folder / "generation_config.json", eos_token_id=None)
    assert "no eos_token_id" in checkpoint.inspect(str(folder))[1][0]


def test_a_lora_adapter(tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "base"}')
    save_file({"a": np.zeros((2, 3), dtype="float16")}, tmp_path / "adapter_model.safetensors")
    facts, problems = checkpoint.inspect(str(tmp_path))
    assert (facts["kind"], facts["base"], facts["parameters"], facts["dtypes"]) == ("adapter", "base", 6, {"F16": 6})
    assert problems == []


def test_what_is_no_model_folder(tmp_path):
    (tmp_path / "x.gguf").touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    for name, said in [
        ("none", "no such model folder"),
        (".", "config.json: is missing"),
        ("x.gguf", "a GGUF file"),
        ("broken", "config.json: not valid JSON"),
    ]:
        with pytest.raises(XwinError, match=said):
            checkpoint.inspect(str(tmp_path / name))
