"""AlpacaEval 2 by hand with a scripted judge: the coin, the joins, what is judged, what is written and refused."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from xwincli import judges
from xwincli.errors import FAILED_ROWS, LIMIT, USAGE, XwinError
from xwincli.judges import Item, Verdict
from xwincli.protocols import alpaca
from xwincli.settings import Thinking
from xwincli.stages.eval_alpaca import Config, run


class Scripted:
    """Prefers the longer answer with chance .8, plus ``first_bonus`` for what is shown first; fails where told to."""

    name = scorer = "scripted"

    def __init__(self, fails: Sequence[str] = (), first_bonus: float = 0.0, limit: int = 10**6) -> None:
        self.fails, self.first_bonus, self.limit = fails, first_bonus, limit
        self.asked: list[Item] = []

    def receipt(self) -> dict[str, float]:
        return {"calls": len(self.asked)}

    def verdicts(self, items: Sequence[Item]) -> Iterator[Verdict | XwinError]:
        for i in items:
            if len(self.asked) == self.limit:
                raise XwinError("the money is spent", "", LIMIT)
            self.asked.append(i)
            if i.prompt[-1]["content"] in self.fails:
                yield XwinError("no verdict in the reply")
            else:
                chance = (0.8 if len(i.b) > len(i.a) else 0.2) - self.first_bonus
                yield Verdict(preference=chance, raw=f"{i.a}|{i.b}", usd=0.25)


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a scripted judge where the stage looks for its own; returns the function that does."""

    def install(**options: Any) -> Scripted:
        made = Scripted(**options)
        monkeypatch.setattr(judges, "find", lambda name, o, **more: made)
        return made

    return install


def outputs(path: Path, answers: dict[str, str], generator: str | None = "m", **extra: Any) -> str:
    named = {} if generator is None else {"generator": generator}
    rows = [{"instruction": i, "output": o, **named, "dataset": "d", **extra} for i, o in answers.items()]
    path.write_text(json.dumps(rows))
    return str(path)


def annotation(
    instruction: str, preference: float | None, one: str = "ab", two: str = "c", **more: Any
) -> dict[str, Any]:
    row = {"instruction": instruction, "output_1": one, "generator_1": "base", "output_2": two, "generator_2": "m"}
    return {**row, "annotator": "gpt", "preference": preference, **more}


