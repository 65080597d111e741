"""``xwin eval verifiable``: accuracies by hand, IFEval's own files, joins, coverage, options."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from xwincli import manifest
from xwincli.errors import XwinError
from xwincli.protocols import instructions
from xwincli.stages import eval_verifiable
from xwincli.stages.eval_verifiable import Config, run

NO_COMMA, THREE_WORDS = {"kind": "punctuation:no_comma"}, {"kind": "max_words", "value": 3}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def group(prompt: str, *texts: str, **fields: Any) -> dict[str, Any]:
    ask = [{"role": "user", "content": prompt}]
    return {
        "kind": "group",
        "prompt": ask,
        "responses": [{"text": t, "index": i} for i, t in enumerate(texts)],
        **fields,
    }


def evaluate(folder: Path, data: list[dict[str, Any]], code: int = 0, **options: Any) -> dict[str, Any]:
    config = Config(data=[write(folder / "data.jsonl", data)], out=str(folder / "out"), rounds=100, **options)
    if code:
        with pytest.raises(XwinError) as e:
            run(config)
        assert e.value.code == code
    else:
        run(config)
    return dict(json.loads((folder / "out" / "eval.json").read_text()))


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(x) for x in (folder / "out" / "results.jsonl").read_text().splitlines()]


TWO = [
    group("p", "one two", "one, two", checks=[NO_COMMA, THREE_WORDS]),  # both; one of two
    group("q", "a b c d", "Sure, here:\na b", checks=[THREE_WORDS, NO_COMMA]),  # one of two; loosely both
]


def test_every_figure_by_hand(tmp_path: Path) -> None:
    found = evaluate(tmp_path, TWO)
    assert (found["prompts"], found["answered"], found["responses"], found["coverage"]) == (2, 2, 4, 1)
    level = {k: {way: found[k][way]["value"] for way in ("strict", "loose")} for k in found if k.endswith("_level")}
    assert level["prompt_level"] == {"strict": 0.25, "loose": 0.5}
    # strict: p meets 2 and 1 of 2, q meets 1 and 0 (four words and a comma); loose: q's second meets both
    assert level["instruction_level"] == {"strict": 0.5, "loose": 0.75}
    assert {k: (f["n"], f["strict"]["value"]) for k, f in found["by_kind"].items()} == {
        "max_words": (2, 0.5),
        "punctuation:no_comma": (2, 0.5),
    }
    assert set(found["by_group"]) == {"max_words", "punctuation"}
    assert [(f["k"], f["value"]) for f in found["pass_at_k"]] == [(1, 0.25), (2, 0.5)]
    assert [(f["k"], f["value"]) for f in found["pass_hat_k"]] == [(1, 0.25), (2, 0)]
    row = results(tmp_path)[1]
    assert row["follow_instruction_list"] == [False, True] and row["follow_all_instructions"] is False
    assert row["instruction_id_list"] == ["punctuation:no_comma", "max_words"] and row["index"] == 1
    assert results(tmp_path)[3]["loose_follow_all_instructions"] is True
    made = manifest.read(tmp_path / "out")
    assert made is not None and made["stage"] == "eval verifiable"
    assert made["metrics"] == {"prompt_level": 0.25, "instruction_level": 0.5}


def test_intervals_are_over_prompts_and_the_seed_moves_them(tmp_path: Path) -> None:
    rng = random.Random(0)
    texts = (rng.choice(["a b", "a b c d"]) for _ in range(24))
    rows = [group(f"p{i}", next(texts), next(texts), checks=[THREE_WORDS]) for i in range(12)]
    first = evaluate(tmp_path, rows)["prompt_level"]["strict"]
    other = evaluate(tmp_path, rows, seed=5)["prompt_level"]["strict"]
    assert first["low"] < first["value"] < first["high"]
    assert other["value"] == first["value"] and other != first


IFEVAL = [
    {"key": 1000, "prompt": "Say a.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {
        "key": 1001,
        "prompt": "Say b.",
        "instruction_id_list": ["keywords:existence", "length_constraints:number_words"],
        "kwargs": [{"keywords": ["b"]}, {"num_words": 2, "relation": "at least"}],
    },
    {"key": 1002, "prompt": "Say c.", "instruction_id_list": ["startend:quotation"], "kwargs": [{"letter": None}]},
]


def test_ifeval_s_own_files(tmp_path: Path) -> None:
    prompts = [write(tmp_path / "input_data.jsonl", IFEVAL)]
    said = [
        {"prompt": "Say b.", "response": "b"},
        {"prompt": "Say a.", "response": "a"},
        {"prompt": "Say c.", "response": ""},  # empty follows nothing
    ]
    found = evaluate(tmp_path, said, prompts=prompts)
    assert found["prompt_level"]["strict"]["value"] == pytest.approx(1 / 3)
    assert found["instruction_level"]["strict"]["value"] == pytest.approx(2 / 4)
    assert [r["prompt_id"] for r in results(tmp_path)] == ["1000", "1001", "1002"]
    assert [r["follow_instruction_list"] for r in results(tmp_path)] == [[True], [True, False], [False]]


def test_groups_sampled_from_ifeval_s_prompts_carry_the_instructions(tmp_path: Path) -> None:
    facts = {k: IFEVAL[0][k] for k in ("key", "instruction_id_list", "kwargs")}
    found = evaluate(tmp_path, [group("Say a.", "a", "a, b", **facts)])
    assert found["prompt_level"]["strict"]["value"] == 0.5
    assert found["n"] == 2


def test_a_system_prompt_does_not_part_responses_from_prompts(tmp_path: Path) -> None:
    row = group("Say a.", "a")
    row["prompt"] = [{"role": "system", "content": "Be brief."}, *row["prompt"]]
    prompts = [write(tmp_path / "input_data.jsonl", IFEVAL[:1])]
    assert evaluate(tmp_path, [row], prompts=prompts)["coverage"] == 1


def test_less_than_all_prompts_says_n_and_exits_3(xwin: Any, tmp_path: Path) -> None:
    write(tmp_path / "input_data.jsonl", IFEVAL)
    write(tmp_path / "said.jsonl", [{"prompt": "Say a.", "response": "a"}])
    args = ("eval", "verifiable", "--data", "said.jsonl", "--prompts", "input_data.jsonl", "--out", "out")
    done = xwin(*args, code=3)
    assert "covers n = 1 of 3 (33.3 %)" in done.stderr and "prompt level, strict" in done.stderr
    found = json.loads((tmp_path / "out/eval.json").read_text())
    assert found["missing"] == ["1001", "1002"] and found["coverage"] == pytest.approx(1 / 3)
    assert "covers n = 1 of 3" in xwin(*args, code=3).stderr  # a rerun does not hide it
    write(tmp_path / "said.jsonl", [{"prompt": r["prompt"], "response": "a"} for r in IFEVAL])
    xwin(*args)
    assert "up to date" in xwin(*args).stderr


def test_answers_compares_with_the_reference(tmp_path: Path) -> None:
    rows = [group("2 + 2", "It is 4.", "4", reference="#### 4")]
    assert evaluate(tmp_path, rows, answers="numeric")["pass_hat_k"][1]["value"] == 1
    rows = [group("2 + 2", "It is 4.", "4", reference="4")]
    assert evaluate(tmp_path, rows, answers="exact")["prompt_level"]["strict"]["value"] == 0.5


def test_thinking_is_set_aside(tmp_path: Path) -> None:
    rows = [group("p", "<think>well, well</think>\n\na", checks=[NO_COMMA])]
    assert evaluate(tmp_path, rows)["prompt_level"]["strict"]["value"] == 0
    from xwincli.settings import Thinking

    found = evaluate(tmp_path, rows, thinking=Thinking(split_thinking=True))
    assert found["prompt_level"]["strict"]["value"] == 1


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([group("p", "a")], r"data\.jsonl:1: field checks: is missing"),
        ([group("p", "a", checks=[NO_COMMA]), group("p", "b", checks=[NO_COMMA])], r":2: field prompt: stands in .*:1"),
        (
            [TWO[0], group("q", "a", checks=[{"kind": "keywords:rhymes"}])],
            r":2: .*unknown instruction 'keywords:rhymes'",
        ),
        ([group("p", "a", instruction_id_list=["punctuation:no_comma"])], r":1: field kwargs: expected a list of 1"),
        ([group("p", "a", instruction_id_list="x", kwargs=[])], r":1: field instruction_id_list: expected a list"),
    ],
)
def test_refusals_name_the_place_and_leave_nothing(tmp_path: Path, rows: list[dict[str, Any]], what: str) -> None:
    with pytest.raises(XwinError, match=what):
        run(Config(data=[write(tmp_path / "data.jsonl", rows)], out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_responses_to_other_prompts_are_refused(tmp_path: Path) -> None:
    prompts = [write(tmp_path / "input_data.jsonl", IFEVAL)]
    data = [write(tmp_path / "d.jsonl", [{"prompt": "Say a", "response": "a"}])]
    with pytest.raises(XwinError, match=r"d\.jsonl:1: field prompt: is not among the prompts"):
        run(Config(data=data, prompts=prompts, out=str(tmp_path / "out")))


def test_answers_needs_a_reference(tmp_path: Path) -> None:
    with pytest.raises(XwinError, match=r":1: field reference: is missing"):
        evaluate(tmp_path, [group("p", "a")], answers="exact")


def test_the_help_page_lists_every_kind() -> None:
    from xwincli import checks
    from xwincli.protocols import demands

    page = eval_verifiable.__doc__ or ""
    assert [k for k in (*instructions.INSTRUCTIONS, *checks.KINDS, *demands.KINDS) if k not in page] == []
