"""The page of a whole pretended run: self-contained, escaped, and true to eval.json."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import fakerun
from xwincli.errors import XwinError
from xwincli.report import page, summary
from xwincli.report.collect import Run, collect

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Reader(HTMLParser):
    """Collects tags, attributes and text, and insists that tags nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(k, v or "") for k, v in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return collect(fakerun.make(tmp_path_factory.mktemp("fake") / "run"))


@pytest.fixture(scope="module")
def html(run: Run) -> str:
    return page.render(run)


@pytest.fixture(scope="module")
def reader(html: str) -> Reader:
    parsed = Reader()
    parsed.feed(html)
    assert parsed.open == []
    return parsed


def test_collected(run: Run) -> None:
    assert len(run.artifacts) == 18 and run.main is not None and run.main.models == list(fakerun.SKILL)
    assert set(run.curves) == {"rm", "rs", "control", "dpo", "ppo"} and len(run.curves["ppo"]) == 6
    sources = {a.path: a.sources for a in run.artifacts}
    assert sources["dpo"] == ["dpo.jsonl", "rs"] and sources["scored.jsonl"] == ["set.jsonl", "rm"]
    assert sources["eval"] == [f"eval-{n}.jsonl" for n in fakerun.SKILL]


def test_text_from_prompts_and_models_is_escaped(html: str, reader: Reader) -> None:
    assert "script" not in reader.tags and "b" not in reader.tags
    assert html.count("&lt;script&gt;alert(&#x27;prompt&#x27;)&lt;/script&gt;") == 1
    assert html.count("&lt;script&gt;alert(&#x27;answer&#x27;)&lt;/script&gt; &amp; &lt;b&gt;bold&lt;/b&gt;") == 5


def test_nothing_is_loaded_from_anywhere(html: str, reader: Reader) -> None:
    assert not {"link", "img", "iframe", "script", "object"} & reader.tags
    assert all(v.startswith("#") for k, v in reader.attributes if k in ("href", "src"))
    assert not any(k.startswith("on") for k, _ in reader.attributes)
    assert "url(" not in html and "@import" not in html and "http" not in html


def test_every_section_is_there_and_linked(reader: Reader) -> None:
    ids = {v for k, v in reader.attributes if k == "id"}
    assert ids == {"models-0", "made", "training", "best", "scores", "answers", "time"}
    assert {v[1:] for k, v in reader.attributes if k == "href"} == ids


def test_the_table_says_what_eval_json_says(run: Run, reader: Reader) -> None:
    facts = json.loads((run.folder / "eval" / "eval.json").read_text())
    words = " ".join(reader.words)
    for m in facts["models"]:
        assert f"{m['mean']['value']:.2f}" in words and m["verdict"] in words
        if "win_rate" in m:
            e = m["win_rate"]
            assert f"{e['value']:.1f}" in words and f"{e['low']:.1f} – {e['high']:.1f}" in words


def test_a_dozen_prompts_each_with_every_model(html: str) -> None:
    assert html.count("<article>") == 12 and html.count('<div class="answer ') == 12 * 5
    assert "at most 13 words; mentions &#x27;rain&#x27;" in html


def test_footer_and_time(html: str, reader: Reader) -> None:
    words = " ".join(reader.words)
    assert "0.1.0" in words and "device=cpu dtype=bfloat16" in words and "3m26s · ppo" in html


def test_a_nan_loss_breaks_nothing(run: Run) -> None:
    broken = Run(run.folder, run.artifacts, [], {"rm": [{"step": 1, "loss": None}, {"step": 2, "loss": 0.5}]})
    assert "Training" not in page.render(broken)  # one point is no curve
    broken.curves["rm"].append({"step": 3, "loss": 0.4, "note": "text", "on": True})
    assert re.search(r"<h3>rm</h3>.*loss", page.render(broken))


def test_a_run_without_evaluations_has_a_page_and_a_summary(tmp_path: Path) -> None:
    fakerun.stage(tmp_path / "a.jsonl", "sample", ["prompts.jsonl"], 2)
    run = collect(tmp_path)
    out = page.render(run)
    assert "What was made from what" in out and "Answers" not in out
    assert summary.terminal(run).startswith("no page yet")


def test_summary(run: Run) -> None:
    out = summary.terminal(run)
    lines = out.splitlines()
    assert lines[0].split("  ")[0] == "model" and "worst of 8" in lines[0] and "win rate [95 %]" in lines[0]
    assert [line.split()[0] for line in lines[2:7]] == list(fakerun.SKILL)
    assert sum(line.startswith("> Tell me") for line in lines) == 3
    assert sum(line.startswith("  base (") for line in lines) == 3


def test_spread_out_takes_even_distances() -> None:
    assert summary.spread_out(list("abcdefgh"), 4) == ["b", "d", "f", "h"]
    assert summary.spread_out(list("abc"), 12) == ["a", "b", "c"]


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(XwinError, match="no manifest"):
        collect(tmp_path)
    with pytest.raises(XwinError, match="no such folder"):
        collect(tmp_path / "none")
    fakerun.stage(tmp_path / "a.jsonl", "sample", [], 1)
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "eval.json").write_text("{", encoding="utf-8")
    with pytest.raises(XwinError, match=r"eval\.json: not valid JSON"):
        collect(tmp_path)
