"""The draws: a hash that can be checked by hand, an exact inverse, and distributions that pass chi-square."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from xwincli.engines.native import draw as module
from xwincli.engines.native.draw import draw, pick, streams, uniform

LOGITS = torch.tensor([2.0, 1.5, 1.5, 0.0, -0.5, 1.0, -1.0, -3.0, 0.5, 0.2, -9.0])


def splitmix(x: int) -> int:
    """The finaliser with Python's integers."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


@given(st.integers(0, 2**64 - 1), st.integers(0, 10**6), st.integers(0, 30))
def test_uniform_equals_integer_arithmetic(key, step, turn):
    x = splitmix((key + step * 0x9E3779B97F4A7C15) % 2**64)
    x = splitmix(x ^ splitmix(turn))
    u = uniform(np.asarray([key], np.uint64), [step], turn)[0]
    assert u == ((x >> 12) + 0.5) / 2**52
    assert 0 < u < 1


def test_a_stream_is_one_seeds_one_prompts_one_index():
    some = [streams(seed, prompt, range(50)) for seed in (-1, 0, 1) for prompt in ("a", "b", "")]
    assert len(set(np.concatenate(some).tolist())) == 9 * 50
    assert streams(1, "b", [7])[0] == streams(1, "b", range(10))[7]


def test_uniform_is_uniform_along_steps_and_indices():
    keys = streams(0, "p", range(300))
    u = uniform(np.repeat(keys, 100), np.tile(np.arange(100), 300))
    assert stats.kstest(u, "uniform").pvalue > 0.001
    grid = u.reshape(300, 100)
    assert abs(np.corrcoef(grid[:, 0], grid[:, 1])[0, 1]) < 0.2
    assert abs(np.corrcoef(grid[0], grid[1])[0, 1]) < 0.35


@given(
    st.lists(st.floats(0, 100, width=32).map(lambda x: x if x > 1e-3 else 0.0), min_size=1, max_size=700),
    st.floats(1e-9, 1 - 1e-9),
)
def test_pick_inverts_the_cumulative_distribution(weights, u):
    weights = [*weights, 1.0]
    token = int(pick(torch.tensor([weights]), np.asarray([u]))[0])
    ends = np.cumsum(weights)
    slack = 1e-5 * ends[-1]
    assert weights[token] > 0
    assert ends[token] - weights[token] - slack <= u * ends[-1] <= ends[token] + slack


def expected(temperature: float, top_p: float) -> np.ndarray:
    """The distribution by sorting: equally likely tokens at the edge of the nucleus all stay."""
    p = torch.softmax(LOGITS.double() / temperature, 0).numpy()
    likelier = np.asarray([p[p > x].sum() for x in p])
    p = np.where((likelier < top_p) | (likelier == 0), p, 0)
    return p / p.sum()


CASES = [(1, 1), (0.7, 1), (2.5, 1), (1, 0.9), (1.3, 0.55), (1, 0.05), (1, 0)]


@pytest.mark.parametrize(("temperature", "top_p"), CASES)
def test_draws_follow_the_distribution(temperature, top_p):
    n = 20000
    tokens, _ = draw(LOGITS.expand(n, -1), streams(3, "p", range(n)), np.full(n, 5), temperature, top_p)
    counts, p = np.bincount(tokens, minlength=len(LOGITS)), expected(temperature, top_p)
    assert counts[p == 0].sum() == 0
    common = p * n > 5
    observed = [*counts[common], counts[~common].sum()]
    wanted = [*(p[common] * n), p[~common].sum() * n]
    if common.all() or wanted[-1] == 0:
        observed, wanted = observed[:-1], wanted[:-1]
    assert len(wanted) == 1 or stats.chisquare(observed, wanted).pvalue > 0.001


def test_logprob_is_of_the_whole_distribution_at_temperature_one():
    tokens, logprobs = draw(LOGITS.expand(200, -1), streams(0, "p", range(200)), np.zeros(200), 0.5, 0.8)
    assert logprobs.dtype == torch.float64
    torch.testing.assert_close(logprobs, torch.log_softmax(LOGITS.double(), 0)[tokens], atol=1e-6, rtol=0)


def test_greedy_is_the_first_of_the_likeliest():
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [5.0, 3.0, 3.0, 1.0]])
    assert draw(logits, streams(0, "p", [0, 1]), [0, 0], 0.0, 0.1)[0].tolist() == [1, 0]


def test_neighbours_do_not_reach_a_row(monkeypatch):
    torch.manual_seed(0)
    logits, keys, steps = torch.randn(60, 300) * 3, streams(0, "p", range(60)), np.arange(60)
    whole, whole_logprob = draw(logits, keys, steps, 0.9, 0.7)
    monkeypatch.setattr(module, "CELLS", 7 * 300)
    parts, parts_logprob = draw(logits, keys, steps, 0.9, 0.7)
    alone = torch.cat([draw(logits[i : i + 1], keys[i : i + 1], steps[i : i + 1], 0.9, 0.7)[0] for i in range(60)])
    assert whole.tolist() == parts.tolist() == alone.tolist()
    torch.testing.assert_close(whole_logprob, parts_logprob)
