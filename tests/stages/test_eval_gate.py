"""The regression gate: verdicts by hand, joins, flaky prompts, JUnit, sampling, failing judges, the matrix."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

import pytest

from xwincli import jsonl, judges
from xwincli.errors import FAILED_ROWS, LIMIT, USAGE, XwinError
from xwincli.judges import Answer, Item, Rated, Verdict
from xwincli.protocols import gate, gate_matrix
from xwincli.records import Group, Prompt, Response, prompt_id
from xwincli.stages import eval_gate
from xwincli.stages.eval_gate import Config, run

N = 20


def ask(i: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"Say tea, number {i}."}]


def suite(path: Path, n: int = N, **extra: Any) -> str:
    checks = None if extra else [{"kind": "mentions", "value": "tea"}, {"kind": "max_words", "value": 5}]
    jsonl.write(str(path), (Prompt(prompt=ask(i), id=f"row{i}", checks=checks, extra=extra) for i in range(n)))
    return str(path)


def answers(path: Path, texts: Sequence[Sequence[str]]) -> str:
    """One list of answers a prompt."""
    rows = (
        Group(
            id=f"g{i}",
            prompt_id=prompt_id(ask(i)),
            prompt=ask(i),
            responses=[Response(text=t, index=k) for k, t in enumerate(said)],
        )
        for i, said in enumerate(texts)
    )
    jsonl.write(str(path), rows)
    return str(path)


def first(tmp_path: Path, texts: Sequence[Sequence[str]] = (("Tea.",),) * N) -> str:
    """A baseline made by the gate itself."""
    options = {
        "suite": suite(tmp_path / "suite.jsonl", len(texts)),
        "answers": [answers(tmp_path / "old.jsonl", texts)],
    }
    run(Config(out=str(tmp_path / "old-gate.jsonl"), save_baseline=str(tmp_path / "base.jsonl"), **options))
    return str(tmp_path / "base.jsonl")


def second(tmp_path: Path, texts: Sequence[Sequence[str]], **options: Any) -> dict[str, gate.Row]:
    options = {"baseline": str(tmp_path / "base.jsonl"), "suite": str(tmp_path / "suite.jsonl"), **options}
    made = answers(tmp_path / "new.jsonl", texts)
    run(Config(answers=[made], out=str(tmp_path / "gate.jsonl"), rounds=500, **options))
    return gate.read(str(tmp_path / "gate.jsonl"))


def fallen(k: int, n: int = N) -> list[list[str]]:
    return [["Coffee." if i < k else "Tea."] for i in range(n)]


# -- verdicts


def test_without_a_baseline_it_passes_and_makes_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = gate.read(first(tmp_path))
    assert len(rows) == N and {r.score for r in rows.values()} == {1.0}
    assert "passed: checks: no baseline" in capsys.readouterr().err
    assert (tmp_path / "old-gate.jsonl.xwin.json").exists()


def test_a_real_loss_exits_4(tmp_path: Path) -> None:
    first(tmp_path)
    with pytest.raises(XwinError, match=r"a real loss: checks 1 -> 0.6 \(worse\)") as e:
        second(tmp_path, fallen(8))
    assert e.value.code == LIMIT and "8 prompts fell" in e.value.hint
    rows = gate.read(str(tmp_path / "gate.jsonl"))  # the results are there all the same
    assert sum(r.score for r in rows.values()) == 12 and rows[prompt_id(ask(0))].missed == ["mentions 'tea'"]
    with pytest.raises(XwinError, match="a real loss"):  # and a rerun, which is up to date, says the same
        second(tmp_path, fallen(8))


def test_a_loss_that_chance_explains_passes_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first(tmp_path)
    rows = second(tmp_path, fallen(3))
    assert rows[prompt_id(ask(0))].baseline == 1 and rows[prompt_id(ask(0))].change == -1
    assert "passed: checks: not distinguishable" in capsys.readouterr().err
    with pytest.raises(XwinError, match=r"not distinguishable, but the loss of 0.15 is beyond --max-loss 0.1") as e:
        second(tmp_path, fallen(3), max_loss=0.1)
    assert e.value.code == LIMIT
    second(tmp_path, fallen(3), max_loss=0.15)  # as large as is permitted


def test_a_gain_passes_and_a_lost_gate_saves_no_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first(tmp_path, fallen(10))
    second(tmp_path, fallen(0), save_baseline=str(tmp_path / "next.jsonl"))
    assert "passed: checks: better" in capsys.readouterr().err and (tmp_path / "next.jsonl").exists()
    with pytest.raises(XwinError):
        second(tmp_path, fallen(20), save_baseline=str(tmp_path / "worse.jsonl"))
    assert not (tmp_path / "worse.jsonl").exists()


def test_several_answers_a_prompt_are_one_score_and_may_be_flaky(tmp_path: Path) -> None:
    first(tmp_path, [["Tea.", "Tea."]] * 4)
    rows = second(tmp_path, [["Tea.", "Milk."], ["Tea.", "Tea."], ["No.", "No."], ["Tea."]])
    mixed = rows[prompt_id(ask(0))]
    assert (mixed.score, mixed.scores, mixed.flaky) == (0.5, [1, 0], True)
    assert [r.flaky for r in rows.values()] == [True, False, False, False]
    made = json.loads((tmp_path / "gate.jsonl.xwin.json").read_text())["metrics"]["measures"]["checks"]
    assert made["flaky"] == 1 and made["before"] == 1 and made["now"] == (0.5 + 1 + 0 + 1) / 4


# -- joins and bad input


def test_joins_are_strict(tmp_path: Path) -> None:
    first(tmp_path)
    with pytest.raises(XwinError, match=r"new\.jsonl: 3 of 20 prompts of the suite are missing"):
        second(tmp_path, fallen(0, 17))
    suite(tmp_path / "suite.jsonl", 22)
    with pytest.raises(XwinError, match=r"base\.jsonl: 2 prompts of the suite are not in it"):
        second(tmp_path, fallen(0, 22))
    rows = second(tmp_path, fallen(0, 22), common=True)
    assert [r.baseline for r in rows.values()].count(None) == 2
    suite(tmp_path / "suite.jsonl", 18)
    with pytest.raises(XwinError, match="2 of its prompts are gone"):
        second(tmp_path, fallen(0, 18))


def test_another_measure_than_before_is_refused(tmp_path: Path) -> None:
    first(tmp_path)
    suite(tmp_path / "suite.jsonl", judge="rules")
    with pytest.raises(XwinError, match="measured by 'checks', now by 'rules'"):
        second(tmp_path, fallen(0))


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"id": "x", "measure": "checks", "scores": [1]}, "missing required field `score`"),
        ({"id": "x", "measure": "checks", "score": "1", "scores": [1]}, "Expected `float`, got `str`"),
    ],
)
def test_a_baseline_that_is_none(tmp_path: Path, row: dict[str, Any], what: str) -> None:
    first(tmp_path)
    (tmp_path / "base.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(XwinError, match=rf"base\.jsonl:1: .*{what}"):
        second(tmp_path, fallen(0))
    assert not (tmp_path / "gate.jsonl").exists()


def test_a_bad_suite_names_the_line(tmp_path: Path) -> None:
    rows = [{"prompt": "a ?"}, {"prompt": "b ?", "checks": [{"kind": "rhymes"}]}]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(XwinError, match=r"s\.jsonl:2: field checks\[0\]: unknown check kind 'rhymes'"):
        gate.suite(str(tmp_path / "s.jsonl"), "rules")
    (tmp_path / "s.jsonl").write_text('{"prompt": "a ?"}\n' * 2)
    with pytest.raises(XwinError, match=r"s\.jsonl:2: field prompt: .* stands twice"):
        gate.suite(str(tmp_path / "s.jsonl"), "rules")
    (tmp_path / "s.jsonl").write_text('{"prompt": "a ?", "judge": 3}\n')
    with pytest.raises(XwinError, match=r"s\.jsonl:1: field judge: 3"):
        gate.suite(str(tmp_path / "s.jsonl"), "rules")


# -- judges


class ByLength:
    """Longer is better; ``bad`` texts have no verdict."""

    name = scorer = "by-length"

    def __init__(self, *bad: str, rates: bool = True) -> None:
        self.bad, self.rates = bad, rates

    def receipt(self) -> dict[str, float]:
        return {}

    def ratings(self, answers: Sequence[Answer]) -> Iterator[Rated | XwinError]:
        if not self.rates:
            raise XwinError("it compares", "", USAGE)
        for a in answers:
            yield XwinError(f"none on {a.text}") if a.text in self.bad else Rated(rating=float(len(a.text)))

    def verdicts(self, items: Sequence[Item]) -> Iterator[Verdict | XwinError]:
        for i in items:
            bad = {i.a, i.b} & set(self.bad)
            yield XwinError("none") if bad else Verdict(preference=float(len(i.b) > len(i.a)))


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    suite(tmp_path / "suite.jsonl", 8, judge="by-length")

    def call(judge: Any, texts: Sequence[str], out: str, **options: Any) -> list[gate.Row]:
        monkeypatch.setattr(judges, "find", lambda *a, **k: judge)
        made, path = answers(tmp_path / f"{out}-answers.jsonl", [[t] for t in texts]), tmp_path / f"{out}.jsonl"
        run(Config(suite=str(tmp_path / "suite.jsonl"), answers=[made], out=str(path), rounds=200, **options))
        return list(gate.read(str(path)).values())

    return call


def test_a_judge_rates_prompts_that_name_it(judged: Any, tmp_path: Path) -> None:
    rows = judged(ByLength(), ["1234"] * 8, "old")
    assert {(r.measure, r.score) for r in rows} == {("by-length", 4.0)}
    with pytest.raises(XwinError, match="a real loss: by-length 4 -> 2"):
        judged(ByLength(), ["12"] * 8, "new", baseline=str(tmp_path / "old.jsonl"))


def test_a_judge_that_compares_plays_against_the_baselines_answers(judged: Any, tmp_path: Path) -> None:
    rows = judged(ByLength(rates=False), ["1234"] * 8, "old")
    assert {r.score for r in rows} == {0.5} and all(r.duel for r in rows)
    options = {"baseline": str(tmp_path / "old.jsonl")}
    with pytest.raises(XwinError, match=r"by-length 0.5 -> 0 \(worse\)"):
        judged(ByLength(rates=False), ["12"] * 8, "new", **options)
    rows = judged(ByLength(rates=False), ["12345"] * 4 + ["1234"] * 4, "next", **options)
    assert [r.score for r in rows] == [1.0] * 4 + [0.5] * 4  # equal answers cost no call
    chained = judged(ByLength(rates=False), ["12345"] * 8, "last", baseline=str(tmp_path / "next.jsonl"))
    assert {r.baseline for r in chained} == {0.5}  # the opponent is even with itself, whatever it scored before


def test_a_judge_of_the_suite_gets_the_options_it_can_use() -> None:
    given = judges.Options(judge="rubric", judge_model=["m"], judge_base_url="http://x/v1", max_usd=2)
    config = Config(out="o", options=given)
    assert eval_gate._options(config, "rubric") is given
    rules = eval_gate._options(config, "rules")
    assert (rules.judge_model, rules.judge_base_url) == ([], "")
    asked = eval_gate._options(Config(out="o", options=judges.Options(noise=1, max_usd=2)), "faithfulness")
    assert (asked.noise, asked.max_usd) == (0, 2)


@pytest.mark.parametrize("rates", [True, False])
def test_prompts_without_a_verdict_exit_3(judged: Any, tmp_path: Path, rates: bool) -> None:
    judged(ByLength(rates=rates), ["1234"] * 8, "old")
    texts, options = (
        ["1234x"] * 7 + ["bad"],
        {"baseline": str(tmp_path / "old.jsonl"), "junit": str(tmp_path / "j.xml")},
    )
    with pytest.raises(XwinError, match="n = 7 of 8 prompts") as e:
        judged(ByLength("bad", rates=rates), texts, "new", **options)
    assert e.value.code == FAILED_ROWS
    (failed,) = map(json.loads, (tmp_path / "new.failed.jsonl").read_text().splitlines())
    assert failed["row"]["prompt"] == ask(7)
    assert xml.parse(tmp_path / "j.xml").getroot().find(".//error") is not None
    assert json.loads((tmp_path / "new.jsonl.xwin.json").read_text())["counts"]["missing"] == 1
    assert len(judged(ByLength(rates=rates), texts, "new", **options)) == 8
    assert not (tmp_path / "new.failed.jsonl").exists()
    with pytest.raises(XwinError, match="no prompt has a verdict"):
        judged(ByLength("bad", rates=rates), ["bad"] * 8, "none", **options)


# -- JUnit


def test_junit_is_red_only_where_the_gate_is(tmp_path: Path) -> None:
    first(tmp_path)
    path = str(tmp_path / "j.xml")
    second(tmp_path, fallen(3), junit=path)
    (found,) = xml.parse(path).getroot()
    assert (found.get("tests"), found.get("failures"), found.get("errors")) == ("21", "0", "0")
    assert "1 -> 0 (1 answers) mentions 'tea'" in [c.findtext("system-out") for c in found]
    with pytest.raises(XwinError):
        second(tmp_path, fallen(9), junit=path)
    (found,) = xml.parse(path).getroot()
    assert found.get("failures") == "10"  # nine prompts and the verdict
    assert found[0].find("failure").get("message") == "checks: 1 -> 0.55 over 20 prompts: worse"  # type: ignore[union-attr]


def test_what_xml_cannot_hold_is_replaced(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "bell \x07 <tag> & \ufffe"}]
    jsonl.write(str(tmp_path / "s.jsonl"), [Prompt(prompt=said, checks=[{"kind": "mentions", "value": "tea"}])])
    group = Group(id="g", prompt_id=prompt_id(said), prompt=said, responses=[Response(text="Tea.")])
    jsonl.write(str(tmp_path / "a.jsonl"), [group])
    out = {"out": str(tmp_path / "o.jsonl"), "junit": str(tmp_path / "j.xml")}
    run(Config(suite=str(tmp_path / "s.jsonl"), answers=[str(tmp_path / "a.jsonl")], **out))
    (found,) = xml.parse(tmp_path / "j.xml").getroot()
    assert "bell \ufffd <tag> &" in str(found[1].get("name"))


# -- through the command line


def test_the_command_samples_compares_and_exits_4(xwin: Any, tmp_path: Path) -> None:
    rows = [{"prompt": f"tea number {i} is", "checks": [{"kind": "mentions", "value": "tea"}]} for i in range(12)]
    (tmp_path / "suite.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    draw = ("--engine", "echo", "--n", 3, "--rounds", 200)
    xwin("eval", "gate", "suite.jsonl", *draw, "--out", "a.jsonl", "--save-baseline", "base.json")
    assert all(len(r.scores) == 3 for r in gate.read(str(tmp_path / "a.jsonl")).values())
    done = xwin("eval", "gate", "suite.jsonl", *draw, "--out", "b.jsonl", "--baseline", "base.json", "--seed", 1)
    assert "not distinguishable" in done.stderr or "better" in done.stderr
    done = xwin(
        "eval", "gate", "suite.jsonl", *draw, "--max-tokens", 2, "--out", "c.jsonl", "--baseline", "base.json", code=4
    )
    assert "a real loss" in done.stderr and len(gate.read(str(tmp_path / "c.jsonl"))) == 12
    done = xwin("eval", "gate", "suite.jsonl", *draw, "--out", "b.jsonl", "--baseline", "base.json", "--seed", 1)
    assert "up to date" in done.stderr


def test_a_policy_answers_the_suite_itself(policy: Path, tmp_path: Path) -> None:
    config = Config(suite=suite(tmp_path / "s.jsonl", 3), model=str(policy), out=str(tmp_path / "o.jsonl"))
    config.sampling.n, config.sampling.max_tokens = 2, 4
    run(config)
    assert [len(r.answers) for r in gate.read(str(tmp_path / "o.jsonl")).values()] == [2, 2, 2]
    made = json.loads((tmp_path / "o.jsonl.xwin.json").read_text())
    assert made["machine"]["device"] and made["inputs"][1]["digest"]


def test_usage_errors(xwin: Any, tmp_path: Path) -> None:
    suite(tmp_path / "suite.jsonl")
    same = ("--out", "o.jsonl", "--baseline", "./o.jsonl", "--engine", "echo")
    assert "is the baseline" in xwin("eval", "gate", "suite.jsonl", *same, code=2).stderr
    assert "suite is required" in xwin("eval", "gate", "--out", "o.jsonl", code=2).stderr
    done = xwin("eval", "gate", "suite.jsonl", "--out", "o.jsonl", code=2)
    assert "either --answers or --model" in done.stderr
    done = xwin("eval", "gate", "suite.jsonl", "--out", "o.jsonl", "--model", "m", "--engine", "openai", code=2)
    assert "--base-url" in done.stderr


def test_a_matrix_runs_every_combination(xwin: Any, tmp_path: Path) -> None:
    for name, n in (("chat", 20), ("code", 16)):
        suite(tmp_path / f"{name}.jsonl", n)
    for name, k in (("good", 0), ("bad", 12)):
        answers(tmp_path / f"{name}.jsonl", fallen(k))
    table = {"suite": ["chat.jsonl", "code.jsonl"], "answers": ["good.jsonl"]}
    (tmp_path / "m.json").write_text(json.dumps(table))
    run_it = ("eval", "gate", "--matrix", "m.json", "--jobs", 2, "--rounds", 200)
    xwin(*run_it, "--out", "first", "--save-baseline", "base")
    assert sorted(p.name for p in (tmp_path / "base").glob("*.jsonl")) == ["chat.jsonl", "code.jsonl"]
    (tmp_path / "m.json").write_text(json.dumps({**table, "answers": ["bad.jsonl"]}))
    done = xwin(*run_it, "--out", "second", "--baseline", "base", "--junit", "j.xml", code=4)
    assert "2 of 2 gates did not pass: chat, code" in done.stderr and "a real loss" in done.stderr
    suites = [s.get("name") for s in xml.parse(tmp_path / "j.xml").getroot()]
    assert suites == ["chat: chat.jsonl: checks", "code: code.jsonl: checks"]


def test_names_and_errors_of_a_matrix(tmp_path: Path) -> None:
    options = {"suite": "", "model": "", "judge": "rules", "seed": 0, "jobs": 1}
    path = tmp_path / "m.yaml"
    path.write_text("suite: [a/chat.jsonl, code.jsonl]\nmodel: [x/base, tuned]\njudge: rubric\n")
    found = gate_matrix.read(str(path), options)
    assert list(found) == ["chat-base", "chat-tuned", "code-base", "code-tuned"]
    assert found["code-tuned"] == {"suite": "code.jsonl", "model": "tuned", "judge": "rubric", "seed": 0, "jobs": 1}
    for text, what in [
        ("suite: a\nsuite: b\n", "field suite: stands twice"),
        ("colour: red\n", "field colour: is no option"),
        ("jobs: 3\n", "field jobs: is the whole matrix's"),
        ("suite: [a/x.jsonl, b/x.jsonl]\n", "two gates are called 'x'"),
        ("suite: []\n", "no alternatives"),
        ("- a\n", "is a table of options"),
        ("{", "not a valid matrix"),
    ]:
        path.write_text(text)
        with pytest.raises(XwinError, match=what):
            gate_matrix.read(str(path), options)
    with pytest.raises(XwinError, match="cannot read the matrix"):
        gate_matrix.read(str(tmp_path / "none.yaml"), options)


def test_the_commands_of_the_example_workflow_parse() -> None:
    import yaml

    from xwincli import flags

    folder = Path(__file__).parents[2] / "examples" / "github-actions"
    steps = yaml.safe_load((folder / "gate.yml").read_text())["jobs"]["gate"]["steps"]
    commands = [s["run"] for s in steps if "xwin eval gate" in s.get("run", "")]
    assert len(commands) == 2
    for command in commands:
        words = shlex.split(command.replace("$BASE_URL", "http://x/v1").replace("$MODEL", "m"))
        assert flags.command("eval gate", Config, "")(words[3:]).suite == "gate/suite.jsonl"
    shown = [line for line in (folder / "README.md").read_text().splitlines() if line.strip().startswith('{"prompt"')]
    assert len(shown) == 2 and all("prompt" in json.loads(line) for line in shown)
