"""Health: figures by hand and against transformers, warnings, timing, and that looking changes no weight."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from xwincli import flags, manifest, models, settings
from xwincli.errors import XwinError
from xwincli.rows import Branch
from xwincli.stages import dpo, sft
from xwincli.states import prepare
from xwincli.train import health

WORDS = ["tea", "rain", "fox", "moon", "river", "dog"]
ONE = settings.Cluster()


def said(role: str, text: str) -> list[dict]:
    return [{"role": role, "content": text}]


PROMPTS = [said("user", f"about {w} ?") for w in WORDS]


def load(policy: Path) -> models.Loaded:
    return models.load_policy(str(policy), models.place(settings.Device(device="cpu", dtype="float32")), train=True)


def run(stage, policy: Path, out: Path, **options) -> Path:
    rows = []
    for w, prompt in zip(WORDS, PROMPTS, strict=True):
        chosen, rejected = said("assistant", f"the {w} shines ."), said("assistant", "no no no")
        row = {"messages": prompt + chosen}
        rows.append(row if stage is sft else {"prompt": prompt, "chosen": chosen, "rejected": rejected})
    data = out.with_suffix(".jsonl")
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    given = {"model": str(policy), "data": [str(data)], "out": str(out), "batch": 2, "lr": 1e-2, "epochs": 2}
    stage.run(flags.build(stage.Config, {**given, "device": "cpu", "dtype": "float32", **options}))
    return out


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# -- figures


@pytest.mark.parametrize(
    "ids,share",
    [([1, 2, 3], 0.0), ([1, 2, 3, 4], 0.0), ([1, 2, 3, 4, 5], 0.0), ([7] * 8, 0.8), ([1, 2, 3, 4] * 2, 0.2)],
)
def test_repetition_by_hand(ids, share):
    """Eight tokens have five 4-grams: all one if alike, four different if 1234 comes twice."""
    assert health.repetition(ids) == pytest.approx(share)


def test_a_look_is_what_the_engine_draws(policy, monkeypatch):
    """Two prompts, canned draws: mean length, share ended, mean repetition."""
    watch = health.begin(load(policy), settings.Probe(probe=2, probe_tokens=4), PROMPTS, [], 0, ONE)
    draws = [([1, 2], "stop"), ([7] * 5, "length"), ([1, 2, 3], "stop"), ([1, 2], "length")]
    drawn = [SimpleNamespace(ids=ids, finish=finish) for ids, finish in draws]
    monkeypatch.setattr(watch.engine, "draw", lambda *_: [(watch.asks[0], drawn[:2]), (watch.asks[1], drawn[2:])])
    assert watch.look() == {"length": 3.0, "ended": 0.5, "repetition": 0.125}


def test_probe_tokens_bounds_the_answers_and_the_seed_draws_them(policy):
    looks = {}
    for tokens, seed in ((4, 0), (9, 0), (9, 1)):
        watch = health.begin(load(policy), settings.Probe(probe=6, probe_tokens=tokens), PROMPTS, [], seed, ONE)
        looks[tokens, seed] = watch.start
        assert watch.look() == watch.start, "the same weights give the same look"
    assert looks[4, 0]["length"] <= 4 < looks[9, 0]["length"] <= 9
    assert looks[9, 0] != looks[9, 1]


def test_log_probabilities_equal_transformers(policy):
    pairs = [Branch([40, 41], [[42, 43, 44], [45]]), Branch([50], [[51], [52, 53]])]
    watch = health.begin(load(policy), settings.Probe(probe=2, probe_tokens=2), PROMPTS, pairs, 0, ONE)
    plain = AutoModelForCausalLM.from_pretrained(policy)
    means = []
    for side in (0, 1):
        values = []
        for b in pairs:
            ids = torch.tensor([b.prompt + b.responses[side]])
            with torch.no_grad():
                logp = plain(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
            values.append(logp[len(b.prompt) - 1 :].mean().item())
        means.append(sum(values) / 2)
    assert watch.start["chosen_logprob"] == pytest.approx(means[0], abs=1e-4)
    assert watch.start["rejected_logprob"] == pytest.approx(means[1], abs=1e-4)
    assert watch.start["margin"] == pytest.approx(means[0] - means[1], abs=1e-4)


def test_the_slow_way_gives_the_same_look_before_and_after_preparing(policy):
    """Where the engine must use transformers' generate, row attention is taken off for it and put back."""
    loaded = load(policy)
    watch = health.begin(loaded, settings.Probe(probe=2, probe_tokens=6), PROMPTS, [], 0, ONE)
    watch.engine.obstacle = "said by the test"
    assert watch.look() == watch.start
    prepare(loaded)
    prepared = loaded.model.config._attn_implementation
    assert watch.look() == watch.start
    assert loaded.model.config._attn_implementation == prepared != watch.before