def annotated(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text(json.dumps(rows))
    return str(path)


def go(folder: Path, *files: str, out: str = "out", **options: Any) -> dict[str, Any]:
    run(Config(files=list(files), out=str(folder / out), rounds=100, **options))
    return facts(folder, out)


def facts(folder: Path, out: str = "out") -> dict[str, Any]:
    return dict(json.loads((folder / out / "eval.json").read_text()))


def board(folder: Path, out: str = "out") -> dict[str, str]:
    with (folder / out / "leaderboard.csv").open() as f:
        return next(csv.DictReader(f))


BASE = {"q1": "12345", "q2": "12", "q3": "123", "q4": "1234"}
MODEL = {"q3": "1", "q1": "123456", "q4": "1234", "q2": "1234"}


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    """A model's outputs in another order than the baseline's."""
    return outputs(tmp_path / "model.json", MODEL), outputs(tmp_path / "base.json", BASE, "base", datasplit="eval")


# -- counting annotations


def test_figures_by_hand(tmp_path: Path) -> None:
    """1 2 1.5 0 1.75: chances 0 1 .5 .5 .75, the older 0 a draw."""
    rows = [annotation(f"q{k}", p, "x" * 10, "é" * k) for k, p in enumerate([1, 2, 1.5, 0, 1.75])]
    made = go(tmp_path, annotated(tmp_path / "a.json", *rows))
    assert made["win_rate"] == pytest.approx(55) and made["discrete_win_rate"] == pytest.approx(60)
    assert (made["n_wins"], made["n_wins_base"], made["n_draws"], made["n_total"], made["expected"]) == (2, 1, 2, 5, 5)
    deviations = [(c - 0.55) ** 2 for c in (0, 1, 0.5, 0.5, 0.75)]
    assert made["standard_error"] == pytest.approx(100 * (sum(deviations) / 4 / 5) ** 0.5)
    assert (made["avg_length"], made["avg_length_base"]) == (2, 10)  # code points, not bytes
    assert made["model"] == "m" and made["baseline"] == "base" and made["annotators"] == {"gpt": 5}
    fair = made["length_controlled"]
    assert fair["low"] <= fair["value"] <= fair["high"]
    assert json.loads((tmp_path / "out/annotations.json").read_text()) == rows  # as they were
    row = board(tmp_path)
    assert row[""] == "m" and float(row["win_rate"]) == made["win_rate"] and row["n_draws"] == "2"
    assert row["mode"] == "community" and row["length_controlled_winrate"] == row["lc_standard_error"] == ""
    assert json.loads((tmp_path / "out/xwin.json").read_text())["counts"] == {"total": 5, "missing": 0}


def test_one_row_has_no_error_and_json_no_nan(xwin: Any, tmp_path: Path) -> None:
    annotated(tmp_path / "a.json", annotation("i", 2))
    done = xwin("eval", "alpaca", "a.json", "--out", "out")
    assert "n/a" in done.stderr and done.stdout == "" and "NaN" not in (tmp_path / "out/eval.json").read_text()
    made = facts(tmp_path)
    assert made["standard_error"] is None and made["interval"] == {"low": None, "high": None}
    assert board(tmp_path)["standard_error"] == "" and made["package"] == {}


def test_null_is_no_value_and_exits_3_with_everything_written(xwin: Any, tmp_path: Path) -> None:
    annotated(tmp_path / "a.json", annotation("q1", 2), annotation("q2", None), annotation("q3", 1))
    for _ in range(2):  # what lacks a value is never up to date
        done = xwin("eval", "alpaca", "a.json", "--out", "out", code=FAILED_ROWS)
        assert "n = 2 of 3 instructions have a value; missing: 'q2'" in done.stderr
    made = facts(tmp_path)
    assert made["win_rate"] == 50 and made["without_value"] == [{"instruction": "q2", "error": ""}]
    assert len(json.loads((tmp_path / "out/annotations.json").read_text())) == 3
    annotated(tmp_path / "a.json", annotation("q1", None))
    assert "no row has a preference" in xwin("eval", "alpaca", "a.json", "--out", "none", code=1).stderr
    assert not (tmp_path / "none").exists()


def test_several_files_are_one_model_and_a_rerun_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [annotated(tmp_path / f"{k}.json", annotation(f"q{k}", 2)) for k in range(3)]
    assert go(tmp_path, *files, name="mine")["model"] == "mine"
    stamp = (tmp_path / "out/eval.json").stat().st_mtime_ns
    go(tmp_path, *files, name="mine")
    assert "up to date" in capsys.readouterr().err and (tmp_path / "out/eval.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([annotation("q", 3)], r"a\.json\[0\]: field preference: is 3"),
        ([annotation("q", True)], r"a\.json\[0\]: field preference: expected a number"),
        ([annotation("q", "2")], r"field preference: expected a number, got text"),
        ([annotation("p", 1), annotation("q", 1, two=None)], r"a\.json\[1\]: field output_2: expected text"),
        (
            [annotation("p", 1), annotation("q", 1, generator_2="n")],
            r"\[1\]: field generator_2: is 'n' after .* 'm'",
        ),
        ([annotation("p", 1), annotation("q", 1, generator_1="n")], r"\[1\]: field generator_1: is 'n'"),
        ([annotation("", 1)], r"field instruction: is empty"),
        (
            [annotation(q, 1) for q in "pqppq"],
            r"\[2\]: field instruction: 'p' stands twice, first at .*\[0\]; so do 2 more, at .*\[3\], .*\[4\]",
        ),
        ([{k: v for k, v in annotation("q", 1).items() if k != "preference"}], r"field preference: is missing"),
    ],
)
def test_annotations_that_are_refused(tmp_path: Path, rows: list[dict[str, Any]], what: str) -> None:
    with pytest.raises(XwinError, match=what):
        go(tmp_path, annotated(tmp_path / "a.json", *rows))
    assert not (tmp_path / "out").exists()


