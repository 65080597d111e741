"""Sampling beside transformers: same model, prompts, lengths, threads and temperature; separate processes by turns.

    python bench/sample.py [--models S M] [--prompts 2] [--n 64] [--repeats 3]
    python bench/sample.py --policy runs/demo/smollm2 [--prompts 16] [--n 64] [--max-tokens 128] [--dtype bfloat16]
        [--contenders xwin batching 'generate 64' 'generate 256' 'llama 32' --gguf FILE]

Made models know no end, so every response has a length drawn beforehand (log-normal, mean 200, at most 512), the same
for every contender; a real model ends as it does. A token counts until its response ends. transformers stands there
with ``generate`` (``num_return_sequences`` at a time, ``--few`` prompts of the made ones, since it takes long; of a
real model the best of several batch sizes), on our allocator settings and as it comes (``generate-default``), and with
its continuous batching in the best setting that was found.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

import results
import world

HERE = Path(__file__).parent
DEMO = HERE.parent / "examples" / "demo" / "eval.jsonl"
MEAN, SIGMA, LONGEST = 200, 0.6, 512
BATCHING = {"page": 32, "batch": 512, "live": 32}  # the fastest of several found on two cores


def lengths(prompts: int, n: int) -> list[list[int]]:
    """Tokens of every response."""
    draw = random.Random(3)
    one = lambda: int(min(draw.lognormvariate(math.log(MEAN) - SIGMA**2 / 2, SIGMA), LONGEST)) + 1
    return [[one() for _ in range(n)] for _ in range(prompts)]


def made(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """A made model in ``folder`` and the work on it."""
    from transformers import AutoTokenizer

    world.policy(world.MODELS[name], folder)
    rows = world.pairs(world.MODELS[name].vocab, options.prompts, folder / "pairs.jsonl").read_text().splitlines()
    tok = AutoTokenizer.from_pretrained(folder)
    prompts = [tok.apply_chat_template(json.loads(r)["prompt"], add_generation_prompt=True)["input_ids"] for r in rows]
    return {"prompts": prompts, "lengths": lengths(len(prompts), options.n), "most": LONGEST + 1, "few": options.few}


def real(options: argparse.Namespace) -> dict[str, Any]:
    """The demo's prompts for a real model."""
    from xwincli import formats, models
    from xwincli.records import Prompt

    template = models.load_policy(options.policy, models.CPU).template
    prompts = formats.read([str(DEMO)], Prompt, limit=options.prompts)
    return {"prompts": [template.prompt_ids(p.prompt) for p in prompts], "lengths": [], "most": options.max_tokens}


def lines(row: dict[str, Any]) -> list[str]:
    """The lines of one record on the page, one a contender."""
    speed = {c: [r["tokens"] / r["seconds"] for r in runs] for c, runs in row["runs"].items()}
    found = []
    for c, runs in row["runs"].items():
        cells = [row["case"] if c == "xwin" else "", c, str(len(runs)), f"{runs[0]['responses']}"]
        cells += [results.spread(speed[c]), "" if c == "xwin" else results.spread(row["ratios"][c], 2)]
        cells += [f"{statistics.median(r['peak'] for r in runs):,.0f}"]
        found.append(f"| {' | '.join(cells)} |")
    return found


HEAD = "| | | runs | responses | tokens/s | xwin is so many times as fast | peak MB |"


def measure(case: str, folder: str, job: dict[str, Any], options: argparse.Namespace, scratch: Path) -> None:
    """All contenders on one case, kept and drawn."""
    job |= {"n": options.n, "dtype": options.dtype, "rows": options.rows, "batch": options.n}
    commands = {}
    for name in options.contenders:
        who, _, batch = name.partition(" ")
        own = job | (BATCHING if who == "batching" else {})
        own |= {"live" if who == "batching" else "batch": int(batch)} if batch else {}
        file = scratch / f"{name}.json"
        file.write_text(json.dumps(own))
        commands[name] = [str(HERE / "sampler.py"), who, folder, str(file)]
        if who == "llama":
            commands[name] = [str(HERE / "llama.py"), options.gguf, str(file)]
    found = results.turns(commands, options.repeats, [c for c in commands if "generate" in c and job["lengths"]])
    results.record("Sampling", case, found, dtype=options.dtype)
    results.draw("Sampling", HEAD, lines)


def main() -> None:
    """Run every contender ``--repeats`` times in turn and draw the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["S", "M"])
    parser.add_argument("--contenders", nargs="*", default=["xwin", "batching", "generate", "generate-default"])
    parser.add_argument("--policy", default="", help="a model folder instead of the made ones")
    parser.add_argument("--gguf", default="", help="the same model's file for the contenders 'llama SLOTS'")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--few", type=int, default=1, help="prompts of a made model for generate")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--rows", type=int, default=256, help="responses we decode together (--rows of xwin sample)")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if args.policy:
            case = f"{Path(args.policy).name}, {args.prompts} × {args.n}, at most {args.max_tokens}, {args.dtype}"
            measure(case, args.policy, real(args), args, Path(scratch))
        for name in [] if args.policy else args.models:
            folder = Path(scratch) / name
            job = made(name, folder, args)
            measure(f"{name}, {args.prompts} × {args.n}, {args.dtype}", str(folder), job, args, Path(scratch))
    print(results.draw("Sampling", HEAD, lines))


if __name__ == "__main__":
    main()
