"""Grouped rows give what plain transformers gives, one sequence at a time: figures and gradients."""

from __future__ import annotations

import json
import re
from copy import deepcopy

import pytest
import torch

import micro
from xwincli import models, scoring, settings, states
from xwincli.rows import Branch, lay, pack, segment_sum
from xwincli.states import hidden, prepare

BRANCHES = [
    Branch([5, 6, 7, 40], [[8, 9], [10, 11, 12], [8, 9, 13]]),
    Branch([13], [[14, 15]]),
    Branch([20, 21, 22, 23, 24, 25, 26, 27, 28], [[30], [31, 32, 33, 34, 35, 36]]),
]
WINDOW = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES = {  # what the config says beside the sizes
    "llama": {},
    "qwen2": {},
    "qwen2 with windows": {**WINDOW, "use_sliding_window": True},
    "qwen3": {},
    "mistral": {},
    "mistral with windows": {"sliding_window": 4},
    "gemma": {},
    "gemma2 with windows": {**WINDOW, "attn_logit_softcapping": 0.5},
    "gemma3_text with windows": WINDOW,
    "phi": {},
    "phi3": {},
    "phi3 with windows": {"sliding_window": 4},
    "gpt_neox": {},
}


@pytest.fixture(scope="module")
def place():
    return models.place(settings.Device(device="cpu", dtype="float32"))


def plain_logprobs(model, branch):
    """Summed log-probabilities by one ordinary forward a response."""
    sums = []
    for response in branch.responses:
        ids = torch.tensor([branch.prompt + response])
        logp = model(ids).logits.float().log_softmax(-1)[0]
        start = len(branch.prompt) - 1
        sums.append(sum(logp[start + j, t].double() for j, t in enumerate(response)))
    return torch.stack(sums)


def plain_rewards(model, branch):
    """The score head at the last token of one ordinary forward a response."""
    return torch.stack([model(torch.tensor([branch.prompt + r])).logits[0, 0].double() for r in branch.responses])


def folder(path, name):
    """A random model of a family whose config says more."""
    made = micro.policy(path, family=name.split()[0])
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps(config | FAMILIES.get(name, {})))
    return str(made)


def loss_and_gradients(model, values):
    """A weighted sum of per-response values, backward; values and gradients."""
    model.zero_grad()
    (values * torch.linspace(-1, 1, len(values), dtype=torch.float64)).sum().backward()
    return values.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}


def assert_same(ours, plain):
    torch.testing.assert_close(ours[0].double(), plain[0].double(), rtol=1e-5, atol=1e-6)
    largest = max(g.norm().item() for g in plain[1].values())  # some vanish by themselves: a key's bias
    for name, expected in plain[1].items():
        scale = max(expected.norm().item(), largest / 100)
        assert (ours[1][name] - expected).norm().item() <= 1e-5 * scale, name


@pytest.mark.parametrize("name", FAMILIES)
def test_grouped_packed_and_plain_are_one(name, place, tmp_path, capsys):
    where = folder(tmp_path / "policy", name)
    policy = prepare(models.load_policy(where, place, train=True))
    reward = prepare(models.new_reward(where, place, seed=3))
    assert policy.model.xwin_branches, capsys.readouterr().err
    assert reward.model.xwin_branches

    def logprobs(row):
        return segment_sum(scoring.token_logprobs(policy, row, hidden(policy, row)), row)

    def rewards(row):
        return scoring.row_rewards(reward, row, hidden(reward, row)).double()

    plain_policy = models.load_policy(where, place, train=True).model
    plain_reward = models.new_reward(where, place, seed=3).model
    cases = (logprobs, policy, plain_logprobs, plain_policy), (rewards, reward, plain_rewards, plain_reward)
    for ours, loaded, theirs, model in cases:
        packed = loss_and_gradients(loaded.model, ours(lay(BRANCHES)))
        grouped = loss_and_gradients(loaded.model, torch.cat([ours(lay([b])) for b in BRANCHES]))
        plain = loss_and_gradients(model, torch.cat([theirs(model, b) for b in BRANCHES]))
        assert_same(packed, plain)
        assert_same(grouped, plain)


def test_windows_and_caps_are_not_idle(place, tmp_path):
    """What the comparisons above hold equal does change the numbers."""
    for name in FAMILIES:
        if name.endswith("windows"):
            bare = str(micro.policy(tmp_path / f"{name} bare", family=name.split()[0]))
            with torch.no_grad():
                a, b = (
                    plain_logprobs(models.load_policy(f, place).model, BRANCHES[2])
                    for f in (bare, folder(tmp_path / name, name))
                )
            assert (a - b).abs().max() > 1e-3, name


