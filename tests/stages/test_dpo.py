"""dpo as a stage: what each option changes or refuses, the reference and its artifact, what is left out."""

from __future__ import annotations

import json
import shutil
import time
import weakref
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import micro
import process
from xwincli import flags, manifest, models, scoring
from xwincli.errors import LIMIT, USAGE, XwinError
from xwincli.rows import Branch
from xwincli.stages import dpo, sft
from xwincli.train import loop

CPU = {"device": "cpu", "dtype": "float32"}
WORDS = ["tea", "rain", "fox", "moon", "river", "dog", "sun", "coffee"]


def say(role: str, text: str) -> list[dict]:
    return [{"role": role, "content": text}]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    with path.open("w") as f:
        for w in WORDS:
            row = {"prompt": say("user", f"about {w} ?"), "chosen": say("assistant", f"the {w} shines .")}
            f.write(json.dumps({**row, "rejected": say("assistant", "no no no")}) + "\n")
    return path


def run(out: Path, policy: Path, data: Path, **options) -> Path:
    given = {**CPU, "out": str(out), "model": str(policy), "data": [str(data)], "batch": 3, "lr": 1e-2, **options}
    dpo.run(flags.build(dpo.Config, given))
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())


def differ(a: Path, b: Path) -> bool:
    one, two = weights(a), weights(b)
    return any(not torch.equal(one[n], two[n]) for n in one)


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_it_starts_at_log_two_and_widens_the_margin(policy, pairs, tmp_path):
    steps = log(run(tmp_path / "d", policy, pairs, epochs=8, lr=1e-3))
    assert steps[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert steps[-1]["margin"] > 0
    assert steps[-1]["accuracy"] == 1.0


@pytest.mark.parametrize(
    "option",
    [{"beta": 0.9}, {"nll": 0.5}, {"loss": "hinge"}, {"loss": "ipo"}, {"loss": "ipo-sum"}, {"loss": "simpo"},
     {"loss": "length-normalised"}, {"loss": "cdpo", "smoothing": 0.2}, {"loss": "robust", "smoothing": 0.2}],
    ids=lambda o: "-".join(map(str, o.values())),
)  # fmt: skip
def test_every_option_changes_the_weights(policy, pairs, tmp_path, option):
    assert differ(run(tmp_path / "a", policy, pairs), run(tmp_path / "b", policy, pairs, **option))


def test_smoothing_and_gamma_change_their_losses(policy, pairs, tmp_path):
    one, two = ({"loss": "cdpo", "smoothing": e} for e in (0.1, 0.3))
    assert differ(run(tmp_path / "a", policy, pairs, **one), run(tmp_path / "b", policy, pairs, **two))
    one, two = ({"loss": "simpo", "gamma": g} for g in (0.0, 1.0))
    assert differ(run(tmp_path / "c", policy, pairs, **one), run(tmp_path / "d", policy, pairs, **two))


@pytest.mark.parametrize(
    "options,message",
    [
        ({"smoothing": 0.1}, "--smoothing means nothing to --loss sigmoid"),
        ({"gamma": 0.5, "loss": "ipo"}, "--gamma means nothing to --loss ipo"),
        ({"loss": "robust"}, "--loss robust needs --smoothing"),
        ({"loss": "simpo", "reference": "r.jsonl"}, "--loss simpo has no reference"),
        ({"loss": "simpo", "reference_model": "m"}, "--loss simpo has no reference"),
        ({"reference": "folder"}, "--reference is folder"),
    ],
)
def test_what_means_nothing_is_refused(policy, pairs, tmp_path, options, message):
    with pytest.raises(XwinError, match=message) as e:
        run(tmp_path / "x", policy, pairs, **options)
    assert e.value.code == USAGE


def test_the_reference_file_is_made_once_and_used_again(policy, pairs, tmp_path, monkeypatch, capsys):
    file = tmp_path / "ref.jsonl"
    plain = run(tmp_path / "plain", policy, pairs)
    first = run(tmp_path / "first", policy, pairs, reference=str(file))
    assert not differ(plain, first)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == len(WORDS)
    assert all(set(r) == {"kind", "pair", "chosen", "rejected", "tokens"} for r in rows)
    assert manifest.read(file)["inputs"][0]["digest"] == manifest.digest(policy)

    def never(*_, **__):
        raise AssertionError("the reference was computed again")

    monkeypatch.setattr(scoring, "logprobs", never)
    again = run(tmp_path / "again", policy, pairs, reference=str(file), force=True)
    assert not differ(first, again)
    assert differ(first, run(tmp_path / "ipo", policy, pairs, reference=str(file), loss="ipo"))
    few = tmp_path / "few.jsonl"
    few.write_text("".join(pairs.read_text().splitlines(keepends=True)[:3]))
    run(tmp_path / "few", policy, few, reference=str(file))  # some of its pairs are enough
    assert "from" in capsys.readouterr().err


def killed_in_the_reference_pass(command: tuple[object, ...], partial: Path, folder: Path) -> int:
    """Run ``xwin`` until ``partial`` holds more than a part (30 kB), kill it; returns how many pairs stand there."""
    files = [folder / n for n in ("stdin", "stdout", "stderr")]
    files[0].write_text("")
    running, begun = process.start(command, folder, *files), time.monotonic()
    while not (partial.exists() and partial.stat().st_size > 30_000) and time.monotonic() - begun < 60:
        time.sleep(0.005)
    running.kill()
    running.join()
    assert partial.exists(), files[2].read_text()
    return len(partial.read_bytes().splitlines()) - 1


def test_a_kill_in_the_reference_pass_costs_what_was_being_computed(policy, tmp_path, monkeypatch):
    """The same command again computes only the rest, and gives bitwise the weights of a run that was not killed."""
    data, count = tmp_path / "many.jsonl", 600
    with data.open("w") as f:
        for i in range(count):
            sides = {"chosen": say("assistant", f"the {i} shines ."), "rejected": say("assistant", "no" * (1 + i % 9))}
            f.write(json.dumps({"prompt": say("user", f"about {i * 7} ?"), **sides}) + "\n")
    few = {"batch": count, "max_tokens_per_row": 256}
    plain = run(tmp_path / "plain", policy, data, **few)
    logprobs, computed = scoring.logprobs, list[Branch]()
    monkeypatch.setattr(scoring, "logprobs", lambda m, part, size: computed.extend(part) or logprobs(m, part, size))
    for file, more in (
        (tmp_path / "ref.jsonl", {"reference": str(tmp_path / "ref.jsonl")}),
        (tmp_path / "out.partial" / "reference.jsonl", {}),
    ):
        partial, out = file.with_name(f"{file.name}.partial"), tmp_path / "out"
        given = [f"--{k.replace('_', '-')}={v}" for k, v in {**CPU, **few, "lr": 1e-2, **more}.items()]
        command = ("dpo", "--model", policy, "--data", data, *given, "--out", out)
        assert 0 < (kept := killed_in_the_reference_pass(command, partial, tmp_path)) < count
        computed.clear()
        run(out, policy, data, **few, **more)
        assert count - kept <= len(computed) < count
        assert not differ(plain, out)
        assert (file.exists(), partial.exists()) == (bool(more), False)
        shutil.rmtree(out)


def test_a_run_stopped_in_training_does_not_compute_the_reference_again(policy, pairs, tmp_path, monkeypatch):
    plain = run(tmp_path / "plain", policy, pairs)

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "fit", stop)
        run(tmp_path / "out", policy, pairs)
    assert (tmp_path / "out.partial" / "reference.jsonl").exists()
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "logprobs", stop)
        assert not differ(plain, run(tmp_path / "out", policy, pairs))
        with pytest.raises(KeyboardInterrupt):  # --force forgets it
            run(tmp_path / "out", policy, pairs, force=True)


