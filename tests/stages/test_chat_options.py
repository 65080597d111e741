"""What every stage that writes a chat template does with it: arguments, digests in manifests, thinking set aside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xwincli import flags, manifest
from xwincli.errors import XwinError

TURN = "'<|im_start|>assistant\n'"
BRIEF = "'<|im_start|>system\nbe brief<|im_end|>\n'"
ARGUMENT = ["--template-arg", "brief=true"]
SMALL = ["--dtype", "float32", "--device", "cpu"]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy whose template reads ``brief``, a reward model of it, one of another template, and data."""
    from transformers import AutoTokenizer

    import micro
    from xwincli import models

    here = tmp_path_factory.mktemp("chat")
    micro.policy(here / "policy")
    tok = AutoTokenizer.from_pretrained(here / "policy")
    tok.chat_template = "{% if brief %}{{ " + BRIEF + " }}{% endif %}" + micro.CHATML
    tok.save_pretrained(here / "policy")
    models.save(models.new_reward(str(here / "policy"), models.CPU, 1), here / "rm")
    models.save(models.new_reward(str(here / "policy"), models.CPU, 1), here / "other")
    tok.chat_template = micro.CHATML
    tok.save_pretrained(here / "other")
    texts = ["why tea ?", "a fox ?", "the sun ?", "the moon ?"]
    prompts = [{"kind": "prompt", "id": f"p{i}", "prompt": [say("user", t)]} for i, t in enumerate(texts)]
    write(here / "prompts.jsonl", prompts)
    talks = [{"messages": [*p["prompt"], say("assistant", "because .")]} for p in prompts]
    write(here / "talks.jsonl", talks)
    sides = {"chosen": [say("assistant", "because .")], "rejected": [say("assistant", "no")]}
    write(here / "pairs.jsonl", [{"kind": "pair", "prompt": p["prompt"], **sides} for p in prompts])
    thought = [{"text": "<think>tea is hot</think> because ."}, {"text": "no"}, {"text": "<think>hm"}]
    groups = [{"kind": "group", "id": "g", "prompt": prompts[0]["prompt"], "responses": thought}]
    write(here / "thought.jsonl", groups)
    plain = [{"text": "because ."}, {"text": "no"}, {"text": "<think>hm"}]
    write(here / "plain.jsonl", [{**groups[0], "responses": plain}])
    return here


def commands(folder: Path) -> dict[str, list[object]]:
    policy, rm = ["--model", folder / "policy"], ["--rm", folder / "rm"]
    few = ["--batch", 4, "--lr", "1e-3"]
    return {
        "sample": ["sample", *policy, "--data", folder / "prompts.jsonl", "--n", 2, "--max-tokens", 4, *SMALL],
        "score": ["score", *rm, "--data", folder / "thought.jsonl", *SMALL],
        "audit rm": ["audit", "rm", *rm, "--data", folder / "pairs.jsonl", "--rounds", 100, *SMALL],
        "sft": ["sft", *policy, "--data", folder / "talks.jsonl", *few, *SMALL],
        "train-rm": ["train-rm", *policy, "--data", folder / "pairs.jsonl", *few, *SMALL],
        "dpo": ["dpo", *policy, "--data", folder / "pairs.jsonl", *few, *SMALL],
        "ppo": [
            *("ppo", *policy, *rm, "--data", folder / "prompts.jsonl", "--iterations", 1, "--prompts", 2),
            *("--n", 2, "--max-tokens", 4, *SMALL),
        ],
    }


@pytest.mark.parametrize("stage", ["sample", "score", "sft", "train-rm", "dpo", "ppo", "audit rm"])
def test_an_argument_reaches_every_stage_and_its_manifest(xwin, folder, tmp_path, stage):
    command = commands(folder)[stage]
    out = "out.jsonl" if stage in ("sample", "score") else "out"
    made = []
    for arguments in ([], ARGUMENT):
        xwin(*command, "--out", out, *arguments)
        made.append(manifest.read(tmp_path / out))
    without, with_ = made
    assert with_["config"]["template_arg"] == ["brief=true"]
    assert without["key"] != with_["key"]  # it was made anew
    assert without["tokenizer"] == with_["tokenizer"] and len(with_["tokenizer"]) == 16
    assert without["template"] != with_["template"]
    failed = xwin(*command, "--out", "no", "--template-arg", "breif=true", code=1)
    assert "breif" in failed.stderr and "it reads: brief" in failed.stderr


