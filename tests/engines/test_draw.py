"""The draws: a hash that can be checked by hand, an exact inverse, and distributions that pass chi-square."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from xwincli.engines.native import draw as module
from xwincli.engines.native.draw import Choice, draw, pick, streams, uniform

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


SEEN = torch.tensor([1, 0, 1, 0, 1, 0, 0, 1, 0, 0, 0], dtype=torch.bool)


def expected(choice: Choice) -> np.ndarray:
    """The distribution by sorting: equally likely tokens at the edge of the nucleus all stay."""
    logits = LOGITS.double()
    if choice.penalty != 1:
        logits = torch.where(SEEN, torch.where(logits < 0, logits * choice.penalty, logits / choice.penalty), logits)
    p = torch.softmax(logits / choice.temperature, 0).numpy()
    if choice.top_k:
        p = np.where(p >= np.sort(p)[::-1][min(choice.top_k, len(p)) - 1], p, 0)
        p /= p.sum()
    likelier = np.asarray([p[p > x].sum() for x in p])
    least = choice.min_p * p.max()
    p = np.where(((likelier < choice.top_p) | (likelier == 0)) & (p >= least), p, 0)
    return p / p.sum()


CASES = [
    *(Choice(t, p) for t, p in [(1, 1), (0.7, 1), (2.5, 1), (1, 0.9), (1.3, 0.55), (1, 0.05), (1, 0)]),
    *(Choice(top_k=k) for k in (1, 4, 6, 11, 50)),
    *(Choice(min_p=p) for p in (0.05, 0.3, 1.0)),
    Choice(penalty=1.7),
    Choice(penalty=0.6, temperature=1.4),
    Choice(1.2, 0.8, 5, 0.1, 1.3),
    Choice(1.2, 0.8, 9, 0.3),
]


@pytest.mark.parametrize("choice", CASES)
def test_draws_follow_the_distribution(choice):
    n = 20000
    seen = SEEN.expand(n, -1) if choice.penalty != 1 else None
    tokens, _ = draw(LOGITS.expand(n, -1), streams(3, "p", range(n)), np.full(n, 5), choice, seen)
    counts, p = np.bincount(tokens, minlength=len(LOGITS)), expected(choice)
    assert counts[p == 0].sum() == 0
    common = p * n > 5
    observed = [*counts[common], counts[~common].sum()]
    wanted = [*(p[common] * n), p[~common].sum() * n]
    if common.all() or wanted[-1] == 0:
        observed, wanted = observed[:-1], wanted[:-1]
    assert len(wanted) == 1 or stats.chisquare(observed, wanted).pvalue > 0.001


@pytest.mark.parametrize("choice", CASES)
def test_the_distribution_is_that_of_transformers_processors(choice):
    """Where no two tokens are equally likely, at whose edge transformers keeps one and we keep both."""
    from transformers import (
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    ids = SEEN.nonzero().T
    steps = [RepetitionPenaltyLogitsProcessor(choice.penalty), TemperatureLogitsWarper(float(choice.temperature))]
    steps += [TopKLogitsWarper(choice.top_k)] if choice.top_k else []
    steps += [TopPLogitsWarper(float(choice.top_p)), MinPLogitsWarper(choice.min_p)]
    scores = (LOGITS + 0.01 * torch.arange(len(LOGITS)))[None]
    n = 4000
    theirs = scores
    for step in steps:
        theirs = step(ids, theirs)
    p = torch.softmax(theirs[0].double(), 0).numpy()
    seen = SEEN.expand(n, -1) if choice.penalty != 1 else None
    tokens, _ = draw(scores.expand(n, -1), streams(1, "p", range(n)), np.zeros(n), choice, seen)
    counts = np.bincount(tokens, minlength=len(p))
    assert counts[p == 0].sum() == 0
    assert (counts[p > 0.01] > 0).all()
    assert np.abs(counts / n - p).max() < 5 * 0.5 / n**0.5


def test_logprob_is_of_the_whole_distribution_at_temperature_one():
    choice, seen = Choice(0.5, 0.8, penalty=1.5), SEEN.expand(200, -1)
    tokens, logprobs = draw(LOGITS.expand(200, -1), streams(0, "p", range(200)), np.zeros(200), choice, seen)
    assert logprobs.dtype == torch.float64
    torch.testing.assert_close(logprobs, torch.log_softmax(LOGITS.double(), 0)[tokens], atol=1e-6, rtol=0)


def test_greedy_is_the_first_of_the_likeliest():
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [5.0, 3.0, 3.0, 1.0]])
    assert draw(logits, streams(0, "p", [0, 1]), [0, 0], Choice(0.0, 0.1))[0].tolist() == [1, 0]


def test_neighbours_do_not_reach_a_row(monkeypatch):
    torch.manual_seed(0)
    logits, keys, steps = torch.randn(60, 300) * 3, streams(0, "p", range(60)), np.arange(60)
    choice = Choice(0.9, 0.7)
    whole, whole_logprob = draw(logits, keys, steps, choice)
    monkeypatch.setattr(module, "CELLS", 7 * 300)
    parts, parts_logprob = draw(logits, keys, steps, choice)
    alone = torch.cat([draw(logits[i : i + 1], keys[i : i + 1], steps[i : i + 1], choice)[0] for i in range(60)])
    assert whole.tolist() == parts.tolist() == alone.tolist()
    torch.testing.assert_close(whole_logprob, parts_logprob)