# -- which prompts


def test_the_first_distinct_prompts_that_fit_are_asked(policy):
    loaded = load(policy)
    long = said("user", "tea rain fox " * 200)
    watch = health.begin(
        loaded, settings.Probe(probe=2, probe_tokens=3), [[], long, PROMPTS[0], PROMPTS[0], *PROMPTS[1:]], [], 0, ONE
    )
    assert [a.messages for a in watch.asks] == PROMPTS[:2]
    with pytest.raises(XwinError, match="no prompt leaves room for 3 tokens"):
        health.begin(loaded, settings.Probe(probe=2, probe_tokens=3), [long], [], 0, ONE)


def test_off_refused_and_rank_0_alone(policy, monkeypatch):
    loaded = load(policy)
    assert health.begin(loaded, settings.Probe(), PROMPTS, [], 0, ONE) is None
    with pytest.raises(XwinError, match="--zero does not allow"):
        health.begin(loaded, settings.Probe(probe=1), PROMPTS, [], 0, settings.Cluster(zero=1))
    monkeypatch.setenv("RANK", "1")
    assert health.begin(loaded, settings.Probe(probe=1), PROMPTS, [], 0, ONE) is None


# -- when, and what it warns of


def watching(policy, looks, **options) -> health.Watch:
    """A watch whose looks are given one after another, the first being the start."""
    watch = health.begin(load(policy), settings.Probe(probe=1, probe_tokens=1, **options), PROMPTS, [], 0, ONE)
    watch.start = looks[0]
    rest = iter(looks[1:])
    watch.look = lambda: next(rest)
    return watch


FINE = {"length": 40.0, "ended": 0.9, "repetition": 0.1, "chosen_logprob": -1.0, "margin": 0.0}


@pytest.mark.parametrize(
    "change,text",
    [
        ({"ended": 0.55}, "answers that end by themselves fell from 90% to 55%"),
        ({"ended": 0.65}, None),
        ({"length": 19.0}, "answers shrank from 40 to 19 tokens"),
        ({"length": 21.0}, None),
        ({"length": 81.0}, "answers grew from 40 to 81 tokens"),
        ({"length": 79.0}, None),
        ({"repetition": 0.31}, "31% of the answers' 4-grams repeat (10% at the start)"),
        ({"repetition": 0.29}, None),
        ({"chosen_logprob": -1.2, "margin": 0.5}, "fell from -1.00 to -1.20 nats a token while the margin grows"),
        ({"chosen_logprob": -1.2, "margin": -0.5}, None),
        ({"chosen_logprob": -1.05, "margin": 0.5}, None),
    ],
)
def test_every_sign_is_told_once_and_only_beyond_its_bound(policy, capsys, change, text):
    watch = watching(policy, [FINE, {**FINE, **change}, {**FINE, **change}], probe_every=1)
    capsys.readouterr()
    watch(1, {})
    err = capsys.readouterr().err
    if text:
        assert err.startswith("warning: step 1: ")
        assert text in err.splitlines()[0]
        assert err.splitlines()[1].startswith("  hint: ")
    else:
        assert err == ""
    watch(2, {})
    assert capsys.readouterr().err == ""


def test_a_model_that_repeated_itself_from_the_start_is_no_news(policy, capsys):
    start = {**FINE, "repetition": 0.6}
    watch = watching(policy, [start, {**FINE, "repetition": 0.5}], probe_every=1)
    capsys.readouterr()
    watch(1, {})
    assert capsys.readouterr().err == ""


def test_probe_every_says_how_often_and_the_last_look_is_always_there(policy):
    watch = watching(policy, [FINE, *({**FINE, "length": 40.0 + i} for i in range(9))], probe_every=3)
    logged = [bool(watch(step, {})) for step in range(1, 8)]
    assert logged == [False, False, True, False, False, True, False]
    assert watch.close() == {"probe_start": FINE, "probe_end": {**FINE, "length": 42.0}}
    watch = watching(policy, [FINE, {**FINE, "length": 41.0}], probe_every=1)
    watch(1, {})
    assert watch.close()["probe_end"]["length"] == 41.0, "a look after the last step is not made twice"


