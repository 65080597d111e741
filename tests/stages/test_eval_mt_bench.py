"""``xwin eval mt-bench``: the two-turn rule, temperatures, judging, going on after a failure, the command line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from xwincli import engines, judges
from xwincli.engines import Ask
from xwincli.errors import XwinError
from xwincli.judges import Answer, Item, Rated, Verdict
from xwincli.records import Response
from xwincli.settings import Sampling
from xwincli.stages import eval_mt_bench
from xwincli.stages.eval_mt_bench import Config, run

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Tell of rain.", "Tell of snow."]},
    {"question_id": 111, "category": "math", "turns": ["1 + 1?", "And 2 + 2?"], "reference": ["2", "4"]},
]


class Scripted:
    """Answers with what it was asked and how; notes every ask. ``fails`` names a question it cannot answer."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.asked = fails, []  # type: str, list[tuple[str, float, int]]

    def generate(
        self, asks: Iterable[Ask], sampling: Sampling, seed: int
    ) -> Iterator[tuple[str, list[Response] | XwinError]]:
        for ask in asks:
            said = " | ".join(m["content"] for m in ask.messages)
            self.asked.append((said, sampling.temperature, sampling.max_tokens))
            if self.fails and said.endswith(self.fails):
                yield ask.key, XwinError("the prompt is too long")
            else:
                yield ask.key, [Response(text=f"<{ask.messages[-1]['content']}>", finish="stop")]

    def facts(self) -> dict[str, str]:
        return {"engine": "scripted"}


class Grader:
    """Grades by ``grades`` of the answer's text, else 5; prefers the longer answer. Notes what it was shown."""

    name = scorer = "scripted"

    def __init__(self, **grades: Any) -> None:
        self.grades, self.seen = grades.get("grades", {}), []  # type: dict[str, Any], list[Answer | Item]

    def receipt(self) -> dict[str, float]:
        return {"calls": float(len(self.seen))}

    def ratings(self, answers: Sequence[Answer]) -> Iterator[Rated | XwinError]:
        for a in answers:
            self.seen.append(a)
            grade = self.grades.get(a.text, 5)
            yield grade if isinstance(grade, XwinError) else Rated(rating=grade, raw=f"Rating: [[{grade}]]")

    def verdicts(self, items: Sequence[Item]) -> Iterator[Verdict | XwinError]:
        for i in items:
            self.seen.append(i)
            x = 0.5 if len(i.a) == len(i.b) else float(len(i.b) > len(i.a))
            yield self.grades.get(i.a) or Verdict(
                preference=x, raw="[[A]]" if x == 0 else "[[B]]" if x == 1 else "[[C]]"
            )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(x) for x in path.read_text().splitlines()]


