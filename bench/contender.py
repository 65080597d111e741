"""One contender of the training benchmark, in a process of its own.

Arguments: WHO STAGE FOLDER DTYPE TOP LORA ROW LIMIT.
Prints one line of JSON: tokens, seconds, the loss of every step, peak resident memory in MB, model FLOPs.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

BATCH, LR, BETA = 16, 1e-4, 0.1


def read(folder: Path, limit: int) -> list[Any]:
    """The rows in the order they are learned, at most so many."""
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    return [rows[i] for i in json.loads((folder / "order.json").read_text())][:limit]


def lengths(folder: Path, stage: str, limit: int) -> list[int]:
    """Tokens of every sequence as the peer sees them."""
    from transformers import AutoTokenizer

    tok = AutoTokenizer.from_pretrained(folder / "base")
    rows = read(folder, limit)
    sides = ("chosen",) if stage == "sft" else ("chosen", "rejected")
    talks = [[*row["prompt"], *row[side]] for row in rows for side in sides]
    return [len(tok.apply_chat_template(t)["input_ids"]) for t in talks]


def flops(model: Any, sizes: list[int], stage: str, top: int, lora: int) -> float:
    """Floating-point operations of the work as such: 6 per weight and token (2 of them forward), attention included.

    Weights that do not learn need no gradient of their own, and layers under the lowest that learns no backward
    at all. With adapters (whose own few are left out) no weight needs one. DPO's reference is a forward more.
    """
    config = model.config
    depth, width = config.num_hidden_layers, config.hidden_size
    body = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n and "lora" not in n)
    head = 0 if stage == "train-rm" else config.vocab_size * width
    share = top / depth if top else 1.0
    total = 0.0
    for n in sizes:
        attend = 2 * n * n * width * depth  # scores and values, causal: half of 4 n^2 h
        forward = 2 * n * body + attend
        total += forward * (1 + (1 if lora else 2) * share) + (2 + 4 * (0.5 if top or lora else 1)) * n * head
        total += forward + 2 * n * head if stage == "dpo" else 0.0
    return total


def by_xwin(stage: str, folder: Path, dtype: str, top: int, lora: int, row: int) -> tuple[float, list[float], Any]:
    """Ours, through the real stage; the clock runs in ``loop.fit`` and in the reference's log-probabilities."""
    from importlib import import_module

    from xwincli import flags, scoring
    from xwincli.train import loop

    clock, models = [0.0], []

    def timed(function: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **more)
            finally:
                clock[0] += time.perf_counter() - start

        return call

    loop.fit, scoring.logprobs = timed(loop.fit), timed(scoring.logprobs)
    finish = import_module("xwincli.train.folder").Folder.finish
    import_module("xwincli.train.folder").Folder.finish = lambda self, loaded, **more: (
        models.append(loaded.model),
        finish(self, loaded, **more),
    )
    module = import_module(f"xwincli.stages.{stage.replace('-', '_')}")
    out = folder / f"out-{stage}"
    given: dict[str, Any] = {
        "data": [str(folder / ("talks.jsonl" if stage == "sft" else "pairs.jsonl"))],
        "model": str(folder / "base"),
        "out": str(out),
        "lr": LR,
        "batch": BATCH,
        "schedule": "constant",
        "warmup": 0.0,
        "force": True,
        "device": "cpu",
        "dtype": dtype,
        "train_top": top,
        "lora_r": lora,
        "max_tokens_per_row": row,
    }
    given |= {"train-rm": {"valid": 0.0, "centring": 0.0}, "dpo": {"beta": BETA}}.get(stage, {})
    module.run(flags.build(module.Config, given))
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return clock[0], [row["loss"] for row in rows], models[0]


def by_trl(
    stage: str, folder: Path, dtype: str, top: int, lora: int, limit: int, who: str
) -> tuple[float, list[float], Any]:
    """TRL's trainer on the same rows in our order: ``trl`` its fastest, ``trl-padded``, ``trl-default``."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    rows = read(folder, limit)
    if stage == "sft":
        rows = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows]
    else:
        rows = [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in rows]
    kind = AutoModelForSequenceClassification if stage == "train-rm" else AutoModelForCausalLM
    model = kind.from_pretrained(folder / ("rm" if stage == "train-rm" else "base"), dtype="float32")
    if top:
        model.requires_grad_(False)
        for block in model.base_model.layers[-top:]:
            block.requires_grad_(True)
        model.base_model.norm.requires_grad_(True)
        if stage == "train-rm":
            model.score.requires_grad_(True)
    one = 1 if who == "trl" else 8
    arguments: dict[str, Any] = {
        "output_dir": str(folder / "trl"),
        "per_device_train_batch_size": one,
        "gradient_accumulation_steps": BATCH // one,
        "num_train_epochs": 1,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "max_length": None,
        "disable_tqdm": True,
    }
    if who == "trl":
        arguments |= {"bf16": dtype == "bfloat16", "gradient_checkpointing": False}
    elif who == "trl-padded":
        arguments |= {"bf16": False}
    import trl

    config, trainer = {
        "sft": (trl.SFTConfig, trl.SFTTrainer),
        "train-rm": (trl.RewardConfig, trl.RewardTrainer),
        "dpo": (trl.DPOConfig, trl.DPOTrainer),
    }[stage]
    if stage == "dpo":
        arguments["beta"] = BETA
    made = trainer(
        model=model,
        args=config(**arguments),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder / ("rm" if stage == "train-rm" else "base")),
        peft_config=_adapters(stage, lora) if lora else None,
    )
    start = time.perf_counter()
    made.train()
    seconds = time.perf_counter() - start
    return seconds, [row["loss"] for row in made.state.log_history if "loss" in row], made.model


def _adapters(stage: str, rank: int) -> Any:
    """Adapters where ours are: on every linear layer, alpha twice the rank; a reward model's head learns too."""
    from peft import LoraConfig

    kind = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]} if stage == "train-rm" else {"task_type": "CAUSAL_LM"}
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", **kind)


def main() -> None:
    """Run and print."""
    who, stage, folder, dtype = sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4]
    top, lora, row, limit = map(int, sys.argv[5:])
    out, sys.stdout = sys.stdout, sys.stderr
    if who == "xwin":
        seconds, losses, model = by_xwin(stage, folder, dtype, top, lora, row)
    else:
        seconds, losses, model = by_trl(stage, folder, dtype, top, lora, limit, who)
    sizes = lengths(folder, stage, limit)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"tokens": sum(sizes), "seconds": seconds, "losses": losses, "peak": memory}
    print(json.dumps({**found, "flops": flops(model, sizes, stage, top, lora)}), file=out)


if __name__ == "__main__":
    main()