def test_looks_take_at_most_five_percent_of_the_time(policy, monkeypatch):
    """A clock by hand: a step takes 1 s, a look 2 s; the first, whose cost is not known, is left out."""
    watch = watching(policy, [FINE])
    clock = [100.0]
    monkeypatch.setattr(health.time, "monotonic", lambda: clock[0])

    def look():
        clock[0] += 2.0
        return FINE

    watch.look, watch.last = look, clock[0]
    looks = []
    for step in range(1, 1001):
        clock[0] += 1.0
        if watch(step, {}):
            looks.append(step)
    assert looks[0] == 1
    assert {b - a for a, b in pairwise(looks)} == {38}
    assert 2 * (len(looks) - 1) / (clock[0] - 102) <= 0.05


def test_together_passes_figures_on():
    first = lambda step, figures: {"a": figures["loss"] + step}
    second = lambda step, figures: {"b": figures["a"] * 10}
    assert health.together(None, first, None, second)(1, {"loss": 2.0}) == {"a": 3.0, "b": 30.0}
    assert health.together(None, None) is None


# -- in a run


@pytest.mark.parametrize("stage,options", [(sft, {}), (dpo, {"lora_r": 2}), (dpo, {"train_top": 1})])
def test_looking_changes_no_weight(policy, tmp_path, stage, options):
    torch.manual_seed(0)  # LoRA's first weights
    plain = run(stage, policy, tmp_path / "a", **options)
    after = torch.random.get_rng_state()
    torch.manual_seed(0)
    watched = run(stage, policy, tmp_path / "b", probe=3, probe_every=2, probe_tokens=8, **options)
    one, two = (dict(AutoModelForCausalLM.from_pretrained(f).named_parameters()) for f in (plain, watched))
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert torch.equal(after, torch.random.get_rng_state())
    steps = log(watched)
    assert ["probe_length" in s for s in steps] == [False, True] * 3
    names = {"length", "ended", "repetition", "seconds"}
    names |= {"chosen_logprob", "rejected_logprob", "margin"} if stage is dpo else set()
    assert {k for s in steps for k in s if k.startswith("probe_")} == {f"probe_{n}" for n in names}
    metrics = manifest.read(watched)["metrics"]
    assert metrics["probe_end"] == {k: steps[-1][f"probe_{k}"] for k in metrics["probe_start"]}
    assert manifest.read(watched)["key"] == manifest.read(plain)["key"]
    assert not any(k.startswith("probe") for s in log(plain) for k in s) and not manifest.read(plain)["metrics"]


def test_what_is_learned_shows(policy, tmp_path, capsys):
    """The micro policy rambles; taught short answers that end, it ends and its answers shrink."""
    metrics = manifest.read(run(sft, policy, tmp_path / "m", probe=6, epochs=12))["metrics"]
    assert metrics["probe_end"]["ended"] > metrics["probe_start"]["ended"]
    assert metrics["probe_end"]["length"] < 0.5 * metrics["probe_start"]["length"]
    err = capsys.readouterr().err
    assert err.count("answers shrank") == 1
    assert "raise --beta" not in err
    assert "probe: length" in err


def test_a_resumed_run_keeps_its_start(policy, tmp_path, monkeypatch):
    """The start is the weights as loaded, not those of the checkpoint."""
    options = {"probe": 3, "probe_every": 1, "probe_tokens": 8}
    whole = manifest.read(run(sft, policy, tmp_path / "a", **options))["metrics"]
    learned = health.Watch.__call__

    def interrupted(self, step, figures):
        if step == 4:
            raise KeyboardInterrupt
        return learned(self, step, figures)

    monkeypatch.setattr(health.Watch, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(sft, policy, tmp_path / "b", **options, save_every=0.0)
    monkeypatch.setattr(health.Watch, "__call__", learned)
    again = run(sft, policy, tmp_path / "b", **options)
    assert manifest.read(again)["metrics"] == whole
    assert [s["step"] for s in log(again)] == [1, 2, 3, 4, 5, 6]
