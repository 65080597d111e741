"""Canonical lines as records: round trips, ids made of content, and what no template could render."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwincli.errors import XwinError
from xwincli.records import (
    Conversation,
    Group,
    Judgement,
    Pair,
    Prompt,
    Rating,
    check_messages,
    content_id,
    decode,
    encode,
    prompt_id,
)

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}

TEXT = st.text(min_size=1).filter(str.strip)
TURNS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3).map(
    lambda pairs: [
        {"role": role, "content": said}
        for pair in pairs
        for role, said in zip(("user", "assistant"), pair, strict=True)
    ]
)
EXTRA = st.dictionaries(st.sampled_from(["source", "note", "x"]), st.integers() | st.text(), max_size=3)


def refusal(value, kind):
    with pytest.raises(XwinError) as e:
        decode(value, kind, "f.jsonl:3")
    assert e.value.message.startswith("f.jsonl:3: field ")
    return e.value.message.removeprefix("f.jsonl:3: field ")


@given(TURNS, EXTRA)
def test_a_conversation_survives_the_disk(messages, extra):
    record = decode({"messages": messages, **extra}, Conversation)
    line = encode(record)
    assert line == {"kind": "conversation", "id": record.id, "messages": messages, **extra}
    assert decode(line, Conversation) == record


@given(TURNS, st.lists(st.text(), min_size=1, max_size=4), st.dictionaries(TEXT, st.floats(-9, 9)), EXTRA)
def test_a_group_survives_the_disk(messages, texts, scores, extra):
    responses = [{"text": t, "index": i, "scores": scores, "seen": i} for i, t in enumerate(texts)]
    record = decode({"prompt": messages[:-1], "responses": responses, "model": "m", **extra}, Group)
    assert [r.extra for r in record.responses] == [{"seen": i} for i in range(len(texts))]
    assert decode(encode(record), Group) == record


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (Prompt, {"prompt": [USER], "reference": "r", "contexts": ["c"], "category": "k", "checks": [{"kind": "x"}]}),
        (Pair, {"prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "b"}], "margin": 1.5}),
        (Judgement, {"prompt": [USER], "a": {"text": "x"}, "b": {"text": "y"}, "games": [], "judge": "j"}),
        (Rating, {"response": {"text": "x"}, "rating": 7.0, "prompt_id": "p"}),
    ],
)
def test_every_kind_survives_the_disk(kind, line):
    record = decode(line, kind)
    written = encode(record)
    assert written["kind"] == kind.kind
    assert {k: written[k] for k in line} == line
    assert decode(written, kind) == record


def test_ids_are_made_of_content():
    first = decode({"messages": [USER, ANSWER]}, Conversation)
    assert first.id == decode({"messages": [USER, ANSWER]}, Conversation).id
    assert first.id != decode({"messages": [USER, {**ANSWER, "content": "b"}]}, Conversation).id
    pair = decode({"prompt": [USER], "chosen": [ANSWER], "rejected": [CALL]}, Pair)
    assert pair.prompt_id == decode({"prompt": [{**USER, "weight": 1}]}, Prompt).id == prompt_id([USER])
    assert content_id({"a": 1, "b": 2}) == content_id({"b": 2, "a": 1})


def test_the_id_of_a_prompt_knows_its_tool_calls():
    def asked(name):
        call = {"role": "assistant", "tool_calls": [{"function": {"name": name}}]}
        return prompt_id([USER, call, {"role": "tool", "content": "4"}])

    assert asked("f") == asked("f") != asked("g")


def test_integer_ids_become_text_and_other_ids_are_refused():
    assert decode({"id": 7, "messages": [USER, ANSWER]}, Conversation).id == "7"
    for value in ([1], {}, 1.5, True, None):
        assert refusal({"id": value, "messages": [USER, ANSWER]}, Conversation).startswith("id: Expected `str`")


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (None, "messages: Expected `array`, got `null`"),
        ("hi", "messages: Expected `array`, got `str`"),
        ([], "messages: there are no messages"),
        (["hi"], "messages[0]: Expected `object`, got `str`"),
        ([{"content": "x"}, ANSWER], "messages[0].role: is missing"),
        ([{**USER, "role": "User"}, ANSWER], "messages[0].role: 'User' is no role"),
        ([{**USER, "role": "human"}, ANSWER], "messages[0].role: 'human' is no role"),
        ([{**USER, "role": []}, ANSWER], "messages[0].role: [] is no role"),
        ([ANSWER, USER], "messages[0].role: the assistant cannot speak before the user"),
        ([{"role": "system", "content": "s"}, ANSWER], "messages[1].role: the assistant cannot speak"),
        ([{"role": "tool", "content": "s"}, ANSWER], "messages[0].role: the tool cannot speak"),
        ([USER, {"role": "system", "content": "s"}, ANSWER], "messages[1].role: a system message stands first"),
        ([{"role": "user"}, ANSWER], "messages[0].content: is missing"),
        ([{**USER, "content": None}, ANSWER], "messages[0].content: expected text, got null"),
        ([{**USER, "content": 42}, ANSWER], "messages[0].content: expected text, got a number (42)"),
        ([{**USER, "content": "\n"}, ANSWER], "messages[0].content: the message is empty"),
        ([USER, {**ANSWER, "content": " \t"}], "messages[1].content: the answer is empty"),
        ([USER, {**ANSWER, "content": None}], "messages[1].content: expected text, got null"),
        ([USER, {**ANSWER, "content": None, "tool_calls": []}], "messages[1].content: expected text"),
        ([USER, ANSWER, USER], "messages: ends with user, not with the assistant"),
        ([USER], "messages: ends with user, not with the assistant"),
    ],
)
def test_conversations_no_template_can_render(messages, said):
    assert refusal({"messages": messages}, Conversation).startswith(said)


def test_tools_may_answer_and_calls_need_no_content():
    messages = [USER, CALL, {"role": "tool", "content": ""}, ANSWER]
    check_messages(messages, "here", "messages", ends="assistant")
    check_messages(messages[:-1], "here", "prompt", ends="user")
    bare = [USER, {k: v for k, v in CALL.items() if k != "content"}]
    check_messages(bare, "here", "messages", ends="assistant")


def test_the_names_of_another_format_and_what_came_before():
    with pytest.raises(XwinError, match=r"field conversations\[1\]\.value: the answer is empty"):
        turns = [USER, {**ANSWER, "content": ""}]
        check_messages(turns, "here", "conversations", ends="assistant", names=("from", "value"))
    check_messages([ANSWER], "here", "chosen", ends="assistant", before="user")
    with pytest.raises(XwinError, match=r"field chosen\[0\]\.role: a system message stands first"):
        said = [{"role": "system", "content": "s"}, ANSWER]
        check_messages(said, "here", "chosen", ends="assistant", before="user")


def test_what_a_pair_and_a_group_must_hold():
    pair = {"prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": " "}]}
    assert refusal(pair, Pair).startswith("rejected[0].content: the answer is empty")
    assert refusal({**pair, "rejected": [ANSWER]}, Pair) == "rejected: is equal to chosen"
    assert refusal({**pair, "prompt": [USER, ANSWER]}, Pair).startswith("prompt: a prompt ends with the user")
    assert refusal({"prompt": [USER], "responses": []}, Group).startswith("responses: a group without")
    assert refusal({"prompt": [USER], "responses": [{}]}, Group) == "responses[0].text: is missing"
    wrong = {"prompt": [USER], "responses": [{"text": "x", "scores": {"rm": "1"}}]}
    assert refusal(wrong, Group).startswith("responses[0].scores[...]: Expected `float`")
    assert refusal({"responses": []}, Group) == "prompt: is missing"
