"""TRL's losses and gradients on the same batch, as a second opinion on ours (float32, micro model)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import micro
from xwincli import models, scoring, settings
from xwincli.records import Pair
from xwincli.rows import Branch
from xwincli.states import prepare
from xwincli.train import dpo, rm, sft
from xwincli.train.comparisons import gather

trl = pytest.importorskip("trl")

CPU = settings.Device(device="cpu", dtype="float32")
CHAT = (  # nothing after the stop token, which TRL would learn and we do not
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SHAPES = [
    ("tea", "the tea is warm .", "no"),
    ("the moon", "it shines .", "rain , rain and more rain ."),
    ("fox", "a", "b c"),
]


def said(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


ROWS = [
    {"prompt": said("user", f"about {q} ?"), "chosen": said("assistant", c), "rejected": said("assistant", r)}
    for q, c, r in SHAPES
]
PAIRS = [Pair(id=str(i), prompt_id=str(i), **row) for i, row in enumerate(ROWS)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = micro.policy(tmp_path_factory.mktemp("trl") / "base")
    tok = AutoTokenizer.from_pretrained(folder)
    tok.chat_template = CHAT
    tok.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def policy(base: Path) -> models.Loaded:
    return prepare(models.load_policy(str(base), models.place(CPU), train=True))


def theirs(trainer: Any, config: Any, model: Any, folder: Path, rows: list[dict], **more: Any) -> tuple[float, float]:
    """Loss and gradient norm of TRL's trainer on all rows as one batch."""
    made = trainer(
        model=model,
        args=config(
            output_dir=str(folder / "out"),
            per_device_train_batch_size=len(rows),
            max_steps=1,
            learning_rate=0.0,
            max_grad_norm=1e9,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            max_length=None,
            **more,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    made.train()
    first = next(row for row in made.state.log_history if "loss" in row)
    return first["loss"], first["grad_norm"]


def ours(model: Any, objective: Any, count: int, units: int) -> tuple[float, float]:
    model.zero_grad()
    loss, _ = objective(list(range(count)))
    (loss / units).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return loss.item() / units, norm.item()


def test_sft(base, policy):
    rows = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in ROWS]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    there = theirs(trl.SFTTrainer, trl.SFTConfig, model, base, rows)
    talks = [policy.template.conversation([*r["prompt"], *r["chosen"]])[0] for r in ROWS]
    branches = [Branch([], [ids], [learned]) for ids, learned in talks]
    units = sum(map(sft.learned, branches))
    assert ours(policy.model, sft.objective(policy, branches), len(branches), units) == pytest.approx(there, rel=1e-5)


@pytest.mark.parametrize("centring", [0.0, 0.01])
def test_reward(base, tmp_path, centring):
    loaded = models.new_reward(str(base), models.place(CPU), 0)
    models.save(loaded, tmp_path / "rm")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm", dtype=torch.float32)
    more = {"center_rewards_coefficient": centring or None}
    there = theirs(trl.RewardTrainer, trl.RewardConfig, model, tmp_path / "rm", ROWS, **more)
    items, _ = gather(PAIRS, "f")
    prepare(loaded)
    branches = [scoring.branch(loaded, (i.prompt, i.sides), tail=True) for i in items]
    objective = rm.objective(loaded, branches, items, centring=centring)
    assert ours(loaded.model, objective, len(items), len(items)) == pytest.approx(there, rel=1e-5)


@pytest.mark.parametrize(
    "options,terms,count",
    [
        ({"loss_type": "sigmoid"}, {}, 3),
        ({"loss_type": "aot", "label_smoothing": 0.2}, {"loss": "cdpo", "smoothing": 0.2}, 1),
        ({"loss_type": "robust", "label_smoothing": 0.2}, {"loss": "robust", "smoothing": 0.2}, 3),
        ({"loss_type": "hinge"}, {"loss": "hinge"}, 3),
        ({"loss_type": "ipo"}, {"loss": "ipo"}, 3),
        ({"loss_type": "sigmoid_norm"}, {"loss": "length-normalised"}, 3),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]}, {"nll": 0.7}, 1),
    ],
    ids=["sigmoid", "cdpo", "robust", "hinge", "ipo", "length-normalised", "nll"],
)
def test_dpo(base, policy, tmp_path, options, terms, count):
    """Against a reference that is not the policy, so that no term is zero.

    TRL's sigmoid ignores smoothing, but its sorted loss (AOT) of a single pair is cDPO; its NLL is a mean over the
    batch's tokens, ours over each pair's, which is the same for a single pair.
    """
    other = micro.policy(tmp_path / "other", seed=3)
    made = {"model": AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)}
    reference = AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32)

    def trainer(**given: Any) -> Any:
        return trl.DPOTrainer(ref_model=reference, **given)

    there = theirs(trainer, trl.DPOConfig, made["model"], base, ROWS[:count], beta=0.3, **options)
    branches = [dpo.as_branch(policy, p) for p in PAIRS[:count]]
    held = models.load_policy(str(other), models.place(CPU), train=True)
    values = scoring.logprobs(held, branches)
    objective = dpo.objective(policy, branches, values, dpo.Terms(beta=0.3, **terms))
    assert ours(policy.model, objective, count, count) == pytest.approx(there, rel=1e-4)


def test_simpo(base, policy):
    """Without a reference, in TRL's CPO trainer."""
    cpo = pytest.importorskip("trl.experimental.cpo")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    options = {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 0.8, "beta": 2.0}
    there = theirs(cpo.CPOTrainer, cpo.CPOConfig, model, base, ROWS, **options)
    branches = [dpo.as_branch(policy, p) for p in PAIRS]
    objective = dpo.objective(policy, branches, [], dpo.Terms(loss="simpo", beta=2.0, gamma=0.8))
    assert ours(policy.model, objective, len(PAIRS), len(PAIRS)) == pytest.approx(there, rel=1e-4)
