"""Models come from folders and adapters, go to folders whole, and open with transformers alone."""

from __future__ import annotations

import pytest
import torch

from xwincli import models, settings, weights
from xwincli.errors import XwinError


@pytest.fixture(scope="module")
def place():
    return models.place(settings.Device(device="cpu", dtype="float32"))


def test_the_place_is_said_once_in_a_line(capsys):
    found = models.place(settings.Device(device="cpu"))
    assert capsys.readouterr().err.count("\n") == 1
    assert found.device.type == "cpu"
    assert found.dtype in (torch.float32, torch.bfloat16)
    assert models.place(settings.Device(device="cpu", dtype="bfloat16")).dtype == torch.bfloat16


def test_an_impossible_device_is_refused():
    with pytest.raises(XwinError, match="gpu"):
        models.place(settings.Device(device="gpu"))


@pytest.mark.parametrize("name", ["./nowhere", "nowhere/at-all", "missing.gguf"])
def test_a_model_that_is_not_there_is_one_sentence(name, place):
    with pytest.raises(XwinError) as e:
        models.load_policy(name, place)
    assert name.removeprefix("./") in e.value.message
    assert "\n" not in e.value.message


def test_a_policy_is_no_reward_model(policy, place):
    with pytest.raises(XwinError, match="not a reward model"):
        models.load_reward(str(policy), place)


def test_an_adapter_folder_loads_merged(policy, place, tmp_path):
    loaded = models.load_policy(str(policy), place, train=True)
    weights.adapt(loaded, settings.Adapt(lora_r=2, keep_adapter=True))
    with torch.no_grad():
        for name, p in loaded.model.named_parameters():
            if "lora_B" in name:
                p.normal_()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected = loaded.model(ids).logits
    models.save(loaded, tmp_path / "adapter", keep_adapter=True)
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    again = models.load_policy(str(tmp_path / "adapter"), place)
    with torch.no_grad():
        torch.testing.assert_close(again.model(ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_saving_replaces_a_folder_whole(policy, place, tmp_path):
    out = tmp_path / "m"
    out.mkdir()
    (out / "old").touch()
    models.save(models.load_policy(str(policy), place), out)
    assert not (out / "old").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_weights_that_are_not_finite_are_never_saved(policy, place, tmp_path):
    loaded = models.load_policy(str(policy), place)
    with torch.no_grad():
        next(loaded.model.parameters())[0] = float("nan")
    with pytest.raises(XwinError, match="not finite"):
        models.save(loaded, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pad", ["<|pad|>", "<|im_end|>", None])
def test_a_reward_model_never_pads_with_its_stop_token(policy, place, tmp_path, pad):
    loaded = models.load_policy(str(policy), place)
    loaded.tokenizer.pad_token = pad
    loaded.model.config.pad_token_id = loaded.tokenizer.pad_token_id
    models.save(loaded, tmp_path / "p")
    reward = models.new_reward(str(tmp_path / "p"), place, seed=0)
    assert reward.model.config.pad_token_id == reward.tokenizer.pad_token_id
    assert reward.tokenizer.pad_token_id not in reward.template.stop_ids
    assert reward.model.score.weight.shape[0] == 1
    assert reward.model.score.weight.std().item() == pytest.approx((32 + 1) ** -0.5, rel=0.5)


def test_options_that_contradict_are_refused(policy, place):
    with pytest.raises(XwinError, match="2 layers"):
        weights.adapt(models.load_policy(str(policy), place), settings.Adapt(train_top=3))
    with pytest.raises(XwinError, match="--lora-r"):
        weights.adapt(models.load_policy(str(policy), place), settings.Adapt(keep_adapter=True))


def test_how_a_tokenizer_was_read_is_not_saved(policy, tmp_path):
    """Saved folders must not differ by the reader's environment: their digests decide what is up to date."""
    loaded = models.load_policy(str(policy), models.place(settings.Device(device="cpu", dtype="float32")))
    loaded.tokenizer.init_kwargs["local_files_only"] = True
    models.save(loaded, tmp_path / "out")
    assert "local_files_only" not in (tmp_path / "out" / "tokenizer_config.json").read_text()
