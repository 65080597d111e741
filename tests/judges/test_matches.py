"""Which pairs are drawn, in which orders they are shown, and what the tally says of the judge."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwincli.judges import Verdict
from xwincli.judges.matches import Tally, compare, draw
from xwincli.records import Game, Group, Judgement, Response, prompt_id

PROMPT = [{"role": "user", "content": "Name a colour."}]


def group(*texts, model="m"):
    responses = [Response(text=t, index=i, finish="stop") for i, t in enumerate(texts)]
    return Group(id="g", prompt_id=prompt_id(PROMPT), prompt=PROMPT, responses=responses, model=model)


class Script:
    """A judge that prefers the alphabetically later answer, except that it takes the first if it is ``stuck``."""

    name = "script"

    def __init__(self, stuck=False):
        self.stuck, self.seen = stuck, []

    def verdicts(self, items):
        for item in items:
            self.seen.append((item.a, item.b))
            better = 0.0 if self.stuck else float(item.b > item.a)
            yield Verdict(preference=better, rating_a=len(self.seen), rating_b=10, reason=f"{item.a} v {item.b}")


def texts(matches):
    return [(m.a.response.text, m.b.response.text) for m in matches]


def test_all_pairs_are_among_distinct_texts():
    drawn = draw(group("red", "blue", "red", "green"), None, None, "both", 0)
    assert texts(drawn) == list(combinations(["red", "blue", "green"], 2))
    assert [m.a.response.index for m in drawn] == [0, 0, 1]  # a repeated text stands for its first response
    assert draw(group("red", "red"), None, None, "both", 0) == []


def test_random_pairs_are_seeded_by_content_and_differ_by_seed():
    row = group(*"abcdefgh")
    assert texts(draw(row, None, 3, "both", 0)) == texts(draw(group(*"abcdefgh", model="other"), None, 3, "both", 0))
    assert len({tuple(texts(draw(row, None, 1, "both", s))) for s in range(40)}) > 10
    assert len(set(texts(draw(row, None, 20, "both", 5)))) == 20
    assert len(draw(row, None, 1000, "both", 5)) == 28


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 9))
def test_two_sides_go_round_before_any_response_repeats(na, nb, seed):
    ours, theirs = group(*(f"a{i}" for i in range(na))), group(*(f"b{i}" for i in range(nb)), model="n")
    every = texts(draw(ours, theirs, None, "both", seed))
    assert len(set(every)) == len(every) == na * nb
    assert all(a[0] == "a" and b[0] == "b" for a, b in every)
    first = every[: min(na, nb)]
    assert len({a for a, _ in first}) == len({b for _, b in first}) == min(na, nb)
    assert texts(draw(ours, theirs, 2, "both", seed)) == every[:2]


def test_both_orders_are_asked_and_read_back_to_the_same_sides():
    judge = Script()
    [[j]] = compare(judge, [draw(group("blue", "red"), None, 1, "both", 0)])
    assert judge.seen == [("blue", "red"), ("red", "blue")]
    assert [(g.first, g.preference) for g in j.games] == [("a", 1.0), ("b", 1.0)]
    assert j.verdict() == 1
    assert [g.reason for g in j.games] == ["blue v red", "red v blue"]
    # a (blue) read 1 when first and 10 when second, b 10 and 2
    assert j.a == {"text": "blue", "index": 0, "model": "m", "finish": "stop", "rating": 5.5}
    assert j.b["rating"] == 6
    assert j.judge == "script"


def test_disagreement_is_a_tie():
    [[j]] = compare(Script(stuck=True), [draw(group("blue", "red"), None, 1, "both", 0)])
    assert [g.preference for g in j.games] == [0.0, 1.0]
    assert j.verdict() == 0.5


def test_one_order_is_drawn_by_chance():
    orders = [draw(group("blue", "red"), None, 1, "one", s)[0].orders for s in range(100)]
    assert set(orders) == {("a",), ("b",)}
    assert 25 < orders.count(("a",)) < 75


def test_equal_answers_cost_no_call_and_are_a_tie():
    judge = Script()
    rows = compare(judge, [draw(group("red"), group("red", model="n"), 1, "both", 0)])
    assert judge.seen == []
    assert rows[0][0].verdict() == 0.5
    assert [g.reason for g in rows[0][0].games] == ["the answers are equal"]
    assert "rating" not in rows[0][0].a


def test_verdicts_stay_with_their_prompt_when_some_have_none():
    rows = [
        draw(group("x"), None, 1, "both", 0),
        draw(group("a", "b"), None, 1, "both", 0),
        draw(group("q"), group("q"), 1, "both", 0),
        draw(group("c", "d"), None, 1, "both", 0),
    ]
    made = compare(Script(), rows)
    assert [len(r) for r in made] == [0, 1, 1, 1]
    assert [made[1][0].games[0].reason, made[3][0].games[0].reason] == ["a v b", "c v d"]


def judgement(*games):
    side = {"text": "t"}
    made = [Game(first=f, preference=p) for f, p in games]
    return Judgement(id="j", prompt_id="p", prompt=PROMPT, a=side, b=side, games=made)


def test_the_tally_by_hand():
    tally = Tally()
    for games in (
        [("a", 1.0), ("b", 1.0)],  # b wins; first slot lost, won
        [("a", 0.0), ("b", 0.0)],  # a wins; first slot won, lost
        [("a", 0.0), ("b", 1.0)],  # a flip, so a tie; first slot won twice
        [("a", 0.5), ("b", 1.0)],  # a tie, no flip; first slot won once
        [("a", 0.5)],  # equal answers
    ):
        tally.add(judgement(*games))
    assert tally.metrics() == pytest.approx(
        {"a_wins": 1 / 5, "b_wins": 1 / 5, "ties": 3 / 5, "flips": 1 / 4, "first_slot_wins": 5 / 7}, abs=1e-6
    )
    assert Tally().metrics()["ties"] == 0
