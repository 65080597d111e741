"""PPO on the micro model: what it reads and learns, that it learns, that an interruption changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from xwincli import models, scoring
from xwincli.rows import Branch, lay
from xwincli.states import hidden, prepare
from xwincli.train import loop, ppo
from xwincli.train.folder import Folder
from xwincli.train.ppo_learn import Reading, Run, Steering, _forward, backward, lesson, read, shifted
from xwincli.train.ppo_options import Optim, Options
from xwincli.train.ppo_rollouts import Rollouts, batches, first_epoch

PLACE = models.Place(torch.device("cpu"), torch.float32)
PROMPTS = ["tea ?", "a fox .", "the sun", "the rain in one short sentence ."]
PLAN = {"stage": "ppo", "config": {}, "inputs": []}


def vowels(items) -> list[list[float]]:
    """A toy reward: the share of vowels among a text's characters."""
    share = lambda text: sum(c in "aeiou" for c in text) / max(len(text), 1)
    return [[share(text) for text, _ in answers] for _, answers in items]


def sample(loaded: models.Loaded, prompts: list[str], options: Options, seed: int) -> Rollouts:
    """Rollouts drawn plainly, a whole forward a token; limits of 4 to 6 tokens make them ragged."""
    n, tokens = options.n, options.max_tokens
    generator = torch.Generator().manual_seed(seed)
    stops = loaded.template.stop_ids
    branches, items = [], []
    for text in prompts:
        prompt = [{"role": "user", "content": text}]
        ids = loaded.template.prompt_ids(prompt)
        answers: list[list[int]] = [[] for _ in range(n)]
        for _ in range(tokens):
            row = lay([Branch(ids, answers)])
            last = row.last if answers[0] else torch.full((n,), len(ids) - 1)
            with torch.no_grad():
                z = scoring.logits(loaded.model, hidden(loaded, row)[last])
            chances = (z / options.temperature).softmax(-1)
            drawn = torch.multinomial(chances, 1, generator=generator)[:, 0].tolist()
            answers = [[*a, t] for a, t in zip(answers, drawn)]
        answers = [a[: tokens - j % 3] for j, a in enumerate(answers)]
        answers = [a[: next((i + 1 for i, t in enumerate(a) if t in stops), len(a))] for a in answers]
        ended = [a[-1] in stops for a in answers]
        texts = [loaded.tokenizer.decode(a[: len(a) - e]) for a, e in zip(answers, ended)]
        branches.append(Branch(ids, answers))
        items.append((prompt, list(zip(texts, ended))))
    return Rollouts(branches, items)


def start(folder: Path, advantage: str, optim: Optim | None = None, **options: object) -> Run:
    """A run on the micro policy with a critic of random head."""
    small = {"n": 4, "prompts": 4, "max_tokens": 6, "temperature": 1.0}
    chosen = Options(advantage=advantage, **{**small, **options})
    optim = optim or Optim(lr=1e-3, epochs=2, batch=2, schedule="constant")
    policy, reference = (models.load_policy(str(folder), PLACE, train=True) for _ in range(2))
    critic = models.new_reward(str(folder), PLACE, 1) if advantage == "gae" else None
    for loaded in (policy, reference, *([critic] if critic else [])):
        prepare(loaded)

    def draw(numbers: list[int], seed: int) -> Rollouts:
        texts = [PROMPTS[k] for k in numbers]
        return sample(policy, texts, chosen, seed)

    trained = [(policy, "policy", optim.lr), *([(critic, "critic", optim.lr)] if critic else [])]
    groups = [([(f"{w}.{n}", p) for n, p in m.model.named_parameters()], lr) for m, w, lr in trained]
    opt = loop.optimizer(groups, optim, eps=1e-5)
    parameters = [pair for named, _ in groups for pair in named]
    return Run(policy, reference, critic, draw, vowels, parameters, opt, chosen, optim)


def go(run: Run, out: Path, iterations: int) -> dict:
    turns = ppo.order(len(PROMPTS), run.options.prompts, iterations, run.seed)
    return ppo.train(run, turns, Folder(str(out), PLAN, SimpleNamespace()))


def nudge(loaded: models.Loaded) -> None:
    torch.manual_seed(5)
    with torch.no_grad():
        for p in loaded.model.parameters():
            p.add_(0.02 * torch.randn_like(p))


