"""Every known layout becomes the right record, is refused by field, and is held to over a whole file."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest

from xwincli import formats
from xwincli.errors import XwinError
from xwincli.formats.table import TABLE
from xwincli.records import Conversation, Group, Judgement, Pair, Prompt, prompt_id


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "s"}
TALK = [user("q"), said("a")]
FROM = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


@pytest.fixture
def load(tmp_path):
    """Write rows and read them: ``load(row, …, kind=…, format=…)``."""

    def call(*rows, kind=None, format="auto", limit=0):
        path = tmp_path / "x.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        read = formats.read_any if kind is None else lambda data, **o: formats.read(data, kind, **o)
        return list(read([str(path)], as_format=format, limit=limit))

    return call


@pytest.fixture
def refuse(load, tmp_path):
    """The message of a refusal, without the folder's name."""

    def call(*rows, **options):
        with pytest.raises(XwinError) as e:
            load(*rows, **options)
        return e.value.message.removeprefix(f"{tmp_path}/")

    return call


CONVERSATIONS = [
    ("messages", {"messages": TALK}, TALK),
    ("messages", {"messages": [{**m, "name": None} for m in TALK]}, TALK),
    ("messages", {"messages": [user([{"type": "text", "text": "q"}]), said("a")]}, TALK),
    ("messages", {"messages": [user([{"type": "text", "value": "q"}, {"type": "text", "text": "r"}]), said("a")]},
     [user("qr"), said("a")]),
    ("messages", {"messages": [{**user("q"), "loss_weight": 0.0}, {**said("a"), "loss_weight": 1.0}]}, TALK),
    ("messages", {"messages": [*TALK, user("r"), {**said("b"), "loss_weight": 0.0}]},
     [*TALK, user("r"), {**said("b"), "weight": 0.0}]),
    ("sharegpt", {"conversations": FROM}, TALK),
    ("sharegpt", {"conversations": FROM, "system": "s"}, [SYSTEM, *TALK]),
    ("sharegpt", {"conversations": FROM, "system": None}, TALK),
    ("sharegpt", {"conversations": [{"from": "system", "value": "s"}, *FROM]}, [SYSTEM, *TALK]),
    ("sharegpt", {"conversations": TALK}, TALK),
    ("alpaca", {"instruction": "q", "input": "", "output": "a"}, TALK),
    ("alpaca", {"instruction": "q", "input": None, "output": "a"}, TALK),
    ("alpaca", {"instruction": "q", "output": "a"}, TALK),
    ("alpaca", {"instruction": "q", "input": "i", "output": "a"}, [user("q\ni"), said("a")]),
    ("alpaca", {"instruction": "q", "output": "a", "system": "s", "history": [["h", "i"]]},
     [SYSTEM, user("h"), said("i"), *TALK]),
    ("dolly", {"instruction": "q", "context": "c", "response": "a"}, [user("q\nc"), said("a")]),
    ("instruction-response", {"instruction": "q", "response": "a"}, TALK),
    ("question-answer", {"question": "q", "answer": "a"}, TALK),
    ("problem-solution", {"problem": "q", "solution": "a"}, TALK),
    ("question-response", {"system_prompt": "s", "question": "q", "response": "a"}, [SYSTEM, *TALK]),
    ("query-response", {"query": "q", "response": "a"}, TALK),
    ("input-output", {"input": "q", "output": "a"}, TALK),
    ("prompt-response", {"prompt": "q", "response": "a"}, TALK),
    ("prompt-completion", {"prompt": "q", "completion": "a"}, TALK),
    ("prompt-completion", {"prompt": [user("q")], "completion": [said("a")]}, TALK),
    ("seed-tasks", {"instruction": "q", "instances": [{"input": "i", "output": "a"}]}, [user("q\ni"), said("a")]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "messages"), CONVERSATIONS)
def test_conversations(load, name, row, messages):
    (record,) = load({"id": 7, **row, "source": "web"})
    assert isinstance(record, Conversation)
    assert record.messages == messages
    assert record.id == "7"
    assert record.extra == {"source": "web"}
    (prompt,) = load(row, kind=Prompt)
    assert prompt.prompt == messages[:-1]
    assert prompt.id == prompt_id(messages[:-1])
    assert load(row, format=name, kind=Conversation)[0].messages == messages


