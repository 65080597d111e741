"""eval compare with judges that fail, only rate, only compare, or are language models behind a server."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "engines"))
import faulty

from by_number import ByNumber, entry
from xwincli import jsonl, judges
from xwincli.errors import FAILED_ROWS, LIMIT, USAGE, XwinError
from xwincli.judges import Answer, Item
from xwincli.stages.eval_compare import Config, run


class Scripted(ByNumber):
    """``ByNumber`` that has no answer about some texts: an error in place, raised, or of a judge that cannot."""

    def __init__(
        self, *bad: str, rates: bool = True, compares: bool = True, raises: bool = False, code: int = 1
    ) -> None:
        super().__init__()
        self.bad, self.rates, self.compares, self.raises, self.code = bad, rates, compares, raises, code

    def _said(self, value: Any, *texts: str) -> Any:
        if not set(texts) & set(self.bad):
            return value
        error = XwinError(f"no verdict on {texts[0]}", "", self.code)
        if self.raises:
            raise error
        return error

    def verdicts(self, items: Sequence[Item]) -> Iterator[Any]:
        if not self.compares:
            raise XwinError("it rates single answers", "", USAGE)
        for i, v in zip(items, super().verdicts(items), strict=True):
            yield self._said(v, i.a, i.b)

    def ratings(self, answers: Sequence[Answer]) -> Iterator[Any]:
        if not self.rates:
            raise XwinError("it compares two answers", "", USAGE)
        for a, r in zip(answers, super().ratings(answers), strict=True):
            yield self._said(r, a.text)


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compare files of numbers with a scripted judge: ``ran(judge, base={…}, other={…})`` -> eval.json."""

    def call(judge: Any, **rows: dict[str, list[float]]) -> dict[str, Any]:
        monkeypatch.setattr(judges, "find", lambda *a, **k: judge)
        names = [n for n in rows if n != "options"]
        for name in names:
            made = entry(name, rows[name]).groups.values()
            jsonl.write(str(tmp_path / f"{name}.jsonl"), made)
        run(Config(files=[str(tmp_path / f"{n}.jsonl") for n in names], out=str(tmp_path / "e"), rounds=100))
        return dict(json.loads((tmp_path / "e/eval.json").read_text()))

    return call


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("bad", ["7", "3"])  # an answer of either model
def test_a_prompt_without_a_verdict_is_left_out_of_every_figure(
    ran: Any, tmp_path: Path, bad: str, raises: bool
) -> None:
    rows = {"base": {"p": [1, 2], "q": [3, 4], "r": [5, 5]}, "other": {"p": [2, 3.5], "q": [7, 1], "r": [5, 6]}}
    with pytest.raises(XwinError, match=r"n = 2 of 3 prompts.*no verdict on") as e:
        ran(Scripted(bad, raises=raises), **rows)
    assert e.value.code == FAILED_ROWS
    facts = json.loads((tmp_path / "e/eval.json").read_text())
    assert facts["prompts"] == 2 and facts["coverage"] == pytest.approx(2 / 3) and list(facts["failed"]) == ["q"]
    assert facts["models"][1]["mean"]["value"] == (2.75 + 5.5) / 2 and facts["models"][1]["wins"] == 3
    for name in ("judgements.jsonl", "ratings/base.jsonl", "ratings/other.jsonl"):
        assert {json.loads(x)["prompt_id"] for x in (tmp_path / "e" / name).read_text().splitlines()} == {"p", "r"}
    (failed,) = map(json.loads, (tmp_path / "e/failed.jsonl").read_text().splitlines())
    assert failed["row"]["prompt_id"] == "q" and "no verdict" in failed["error"]
    assert json.loads((tmp_path / "e/xwin.json").read_text())["counts"]["missing"] == 1
    assert ran(Scripted(), **rows)["coverage"] == 1
    assert not (tmp_path / "e/failed.jsonl").exists()  # the same command has asked again
    assert json.loads((tmp_path / "e/xwin.json").read_text())["counts"]["missing"] == 0


def test_no_verdict_at_all_and_a_spent_budget(ran: Any, tmp_path: Path) -> None:
    rows = {"base": {"p": [1]}, "other": {"p": [2]}}
    with pytest.raises(XwinError, match="no prompt has a verdict") as e:
        ran(Scripted("1"), **rows)
    assert e.value.code == FAILED_ROWS and not (tmp_path / "e/eval.json").exists()
    with pytest.raises(XwinError, match="no verdict on 2") as e:
        ran(Scripted("2", code=LIMIT), **rows)
    assert e.value.code == LIMIT and not (tmp_path / "e/eval.json").exists()