@pytest.mark.parametrize("capacity", [30, 4096])
def test_reading_equals_plain_forwards_one_by_one(policy: Path, capacity: int) -> None:
    run = start(policy, "gae", Optim(epochs=2, batch=3, max_tokens_per_row=capacity), temperature=0.7)
    nudge(run.policy)
    run.steering.shift = 0.25
    rollouts = run.draw([0, 1, 2, 3], 0)
    assert len(set(rollouts.lengths())) > 1, "the batch should be ragged"
    found = read(run, batches(rollouts, run.optim, 0))
    plain = {k: getattr(run, k) for k in ("policy", "reference", "critic")}
    expected: dict[str, list[torch.Tensor]] = {k: [] for k in plain}
    for m in plain.values():
        m.model.set_attn_implementation("eager")
    for branch in rollouts.branches:
        for answer in branch.responses:
            ids, begin = torch.tensor([branch.prompt + answer]), len(branch.prompt) - 1
            with torch.no_grad():
                for who in ("policy", "reference"):
                    logits = plain[who].model(ids, use_cache=False).logits[0, begin:-1] / 0.7
                    expected[who].append(logits.log_softmax(-1)[range(len(answer)), answer])
                states = plain["critic"].model.base_model(ids, use_cache=False).last_hidden_state[0, begin:-1]
                expected["critic"].append(plain["critic"].model.score(states)[:, 0] + 0.25)
    for got, who in ((found.old, "policy"), (found.ref, "reference"), (found.values, "critic")):
        assert torch.allclose(got, torch.cat(expected[who]), atol=2e-5)


@pytest.mark.parametrize("advantage", ["gae", "group"])
def test_an_update_equals_plain_forwards_and_a_padded_loss(policy: Path, advantage: str) -> None:
    """Losses and gradients of both models, against TRL's padded loss on transformers' own forwards."""
    run = start(policy, advantage, Optim(epochs=1, batch=0, max_tokens_per_row=40), temperature=0.7)
    nudge(run.reference)
    rollouts = run.draw([0, 1, 2, 3], 0)
    (update,) = batches(rollouts, run.optim, 0)
    scores = torch.tensor(vowels(rollouts.items), dtype=torch.float64).flatten()
    learned = lesson(read(run, [update]), scores, rollouts.lengths(), run.options, run.options.kl)
    trained = [run.policy, *([run.critic] if run.critic else [])]
    for m in trained:
        nudge(m)  # so that ratios and values differ from the old ones and the clips decide somewhere
    count = sum(rollouts.lengths())
    figures: dict[str, float] = {}
    for batch in update:
        for key, value in backward(run.options, batch, _forward(run, batch), learned, count).items():
            figures[key] = figures.get(key, 0.0) + value
    ours = [[p.grad.clone() for p in m.model.parameters()] for m in trained]

    for m in trained:
        m.model.zero_grad(set_to_none=True)
        m.model.set_attn_implementation("eager")
    lengths = rollouts.lengths()
    mask = torch.tensor([[t < n for t in range(max(lengths))] for n in lengths])
    spread = lambda flat: torch.zeros(mask.shape).masked_scatter(mask, flat)
    new, vpred = [], []
    for branch in rollouts.branches:
        for answer in branch.responses:
            ids, begin = torch.tensor([branch.prompt + answer]), len(branch.prompt) - 1
            logits = run.policy.model(ids, use_cache=False).logits[0, begin:-1] / 0.7
            new.append(logits.log_softmax(-1)[range(len(answer)), answer])
            if run.critic:
                states = run.critic.model.base_model(ids, use_cache=False).last_hidden_state[0, begin:-1]
                vpred.append(run.critic.model.score(states)[:, 0])
    mean = lambda x: (x * mask).sum() / mask.sum()
    a = spread(learned.advantages)
    ratio = (spread(torch.cat(new)) - spread(learned.reading.old)).exp()
    one, two = -a * ratio, -a * ratio.clamp(0.8, 1.2)
    pg = mean(torch.max(one, two))
    loss = pg
    assert figures["pg_loss"] == pytest.approx(pg.item(), abs=1e-5)
    assert figures["clip_fraction"] == pytest.approx(mean((two > one).float()).item(), abs=1e-6)
    assert figures["clip_fraction"] > 0
    if run.critic:
        v, was, returns = spread(torch.cat(vpred)), spread(learned.reading.values), spread(learned.returns)
        one, two = (v - returns) ** 2, (torch.clamp(v, was - 0.2, was + 0.2) - returns) ** 2
        vf = 0.5 * mean(torch.max(one, two))
        loss = loss + 0.1 * vf
        assert figures["value_loss"] == pytest.approx(vf.item(), abs=1e-5)
        assert figures["value_clip_fraction"] == pytest.approx(mean((two > one).float()).item(), abs=1e-6)
    loss.backward()
    for m, grads in zip(trained, ours):
        for (name, p), grad in zip(m.model.named_parameters(), grads):
            assert torch.allclose(grad, p.grad, atol=1e-5, rtol=1e-3), name