PAIRS = [
    {"prompt": "q", "chosen": "a", "rejected": "b"},
    {"prompt": [user("q")], "chosen": [said("a")], "rejected": [said("b")]},
    {"prompt": [user("q")], "chosen": said("a"), "rejected": said("b")},
    {"chosen": [user("q"), said("a")], "rejected": [user("q"), said("b")]},
    {"prompt": "q ", "prompt_id": "p", "messages": TALK, "chosen": TALK, "rejected": [user("q"), said("b")]},
    {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": "a", "rejected": "b"},
    {"conversations": FROM[:1], "chosen": FROM[1], "rejected": {"from": "gpt", "value": "b"}},
    {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"},
    {"input": {"messages": [user("q")]}, "preferred_output": [said("a")], "non_preferred_output": [said("b")]},
    {"chosen_messages": TALK, "rejected_messages": [user("q"), said("b")]},
    {"question": "q", "response_j": "a", "response_k": "b"},
]


@pytest.mark.parametrize("row", PAIRS)
def test_pairs(load, row):
    (record,) = load(row)
    assert isinstance(record, Pair)
    assert (record.prompt, record.chosen, record.rejected) == ([user("q")], [said("a")], [said("b")])
    assert record.margin is None
    assert record.extra == {}
    (prompt,) = load(row, kind=Prompt)
    assert (prompt.prompt, prompt.id) == ([user("q")], record.prompt_id)


@pytest.mark.parametrize(
    ("better", "worse"),
    [("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen-rating", "rejected-rating")],
)
def test_scores_of_pairs(load, refuse, better, worse):
    (record,) = load({**PAIRS[0], better: 5, worse: 2.5, "margin": 9})
    assert (record.score_chosen, record.score_rejected, record.margin) == (5.0, 2.5, 9.0)
    assert f"field {better}: expected a number, got text" in refuse({**PAIRS[0], better: "5"})


@pytest.mark.parametrize(
    ("row", "said_"),
    [
        ({"chosen": "x", "rejected": "y"}, "field prompt: is missing"),
        ({"prompt": "q", "chosen": "x", "rejected": [said("y")]}, "field rejected: is a list where chosen is text"),
        ({"chosen": TALK, "rejected": [user("r"), said("b")]}, "field rejected: its prompt differs"),
        ({"chosen": [*TALK, user("r")], "rejected": [*TALK, user("r")]}, "field chosen: ends with user"),
        ({"chosen": [said("a")], "rejected": [said("b")]}, "field chosen[0].role: the assistant cannot speak"),
        ({"prompt": "other", "chosen": TALK, "rejected": [user("q"), said("b")]}, "field prompt: is not what"),
        ({"prompt": "q", "chosen": "x", "rejected": "x"}, "field rejected: is equal to chosen"),
        ({"prompt": "q", "chosen": "x", "rejected": " "}, "field rejected: is empty"),
        ({"prompt": "q", "chosen": 3, "rejected": "y"}, "field chosen: expected a list of messages, got a number"),
        ({"input": {}, "preferred_output": [], "non_preferred_output": []}, "field input.messages: is missing"),
        ({"input": "q", "preferred_output": [], "non_preferred_output": []}, "field input: expected an object"),
    ],
)
def test_pairs_that_are_none(refuse, row, said_):
    assert refuse(row).startswith(f"x.jsonl:1: {said_}")


GROUPS = [
    {"prompt": "q", "completions": ["a", "b"], "scores": [0.5, None]},
    {"prompt": "q", "completions": [{"text": "a", "score": 0.5}, {"response": "b", "score": None}]},
    {"prompt": [user("q")], "responses": [{"text": "a", "scores": {"score": 0.5}}, "b"]},
    {"raw_text": "q", "completions": ["a", "b"], "scores": [0.5, None]},
]


@pytest.mark.parametrize("row", GROUPS)
def test_groups(load, row):
    (record,) = load(row)
    assert isinstance(record, Group)
    assert record.prompt == [user("q")]
    assert [(r.text, r.index, r.scores) for r in record.responses] == [("a", 0, {"score": 0.5}), ("b", 1, {})]
    assert load(row, kind=Prompt)[0].id == record.prompt_id == prompt_id([user("q")])


@pytest.mark.parametrize(
    ("change", "said_"),
    [
        ({"scores": [1]}, "field scores: has 1 entries for 2 responses"),
        ({"scores": [None, None]}, "field scores: every score is null"),
        ({"scores": [[1], [2]]}, "field scores[0]: expected a number, got a list"),
        ({"scores": [True, 1]}, "field scores[0]: expected a number, got a truth value"),
        ({"scores": "12"}, "field scores: expected a list, got text"),
        ({"completions": []}, "field completions: is an empty list"),
        ({"completions": ["a", 3]}, "field completions[1]: expected text or an object, got a number"),
        ({"completions": ["a", {}]}, "field completions[1].text: is missing"),
    ],
)
def test_groups_that_are_none(refuse, change, said_):
    assert refuse({"prompt": "q", "completions": ["a", "b"], **change}).startswith(f"x.jsonl:1: {said_}")


def test_candidates_of_several_models(load):
    answers = [{"model": "m", "completion": "a"}, {"model": "n", "completion": "b"}]
    row = {"id": "t", "prompt": "q", "completions": answers}
    assert [r.extra["model"] for r in load(row)[0].responses] == ["m", "n"]
    row = {"raw_text": "q", "models": ["m", "n"], "completions": ["a", "b"]}
    assert [r.extra["model"] for r in load(row)[0].responses] == ["m", "n"]


def test_ultrafeedback_ratings_become_scores(load):
    notes = {"honesty": {"Rating": "5", "Rationale": "r"}, "helpfulness": {"Rating": "N/A"}, "truth": {"Rating": "4.5"}}
    answer = {"model": "m", "response": "a", "annotations": notes, "overall_score": 8.5, "custom_system_prompt": "c"}
    (record,) = load({"instruction": "q", "models": ["m"], "completions": [answer], "source": "s"})
    assert record.responses[0].scores == {"honesty": 5.0, "truth": 4.5, "overall_score": 8.5}
    assert record.responses[0].extra == {"model": "m", "annotations": notes, "custom_system_prompt": "c"}


def test_alpaca_eval_outputs(load, refuse):
    row = {"instruction": "q", "output": "", "generator": "m", "dataset": "d"}
    (record,) = load(row)
    assert (record.prompt, record.model, record.responses[0].text) == ([user("q")], "m", "")
    assert record.extra == {"dataset": "d"}
    assert load({**row, "output": "a"}, kind=Conversation)[0].messages == TALK
    assert "x.jsonl:2: field instruction: is missing" in refuse(row, {"output": "a", "generator": "m"})


def test_open_instruct_samples_and_scored_completions(load):
    row = {"messages": TALK, "model_completion": "b", "reference_completion": "a", "score": 2}
    (record,) = load(row)
    assert (record.prompt, record.reference) == ([user("q")], "a")
    assert (record.responses[0].text, record.responses[0].scores) == ("b", {"score": 2.0})
    (record,) = load({"prompt": "q", "completion": [said("b")], "score": -1})
    assert (record.responses[0].text, record.responses[0].scores) == ("b", {"score": -1.0})


def test_candidates_one_a_row_share_an_id_and_its_prompt(load, refuse):
    one, two = ({"id": "c", "prompt": "q", "completion": c, "score": 1} for c in "ab")
    assert [r.id for r in load(one, two)] == ["c", "c"]
    assert "x.jsonl:2: field prompt: another row of id 'c' has another" in refuse(one, {**two, "prompt": "other"})


def test_arena_hard_questions_and_answers(load):
    (prompt,) = load({"uid": "u", "category": "c", "prompt": "q"})
    assert (prompt.id, prompt.category, prompt.prompt) == ("u", "c", [user("q")])
    answer = {"role": "assistant", "content": {"answer": "a"}}
    (group,) = load({"uid": "u", "ans_id": "x", "model": "m", "messages": [user("q"), answer], "metadata": {}})
    assert (group.id, group.model, group.prompt, group.responses[0].text) == ("u", "m", [user("q")], "a")


def test_mt_bench_questions(load):
    row = {"question_id": 81, "category": "math", "turns": ["q", "then"], "reference": ["4", "5"]}
    (record,) = load(row)
    assert (record.id, record.prompt, record.category, record.reference) == ("81", [user("q")], "math", "4")
    assert record.extra == {"turns": ["then"], "references": ["5"]}
    (record,) = load({"question_id": "x", "turns": [{"content": "q"}]})
    assert (record.id, record.prompt, record.reference, record.extra) == ("x", [user("q")], None, {"turns": []})


def test_prompts_alone(load):
    for row in ({"prompt": "q"}, {"prompt": [user("q")]}, {"instruction": "q"}, {"question": "q"}):
        (record,) = load(row)
        assert isinstance(record, Prompt)
        assert record.prompt == [user("q")]
    assert load({"prompt": [user("q")], "system": "s"})[0].prompt == [SYSTEM, user("q")]
    assert load({"prompt": "q", "checks": [{"kind": "k"}]})[0].checks == [{"kind": "k"}]


def test_known_answers_become_references(load):
    assert load({"question": "q", "answer": "#### 4"}, kind=Prompt)[0].reference == "#### 4"
    assert load({"instruction": "q", "output": "a"}, kind=Prompt)[0].reference is None
    row = {"messages": [user("q")], "ground_truth": "8", "dataset": "gsm8k", "constraint": None}
    (record,) = load(row)
    assert isinstance(record, Prompt)
    assert (record.prompt, record.reference) == ([user("q")], "8")
    assert load({**row, "ground_truth": ["8"]})[0].extra["ground_truth"] == ["8"]


@pytest.mark.parametrize("rest", [{"messages": TALK}, {"prompt": "q", "completion": "a"}])
def test_unpaired_rows_are_groups_scored_by_label(load, refuse, rest):
    good, bad = load({**rest, "label": True}, {**rest, "label": False})
    assert (good.prompt, good.responses[0].text, good.responses[0].scores) == ([user("q")], "a", {"label": 1.0})
    assert bad.responses[0].scores == {"label": 0.0}
    assert load({**rest, "label": True}, kind=Conversation)[0].messages == TALK
    wrong = refuse({**rest, "label": True}, {**rest, "label": False}, kind=Conversation)
    assert wrong == "x.jsonl:2: field label: is false: not an answer to learn from"
    assert "field label: expected true or false, got text" in refuse({**rest, "label": "false"})


def test_tools_called_and_answered(load, refuse):
    call = {"name": "f", "arguments": {"x": 1}}
    turns = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": json.dumps(call)},
        {"from": "observation", "value": "4"},
        {"from": "gpt", "value": "a"},
    ]
    made = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}
    expected = [user("q"), made, {"role": "tool", "content": "4"}, said("a")]
    (record,) = load({"conversations": turns, "tools": '[{"name": "f"}]'})
    assert record.messages == expected
    assert record.extra == {"tools": [{"name": "f"}]}
    assert load({"conversations": turns, "tools": ""})[0].extra == {}
    assert load({"conversations": turns[:3]}, kind=Prompt)[0].prompt == expected[:3]
    turns[1] = {"from": "function_call", "value": "not json"}
    assert "field conversations[1].value: a tool call is JSON" in refuse({"conversations": turns})
    assert "field tools: expected a list" in refuse({"messages": TALK, "tools": "{"})
    parts = [{"type": "reasoning", "value": "hm"}, {"type": "tool_call", "value": json.dumps(call)}]
    (record,) = load({"messages": [user("q"), {"role": "assistant", "content": parts}]})
    assert record.messages[1] == {**made, "reasoning_content": "hm"}