def test_the_argument_is_what_the_model_reads(xwin, folder, tmp_path):
    shown = [
        xwin("sft", "--model", folder / "policy", "--data", folder / "talks.jsonl", "--out", "x", "--show", 1, *more)
        for more in ([], ARGUMENT)
    ]
    assert [("be brief" in s.stdout + s.stderr) for s in shown] == [False, True]
    scores = []
    for more in ([], ARGUMENT):
        xwin(*commands(folder)["score"], "--out", "s.jsonl", *more)
        scores.append([r["scores"]["rm"] for r in read(tmp_path / "s.jsonl")[0]["responses"]])
    assert scores[0] != scores[1]


def test_a_reward_model_judges_and_compares_with_the_argument(folder, tmp_path):
    from xwincli.stages import eval_compare, judge

    given = {"judge": "reward", "rm": str(folder / "rm"), "device": "cpu", "dtype": "float32"}
    files = [str(folder / "plain.jsonl"), str(folder / "thought.jsonl")]

    def judged(out: str, stage, name: str, **more) -> list[dict]:
        stage.run(flags.build(stage.Config, {**given, "out": str(tmp_path / out), **more}))
        return read(tmp_path / out / name)

    for stage, name, more in (
        (judge, ".", {"data": files[1:], "pairs": "all"}),
        (eval_compare, "ratings/plain.jsonl", {"files": files, "rounds": 100}),
    ):
        plain, brief = (
            judged(f"{stage.__name__}-{len(a)}", stage, name, **more, template_arg=a) for a in ([], ARGUMENT[1:])
        )
        assert len(plain) == len(brief) and all(a != b for a, b in zip(plain, brief))
        with pytest.raises(XwinError, match="breif"):
            judged("no", stage, name, **more, template_arg=["breif=true"])
        with pytest.raises(XwinError, match="--template-arg means nothing to the rules judge"):
            judged("no", stage, name, **{**more, "judge": "rules", "rm": "", "template_arg": ARGUMENT[1:]})


def test_check_counts_what_the_argument_writes(folder, capsys):
    from xwincli.stages import check

    lengths = []
    for arguments in ([], ARGUMENT[1:]):
        given = {"data": [str(folder / "talks.jsonl")], "tokenizer": str(folder / "policy"), "json": True}
        check.run(flags.build(check.Config, {**given, "template_arg": arguments}))
        lengths.append(json.loads(capsys.readouterr().out)["files"][0]["lengths"]["tokens"]["min"])
    assert lengths[0] < lengths[1]
    for alone in ({"data": ["x.jsonl"]}, {"model": "x"}):
        with pytest.raises(XwinError, match="--template-arg means nothing here"):
            check.run(flags.build(check.Config, {**alone, "template_arg": ARGUMENT[1:]}))


def test_an_engine_without_a_template_takes_no_argument(xwin, folder):
    command = ["sample", "--engine", "echo", "--data", folder / "prompts.jsonl", "--out", "x.jsonl"]
    assert "--template-arg means nothing" in xwin(*command, *ARGUMENT, code=2).stderr


def test_scoring_with_another_template_of_the_family_is_a_warning(xwin, folder, tmp_path):
    xwin(*commands(folder)["sample"], "--out", "g.jsonl")
    drawn = read(tmp_path / "g.jsonl")[0]["sampling"]
    made = manifest.read(tmp_path / "g.jsonl")
    assert {k: drawn[k] for k in ("tokenizer", "template")} == {k: made[k] for k in ("tokenizer", "template")}
    words = "the responses were drawn with another"
    for rm, warned in (("rm", 0), ("other", 1)):
        done = xwin("score", "--rm", folder / rm, "--data", "g.jsonl", "--out", f"{rm}.jsonl", *SMALL)
        assert done.stderr.count(words) == warned


def test_a_model_that_reads_the_policys_ids_with_another_template_is_refused(xwin, folder):
    other = ["--critic", folder / "other"]
    failed = xwin(*commands(folder)["ppo"], "--out", "x", *other, code=1)
    assert f"{folder}/other" in failed.stderr and f"{folder}/policy" in failed.stderr
    assert "its chat template is not that of" in failed.stderr


