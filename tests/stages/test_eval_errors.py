"""Error patterns: each tag by example, figures by hand, clusters that come out the same, and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fakerun
from xwincli import jsonl
from xwincli.errors import XwinError
from xwincli.protocols import compare, error_patterns
from xwincli.protocols.error_tags import echoes, language, loops, switches, tags
from xwincli.records import Group, Response
from xwincli.stages.eval_errors import Config, run

ASK = "Please write a short note about the history of the old harbour and of the people who worked in it."


def group(texts: list[str], ask: str = ASK, finish: str | None = "stop", **facts: Any) -> Group:
    responses = [Response(text=t, index=i, finish=finish) for i, t in enumerate(texts)]
    return Group(id=ask, prompt_id=ask, prompt=[{"role": "user", "content": ask}], responses=responses, **facts)


def tagged(text: str, ask: str = ASK, finish: str | None = "stop", unmet: tuple[str, ...] = ()) -> list[str]:
    g = group([text], ask, finish)
    return tags(g, g.responses[0], unmet)


FINE = "The harbour was dug by hand. Fishermen, carters and clerks earned their bread there for two centuries."


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (FINE, []),
        ("", ["empty"]),
        (" \n-- ", ["empty"]),
        ("The harbour is old and so on and so on and so on and so on", ["loop"]),
        ("I'm sorry, but I can't help with that.", ["refusal"]),
        ("Der Hafen ist alt und die Fischer waren nicht reich, aber sie hatten den Fisch und das Meer für sich.",
         ["language switch"]),
        ("古い港は二百年前に手で掘られました。", ["language switch"]),
        ("The harbour is old.<|im_end|>", ["format break"]),
        ("The harbour is old.\nUSER: and now?", ["format break"]),
        ("```\nharbour = 1\n", ["format break"]),
        (ASK, ["prompt echo"]),
        (f"Sure. {ASK}", ["prompt echo"]),
    ],
)  # fmt: skip
def test_tags(text: str, found: list[str]) -> None:
    assert tagged(text) == found


@pytest.mark.parametrize(
    ("text", "ask"),
    [
        ("I'm so sorry to hear that. Lost harbours hurt.", ASK),
        ("🐱😺", "Answer by emojis."),
        ("See https://example.org/der/die/und/das/ist/nicht/ein/mit/auf/para/el/los and nothing else.", ASK),
        ("the people who worked in it and what they did there", "Which words are the longest? " + ASK * 3),  # excerpt
        ("The old harbour is called the Basin.", "The old harbour is called"),
        ("Use ``` to open a block and not ~~~.", ASK),
        ("let harbour = 1;", ASK),
    ],
)
def test_what_looks_like_an_error_and_is_none(text: str, ask: str) -> None:
    assert tagged(text, ask, finish=None) == []


def test_cut_off_needs_a_limit_or_a_word_that_begs_another() -> None:
    assert tagged(FINE, finish="length") == ["cut off"]
    assert tagged("The harbour was dug by the", finish=None) == ["cut off"]
    assert tagged("The harbour was dug by the", finish="stop") == [] and tagged(FINE, finish=None) == []


def test_unmet_demands_about_form_break_the_format() -> None:
    assert tagged(FINE, unmet=("bullets",)) == ["format break"] == tagged(FINE, unmet=("change_case:x",))
    assert tagged(FINE, unmet=("max_words",)) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("very very very good", False),
        ("yes " * 6, True),
        ("one two three. " * 3 + "one two", True),  # the last round may be cut
        ("a b c d " * 2, False),
        ("ha" * 60, True),
        ("-" * 300, False),
        ("I see the sea.\n" * 4 + "The end of it all.", True),
        ("for x in xs:\n    return None\nif y:\n    return None\n", False),
        (FINE, False),
    ],
)
def test_loops(text: str, found: bool) -> None:
    assert loops(text) is found


def test_languages() -> None:
    assert language("the cat and the dog is of this house") == "English"
    assert language("le chat est dans la maison pour les enfants") == "French"
    assert language("Paris") is None
    german = "Der Hafen ist alt und die Fischer waren nicht reich, das ist für den Ort nicht gut."
    assert switches("What is the history of the harbour and of the men?", german)
    assert not switches("Translate this into German for the boss: the harbour is old and it is of use.", german)
    assert not switches("Was ist das für ein Hafen, und die Fischer, der Ort, den sich nicht?", german)
    assert not switches("Write the value of π and of the rest that is known.", "It is 3.14, as π is.")


def test_echoes() -> None:
    assert echoes("Say it again", "say it again") and not echoes("yes", "yes")
    assert not echoes(ASK, FINE)


# -- figures


def entry(name: str, rows: dict[str, list[str]], **facts: Any) -> compare.Entry:
    return compare.entry(name, f"{name}.jsonl", [group(texts, p, **facts) for p, texts in rows.items()])


def examined(entries: list[compare.Entry], most: int = 3) -> list[dict[str, Any]]:
    prompts = list(entries[0].groups)
    models = [(e.name, error_patterns.examine(e, prompts)) for e in entries]
    clusters = error_patterns.cluster_failing(entries, [c for _, own in models for c in own], most, seed=0)
    return error_patterns.patterns(models, prompts, clusters, rounds=200, seed=0)


def test_every_figure_by_hand() -> None:
    ok, no = "It is a fine day at sea.", "I'm sorry, but I can't help with that."
    base = entry("base", {"p": [ok, no], "q": [ok, no], "r": [ok, ok], "s": [ok, ok]})
    other = entry("other", {"p": [no, no], "q": [ok, no], "r": [ok, no], "s": [ok, ok]})
    by = {f["pattern"]: f["models"] for f in examined([base, other])}
    one, two = by["refusal"]
    assert (one["answers"], one["prompts"], one["share"]["value"]) == (2, 2, 0.25) and "lift" not in one
    assert (two["answers"], two["prompts"], two["share"]["value"]) == (4, 3, 0.5)
    assert two["lift"]["value"] == 2 and two["lift"]["low"] < 2 < two["lift"]["high"]
    assert two["p"] == pytest.approx(1) and two["p_holm"] == 1  # 2 of 4 prompts against 3 of 4
    assert one["examples"] == [{"prompt_id": "p", "index": 1}, {"prompt_id": "q", "index": 1}]
    assert "lift" not in by["empty"][1] and "unmet demand" not in by


def test_a_pattern_that_one_model_never_shows_counts_prompts() -> None:
    ok, no = "It is a fine day at sea.", "I'm sorry, but I can't help with that."
    names = "abcdefgh"
    base, other = entry("base", {p: [ok] for p in names}), entry("other", {p: [no] for p in names})
    two = {f["pattern"]: f["models"] for f in examined([base, other])}["refusal"][1]
    assert two["lift"]["value"] == pytest.approx(8.5 / 0.5)  # half a prompt added to each side
    assert two["p"] == pytest.approx(2 / 12870) and two["p_holm"] == pytest.approx(2 * two["p"])  # and one cluster


def test_scores_and_demands_fail_answers_too() -> None:
    e = entry("m", {"p": ["one two three", "one"]}, checks=[{"kind": "max_words", "value": 2}])
    for r, s in zip(e.groups["p"].responses, (5.0, 1.0), strict=True):
        r.scores["rm"] = s
    first, second = error_patterns.examine(e, ["p"], "rm", 2.0)
    assert (first.unmet, first.low, list(first.patterns())) == (["max_words"], False, ["unmet demand"])
    assert (second.unmet, second.low, list(second.patterns())) == ([], True, ["low score"])


def test_clusters_part_topics_and_come_out_the_same() -> None:
    fish = [f"the trout and the salmon swim in river number {i}" for i in range(12)]
    cars = [f"a motor with a gearbox drives on road number {i}" for i in range(8)]
    labels, terms, near = error_patterns.by_words([*fish, *cars], 2, seed=0)
    assert labels == [1] * 12 + [2] * 8 and {"trout", "salmon"} <= set(terms[0]) and "gearbox" in terms[1]
    assert near[0][0] < 12 <= near[1][0] and len(near[1]) == 8
    assert error_patterns.by_words([*fish, *cars], 2, seed=0) == (labels, terms, near)
    assert error_patterns.by_words(["the", "and"], 2, seed=0) == ([0, 0], [], [])
    assert error_patterns.by_words(["a cat", "a cat"], 5, seed=0)[0] == [1, 1]


# -- through the command line


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name in ("base", "rs"):
        jsonl.write(str(tmp_path / f"{name}.jsonl"), fakerun.groups(name, prompts=20, n=4))
    return tmp_path


def test_the_command(xwin: Any, files: Path) -> None:
    call = ("eval", "errors", "base.jsonl", "rs.jsonl", "--out", "e", "--rounds", 200, "--clusters", 3)
    done = xwin(*call)
    assert done.stdout == "" and "unmet demand" in done.stderr and "cluster 1 (" in done.stderr
    facts = json.loads((files / "e/eval.json").read_text())
    by = {f["pattern"]: f for f in facts["patterns"]}
    assert set(by) >= {"empty", "cut off", "loop", "unmet demand", "cluster 1", "cluster 2", "cluster 3"}
    assert by["unmet demand"]["models"][1]["lift"]["high"] < 1  # the better model misses fewer demands
    rows = [json.loads(x) for x in (files / "e/tags.jsonl").read_text().splitlines()]
    assert len(rows) == 160 and {r["model"] for r in rows} == {"base", "rs"}
    failing = [r for r in rows if r["failing"]]
    assert all((r["cluster"] is not None) == r["failing"] for r in rows)
    assert sum(c["size"] for p, c in by.items() if p.startswith("cluster")) == len(failing)
    base = [r for r in rows if r["model"] == "base"]
    share = sum("cut off" in r["tags"] for r in base) / 80
    assert by["cut off"]["models"][0]["share"]["value"] == pytest.approx(share)
    made = json.loads((files / "e/xwin.json").read_text())
    assert made["metrics"]["failing"]["base"] == pytest.approx(sum(r["failing"] for r in base) / 80)
    assert "up to date" in xwin(*call).stderr


def test_one_file_and_a_low_score(files: Path) -> None:
    run(Config(files=[str(files / "rs.jsonl")], out=str(files / "e"), score="rm", below=0.0, rounds=100))
    facts = json.loads((files / "e/eval.json").read_text())
    low = next(f for f in facts["patterns"] if f["pattern"] == "low score")
    assert low["models"][0]["answers"] > 0 and "lift" not in low["models"][0]


def test_a_model_without_failures_has_no_clusters(tmp_path: Path) -> None:
    jsonl.write(str(tmp_path / "m.jsonl"), [group([FINE])])
    run(Config(files=[str(tmp_path / "m.jsonl")], out=str(tmp_path / "e"), rounds=100))
    facts = json.loads((tmp_path / "e/eval.json").read_text())
    assert facts["models"][0]["failing"] == 0 and not any("terms" in f for f in facts["patterns"])


def test_files_may_share_some_prompts(tmp_path: Path) -> None:
    for name, prompts in (("a", "pq"), ("b", "p")):
        jsonl.write(str(tmp_path / f"{name}.jsonl"), [group([FINE], p) for p in prompts])
    config = Config(files=[str(tmp_path / f"{n}.jsonl") for n in "ab"], out=str(tmp_path / "e"), rounds=100)
    with pytest.raises(XwinError, match=r"b\.jsonl: 1 of 2 prompts are missing: q"):
        run(config)
    config.common = True
    run(config)
    facts = json.loads((tmp_path / "e/eval.json").read_text())
    assert facts["prompts"] == 1 and facts["missing"] == {"b": ["q"]}


def test_bad_input(files: Path) -> None:
    out, base = str(files / "e"), str(files / "base.jsonl")
    for config, code, what in [
        (Config(files=[base], out=out, score="rm"), 2, "go together"),
        (
            Config(files=[base], out=out, score="gold", below=1.0),
            1,
            r"base\.jsonl:1: field responses\[0\]\.scores\.gold",
        ),
        (Config(files=[str(files / "none.jsonl")], out=out), 1, r"none\.jsonl: no such file"),
        (Config(files=[base], out=base), 2, "is a file"),
    ]:
        with pytest.raises(XwinError, match=what) as e:
            run(config)
        assert e.value.code == code and not (files / "e").exists()
    m = entry("m", {"p": ["x"]}, checks=[{"kind": "nonsense"}])
    with pytest.raises(XwinError, match=r"m\.jsonl: prompt p: field checks\[0\]: unknown check kind"):
        error_patterns.examine(m, ["p"])