@pytest.mark.parametrize(
    ("row", "said_"),
    [
        ({"conversations": []}, "field conversations: is an empty list"),
        ({"conversations": ["hi"]}, "field conversations[0]: a turn is an object"),
        ({"conversations": [{"value": "q"}]}, "field conversations[0].from: is missing"),
        ({"conversations": [{"from": "alien", "value": "q"}]}, "field conversations[0].from: 'alien' is no speaker"),
        ({"conversations": [{"from": [], "value": "q"}]}, "field conversations[0].from: [] is no speaker"),
        ({"conversations": [FROM[0], {"from": "gpt", "value": None}]}, "field conversations[1].value: expected text"),
        ({"conversations": [FROM[0], {"from": "gpt", "value": " "}]}, "field conversations[1].value: the answer is"),
        ({"conversations": FROM[1:]}, "field conversations[0].from: the assistant cannot speak"),
        ({"conversations": FROM[:1]}, "field conversations: ends with user"),
        ({"conversations": [{"from": "system", "value": "t"}, *FROM], "system": "s"}, "field conversations[0].from: a"),
        ({"instruction": "q", "output": ""}, "field output: is empty"),
        ({"instruction": 4, "output": "a"}, "field instruction: expected text, got a number"),
        ({"instruction": "q", "input": 4, "output": "a"}, "field input: expected text, got a number"),
        ({"instruction": "q", "output": "a", "history": ["h"]}, "field history[0]: is no pair"),
        ({"messages": [user([{"type": "image_url"}]), said("a")]}, "field messages[0].content[0].type: 'image_url'"),
        ({"messages": [user(["q"]), said("a")]}, "field messages[0].content[0]: a content part is an object"),
        ({"messages": [user([{"type": "text"}]), said("a")]}, "field messages[0].content[0].text: is missing"),
        ({"instruction": "q", "instances": [{}, {}]}, "field instances: has 2 instances"),
        ({"question_id": 1, "turns": [3]}, "field turns[0].content: expected text, got a number"),
        ({"id": {}, "messages": TALK}, "field id: Expected `str`"),
        ({}, "field messages or prompt: is missing; the fields are: none at all"),
        ({"a": 1, "b": 2}, "field messages or prompt: is missing; the fields are: a, b"),
    ],
)
def test_rows_are_refused_by_field(refuse, row, said_):
    assert refuse(row).startswith(f"x.jsonl:1: {said_}")