def test_a_judge_that_only_compares_or_only_rates(ran: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"base": {"p": [1, 2], "q": [3, 4]}, "other": {"p": [2, 3], "q": [7, 4]}}
    compares = ran(Scripted(rates=False), **rows)["models"][1]
    assert "it compares two answers" in capsys.readouterr().err
    assert (compares["wins"], compares["ties"]) == (3, 1)
    assert compares["mean"] is None and compares["gain"] is None and "gain" not in compares["tests"]
    rates = ran(Scripted("none", compares=False), **{**rows, "other": {"p": [2, 3], "q": [8, 4]}})["models"][1]
    assert (rates["wins"], rates["ties"], rates["gain"]["value"]) == (3, 1, (1 + 2.5) / 2)
    with pytest.raises(XwinError, match="neither rates nor compares"):
        ran(Scripted(rates=False, compares=False), **rows, third={"p": [1, 1], "q": [1, 1]})


def test_a_rating_from_before_does_not_outlive_another_judge(ran: Any, tmp_path: Path) -> None:
    rows = {"base": {"p": [1]}, "other": {"p": [2]}}
    ran(ByNumber(), **rows)
    rated = tmp_path / "e/ratings/other.jsonl"
    assert "gold" in rated.read_text()
    base = entry("base", {"p": [1]})
    base.groups["p"].responses[0].scores = {"gold": 9.0}
    jsonl.write(str(tmp_path / "a.jsonl"), base.groups.values())
    run(Config(files=[str(tmp_path / "a.jsonl"), str(rated)], out=str(tmp_path / "e2"), rounds=100))
    assert "9.0" not in (tmp_path / "e2/ratings/a.jsonl").read_text()


# -- language models as judges, through a server


def _longer(body: dict[str, Any], before: int) -> Any:
    """A judge that likes length; of an answer that holds "unreadable" it says nothing."""
    asked = body["messages"][-1]["content"]
    texts = [m[1] for m in re.finditer(r"\[ANSWER(?: [AB])? \w+\]\n(.*?)\n\[END", asked, re.DOTALL)]
    if any("unreadable" in t for t in texts):
        said = "I cannot say."
    elif len(texts) == 1:
        said = f"Rating: [[{min(len(texts[0]), 10)}]]"
    else:
        a, b = map(len, texts)
        word = "tie" if a == b else "B" if b > a else "A"
        said = json.dumps({"reason": "length", "rating_a": min(a, 10), "rating_b": min(b, 10), "preference": word})
    choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    return faulty.raw(json.dumps({"choices": [choice], "usage": usage}))


@pytest.mark.parametrize(("name", "rated"), [("pairwise", False), ("mt-bench-single", True)])
def test_language_models_judge_and_what_they_leave_unread_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, rated: bool
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    base, other = entry("base", {"p": [1], "q": [1], "r": [1]}), entry("other", {"p": [333], "q": [1], "r": [1]})
    other.groups["r"].responses[0].text = "unreadable"
    for e in (base, other):
        jsonl.write(str(tmp_path / f"{e.name}.jsonl"), e.groups.values())
    with faulty.Faulty(_longer) as server:
        cache = {"judge_cache": str(tmp_path / "cache.sqlite"), "judge_base_url": server.url, "judge_model": ["m"]}
        options = judges.Options(judge=name, asks_again=0, **cache)  # type: ignore[arg-type]
        files = [str(tmp_path / f"{n}.jsonl") for n in ("base", "other")]
        with pytest.raises(XwinError, match=r"n = 2 of 3 prompts.*holds no verdict") as e:
            run(Config(files=files, out=str(tmp_path / "e"), options=options, rounds=100))
    assert e.value.code == FAILED_ROWS
    facts = json.loads((tmp_path / "e/eval.json").read_text())
    m = facts["models"][1]
    assert (facts["judge"], m["wins"], m["ties"], list(facts["failed"])) == (f"{name}:m", 1, 1, ["r"])
    assert m["mean"] == (pytest.approx({**m["mean"], "value": 2.0}) if rated else None)
    assert ("compares two answers" in capsys.readouterr().err) != rated
