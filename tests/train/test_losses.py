"""Every loss against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from xwincli.train import losses


def test_bradley_terry_by_hand():
    # -log sigmoid(1), -log sigmoid(-3)
    expected = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(3))]
    assert losses.bradley_terry(torch.tensor([1.0, -3.0])).tolist() == pytest.approx(expected, rel=1e-6)


def test_bradley_terry_with_margin_and_chance():
    lead = torch.tensor([1.0])
    assert losses.bradley_terry(lead, margin=0.5).item() == pytest.approx(math.log(1 + math.exp(-0.5)), rel=1e-6)
    # .8 * -log sigmoid(1) + .2 * -log sigmoid(-1)
    soft = 0.8 * math.log(1 + math.exp(-1)) + 0.2 * math.log(1 + math.exp(1))
    assert losses.bradley_terry(lead, chance=0.8).item() == pytest.approx(soft, rel=1e-6)


def test_centring_by_hand():
    assert losses.centring(torch.tensor([2.0]), torch.tensor([1.0])).item() == 9


def test_plackett_luce_by_hand():
    s = torch.tensor([0.5, 2.0, -1.0])
    # ranking 1, 0, 2: 2 drawn from all, then .5 from {.5, -1}
    whole = math.log(math.exp(2) + math.exp(0.5) + math.exp(-1)) - 2
    rest = math.log(math.exp(0.5) + math.exp(-1)) - 0.5
    ratings = torch.tensor([5.0, 9.0, 1.0])
    assert losses.plackett_luce(s, ratings).item() == pytest.approx(whole + rest, rel=1e-6)
    assert losses.plackett_luce(s, ratings, top=1).item() == pytest.approx(whole, rel=1e-6)


def test_plackett_luce_of_two_is_bradley_terry():
    s = torch.tensor([0.3, -0.9])
    got = losses.plackett_luce(s, torch.tensor([1.0, 4.0]))
    assert got.item() == pytest.approx(losses.bradley_terry(s[1] - s[0]).item(), rel=1e-6)


def test_plackett_luce_shares_tied_places():
    """Efron's form, by hand: the tied at the top count wholly, then half."""
    s = torch.tensor([1.0, 0.0, -2.0])
    e = [math.exp(x) for x in s.tolist()]
    expected = math.log(sum(e)) - 0.5 + math.log((e[0] + e[1]) / 2 + e[2]) - 0.5
    assert losses.plackett_luce(s, torch.tensor([7.0, 7.0, 3.0])).item() == pytest.approx(expected, rel=1e-6)
    swapped = losses.plackett_luce(s[[1, 0, 2]], torch.tensor([7.0, 7.0, 3.0])).item()
    assert swapped == pytest.approx(expected, rel=1e-6)


def test_dpo_starts_at_log_two():
    assert losses.dpo_sigmoid(torch.zeros(3), 0.1).tolist() == pytest.approx([math.log(2)] * 3)


def test_dpo_by_hand():
    got = losses.dpo_sigmoid(torch.tensor([4.0, -2.0]), 0.5).tolist()
    assert got == pytest.approx([math.log(1 + math.exp(-2)), math.log(1 + math.exp(1))], rel=1e-6)


H = torch.tensor([4.0, -2.0])
SIG = lambda x: 1 / (1 + math.exp(-x))


def test_conservative_dpo_by_hand():
    got = losses.dpo_conservative(H, 0.5, 0.1).tolist()
    expected = [-0.9 * math.log(SIG(2)) - 0.1 * math.log(SIG(-2)), -0.9 * math.log(SIG(-1)) - 0.1 * math.log(SIG(1))]
    assert got == pytest.approx(expected, rel=1e-6)


def test_robust_dpo_by_hand():
    got = losses.dpo_robust(H, 0.5, 0.1).tolist()
    expected = [
        (-0.9 * math.log(SIG(2)) + 0.1 * math.log(SIG(-2))) / 0.8,
        (-0.9 * math.log(SIG(-1)) + 0.1 * math.log(SIG(1))) / 0.8,
    ]
    assert got == pytest.approx(expected, rel=1e-6)


def test_hinge_by_hand():
    assert losses.dpo_hinge(H, 0.1).tolist() == pytest.approx([0.6, 1.2])
    assert losses.dpo_hinge(H, 0.5).tolist() == pytest.approx([0.0, 2.0])


def test_ipo_by_hand():
    assert losses.dpo_ipo(H, 0.25).tolist() == pytest.approx([4.0, 16.0])  # 1 / (2 beta) is 2


def test_simpo_by_hand():
    lead = torch.tensor([0.5])
    assert losses.simpo(lead, 2.0, 0.3).item() == pytest.approx(-math.log(SIG(0.7)), rel=1e-6)