@pytest.mark.parametrize(
    "row",
    [
        {"text": "The sky is blue."},
        {"prompt": "q", "completions": ["step", "step"], "labels": [True, False]},
        {"question_id": 1, "answer_id": "x", "text": "a"},
        {"question_id": 1, "answer_id": "x", "choices": []},
        {"instruction": "q", "output_1": "a", "output_2": "b", "preference": 1.5},
    ],
)
def test_files_without_a_conversation_are_named_for_what_they_are(refuse, row):
    assert refuse(row).startswith("x.jsonl:1: looks like ")


def test_every_row_is_held_to_the_format_of_the_first(refuse):
    assert refuse({"messages": TALK}, {"id": "x"}) == "x.jsonl:2: field messages: is missing"
    assert refuse({"instruction": "q", "output": "a"}, {"messages": TALK}) == "x.jsonl:2: field instruction: is missing"
    canonical = {"kind": "prompt", "prompt": [user("q")]}
    assert refuse(canonical, {"prompt": [user("q")]}) == "x.jsonl:2: field kind: is missing"
    assert "field kind: is 'group' in a file of 'prompt'" in refuse(canonical, {"kind": "group"})


def test_a_format_can_be_forced(load, refuse):
    row = {"messages": TALK, "instruction": "q", "output": "b"}
    assert load(row)[0].messages == TALK
    assert load(row, format="alpaca")[0].messages == [user("q"), said("b")]
    assert refuse(row, format="sharegpt") == "x.jsonl:1: field conversations: is missing"
    assert "--format 'nonsense' is not known" in refuse(row, format="nonsense")