@pytest.mark.parametrize("advantage", ["gae", "group"])
@pytest.mark.parametrize("optim", [Optim(epochs=2, batch=2, max_tokens_per_row=40), Optim(epochs=1, batch=0)])
def test_the_first_ratio_is_exactly_one(policy: Path, tmp_path: Path, advantage: str, optim: Optim) -> None:
    run = start(policy, advantage, replace(optim, lr=1e-3, schedule="constant"))
    figures = go(run, tmp_path / "out", 2)
    assert figures["first_drift"] == 0.0
    assert figures["kl"] != 0.0  # the policy has moved
    assert figures["approx_kl"] > 0.0 if optim.epochs == 2 else figures["approx_kl"] == 0.0


def test_rows_never_change_an_update(policy: Path, tmp_path: Path) -> None:
    """One row whose graph is kept, and many small rows read twice, take the same step."""
    figures, weights = [], []
    for capacity in (4096, 30):
        run = start(policy, "gae", Optim(lr=1e-3, epochs=1, batch=0, max_tokens_per_row=capacity))
        figures.append(go(run, tmp_path / str(capacity), 1))
        weights.append(torch.cat([p.detach().flatten() for _, p in run.parameters]))
        assert (len(batches(run.draw([0, 1, 2, 3], 0), run.optim, 0)[0]) == 1) == (capacity == 4096)
    assert torch.allclose(*weights, atol=2e-5)
    for key in ("pg_loss", "value_loss", "grad_norm", "explained_variance", "entropy"):
        assert figures[0][key] == pytest.approx(figures[1][key], abs=1e-4)


def test_batches_hold_every_rollout_once_an_epoch(policy: Path) -> None:
    run = start(policy, "group", Optim(epochs=3, batch=3, max_tokens_per_row=30))
    rollouts = run.draw([0, 1, 2, 3], 0)
    updates = batches(rollouts, run.optim, 7)
    assert len(updates) == 6
    targets = torch.tensor([t for b in rollouts.branches for r in b.responses for t in r])
    for epoch in range(3):
        rows = [b for update in updates[2 * epoch : 2 * epoch + 2] for b in update]
        tokens = torch.cat([b.tokens for b in rows])
        assert sorted(tokens.tolist()) == list(range(len(targets)))
        assert all(torch.equal(targets[b.tokens], b.row.target) for b in rows)
    assert [len(b.tokens) for u in updates[:2] for b in u] == [len(b.tokens) for b in first_epoch(updates, 3)]
    assert any(not torch.equal(a[0].tokens, b[0].tokens) for a, b in zip(updates[:2], updates[2:4]))


def test_group_lesson_by_hand() -> None:
    # two prompts of two rollouts with lengths 2 1 | 1 3; k1 of each token is .1, beta .5
    lengths = [2, 1, 1, 3]
    reading = Reading(torch.full((7,), -1.0), torch.full((7,), -1.1), None)
    scores = torch.tensor([1.0, 0.0, 0.0, 4.0], dtype=torch.float64)
    options = Options(advantage="group", n=2)
    # rewards: .9 -.05 -.05 3.85
    found = lesson(reading, scores, lengths, options, beta=0.5)
    expected = [0.475, 0.475, -0.475, -1.95, 1.95, 1.95, 1.95]
    assert found.advantages.tolist() == pytest.approx(expected, abs=1e-6)
    assert found.returns is None
    by_std = lesson(reading, scores, lengths, replace(options, group_std=True), beta=0.5).advantages
    half = 2**-0.5
    assert by_std.tolist() == pytest.approx([half, half, -half, -half, half, half, half], abs=1e-3)