def test_temperature_divides_the_logits(place, policy):
    loaded = prepare(models.load_policy(str(policy), place))
    row = lay(BRANCHES)
    with torch.no_grad():
        states = hidden(loaded, row)
        got = scoring.token_logprobs(loaded, row, states, temperature=0.7)
        z = loaded.model.lm_head(states[row.predict]) / 0.7
    expected = z.log_softmax(-1).gather(-1, row.target[:, None])[:, 0]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kept", [0, 7 * 384, 1 << 30])
@pytest.mark.parametrize("chunk", [1, 3 * 384, 1 << 30])
def test_the_head_in_parts_has_the_same_gradients(chunk, kept, monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK", chunk)
    monkeypatch.setattr(scoring, "KEPT", kept)
    torch.manual_seed(0)
    h, w = torch.randn(11, 8, requires_grad=True), torch.randn(384, 8, requires_grad=True)
    target, g = torch.randint(0, 384, (11,)), torch.randn(11)
    ours = torch.autograd.grad((scoring._TargetLogprob.apply(h, w, target, 0.7) * g).sum(), (h, w))
    plain = (h @ w.T / 0.7).log_softmax(-1).gather(-1, target[:, None])[:, 0]
    for a, b in zip(ours, torch.autograd.grad((plain * g).sum(), (h, w)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 3 * 384, 1 << 30])
def test_the_summed_likelihood_has_the_same_gradients(chunk, monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK", chunk)
    torch.manual_seed(0)
    h, w = torch.randn(11, 8, requires_grad=True), torch.randn(384, 8, requires_grad=True)
    target = torch.randint(0, 384, (11,))
    ours = scoring._SummedNLL.apply(h, w, target)
    plain = torch.nn.functional.cross_entropy(h @ w.T, target, reduction="sum")
    assert ours.item() == pytest.approx(plain.item(), rel=1e-6)
    for a, b in zip(torch.autograd.grad(ours * 0.3, (h, w)), torch.autograd.grad(plain * 0.3, (h, w)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    frozen = torch.autograd.grad(scoring._SummedNLL.apply(h, w.detach(), target), h)[0]  # a head that does not learn
    again = torch.nn.functional.cross_entropy(h @ w.T, target, reduction="sum")
    torch.testing.assert_close(frozen, torch.autograd.grad(again, h)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("capacity", [8, 20, 4096])
def test_capacity_changes_nothing(capacity, place, policy):
    loaded = models.load_policy(str(policy), place)
    whole = scoring.logprobs(loaded, BRANCHES, 4096)
    parts = scoring.logprobs(loaded, BRANCHES, capacity)
    assert [len(p) for p in parts] == [3, 1, 2]
    for a, b in zip(whole, parts, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)


def test_rewards_equal_plain_transformers(place, policy, tmp_path):
    from transformers import AutoModelForSequenceClassification

    loaded = models.new_reward(str(policy), place, seed=1)
    models.save(loaded, tmp_path / "rm")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    prompt = [{"role": "user", "content": "why does the moon shine ?"}]
    answers = [("because of the sun", True), ("the river", False), ("tea", True)]
    ours = scoring.rewards(loaded, [(prompt, answers)])[0]
    sequences = [sum(loaded.template.response_ids(prompt, t, e, tail=True), []) for t, e in answers]
    longest, pad = max(map(len, sequences)), plain.config.pad_token_id
    batch = torch.tensor([s + [pad] * (longest - len(s)) for s in sequences])
    mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences])
    with torch.no_grad():
        expected = plain(batch, attention_mask=mask).logits[:, 0].tolist()
    assert ours == pytest.approx(expected, abs=1e-5)
    assert pad != plain.config.eos_token_id
    assert list(plain.config.id2label) == [0]


def test_a_sequence_beyond_the_context_is_refused(place, policy):
    loaded = models.load_policy(str(policy), place)
    prompt = [{"role": "user", "content": "fox " * 700}]
    with pytest.raises(scoring.XwinError, match="takes 512"):
        scoring.branch(loaded, (prompt, [("hi", True)]), tail=False)


def test_pack_never_exceeds_the_capacity_and_loses_nothing():
    lengths = [7, 3, 9, 2, 2, 8, 12, 1]
    rows = pack(lengths, 10)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 10 or len(row) == 1 for row in rows)


def test_row_bookkeeping():
    row = lay([Branch([1, 2], [[3, 4], [5]]), Branch([], [[6, 7]], [[True, True]])])
    assert row.ids.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert row.positions.tolist() == [0, 1, 2, 3, 2, 0, 1]
    assert row.predict.tolist() == [1, 2, 1, 5]  # a first token without a prompt has nothing before it
    assert row.target.tolist() == [3, 4, 5, 7]
    assert row.response.tolist() == [0, 0, 1, 2]
    assert row.last.tolist() == [3, 4, 6]
    assert row.branch.tolist() == [0, 0, 1]


# -- models that may not branch: said once, computed one by one, and equal


def hybrid(path, family, **more):
    """A random tiny model of a family that mixes tokens in another way, with the micro tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    tokenizer = micro.tokenizer()
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **{**sizes, **heads, **ids, "max_position_embeddings": 512, **more})
    ).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


HYBRIDS = {
    "gpt_oss": ("its attention wants s_aux", {"num_local_experts": 2, "num_experts_per_tok": 1}),
    "lfm2": ("1 of its 2 layers", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
    "mamba": ("row attention|mix tokens without attention", {"state_size": 4, "time_step_rank": 4}),
    "falcon_h1": (
        "a response changes the one after it",
        {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 4},
    ),
    "qwen3_next": (
        "1 of its 2 layers",
        {
            "layer_types": ["linear_attention", "full_attention"],
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
    ),
}


@pytest.mark.parametrize("family", HYBRIDS)
def test_models_that_cannot_branch_fall_back(family, place, tmp_path, capsys):
    reason, more = HYBRIDS[family]
    where = hybrid(tmp_path / family, family, **more)
    plain = models.load_policy(where, place).model
    loaded = prepare(models.load_policy(where, place))
    assert not loaded.model.xwin_branches
    got = scoring.logprobs(loaded, BRANCHES)
    prepare(loaded)
    said = [line for line in capsys.readouterr().err.splitlines() if "cannot be shared" in line]
    assert len(said) == 1
    assert re.search(reason, said[0]), said
    with torch.no_grad():
        expected = torch.cat([plain_logprobs(plain, b) for b in BRANCHES])
    torch.testing.assert_close(torch.tensor(sum(got, [])), expected.float(), rtol=1e-5, atol=1e-5)
    half = models.Place(place.device, torch.bfloat16)
    assert not prepare(models.load_policy(where, half)).model.xwin_branches


@pytest.mark.parametrize("name", FAMILIES)
def test_the_probe_sees_no_rounding(name, place, tmp_path, capsys):
    loaded = models.load_policy(folder(tmp_path / "policy", name), models.Place(place.device, torch.bfloat16))
    before = {n: p.clone() for n, p in loaded.model.named_parameters()}
    loaded.model.xwin_branches = False
    wide, row = deepcopy(loaded), lay(BRANCHES)
    wide.model.float()
    with torch.no_grad():
        expected = hidden(wide, row)
        with states.in_float32(loaded.model):
            moved = (hidden(loaded, row) - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert moved.max() < (1e-2 if "gemma" in name else 1e-5)  # its embeddings are scaled by a rounded number
    del loaded.model.xwin_branches
    assert prepare(loaded).model.xwin_branches, capsys.readouterr().err
    for n, p in loaded.model.named_parameters():
        assert p.dtype == torch.bfloat16
        assert torch.equal(p, before[n])


@pytest.mark.parametrize("learns", ["states", "head"])
def test_where_one_alone_learns_its_gradient_is_the_same(learns, monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK", 4 * 384)
    torch.manual_seed(0)
    h, w = torch.randn(11, 8, requires_grad=learns == "states"), torch.randn(384, 8, requires_grad=learns == "head")
    target = torch.randint(0, 384, (11,))
    one = h if learns == "states" else w
    expected = torch.autograd.grad(torch.nn.functional.cross_entropy(h @ w.T, target, reduction="sum"), one)[0]
    summed = scoring._SummedNLL.apply(h, w, target)
    single = -scoring._TargetLogprob.apply(h, w, target, 1.0).sum()
    for loss in (summed, single):
        torch.testing.assert_close(torch.autograd.grad(loss, one)[0], expected, rtol=1e-4, atol=1e-5)