def test_what_cannot_become_the_wanted_kind_says_which_stage_helps(load, tmp_path):
    cases = [
        ({"prompt": "q"}, Conversation, "xwin sample"),
        ({"prompt": "q"}, Group, "xwin sample"),
        (GROUPS[0], Conversation, "xwin rs-filter"),
        (GROUPS[0], Pair, "xwin rs-filter --emit pairs"),
        ({"messages": TALK}, Pair, "a pair needs two"),
        (PAIRS[0], Conversation, "jq"),
    ]
    for row, kind, hint in cases:
        with pytest.raises(XwinError) as e:
            load(row, kind=kind)
        assert "x.jsonl:1: holds a " in e.value.message
        assert hint in e.value.hint


def test_a_conversation_is_a_group_of_one_and_a_judgement_has_a_prompt(load):
    (group,) = load({"id": "c", "messages": TALK}, kind=Group)
    assert (group.id, group.prompt, [r.text for r in group.responses]) == ("c", [user("q")], ["a"])
    game = {"first": "a", "preference": 1}
    row = {"kind": "judgement", "prompt": [user("q")], "a": {}, "b": {}, "games": [game], "reference": "r"}
    assert isinstance(load(row)[0], Judgement)
    (prompt,) = load(row, kind=Prompt)
    assert (prompt.id, prompt.reference) == (prompt_id([user("q")]), "r")