def test_critic_lesson_follows_its_options() -> None:
    lengths = [2, 3]
    reading = Reading(torch.tensor([-1.0, -2, -1, -3, -1]), torch.full((5,), -1.5), torch.linspace(0, 1, 5))
    scores = torch.tensor([1.0, -1.0], dtype=torch.float64)
    base = Options(advantage="gae")
    found = {
        name: lesson(reading, scores, lengths, options, beta=0.1)
        for name, options in {
            "base": base,
            "gamma": replace(base, gamma=0.5),
            "lam": replace(base, lam=0.5),
            "whiten": replace(base, whiten_rewards=True),
        }.items()
    }
    for one in found.values():
        assert one.advantages.mean().item() == pytest.approx(0, abs=1e-6)
        assert one.advantages.std().item() == pytest.approx(1, abs=1e-4)
    for name in ("gamma", "lam", "whiten"):
        assert not torch.allclose(found[name].returns, found["base"].returns, atol=1e-3)
    # the last token's return by hand: its KL reward and the score, nothing after it
    assert found["base"].returns[1].item() == pytest.approx(1 - 0.1 * (-2 + 1.5))


def test_shift_and_penalty_by_hand() -> None:
    raw, ended = torch.tensor([1.0, 3.0], dtype=torch.float64), torch.tensor([True, False])
    steering, options = Steering(beta=0.1), Options(no_end_penalty=0.5)
    assert shifted(raw, ended, options, steering).tolist() == [-1.0, 0.5]
    assert steering.shift == -2.0
    assert shifted(raw + 1, ended, options, steering).tolist() == [0.0, 1.5]
    free = Options(no_end_penalty=0.0)
    assert shifted(raw, ended, free, Steering(0.1, shift=10.0)).tolist() == [11.0, 13.0]


def test_order_passes_over_all_prompts_before_one_returns() -> None:
    turns = ppo.order(5, 2, 5, seed=3)
    line = [i for turn in turns for i in turn]
    assert sorted(line[:5]) == sorted(line[5:]) == list(range(5))
    assert line[:5] != line[5:]
    assert ppo.order(5, 2, 5, seed=4) != turns
    assert sorted(ppo.order(2, 4, 1, seed=0)[0]) == [0, 0, 1, 1]


@pytest.mark.parametrize("advantage", ["gae", "group"])
def test_it_learns(policy: Path, tmp_path: Path, advantage: str) -> None:
    """The share of vowels, which the random policy hardly writes, becomes common."""
    toy = {"n": 16, "prompts": 2, "max_tokens": 5, "kl": 0.01}
    run = start(policy, advantage, Optim(lr=2e-2, epochs=2, batch=0, schedule="constant"), **toy)
    first = go(run, tmp_path / "first", 1)["reward"]
    last = go(run, tmp_path / "rest", 12)
    assert last["reward"] > first + 0.3
    assert last["kl"] > 0.1


@pytest.mark.parametrize("advantage", ["gae", "group"])
def test_an_interrupted_run_ends_like_a_whole_one(policy: Path, tmp_path: Path, advantage: str) -> None:
    steered = {"adaptive_kl": True, "kl_target": 0.01, "kl_horizon": 50}
    whole = start(policy, advantage, **steered)
    figures = go(whole, tmp_path / "whole", 4)
    assert figures["beta"] != whole.options.kl

    broken = start(policy, advantage, **steered)
    calls = broken.draw

    def stumble(numbers: list[int], seed: int) -> Rollouts:
        if seed == 2:  # the third iteration's
            raise KeyboardInterrupt
        return calls(numbers, seed)

    broken.draw = stumble
    with pytest.raises(KeyboardInterrupt):
        go(broken, tmp_path / "broken", 4)
    resumed = start(policy, advantage, **steered)
    again = go(resumed, tmp_path / "broken", 4)
    timeless = lambda row: {k: v for k, v in row.items() if not k.startswith("seconds")}
    assert timeless(again) == timeless(figures)
    for (name, a), (_, b) in zip(whole.parameters, resumed.parameters):
        assert torch.equal(a, b), name
    for name in ("whole", "broken"):
        assert (tmp_path / f"{name}.partial" / "metrics.jsonl").read_text().count("\n") == 4


def test_a_kl_that_stays_negative_warns_once(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = start(policy, "group")
    for _ in range(6):
        ppo._steer(run, {"kl": -0.5, "kl_error": 0.1}, 16)
    assert capsys.readouterr().err.count("negative") == 1
    run = start(policy, "group")
    for kl in (-0.5, -0.5, -0.1, -0.5, -0.5, 0.2):
        ppo._steer(run, {"kl": kl, "kl_error": 0.1}, 16)
    assert "negative" not in capsys.readouterr().err


def test_the_critic_starts_where_its_returns_are(policy: Path) -> None:
    run = start(policy, "gae", score_shift="2.5")
    assert run.value_shift == 2.5
    run.values_shifted = False
    assert run.value_shift == 0.0