def test_a_model_learned_with_an_argument_warns_where_it_is_left_out(xwin, folder):
    xwin(*commands(folder)["sft"], "--out", "brief", *ARGUMENT)
    command = ["sample", "--model", "brief", "--data", folder / "prompts.jsonl", "--max-tokens", 2, *SMALL]
    hint = "it was made with --template-arg brief=true"
    assert hint in xwin(*command, "--out", "a.jsonl").stderr
    assert hint not in xwin(*command, "--out", "b.jsonl", *ARGUMENT).stderr


# -- thinking


def test_score_reads_the_answer_alone_and_keeps_the_thinking(xwin, folder, tmp_path):
    command = ["score", "--rm", folder / "rm", *SMALL]
    xwin(*command, "--data", folder / "thought.jsonl", "--out", "apart.jsonl", "--split-thinking")
    xwin(*command, "--data", folder / "thought.jsonl", "--out", "whole.jsonl")
    xwin(*command, "--data", folder / "plain.jsonl", "--out", "plain.jsonl")
    apart, whole, plain = (read(tmp_path / f"{n}.jsonl")[0]["responses"] for n in ("apart", "whole", "plain"))
    assert [r["text"] for r in apart] == ["because .", "no", "<think>hm"]
    assert [r.get("thinking") for r in apart] == ["tea is hot", None, None]
    assert [r["scores"]["rm"] for r in apart] == pytest.approx([r["scores"]["rm"] for r in plain], abs=2e-5)
    assert abs(whole[0]["scores"]["rm"] - plain[0]["scores"]["rm"]) > 1e-4
    assert whole[0]["text"].startswith("<think>")


def test_judge_compares_the_answers_alone(xwin, folder, tmp_path):
    xwin("judge", "--data", folder / "thought.jsonl", "--out", "j.jsonl", "--pairs", "all", "--split-thinking")
    texts = {row[side]["text"] for row in read(tmp_path / "j.jsonl") for side in "ab"}
    assert texts == {"because .", "no", "<think>hm"}
    against = ["--data", folder / "plain.jsonl", "--against", folder / "thought.jsonl", "--pairs", "all"]
    xwin("judge", *against, "--out", "k.jsonl", "--split-thinking")
    assert not any("</think>" in row["b"]["text"] for row in read(tmp_path / "k.jsonl"))


def test_sample_sets_thinking_aside(xwin, tmp_path):
    write(tmp_path / "p.jsonl", [{"kind": "prompt", "prompt": [say("user", "tea</think>because")]}])
    for more in ([], ["--split-thinking"]):
        xwin("sample", "--engine", "echo", "--data", "p.jsonl", "--out", f"{len(more)}.jsonl", *more)
    [whole], [apart] = (read(tmp_path / f"{n}.jsonl")[0]["responses"] for n in (0, 1))
    assert whole["text"] == "Answer 0: tea</think>because"
    assert (apart["text"], apart["thinking"]) == ("because", "Answer 0: tea")
    assert whole["tokens"] == apart["tokens"]


def test_ppo_rewards_the_answers_alone(folder, monkeypatch, tmp_path):
    """The policy learns its whole response, the reward model reads what follows the thinking."""
    from xwincli import formats
    from xwincli.chat import Template
    from xwincli.records import Prompt
    from xwincli.stages import ppo

    monkeypatch.setattr(Template, "answer", lambda self, ids: f"a</think>{self.decode(ids[:1])}x")
    rows = list(formats.read([str(folder / "prompts.jsonl")], Prompt))
    found = []
    for split in (False, True):
        given = {"model": folder / "policy", "rm": folder / "rm", "out": tmp_path / "o", "dtype": "float32", "n": 2}
        given = {k: str(v) if isinstance(v, Path) else v for k, v in given.items()}
        config = flags.build(ppo.Config, {**given, "max_tokens": 4, "split_thinking": split, "device": "cpu"})
        ready, _ = ppo._load(config, rows)
        rollouts = ready.draw([0, 1], 0)
        found.append((rollouts.branches, [text for _, texts in rollouts.items for text, _ in texts]))
    (ids, whole), (same, apart) = found
    assert ids == same
    assert [text.partition("</think>")[2].lstrip() for text in whole] == apart
    assert all(text.startswith("a</think>") for text in whole)
