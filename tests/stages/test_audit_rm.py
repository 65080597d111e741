"""``xwin audit rm`` and the audit at the end of ``train-rm``: true to plain transformers; what each option does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from xwincli import flags, manifest, settings
from xwincli.errors import XwinError
from xwincli.stages import audit_rm, train_rm
from xwincli.train import valid

CPU = {"device": "cpu", "dtype": "float32"}
WORDS = ["tea", "rain", "fox", "moon", "river", "dog", "sun", "coffee"]
LONG = "the {w} shines and shines and shines ."


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def judgement(word: str, a: str, b: str, ratings: tuple[float, float], *preferences: float) -> dict:
    return {
        "kind": "judgement",
        "prompt": [{"role": "user", "content": f"about {word} ?"}],
        "a": {"text": a, "rating": ratings[0]},
        "b": {"text": b, "rating": ratings[1]},
        "games": [{"first": s, "preference": p} for s, p in zip("ab", preferences, strict=True)],
        "judge": "rules",
    }


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """Two judgements a prompt: one clear, one a tie of two orders that disagree."""
    rows = []
    for i, w in enumerate(WORDS):
        rows.append(judgement(w, LONG.format(w=w), f"no {w}", (8, 2 + i % 3), 0, 0))
        rows.append(judgement(w, f"a {w} .", "no no no", (5, 5), 0, 0.8))
    return write(tmp_path / "judged.jsonl", rows)


@pytest.fixture(scope="module")
def rm(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model that is not trained at all: any will do."""
    from xwincli import models, settings

    out = tmp_path_factory.mktemp("rm") / "rm"
    place = models.place(settings.Device(**CPU))
    models.save(models.new_reward(str(policy), place, 0), out)
    return out


def audit(out: Path, **options: Any) -> dict[str, Any]:
    audit_rm.run(flags.build(audit_rm.Config, {**CPU, "rounds": 100, **options, "out": str(out)}))
    return json.loads((out if out.suffix else out / "audit.json").read_text())


def plain_reward(folder: Path, prompt: str, answer: str) -> float:
    """The reward by transformers alone."""
    tok = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    talk = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    with torch.no_grad():
        return model(**tok.apply_chat_template(talk, return_tensors="pt")).logits.item()


def test_figures_are_those_of_plain_transformers(rm, judged, tmp_path):
    found = audit(tmp_path / "a", rm=str(rm), data=[str(judged)])
    ask = [f"about {w} ?" for w in WORDS]
    chosen = [plain_reward(rm, p, LONG.format(w=w)) for p, w in zip(ask, WORDS, strict=True)]
    rejected = [plain_reward(rm, p, f"no {w}") for p, w in zip(ask, WORDS, strict=True)]
    lead = np.subtract(chosen, rejected)
    assert (found["pairs"], found["prompts"], found["responses"]) == (8, 8, 16)
    assert found["accuracy"]["value"] == pytest.approx((lead > 0).mean())
    assert found["ruler"]["value"] == 1.0
    assert found["calibration"]["brier"] == pytest.approx((1 / (1 + np.exp(lead)) ** 2).mean(), abs=1e-4)
    assert found["reward_by_length"][-1]["reward"]["value"] == pytest.approx(max(chosen), abs=2)
    assert [(b["from"], b["to"], b["n"]) for b in found["by_margin"]] == [(4, 4, 2), (5, 5, 3), (6, 6, 3)]
    made = manifest.read(tmp_path / "a")
    assert made["stage"] == "audit rm"
    assert made["metrics"] == {"accuracy": found["accuracy"]["value"], "audit": found}
    assert made["counts"] == {"prompts": 8, "pairs": 8, "ties": 8, "dropped": 0}


def test_train_rm_ends_with_the_audit_that_audit_rm_would_make(policy, judged, tmp_path, capsys):
    given = {**CPU, "model": str(policy), "data": [str(judged)], "out": str(tmp_path / "rm"), "valid": 0.5}
    train_rm.run(flags.build(train_rm.Config, given | {"batch": 2, "lr": 1e-2, "epochs": 4}))
    err = capsys.readouterr().err
    assert "held out: audit on" in err
    assert "warning: the reward model is not better than preferring the longer answer (1.000 against 1.000)" in err
    assert "hint: train on more prompts" in err
    metrics = manifest.read(tmp_path / "rm")["metrics"]
    told = json.loads((tmp_path / "rm" / "audit.json").read_text())
    assert metrics["audit"] == told
    assert (metrics["valid_accuracy"], metrics["longer_is_better"]) == (1.0, 1.0)
    assert told["by_margin"]
    assert told["rating"]["pearson"] > 0.9
    rows = [json.loads(line) for line in judged.read_text().splitlines()]
    held = [rows[i] for i in valid.split(map(prompt_id, rows), settings.RowsRun(out="x", valid=0.5))]
    again = audit(
        tmp_path / "a", rm=str(tmp_path / "rm"), data=[str(write(tmp_path / "held.jsonl", held))], rounds=2000
    )
    assert again["prompts"] == told["prompts"] < 8
    assert again["calibration"]["log_loss"] == pytest.approx(told["calibration"]["log_loss"], abs=1e-4)
    assert again["accuracy"] == told["accuracy"]


def prompt_id(row: dict) -> str:
    from xwincli.records import prompt_id

    return prompt_id(row["prompt"])