def test_limit_counts_over_files_and_stops_before_what_follows(load, tmp_path, capsys):
    assert len(load({"messages": TALK}, {"messages": TALK}, {"bad": 1}, limit=2)) == 2
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(json.dumps([{"instruction": "q", "output": name}] * 3))
    data = [str(tmp_path / "?.json")]
    assert [r.messages[1]["content"] for r in formats.read(data, Conversation, limit=4)] == ["a.json"] * 3 + ["b.json"]
    said_ = capsys.readouterr().err
    assert "a.json: alpaca, 3 rows read as conversations" in said_
    assert "b.json: alpaca, 1 rows read as conversations" in said_


def test_a_file_is_validated_before_its_first_row_and_a_stream_as_it_comes(tmp_path, monkeypatch, capsys):
    text = json.dumps({"instruction": "q", "output": "a"}) + "\n{bad\n"
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(XwinError, match=r"x\.jsonl:2"):
        formats.read([str(tmp_path / "x.jsonl")], Conversation)
    assert next(formats.read([str(tmp_path / "x.jsonl")], Conversation, checked=False)).messages == TALK

    class Stdin:
        buffer = io.BufferedReader(io.BytesIO(text.encode()))

        def isatty(self):
            return False

    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", Stdin())
    rows = formats.read(["-"], Conversation)
    assert next(rows).messages == TALK
    assert capsys.readouterr().err == "standard input: alpaca, read as conversations\n"
    with pytest.raises(XwinError, match="standard input:2"):
        next(rows)


def test_our_own_layouts_are_read_without_a_word(load, capsys):
    load({"messages": TALK})
    load({"prompt": "q"})
    load(PAIRS[0])
    load({"kind": "conversation", "messages": TALK})
    assert capsys.readouterr().err == ""


def test_the_table_is_sound():
    names = [f.name for f in TABLE]
    assert len(names) == len(set(names))
    for i, f in enumerate(TABLE):
        assert bool(f.to) != bool(f.refusal)
        shadowing = [g.name for g in TABLE[:i] if set(g.needs) <= set(f.needs)]
        assert not shadowing, f"{f.name} can never be found behind {shadowing}"


CASES = os.environ.get("XWIN_CASES", "")


@pytest.mark.skipif(not CASES, reason="XWIN_CASES names no folder with real files")
@pytest.mark.parametrize("path", sorted(Path(CASES).rglob("inputs/*/*.json*")) if CASES else [], ids=str)
def test_real_files_are_read_or_refused_in_one_sentence(path):
    expected = [json.loads(line) for line in (path.parent.parent / "manifest.jsonl").open()]
    rows = next(m["rows"] for m in expected if m["file"] == f"{path.parent.name}/{path.name}")
    try:
        assert sum(1 for _ in formats.read_any([str(path)])) == rows
    except XwinError as e:
        assert path.name in {
            "answer_alpaca-13b.jsonl",
            "answer_vicuna-13b.jsonl",
            "language_modeling.jsonl",
            "preference_implicit.jsonl",
            "stepwise_supervision.jsonl",
        }, e.message


def test_count_is_what_read_yields_and_none_for_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt":"a"}\n\n{"prompt":"b"}\n{"prompt":"c"}\n')
    data = [str(tmp_path / "p.jsonl")] * 2
    assert formats.count(data, Prompt) == len(list(formats.read(data, Prompt))) == 6
    assert formats.count(data, Prompt, limit=4) == 4
    assert formats.count(["-"], Prompt) is None
