"""The engine without a model."""

from __future__ import annotations

import pytest

from xwincli import engines
from xwincli.engines import Ask
from xwincli.errors import XwinError
from xwincli.settings import Device, Sampling

ASK = Ask("k", [{"role": "user", "content": "why does the moon shine so bright tonight"}], 6, "p")


def answers(sampling: Sampling, ask: Ask = ASK, seed: int = 0):
    ((key, found),) = engines.find("echo", "", Device(), 1).generate([ask], sampling, seed)
    assert key == ask.key
    return found


def test_answers_depend_on_seed_prompt_and_index_alone():
    first = answers(Sampling())
    assert answers(Sampling()) == first
    assert answers(Sampling(), Ask("other", ASK.messages, 2, "p", first=3)) == first[3:5]
    assert [r.text for r in answers(Sampling(), seed=1)] != [r.text for r in first]
    assert len({r.text for r in first}) > 3
    assert len({r.text for r in answers(Sampling(temperature=0.0))}) == 1


def test_length_is_kept():
    for r in answers(Sampling(max_tokens=2)):
        assert r.tokens == len(r.text.split()) == 2 and r.finish == "length"
    assert all(r.finish == "stop" for r in answers(Sampling(max_tokens=100)))


def test_a_stop_text_ends_an_answer_before_it():
    for whole, r in zip(answers(Sampling()), answers(Sampling(stop=["in", "oo"])), strict=True):
        assert r.text == min(whole.text.partition("in")[0], whole.text.partition("oo")[0], key=len)
        assert r.finish == "stop"


def test_engines_are_found_by_name():
    with pytest.raises(XwinError, match="--model is required"):
        engines.find("native", "", Device(), 1)
