"""xwin check: counts, lengths, every problem with its place, and the exit code that says so."""

from __future__ import annotations

import json

import pytest

from xwincli.contamination import Against
from xwincli.errors import XwinError
from xwincli.stages.check import Config, run


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Report on rows (or raw text) as JSON: the report of the one file, and whether it failed."""
    monkeypatch.chdir(tmp_path)

    def call(*rows, name="x.jsonl", **options):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        failed = False
        try:
            run(Config(data=[name], json=True, **options))
        except XwinError as e:
            failed = bool(e.code)
        (report,) = json.loads(capsys.readouterr().out)["files"]
        assert failed == bool(report["problem_count"])
        return report

    return call


def test_conversations(check):
    long, short = {"instruction": "abc", "output": "d"}, {"instruction": "a", "output": "bc"}
    report = check(long, short, long)
    assert (report["format"], report["kind"], report["rows"]) == ("alpaca", "conversation", 3)
    assert (report["messages"], report["answers"], report["duplicate_rows"]) == (6, 3, 1)
    assert report["lengths"] == {"characters": {"min": 3, "median": 4, "mean": 3.6667, "max": 4}}


def test_groups(check):
    report = check(
        {"prompt": "q", "completions": ["aa", "aa", " "], "scores": [1, 2, None]},
        {"prompt": "q", "completions": ["abcd"], "scores": [6]},
    )
    assert (report["kind"], report["rows"], report["distinct_prompts"]) == ("group", 2, 1)
    assert (report["responses"], report["duplicate_responses"], report["empty_responses"]) == (4, 1, 1)
    assert report["lengths"]["responses_per_prompt"] == {"min": 1, "median": 2, "mean": 2, "max": 3}
    assert report["lengths"]["response_characters"] == {"min": 1, "median": 2, "mean": 2.25, "max": 4}
    assert report["scores"] == {"score": {"count": 3, "min": 1, "median": 2, "mean": 3, "max": 6}}


def test_pairs(check):
    report = check(
        {"prompt": "q", "chosen": "aaa", "rejected": "b", "score_chosen": 1, "score_rejected": 2},
        {"prompt": "r", "chosen": "a", "rejected": "b", "score_chosen": 2, "score_rejected": 1},
    )
    assert (report["kind"], report["chosen_scored_lower"], report["distinct_prompts"]) == ("pair", 1, 2)
    assert report["lengths"]["chosen_characters"]["mean"] == 2


def test_every_problem_is_told_with_its_place(check):
    good = {"messages": [user("q"), said("a")]}
    report = check(good, "{bad", good, {"messages": []}, {"id": "x"}, '{"messages": NaN}', good)
    assert (report["rows"], report["problem_count"]) == (3, 4)
    places = [p.split(": ")[0] for p in report["problems"]]
    assert sorted(places) == ["x.jsonl:2", "x.jsonl:4", "x.jsonl:5", "x.jsonl:6"]
    report = check(good, *[{"id": "x"}] * 9, problems=2)
    assert (report["problem_count"], len(report["problems"])) == (9, 2)


def test_a_first_row_that_is_broken_does_not_hide_the_format(check):
    report = check("{bad", {"messages": [user("q"), said("a")]})
    assert (report["format"], report["rows"], report["problem_count"]) == ("messages", 1, 1)


def test_one_id_for_two_contents(check):
    def row(id, answer):
        return {"id": id, "messages": [user("q"), said(answer)]}

    report = check(row(1, "a"), row("1", "b"), row(2, "c"), row(2, "c"))
    assert report["problems"] == ["x.jsonl:2: field id: '1' is also that of line 1, which differs"]
    assert report["duplicate_rows"] == 1
    report = check("[" + json.dumps(row(1, "a")) + "," + json.dumps(row(1, "b")) + "]", name="x.json")
    assert report["problems"] == ["x.json[1]: field id: '1' is also that of element 0, which differs"]


def test_files_without_rows_or_a_known_format(check):
    assert check("")["problems"] == ["x.jsonl: no rows"]
    report = check({"a": 1})
    assert (report["format"], report["kind"], report["problem_count"]) == (None, None, 1)


def test_a_format_can_be_forced(check):
    row = {"messages": [user("q"), said("a")], "question": "q", "answer": "abc"}
    assert check(row)["format"] == "messages"
    report = check(row, format="question-answer")
    assert (report["format"], report["lengths"]["characters"]["max"]) == ("question-answer", 4)


def test_prompts_that_an_evaluation_set_holds(check, tmp_path):
    (tmp_path / "eval.jsonl").write_text(json.dumps({"prompt": "name the four seasons of a year"}) + "\n")
    rows = [{"prompt": "hello"}, {"prompt": "please NAME the four, seasons !"}]
    against = Against(against=["eval.jsonl"], ngram=4)
    report = check(*rows, against=against)
    assert report["problems"] == ["x.jsonl:2: shares “name the four seasons” with eval.jsonl, prompt 1"]
    assert check(*rows, against=Against(against=["eval.jsonl"], ngram=5))["problem_count"] == 0
    assert report["contaminated_prompts"] == 1
    (tmp_path / "eval.jsonl").write_text(json.dumps({"prompt": "?"}) + "\n")
    with pytest.raises(XwinError, match=r"eval.jsonl: no words"):
        run(Config(data=["x.jsonl"], against=against))


def test_lengths_in_tokens(check, policy):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    count = lambda text: len(tokenizer(text)["input_ids"])
    prompt = "<|im_start|>user\nwhy ?<|im_end|>\n<|im_start|>assistant\n"
    folder = str(policy)
    report = check({"messages": [user("why ?"), said("the rain .")]}, tokenizer=folder)
    assert report["lengths"]["tokens"]["max"] == count(prompt + "the rain .<|im_end|>")
    report = check({"prompt": "why ?", "chosen": "the rain .", "rejected": "tea"}, tokenizer=folder)
    assert report["lengths"]["prompt_tokens"]["max"] == count(prompt)
    # a response ends with the template's tail, which learning leaves out and scoring may keep
    assert report["lengths"]["chosen_tokens"]["max"] - count("the rain .<|im_end|>") in (0, count("\n"))
    report = check({"prompt": "why ?", "responses": [{"text": "tea", "finish": "length"}]}, tokenizer=folder)
    assert report["lengths"]["response_tokens"]["max"] == count("tea")


def test_usage():
    for config in (Config(), Config(data=["x"], model="y")):
        with pytest.raises(XwinError, match="name either"):
            run(config)


def test_on_the_command_line(tmp_path, xwin, policy):
    (tmp_path / "x.jsonl").write_text(json.dumps({"messages": [user("q"), said("a")]}) + "\n")
    done = xwin("check", "--data", "x.jsonl")
    assert done.stdout == ""
    assert "  format: messages\n  kind: conversation\n  rows: 1\n" in done.stderr
    (tmp_path / "y.jsonl").write_text("{}\n")
    done = xwin("check", "--data", "?.jsonl", "--json", code=1)
    assert [f["problem_count"] for f in json.loads(done.stdout)["files"]] == [0, 1]
    assert done.stderr == "error: 1 problem found\n"
    done = xwin("check", "--model", policy, "--json")
    assert json.loads(done.stdout)["architecture"] == "LlamaForCausalLM"
    xwin("check", "--model", "nowhere", code=1)
