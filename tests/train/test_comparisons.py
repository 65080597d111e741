"""What an audit needs of the comparisons: the judge's lead per game, its rating per response."""

from __future__ import annotations

import pytest

from xwincli.errors import XwinError
from xwincli.records import Game, Group, Judgement, Pair, Response
from xwincli.train.comparisons import gather

ASK = [{"role": "user", "content": "q"}]


def says(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def judged(a: str, b: str, ratings: tuple, *preferences: float) -> Judgement:
    sides = [{"text": t} | ({} if r is None else {"rating": r}) for t, r in zip((a, b), ratings, strict=True)]
    games = [Game(first=f, preference=p) for f, p in zip("ab", preferences, strict=True)]
    return Judgement(prompt_id="p", prompt=ASK, a=sides[0], b=sides[1], games=games)


def test_judgements_keep_the_judge_s_ratings():
    rows = [
        judged("tea", "rain", (7, 3), 0, 0),
        judged("tea", "fox", (7, 9), 1, 1),
        judged("fox", "no", (9, None), 0, 0),
    ]
    (item,), ties = gather(rows, "f")
    assert ties == 0
    assert [item.sides[a][0] + ">" + item.sides[b][0] for a, b, *_ in item.games] == ["tea>rain", "fox>tea", "fox>no"]
    assert item.leads == [4, 2, None]
    assert {item.sides[i][0]: mark for i, mark in item.marks.items()} == {"tea": 7, "rain": 3, "fox": 9}
    assert [m for *_, m in item.games] == [0, 0, 0]  # learned only with --margin


def test_a_soft_lead_may_speak_against_the_chance():
    (item,), _ = gather([judged("tea", "rain", (3, 7), 0.2, 0.4)], "f", soft=True)
    (a, b, chance, _), (lead,) = item.games[0], item.leads
    assert (item.sides[a][0], item.sides[b][0], chance, lead) == ("tea", "rain", pytest.approx(0.7), -4)


def test_a_pair_s_margin_goes_before_its_scores():
    pair = Pair(
        prompt_id="p",
        prompt=ASK,
        chosen=says("tea"),
        rejected=says("rain"),
        score_chosen=7,
        score_rejected=3,
        margin=0.5,
    )
    (item,), _ = gather([pair], "f", margin=True)
    assert item.leads == [0.5]
    assert item.games[0][3] == 0.5
    assert item.marks == {0: 7, 1: 3}
    bare = Pair(id="x", prompt_id="p", prompt=ASK, chosen=says("tea"), rejected=says("rain"))
    (item,), _ = gather([bare], "f")
    assert (item.leads, item.marks) == ([None], {})
    with pytest.raises(XwinError, match="pair x: --margin needs a margin or two scores"):
        gather([bare], "f", margin=True)


def test_rated_groups_and_what_is_dropped():
    texts = zip(("tea", "rain", "fox"), (5.0, 9.0, 2.0), strict=True)
    responses = [Response(text=t, index=i, scores={"gold": s}) for i, (t, s) in enumerate(texts)]
    (item,), _ = gather([Group(prompt_id="p", prompt=ASK, responses=responses)], "f")
    leads = {
        (item.sides[a][0], item.sides[b][0]): lead for (a, b, *_), lead in zip(item.games, item.leads, strict=True)
    }
    assert leads == {("rain", "tea"): 4, ("tea", "fox"): 3, ("rain", "fox"): 7}
    less = item.without({0})
    assert [side for side, _ in less.sides] == ["rain", "fox"]
    assert (less.leads, less.marks) == ([7], {0: 9, 1: 2})


def rated(id_: str, **scores: float) -> Group:
    responses = [Response(text=t, finish="stop", scores={"gold": s}) for t, s in scores.items()]
    return Group(id=id_, prompt_id="p", prompt=ASK, responses=responses)


def test_two_groups_of_one_prompt_are_compared_each_in_itself():
    (item,), ties = gather([rated("1", tea=7, rain=3, fog=3), rated("2", tea=7, fox=9)], "f")
    assert ties == 1
    named = [item.sides[a][0] + ">" + item.sides[b][0] for a, b, *_ in item.games]
    assert named == ["tea>rain", "tea>fog", "fox>tea"]
    assert item.leads == [4, 4, 2]


def test_a_group_after_pairs_of_its_prompt():
    (item,), _ = gather([judged("tea", "rain", (None, None), 0, 0), rated("1", fox=9, tea=7)], "f")
    assert [item.sides[a][0] + ">" + item.sides[b][0] for a, b, *_ in item.games] == ["tea>rain", "fox>tea"]
    assert item.marks == {2: 9, 0: 7}