def test_no_held_out_prompt_no_audit(policy, judged, tmp_path):
    given = {**CPU, "model": str(policy), "data": [str(judged)], "out": str(tmp_path / "rm"), "valid": 0.0}
    train_rm.run(flags.build(train_rm.Config, given))
    assert manifest.read(tmp_path / "rm")["metrics"] == {}
    assert not (tmp_path / "rm" / "audit.json").exists()


@pytest.mark.parametrize(
    ("option", "where"),
    [
        ({"soft": True}, "pairs"), ({"limit": 6}, "prompts"), ({"rounds": 300}, "calibration"),
        ({"seed": 3}, "calibration"), ({"dtype": "bfloat16"}, "calibration"),
    ],
    ids=lambda o: str(o),
)  # fmt: skip
def test_every_deciding_option_changes_the_audit(rm, judged, tmp_path, option, where):
    plain = audit(tmp_path / "a", rm=str(rm), data=[str(judged)])
    other = audit(tmp_path / "b", rm=str(rm), data=[str(judged)], **option)
    assert plain[where] != other[where]
    if "soft" in option:
        assert other["ties"] == 0
        assert other["pairs"] == 16  # a preference of .4 on average is a chance of .6
    if "limit" in option:
        assert (other["prompts"], other["pairs"]) == (3, 3)


def test_rows_of_tokens_change_nothing_and_force_makes_it_anew(rm, judged, tmp_path, capsys):
    out = tmp_path / "a.json"
    plain = audit(out, rm=str(rm), data=[str(judged)])
    made = (tmp_path / "a.json.xwin.json").read_text()
    audit(out, rm=str(rm), data=[str(judged)], max_tokens_per_row=24)
    assert "up to date" in capsys.readouterr().err
    small = audit(out, rm=str(rm), data=[str(judged)], max_tokens_per_row=24, force=True)
    assert (tmp_path / "a.json.xwin.json").read_text() != made
    assert small["calibration"]["brier"] == pytest.approx(plain["calibration"]["brier"], abs=1e-5)


def test_rated_groups_by_the_score_named(rm, tmp_path):
    texts = ["the fox shines .", "a fox .", "no"]
    scores = [{"gold": 9, "other": 1}, {"gold": 5, "other": 5}, {"gold": 1, "other": 9}]
    responses = [{"text": t, "index": i, "scores": s} for i, (t, s) in enumerate(zip(texts, scores, strict=True))]
    rows = [
        {"kind": "group", "prompt": [{"role": "user", "content": f"about {w} ?"}], "responses": responses}
        for w in WORDS
    ]
    data = [str(write(tmp_path / "g.jsonl", rows))]
    gold, other = (audit(tmp_path / s, rm=str(rm), data=data, scores=s) for s in ("gold", "other"))
    assert (gold["pairs"], gold["responses"]) == (24, 24)
    assert gold["accuracy"]["value"] == pytest.approx(1 - other["accuracy"]["value"])
    assert gold["rating"]["pearson"] == pytest.approx(-other["rating"]["pearson"])
    with pytest.raises(XwinError, match="has the scores gold, other"):
        audit(tmp_path / "no", rm=str(rm), data=data)


def test_what_does_not_fit_is_left_out_and_counted(rm, judged, tmp_path, capsys):
    long = judgement("owl", "fox " * 600, "no", (9, 1), 0, 0)
    rows = [json.loads(line) for line in judged.read_text().splitlines()]
    found = audit(tmp_path / "a", rm=str(rm), data=[str(write(tmp_path / "l.jsonl", [long, *rows]))])
    assert found["prompts"] == 8
    assert "1 prompts are left out: a prompt with its response has" in capsys.readouterr().err
    assert manifest.read(tmp_path / "a")["counts"]["dropped"] == 1
    with pytest.raises(XwinError, match="no prompt is left to audit on"):
        audit(tmp_path / "b", rm=str(rm), data=[str(write(tmp_path / "o.jsonl", [long]))])


def test_on_the_command_line(xwin, rm, judged, tmp_path):
    args = ["audit", "rm", "--rm", rm, "--rounds", 100, "--device", "cpu"]
    done = xwin(*args, stdin=judged.read_text())
    found = json.loads(done.stdout)
    assert found["pairs"] == 8
    assert "audit on 8 pairs of 8 prompts" in done.stderr
    assert "much longer than the rejected" in done.stderr
    assert "is a file" in xwin(*args, "--data", "judged.jsonl", "--out", "judged.jsonl", code=2).stderr
    ties = write(tmp_path / "t.jsonl", [judgement("tea", "a", "b", (5, 5), 0, 1)])
    done = xwin(*args, "--data", ties, "--out", "a", code=1)
    assert "every one is a tie" in done.stderr
    assert "--soft" in done.stderr
    assert not (tmp_path / "a").exists()
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    write(tmp_path / "s.jsonl", [{"messages": talk}])
    done = xwin(*args, "--data", "s.jsonl", "--out", "a", code=1)
    assert "takes judgements, pairs or rated groups" in done.stderr


def test_a_policy_is_no_reward_model(policy, judged, tmp_path):
    with pytest.raises(XwinError, match="not a reward model"):
        audit(tmp_path / "a", rm=str(policy), data=[str(judged)])
