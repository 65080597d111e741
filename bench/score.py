"""Scoring 64 responses a prompt beside transformers: same reward model, texts and threads; processes by turns.

    python bench/score.py [--models S M] [--prompts 8] [--repeats 3]

A token is a token of a sequence as transformers sees it: a prompt counts with each of its responses. transformers
stands there with batches of 16 as the responses come, and sorted by length in batches of 4, its fastest.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import results
import sample
import world

N = 64


def by_xwin(folder: Path, groups: list[tuple[list[int], list[list[int]]]]) -> tuple[list[float], float]:
    """``xwin score``'s own way, windows of 16 groups."""
    from xwincli import models, scoring, settings, states
    from xwincli.rows import Branch

    loaded = models.load_reward(str(folder), models.place(settings.Device(device="cpu", dtype="float32")))
    states.prepare(loaded)
    branches = [Branch(prompt, answers) for prompt, answers in groups]
    begun = time.perf_counter()
    found = []
    for i in range(0, len(branches), 16):
        found += scoring.branch_rewards(loaded, branches[i : i + 16])
    seconds = time.perf_counter() - begun
    return [x for scores in found for x in scores], seconds


def by_transformers(
    folder: Path, sequences: list[list[int]], batch: int, *, ordered: bool
) -> tuple[list[float], float]:
    """Padded batches through ``AutoModelForSequenceClassification``."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype="float32").eval()
    pad = model.config.get_text_config().pad_token_id
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]) if ordered else i)
    found = [0.0] * len(sequences)
    begun = time.perf_counter()
    with torch.inference_mode():
        for first in range(0, len(order), batch):
            some = order[first : first + batch]
            longest = max(len(sequences[i]) for i in some)
            ids = torch.tensor([sequences[i] + [pad] * (longest - len(sequences[i])) for i in some])
            mask = torch.tensor([[1] * len(sequences[i]) + [0] * (longest - len(sequences[i])) for i in some])
            scores = model(ids, attention_mask=mask, use_cache=False).logits[:, 0].tolist()
            for i, score in zip(some, scores, strict=True):
                found[i] = score
    return found, time.perf_counter() - begun


def contend(who: str, folder: Path) -> None:
    """Be one contender: print its run as JSON."""
    out, sys.stdout = sys.stdout, sys.stderr
    groups = json.loads((folder / "groups.json").read_text())
    sequences = [prompt + answer for prompt, answers in groups for answer in answers]
    if who == "xwin":
        scores, seconds = by_xwin(folder / "rm", groups)
    else:
        order, batch = who.split()
        scores, seconds = by_transformers(folder / "rm", sequences, int(batch), ordered=order == "sorted")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"tokens": sum(map(len, sequences)), "seconds": seconds, "peak": memory, "scores": scores}
    print(json.dumps(found), file=out)


def prepare(name: str, folder: Path, prompts: int) -> None:
    """A made reward model, and groups of token ids with log-normal lengths."""
    from transformers import AutoTokenizer

    from xwincli import models

    world.policy(world.MODELS[name], folder / "base")
    models.save(models.new_reward(str(folder / "base"), models.CPU, 0), folder / "rm")
    rows = world.pairs(world.MODELS[name].vocab, prompts, folder / "pairs.jsonl").read_text().splitlines()
    tok = AutoTokenizer.from_pretrained(folder / "base")
    draw = random.Random(5)
    groups = []
    for row, each in zip(rows, sample.lengths(prompts, N), strict=True):
        ids = tok.apply_chat_template(json.loads(row)["prompt"], add_generation_prompt=True)["input_ids"]
        groups.append((ids, [[draw.randrange(300, 4000) for _ in range(x)] for x in each]))
    (folder / "groups.json").write_text(json.dumps(groups))


def lines(row: dict[str, Any]) -> list[str]:
    """The lines of one record on the page, one a contender."""
    speed = {c: [r["tokens"] / r["seconds"] for r in runs] for c, runs in row["runs"].items()}
    found = []
    for c, runs in row["runs"].items():
        cells = [row["case"] if c == "xwin" else "", c, str(len(runs)), results.spread(speed[c])]
        cells += [
            "" if c == "xwin" else results.spread(row["ratios"][c], 2),
            f"{statistics.median(r['peak'] for r in runs):,.0f}",
        ]
        found.append(f"| {' | '.join([*cells, '' if c == 'xwin' else row['apart'][c]])} |")
    return found


HEAD = "| | | runs | tokens/s | xwin is so many times as fast | peak MB | scores apart by |"


def main() -> None:
    """Run every contender ``--repeats`` times in turn and draw the table."""
    if sys.argv[1:2] == ["--as"]:
        contend(sys.argv[2], Path(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["S", "M"])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    for name in args.models:
        with tempfile.TemporaryDirectory() as scratch:
            prepare(name, Path(scratch), args.prompts)
            who = ("xwin", "sorted 4", "unsorted 16")
            found = results.turns({c: [__file__, "--as", c, scratch] for c in who}, args.repeats)
        first = {c: runs[0]["scores"] for c, runs in found.items()}
        apart = {c: f"{max(abs(a - b) for a, b in zip(first['xwin'], s, strict=True)):.0e}" for c, s in first.items()}
        runs = {c: [{k: v for k, v in r.items() if k != "scores"} for r in runs] for c, runs in found.items()}
        results.record("Scoring", f"{name}, {args.prompts} × {N}, float32", runs, apart=apart)
    print(results.draw("Scoring", HEAD, lines))


if __name__ == "__main__":
    main()
