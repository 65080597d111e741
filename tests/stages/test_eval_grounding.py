"""Claims, abstention, the overlap baseline, arms of an ablation, labels, coverage; by hand and on the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "engines"))
import faulty

from xwincli import jsonl, judges
from xwincli.errors import XwinError
from xwincli.judges import Answer, Options, Rated, overlap
from xwincli.protocols import ablation, compare, grounding
from xwincli.protocols.claims import abstains, claims, declines
from xwincli.records import Group, Prompt, Response, decode
from xwincli.settings import Device
from xwincli.stages.eval_grounding import Config, run
from xwincli.stages.eval_grounding import Options as ClaimJudge

LABELLED = Path(__file__).parents[2] / "examples" / "grounding" / "labelled.jsonl"
TOWER = "The tower was built in 1874 by Ada Morland. It is not open on Mondays."


# -- claims and abstention


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It was built in 1874. It is tall!", ["It was built in 1874.", "It is tall!"]),
        ("The tower is tall; the lamp is new.", ["The tower is tall", "the lamp is new."]),
        ("The tower is tall, but nobody climbs it today.", ["The tower is tall", "nobody climbs it today."]),
        ("Ada built the tower, and it still stands there.", ["Ada built the tower", "it still stands there."]),
        ("She bought apples, pears and red plums.", ["She bought apples, pears and red plums."]),
        ("Here is what I found:\n- **Ada** built it.\n2. It is 3.5 m tall.", ["Ada built it.", "It is 3.5 m tall."]),
        ("Who built it? Ada Morland did.", ["Ada Morland did."]),
        ("I'm sorry, but I can't help with that.", []),
        ("The passage does not say who built it. It was built in 1874.", ["It was built in 1874."]),
        ("```python\nprint(1)\n```\nThis prints one.", ["This prints one."]),
        ("It is.", []),
        ("", []),
    ],
)
def test_claims(text: str, found: list[str]) -> None:
    assert claims(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I cannot answer that.",
        "The context does not mention the price.",
        "This is not stated in the passage.",
        "There is no information about her age.",
        "I don't know.",
        "It cannot be determined from the text. It opened in 1932.",
        "The passages provided don't contain the answer.",
        "Not enough information.",
        "Unknown.",
    ],
)
def test_abstaining(text: str) -> None:
    assert abstains(text)


@pytest.mark.parametrize(
    "text",
    [
        "The species is not found in Europe.",
        "There is no objective evidence for it.",
        "It is a document with no extra parameters included.",
        "I'm sorry to hear that your dog died.",
        "Nobody knows the price of the document.",
        "It opened in 1932. The passage does not say who came.",
        "The text was written by Ada.",
        "You can't buy it there.",
        "",
    ],
)
def test_not_abstaining(text: str) -> None:
    assert not abstains(text)


def test_refusals() -> None:
    assert declines("Sorry, I can't do that.") and declines("As an AI language model, I have no opinion.")
    assert not declines("I can do that.") and not declines("Canada is large.")


# -- the overlap baseline


@pytest.mark.parametrize(
    ("claim", "rating"),
    [
        ("The tower was built in 1874.", 1),
        ("The tower was built in 1974.", -1),
        ("Ada Morland built the tower.", 1),
        ("Tom Morland built the tower.", -1),
        ("The tower was not built in 1874.", -1),
        ("The tower is open on Mondays.", -1),
        ("The walls are painted green.", 0),
        ("It opened in eighteen places.", 0),
        ("Ada Morland was built by the tower.", 1),  # words alone: who did what to whom is beyond it
    ],
)
def test_overlap(claim: str, rating: int) -> None:
    assert overlap.judge_claim(claim, [TOWER]).rating == rating


def test_overlap_reads_numbers_in_any_spelling_and_all_contexts() -> None:
    texts = ["Birds sing.", "The shop sold 1,200 loaves in twelve days."]
    assert overlap.judge_claim("The shop sold 1200 loaves in 12 days.", texts).rating == 1
    assert overlap.judge_claim("The shop sold 1300 loaves in 12 days.", texts).rating == -1
    assert overlap.judge_claim("Anything at all.", []).rating == 0


def test_overlap_is_a_judge_of_claims_alone() -> None:
    judge = overlap.make(Options(judge="overlap"), 0, Device())
    assert judge.receipt() == {} and judges.find("overlap").name == "overlap"
    with pytest.raises(XwinError, match="cannot compare"):
        judge.verdicts([])
    with pytest.raises(XwinError, match="--noise means nothing"):
        overlap.make(Options(judge="overlap", noise=1), 0, Device())


# -- figures


class Scripted:
    """Says of each claim what its script has; an exclamation mark is unreadable."""

    name = scorer = "scripted"

    def __init__(self, script: dict[str, float]) -> None:
        self.script, self.asked = script, list[Answer]()

    def receipt(self) -> dict[str, float]:
        return {}

    def ratings(self, answers: Sequence[Answer]) -> Iterator[Rated | XwinError]:
        for a in answers:
            self.asked.append(a)
            yield XwinError("unreadable") if a.text.endswith("!") else Rated(rating=self.script[a.text])


def entry(name: str, rows: dict[str, list[str]], contexts: list[str] | None) -> compare.Entry:
    groups = []
    for p, texts in rows.items():
        responses = [Response(text=t, index=i) for i, t in enumerate(texts)]
        ask = [{"role": "user", "content": f"about {p}"}]
        groups.append(Group(id=p, prompt_id=p, prompt=ask, responses=responses, contexts=contexts))
    return compare.entry(name, f"{name}.jsonl", groups)


SCRIPT = {"Yes one.": 1.0, "Yes two.": 1.0, "Gone one.": 0.0, "Wrong one.": -1.0}


def judged(e: compare.Entry, use: bool = True) -> tuple[dict[str, Any], Scripted, dict[str, str]]:
    judge, failed = Scripted(SCRIPT), dict[str, str]()
    found = [c for _, block in grounding.judge_claims(judge, e, list(e.groups), use, failed) for c in block]
    prompts = [p for p in e.groups if p not in failed]
    equal = None if use else "exact"
    (facts,) = grounding.standings([e], prompts, [found], equal=equal, rounds=200, seed=0)
    return facts, judge, failed


def test_every_figure_by_hand() -> None:
    rows = {
        "p": ["Yes one. Gone one.", "Yes one. Wrong one."],
        "q": ["Yes one. Yes two.", "I don't know."],
        "r": ["I don't know.", "I cannot say."],
    }
    facts, judge, failed = judged(entry("m", rows, ["c"]))
    value = {k: v["value"] for k, v in facts.items() if isinstance(v, dict) and "value" in v}
    assert facts["counts"] == {"supported": 4, "absent": 1, "contradicted": 1} and facts["with_claims"] == 2
    assert (value["unsupported"], value["contradicted"], value["absent"]) == (0.25, 0.125, 0.125)
    assert value["tainted"] == 0.5  # both of p's, neither of q's; r has no claim
    assert value["abstained"] == 0.5 and value["claims"] == 1  # of r all, of q half; 2 + 1 + 0 an answer
    assert not failed and len(judge.asked) == 5  # equal claims on one prompt are asked once
    assert judge.asked[0].contexts == ["c"] and judge.asked[0].prompt[0]["content"] == "about p"


def test_a_claim_without_verdict_leaves_its_prompt_out() -> None:
    facts, _, failed = judged(entry("m", {"p": ["Yes one. Ruined here!"], "q": ["Gone one."]}, ["c"]))
    assert failed == {"p": "m: unreadable"} and facts["unsupported"]["value"] == 1


def test_without_contexts_the_other_answers_judge() -> None:
    facts, judge, _ = judged(entry("m", {"p": ["Yes one.", "Yes two.", "Yes two."]}, None), use=False)
    assert [a.contexts for a in judge.asked] == [["Yes two."], ["Yes one.", "Yes two."]]
    assert facts["agreement"]["value"] == pytest.approx(5 / 9)


def test_rows_with_and_without_contexts_do_not_mix() -> None:
    one, two = entry("a", {"p": ["x"]}, ["c"]), entry("b", {"p": ["x"]}, None)
    assert grounding.grounded([one]) and not grounding.grounded([two])
    with pytest.raises(XwinError, match=r"b\.jsonl: prompt p: field contexts: is missing"):
        grounding.grounded([one, two])


def test_only_claim_judges_will_do() -> None:
    with pytest.raises(XwinError, match="judge rules rated a claim") as e:
        list(
            grounding.labels(judges.find("rules"), [grounding.asked([{"role": "user", "content": "q"}], "x y", ["c"])])
        )
    assert "overlap, faithfulness" in e.value.hint


# -- arms


def prompts(n: int = 6) -> list[Prompt]:
    return [
        Prompt(
            id=f"p{i}",
            prompt=[{"role": "user", "content": f"Where is town {i}?"}],
            contexts=[f"Town {i // 2} lies on river {i // 2 + 20}."],
            reference=f"river {i // 2 + 20}",
        )
        for i in range(n)
    ]


def test_arms_differ_in_their_passages_alone() -> None:
    rows = prompts()
    arms = {arm: ablation.emit(rows, arm, seed=0) for arm in ablation.ARMS}
    shown = {arm: [str(p.prompt[-1]["content"]) for p in made] for arm, made in arms.items()}
    for i, row in enumerate(rows):
        (own,) = row.contexts or []
        assert own in shown["right"][i] and own in shown["distractor"][i]
        assert own not in shown["none"][i] and own not in shown["shuffled"][i] and "(none)" in shown["none"][i]
        assert "[2]" in shown["distractor"][i] and "Town" in shown["shuffled"][i]
        for arm in ablation.ARMS:
            assert shown[arm][i].endswith(f"Question: Where is town {i}?")
            assert arms[arm][i].contexts == row.contexts and arms[arm][i].reference == row.reference
    assert ablation.emit(rows, "shuffled", seed=0) == arms["shuffled"]
    assert ablation.emit(rows, "shuffled", seed=1) != arms["shuffled"]


def test_an_ablation_needs_other_passages_and_a_bare_question() -> None:
    with pytest.raises(XwinError, match="no other prompt has passages of its own"):
        ablation.emit(prompts(2), "shuffled", seed=0)
    holds = Prompt(id="p", prompt=[{"role": "user", "content": "It rains. Does it?"}], contexts=["It rains."])
    with pytest.raises(XwinError, match=r"holds contexts\[0\] already"):
        ablation.question(holds)


# -- labels


def test_labels_by_hand() -> None:
    ask = [{"role": "user", "content": "q"}]
    rows = [
        grounding.Labelled(
            id="a",
            prompt=ask,
            contexts=["c"],
            claims=[
                {"text": "Yes one.", "label": "supported", "kind": "easy"},
                {"text": "Gone one.", "label": "contradicted", "kind": "hard"},
            ],
        ),
        grounding.Labelled(
            id="b", prompt=ask, contexts=["d"], claims=[{"text": "Wrong one.", "label": "contradicted", "kind": "hard"}]
        ),
        grounding.Labelled(
            id="c", prompt=ask, contexts=["e"], claims=[{"text": "Bad!", "label": "absent", "kind": "hard"}]
        ),
    ]
    found = grounding.against_labels(Scripted(SCRIPT), rows, rounds=200, seed=0)
    assert (found["texts"], found["judged"], found["claims"]) == (3, 2, 3) and found["failed"] == {"c": "unreadable"}
    assert found["accuracy"] == pytest.approx(2 / 3) and found["by_text"]["value"] == 0.75
    assert found["classes"]["contradicted"]["recall"] == 0.5 and found["classes"]["absent"]["recall"] is None
    assert found["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)  # of the classes that are there
    assert found["kinds"] == {"easy": {"claims": 1, "right": 1}, "hard": {"claims": 2, "right": 1}}
    assert [w["text"] for w in found["wrong"]] == ["Gone one."]


def test_the_labelled_set_is_balanced_and_harder_than_overlap() -> None:
    """What the baseline is worth, written down: a change to it shows here."""
    rows = grounding.read_labelled(str(LABELLED))
    found = grounding.against_labels(overlap.Overlap(), rows, rounds=200, seed=0)
    support = {name: s["support"] for name, s in found["classes"].items()}
    assert len(rows) == 20 and support == {"supported": 39, "absent": 22, "contradicted": 31}
    assert len({c["text"] for r in rows for c in r.claims}) == 92
    assert found["accuracy"] == pytest.approx(56 / 92) and found["macro_f1"] == pytest.approx(0.611, abs=0.001)
    assert found["kinds"]["number"] == {"claims": 6, "right": 6} and found["kinds"]["paraphrase"]["right"] == 0


def test_bad_labels_name_line_and_field(tmp_path: Path) -> None:
    good = json.loads(LABELLED.read_text().splitlines()[0])
    for change, what in [
        ({"contexts": []}, "field contexts"),
        ({"claims": [{"text": "x", "label": "maybe"}]}, r"field claims\[0\].label: is none of supported"),
        ({"claims": [{"text": " ", "label": "absent"}]}, r"field claims\[0\].text"),
        ({"prompt": [{"role": "user"}]}, r"field prompt\[0\].content: is missing"),
    ]:
        (tmp_path / "l.jsonl").write_text(json.dumps(good) + "\n" + json.dumps({**good, **change}) + "\n")
        with pytest.raises(XwinError, match=rf"l\.jsonl:2: {what}"):
            grounding.read_labelled(str(tmp_path / "l.jsonl"))


# -- through the command line


def answered(folder: Path, source: str, name: str, texts: Any) -> None:
    """Groups as ``xwin sample`` makes them of prompts, with answers by row."""
    rows = [decode(json.loads(line), Prompt) for line in (folder / source).read_text().splitlines()]
    made = []
    for i, row in enumerate(rows):
        responses = [Response(text=t, index=k, finish="stop") for k, t in enumerate(texts(i))]
        made.append(Group(prompt=row.prompt, contexts=row.contexts, extra=row.extra, responses=responses, model=name))
    jsonl.write(str(folder / f"{name}.jsonl"), made)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    jsonl.write(str(tmp_path / "prompts.jsonl"), prompts(12))
    return tmp_path


def test_the_command_and_a_rerun(xwin: Any, folder: Path) -> None:
    answered(folder, "prompts.jsonl", "good", lambda i: [f"Town {i // 2} lies on river {i // 2 + 20}."] * 2)
    answered(folder, "prompts.jsonl", "bad", lambda i: [f"Town {i // 2} lies on river 99.", "I don't know."])
    call = ("eval", "grounding", "good.jsonl", "bad.jsonl", "--out", "g", "--rounds", 200)
    done = xwin(*call)
    assert "bad against good: unsupported rises (+100.0 points)" in done.stderr and "baseline" in done.stderr
    facts = json.loads((folder / "g/eval.json").read_text())
    good, bad = facts["models"]
    assert good["unsupported"]["value"] == 0 and bad["contradicted"]["value"] == 1
    assert bad["abstained"]["value"] == 0.5 and facts["judged_by"] == "contexts" and facts["meaning"] is None
    rows = [json.loads(x) for x in (folder / "g/results.jsonl").read_text().splitlines()]
    assert len(rows) == 36 and {r["label"] for r in rows if r["model"] == "bad"} == {"contradicted"}
    assert json.loads((folder / "g/xwin.json").read_text())["metrics"]["unsupported"]["bad"] == 1
    assert "up to date" in xwin(*call).stderr
    rows_of_bad = (folder / "bad.jsonl").read_text().splitlines(keepends=True)
    (folder / "bad.jsonl").write_text("".join(rows_of_bad[:8]))
    config = Config(files=[str(folder / f"{n}.jsonl") for n in ("good", "bad")], out=str(folder / "c"), rounds=100)
    with pytest.raises(XwinError, match=r"bad\.jsonl: 4 of 12 prompts are missing"):
        run(config)
    config.common = True
    run(config)
    assert json.loads((folder / "c/eval.json").read_text())["prompts"] == 8


def test_an_ablation_from_prompts_to_figures(xwin: Any, folder: Path) -> None:
    xwin("eval", "grounding", "prompts.jsonl", "--emit-ablation", "arms")
    assert {p.name for p in (folder / "arms").iterdir()} == {*(f"{a}.jsonl" for a in ablation.ARMS), "xwin.json"}
    assert "up to date" in xwin("eval", "grounding", "prompts.jsonl", "--emit-ablation", "arms").stderr
    for arm in ablation.ARMS:
        knows = arm in ("right", "distractor")
        answered(folder, f"arms/{arm}.jsonl", arm, lambda i, knows=knows: [
            f"Town {i // 2} lies on river {i // 2 + 20}." if knows else "That is not in the context."])  # fmt: skip
    call = ("eval", "grounding", "right.jsonl", "none.jsonl", "shuffled.jsonl", "distractor.jsonl", "--rounds", 200)
    done = xwin(*call, "--out", "g", "--contexts", "right,none,shuffled,distractor")
    assert "none against right: abstained rises (+100.0 points)" in done.stderr
    facts = json.loads((folder / "g/eval.json").read_text())
    assert [m["shown"] for m in facts["models"]] == ["right", "none", "shuffled", "distractor"]
    assert [m["abstained"]["value"] for m in facts["models"]] == [0, 1, 1, 0] and facts["prompts"] == 12
    xwin(*call, "--out", "h")  # the rows say themselves what was shown
    assert json.loads((folder / "h/eval.json").read_text())["models"] == facts["models"]
    done = xwin(*call, "--out", "i", "--contexts", "right,right,shuffled,distractor", code=1)
    assert "none.jsonl:1: field ablation.arm: is 'none', --contexts says 'right'" in done.stderr
    assert not (folder / "i").exists()


def test_self_consistency_is_called_a_risk_signal(xwin: Any, folder: Path) -> None:
    rows = prompts(12)
    for p in rows:
        p.contexts = None
    jsonl.write(str(folder / "bare.jsonl"), rows)
    texts = ["The river is red.", "The river is red.", "Nine cats sleep."]
    answered(folder, "bare.jsonl", "m", lambda i: texts)
    done = xwin("eval", "grounding", "m.jsonl", "--out", "g", "--rounds", 200)
    assert "a risk signal, not truth" in done.stderr
    facts = json.loads((folder / "g/eval.json").read_text())
    (m,) = facts["models"]
    assert m["unsupported"]["value"] == pytest.approx(1 / 3) and m["agreement"]["value"] == pytest.approx(5 / 9)
    answered(folder, "bare.jsonl", "n", lambda i: ["It is 4.", "So: 4"])
    agreed = []
    for equal in ("exact", "numeric"):
        run(Config(files=[str(folder / "n.jsonl")], out=str(folder / equal), equal=equal, rounds=100))
        agreed.append(json.loads((folder / equal / "eval.json").read_text())["models"][0]["agreement"]["value"])
    assert agreed == [0.5, 1]
    answered(folder, "bare.jsonl", "one", lambda i: texts[:1])
    done = xwin("eval", "grounding", "one.jsonl", "--out", "h", code=1)
    assert "has no contexts and one answer" in done.stderr


def test_the_labelled_command(xwin: Any, folder: Path) -> None:
    done = xwin("eval", "grounding", "--labelled", LABELLED)
    assert done.stdout == "" and "92 claims on 20 of 20 texts judged by overlap: accuracy 60.9 %" in done.stderr
    xwin("eval", "grounding", "--labelled", LABELLED, "--out", "l")
    facts = json.loads((folder / "l/eval.json").read_text())
    assert facts["protocol"] == "grounding labelled" and len(facts["wrong"]) == 36


def test_failed_verdicts_exit_3(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered(folder, "prompts.jsonl", "m", lambda i: ["Bad!" if i == 3 else "Yes one."])
    monkeypatch.setattr(judges, "find", lambda *a, **k: Scripted(SCRIPT))
    config = Config(files=[str(folder / "m.jsonl")], out=str(folder / "g"), rounds=100)
    for _ in range(2):  # an incomplete evaluation is never up to date
        with pytest.raises(XwinError, match="n = 11 of 12") as e:
            run(config)
        assert e.value.code == 3
    facts = json.loads((folder / "g/eval.json").read_text())
    assert list(facts["failed"].values()) == ["m: unreadable"]
    rows = [json.loads(x) for x in (folder / "g/results.jsonl").read_text().splitlines()]
    assert [r["label"] for r in rows].count(None) == 1


def test_usage_errors(folder: Path) -> None:
    data, out = [str(folder / "prompts.jsonl")], str(folder / "g")
    jsonl.write(str(folder / "bare.jsonl"), [Prompt(id="p", prompt=[{"role": "user", "content": "hello"}])])
    for config, code, what in [
        (Config(), 2, "there is no file"),
        (Config(files=data), 2, "--out is required"),
        (Config(files=data, labelled=str(LABELLED)), 2, "the judge alone"),
        (Config(files=data, out=out, emit_ablation=str(folder / "a")), 2, "its own folder"),
        (Config(files=data, emit_ablation=data[0]), 2, "is a file"),
        (Config(files=data, out=out, contexts="wrong"), 2, "'wrong' is no arm"),
        (Config(files=data, out=out, contexts="none,right"), 2, "2 arms for 1 files"),
        (
            Config(files=[str(folder / "bare.jsonl")], emit_ablation=out),
            1,
            r"bare\.jsonl:1: field contexts: is missing",
        ),
    ]:
        with pytest.raises(XwinError, match=what) as e:
            run(config)
        assert e.value.code == code and not (folder / "g").exists()


def test_a_language_model_judges_and_is_asked_again_only_where_it_failed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    answered(
        folder, "prompts.jsonl", "m", lambda i: [f"Town {i} has a harbour. Town {i} is red." if i else "A bad one."]
    )
    mended: list[bool] = []

    def reply(body: dict[str, Any], before: int) -> faulty.Fault:
        text = str(body["messages"][-1]["content"])
        if "A bad one." in text and not mended:
            return faulty.status(500)
        content = json.dumps({"reason": "", "verdict": "supported" if "has a harbour" in text else "contradicted"})
        choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        return faulty.raw(json.dumps({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 9}}))

    with faulty.Faulty(reply) as server:
        options = ClaimJudge(
            judge="faithfulness",
            judge_base_url=server.url,
            judge_model=["gpt-4o-mini"],
            judge_cache=str(folder / "cache.sqlite"),
            judge_retries=0,
        )
        config = Config(files=[str(folder / "m.jsonl")], out=str(folder / "g"), options=options, rounds=100)
        with pytest.raises(XwinError, match="n = 11 of 12"):
            run(config)
        facts = json.loads((folder / "g/eval.json").read_text())
        assert facts["claims"] == 22 and facts["models"][0]["contradicted"]["value"] == 0.5
        calls, _ = len(server.requests), mended.append(True)
        run(config)
        assert len(server.requests) == calls + 1
    facts = json.loads((folder / "g/eval.json").read_text())
    assert facts["prompts"] == 12 and facts["models"][0]["counts"]["contradicted"] == 12
