"""Every loss against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from xwincli.train import losses


def test_bradley_terry_by_hand():
    chosen, rejected = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0])
    # -log sigmoid(1) - log sigmoid(-3)
    expected = math.log(1 + math.exp(-1)) + math.log(1 + math.exp(3))
    assert losses.bradley_terry(chosen, rejected).item() == pytest.approx(expected, rel=1e-6)


def test_bradley_terry_with_margin_and_centring():
    chosen, rejected = torch.tensor([2.0]), torch.tensor([1.0])
    expected = math.log(1 + math.exp(-(1 - 0.5))) + 0.01 * 9
    got = losses.bradley_terry(chosen, rejected, margin=0.5, centring=0.01)
    assert got.item() == pytest.approx(expected, rel=1e-6)


def test_dpo_starts_at_log_two():
    assert losses.dpo_sigmoid(torch.zeros(3), 0.1).item() == pytest.approx(3 * math.log(2))


def test_dpo_by_hand():
    got = losses.dpo_sigmoid(torch.tensor([4.0, -2.0]), 0.5).item()
    assert got == pytest.approx(math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1)), rel=1e-6)


def test_likelihood_is_a_sum():
    assert losses.negative_log_likelihood(torch.tensor([-1.0, -2.5])).item() == 3.5