# -- judging outputs


def test_the_coin_is_alpaca_evals() -> None:
    for i in ("q1", "Write a poem\n\n", "été"):
        upstream = random.Random("is_switched_outputs" + i + "0").choices([False, True], k=1)[0]
        assert alpaca.model_first(i) == upstream
    assert {alpaca.model_first(f"q{k}") for k in range(20)} == {False, True}


def test_outputs_are_judged_once_in_the_coins_order(tmp_path: Path, two: tuple[str, str], judge: Any) -> None:
    j = judge()
    made = go(tmp_path, two[0], baseline=two[1])
    assert [i.prompt[-1]["content"] for i in j.asked] == ["q1", "q2", "q3"]  # the baseline's order; q4 is equal
    for i in j.asked:
        said = i.prompt[-1]["content"]
        assert (i.a, i.b) == ((MODEL[said], BASE[said]) if alpaca.model_first(said) else (BASE[said], MODEL[said]))
    rows = json.loads((tmp_path / "out/annotations.json").read_text())
    assert [r["preference"] for r in rows] == pytest.approx([1.8, 1.8, 1.2, 1.5])  # q1, q2 longer, q3 shorter
    first = {"instruction": "q1", "output_1": "12345", "generator_1": "base", "output_2": "123456", "generator_2": "m"}
    assert rows[0].items() >= {**first, "dataset": "d", "datasplit": "eval", "annotator": "scripted"}.items()
    assert rows[0]["raw_completion"] in ("12345|123456", "123456|12345") and rows[0]["price_per_example"] == 0.25
    assert rows[3]["raw_completion"] is None and rows[3]["price_per_example"] is None
    assert made["win_rate"] == pytest.approx(57.5) and made["receipt"] == {"calls": 3}
    assert (made["n_wins"], made["n_wins_base"], made["n_draws"]) == (2, 1, 1)


