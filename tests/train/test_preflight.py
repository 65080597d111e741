"""Preflight: every finding on rows made to have it, and on rows made not to."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

import micro
from xwincli import flags, models, settings
from xwincli.chat import Template
from xwincli.errors import XwinError
from xwincli.rows import Branch
from xwincli.stages import train_rm
from xwincli.train import preflight
from xwincli.train.comparisons import Comparisons
from xwincli.train.preflight import REFUSE, SAY, WARN, Finding

TEMPLATE = Template(micro.tokenizer())
(STOP,) = TEMPLATE.stop_ids
A, B, C, D = 40, 41, 42, 43


def texts(findings: list[Finding], level: str) -> list[str]:
    return [f.text for f in findings if f.level == level]


def row(*ids: int, learned: int, stop: bool = True) -> Branch:
    """A conversation whose last ``learned`` tokens are targets."""
    whole = [*ids, STOP] if stop else list(ids)
    return Branch([], [whole], [[False] * (len(whole) - learned) + [True] * learned])


def pair(chosen: list[int], rejected: list[int], prompt: tuple[int, ...] = (A, B)) -> Branch:
    return Branch(list(prompt), [chosen, rejected])


# -- conversations


def test_good_conversations_are_one_line():
    found = preflight.conversations([row(A, B, C, learned=2), row(A, D, C, learned=1)], TEMPLATE)
    assert texts(found, SAY) == [
        "2 rows of 8 tokens, 37.5% learned",
        "all learned turns end with a stop token",
        f"template {TEMPLATE.digest}",
    ]
    assert len(found) == 3


def test_nothing_learned_is_refused():
    (text,) = texts(preflight.conversations([row(A, B, learned=0)] * 2, TEMPLATE), REFUSE)
    assert "no token would be learned" in text


def test_everything_learned_is_refused_though_a_first_token_never_is():
    (text,) = texts(preflight.conversations([row(A, B, learned=3), row(C, learned=2)], TEMPLATE), REFUSE)
    assert "every token would be learned" in text
    assert not texts(preflight.conversations([row(A, B, learned=3), row(A, B, C, learned=2)], TEMPLATE), REFUSE)


def test_some_rows_without_a_learned_token_are_a_warning():
    found = preflight.conversations([row(A, B, learned=0), row(A, C, learned=1)], TEMPLATE)
    assert texts(found, WARN) == ["1 of 2 rows have no token to learn"]


def test_turns_that_do_not_end_with_a_stop_token_are_counted():
    """Two turns in one row: the first one's learned run does not end with the stop token."""
    two = Branch([], [[A, B, C, D, STOP]], [[False, True, False, True, True]])
    (text,) = texts(preflight.conversations([two], TEMPLATE), WARN)
    assert text == "1 of 2 learned turns do not end with a stop token, so the model learns not to stop"
    (finding,) = [f for f in preflight.conversations([row(A, B, learned=1, stop=False)], TEMPLATE) if f.level == WARN]
    assert "--template" in finding.mend


def test_repeated_rows_are_counted_beyond_the_first():
    found = preflight.conversations([row(A, B, learned=1)] * 3 + [row(A, C, learned=1)], TEMPLATE)
    assert texts(found, WARN) == ["2 of 4 rows repeat another one, so they count more often"]


# -- pairs


def test_good_pairs_are_one_line():
    found = preflight.pairs([pair([C, D, STOP], [D, STOP]), pair([D, STOP], [C, C, STOP])], TEMPLATE)
    assert texts(found, SAY)[0] == "2 pairs of 1 prompts, 14 tokens"
    assert "the chosen side is the longer one in 50%" in texts(found, SAY)
    assert not texts(found, WARN) + texts(found, REFUSE)


def test_sides_without_a_stop_token_are_told_apart():
    found = preflight.pairs([pair([C, STOP], [D]), pair([D, STOP], [C, STOP])], TEMPLATE)
    assert "all chosen responses end with a stop token" in texts(found, SAY)
    (text,) = texts(found, WARN)
    assert text.startswith("1 of 2 rejected responses do not end")


def test_repeated_and_contradicting_pairs():
    one, other = pair([C, STOP], [D, STOP]), pair([D, STOP], [C, STOP])
    elsewhere = pair([D, STOP], [C, STOP], prompt=(B,))
    assert texts(preflight.pairs([one, one, elsewhere], TEMPLATE), WARN) == [
        "1 of 3 pairs repeat another one, so they count more often"
    ]
    (text,) = texts(preflight.pairs([one, other, elsewhere], TEMPLATE), WARN)
    assert text.startswith("1 pairs stand there both ways round")


@pytest.mark.parametrize("longer,warned", [(20, True), (18, True), (15, False), (5, False), (2, True), (0, True)])
def test_a_preference_that_is_nearly_all_length_is_a_warning(longer, warned):
    rows = [pair([C, D, STOP], [i, STOP]) for i in range(longer)]
    rows += [pair([i, STOP], [C, D, STOP]) for i in range(20 - longer)]
    found = preflight.pairs(rows, TEMPLATE)
    assert f"the chosen side is the longer one in {longer / 20:.0%}" in texts(found, WARN if warned else SAY)


