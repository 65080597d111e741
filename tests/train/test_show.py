"""--show: the exact text with its loss mask, the colours of a terminal, and that nothing is made."""

from __future__ import annotations

import io
import json
import sys

import pytest

import micro
from xwincli import flags
from xwincli.rows import Branch
from xwincli.stages import dpo, sft, train_rm
from xwincli.train import show
from xwincli.train.comparisons import Comparisons

CPU = {"device": "cpu", "dtype": "float32", "out": "out", "batch": 2}


def said(role: str, text: str) -> list[dict]:
    return [{"role": role, "content": text}]


TALK = {"messages": said("user", "why ?") + said("assistant", "because .")}
PAIR = {"prompt": said("user", "why ?"), "chosen": said("assistant", "because ."), "rejected": said("assistant", "no")}
PROMPT = "<|im_start|>user\nwhy ?<|im_end|>\n<|im_start|>assistant\n"


def shown(stage, rows: list[dict], policy, tmp_path, monkeypatch, capsys, **options) -> list[str]:
    """The blocks that are printed, one a row."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    stage.run(flags.build(stage.Config, {**CPU, "model": str(policy), "data": ["d.jsonl"], "show": 9, **options}))
    assert [p.name for p in tmp_path.iterdir()] == ["d.jsonl"], "nothing is made"
    return capsys.readouterr().err.split("row ")[1:]


def test_a_conversation_with_its_mask(policy, tmp_path, monkeypatch, capsys):
    (block,) = shown(sft, [TALK], policy, tmp_path, monkeypatch, capsys)
    tok = micro.tokenizer()
    learned = len(tok("because .")["input_ids"]) + 1
    whole = len(tok(PROMPT)["input_ids"]) + learned
    assert block == f"1 of 1: {whole} tokens, {learned} learned\n{PROMPT}[[because .<|im_end|>]]\n\n"


def test_as_many_rows_as_asked_for_and_no_training_after(policy, tmp_path, monkeypatch, capsys):
    talks = [{"messages": [*TALK["messages"], *said("user", f"{w} ?"), *said("assistant", w)]} for w in ("tea", "fox")]
    assert len(shown(sft, talks, policy, tmp_path, monkeypatch, capsys, show=1)) == 1
    (_, block) = shown(sft, talks, policy, tmp_path, monkeypatch, capsys, show=2)
    assert "[[because .<|im_end|>]]\n<|im_start|>user\nfox ?<|im_end|>" in block
    assert block.endswith("[[fox<|im_end|>]]\n\n")


def test_a_turn_without_weight_is_not_marked(policy, tmp_path, monkeypatch, capsys):
    muted = {"messages": [TALK["messages"][0], {**TALK["messages"][1], "weight": 0}, *TALK["messages"]]}
    (block,) = shown(sft, [muted], policy, tmp_path, monkeypatch, capsys)
    assert block.count("[[") == 1
    assert block.endswith("[[because .<|im_end|>]]\n\n")


def test_a_pair_shows_prompt_chosen_and_rejected(policy, tmp_path, monkeypatch, capsys):
    (block,) = shown(dpo, [PAIR], policy, tmp_path, monkeypatch, capsys)
    wanted = f"prompt:\n{PROMPT}\nchosen:\n[[because .<|im_end|>]]\nrejected:\n[[no<|im_end|>]]\n\n"
    assert block.partition("\n")[2] == wanted


def test_a_reward_model_is_marked_where_its_score_is_read(policy, tmp_path, monkeypatch, capsys):
    (block,) = shown(train_rm, [PAIR], policy, tmp_path, monkeypatch, capsys)
    wanted = f"prompt:\n{PROMPT}\nresponse 1, preferred to 2:\nbecause .<|im_end|>[[\n]]\n"
    assert block.partition("\n")[2] == wanted + "response 2:\nno<|im_end|>[[\n]]\n\n"


def test_what_is_up_to_date_is_shown_all_the_same(policy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.jsonl").write_text(json.dumps(TALK) + "\n")
    given = {**CPU, "model": str(policy), "data": ["d.jsonl"]}
    sft.run(flags.build(sft.Config, given))
    capsys.readouterr()
    sft.run(flags.build(sft.Config, {**given, "show": 1}))
    assert "[[because .<|im_end|>]]" in capsys.readouterr().err


def test_the_first_token_of_a_row_is_never_a_target():
    assert show.marks(Branch([], [[1, 2, 3]]), 0) == [False, True, True]
    assert show.marks(Branch([9], [[1, 2, 3]]), 0) == [True, True, True]
    assert show.marks(Branch([], [[1, 2, 3]], [[True, False, True]]), 0) == [False, False, True]


def test_sides_are_called_by_whom_they_beat():
    sides = [("a", True), ("b", True), ("c", True)]
    item = Comparisons("p", [], sides, [(2, 0, 1.0, 0.0), (2, 1, 1.0, 0.0), (1, 0, 1.0, 0.0)])
    assert show.sides(item) == ["response 1", "response 2, preferred to 1", "response 3, preferred to 1, 2"]


def test_colours_follow_the_mask_and_special_tokens_stand_out():
    tok = micro.tokenizer()
    ids = tok("why ?<|im_end|>because .<|im_end|>")["input_ids"]
    turn = ids.index(tok.eos_token_id) + 1
    text = show.coloured(ids, [False] * turn + [True] * (len(ids) - turn), tok)
    parts = [(text.plain[s.start : s.end], str(s.style)) for s in text.spans]
    assert parts == [
        ("why ?", "dim"), ("<|im_end|>", "dim bold"), ("because .", "green"), ("<|im_end|>", "green bold")
    ]  # fmt: skip


@pytest.mark.parametrize("terminal", [True, False])
def test_colours_are_for_terminals_and_brackets_for_files(monkeypatch, terminal):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    tok = micro.tokenizer()
    show.show([Branch([], [tok("why ? because .")["input_ids"]])], tok, 1)
    assert ("\x1b[32m" in stream.getvalue(), "[[" in stream.getvalue()) == (terminal, not terminal)