def test_a_reference_file_of_something_else_is_refused(policy, pairs, tmp_path):
    file = str(tmp_path / "ref.jsonl")
    run(tmp_path / "a", policy, pairs, reference=file)
    more = tmp_path / "more.jsonl"
    extra = {"prompt": say("user", "hi"), "chosen": say("assistant", "a"), "rejected": say("assistant", "b")}
    more.write_text(pairs.read_text() + json.dumps(extra) + "\n")
    with pytest.raises(XwinError, match="lacks 1 of 9 pairs"):
        run(tmp_path / "b", policy, more, reference=file)
    other = micro.policy(tmp_path / "other", seed=5)
    with pytest.raises(XwinError, match="made with the model"):
        run(tmp_path / "b", other, pairs, reference=file)
    with pytest.raises(XwinError, match="not a file of reference log-probabilities"):
        run(tmp_path / "b", policy, pairs, reference=str(pairs))
    assert not list(tmp_path.glob("b*"))  # refused before anything is made


def test_another_reference_model(policy, pairs, tmp_path, monkeypatch):
    other = micro.policy(tmp_path / "other", seed=5)
    steps = log(run(tmp_path / "a", policy, pairs, reference_model=str(other), reference=str(tmp_path / "r.jsonl")))
    assert abs(steps[0]["loss"] - 0.693147) > 1e-3
    named = []
    load = models.load_policy
    monkeypatch.setattr(models, "load_policy", lambda name, *a, **k: named.append(name) or load(name, *a, **k))
    run(tmp_path / "b", policy, pairs, reference_model=str(other), reference=str(tmp_path / "r.jsonl"), beta=0.5)
    assert named == [str(policy)]  # the file stands for the second model
    with pytest.raises(XwinError, match="made with the model"):
        run(tmp_path / "c", policy, pairs, reference=str(tmp_path / "r.jsonl"))