def test_a_few_pairs_of_unequal_length_prove_nothing():
    rows = [pair([C, D, STOP], [i, STOP]) for i in range(19)] + [pair([C, STOP], [D, STOP])] * 5
    assert "the chosen side is the longer one in 100%" in texts(preflight.pairs(rows, TEMPLATE), SAY)


# -- comparisons


def reward(pad: int | None = 3) -> SimpleNamespace:
    config = SimpleNamespace(pad_token_id=pad)
    model = SimpleNamespace(config=config)
    return SimpleNamespace(model=model, tokenizer=TEMPLATE.tokenizer, template=TEMPLATE, name="rm")


def compared(*games: tuple[int, int, float]) -> Comparisons:
    return Comparisons("p", [], [], [(a, b, chance, 0.0) for a, b, chance in games])


THREE = Branch([A], [[C, STOP], [D, D, STOP], [B, STOP]])


@pytest.mark.parametrize(
    "pad,text", [(3, None), (STOP, "pads with <|im_end|>, a stop token"), (None, "has no pad token")]
)
def test_a_pad_that_is_eos_is_refused(pad, text):
    found = texts(preflight.comparisons([compared((0, 1, 1.0))], [THREE], set(), reward(pad)), REFUSE)
    assert found == ([f"rm: the reward model {text}"] if text else [])


def test_held_out_prompts_that_are_learned_too_are_counted():
    items = [compared((0, 1, 1.0))] * 3
    other = Branch([B], THREE.responses)
    found = preflight.comparisons(items, [THREE, other, THREE], {1, 2}, reward())
    (text,) = texts(found, WARN)
    assert text == "1 of 2 held-out prompts are also learned, under another prompt_id"
    assert not texts(preflight.comparisons(items, [THREE, other, THREE], {1}, reward()), WARN)
    assert texts(found, SAY)[0] == "3 comparisons of 3 prompts, 2 of them held out"


def test_repeated_and_contradicting_comparisons():
    found = preflight.comparisons(
        [compared((0, 1, 1.0), (0, 1, 1.0), (1, 0, 1.0), (2, 0, 1.0))], [THREE], set(), reward()
    )
    assert "1 comparisons repeat another" in texts(found, SAY)
    assert texts(found, WARN) == ["1 pairs of responses are preferred in both directions"]


def test_the_longer_side_is_counted_by_who_is_likelier_better():
    """Response 1 is the longest: it loses twice, loses at chance .3 and wins at .6; 0 and 2 are equally long."""
    found = preflight.comparisons(
        [compared((0, 1, 1.0), (2, 1, 1.0), (1, 0, 0.3), (1, 0, 0.6), (0, 2, 1.0))], [THREE], set(), reward()
    )
    assert "the chosen side is the longer one in 25%" in texts(found, SAY)


# -- the report


def test_the_report_is_one_block_and_refuses_last(capsys):
    found = [Finding(SAY, "a"), Finding(WARN, "b", "do c"), Finding(SAY, "d")]
    preflight.report(found)
    block = "preflight: a; d\npreflight: warning: b\n  hint: do c\n"
    assert capsys.readouterr().err == block
    with pytest.raises(XwinError, match="no") as e:
        preflight.report([Finding(REFUSE, "no", "mend it"), *found])
    assert e.value.hint == "mend it"
    assert capsys.readouterr().err == block


# -- as stages run it


def said(role: str, text: str) -> list[dict]:
    return [{"role": role, "content": text}]


def test_sft_refuses_a_mask_that_covers_the_prompts_and_makes_nothing(xwin, policy, tmp_path):
    bare = "{% for m in messages if m['role'] == 'assistant' %}{{ m['content'] + eos_token }}{% endfor %}"
    (tmp_path / "bare.jinja").write_text(bare)
    talk = {"messages": said("user", "why ?") + said("assistant", "because .")}
    (tmp_path / "d.jsonl").write_text(json.dumps(talk) + "\n")
    done = xwin("sft", "--model", policy, "--data", "d.jsonl", "--out", "m", "--template", "bare.jinja", code=1)
    assert "every token would be learned" in done.stderr
    assert not list(tmp_path.glob("m*"))


def test_train_rm_refuses_a_pad_that_is_eos(policy, tmp_path, monkeypatch):
    make = models.new_reward

    def careless(*args, **more):
        loaded = make(*args, **more)
        loaded.model.config.pad_token_id = loaded.tokenizer.eos_token_id
        return loaded

    monkeypatch.setattr(models, "new_reward", careless)
    row = {"prompt": said("user", "why ?"), "chosen": said("assistant", "because"), "rejected": said("assistant", "no")}
    (tmp_path / "d.jsonl").write_text(json.dumps(row) + "\n")
    given = {"model": str(policy), "data": [str(tmp_path / "d.jsonl")], "out": str(tmp_path / "rm"), "device": "cpu"}
    with pytest.raises(XwinError, match="a stop token"):
        train_rm.run(flags.build(train_rm.Config, given))
    assert [p.name for p in tmp_path.iterdir()] == ["d.jsonl"]


def test_a_new_reward_model_passes(policy):
    loaded = models.new_reward(str(policy), models.place(settings.Device(device="cpu", dtype="float32")), 0)
    assert preflight._pad(loaded) == []
