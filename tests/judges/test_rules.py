"""The rules judge: its scale by hand, and that trivial answers do not game it."""

from __future__ import annotations

import statistics
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwincli.errors import XwinError
from xwincli.judges import Answer, Item, Options, find
from xwincli.judges.rules import Rules, assess, make
from xwincli.lab.instructions import prompts
from xwincli.settings import Device

ASK = "Share a single tip about cooking a vegetable soup in at most 20 words."
SOUP = [{"role": "user", "content": ASK}]
CHECKS = [
    {"kind": "max_words", "value": 20},
    {"kind": "min_words", "value": 8},
    {"kind": "mentions", "value": "soup"},
]
GOOD = "Let the soup simmer slowly and add the salt at the very end."


def rate(text, finish="stop", prompt=SOUP, checks=CHECKS):
    return assess(prompt, text, finish, checks).rating


def test_a_good_answer_gets_everything():
    # 1 + 3.5 * 3/3 + 1.5 all + 1 ended + 1.5 on topic + .5 + .5 + .5
    assert rate(GOOD) == 10


def test_each_part_of_the_scale():
    assert rate(GOOD, "length") == 9  # cut after a whole sentence: only the ending's point
    assert rate(GOOD, None) == 10  # nobody knows: a whole sentence is taken as ended
    long = GOOD + " It tastes better when nobody stirs it all day long or lifts the lid too often."
    assert rate(long) == pytest.approx(10 - 1.5 - 3.5 / 3, abs=1e-3)  # one of three missed
    # off topic: bound to 5, less the third of the demands that is missed
    assert rate("Let it simmer slowly and add the salt at the very end.") == pytest.approx(5 - 1 / 3, abs=1e-3)
    assert rate("User: " + GOOD) == 9.5  # a role marker is not clean
    assert rate(GOOD.replace("very", "vxrtt").replace("slowly", "sl0wly")) == 9.5  # 2 of 13 words are none
    assert rate("Add salt to soup.") == pytest.approx(5 - 1 / 3, abs=1e-3)  # under its floor: too short
    # with no floor: one of three stems, four of twelve words: 1 + 3.5 * (1/3 + 4/12) / 2 + 1 + 1.5 + 1.5
    assert rate("Add salt to soup.", checks=None) == pytest.approx(5 + 3.5 / 3, abs=1e-3)


TRIVIAL = {
    "empty": "",
    "blank": " \n ",
    "one word": "Soup.",
    "a word list": "Soy sauce, chicken soup.",
    "a longer word list": "Onions, carrots, celery, garlic, stock, tomatoes, beans, soup.",
    "one word repeated": "soup " * 12,
    "a stutter": "The soup is is is very good with a little salt.",
    "a sentence said twice": "Add salt to the soup. Add salt to the soup. Add salt to the soup.",
    "a pet word": "Soup and soup with soup in soup is the best way to soup.",
    "the prompt": ASK,
    "the prompt and a bit": ASK + " Soup is good.",
    "off topic": "Take the first train in the morning and bring a good book.",
    "a refusal": "I'm sorry, but I can't help you with the soup today.",
    "a comma at the end": "Let the soup simmer slowly and add the salt,",
    "a loose end": "Let the soup simmer slowly and add the",
    "punctuation": "?!?! ... ---- !!!!",
}


@pytest.mark.parametrize("text", TRIVIAL.values(), ids=TRIVIAL)
@pytest.mark.parametrize("checks", [CHECKS, None], ids=["checks", "no checks"])
@pytest.mark.parametrize("finish", ["stop", "length", None])
def test_trivial_answers_score_low(text, checks, finish):
    assert rate(text, finish, checks=checks) <= 5
    assert rate(text, finish, checks=checks) < rate(GOOD, finish, checks=checks)


def test_how_low():
    low = {name: rate(text) for name, text in TRIVIAL.items()}
    assert low["empty"] == low["blank"] == low["one word"] == low["punctuation"] == 1
    assert low["the prompt"] == 2  # an echo is capped at 4, then costs 2
    # too short and no sentence: 4, less one for the second fault, less the missed third
    assert low["a word list"] == pytest.approx(4 - 1 - 1 / 3, abs=1e-3)
    assert low["one word repeated"] <= 3
    assert low["a refusal"] == 4