def test_a_language_model_judge_end_to_end(tmp_path: Path, two: tuple[str, str], monkeypatch: Any) -> None:
    """AlpacaEval's own judge on a server whose log-probabilities like the second answer: the coin shows through."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "engines")
    import faulty

    top = [{"token": "m", "logprob": math.log(0.2)}, {"token": "M", "logprob": math.log(0.6)}]
    shown = {"content": [{"token": "M", "logprob": math.log(0.6), "top_logprobs": top}]}
    said = {"message": {"role": "assistant", "content": "M"}, "finish_reason": "length"}
    choice = {"index": 0, **said, "logprobs": shown}
    answer = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 1}})
    with faulty.Faulty(lambda body, before: faulty.raw(answer)) as server:
        options = judges.Options(judge="alpaca-eval-2", judge_model=["gpt-4o-mini"], judge_base_url=server.url)
        made = go(tmp_path, two[0], baseline=two[1], options=options)
        assert len(server.requests) == 3
    rows = json.loads((tmp_path / "out/annotations.json").read_text())
    expected = [1.25 if alpaca.model_first(r["instruction"]) else 1.75 for r in rows[:3]]
    assert [r["preference"] for r in rows] == pytest.approx([*expected, 1.5])
    assert "alpaca-eval-2" in made["judge"]


def test_both_orders_are_averaged(tmp_path: Path, two: tuple[str, str], judge: Any) -> None:
    j = judge(first_bonus=0.15)
    go(tmp_path, two[0], baseline=two[1], orders="both")
    assert len(j.asked) == 6
    rows = json.loads((tmp_path / "out/annotations.json").read_text())
    assert [r["preference"] for r in rows] == pytest.approx([1.8, 1.8, 1.2, 1.5])  # the bonus cancels
    assert len(rows[0]["raw_completion"]) == 2 and rows[0]["price_per_example"] == 0.5


def test_only_what_the_annotations_lack_is_judged(tmp_path: Path, two: tuple[str, str], judge: Any) -> None:
    j = judge()
    known = annotated(
        tmp_path / "a.json",
        annotation("q1", 1.25, BASE["q1"], MODEL["q1"], time_per_example=7),
        annotation("q2", 1.25, BASE["q2"], "another answer"),
        annotation("q3", None, BASE["q3"], MODEL["q3"]),
    )
    made = go(tmp_path, two[0], known, baseline=two[1])
    assert [i.prompt[-1]["content"] for i in j.asked] == ["q2", "q3"]
    rows = json.loads((tmp_path / "out/annotations.json").read_text())
    assert (rows[0]["preference"], rows[0]["time_per_example"], rows[0]["annotator"]) == (1.25, 7, "gpt")
    assert made["annotators"] == {"gpt": 1, "scripted": 3}


def test_a_rerun_asks_only_what_failed(
    tmp_path: Path, two: tuple[str, str], judge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    judge(fails=["q2"])
    with pytest.raises(XwinError, match=r"n = 3 of 4 .* missing: 'q2' \(first: no verdict in the reply\)") as e:
        go(tmp_path, two[0], baseline=two[1])
    assert e.value.code == FAILED_ROWS and facts(tmp_path)["n_total"] == 3
    assert json.loads((tmp_path / "out/annotations.json").read_text())[1]["preference"] is None
    judge(fails=list(BASE))
    pair = outputs(tmp_path / "one.json", {"q1": "x"}), outputs(tmp_path / "other.json", {"q1": "y"}, "base")
    with pytest.raises(XwinError, match=r"no row has a preference \(first: no verdict") as e:
        go(tmp_path, pair[0], baseline=pair[1], out="none")
    assert e.value.code == FAILED_ROWS and not (tmp_path / "none/eval.json").exists()
    again = judge()
    assert go(tmp_path, two[0], baseline=two[1])["n_total"] == 4
    assert [i.prompt[-1]["content"] for i in again.asked] == ["q2"]
    third = judge()
    go(tmp_path, two[0], baseline=two[1], force=False, seed=0, calibration="")
    assert not third.asked and "up to date" in capsys.readouterr().err


def test_other_resamples_ask_nothing_again(tmp_path: Path, two: tuple[str, str], judge: Any) -> None:
    judge()
    first = go(tmp_path, two[0], baseline=two[1])
    again = judge()
    run(Config(files=[two[0]], out=str(tmp_path / "out"), baseline=two[1], rounds=300))
    assert not again.asked and facts(tmp_path)["rounds"] == 300 and facts(tmp_path)["win_rate"] == first["win_rate"]


def test_a_limit_stops_it_and_what_was_judged_is_kept(tmp_path: Path, judge: Any) -> None:
    answers = {f"q{k}": "x" * (k + 1) for k in range(70)}
    model = outputs(tmp_path / "model.json", {i: o + "y" for i, o in answers.items()})
    base = outputs(tmp_path / "base.json", answers, "base")
    judge(limit=66)
    with pytest.raises(XwinError, match="money") as e:
        go(tmp_path, model, baseline=base)
    assert e.value.code == LIMIT and not (tmp_path / "out/eval.json").exists()
    again = judge()
    assert go(tmp_path, model, baseline=base)["n_total"] == 70
    assert len(again.asked) == 6  # the first 64 were journalled


def test_groups_and_rows_without_a_generator_are_outputs(tmp_path: Path, judge: Any) -> None:
    judge()
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q1"}]
    row = {"kind": "group", "prompt": prompt, "responses": [{"text": "<think>hm</think>abc", "finish": "stop"}]}
    (tmp_path / "mine.v2.jsonl").write_text(json.dumps(row) + "\n")
    base = outputs(tmp_path / "base.json", {"q1": "12345"}, None)
    made = go(tmp_path, str(tmp_path / "mine.v2.jsonl"), baseline=base, thinking=Thinking(split_thinking=True))
    assert (made["model"], made["baseline"]) == ("mine", "base") and made["avg_length"] == 3
    assert go(tmp_path, str(tmp_path / "mine.v2.jsonl"), baseline=base, out="whole")["avg_length"] == 20


def test_missing_instructions_are_named_and_common_goes_on(xwin: Any, tmp_path: Path) -> None:
    outputs(tmp_path / "model.json", {"q1": "a b c", "q9": "d"})
    outputs(tmp_path / "base.json", BASE, "base")
    done = xwin("eval", "alpaca", "model.json", "--baseline", "base.json", "--out", "out", code=1)
    assert "base.json: field instruction: 1 of 5 instructions are missing: 'q9'" in done.stderr
    assert "--common" in done.stderr and not (tmp_path / "out").exists()
    args = ["eval", "alpaca", "model.json", "--baseline", "base.json", "--out", "out", "--common"]
    done = xwin(*args, code=FAILED_ROWS)
    assert "n = 1 of 5" in done.stderr and facts(tmp_path)["missing"] == {
        "base.json": ["q9"],
        "model.json": ["q2", "q3", "q4"],
    }
    outputs(tmp_path / "model.json", {"q8": "a"})
    done = xwin("eval", "alpaca", "model.json", "--baseline", "base.json", "--out", "no", "--common", code=1)
    assert "there is none in common" in done.stderr


def test_a_baseline_beside_annotations_says_what_there_should_be(tmp_path: Path) -> None:
    known = annotated(tmp_path / "a.json", *(annotation(q, 2) for q in ("q1", "q2", "q3")))
    base = outputs(tmp_path / "base.json", BASE, "base")
    with pytest.raises(XwinError, match=r"a\.json: field instruction: 1 of 4 instructions are missing: 'q4'"):
        go(tmp_path, known, baseline=base)
    with pytest.raises(XwinError, match="n = 3 of 4"):
        go(tmp_path, known, baseline=base, common=True)


def test_outputs_that_are_refused(tmp_path: Path, two: tuple[str, str]) -> None:
    def refused(rows: list[dict[str, Any]], what: str, code: int = 1, **options: Any) -> None:
        (tmp_path / "bad.json").write_text(json.dumps(rows))
        with pytest.raises(XwinError, match=what) as e:
            go(tmp_path, str(tmp_path / "bad.json"), **{"baseline": two[1], **options})
        assert e.value.code == code and not (tmp_path / "out").exists()

    one = {"instruction": "q1", "output": "a", "generator": "m"}
    refused([one, {**one, "instruction": "q2", "generator": "n"}], r"bad\.json\[1\]: field generator: is 'n'")
    refused([one, {"output": "a", "generator": "m"}], r"bad\.json\[1\]: field instruction: is missing")
    refused([{"instruction": "q1", "generator": "m"}], r"bad\.json\[0\]: field output: is missing")
    refused([one, one], r"bad\.json\[1\]: field instruction: 'q1' stands twice, first at .*\[0\]")
    refused([{"prompt": "q1", "responses": ["a", "b"]}], r"field responses: has 2 responses")
    turns = [{"role": r, "content": "x"} for r in ("user", "assistant", "user")]
    refused([{"prompt": turns, "responses": ["a"]}], r"field prompt: has 3 turns")
    refused([one], "these are outputs", USAGE, baseline="")
    refused([{"instruction": i, "output": "a", "generator": "base"} for i in BASE], "is 'base', as the baseline's is")
    with pytest.raises(XwinError, match="are both outputs"):
        go(tmp_path, *two, baseline=two[1])
    with pytest.raises(XwinError, match="standard input"):
        go(tmp_path, "-")
    with pytest.raises(XwinError, match="is a file"):
        go(tmp_path, two[0], baseline=two[1], out="base.json")


# -- the package's length control


def calibration(path: Path, instructions: int, **change: Any) -> str:
    """A calibration file with two gamed baselines; ``change`` overwrites cells of its last row."""
    rng = random.Random(0)
    rows = [
        {
            "model": model,
            "index": i,
            "preference": round(rng.random(), 3),
            "std_delta_len": round(rng.gauss(0, 1), 3),
            "instruction_difficulty": i / 10 - 1,
            "not_gamed_baseline": False,
        }
        for model in ("concise", "verbose")
        for i in range(instructions)
    ]
    rows[-1] |= change
    with path.open("w", newline="") as f:
        table = csv.DictWriter(f, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return str(path)


def test_a_calibration_adds_the_packages_forms(tmp_path: Path) -> None:
    rng = random.Random(1)
    rows = [
        annotation(f"q{k}", 1 + rng.random(), "x" * rng.randint(5, 50), "y" * rng.randint(5, 50)) for k in range(20)
    ]
    made = go(tmp_path, annotated(tmp_path / "a.json", *rows), calibration=calibration(tmp_path / "gamed.csv", 20))
    forms = made["package"]
    assert list(forms) == ["length_controlled_v1", "length_controlled_noreg", "length_controlled_minimal"]
    row = board(tmp_path)
    assert float(row["length_controlled_winrate"]) == forms["length_controlled_v1"]["value"]
    assert float(row["lc_standard_error"]) == forms["length_controlled_v1"]["standard_error"]
    with pytest.raises(XwinError, match=r"n = 20 of 25 instructions have a value$"):
        go(tmp_path, str(tmp_path / "a.json"), calibration=calibration(tmp_path / "more.csv", 25))
    few = annotated(tmp_path / "few.json", *rows[:4])
    made = go(tmp_path, few, out="few", calibration=calibration(tmp_path / "four.csv", 4))
    assert made["package"]["length_controlled_v1"] is None  # fewer rows than folds
    with pytest.raises(XwinError, match="knows 7 instructions, there are 20"):
        go(tmp_path, str(tmp_path / "a.json"), calibration=calibration(tmp_path / "fewer.csv", 7))


def test_the_baseline_itself_is_50_by_construction(tmp_path: Path) -> None:
    rows = [annotation(f"q{k}", 1.5, "same", "same", generator_2="base") for k in range(6)]
    made = go(tmp_path, annotated(tmp_path / "a.json", *rows), calibration=calibration(tmp_path / "gamed.csv", 6))
    fit = made["package"]["length_controlled_v1"]
    assert (fit["value"], fit["standard_error"], fit["c"]) == (50, 0, None) and made["standard_error"] == 0


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"preference": "?"}, r"gamed\.csv:13: field preference: expected a number, got '\?'"),
        ({"preference": 1.5}, r"gamed\.csv:13: field preference: is 1.5"),
        ({"std_delta_len": "nan"}, r"gamed\.csv:13: field std_delta_len: is nan"),
        ({"index": 9}, r"gamed\.csv: field index: does not count"),
    ],
)
def test_calibration_files_that_are_refused(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    known = annotated(tmp_path / "a.json", annotation("q", 1))
    with pytest.raises(XwinError, match=what):
        go(tmp_path, known, calibration=calibration(tmp_path / "gamed.csv", 6, **change))


def test_another_table_is_no_calibration(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("index,instruction_difficulty\n0,1.5\n")
    known = annotated(tmp_path / "a.json", annotation("q", 1))
    with pytest.raises(XwinError, match=r"d\.csv:1: field preference: is missing"):
        go(tmp_path, known, calibration=str(tmp_path / "d.csv"))