def test_the_reference_model_is_gone_before_the_first_step(policy, pairs, tmp_path, monkeypatch):
    other = micro.policy(tmp_path / "other", seed=5)
    alive: list[weakref.ref] = []
    load, fit = models.load_policy, loop.fit

    def noted(*args, **options):
        loaded = load(*args, **options)
        alive.append(weakref.ref(loaded.model))
        return loaded

    def then(*args, **options):
        assert [ref() is None for ref in alive] == [False, True]
        return fit(*args, **options)

    monkeypatch.setattr(models, "load_policy", noted)
    monkeypatch.setattr(loop, "fit", then)
    run(tmp_path / "a", policy, pairs, reference_model=str(other))
    assert len(alive) == 2


def test_of_an_adapter_the_reference_is_the_merged_model(policy, pairs, tmp_path):
    """The first step must start at log 2 against the adapter's model, not against the base under it."""
    talks = tmp_path / "talks.jsonl"
    talks.write_text("".join(json.dumps({"messages": say("user", "q") + say("assistant", w)}) + "\n" for w in WORDS))
    adapter = tmp_path / "adapter"
    given = {**CPU, "out": str(adapter), "model": str(policy), "data": [str(talks)], "batch": 2, "lr": 0.05}
    sft.run(flags.build(sft.Config, {**given, "lora_r": 2, "keep_adapter": True}))
    assert (adapter / "adapter_config.json").is_file()
    for more in ({}, {"lora_r": 2}):
        steps = log(run(tmp_path / f"d{len(more)}", adapter, pairs, **more))
        assert steps[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
        assert abs(steps[0]["chosen"]) < 1e-4


def test_what_cannot_be_learned_is_left_out_counted_and_bounded(policy, pairs, tmp_path, capsys):
    long = {"prompt": say("user", "fox " * 600), "chosen": say("assistant", "a"), "rejected": say("assistant", "b")}
    data = tmp_path / "long.jsonl"
    data.write_text(pairs.read_text() + json.dumps(long) + "\n")
    out = run(tmp_path / "a", policy, data)
    assert manifest.read(out)["counts"]["dropped"] == {"too long": 1}
    assert "1 of 9 pairs left out: 1 too long" in capsys.readouterr().err
    with pytest.raises(XwinError, match=r"more than --max-drop 0\.05") as e:
        run(tmp_path / "b", policy, data, max_drop=0.05)
    assert e.value.code == LIMIT
    with pytest.raises(XwinError, match="no pairs left to train on"):
        run(tmp_path / "c", policy, pairs, max_length=9)
    assert not (tmp_path / "b").exists()


def test_rows_never_change_the_weights(policy, pairs, tmp_path):
    """Several rows a step give what one row gives, the epoch's short last batch (2 of 3) included."""
    whole = weights(run(tmp_path / "a", policy, pairs, epochs=2, lr=1e-3))
    parts = weights(run(tmp_path / "b", policy, pairs, epochs=2, lr=1e-3, max_tokens_per_row=30))
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-4, atol=1e-6)


def test_the_reference_model_must_share_the_template(policy, pairs, tmp_path):
    other = micro.policy(tmp_path / "other", seed=5)
    loaded = models.load_tokenizer(str(other))
    loaded.chat_template = loaded.chat_template.replace("'\n'", "' '")
    loaded.save_pretrained(other)
    with pytest.raises(XwinError, match="its chat template is not that of"):
        run(tmp_path / "a", policy, pairs, reference_model=str(other))


def test_a_side_of_which_the_template_leaves_nothing_is_left_out(policy, pairs, tmp_path):
    """A response cut inside its reasoning, under a template that shows only what follows it."""
    thinks = micro.policy(tmp_path / "thinks")
    tok = models.load_tokenizer(str(thinks))
    tok.chat_template = tok.chat_template.replace("m['content']", "m['content'].split('</think>')[-1]")
    assert "</think>" in tok.chat_template
    tok.save_pretrained(thinks)
    cut = [{**say("assistant", "so</think>")[0], "finish": "length"}]
    row = {"prompt": say("user", "hi"), "chosen": say("assistant", "a"), "rejected": cut}
    data = tmp_path / "cut.jsonl"
    data.write_text(pairs.read_text() + json.dumps(row) + "\n")
    out = run(tmp_path / "a", thinks, data, loss="ipo")
    assert manifest.read(out)["counts"]["dropped"] == {"without a token on one side": 1}
