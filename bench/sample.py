"""Sampling beside transformers' generate: same model, prompts, precision, threads and limits, taking turns.

    python bench/sample.py MODEL [--data FILE] [--n 8] [--max-tokens 48] [--repeats 3] [--dtype float32]

Both sides draw n responses to each of 16 prompts as one batch of 16 n rows: transformers' padded on the left,
ours prefilled once a prompt. A token counts until its response ends, the end included. Medians of the repeats.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from xwincli import console, formats, models, settings
from xwincli.engines import Ask
from xwincli.engines.native import Native
from xwincli.records import Prompt

DATA = Path(__file__).parents[1] / "examples" / "demo" / "eval.jsonl"
COUNT = 16


def by_transformers(loaded: models.Loaded, asks: list[Ask], sampling: settings.Sampling, seed: int) -> int:
    """One padded batch through ``generate``; returns the real tokens drawn."""
    tokenizer, stops = loaded.tokenizer, sorted(loaded.template.stop_ids)
    prompts = [ids for a in asks for ids in [loaded.template.prompt_ids(a.messages)] * sampling.n]
    longest = max(map(len, prompts))
    pad = tokenizer.pad_token_id or 0
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    torch.manual_seed(seed)
    with torch.inference_mode():
        out = loaded.model.generate(
            ids.to(loaded.place.device),
            attention_mask=mask.to(loaded.place.device),
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=0,
            max_new_tokens=sampling.max_tokens,
            eos_token_id=stops,
            pad_token_id=pad,
        )
    ends = torch.isin(out[:, longest:], torch.tensor(stops, device=out.device)).long()
    return int((ends.cumsum(1) - ends == 0).sum())


def by_xwin(engine: Native, asks: list[Ask], sampling: settings.Sampling, seed: int) -> int:
    """The same through the native engine."""
    answers = engine.draw(asks, sampling, seed)
    return sum(len(d.ids) for _, drawn in answers if isinstance(drawn, list) for d in drawn)


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", default=str(DATA), help="prompts; the first 16 are used")
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    sampling = settings.Sampling(
        n=args.n, temperature=args.temperature, top_p=args.top_p, max_tokens=args.max_tokens
    )
    prompts = list(formats.read([args.data], Prompt, limit=COUNT))
    asks = [Ask(p.id, p.prompt, args.n, p.id) for p in prompts]
    place = models.place(settings.Device(device=args.device, dtype=args.dtype))
    peer = models.load_policy(args.model, place)
    engine = Native(models.load_policy(args.model, place), rows=len(asks) * args.n)
    ways: dict[str, Any] = {
        "transformers generate": lambda seed: by_transformers(peer, asks, sampling, seed),
        "xwin native": lambda seed: by_xwin(engine, asks, sampling, seed),
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-1, args.repeats):  # the first, of few tokens, warms up
        for name, way in ways.items():
            sampling.max_tokens = args.max_tokens if turn >= 0 else 2
            start = time.perf_counter()
            tokens = way(turn)
            seconds = time.perf_counter() - start
            if turn >= 0:
                speeds[name].append(tokens / seconds)
                console.say(f"{name}: {tokens} tokens in {seconds:.1f} s")
    base = statistics.median(speeds["transformers generate"])
    rows = [
        (name, f"{statistics.median(v):.0f}", f"{min(v):.0f} – {max(v):.0f}", f"{statistics.median(v) / base:.2f}")
        for name, v in speeds.items()
    ]
    head = f"{len(asks) * args.n} rows, {args.max_tokens} new tokens, {args.dtype}, {torch.get_num_threads()} threads"
    print(f"{args.model}: {head}", file=sys.stdout)
    print(console.table(("", "tokens/s", "range", "ratio"), rows))


if __name__ == "__main__":
    main()
