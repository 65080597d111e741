"""The DPO objective against plain transformers; how rows are cut; what the reference and the watch refuse or say."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import log_softmax, logsigmoid
from transformers import AutoModelForCausalLM

from xwincli import models, settings
from xwincli.errors import XwinError
from xwincli.records import Pair
from xwincli.rows import Branch
from xwincli.stages.dpo import CHOICES
from xwincli.states import prepare
from xwincli.train import dpo, reference

BRANCHES = [
    Branch([5, 9, 11], [[20, 21, 22, 23], [30]]),
    Branch([7], [[40], [41, 42, 43]]),
    Branch([6, 8], [[50, 51], [52, 53]]),
    Branch([12, 13, 14, 15], [[60, 61, 62], [63, 64, 65, 66, 67]]),
    Branch([16], [[70, 71], [72]]),
]
REFERENCE = [[-9.0, -4.0], [-3.0, -8.5], [-6.0, -5.0], [-7.5, -16.0], [-5.0, -2.5]]  # any numbers will do
KEPT = reference.Source("model", "template", "float32")


@pytest.fixture(scope="module")
def loaded(policy: Path) -> models.Loaded:
    place = models.place(settings.Device(device="cpu", dtype="float32"))
    return prepare(models.load_policy(str(policy), place, train=True))


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def plain(policy: Path) -> tuple[torch.nn.Module, torch.Tensor]:
    """Transformers' model, and summed log-probabilities (P, 2) of one forward per response."""
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    found = []
    for b in BRANCHES:
        for r in b.responses:
            logits = model(torch.tensor([b.prompt + r])).logits[0, len(b.prompt) - 1 : -1]
            found.append(log_softmax(logits, -1)[range(len(r)), r].sum())
    return model, torch.stack(found).view(-1, 2)


def worked(name: str, logp: torch.Tensor) -> torch.Tensor:
    """The sum of a loss over all pairs, written out, with beta .5, smoothing .2 and gamma .3."""
    size = torch.tensor([[len(r) for r in b.responses] for b in BRANCHES])
    ratio = logp - torch.tensor(REFERENCE)
    h = ratio[:, 0] - ratio[:, 1]
    each = (ratio / size)[:, 0] - (ratio / size)[:, 1]
    lead = (logp / size)[:, 0] - (logp / size)[:, 1]
    up, down = logsigmoid(0.5 * h), logsigmoid(-0.5 * h)
    return {
        "sigmoid": -up,
        "cdpo": -0.8 * up - 0.2 * down,
        "robust": (-0.8 * up + 0.2 * down) / 0.6,
        "hinge": (1 - 0.5 * h).clamp(min=0),
        "ipo": (each - 1) ** 2,
        "ipo-sum": (h - 1) ** 2,
        "length-normalised": -logsigmoid(0.5 * each),
        "simpo": -logsigmoid(0.5 * lead - 0.3),
    }[name].sum()


def test_the_stage_offers_every_loss():
    assert tuple(dpo.LOSSES) == CHOICES


@pytest.mark.parametrize("name", CHOICES)
def test_every_loss_and_its_gradient_equal_plain_transformers(loaded, policy, name):
    model, logp = plain(policy)
    expected = worked(name, logp)
    expected.backward()
    terms = dpo.Terms(name, beta=0.5, smoothing=0.2, gamma=0.3)
    loss, _ = dpo.objective(loaded, BRANCHES, REFERENCE, terms)(list(range(5)))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    there = gradients(model)
    for n, g in gradients(loaded.model).items():
        torch.testing.assert_close(g, there[n], rtol=1e-3, atol=1e-5)


def test_nll_is_a_mean_over_each_chosen_response(loaded, policy):
    logp = plain(policy)[1].detach()
    extra = sum(-logp[i, 0].item() / len(b.responses[0]) for i, b in enumerate(BRANCHES))
    without, _ = dpo.objective(loaded, BRANCHES, REFERENCE, dpo.Terms())(list(range(5)))
    with_it, _ = dpo.objective(loaded, BRANCHES, REFERENCE, dpo.Terms(nll=0.4))(list(range(5)))
    assert with_it.item() - without.item() == pytest.approx(0.4 * extra, rel=1e-4)


