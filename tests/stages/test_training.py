"""sft, train-rm and score as stages: what each option changes, what is left out and counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from xwincli import flags, manifest
from xwincli.errors import XwinError
from xwincli.stages import score, sft, train_rm

CPU = {"device": "cpu", "dtype": "float32"}
WORDS = ["tea", "rain", "fox", "moon", "river", "dog", "sun", "coffee"]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    turns = lambda w: [{"role": "user", "content": f"about {w} ?"}, {"role": "assistant", "content": f"the {w} ."}]
    return write(tmp_path / "talks.jsonl", [{"messages": turns(w) + turns(w) * (i % 2)} for i, w in enumerate(WORDS)])


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"about {w} ?"}],
            "chosen": [{"role": "assistant", "content": f"the {w} shines ."}],
            "rejected": [{"role": "assistant", "content": "no no no"}],
            "score_chosen": 8.0,
            "score_rejected": 2.0 + i % 3,
        }
        for i, w in enumerate(WORDS)
    ]
    return write(tmp_path / "pairs.jsonl", rows)


def run(stage, out: Path, **options) -> Path:
    """Run a stage in this process with small defaults."""
    given = {**CPU, "out": str(out), "batch": 2, "lr": 1e-2, **options} if stage is not score else {**CPU, **options}
    given |= {"out": str(out)}
    stage.run(flags.build(stage.Config, given))
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())


def steps(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_sft_learns_its_rows(policy, talks, tmp_path):
    out = run(sft, tmp_path / "m", model=str(policy), data=[str(talks)], epochs=12)
    losses = [s["loss"] for s in steps(out)]
    assert losses[-1] < 0.5 * losses[0]
    tok = AutoTokenizer.from_pretrained(out)
    ids = tok.apply_chat_template(
        [{"role": "user", "content": "about tea ?"}], add_generation_prompt=True, return_tensors="pt"
    )
    text = tok.decode(AutoModelForCausalLM.from_pretrained(out).generate(**ids, max_new_tokens=8, do_sample=False)[0])
    assert text.rstrip().endswith(".<|im_end|>"), text


@pytest.mark.parametrize(
    "option",
    [
        {"seed": 1}, {"lr": 1e-3}, {"batch": 8}, {"epochs": 2}, {"schedule": "linear"}, {"warmup": 0.9},
        {"weight_decay": 0.5}, {"clip": 0.01}, {"limit": 5}, {"train_top": 1}, {"lora_r": 2}, {"max_length": 33},
        {"template": "vicuna"},
    ],
    ids=lambda o: next(iter(o)),
)  # fmt: skip
def test_every_deciding_option_of_sft_changes_the_weights(policy, talks, tmp_path, option):
    plain = weights(run(sft, tmp_path / "a", model=str(policy), data=[str(talks)]))
    other = weights(run(sft, tmp_path / "b", model=str(policy), data=[str(talks)], **option))
    assert any(not torch.equal(plain[n], other[n]) for n in plain)


def test_lora_alpha_and_keep_adapter(policy, talks, tmp_path):
    one = weights(run(sft, tmp_path / "a", model=str(policy), data=[str(talks)], lora_r=2))
    two = weights(run(sft, tmp_path / "b", model=str(policy), data=[str(talks)], lora_r=2, lora_alpha=32.0))
    assert any(not torch.equal(one[n], two[n]) for n in one)
    kept = run(sft, tmp_path / "c", model=str(policy), data=[str(talks)], lora_r=2, keep_adapter=True)
    assert (kept / "adapter_config.json").is_file()
    assert not (kept / "model.safetensors").exists()


def test_what_is_too_long_is_left_out_and_counted(policy, talks, tmp_path, capsys):
    out = run(sft, tmp_path / "m", model=str(policy), data=[str(talks)], max_length=33)
    counts = manifest.read(out)["counts"]
    assert counts["dropped"] == {"too long": 4}
    assert counts["rows"] == 4
    assert "left out" in capsys.readouterr().err
    with pytest.raises(XwinError, match="no conversations left"):
        run(sft, tmp_path / "n", model=str(policy), data=[str(talks)], max_length=8)
    assert not (tmp_path / "n").exists()


def test_up_to_date_and_force(policy, talks, tmp_path, capsys):
    out = run(sft, tmp_path / "m", model=str(policy), data=[str(talks)])
    made = (out / "xwin.json").read_text()
    run(sft, out, model=str(policy), data=[str(talks)], max_tokens_per_row=32)  # execution-only
    assert "up to date" in capsys.readouterr().err
    assert (out / "xwin.json").read_text() == made
    run(sft, out, model=str(policy), data=[str(talks)], force=True)
    assert (out / "xwin.json").read_text() != made


def test_the_reward_model_learns_the_preference(policy, pairs, tmp_path, capsys):
    out = run(train_rm, tmp_path / "rm", model=str(policy), data=[str(pairs)], epochs=8, valid=0.3)
    metrics = manifest.read(out)["metrics"]
    assert metrics["valid_accuracy"] == 1.0
    assert metrics["longer_is_better"] == 1.0
    assert steps(out)[-1]["accuracy"] == 1.0
    assert "scores agree" in capsys.readouterr().err
    counts = manifest.read(out)["counts"]
    assert counts["pairs"] == counts["prompts"]
    assert counts["prompts"] + counts["held_out"] == len(WORDS)


@pytest.mark.parametrize(
    "option",
    [{"centring": 0.0}, {"margin": True}, {"valid": 0.5}, {"head_lr": 0.1}, {"lora_r": 2}],
    ids=lambda o: next(iter(o)),
)
def test_every_option_of_train_rm_changes_the_scores(policy, pairs, tmp_path, option):
    folders = [
        run(train_rm, tmp_path / n, model=str(policy), data=[str(pairs)], **o) for n, o in (("a", {}), ("b", option))
    ]
    ids = torch.tensor([[5, 6, 7]])
    scores = [AutoModelForSequenceClassification.from_pretrained(f).eval()(ids).logits.item() for f in folders]
    assert scores[0] != scores[1]


def test_ties_are_left_out_and_all_ties_refused(policy, tmp_path):
    def judgement(preferences):
        games = [{"first": s, "preference": p} for s, p in zip("ab", preferences, strict=True)]
        sides = {"a": {"text": "tea", "rating": 7}, "b": {"text": "rain", "rating": 3}}
        return {
            "kind": "judgement",
            "prompt": [{"role": "user", "content": "q"}],
            **sides,
            "games": games,
            "judge": "t",
        }

    mixed = write(
        tmp_path / "j.jsonl", [judgement((0, 0)), judgement((0, 1)), judgement((1, 1)), judgement((0.5, 0.5))]
    )
    out = run(train_rm, tmp_path / "rm", model=str(policy), data=[str(mixed)], valid=0.0)
    once = {"prompts": 1, "held_out": 0, "dropped": {}, "steps": 1}
    assert manifest.read(out)["counts"] == {**once, "pairs": 2, "ties": 2}
    soft = run(train_rm, tmp_path / "soft", model=str(policy), data=[str(mixed)], valid=0.0, soft=True)
    assert manifest.read(soft)["counts"] == {**once, "pairs": 4, "ties": 0}
    ties = write(tmp_path / "t.jsonl", [judgement((0, 1))])
    with pytest.raises(XwinError, match="every one is a tie"):
        run(train_rm, tmp_path / "no", model=str(policy), data=[str(ties)])
    talk = write(
        tmp_path / "s.jsonl", [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    )
    with pytest.raises(XwinError, match="takes judgements, pairs or rated groups"):
        run(train_rm, tmp_path / "no", model=str(policy), data=[str(talk)])


@pytest.fixture
def rated(tmp_path: Path) -> Path:
    """Groups of four responses rated by a judge, two of them alike."""
    texts = lambda w: [f"the {w} shines .", f"a {w} .", "no no no", "no"]
    rows = [
        {
            "kind": "group",
            "prompt": [{"role": "user", "content": f"about {w} ?"}],
            "responses": [
                {"text": t, "index": i, "finish": "stop", "scores": {"gold": g}}
                for i, (t, g) in enumerate(zip(texts(w), (9, 5, 1, 1), strict=True))
            ],
            "scorers": {"gold": "judge rules"},
        }
        for w in WORDS
    ]
    return write(tmp_path / "rated.jsonl", rows)


@pytest.mark.parametrize("loss", ["bradley-terry", "plackett-luce"])
def test_the_reward_model_learns_rated_groups(policy, rated, tmp_path, loss):
    out = run(train_rm, tmp_path / "rm", model=str(policy), data=[str(rated)], epochs=8, valid=0.3, loss=loss)
    made = manifest.read(out)
    assert made["metrics"]["valid_accuracy"] == 1.0
    assert made["counts"]["pairs"] == 5 * made["counts"]["prompts"]
    assert made["counts"]["ties"] == len(WORDS)


@pytest.mark.parametrize(
    "option", [{"top": 1}, {"smoothing": 0.2}, {"margin": True}, {"loss": "bradley-terry"}], ids=lambda o: next(iter(o))
)
def test_every_option_about_groups_changes_the_scores(policy, rated, tmp_path, option):
    base = {"loss": "plackett-luce"} if "top" in option or "loss" in option else {}
    ids = torch.tensor([[5, 6, 7]])
    scores = []
    for name, more in (("a", {}), ("b", option)):
        out = run(train_rm, tmp_path / name, model=str(policy), data=[str(rated)], **{**base, **more})
        scores.append(AutoModelForSequenceClassification.from_pretrained(out).eval()(ids).logits.item())
    assert scores[0] != scores[1]


def test_a_reward_model_s_scores_are_refused(policy, rated, pairs, tmp_path):
    rm = run(train_rm, tmp_path / "rm", model=str(policy), data=[str(pairs)])
    scored = run(score, tmp_path / "scored.jsonl", rm=[str(rm)], data=[str(rated)])
    with pytest.raises(XwinError, match="has the scores gold, rm"):
        run(train_rm, tmp_path / "no", model=str(policy), data=[str(scored)])
    with pytest.raises(XwinError, match="come from a reward model"):
        run(train_rm, tmp_path / "no", model=str(policy), data=[str(scored)], scores="rm")
    run(train_rm, tmp_path / "yes", model=str(policy), data=[str(scored)], scores="gold")
    bare = [{k: v for k, v in json.loads(r).items() if "score" not in k} for r in pairs.read_text().splitlines()]
    with pytest.raises(XwinError, match="plackett-luce needs a rating"):
        data = write(tmp_path / "bare.jsonl", bare)
        run(train_rm, tmp_path / "no", model=str(policy), data=[str(data)], loss="plackett-luce")
    with pytest.raises(XwinError, match="are about pairs"):
        run(train_rm, tmp_path / "no", model=str(policy), data=[str(rated)], loss="plackett-luce", soft=True)


def test_score_keeps_every_score_and_fails_what_is_too_long(policy, pairs, tmp_path):
    rm = run(train_rm, tmp_path / "rm", model=str(policy), data=[str(pairs)])
    rows = [{"prompt": f"about {w} ?", "completions": [f"the {w} .", "no", "rain " * 4]} for w in WORDS]
    data = write(tmp_path / "g.jsonl", rows)
    whole = run(score, tmp_path / "s.jsonl", rm=[str(rm)], data=[str(data)])
    again = run(
        score, tmp_path / "t.jsonl", rm=[str(rm)], data=[str(whole)], name="second", window=2, max_tokens_per_row=40
    )
    for line in again.read_text().splitlines():
        for r in json.loads(line)["responses"]:
            assert r["scores"]["rm"] == pytest.approx(r["scores"]["second"], abs=1e-4)
    long = write(tmp_path / "l.jsonl", [*rows, {"prompt": "fox " * 600, "completions": ["a", "b"]}])
    with pytest.raises(XwinError, match="takes 512") as e:
        run(score, tmp_path / "u.jsonl", rm=[str(rm)], data=[str(long)])
    assert e.value.code == 3
    kept = run(score, tmp_path / "u.jsonl", rm=[str(rm)], data=[str(long)], allow_failed=0.2)
    assert len(kept.read_text().splitlines()) == len(WORDS)
    assert len(run(score, tmp_path / "v.jsonl", rm=[str(rm)], data=[str(data)], limit=3).read_text().splitlines()) == 3
