"""Prompts that share words with an evaluation set: by hand, and against plain string search."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xwincli.contamination import Index, words


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_case_punctuation_and_spacing_do_not_count():
    index = Index(3)
    index.add(user("Alpha, BETA\n gamma-delta!"), "set, prompt 1")
    assert index.find(user("so: alpha beta  gamma")) == ("alpha beta gamma", "set, prompt 1")
    assert index.find(user("x beta gamma DELTA x")) == ("beta gamma delta", "set, prompt 1")
    assert index.find(user("alpha beta delta gamma")) is None
    assert index.find(user("")) is None and index.find(user("?!")) is None


def test_shorter_prompts_are_compared_whole():
    index = Index(13)
    index.add(user("What is 2+2?"), "s")
    assert index.find(user("what is 2 + 2")) and not index.find(user("what is 2 + 2 , please"))


def test_system_prompts_and_answers_do_not_count():
    index = Index(3)
    index.add([{"role": "system", "content": "you are very helpful"}, *user("a b c d")], "s")
    assert index.find([{"role": "system", "content": "you are very helpful"}, *user("x y z w")]) is None
    assert index.find([*user("hello"), {"role": "assistant", "content": "a b c d"}]) is None
    assert index.find([*user("hello"), {"role": "assistant", "content": "hm"}, *user("a b c d")])


def test_scripts_without_spaces_count_by_the_character():
    assert words(user("東京は日本の首都")) == list("東京は日本の首都")
    assert words(user("GPT-4は良い naïve_x")) == ["gpt", "4", "は", "良", "い", "naïve", "x"]


@given(
    st.lists(st.sampled_from("abc"), min_size=4, max_size=30),
    st.lists(st.sampled_from("abc"), min_size=4, max_size=30),
    st.integers(2, 4),
)
def test_finds_what_a_search_for_every_run_of_words_finds(one: list[str], two: list[str], n: int):
    index = Index(n)
    index.add(user(" ".join(one)), "s")
    runs = {tuple(one[i : i + n]) for i in range(len(one) - n + 1)}
    shared = any(tuple(two[i : i + n]) in runs for i in range(len(two) - n + 1))
    assert (index.find(user(" ".join(two))) is not None) == shared