def test_what_is_reported(loaded, policy):
    """Sums over pairs, which the loop turns into means."""
    logp = plain(policy)[1].detach()
    ratio = logp - torch.tensor(REFERENCE)
    h = ratio[:, 0] - ratio[:, 1]
    assert 0 < (h > 0).sum() < 5  # else accuracy would show nothing
    _, sums = dpo.objective(loaded, BRANCHES, REFERENCE, dpo.Terms(beta=0.5))(list(range(5)))
    assert sums["accuracy"] == (h > 0).sum()
    assert sums["margin"] == pytest.approx(0.5 * h.sum().item(), rel=1e-4)
    assert sums["chosen"] == pytest.approx(ratio[:, 0].sum().item(), rel=1e-4)
    assert sums["rejected"] == pytest.approx(ratio[:, 1].sum().item(), rel=1e-4)
    assert sums["chosen_logprob"] == pytest.approx(logp[:, 0].sum().item(), rel=1e-4)


@pytest.mark.parametrize("rows", [[[0], [1], [2], [3], [4]], [[3, 1], [4, 0, 2]]], ids=["one-by-one", "two-rows"])
@pytest.mark.parametrize("name", ["sigmoid", "ipo", "simpo"])
def test_rows_never_change_a_gradient(loaded, name, rows):
    compute = dpo.objective(loaded, BRANCHES, REFERENCE, dpo.Terms(name, nll=0.3))
    whole, reports = compute(list(range(5)))
    (whole / 5).backward()
    expected = gradients(loaded.model)
    parts = [compute(row) for row in rows]
    for loss, _ in parts:
        (loss / 5).backward()
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(whole.item(), rel=1e-5)
    for key, value in reports.items():
        assert sum(more[key] for _, more in parts) == pytest.approx(value, rel=1e-4, abs=1e-5)
    for n, g in gradients(loaded.model).items():
        torch.testing.assert_close(g, expected[n], rtol=1e-3, atol=1e-6)


def turn(role: str, text: str | None) -> dict[str, str | None]:
    return {"role": role, "content": text}


def test_a_pair_of_several_turns_shares_all_but_the_last(loaded):
    ask, first, more = turn("user", "about tea ?"), turn("assistant", "yes"), turn("user", "and rain ?")
    sides = [[first, more, turn("assistant", text)] for text in ("a", "b c")]
    pair = Pair(id="x", prompt=[ask], chosen=sides[0], rejected=sides[1])
    flat = Pair(id="y", prompt=[ask, first, more], chosen=sides[0][-1:], rejected=sides[1][-1:])
    assert dpo.as_branch(loaded, pair) == dpo.as_branch(loaded, flat)
    sides[1][0] = turn("assistant", "no")
    with pytest.raises(XwinError, match="pair x: chosen and rejected differ before their last message"):
        dpo.as_branch(loaded, pair)
    pair = Pair(id="z", prompt=[ask], chosen=[turn("assistant", None)], rejected=[first])
    with pytest.raises(XwinError, match="pair z: a side ends with a tool call"):
        dpo.as_branch(loaded, pair)


def made(path: Path, values=REFERENCE, source=KEPT, tokens: int = 10**9, branches=BRANCHES) -> tuple[list, list]:
    """What ``make`` gives, and the pairs it computed together."""
    table = {reference.pair_id(b): v for b, v in zip(BRANCHES, values, strict=True)}
    computed: list[list[Branch]] = []

    def work(pairs):
        computed.append(pairs)
        return [table[reference.pair_id(b)] for b in pairs]

    return reference.make(path, branches, source, settings.Run(out="x"), lambda: work, tokens), computed


@pytest.mark.parametrize("line", ['{"pair": "p", "chosen": null, "rejected": 1.0}', '{"chosen": 2.0, "rejected": 1.0}'])
def test_a_damaged_reference_file_names_its_line(tmp_path, line):
    path = tmp_path / "r.jsonl"
    made(path)
    assert reference.recall(path, BRANCHES[::-1], KEPT) == REFERENCE[::-1]
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(XwinError, match=r"r\.jsonl:6: needs a pair and two log-probabilities"):
        reference.recall(path, BRANCHES, KEPT)


@pytest.mark.parametrize(
    "source,message",
    [
        (reference.Source("other", "template", "float32"), "made with the model model, the reference here is other"),
        (reference.Source("model", "changed", "float32"), "another chat template than model has now"),
        (
            reference.Source("model", "template", "bfloat16"),
            "made in float32, the reference here is computed in bf",
        ),
    ],
)
def test_a_reference_file_is_tied_to_model_template_and_precision(tmp_path, source, message):
    path = tmp_path / "r.jsonl"
    made(path)
    with pytest.raises(XwinError, match=message) as e:
        reference.recall(path, BRANCHES, source)
    assert "--reference" in e.value.hint


