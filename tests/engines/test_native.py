"""The native engine against transformers: greedy tokens, log-probabilities, distributions, independence."""

from __future__ import annotations

import copy

import families
import numpy as np
import pytest
import torch
from scipy import stats

from xwincli.engines import Ask
from xwincli.engines.native import Native
from xwincli.engines.native.batch import Batch, Body, Request, Rules
from xwincli.engines.native.draw import Choice
from xwincli.errors import XwinError
from xwincli.models import Place, save
from xwincli.settings import Sampling

WORDS = ["the", "quick", "fox", "jumps", "over", "a", "lazy", "dog", "near", "rain", "and", "tea"]


def asks(n: int = 3, count: int = 7) -> list[Ask]:
    """Prompts of ragged lengths, n, n+1 or n+2 responses each."""
    texts = [" ".join(WORDS[i % 5 : i % 5 + 1 + 3 * (i % 4)]) for i in range(count)]
    return [Ask(f"k{i}", [{"role": "user", "content": t}], n + i % 3, f"p{i}") for i, t in enumerate(texts)]


def answers(engine: Native, wishes: list[Ask], sampling: Sampling, seed: int = 0):
    return {ask.key: drawn for ask, drawn in engine.draw(wishes, sampling, seed)}


def generated(loaded, prompt: list[int], most: int, penalty: float = 1.0) -> list[int]:
    """transformers' own greedy continuation."""
    ids = torch.tensor([prompt])
    stops, pad = sorted(loaded.template.stop_ids), loaded.tokenizer.pad_token_id
    out = loaded.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=most,
        do_sample=False,
        repetition_penalty=penalty,
        eos_token_id=stops,
        pad_token_id=pad,
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", [*families.FAMILIES, *families.SLOW])
def test_greedy_is_generate_token_for_token(family):
    loaded = families.loaded(family)
    engine = Native(loaded, rows=5)  # far fewer than the responses: rows enter and leave all the time
    assert bool(engine.obstacle) == (family in families.SLOW)
    wishes = asks()
    found = answers(engine, wishes, Sampling(temperature=0.0, max_tokens=14))
    wanted = {a.key: generated(loaded, loaded.template.prompt_ids(a.messages), 14) for a in wishes}
    assert len({tuple(w) for w in wanted.values()}) > 1
    for ask in wishes:
        assert [d.ids for d in found[ask.key]] == [wanted[ask.key]] * ask.n
        assert [d.index for d in found[ask.key]] == list(range(ask.n))


@pytest.mark.parametrize("family", [*families.FAMILIES, *families.SLOW, "tied"])
def test_a_model_of_the_engine_s_own_is_packed_and_says_the_same(family):
    special = {"tie_word_embeddings": True} if family == "tied" else {}
    family = "llama" if special else family
    other, loaded = families.loaded(family, **special), families.loaded(family, **special)
    held = sum(p.nbytes for p in loaded.model.parameters())
    engine = Native(loaded, rows=5, own=True)
    packed = [j for j in engine.body.linears.joints if j.packed is not None]
    if family not in families.SLOW and torch.backends.mkldnn.is_available():
        assert packed and sum(p.nbytes for p in loaded.model.parameters()) < held
        assert loaded.model.get_input_embeddings().weight.numel(), "others read the embedding"
    sampling, wishes = Sampling(temperature=0.0, max_tokens=14), asks()
    for _ in range(2):  # a second call finds it as the first left it
        found = answers(engine, wishes, sampling)
        for ask in wishes:
            wanted = generated(other, other.template.prompt_ids(ask.messages), 14)
            assert [d.ids for d in found[ask.key]] == [wanted] * ask.n


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_the_repetition_penalty_is_generates(family, penalty):
    loaded = families.loaded(family)
    wishes = asks()
    sampling = Sampling(temperature=0.0, max_tokens=14, repetition_penalty=penalty)
    found = answers(Native(loaded, rows=5), wishes, sampling)
    for ask in wishes:
        wanted = generated(loaded, loaded.template.prompt_ids(ask.messages), 14, penalty)
        assert [d.ids for d in found[ask.key]] == [wanted] * ask.n
    free = answers(Native(loaded, rows=5), wishes, Sampling(temperature=0.0, max_tokens=14))
    assert [d.ids for d in found["k1"]] != [d.ids for d in free["k1"]]


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "gpt_oss"])
def test_logprob_is_a_plain_forwards(family):
    loaded = families.loaded(family)
    stops = loaded.template.stop_ids
    found = answers(Native(loaded, rows=6), wishes := asks(), Sampling(temperature=1.4, top_p=0.9, max_tokens=12))
    for ask in wishes:
        prompt = loaded.template.prompt_ids(ask.messages)
        for d in found[ask.key]:
            assert (d.finish == "stop") == (d.ids[-1] in stops) and len(d.ids) <= 12
            with torch.no_grad():
                logits = loaded.model(torch.tensor([prompt + d.ids]), use_cache=False).logits[0]
            each = torch.log_softmax(logits.double(), -1)[len(prompt) - 1 : -1].gather(1, torch.tensor(d.ids)[:, None])
            assert d.logprob == pytest.approx(float(each.sum()), abs=2e-4)


