"""xwin convert: any layout in, canonical or another tool's layout out, whole or not at all."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwincli import formats
from xwincli.errors import XwinError
from xwincli.formats.export import TARGETS, export
from xwincli.records import KINDS, Conversation, Group, Pair, Prompt, decode, encode
from xwincli.stages.convert import Config, run


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


TALK = [user("q"), said("a")]
PAIR = {"prompt": [user("q")], "chosen": [said("a")], "rejected": [said("b")]}
GROUP = {"prompt": [user("q")], "responses": [{"text": "a"}, {"text": "b"}], "model": "m"}
TOOLS = [{"name": "f"}]


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_alpaca_becomes_canonical_and_a_second_run_does_nothing(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", {"instruction": "q", "input": "", "output": "a", "n": 1})
    out = tmp_path / "out.jsonl"
    run(Config(data=[source], out=str(out)))
    (row,) = rows(out)
    assert row == {"kind": "conversation", "id": row["id"], "messages": TALK, "n": 1}
    assert f"{source}: alpaca, 1 rows read as conversations" in capsys.readouterr().err
    made = json.loads((tmp_path / "out.jsonl.xwin.json").read_text())
    assert (made["stage"], made["counts"]) == ("convert", {"in": 1, "out": 1})
    run(Config(data=[source], out=str(out)))
    assert "up to date" in capsys.readouterr().err
    run(Config(data=[source], out=str(out), force=True))
    assert "up to date" not in capsys.readouterr().err


def test_canonical_lines_come_out_as_they_went_in(tmp_path):
    records = [decode({"messages": TALK, "x": [1]}, Conversation), decode({"messages": [*TALK, *TALK]}, Conversation)]
    source = write(tmp_path / "in.jsonl", *map(encode, records))
    run(Config(data=[source], out=str(tmp_path / "out.jsonl")))
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "in.jsonl").read_bytes().replace(b", ", b",").replace(
        b": ", b":"
    )


@pytest.mark.parametrize(
    ("to", "row", "expected"),
    [
        ("trl", {"id": "p", "prompt": "q", "x": 1}, [{"prompt": [user("q")]}]),
        ("trl", {"messages": TALK, "tools": TOOLS, "x": 1}, [{"messages": TALK, "tools": TOOLS}]),
        ("trl", {**PAIR, "score_chosen": 2, "x": 1}, [PAIR]),
        ("trl", {**PAIR, "margin": 2}, [{**PAIR, "margin": 2.0}]),
        (
            "trl",
            GROUP,
            [{"prompt": [user("q")], "completion": [said("a")]}, {"prompt": [user("q")], "completion": [said("b")]}],
        ),
        ("trl-implicit", PAIR, [{"chosen": TALK, "rejected": [user("q"), said("b")]}]),
        (
            "sharegpt",
            {"messages": [{"role": "system", "content": "s"}, *TALK]},
            [{"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}],
        ),
        (
            "sharegpt",
            PAIR,
            [
                {
                    "conversations": [{"from": "human", "value": "q"}],
                    "chosen": {"from": "gpt", "value": "a"},
                    "rejected": {"from": "gpt", "value": "b"},
                }
            ],
        ),
        ("openai", {"messages": TALK, "tools": TOOLS}, [{"messages": TALK, "tools": TOOLS}]),
        (
            "openai",
            PAIR,
            [
                {
                    "input": {"messages": [user("q")]},
                    "preferred_output": [said("a")],
                    "non_preferred_output": [said("b")],
                }
            ],
        ),
    ],
)
def test_layouts_of_other_tools(tmp_path, to, row, expected):
    source = write(tmp_path / "in.jsonl", row)
    run(Config(data=[source], out=str(tmp_path / "out.jsonl"), to=to))
    assert rows(tmp_path / "out.jsonl") == expected


def test_alpaca_eval_is_one_array_of_one_output_each(tmp_path):
    row = {"prompt": [user("q")], "responses": [{"text": "a\u2028"}], "model": "m", "dataset": "d", "x": 1}
    source = write(tmp_path / "in.jsonl", row, {**row, "prompt": [user("r")]})
    out = tmp_path / "model_outputs.json"
    run(Config(data=[source], out=str(out), to="alpaca-eval"))
    made = json.loads(out.read_text())
    assert made[0] == {"instruction": "q", "output": "a\u2028", "generator": "m", "dataset": "d"}
    assert [r["instruction"] for r in made] == ["q", "r"]
    again = list(formats.read([str(out)], Group))
    assert [(r.prompt, r.responses[0].text, r.model) for r in again] == [
        ([user("q")], "a\u2028", "m"),
        ([user("r")], "a\u2028", "m"),
    ]


@pytest.mark.parametrize(
    ("to", "row", "text"),
    [
        ("trl-implicit", {"messages": TALK}, "a conversation cannot be written as trl-implicit"),
        ("sharegpt", {"prompt": "q"}, "a prompt cannot be written as sharegpt"),
        ("openai", GROUP, "a group cannot be written as openai"),
        ("alpaca-eval", GROUP, "field responses: there are 2"),
        ("alpaca-eval", {**GROUP, "responses": ["a"], "model": None}, "field model: is missing"),
        ("alpaca-eval", {**GROUP, "prompt": [*TALK, user("r")], "responses": ["a"]}, "field prompt: has 3 messages"),
        ("alpaca-eval", {"messages": TALK}, "a conversation cannot be written as alpaca-eval"),
    ],
)
def test_a_combination_that_makes_no_sense_is_refused_and_leaves_nothing(tmp_path, to, row, text):
    source = write(tmp_path / "in.jsonl", row)
    with pytest.raises(XwinError, match=text):
        run(Config(data=[source], out=str(tmp_path / "out.jsonl"), to=to))
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


TEXT = st.text(min_size=1).filter(str.strip)
TALKS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3).map(
    lambda pairs: [m for asked, answer in pairs for m in (user(asked), said(answer))]
)
SYSTEM = st.lists(TEXT.map(lambda text: {"role": "system", "content": text}), max_size=1)


@given(SYSTEM, TALKS, TEXT, st.sampled_from(["canonical", "trl", "sharegpt", "openai", "trl-implicit"]))
def test_what_is_exported_is_read_back_equal(tmp_path_factory, system, talk, other, to):
    folder = tmp_path_factory.mktemp("trip")
    pair = {"prompt": [*system, *talk[:-1]], "chosen": talk[-1:], "rejected": [said(other)]}
    made = [] if to == "trl-implicit" else [decode({"messages": [*system, *talk]}, Conversation)]
    if talk[-1:] != [said(other)]:
        made.append(decode(pair, Pair))
    for i, record in enumerate(made):
        source = write(folder / f"{i}.jsonl", *export(record, to, "here"))
        (back,) = formats.read([source], type(record))
        if isinstance(record, Pair):
            assert (back.prompt, back.chosen, back.rejected) == (record.prompt, record.chosen, record.rejected)
        else:
            assert back.messages == record.messages


def test_tool_calls_survive_sharegpt(tmp_path):
    calls = [{"type": "function", "function": {"name": n, "arguments": {"x": 1}}} for n in "fg"]
    for made in (calls[:1], calls):
        turns = [user("q"), {"role": "assistant", "content": "", "tool_calls": made}]
        turns += [{"role": "tool", "content": "4"}, said("a")]
        record = decode({"messages": turns}, Conversation)
        source = write(tmp_path / "x.jsonl", *export(record, "sharegpt", "here"))
        assert next(formats.read([source], Conversation)).messages == turns


def test_every_target_names_kinds_that_exist():
    for kinds in TARGETS.values():
        assert set(kinds) <= {*KINDS.values(), *KINDS["prompt"].__mro__}


def test_the_kind_can_be_chosen(tmp_path):
    source = write(tmp_path / "in.jsonl", {"messages": TALK})
    run(Config(data=[source], out=str(tmp_path / "out.jsonl"), kind="prompt"))
    assert [type(r) for r in formats.read_any([str(tmp_path / "out.jsonl")])] == [Prompt]
    with pytest.raises(XwinError, match="holds a conversation, and a pair is needed"):
        run(Config(data=[source], out=str(tmp_path / "no.jsonl"), kind="pair"))


def test_the_format_and_the_number_of_rows_can_be_chosen(tmp_path):
    source = write(tmp_path / "in.jsonl", *[{"messages": TALK, "question": "r", "answer": "b"}] * 3)
    run(Config(data=[source], out=str(tmp_path / "out.jsonl"), format="question-answer", limit=2))
    assert [row["messages"] for row in rows(tmp_path / "out.jsonl")] == [[user("r"), said("b")]] * 2


def test_files_of_different_kinds_are_not_thrown_together(tmp_path):
    first, second = write(tmp_path / "a.jsonl", {"messages": TALK}), write(tmp_path / "b.jsonl", {"prompt": "q"})
    with pytest.raises(XwinError, match="the inputs hold conversations and prompts"):
        run(Config(data=[first, second], out=str(tmp_path / "out.jsonl")))
    assert not list(tmp_path.glob("*out*"))
    run(Config(data=[first, second], out=str(tmp_path / "out.jsonl"), kind="prompt"))
    assert len(rows(tmp_path / "out.jsonl")) == 2


def test_usage():
    with pytest.raises(XwinError, match="two different conversions"):
        run(Config(data=["x"], model="y"))
    with pytest.raises(XwinError, match="--out is required"):
        run(Config(model="y"))


# -- as a user runs it


def test_from_pipe_to_pipe(xwin):
    line = json.dumps({"instruction": "q", "output": "a"}) + "\n"
    done = xwin("convert", stdin=line * 2)
    assert [json.loads(x)["messages"] for x in done.stdout.splitlines()] == [TALK, TALK]
    assert done.stderr.splitlines() == ["standard input: alpaca, read as conversations", "2 rows written"]
    done = xwin("convert", "--to", "alpaca-eval", stdin=json.dumps({**GROUP, "responses": ["a"]}))
    assert json.loads(done.stdout) == [{"instruction": "q", "output": "a", "generator": "m"}]


BAD = {
    "cut.jsonl": b'{"messages": [{"role": "us',
    "utf16.jsonl": '{"a": 1}'.encode("utf-16"),
    "packed.jsonl": gzip.compress(b'{"a": 1}\n'),
    "cut.jsonl.gz": gzip.compress(json.dumps({"messages": TALK}).encode() * 99)[:-9],
    "deep.jsonl": b"[" * 10_000,
    "empty.jsonl": b"",
    "null.jsonl": b"null\n",
    "id.jsonl": json.dumps({"id": [1], "messages": TALK}).encode(),
    "late.jsonl": (json.dumps({"messages": TALK}) + "\n").encode() * 2000 + b'{"messages": []}\n',
}


def test_bad_files_exit_1_in_a_sentence_and_leave_nothing(tmp_path, xwin):
    for name, data in BAD.items():
        (tmp_path / name).write_bytes(data)
        done = xwin("convert", "--data", name, "--out", "out/x.jsonl", code=1)
        assert done.stderr.startswith(f"error: {name}"), name
        assert "Traceback" not in done.stderr
        assert not list(tmp_path.glob("out/*")), name


def test_a_named_pipe_is_read_once(tmp_path, xwin):
    os.mkfifo(tmp_path / "pipe")
    data = (json.dumps({"messages": TALK}) + "\n").encode() * 3
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(data,))
    writer.start()
    assert xwin("convert", "--data", "pipe").stdout.count("\n") == 3
    writer.join()


def test_a_folder_of_data_files_through_the_hub_reader(tmp_path, xwin):
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.jsonl", {"instruction": "q", "input": None, "output": "a"})
    done = xwin("convert", "--data", f"hf:{tmp_path}/set:train")
    assert json.loads(done.stdout)["messages"] == TALK


def test_converting_data_loads_no_torch(tmp_path):
    source = write(tmp_path / "in.jsonl", {"messages": TALK})
    code = (
        "import sys; from xwincli.cli import main; "
        f"main(['convert', '--data', {source!r}, '--out', {source + '.out'!r}]); "
        "print([m for m in ('torch', 'transformers', 'datasets', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_model_becomes_an_ordinary_folder(tmp_path, policy):
    from transformers import AutoConfig

    out = tmp_path / "model"
    run(Config(model=str(policy), out=str(out), dtype="bfloat16"))
    assert str(AutoConfig.from_pretrained(out).dtype).endswith("bfloat16")
    assert json.loads((out / "xwin.json").read_text())["counts"]["parameters"] > 0
    assert (out / "tokenizer.json").is_file()


CASES = os.environ.get("XWIN_CASES", "")


@pytest.mark.skipif(not CASES, reason="XWIN_CASES names no folder with malformed files")
def test_malformed_files_of_others():
    command = f"{sys.executable} -m xwincli convert --data {{in}} --out {{out}}"
    only = "^(syntax|chat|text|container)/"
    done = subprocess.run(
        [sys.executable, str(Path(CASES) / "bad" / "run_bad.py"), "--only", only, "--cmd", command],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_a_split_deals_every_prompt_to_one_part(xwin, tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i % 200}", "category": str(i)} for i in range(300)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    xwin("convert", "--data", "in.jsonl", "--split", "pair=3,eval=1", "--out", "parts")
    parts = {n: (tmp_path / "parts" / f"{n}.jsonl").read_text().splitlines() for n in ("pair", "eval")}
    assert len(parts["pair"]) + len(parts["eval"]) == 300
    assert 0.65 < len(parts["pair"]) / 300 < 0.85
    texts = {n: {json.loads(line)["prompt"][0]["content"] for line in lines} for n, lines in parts.items()}
    assert not texts["pair"] & texts["eval"]
    assert json.loads((tmp_path / "parts" / "xwin.json").read_text())["counts"]["out"] == 300


@pytest.mark.parametrize("split", ["pair", "pair=0,eval=1", "a/b=1", "pair=x", "pair=1,eval=nan"])
def test_an_impossible_split_is_refused(xwin, tmp_path: Path, split: str) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt":"q"}\n')
    assert "--split" in xwin("convert", "--data", "in.jsonl", "--split", split, "--out", "parts", code=2).stderr
    assert not (tmp_path / "parts").exists()