def test_cut_off_in_the_middle_is_low_even_if_all_checks_pass():
    assert rate("Let the soup simmer slowly and add the salt at the very", "length") == 5
    assert "is cut off" in assess(SOUP, "Let the soup simmer slowly and add the salt at", "length", CHECKS).reason


def test_every_demo_prompt_as_its_own_answer_scores_low():
    for row in prompts():
        assert rate(row.prompt[0]["content"], "stop", row.prompt, row.checks) <= 3, row.prompt


def test_one_answer_for_all_prompts_scores_low():
    texts = ["This is a very good thing and everyone should try it at least once.", "Yes.", "I like it very much."]
    for text in texts:
        scores = [rate(text, "stop", row.prompt, row.checks) for row in prompts()]
        assert max(scores) <= 5


def test_a_title_and_bullets_need_be_no_sentence():
    title = [{"role": "user", "content": "Suggest a title for a story about tea, in lower case."}]
    checks = [
        {"kind": "lower_case", "value": True},
        {"kind": "max_words", "value": 10},
        {"kind": "min_words", "value": 3},
        {"kind": "mentions", "value": "tea"},
    ]
    assert rate("golden tea mornings", "stop", title, checks) == 5  # under four words is short even there
    assert rate("golden mountain tea mornings", "stop", title, checks) == 10
    bullets = [{"role": "user", "content": "Give me exactly two short bullets on making tea."}]
    wanted = [
        {"kind": "bullets", "value": 2},
        {"kind": "min_words", "value": 6},
        {"kind": "mentions", "value": "tea"},
    ]
    assert rate("- boil fresh water\n- steep tea leaves", "stop", bullets, wanted) == 10


def test_reworking_a_quoted_text_is_no_echo_but_repeating_it_is():
    prompt = [{"role": "user", "content": 'Turn this into a polite question: "Tell me when the rain stops."'}]
    checks = [
        {"kind": "ends_with", "value": "?"},
        {"kind": "min_words", "value": 7},
        {"kind": "mentions", "value": "rain"},
    ]
    assert rate("Could you tell me when the rain stops?", "stop", prompt, checks) == 10
    assert rate("Tell me when the rain stops?", "stop", prompt, checks) <= 2


def test_without_checks_topic_and_substance_stand_in():
    prompt = [{"role": "user", "content": "Why does bread rise in the oven?"}]
    full = "Bread rises because the gas in the dough grows in the hot oven and lifts it."
    off = "The committee has met on Monday and it was pleased with the new rules for all."
    brief = "The yeast lifts the bread."
    ratings = {t: rate(t, "stop", prompt, None) for t in (full, off, brief)}
    assert ratings[full] > ratings[brief] > ratings[off]
    # full: all three stems (bread, rise, oven) and twelve words or more
    assert ratings[full] == 10
    # brief: one of three stems, 5 of 12 words: 1 + 3.5 * (1/3 + 5/12) / 2 + 1 + 1.5 + 1.5
    assert ratings[brief] == pytest.approx(5 + 3.5 * (1 / 3 + 5 / 12) / 2, abs=1e-3)


def test_follow_ups_are_on_the_topic_of_the_whole_conversation():
    turns = [
        {"role": "user", "content": "Write about a fox."},
        {"role": "assistant", "content": "A fox runs."},
        {"role": "user", "content": "Now make it longer."},
    ]
    assert rate("The fox ran over the hill and looked for its den in the last light.", "stop", turns, None) > 5


def test_scripts_mix_only_where_the_prompt_does():
    mixed = GOOD.replace("soup simmer", "soup кипит")
    assert rate(mixed) == 9.5
    russian = [{"role": "user", "content": "Translate 'boils' to Russian. Use soup in your answer: кипит"}]
    assert "stray" not in assess(russian, mixed, "stop").reason


def test_the_reason_says_what_passed_and_what_failed():
    reason = assess(SOUP, "Soy sauce, chicken soup.", "stop", CHECKS).reason
    assert reason == (
        "rated 2.67: meets at most 20 words, mentions 'soup'; misses at least 8 words; "
        "on topic, ended by itself; but is too short, is a list of words, no sentence"
    )


def test_an_unknown_check_is_an_error():
    with pytest.raises(XwinError, match="no_such"):
        rate(GOOD, checks=[{"kind": "no_such", "value": 1}])