def test_early_ends_happen_and_long_responses_outgrow_every_first_buffer():
    loaded = families.loaded("llama", max_position_embeddings=512)
    found = answers(Native(loaded, rows=9), asks(8, 9), Sampling(temperature=6.0, max_tokens=150))
    lengths = [len(d.ids) for drawn in found.values() for d in drawn]
    assert max(lengths) == 150 and min(lengths) < 60
    greedy = answers(Native(loaded, rows=3), wishes := asks(1, 2), Sampling(temperature=0.0, max_tokens=150))
    assert greedy["k1"][0].ids == generated(loaded, loaded.template.prompt_ids(wishes[1].messages), 150)


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_only_seed_prompt_and_index_decide(family):
    engine = Native(families.loaded(family), rows=4)
    sampling, wishes = Sampling(temperature=0.9, top_p=0.95, max_tokens=10), asks()
    ids = {k: [d.ids for d in v] for k, v in answers(engine, wishes, sampling).items()}
    for rows in (1, 7, 64):
        engine.rows = rows
        again = answers(engine, wishes[::-1], sampling)
        assert {k: [d.ids for d in v] for k, v in again.items()} == ids
    later = Ask("x", wishes[2].messages, 2, wishes[2].prompt_id, first=1)
    assert [d.ids for d in answers(engine, [later], sampling)["x"]] == ids["k2"][1:3]
    assert {k: [d.ids for d in v] for k, v in answers(engine, wishes, sampling, seed=1).items()} != ids


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.8, 0.85)])
def test_samples_follow_the_models_own_probabilities(temperature, top_p):
    """Pairs of tokens from a model of 7 tokens against p(first) p(second | first)."""
    model = families.model("llama", 7)
    rules = Rules(Choice(temperature, top_p), 5, frozenset(), None)
    n, prompt = 12000, [1, 2, 3]
    counts = np.zeros((7, 7))
    for _, d in Batch(Body(model, torch.float32), rules, 1500).run([Request("k", prompt, n, 0, "p", 2)]):
        counts[tuple(d.ids)] += 1
    with torch.no_grad():
        first = nucleus(model(torch.tensor([prompt])).logits[0, -1], temperature, top_p)
        second = [nucleus(model(torch.tensor([[*prompt, t]])).logits[0, -1], temperature, top_p) for t in range(7)]
    wanted = first[:, None] * np.stack(second) * n
    assert counts[wanted == 0].sum() == 0
    common = wanted > 5
    observed, expected = counts[common].tolist(), wanted[common].tolist()
    rest = (counts[~common].sum(), wanted[~common].sum())
    if rest[1] > 0:
        observed, expected = [*observed, rest[0]], [*expected, rest[1]]
    assert len(observed) > 4
    assert stats.chisquare(observed, expected).pvalue > 0.001


def nucleus(logits: torch.Tensor, temperature: float, top_p: float) -> np.ndarray:
    """The distribution sampled from, by sorting."""
    p = torch.softmax(logits.double() / temperature, -1).numpy()
    order = np.argsort(-p)
    kept = np.zeros_like(p)
    before = 0.0
    for t in order:
        if before < top_p:
            kept[t] = p[t]
        before += p[t]
    return kept / kept.sum()


