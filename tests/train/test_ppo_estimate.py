"""PPO's plan: what is told before weights load is what a real iteration takes, part by part; and how it is told."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from xwincli import flags, models, scoring
from xwincli.engines.native import pages
from xwincli.records import Prompt
from xwincli.stages import ppo
from xwincli.states import prepare
from xwincli.train import estimate, loop, ppo_estimate
from xwincli.train.ppo_estimate import Iteration, Needs, iteration
from xwincli.train.ppo_learn import Run, learn, lesson, read
from xwincli.train.ppo_options import Optim, Options
from xwincli.train.ppo_rehearsal import Drawing
from xwincli.train.ppo_rollouts import batches
from xwincli.train.rehearsal import Alive, Need, sketch

CPU = models.Place(torch.device("cpu"), torch.float32)
ROWS = [
    Prompt(id=str(i), prompt=[{"role": "user", "content": f"{w} and the {w} ?"}]) for i, w in enumerate(["tea", "fox"])
]


@pytest.fixture(scope="module")
def rm(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("micro") / "rm"
    models.save(models.new_reward(str(policy), CPU, 1), out)
    return out


def config(model: Path, rm: Path, **given: object) -> ppo.Config:
    base = {"model": str(model), "rm": str(rm), "out": "out", "dtype": "float32", "device": "cpu", "n": 4}
    return flags.build(ppo.Config, {**base, "prompts": 2, "max_tokens": 50, "epochs": 2, **given})


def near(a: float, b: float, factor: float) -> bool:
    return b / factor <= a <= b * factor


def measured(run: Run) -> Alive:
    """A count in which weights and gradients are left out, as ``Need.row`` leaves them out."""
    alive = Alive()
    for loaded in (run.policy, run.reference, *([run.critic] if run.critic else [])):
        for p in loaded.model.parameters():
            alive.ignore(p)
            if p.requires_grad:
                p.grad = torch.zeros_like(p)
                alive.ignore(p.grad)
    return alive


@pytest.mark.parametrize(
    "given",
    [{"max_tokens_per_row": 150, "checkpointing": True}, {"lora_r": 4, "rows": 5}, {"advantage": "group"}],
    ids=str,
)
def test_the_parts_of_an_iteration_take_what_was_told(policy, rm, given, monkeypatch):
    """Rollouts that never end by themselves, drawn, scored, read and learned for real.

    Keys and values in buffers that count whole, as on a GPU, since a count of storages sees no unwritten pages.
    """
    monkeypatch.setattr(pages, "LAZY", False)
    settings_ = config(policy, rm, **given)
    run, kept = ppo._load(settings_, ROWS)
    run.policy.template.__dict__["stop_ids"] = set()
    prompts = [len(run.policy.template.prompt_ids(row.prompt)) for row in kept]
    it = iteration(prompts, settings_.rollout, settings_.optim)
    like = sketch(str(policy), CPU)
    critic = sketch(str(rm), CPU, reward=True) if run.critic else None
    those = ppo_estimate.Models(like, like, sketch(str(rm), CPU, reward=True), critic)
    told = ppo_estimate.needs(those, settings_.adapt, it, settings_.rollout, settings_.rows, {})

    held = [run.policy, run.reference, *([run.critic] if run.critic else [])]
    held = sum(p.numel() * p.element_size() for loaded in held for p in loaded.model.parameters())
    assert sum(told.held.values()) - told.held["reward"] == held
    assert told.learned.trained == sum(p.numel() for _, p in run.parameters)

    with (alive := measured(run)):
        rollouts = run.draw([0, 1], 0)
    assert set(rollouts.lengths()) == {50}
    assert near(told.drawing.alive, alive.peak, 1.1), (told.drawing.alive, alive.peak)
    sampling, _, learning = told.work(it, 2)
    inner = sum(p.numel() for n, p in like.model.named_parameters() if "proj" in n)
    head = like.model.get_input_embeddings().weight.numel()
    assert told.drawing.token > 2 * (inner + head)  # attention and adapters come on top
    assert near(sampling, alive.flops, 1.2), (sampling, alive.flops)

    monkeypatch.setattr(loop, "update", lambda *_: 0.0)  # keeps gradients where they are
    updates = batches(rollouts, settings_.optim, 0)
    assert (len(updates), sum(map(len, updates)) // 2) == (it.updates, it.rows)
    with (alive := measured(run)):
        learned = lesson(read(run, updates), torch.zeros(8), rollouts.lengths(), run.options, 0.1)
        learn(run, updates, learned, [1.0] * len(updates), "")
    assert near(told.learned.row, alive.peak, 1.1), (told.learned.row, alive.peak)
    assert near(learning, alive.flops, 1.02), (learning, alive.flops)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scoring_takes_what_was_told(policy, rm, dtype):
    place = models.Place(CPU.device, dtype)
    reward = prepare(models.load_reward(str(rm), place))
    it = iteration([20, 20], Options(n=4, prompts=2, max_tokens=50), Optim())
    like = sketch(str(policy), place)
    those = ppo_estimate.Models(like, like, sketch(str(rm), place, reward=True), None)
    told = ppo_estimate.needs(those, config(policy, rm).adapt, it, Options(n=4, max_tokens=50), 8, {})
    assert told.held["reward"] == sum(p.nbytes for p in reward.model.parameters())
    alive = Alive()
    for p in reward.model.parameters():
        alive.ignore(p)
    with alive:
        scoring.branch_rewards(reward, [scoring.Branch([0] * 20, [[0] * 50] * 4)] * 2, 2048)
    assert near(told.reward.row, alive.peak, 1.1), (told.reward.row, alive.peak)
    assert near(told.work(it, 1)[1], alive.flops, 1.001)


# -- by hand


def test_an_iteration_by_hand():
    """Three prompts of which two make an iteration, four rollouts of 50 each, rows of 150 tokens."""
    options, optim = Options(n=4, prompts=2, max_tokens=50), Optim(epochs=3, batch=1, max_tokens_per_row=150)
    it = iteration([10, 30, 20], options, optim)
    assert (it.prompts, it.updates, it.drawn) == ([30, 20], 6, 400)
    assert (it.rows, it.read) == (4, 4 * 100 + 2 * 30 + 2 * 20)  # each prompt stands before two of its rollouts
    assert sum(map(len, it.row)) == 130
    assert iteration([10], options, optim).prompts == [10, 10]


NEED = Need(
    weights=4000,
    trained=1000,
    largest=600,
    small=100,
    row=9000,
    flops=60,
    tokens=10,
    kept=5000,
    forward=7000,
    backward=9000,
)
DRAWING = Drawing(copies=500.0, cache=100.0, alive=50_000.0, prefill=2.0, token=3.0)


def needed(**more) -> Needs:
    forward = replace(NEED, flops=20, row=700, trained=0)
    critic = replace(NEED, row=7000, kept=4000, largest=900, forward=7000, backward=6000)
    parts = {"policy": NEED, "critic": critic, "reads": [forward] * 2, "reference": forward}
    reward = replace(forward, weights=2000)
    return Needs(**{**parts, "reward": reward, "drawing": DRAWING, **more})


def test_memory_by_hand():
    """Five times weights; gradients, state of 2000; a row through both; sampling may need more than learning."""
    learning, total = needed().memory("adamw", cuda=False)
    weights = 4000 + 500 + 4000 + 2000 + 4000
    assert (learning.weights, learning.gradients, learning.optimizer) == (weights, 8000, 16000)
    assert learning.row == 9000 + 4000
    assert total == weights + 16000 + 50_000
    small = needed(drawing=replace(DRAWING, alive=10.0))
    assert small.memory("adamw", cuda=False)[1] == weights + 8000 + 16000 + 13000
    wide = replace(small.critic, forward=9000)  # both forwards are alive before any backward
    assert needed(critic=wide).learned.row == 5000 + 9000
    alone = needed(critic=None, drawing=replace(DRAWING, alive=10.0), reward=replace(NEED, flops=20, trained=0))
    assert alone.memory("adamw", cuda=False)[1] == 4000 * 3 + 500 + 4000 + 8000 + 9000


def test_time_by_hand():
    it = Iteration(prompts=[10, 10], row=[], rows=1, updates=1, read=100, drawn=80)
    assert needed().work(it, 4) == (2 * 20 + 3 * 80, 200, 4 * 1200 + 3 * 200)
    optim = Optim(epochs=4)
    assert ppo_estimate._seconds(needed(), it, optim, 8, 10.0, 1e9) == pytest.approx(28 + 560)
    assert ppo_estimate._seconds(needed(), it, optim, 8, 10.0, 100.0) == pytest.approx(10 * 500 / 100 + 560)


# -- as a user sees it


def planned(policy: Path, rm: Path, tmp_path: Path, capsys, **given: object) -> str:
    data = tmp_path / "p.jsonl"
    if not data.exists():
        for source in (policy, rm):
            shutil.copytree(source, tmp_path / source.name)
            (tmp_path / source.name / "model.safetensors").unlink()
        rows = [f'{{"kind": "prompt", "prompt": [{{"role": "user", "content": "tea {i} ?"}}]}}\n' for i in range(6)]
        data.write_text("".join(rows))
    there = {"data": [str(data)], "out": str(tmp_path / "out"), "plan": True}
    before = sorted(tmp_path.iterdir())
    ppo.run(config(tmp_path / policy.name, tmp_path / rm.name, **there, **given))
    assert sorted(tmp_path.iterdir()) == before, "a plan makes nothing"
    return capsys.readouterr().err


def test_it_is_told_without_weights(policy, rm, tmp_path, capsys, monkeypatch):
    ways = estimate.ways(2)
    monkeypatch.setattr(estimate, "ways", lambda depth: {"top half": ways["top half"]})
    text = planned(policy, rm, tmp_path, capsys)
    assert "2 layers, hidden 32, vocabulary 384" in text
    assert "3 iterations of 8 rollouts (2 prompts x 4), 8 decoded together; 2 updates an iteration" in text
    assert "each is taken as --max-tokens 50" in text
    for word in ("reference: the starting policy", "critic's weights (float32)", "gradients of", "adamw's state"):
        assert word in text
    for word in ("keys, values", "scoring: a row", "at the fullest moment", "samples for", "80 GB", "top half"):
        assert word in text
    assert "to sample with" not in text  # float32 weights are sampled with as they are


def test_the_plan_follows_the_options(policy, rm, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ppo_estimate, "_fit_table", lambda *_: "")
    more = {"advantage": "group", "iterations": 7, "rows": 3, "batch": 1, "dtype": "bfloat16", "lora_r": 2}
    text = planned(policy, rm, tmp_path, capsys, **more, checkpointing=True, reference=str(policy))
    assert "7 iterations of 8 rollouts (2 prompts x 4), 3 decoded together; 4 updates an iteration" in text
    assert "critic: none" in text and "critic's weights" not in text
    assert "its linear layers in bfloat16, to sample with" in text
    assert f"reference: {policy}" in text
    assert "without --checkpointing" in text


def test_a_deep_policy_is_reckoned_from_few_layers(tmp_path, rm, monkeypatch):
    import micro
    from xwincli import settings
    from xwincli.train import ppo_rehearsal

    like = replace(sketch(str(micro.policy(tmp_path / "deep", layers=7)), CPU))
    sampling = settings.Sampling(n=3, max_tokens=40, temperature=0.7)
    few = ppo_rehearsal.rehearse_drawing(like, settings.Adapt(), [20, 30], sampling, 5)
    monkeypatch.setattr(ppo_rehearsal, "SHALLOW", 99)
    whole = ppo_rehearsal.rehearse_drawing(like, settings.Adapt(), [20, 30], sampling, 5)
    for name in ("copies", "cache", "prefill", "token"):
        assert getattr(few, name) == pytest.approx(getattr(whole, name)), name
    assert near(few.alive, whole.alive, 1.03)


def test_the_probe_is_slower_with_few_tokens(policy):
    like = sketch(str(policy), CPU)
    assert estimate.probe(like, 0.01, tokens=1) < estimate.probe(like, 0.01)
