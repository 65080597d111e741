"""Grouped rows give what plain transformers gives, one sequence at a time: figures and gradients."""

from __future__ import annotations

import pytest
import torch

import micro
from xwincli import models, scoring, settings
from xwincli.rows import Branch, lay, pack, segment_sum

BRANCHES = [
    Branch([5, 6, 7, 40], [[8, 9], [10, 11, 12], [8, 9, 13]]),
    Branch([13], [[14, 15]]),
    Branch([20, 21, 22, 23, 24, 25, 26, 27, 28], [[30], [31, 32, 33, 34, 35, 36]]),
]
FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "phi3", "gpt_neox"]


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
        sums.append(sum(logp[start + j, t] for j, t in enumerate(response)))
    return torch.stack(sums)


@pytest.mark.parametrize("family", FAMILIES)
def test_grouped_equals_plain(family, place, tmp_path, capsys):
    folder = str(micro.policy(tmp_path / family, family=family))
    ours = scoring.prepare(models.load_policy(folder, place, train=True))
    plain = models.load_policy(folder, place, train=True).model
    assert ours.model.xwin_branches == (family != "gemma2"), capsys.readouterr().err

    weights = torch.linspace(-1, 1, sum(len(b.responses) for b in BRANCHES), dtype=torch.float64)
    row = lay(BRANCHES)
    sums = segment_sum(scoring.token_logprobs(ours, row, scoring.hidden(ours, row)), row)
    (sums * weights).sum().backward()
    expected = torch.cat([plain_logprobs(plain, b) for b in BRANCHES])
    (expected * weights).sum().backward()

    torch.testing.assert_close(sums.float(), expected, rtol=1e-5, atol=1e-5)
    for (name, p), (_, q) in zip(ours.model.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_a_sliding_window_shorter_than_the_row(place, tmp_path):
    folder = micro.policy(tmp_path / "m", family="mistral")
    loaded = models.load_policy(str(folder), place, train=True)
    loaded.model.config.sliding_window = 4
    for layer in models.layers(loaded.model):
        layer.self_attn.sliding_window = 4
    with torch.no_grad():
        expected = torch.cat([plain_logprobs(loaded.model, b) for b in BRANCHES])
    got = scoring.logprobs(scoring.prepare(loaded), BRANCHES)
    assert loaded.model.xwin_branches
    torch.testing.assert_close(torch.tensor(sum(got, [])), expected, rtol=1e-5, atol=1e-5)


def test_temperature_divides_the_logits(place, policy):
    loaded = scoring.prepare(models.load_policy(str(policy), place))
    row = lay(BRANCHES)
    with torch.no_grad():
        states = scoring.hidden(loaded, row)
        got = scoring.token_logprobs(loaded, row, states, temperature=0.7)
        z = loaded.model.lm_head(states[row.predict]) / 0.7
    expected = z.log_softmax(-1).gather(-1, row.target[:, None])[:, 0]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 3 * 384, 1 << 30])
def test_the_head_in_parts_has_the_same_gradients(chunk, monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK", chunk)
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