def save(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def answers(model: str, text: str) -> list[dict[str, Any]]:
    return [
        {
            "question_id": q["question_id"],
            "model_id": model,
            "choices": [{"index": 0, "turns": [f"{text}1", f"{text}2"]}],
        }
        for q in QUESTIONS
    ]


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the stage with a scripted engine and judge: ``played(engine, judge, **options)``."""
    questions, model = save(tmp_path / "question.jsonl", QUESTIONS), tmp_path / "policy"
    model.mkdir()

    def play(engine: Any, judge: Any, **options: Any) -> Path:
        monkeypatch.setattr(engines, "find", lambda *a, **k: engine)
        monkeypatch.setattr(judges, "find", lambda *a, **k: judge)
        config = Config(questions=questions, out=str(tmp_path / "out"), **options)
        if not config.answers and not config.answering.model:
            config.answering.model = str(model)
        run(config)
        return tmp_path / "out"

    return play


def test_the_whole_run(played: Any) -> None:
    engine, judge = Scripted(), Grader(grades={"<1 + 1?>": 9, "<Tell of snow.>": 7.5})
    out = played(engine, judge)
    assert engine.asked == [
        ("1 + 1?", 0.0, 1024),
        ("Tell of rain.", 0.7, 1024),
        ("1 + 1? | <1 + 1?> | And 2 + 2?", 0.0, 1024),  # the model's own first answer stands before the second turn
        ("Tell of rain. | <Tell of rain.> | Tell of snow.", 0.7, 1024),
    ]
    row = lines(out / "model_answer/policy.jsonl")[0]
    assert (row["question_id"], row["model_id"]) == (81, "policy") and row["answer_id"] and row["tstamp"] > 0
    assert row["choices"] == [{"index": 0, "turns": ["<Tell of rain.>", "<Tell of snow.>"]}]
    judged = lines(out / "model_judgment/scripted_single.jsonl")
    assert [(r["question_id"], r["turn"], r["score"], r["judge"][1]) for r in judged] == [
        (81, 1, 5, "single-v1"), (81, 2, 7.5, "single-v1-multi-turn"),
        (111, 1, 9, "single-math-v1"), (111, 2, 5, "single-math-v1-multi-turn"),
    ]  # fmt: skip
    assert judged[1]["judgment"] == "Rating: [[7.5]]" and judged[0]["model"] == "policy"
    assert [a.references for a in judge.seen] == [None, None, ["2"], ["2", "4"]]
    assert [m["content"] for m in judge.seen[1].prompt] == ["Tell of rain.", "<Tell of rain.>", "Tell of snow."]
    facts = json.loads((out / "eval.json").read_text())
    m = facts["models"][0]
    assert (m["turn1"], m["turn2"], m["average"], m["by_category"]) == (7, 6.25, 6.625, {"math": 7, "writing": 6.25})
    assert m["strict"]["average"] == 6.625 and facts["coverage"] == 1 and facts["judges"] == ["scripted"]
    made = json.loads((out / "xwin.json").read_text())
    assert made["counts"] == {"total": 4, "missing": 0} and made["metrics"] == {
        "average": {"policy": 6.625},
        "calls": 4.0,
    }


def test_a_rerun_asks_nobody(played: Any) -> None:
    out = played(Scripted(), Grader())
    stamp = (out / "eval.json").stat().st_mtime_ns
    engine, judge = Scripted(), Grader()
    played(engine, judge)
    assert not engine.asked and not judge.seen and (out / "eval.json").stat().st_mtime_ns == stamp
    played(engine, judge, seed=1)  # other draws, other judgements
    assert len(engine.asked) == 4 and len(judge.seen) == 4
    engine, judge = Scripted(), Grader()
    config = Config(out="x").options
    config.noise = 0.5  # another judge: the answers are kept
    played(engine, judge, seed=1, options=config)
    assert not engine.asked and len(judge.seen) == 4


def test_what_failed_is_asked_again_and_what_succeeded_is_not(played: Any, capsys: pytest.CaptureFixture[str]) -> None:
    broken = Grader(grades={"<1 + 1?>": XwinError("no rating in [[ ]]")})
    with pytest.raises(XwinError, match="covers n = 3 of 4") as e:
        played(Scripted(), broken)
    assert e.value.code == 3 and "unparsed" in capsys.readouterr().err
    engine, judge = Scripted(), Grader()
    out = played(engine, judge)
    assert not engine.asked and [a.text for a in judge.seen] == ["<1 + 1?>"]
    assert json.loads((out / "eval.json").read_text())["coverage"] == 1
    assert [r["score"] for r in lines(out / "model_judgment/scripted_single.jsonl")] == [5, 5, 5, 5]


def test_a_kill_loses_no_verdict_and_no_answer(played: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Killed(Grader):
        def ratings(self, answers: Sequence[Answer]) -> Iterator[Rated | XwinError]:
            if len(self.seen) == 2:
                raise KeyboardInterrupt
            yield from super().ratings(answers)

    monkeypatch.setattr(eval_mt_bench, "WINDOW", 1)
    with pytest.raises(KeyboardInterrupt):
        played(Scripted(), Killed())
    assert not (tmp_path / "out/eval.json").exists() and not (tmp_path / "out/model_judgment").exists()
    engine, judge = Scripted(), Grader()
    played(engine, judge)
    assert not engine.asked and [a.text for a in judge.seen] == ["<1 + 1?>", "<And 2 + 2?>"]


def test_an_unparsed_verdict_is_minus_1_in_fastchats_file_and_in_no_mean(played: Any, tmp_path: Path) -> None:
    with pytest.raises(XwinError, match="covers n = 3 of 4"):
        played(Scripted(), Grader(grades={"<1 + 1?>": XwinError("unreadable"), "<Tell of rain.>": 8}))
    rows = lines(tmp_path / "out/model_judgment/scripted_single.jsonl")
    assert sorted(r["score"] for r in rows) == [-1, 5, 5, 8]
    facts = json.loads((tmp_path / "out/eval.json").read_text())
    assert facts["models"][0]["average"] == 6 and facts["models"][0]["n_unparsed"] == 1
    assert facts["missing"] == [{"model": "policy", "question_id": 111, "turn": 1, "why": "unparsed"}]


def test_an_answer_that_fails_is_tried_again_and_never_judged(played: Any, tmp_path: Path) -> None:
    judge = Grader()
    with pytest.raises(XwinError, match="1 of 2 rows failed") as e:
        played(Scripted(fails="And 2 + 2?"), judge)
    assert e.value.code == 3 and not judge.seen and not (tmp_path / "out/eval.json").exists()
    engine = Scripted()
    played(engine, Grader())
    assert [said for said, _, _ in engine.asked] == ["1 + 1? | <1 + 1?> | And 2 + 2?"]


@pytest.mark.parametrize(("fails", "lost"), [("And 2 + 2?", [2]), ("1 + 1?", [1, 2])])
def test_answers_that_may_fail_are_missing(
    played: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: str, lost: list[int]
) -> None:
    played(Scripted(fails=fails), Grader(), allow_failed=0.5)
    assert f"{len(lost)} of 4 judgements are missing" in capsys.readouterr().err
    facts = json.loads((tmp_path / "out/eval.json").read_text())
    why = {"model": "policy", "question_id": 111, "why": "not judged"}
    assert facts["missing"] == [{**why, "turn": turn} for turn in lost] and facts["coverage"] == 1 - len(lost) / 4
    assert [r["question_id"] for r in lines(tmp_path / "out/model_answer/policy.jsonl")] == [81]


def test_several_judges_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"question_id": 81, "model": "m", "judgment": "[[7]]", "score": 7, "turn": 1}
    data = save(tmp_path / "j.jsonl", [{**row, "judge": ["g", "single-v1"]}, {**row, "judge": ["h", "single-v1"]}])
    run(Config(judgements=[data], out=str(tmp_path / "e")))
    assert "the means are over several judges: g, h" in capsys.readouterr().err


def test_bare_replies_are_read(tmp_path: Path) -> None:
    replies = ["[[8]]", "[100]", None, "[[A]]"]
    data = save(tmp_path / "j.jsonl", [{"id": i, "judgment": text} for i, text in enumerate(replies)])
    for allowed in (0.5, 0.75, 0.5):  # what was allowed once is not allowed for ever
        config = Config(judgements=[data], out=str(tmp_path / "e"), allow_failed=allowed)
        if allowed == 0.75:
            run(config)
            continue
        with pytest.raises(XwinError, match="covers n = 1 of 4"):
            run(config)
    m = json.loads((tmp_path / "e/eval.json").read_text())["models"][0]
    assert (m["model"], m["average"], m["strict"]["average"]) == ("unknown", 54, 8)
    assert (m["n_unparsed"], m["n_out_of_range"]) == (2, 1)


def test_an_empty_first_answer_is_an_answer(played: Any, tmp_path: Path) -> None:
    class Silent(Scripted):
        def generate(self, asks: Iterable[Ask], sampling: Sampling, seed: int) -> Iterator[tuple[str, Any]]:
            return ((ask.key, [Response(text="", finish="stop")]) for ask in asks)

    judge = Grader()
    played(Silent(), judge)
    assert [a.text for a in judge.seen] == [""] * 4
    given = {"answers": [str(tmp_path / "out/model_answer/policy.jsonl")]}
    given["baseline"] = save(tmp_path / "b.jsonl", answers("base", "b"))  # type: ignore[assignment]
    played(None, Grader(), **given)
    assert not any(
        "(to question 1) b1" in r["prompt"][1]["content"]
        for r in lines(tmp_path / "out/judgements.jsonl")
        if r["turn"] == 2
    )


def test_thinking_is_set_aside_and_a_reference_models_answers_are_shown(played: Any, tmp_path: Path) -> None:
    class Thinks(Scripted):
        def generate(self, asks: Iterable[Ask], sampling: Sampling, seed: int) -> Iterator[tuple[str, Any]]:
            for key, answer in super().generate(asks, sampling, seed):
                yield key, [Response(text=f"<think>hm</think>{answer[0].text}", finish="stop")]

    known = [{**row, "model_id": "gpt-4"} for row in answers("x", "known ")]
    for split in (True, False):
        who = Config(out="x").answering
        who.model, who.thinking.split_thinking = str(tmp_path / "policy"), split
        engine, judge = Thinks(), Grader()
        played(engine, judge, answering=who, references=save(tmp_path / "r.jsonl", known))
        assert [a.text.startswith("<think>") for a in judge.seen] == [not split] * 4
        assert ("hm" in engine.asked[-1][0]) != split  # nor does it stand before the second turn
        assert [a.references for a in judge.seen] == [None, None, ["known 1"], ["known 1", "known 2"]]


def test_force_asks_everybody_again(played: Any) -> None:
    played(Scripted(), Grader())
    engine, judge = Scripted(), Grader()
    played(engine, judge, force=True)
    assert len(engine.asked) == 4 == len(judge.seen)


def test_pairs_are_played_in_both_orders(played: Any, tmp_path: Path) -> None:
    mine, base = answers("mine", "a long answer "), answers("base", "short ")
    mine[1]["choices"] = base[1]["choices"]  # equal answers to question 111
    judge = Grader()
    given = {"answers": [save(tmp_path / "a.jsonl", mine)], "baseline": save(tmp_path / "b.jsonl", base)}
    out = played(None, judge, **given)
    assert len(judge.seen) == 4  # two turns of one question in two orders; equal answers cost no call
    assert [i.a[:6] for i in judge.seen] == ["a long", "short ", "(to qu", "(to qu"]
    rows = lines(out / "model_judgment/scripted_pair.jsonl")
    assert [(r["g1_winner"], r["g2_winner"]) for r in rows] == [("model_1", "model_1")] * 2 + [("tie", "tie")] * 2
    assert [r["judge"][1] for r in rows] == ["pair-v2", "pair-v2-multi-turn", "pair-math-v1", "pair-math-v1-multi-turn"]
    assert (rows[0]["model_1"], rows[0]["model_2"], rows[0]["g2_judgment"]) == ("mine", "base", "[[B]]")
    table = {p["model"]: p for p in json.loads((out / "eval.json").read_text())["pairs"]}
    assert [table["mine"][k] for k in ("win", "loss", "tie", "win_rate_adjusted")] == [2, 0, 2, 0.75]


def test_a_game_without_a_verdict_is_an_error(played: Any, tmp_path: Path) -> None:
    given = {"answers": [save(tmp_path / "a.jsonl", answers("mine", "aa"))]}
    given["baseline"] = save(tmp_path / "b.jsonl", answers("base", "b"))  # type: ignore[assignment]
    with pytest.raises(XwinError, match="covers n = 2 of 4"):
        played(None, Grader(grades={"b1": XwinError("unreadable")}), **given)
    facts = json.loads((tmp_path / "out/eval.json").read_text())
    assert {p["model"]: (p["win"], p["n_error"]) for p in facts["pairs"]} == {"mine": (2, 2), "base": (0, 2)}
    assert {m["why"] for m in facts["missing"]} == {"a game without a verdict"}


def test_bad_input_leaves_nothing(played: Any, tmp_path: Path) -> None:
    mine = answers("mine", "a")
    for rows, base, what in [
        (mine[:1], None, "mine leaves 1 questions unanswered: 111"),
        (mine, answers("mine", "b"), "the baseline 'mine' is what is evaluated"),
        (mine, [*answers("x", "b"), *answers("y", "b")], "holds answers of 2 models"),
    ]:
        given = {"baseline": save(tmp_path / "b.jsonl", base)} if base else {}
        with pytest.raises(XwinError, match=what):
            played(None, Grader(), answers=[save(tmp_path / "a.jsonl", rows)], **given)
        assert not (tmp_path / "out").exists()


# -- through the command line


def test_the_command_with_engine_and_judge_of_our_own(xwin: Any, tmp_path: Path) -> None:
    save(tmp_path / "question.jsonl", QUESTIONS)
    run = ("eval", "mt-bench", "--questions", "question.jsonl", "--engine", "echo", "--judge", "rules", "--out", "e")
    done = xwin(*run, "--max-tokens", 5, "--name", "parrot")
    assert done.stdout == "" and "FastChat mean" in done.stderr and "writing" in done.stderr
    assert [r["model_id"] for r in lines(tmp_path / "e/model_answer/parrot.jsonl")] == ["parrot", "parrot"]
    (name,) = (tmp_path / "e/model_judgment").glob("*_single.jsonl")
    again = xwin("eval", "mt-bench", "--judgements", name, "--questions", "question.jsonl", "--out", "f")
    assert "FastChat mean" in again.stderr
    one, two = (json.loads((tmp_path / d / "eval.json").read_text()) for d in "ef")
    assert one["models"] == two["models"]


def test_our_own_engine_answers_both_turns(xwin: Any, tmp_path: Path, policy: Path) -> None:
    save(tmp_path / "question.jsonl", QUESTIONS)
    run = (
        "eval",
        "mt-bench",
        "--questions",
        "question.jsonl",
        "--judge",
        "rules",
        "--model",
        policy,
        "--device",
        "cpu",
    )
    xwin(*run, "--max-tokens", 4, "--out", "e")
    first, second = (lines(tmp_path / f"e/answers/policy.turn{t}.jsonl") for t in (1, 2))
    assert [g["prompt"][1]["content"] for g in second] == [g["responses"][0]["text"] for g in first]
    assert max(g["responses"][0]["tokens"] for g in first + second) <= 4
    assert json.loads((tmp_path / "e/eval.json").read_text())["coverage"] == 1


def test_stored_judgements_that_miss_turns_exit_3(xwin: Any, tmp_path: Path) -> None:
    save(tmp_path / "question.jsonl", QUESTIONS)
    row = {"question_id": 81, "model": "m", "judge": ["g", "single-v1"], "judgment": "[[7]]", "score": 7, "turn": 1}
    save(tmp_path / "j.jsonl", [row, {**row, "turn": 2, "judgment": "[100]", "score": 100}])
    for _ in range(2):  # a rerun does not turn it into a success
        done = xwin(
            "eval", "mt-bench", "--judgements", "j.jsonl", "--questions", "question.jsonl", "--out", "e", code=3
        )
        assert "n = 1 of 4" in done.stderr and "53.5000       7.0000" in done.stderr and "(strict -)" in done.stderr
    m = json.loads((tmp_path / "e/eval.json").read_text())["models"][0]
    assert (m["n_out_of_range"], m["average"], m["strict"]["average"]) == (1, 53.5, 7)


def test_usage_errors(xwin: Any, tmp_path: Path) -> None:
    save(tmp_path / "question.jsonl", QUESTIONS)
    for options, what in [
        ((), "--questions is required"),
        (("--questions", "question.jsonl"), "nobody to evaluate"),
        (("--judgements", "j.jsonl", "--answers", "a.jsonl"), "--answers means nothing beside --judgements"),
        (("--questions", "question.jsonl", "--model", "m", "--answers", "a.jsonl"), "--model and --answers are both"),
        (("--questions", "question.jsonl", "--engine", "openai"), "--engine openai needs --base-url"),
    ]:
        assert what in xwin("eval", "mt-bench", *options, "--out", "e", code=2).stderr
        assert not (tmp_path / "e").exists()