@pytest.mark.parametrize(
    "there,here,options",
    [
        ("float32", "bfloat16", "give --dtype float32,"),
        ("float32 nf4", "float32", "give --quantize nf4,"),
        ("float32", "float32 nf4", "give --quantize none,"),
        ("bfloat16 nf4", "float32", "give --dtype bfloat16 --quantize nf4,"),
    ],
)
def test_the_remedy_names_the_options_of_the_precision(tmp_path, there, here, options):
    path = tmp_path / "r.jsonl"
    made(path, source=replace(KEPT, dtype=there))
    with pytest.raises(XwinError) as e:
        reference.recall(path, BRANCHES, replace(KEPT, dtype=here))
    assert e.value.hint.startswith(options)


def test_a_broken_reference_is_never_kept(tmp_path):
    path = tmp_path / "r.jsonl"
    with pytest.raises(XwinError, match="model: the log-probabilities of 1 of 5 pairs are not finite"):
        made(path, [*REFERENCE[:4], [math.nan, -1.0]])
    assert not list(tmp_path.iterdir())


def test_what_is_computed_together_does_not_depend_on_where_it_was_killed(tmp_path):
    """Parts of at least nine tokens: pairs 0 and 1, 2 and 3, 4; a pair given twice is computed once."""
    whole, computed = made(tmp_path / "w.jsonl", tokens=9, branches=[*BRANCHES, BRANCHES[0]])
    assert whole == [*REFERENCE, REFERENCE[0]]
    assert [[BRANCHES.index(b) for b in part] for part in computed] == [[0, 1], [3, 2], [4]]
    path, partial = tmp_path / "r.jsonl", tmp_path / "r.jsonl.partial"
    with pytest.raises(XwinError, match="1 of 2 pairs are not finite"):
        made(path, [*REFERENCE[:2], [math.inf, 0.0], *REFERENCE[3:]], tokens=9)
    lines = partial.read_text().splitlines(keepends=True)
    assert len(lines) == 3  # the mark, and the pairs of the first part
    partial.write_text("".join(lines[:2]) + lines[2][:20])  # the last is torn
    assert reference.recall(path, BRANCHES, KEPT) is None
    again, computed = made(path, tokens=9)
    assert [[BRANCHES.index(b) for b in part] for part in computed] == [[0, 1], [3, 2], [4]]
    assert again == REFERENCE
    assert path.read_text() == (tmp_path / "w.jsonl").read_text()
    assert made(path, tokens=9) == (REFERENCE, [])
    assert not partial.exists()


@pytest.mark.parametrize("other", [{"model": "b"}, {"template": "b"}, {"dtype": "bfloat16"}])
def test_a_journal_of_another_reference_is_not_gone_on_with(tmp_path, other):
    path, broken = tmp_path / "r.jsonl", [*REFERENCE[:4], [math.nan, 0.0]]
    with pytest.raises(XwinError):
        made(path, broken, tokens=9)
    found, computed = made(path, source=replace(KEPT, **other), tokens=9)
    assert (found, len(computed)) == (REFERENCE, 3)
    assert len(list(tmp_path.glob("r.jsonl.partial.*"))) == 1  # kept for its own
    path.unlink()
    assert len(made(path, tokens=9)[1]) == 1


def watched(own: bool, chosen: list[float], margin: list[float], capsys: pytest.CaptureFixture[str]) -> str:
    watch = dpo.watch_chosen(own)
    for step, (c, m) in enumerate(zip(chosen, margin, strict=True), 1):
        assert watch(step, {"chosen": c, "margin": m}) == {}
    return capsys.readouterr().err


def test_falling_chosen_responses_are_said_once(capsys):
    falling, growing = [-0.5 * i for i in range(60)], [0.1 * i for i in range(60)]
    said = watched(True, falling, growing, capsys)
    assert said.count("warning") == 1
    assert "--nll" in said
    assert watched(True, [0.0] * 60, growing, capsys) == ""
    assert watched(True, falling, [0.0] * 60, capsys) == ""


def test_against_another_reference_the_fall_counts_from_the_first_step(capsys):
    growing = [0.1 * i for i in range(60)]
    assert watched(False, [-50.0] * 60, growing, capsys) == ""
    assert "lost 5" in watched(False, [-50.0 - 0.5 * i for i in range(60)], growing, capsys)
    assert "lost" in watched(True, [-50.0] * 60, growing, capsys)