@pytest.mark.parametrize(("tokens", "most"), [(1, 1), (60, 4), (400, 8)])
def test_no_more_tokens_are_held_than_asked_for(tokens, most, monkeypatch):
    loaded, wishes = families.loaded("llama"), asks()
    sampling = Sampling(temperature=0.9, max_tokens=10)
    free = {k: [d.ids for d in v] for k, v in answers(Native(loaded, rows=8), wishes, sampling).items()}
    held, plain = [], Batch._step

    def step(self):
        longest = max(len(p.request.ids) for p in self.prompts)
        held.append((self.live, self.live * 10 + len(self.prompts) * longest))
        return plain(self)

    monkeypatch.setattr(Batch, "_step", step)
    found = answers(Native(loaded, rows=8, tokens=tokens), wishes, sampling)
    assert {k: [d.ids for d in v] for k, v in found.items()} == free
    assert all(total <= tokens or live == 1 for live, total in held)
    assert max(live for live, _ in held) == most


def test_stop_texts_end_a_response_before_them():
    loaded = families.loaded("llama")
    engine, wishes = Native(loaded, rows=8), asks(6)
    free = {k: [d.ids for d in v] for k, v in answers(engine, wishes, Sampling(max_tokens=20)).items()}
    texts = {key: [r.text for r in rs] for key, rs in engine.generate(wishes, Sampling(max_tokens=20), 0)}
    stop = next(t[4:6] for t in texts["k1"] if len(t) > 8 and t[4:6].isascii())
    some = 0
    for key, responses in engine.generate(wishes, Sampling(max_tokens=20, stop=[stop, "\u2603"]), 0):
        for r, whole, ids in zip(responses, texts[key], free[key], strict=True):
            assert r.text == whole.partition(stop)[0] and stop not in r.text
            if stop in whole:
                some += 1
                assert r.finish == "stop"
                shortest = next(n for n in range(1, 21) if stop in engine._decode(ids[:n]))
                assert r.tokens == shortest
    assert some


def test_a_prompt_without_room_is_refused_and_others_are_answered(capsys):
    loaded = families.loaded("llama", max_position_embeddings=40)
    engine = Native(loaded, rows=4)
    long = Ask("long", [{"role": "user", "content": "fox " * 60}], 2, "p")
    found = dict(engine.generate([long, *asks(2, 3)], Sampling(max_tokens=200, temperature=0.0), 0))
    assert isinstance(found["long"], XwinError)
    assert "leaves no room" in found["long"].message
    for ask in asks(2, 3):
        length = len(loaded.template.prompt_ids(ask.messages))
        for r in found[ask.key]:
            assert r.finish == "stop" or r.tokens == 40 - length
    assert "cuts some responses" in capsys.readouterr().err


def test_the_model_is_left_as_it_was_and_its_training_is_seen(tmp_path):
    loaded = families.loaded("llama")
    untouched = copy.deepcopy(loaded)
    engine, sampling = Native(loaded, rows=4), Sampling(temperature=0.0, max_tokens=8)
    loaded.model.train()
    answers(engine, asks(), sampling)
    assert loaded.model.training and loaded.model.config._attn_implementation == "eager"
    assert not any("forward" in m.__dict__ for m in loaded.model.modules())
    for model in (loaded.model, untouched.model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        model(torch.tensor([[5, 6, 7, 8]]), labels=torch.tensor([[5, 6, 7, 8]])).loss.backward()
        optimizer.step()
    for mine, other in zip(loaded.model.parameters(), untouched.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other)
    after = answers(engine, asks(), sampling)
    assert {k: v[0].ids for k, v in after.items()} == {
        a.key: generated(untouched, untouched.template.prompt_ids(a.messages), 8) for a in asks()
    }
    save(loaded, tmp_path / "m")
    again = type(loaded.model).from_pretrained(tmp_path / "m")
    for mine, other in zip(again.parameters(), untouched.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_bfloat16_products_over_float32_weights_see_new_weights():
    loaded = families.loaded("llama-mha")
    exact = Body(loaded.model, torch.float32).plain([5, 6, 7, 8])
    loaded.place = Place(torch.device("cpu"), torch.bfloat16)
    engine = Native(loaded, rows=4)
    assert engine.obstacle == ""
    rough = engine.body.plain([5, 6, 7, 8])
    assert 1e-4 < (rough - exact).abs().max() / exact.std() < 0.1
    with torch.no_grad():
        loaded.model.model.layers[0].mlp.up_proj.weight.mul_(-1)
    flipped = Body(loaded.model, torch.float32).plain([5, 6, 7, 8])
    answers(engine, asks(1, 1), Sampling(max_tokens=2))
    assert (engine.body.plain([5, 6, 7, 8]) - flipped).abs().max() / flipped.std() < 0.1
