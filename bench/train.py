"""Training beside TRL: same model, data, order, batches, optimiser and threads; separate processes taking turns.

    python bench/train.py [--models S M] [--stages sft train-rm dpo] [--repeats 3] [--rows 64]
    python bench/train.py --policy runs/demo/smollm2 --pairs FILE [--train-top 15 | --lora-r 16]      # a real model

Every contender trains one epoch over the same rows in the same order with AdamW at a constant rate. Its time runs
from the first row to the last step, DPO's reference log-probabilities included; loading, tokenising and saving do
not count. A token is a token of a sequence as the peer sees it (a pair's prompt counts with both responses), so
the ratio of speeds is the ratio of times. TRL stands there in the fastest setting that was found (float32, one
sequence a micro-step, no gradient checkpointing, the allocator keeping its memory), as it comes but in float32
(padded batches of 8), and as it comes (the same in bfloat16, with ``--few`` rows, since a processor without
bfloat16 units takes a hundred times as long); the last two once a case. ``results.py`` keeps the runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import results
import world

HERE = Path(__file__).parent
CONTENDERS = ("xwin", "trl", "trl-padded", "trl-default")
BATCH = 16
KEEP = {"MALLOC_TOP_PAD_": str(256 << 20), "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}


def prepare(folder: Path, policy: str, pairs: str, name: str, rows: int) -> None:
    """Lay out one world: ``base``, ``rm`` (the reward model both start from), ``pairs.jsonl`` and ``order.json``."""
    from xwincli import models, settings
    from xwincli.train.plan import plan

    base = Path(policy) if policy else world.policy(world.MODELS[name], folder / "base")
    if policy:
        _same_template(base.resolve(), folder / "base")
        _as_trl_reads_them(Path(pairs), rows, folder / "pairs.jsonl")
    else:
        world.pairs(world.MODELS[name].vocab, rows, folder / "pairs.jsonl")
    read = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    with (folder / "talks.jsonl").open("w") as f:
        for row in read:
            f.write(json.dumps({"messages": [*row["prompt"], *row["chosen"]]}) + "\n")
    place = models.place(settings.Device(device="cpu", dtype="float32"))
    models.save(models.new_reward(str(folder / "base"), place, 0), folder / "rm")
    steps = plan([1] * len(read), batch=BATCH, capacity=1, world=1, epochs=1, seed=0)
    order = [i for (rows,) in steps for row in rows for i in row]
    (folder / "order.json").write_text(json.dumps(order))


def _as_trl_reads_them(pairs: Path, rows: int, file: Path) -> None:
    """One pair a prompt, since our batches count prompts; and all answers ended, since TRL knows no cut ones."""
    found = {}
    for line in pairs.read_text().splitlines():
        row = json.loads(line)
        plain = [[{k: m[k] for k in ("role", "content")} for m in row[f]] for f in ("prompt", "chosen", "rejected")]
        found[json.dumps(plain[0])] = dict(zip(("prompt", "chosen", "rejected"), plain, strict=True))
    file.write_text("".join(json.dumps(row) + "\n" for row in [*found.values()][:rows]))


def _same_template(policy: Path, folder: Path) -> None:
    """A model folder beside another, with a template under which all tools learn the same tokens."""
    from transformers import AutoTokenizer

    folder.mkdir()
    for file in policy.iterdir():
        (folder / file.name).symlink_to(file)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    tok = AutoTokenizer.from_pretrained(policy)
    tok.chat_template = world.CHAT
    tok.save_pretrained(folder)


def take_turns(stage: str, folder: Path, options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Every contender's runs of one stage."""
    commands = {}
    for c in options.contenders:
        few = options.few if c == "trl-default" else options.rows
        settings = (options.dtype, options.train_top, options.lora_r, options.row, few)
        commands[c] = [str(HERE / "contender.py"), c, stage, str(folder), *map(str, settings)]
    return results.turns(commands, options.repeats, ("trl-padded", "trl-default"), {"trl": KEEP})


def peak() -> float:
    """This machine's float32 matrix products, in GFLOP/s: the best of several of 2048 x 2048."""
    import torch

    a = torch.randn(2048, 2048)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return float(2 * 2048**3 / best / 1e9)


def lines(row: dict[str, Any]) -> list[str]:
    """The lines of one record on the page, one a contender."""
    speed = {c: [r["tokens"] / r["seconds"] for r in runs] for c, runs in row["runs"].items()}
    found = []
    for c, runs in row["runs"].items():
        used = statistics.median(r["flops"] / r["seconds"] for r in runs) / 1e9 / row["limit"]
        compared = ["", ""] if c == "xwin" else [results.spread(row["ratios"][c], 2), row["apart"][c]]
        cells = [row["case"] if c == "xwin" else "", c, str(len(runs)), results.spread(speed[c])]
        cells += [compared[0], f"{statistics.median(r['peak'] for r in runs):,.0f}", f"{used:.2f}", compared[1]]
        found.append(f"| {' | '.join(cells)} |")
    return found


def _apart(ours: list[float], theirs: list[float]) -> float:
    """The largest difference of the losses of the same step; who ran over fewer rows has fewer."""
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=False))


HEAD = "| | | runs | tokens/s | xwin is so many times as fast | peak MB | of the matmul peak | losses apart by |"


def main() -> None:
    """Run every contender ``--repeats`` times in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["S", "M"])
    parser.add_argument("--stages", nargs="*", default=["sft", "train-rm", "dpo"])
    parser.add_argument("--contenders", nargs="*", default=list(CONTENDERS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--policy", default="", help="a model folder instead of the made ones")
    parser.add_argument("--pairs", default="", help="pairs for --policy")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--train-top", type=int, default=0, help="only so many layers learn")
    parser.add_argument("--lora-r", type=int, default=0, help="adapters of this rank learn; each side draws its own")
    parser.add_argument("--row", type=int, default=1024, help="tokens in a row of ours (--max-tokens-per-row)")
    parser.add_argument("--few", type=int, default=16, help="rows at most for trl-default")
    args = parser.parse_args()
    limit = peak()
    setting = f", top {args.train_top} layers" if args.train_top else f", LoRA r {args.lora_r}" if args.lora_r else ""
    for name in [Path(args.policy).name] if args.policy else args.models:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            prepare(folder, args.policy, args.pairs, name, args.rows)
            for stage in args.stages:
                found = take_turns(stage, folder, args)
                case = f"{stage} {name}{setting}, {args.rows} rows, {args.dtype}".removesuffix(", float32")
                losses = {c: runs[0]["losses"] for c, runs in found.items()}
                apart = {c: f"{_apart(losses['xwin'], theirs):.0e}" for c, theirs in losses.items()}
                runs = {c: [{k: v for k, v in r.items() if k != "losses"} for r in of] for c, of in found.items()}
                results.record("Training", case, runs, dtype=args.dtype, limit=limit, apart=apart)
                results.draw("Training", HEAD, lines)
    print(results.draw("Training", HEAD, lines))


if __name__ == "__main__":
    main()
