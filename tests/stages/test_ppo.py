"""``xwin ppo`` as a user runs it, on micro models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from xwincli import flags, models
from xwincli.errors import XwinError
from xwincli.records import Prompt
from xwincli.stages import ppo

PLACE = models.Place(torch.device("cpu"), torch.float32)
TEXTS = ["tea ?", "write one short sentence about a fox .", "why does the sun shine ?", "three bullets about coffee"]
SMALL = ["--iterations", 3, "--prompts", 2, "--n", 3, "--max-tokens", 6, "--lr", "1e-3", "--dtype", "float32"]


@pytest.fixture(scope="module")
def rm(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("micro") / "rm"
    models.save(models.new_reward(str(policy), PLACE, 1), out)
    return out


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [{"kind": "prompt", "id": f"p{i}", "prompt": [{"role": "user", "content": t}]} for i, t in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def config(policy: Path, rm: Path, **given: object) -> ppo.Config:
    base = {"model": str(policy), "rm": str(rm), "out": "out", "dtype": "float32", "n": 3, "max_tokens": 6}
    return flags.build(ppo.Config, {**base, **given})


@pytest.mark.parametrize("advantage", ["gae", "group"])
def test_the_command_makes_a_policy(xwin, policy, rm, prompts, tmp_path: Path, advantage: str) -> None:
    command = ["ppo", "--data", prompts, "--model", policy, "--rm", rm, "--advantage", advantage, *SMALL]
    xwin(*command, "--out", "out")
    out = tmp_path / "out"
    made = json.loads((out / "xwin.json").read_text())
    assert made["counts"] == {"in": 4, "prompts": 4, "iterations": 3, "rollouts": 18}
    rows = log(out)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert made["metrics"]["reward"] == rows[-1]["reward"]
    assert all(row["first_drift"] == 0.0 for row in rows)
    assert rows[0]["kl"] == 0.0 != rows[-1]["kl"]
    assert ("value_loss" in rows[0]) == ("explained_variance" in rows[0]) == (advantage == "gae")
    before, after = weights(policy), weights(out)
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[k], after[k]) for k in before)
    again = xwin(*command, "--out", "out")
    assert "up to date" in again.stderr
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_stopped_and_the_same_command_again(xwin, policy, rm, prompts, tmp_path, sign, code) -> None:
    command = ["ppo", "--data", prompts, "--model", policy, "--rm", rm, *SMALL, "--iterations", 12]
    xwin(*command, "--out", "whole")
    args = [sys.executable, "-m", "xwincli", *map(str, command), "--out", "broken"]
    process = subprocess.Popen(args, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=os.environ)
    saved = tmp_path / "broken.partial" / "checkpoints"
    while not any(saved.glob("step-*[0-9]")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(sign)
    assert process.wait(60) == code
    done = log(tmp_path / "broken.partial")
    assert 0 < len(done) <= 12
    assert "going on after step" in xwin(*command, "--out", "broken").stderr
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(a[k], b[k]) for k in a)
    timeless = [{k: v for k, v in row.items() if "seconds" not in k} for row in log(tmp_path / "whole")]
    assert timeless == [{k: v for k, v in row.items() if "seconds" not in k} for row in log(tmp_path / "broken")]


def run(policy: Path, rm: Path, data: Path, out: Path, **given: object) -> list[dict]:
    base = {"iterations": 2, "prompts": 2, "lr": 1e-3}
    ppo.run(config(policy, rm, data=[str(data)], out=str(out), **{**base, **given}))
    return log(out)


def test_training_the_top_layer_leaves_the_rest(policy: Path, rm: Path, prompts: Path, tmp_path: Path) -> None:
    run(policy, rm, prompts, tmp_path / "out", train_top=1)
    before, after = weights(policy), weights(tmp_path / "out")
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == {k for k in before if "layers.1." in k or k == "model.norm.weight"}


def test_lora_is_trained_sampled_and_merged(policy: Path, rm: Path, prompts: Path, tmp_path: Path) -> None:
    rows = run(policy, rm, prompts, tmp_path / "out", lora_r=2, lr=0.02)
    assert rows[0]["kl"] == 0.0 != rows[1]["kl"]
    assert rows[1]["first_drift"] == 0.0
    before, after = weights(policy), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])


def test_bfloat16_reads_the_same_twice(policy: Path, rm: Path, prompts: Path, tmp_path: Path) -> None:
    rows = run(policy, rm, prompts, tmp_path / "out", dtype="bfloat16")
    assert [row["first_drift"] for row in rows] == [0.0, 0.0]
    assert rows[0]["kl"] == 0.0


def test_options_reach_the_run(policy: Path, rm: Path, prompts: Path, tmp_path: Path) -> None:
    base = run(policy, rm, prompts, tmp_path / "base")
    changed = {
        "kl": {"kl": 5.0},
        "vf": {"vf_coef": 10.0},
        "value_lr": {"value_lr": 0.1},
        "ratio_clip": {"ratio_clip": 1e-4},
        "value_clip": {"value_clip": 1e-4},
        "penalty": {"no_end_penalty": 7.0},
        "shift": {"score_shift": "3"},
        "temperature": {"temperature": 2.0},
        "epochs": {"epochs": 1},
        "minibatch": {"batch": 1},
        "seed": {"seed": 1},
    }
    timeless = lambda rows: [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]
    for name, given in changed.items():
        assert timeless(run(policy, rm, prompts, tmp_path / name, **given)) != timeless(base), name
    packed = run(policy, rm, prompts, tmp_path / "packed", max_tokens_per_row=20, rows=2)
    for key in ("reward", "pg_loss", "value_loss", "kl"):
        assert packed[1][key] == pytest.approx(base[1][key], abs=1e-3)


def test_another_reference_is_measured_to(policy: Path, rm: Path, prompts: Path, tmp_path: Path) -> None:
    import micro

    other = micro.policy(tmp_path / "other", seed=9)
    rows = run(policy, rm, prompts, tmp_path / "out", reference=str(other), advantage="group", iterations=1)
    assert rows[0]["kl"] > 1.0


def test_rollouts_are_what_the_policy_samples_now(policy: Path, rm: Path) -> None:
    """Exact ids, also where the engine must go the slow way; and new weights give new rollouts."""
    rows = [Prompt(id=str(i), prompt=[{"role": "user", "content": t}]) for i, t in enumerate(TEXTS)]
    given = config(policy, rm, advantage="group", temperature=0.9, n=4)
    fast, slow = (ppo._load(given, rows)[0] for _ in range(2))
    engine = next(c.cell_contents for c in slow.draw.__closure__ if hasattr(c.cell_contents, "obstacle"))
    assert engine.obstacle == ""
    engine.obstacle = "said by the test"
    a, b = fast.draw([0, 2], 5), slow.draw([0, 2], 5)
    assert [x.responses for x in a.branches] == [x.responses for x in b.branches]
    assert a.items == b.items
    assert len({tuple(r) for x in a.branches for r in x.responses}) == 8
    template = fast.policy.template
    for drawn, (prompt, texts) in zip(a.branches, a.items):
        assert drawn.prompt == template.prompt_ids(prompt)
        for ids, (text, ended) in zip(drawn.responses, texts):
            assert ended == (ids[-1] in template.stop_ids)
            assert ended or len(ids) == 6
            assert text == fast.policy.tokenizer.decode(ids[: len(ids) - ended], skip_special_tokens=True)
    with torch.no_grad():
        for _, p in fast.parameters:
            p.mul_(1.5)
    assert [x.responses for x in fast.draw([0, 2], 5).branches] != [x.responses for x in a.branches]


def test_one_prompt_twice_in_an_iteration_is_sampled_twice(policy: Path, rm: Path) -> None:
    rows = [Prompt(id="0", prompt=[{"role": "user", "content": TEXTS[0]}])]
    members, _ = ppo._load(config(policy, rm, advantage="group"), rows)
    a, b = members.draw([0, 0], 1).branches
    assert a.responses != b.responses


@pytest.mark.parametrize(
    "given,words",
    [
        ({"advantage": "group", "n": 1}, "--n is 1"),
        ({"advantage": "group", "critic": "x"}, "has no critic"),
        ({"score_shift": "much"}, "--score-shift is 'much'"),
        ({"data": ["nothing.jsonl"]}, "nothing.jsonl"),
    ],
)
def test_what_cannot_work_is_refused(policy: Path, rm: Path, tmp_path: Path, given: dict, words: str) -> None:
    with pytest.raises(XwinError, match=words):
        ppo.run(config(policy, rm, **{"data": [], "out": str(tmp_path / "out"), **given}))
    assert not (tmp_path / "out").exists()


def test_prompts_beyond_the_context_are_counted(policy: Path, rm: Path, prompts: Path, tmp_path: Path, capsys) -> None:
    long = tmp_path / "long.jsonl"
    row = {"kind": "prompt", "prompt": [{"role": "user", "content": "the fox " * 600}]}
    long.write_text(prompts.read_text() + json.dumps(row) + "\n")
    run(policy, rm, long, tmp_path / "out", advantage="group", iterations=0, prompts=4)
    made = json.loads((tmp_path / "out" / "xwin.json").read_text())
    assert made["counts"] == {"in": 5, "prompts": 4, "iterations": 1, "rollouts": 12}
    assert "1 prompts" in capsys.readouterr().err


def test_a_critic_of_another_vocabulary_is_refused(policy: Path, rm: Path, tmp_path: Path) -> None:
    import micro

    other = micro.policy(tmp_path / "other")
    small = micro.tokenizer(300)
    small.save_pretrained(other)
    models.save(models.new_reward(str(other), PLACE, 1), tmp_path / "critic")
    rows = [Prompt(id="0", prompt=[{"role": "user", "content": TEXTS[0]}])]
    with pytest.raises(XwinError, match="another vocabulary"):
        ppo._load(config(policy, rm, critic=str(tmp_path / "critic")), rows)