@given(st.text(), st.sampled_from(["stop", "length", None]), st.booleans())
def test_any_text_has_a_rating_on_the_scale_and_a_reason(text, finish, with_checks):
    found = assess(SOUP, text, finish, CHECKS if with_checks else None)
    assert 1 <= found.rating <= 10
    assert found.reason.startswith(f"rated {found.rating:.3g}: ")


PIECES = ["the", "a", "soup", "tea", "is", "and", "slow", ".", ",", "\n", "-", "!"]


@given(st.lists(st.sampled_from(PIECES), max_size=30))
def test_a_cut_never_scores_higher(pieces):
    text = " ".join(pieces)
    assert rate(text, "length") <= rate(text, "stop")


# -- as a judge


def item(a, b, id="x"):
    return Item(id=id, prompt=SOUP, a=a, b=b, a_finish="stop", b_finish="stop", checks=CHECKS)


def test_verdicts_follow_the_ratings():
    bad = "Soy sauce, chicken soup."
    verdicts = list(Rules().verdicts([item(GOOD, bad), item(bad, GOOD), item(GOOD, GOOD)]))
    assert [v.preference for v in verdicts] == [0, 1, 0.5]
    assert [(v.rating_a, v.rating_b) for v in verdicts] == [(10, 2.667), (2.667, 10), (10, 10)]
    assert verdicts[0].reason.startswith("first rated 10: meets at most 20 words")
    assert "second rated 2.67: " in verdicts[0].reason


def test_position_bias_favours_the_first():
    assert [v.preference for v in Rules(position_bias=0.5).verdicts([item(GOOD, GOOD)])] == [0]
    assert [v.preference for v in Rules(position_bias=-0.5).verdicts([item(GOOD, GOOD)])] == [1]
    bad = "Soy sauce, chicken soup."
    assert [v.preference for v in Rules(position_bias=7.3).verdicts([item(bad, GOOD)])] == [1]
    assert [v.preference for v in Rules(position_bias=7.4).verdicts([item(bad, GOOD)])] == [0]


def test_noise_is_gaussian_seeded_by_content_and_independent_of_order_and_batch():
    prompt = [{"role": "user", "content": "Why does bread rise in the oven?"}]
    text = "The yeast lifts the bread."  # 6.3: far from both ends of the scale
    answers = [Answer(id=f"n{i}", prompt=prompt, text=text, finish="stop") for i in range(2000)]
    exact = rate(text, "stop", prompt, None)
    judge = Rules(noise=0.5, seed=1)
    errors = [r.rating - exact for r in judge.ratings(answers)]
    assert statistics.fmean(errors) == pytest.approx(0, abs=4 * 0.5 / 2000**0.5)
    assert statistics.stdev(errors) == pytest.approx(0.5, rel=0.08)
    assert [r.rating for r in judge.ratings(answers[::-1])] == [r.rating for r in judge.ratings(answers)][::-1]
    assert [r.rating for r in Rules(noise=0.5, seed=2).ratings(answers)] != [r.rating for r in judge.ratings(answers)]
    verdicts = list(judge.verdicts([item(GOOD, GOOD, id=str(i)) for i in range(200)]))
    assert 60 < sum(v.preference for v in verdicts) < 140  # equal answers: a coin
    assert all(1 <= v.rating_a <= 10 for v in verdicts)


def test_it_is_found_by_name_and_refuses_what_is_not_its_own():
    assert find("rules").name == "rules"
    noisy = find("rules", Options(noise=1.0, position_bias=2.0), seed=3)
    assert (noisy.noise, noisy.position_bias, noisy.seed) == (1.0, 2.0, 3)
    with pytest.raises(XwinError, match="--rm"):
        make(Options(rm="folder"), 0, Device())
    with pytest.raises(XwinError, match="no judge 'gpt'") as e:
        find("gpt")
    assert "rules" in e.value.hint
    assert "matches" not in e.value.hint


def test_speed():
    texts = [f"Let soup number {i} simmer slowly, and add the salt at the end. Then serve it hot." for i in range(3000)]
    start = time.process_time()
    for text in texts:
        assess(SOUP, text, "stop", CHECKS)
    assert len(texts) / (time.process_time() - start) > 2500  # 8,000 to 12,000 on an idle core
