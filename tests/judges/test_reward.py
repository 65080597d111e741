"""A reward model as judge: Bradley-Terry preferences, and each answer scored once."""

from __future__ import annotations

import math

import pytest

from xwincli import scoring
from xwincli.errors import XwinError
from xwincli.judges import Answer, Item, Options, find
from xwincli.judges.reward import Reward

ONE = [{"role": "user", "content": "one"}]
TWO = [{"role": "user", "content": "two"}]


@pytest.fixture
def asked(monkeypatch):
    """The calls of a scorer whose reward is the answer's length, less one if it was cut."""
    calls = []

    def rewards(loaded, items):
        calls.append(items)
        return [[len(text) - (0 if ended else 1.0) for text, ended in answers] for _, answers in items]

    monkeypatch.setattr(scoring, "rewards", rewards)
    return calls


def test_preferences_are_the_sigmoid_of_the_difference(asked):
    items = [
        Item(id="1", prompt=ONE, a="aaa", b="b", a_finish="stop", b_finish="stop"),
        Item(id="2", prompt=ONE, a="b", b="aaa", a_finish="stop", b_finish="stop"),
        Item(id="3", prompt=TWO, a="b", b="b", a_finish="stop", b_finish="length"),
        Item(id="4", prompt=TWO, a="b", b="c"),
    ]
    verdicts = list(Reward(None, "reward:rm").verdicts(items))
    sigmoid = lambda x: 1 / (1 + math.exp(-x))
    assert [v.preference for v in verdicts] == pytest.approx([sigmoid(-2), sigmoid(2), sigmoid(-1), 0.5])
    assert [(v.rating_a, v.rating_b) for v in verdicts] == [(3, 1), (1, 3), (1, 0), (1, 1)]
    # one call; each prompt once with its distinct answers; cut ones are not shown as ended
    assert asked == [
        [(ONE, [("aaa", True), ("b", True)]), (TWO, [("b", True), ("b", False), ("c", True)])],
    ]


def test_large_differences_do_not_overflow(asked):
    item = Item(id="1", prompt=ONE, a="a", b="b" * 5000)
    assert next(Reward(None, "r").verdicts([item])).preference == 1


def test_ratings_are_rewards_in_order(asked):
    answers = [Answer(id=str(i), prompt=p, text=t) for i, (p, t) in enumerate([(ONE, "ab"), (TWO, "a"), (ONE, "abc")])]
    assert [r.rating for r in Reward(None, "r").ratings(answers)] == [2, 1, 3]


def test_its_options():
    with pytest.raises(XwinError, match="--rm"):
        find("reward")
    with pytest.raises(XwinError, match="--noise"):
        find("reward", Options(judge="reward", rm="x", noise=1.0))
    with pytest.raises(XwinError, match="--position-bias"):
        find("reward", Options(judge="reward", rm="x", position_bias=1.0))
