"""PPO's arithmetic against numbers by hand and against TRL 1.12's formulas written out in plain Python."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xwincli.train import ppo_math as maths

LENGTHS = [3, 1, 5, 2]


def ragged(seed: int, low: float = -2.0, high: float = 2.0) -> list[list[float]]:
    rng = random.Random(seed)
    return [[rng.uniform(low, high) for _ in range(n)] for n in LENGTHS]


def flat(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor([x for row in rows for x in row], dtype=torch.float64)


def padded(rows: list[list[float]]) -> torch.Tensor:
    return maths.pad(flat(rows), maths.real(LENGTHS))


# -- the independent computation: scalars and loops, nothing shared with the code under test


def masked_mean(rows: list[list[float]]) -> float:
    values = [x for row in rows for x in row]
    return sum(values) / len(values)


def masked_whiten(rows: list[list[float]], shift_mean: bool = True) -> list[list[float]]:
    values = [x for row in rows for x in row]
    mean = masked_mean(rows)
    variance = sum((x - mean) ** 2 for x in values) / len(values)
    variance *= len(values) / (len(values) - 1)  # TRL's unbiased correction
    back = 0.0 if shift_mean else mean
    return [[(x - mean) / math.sqrt(variance + 1e-8) + back for x in row] for row in rows]


def gae(rewards: list[list[float]], values: list[list[float]], gamma: float, lam: float):
    advantages, returns = [], []
    for r, v in zip(rewards, values):
        last, backwards = 0.0, []
        for t in reversed(range(len(r))):
            nextvalue = v[t + 1] if t < len(r) - 1 else 0.0
            last = r[t] + gamma * nextvalue - v[t] + gamma * lam * last
            backwards.append(last)
        advantages.append(backwards[::-1])
        returns.append([a + x for a, x in zip(backwards[::-1], v)])
    return advantages, returns


def clamp(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


@pytest.mark.parametrize("gamma,lam,whiten", [(1.0, 0.95, False), (0.9, 0.5, True), (1.0, 1.0, True)])
def test_one_ragged_batch_equals_the_scalar_computation(gamma: float, lam: float, whiten: bool) -> None:
    beta, clip, value_clip = 0.05, 0.2, 0.2
    old, ref, new = ragged(1, -3, 0), ragged(2, -3, 0), ragged(3, -3, 0)
    values, vnew, scores = ragged(4), ragged(5), [0.7, -1.2, 2.0, 0.1]
    mask = maths.real(LENGTHS)

    rewards = [[-beta * (p - q) for p, q in zip(a, b)] for a, b in zip(old, ref)]
    for row, score in zip(rewards, scores):
        row[-1] += score
    if whiten:
        rewards = masked_whiten(rewards, shift_mean=False)
    raw, returns = gae(rewards, values, gamma, lam)
    advantages = masked_whiten(raw)

    got = maths.token_rewards(padded(old) - padded(ref), torch.tensor(scores), mask, beta)
    got = maths.whiten(got, mask, shift_mean=False) if whiten else got
    got_raw, got_returns = maths.gae(got, padded(values), gamma, lam)
    got_advantages = maths.whiten(got_raw, mask)
    assert torch.allclose(got[mask], flat(rewards), atol=1e-7)
    assert torch.allclose(got_raw[mask], flat(raw), atol=1e-7)
    assert torch.allclose(got_returns[mask], flat(returns), atol=1e-7)
    assert torch.allclose(got_advantages[mask], flat(advantages), atol=1e-7)

    pg, pg_clipped, vf, vf_clipped = [], [], [], []
    for rows in zip(new, old, advantages, vnew, values, returns):
        for n, o, a, v, was, ret in zip(*rows):
            ratio = math.exp(n - o)
            one, two = -a * ratio, -a * clamp(ratio, 1 - clip, 1 + clip)
            pg.append(max(one, two))
            pg_clipped.append(two > one)
            one, two = (v - ret) ** 2, (clamp(v, was - value_clip, was + value_clip) - ret) ** 2
            vf.append(max(one, two))
            vf_clipped.append(two > one)
    policy = maths.policy_loss(flat(new), flat(old), flat(advantages), clip)
    value = maths.value_loss(flat(vnew), flat(values), flat(returns), value_clip)
    count = sum(LENGTHS)
    assert policy.total.item() / count == pytest.approx(sum(pg) / count)
    assert value.total.item() / count == pytest.approx(0.5 * sum(vf) / count)
    assert policy.clipped == sum(pg_clipped) > 0
    assert value.clipped == sum(vf_clipped) > 0


def test_gae_by_hand() -> None:
    # gamma 1, lambda .5, rewards 0 0 1, values .2 .4 .6: deltas .2 .2 .4
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.2, 0.4, 0.6]])
    advantages, returns = maths.gae(rewards, values, 1.0, 0.5)
    assert advantages[0].tolist() == pytest.approx([0.4, 0.4, 0.4])
    assert returns[0].tolist() == pytest.approx([0.6, 0.8, 1.0])


def test_lambda_one_makes_the_return_the_reward_to_go() -> None:
    rewards, values = padded(ragged(7)), padded(ragged(8))
    _, returns = maths.gae(rewards, values, 1.0, 1.0)
    mask = maths.real(LENGTHS)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    assert torch.allclose(returns[mask], to_go[mask])


def test_the_score_stands_at_the_last_real_token() -> None:
    mask = maths.real(LENGTHS)
    rewards = maths.token_rewards(torch.zeros(4, 5), torch.tensor([1.0, 2.0, 3.0, 4.0]), mask, 0.5)
    assert rewards.tolist() == [[0, 0, 1, 0, 0], [2, 0, 0, 0, 0], [0, 0, 0, 0, 3], [0, 4, 0, 0, 0]]


def test_kl_estimates_by_hand() -> None:
    # one rollout with log pi - log ref = .5, -.2, another with .1
    mask = maths.real([2, 1])
    found = maths.kl_estimates(maths.pad(torch.tensor([0.5, -0.2, 0.1]), mask), mask)
    k3 = [math.exp(-x) - 1 + x for x in (0.5, -0.2, 0.1)]
    assert found["kl"] == pytest.approx((0.3 + 0.1) / 2)
    assert found["k2"] == pytest.approx((0.125 + 0.02 + 0.005) / 2)
    assert found["k3"] == pytest.approx(sum(k3) / 2)


def test_adaptive_beta_by_hand() -> None:
    assert maths.adapted(0.1, kl=12.0, target=6.0, rollouts=500, horizon=10_000) == pytest.approx(0.1 * 1.01)
    assert maths.adapted(0.1, kl=6.6, target=6.0, rollouts=500, horizon=10_000) == pytest.approx(0.1 * 1.005)
    assert maths.adapted(0.1, kl=0.0, target=6.0, rollouts=500, horizon=10_000) == pytest.approx(0.1 * 0.99)


def test_group_advantages_by_hand() -> None:
    totals = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])
    assert maths.group_advantages(totals, 3).tolist() == [-2.0, -1.0, 3.0, 0.0, 0.0, 0.0]
    std = math.sqrt((4 + 1 + 9) / 2) + 1e-4
    got = maths.group_advantages(totals, 3, by_std=True).tolist()
    assert got == pytest.approx([-2 / std, -1 / std, 3 / std, 0, 0, 0])
    assert maths.group_advantages(torch.tensor([3.0]), 1, by_std=True).tolist() == [0.0]


def test_policy_loss_by_hand() -> None:
    # ratios 2, 2, .5, .5 with advantages 1, -1, 1, -1 and clip .2: only the hopeful gains are cut
    new, old = torch.tensor([2.0, 2.0, 0.5, 0.5]).log(), torch.zeros(4)
    loss = maths.policy_loss(new, old, torch.tensor([1.0, -1.0, 1.0, -1.0]), 0.2)
    assert loss.total.item() == pytest.approx(-1.2 + 2 - 0.5 + 0.8)
    assert loss.clipped == 2


def test_value_loss_clips_around_the_old_value() -> None:
    # old 0, return 1: moving to .5 earns only what moving to .2 would; moving to -.5 is paid in full
    loss = maths.value_loss(torch.tensor([0.5, -0.5]), torch.zeros(2), torch.ones(2), 0.2)
    assert loss.total.item() == pytest.approx(0.5 * (0.8**2 + 1.5**2))
    assert loss.clipped == 1


def test_explained_variance() -> None:
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert maths.explained_variance(returns.clone(), returns) == 1.0
    assert maths.explained_variance(torch.full((3,), 2.0), returns) == 0.0


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 1000))
def test_pad_and_back(lengths: list[int], seed: int) -> None:
    values = torch.randn(sum(lengths), generator=torch.Generator().manual_seed(seed))
    mask = maths.real(lengths)
    out = maths.pad(values, mask)
    assert torch.equal(out[mask], values)
    assert not out[~mask].any()
    assert mask.sum(1).tolist() == lengths


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=5), st.integers(0, 1000))
def test_whitened_values_have_mean_0_and_variance_1(lengths: list[int], seed: int) -> None:
    mask = maths.real(lengths)
    values = torch.randn(sum(lengths), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    out = maths.whiten(maths.pad(3 + 5 * values, mask), mask)
    kept = maths.whiten(maths.pad(3 + 5 * values, mask), mask, shift_mean=False)
    assert out[mask].mean().item() == pytest.approx(0, abs=1e-9)
    assert out[mask].var().item() == pytest.approx(1, abs=1e-4)
    assert kept[mask].mean().item() == pytest.approx((3 + 5 * values).mean().item())
    assert not out[~mask].any()
