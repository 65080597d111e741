"""What a graphics card must get right: every attention kernel beside the CPU's, and the training stages' first steps.

    python bench/gpu_check.py                                          a model of Qwen2-0.5B's shape, random weights
    python bench/gpu_check.py --device cpu --layers 2 --hidden 64      the same on the CPU, in seconds

Prints one table and exits 1 where a number is wrong, 0 where all is well or there is no CUDA device. No network:
model, tokenizer and data are made on the spot. Takes a few minutes on one card.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import world

from xwincli import attention, models, settings
from xwincli.errors import XwinError
from xwincli.rows import Branch, Row, lay
from xwincli.states import hidden, prepare

LIMIT = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # relative distance of whole tensors

ROW = 8192  # tokens a row


@dataclass
class Finding:
    """A line of the table."""

    check: str
    setting: str
    good: bool
    found: str
    rate: float = 0.0  # tokens per second
    peak: float = 0.0  # GiB


@dataclass
class Meter:
    """Seconds and peak memory of what runs between two readings."""

    device: torch.device

    def start(self) -> None:
        """Forget the past."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        self.begun = time.perf_counter()

    def read(self) -> tuple[float, float]:
        """(seconds, GiB) since ``start``; no memory is counted on the CPU."""
        if self.device.type != "cuda":
            return time.perf_counter() - self.begun, 0.0
        torch.cuda.synchronize(self.device)
        return time.perf_counter() - self.begun, torch.cuda.max_memory_allocated(self.device) / 2**30


# -- attention


def row_layout(prompt: int, responses: int, length: int) -> Row:
    """A row of two branches: one with many responses, one with two."""
    return lay([Branch([0] * prompt, [[0] * length] * responses), Branch([0] * (length + 1), [[0] * length] * 2)])


def gradients(
    backend: str, inputs: Sequence[torch.Tensor], plan: attention.Plan, window: int, softcap: float
) -> list[torch.Tensor]:
    """Output and gradients to q, k and v of a fixed upstream gradient."""
    q, k, v, g = inputs
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = attention.compute(backend, *leaves, plan, q.shape[-1] ** -0.5, window, softcap)
    return [out.detach(), *torch.autograd.grad(out, leaves, g)]


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative distance of two tensors."""
    a, b = a.double().cpu(), b.double().cpu()
    return ((a - b).norm() / b.norm()).item()


def kernels(device: torch.device, heads: int, kv: int, size: int, prompt: int, responses: int) -> list[Finding]:
    """Every kernel of this device in both precisions, plain, with a window, with capped scores; beside the CPU."""
    row = row_layout(prompt, responses, max(prompt // 4, 2))
    draw = torch.Generator().manual_seed(0)
    whole = [torch.randn(len(row.ids), h, size, generator=draw) for h in (heads, kv, kv, heads)]
    findings, meter = [], Meter(device)
    for dtype in LIMIT:
        rounded = [x.to(dtype).float() for x in whole]  # what either side is given, so that only the work differs
        inputs = [x.to(device, dtype) for x in rounded]
        for window, softcap in ((0, 0.0), (max(prompt // 3, 2), 0.0), (0, 2.0)):
            here = attention.Plan(row.layout, torch.device("cpu"))
            expected = gradients("segments", rounded, here, window, softcap)
            for backend in attention.backends(inputs[0], inputs[2], window, softcap):
                plan = attention.Plan(row.layout, device)
                gradients(backend, inputs, plan, window, softcap)  # the first call loads the kernel
                meter.start()
                found = gradients(backend, inputs, plan, window, softcap)
                seconds, peak = meter.read()
                worst = max(apart(a, b) for a, b in zip(found, expected, strict=True))
                bounds = f"window {window}" if window else f"softcap {softcap:g}" if softcap else "all seen"
                setting = f"{str(dtype)[6:]}, {bounds}, {heads}/{kv} heads"
                good = worst <= LIMIT[dtype]
                text = f"off by {worst:.1e}"
                findings.append(Finding(f"attention: {backend}", setting, good, text, len(row.ids) / seconds, peak))
    return findings


def long_prompt(device: torch.device, heads: int, kv: int, size: int, prompt: int) -> list[Finding]:
    """64 responses to one long prompt: what stays in memory between forward and backward holds its keys once."""
    row = lay([Branch([0] * prompt, [[0] * 8] * 64)])
    dtype = torch.bfloat16
    q, k, v = (
        torch.randn(len(row.ids), h, size, device=device, dtype=dtype, requires_grad=True) for h in (heads, kv, kv)
    )
    backend = attention.backends(q, v, 0, 0.0)[0]
    kept: dict[int, int] = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    meter = Meter(device)
    meter.start()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = attention.compute(backend, q, k, v, attention.Plan(row.layout, device), size**-0.5)
    out.backward(torch.ones_like(out))
    seconds, peak = meter.read()
    once = sum(t.nbytes for t in (q, k, v)) + out.nbytes + 4 * len(row.ids) * heads
    total = sum(kept.values())
    text = f"keeps {total / 2**20:.1f} MiB, once each is {once / 2**20:.1f}"
    setting = f"64 responses, {prompt}-token prompt"
    return [Finding(f"memory: {backend}", setting, total <= once, text, len(row.ids) / seconds, peak)]


# -- a model and its data


def shape(layers: int, hidden: int, vocab: int) -> world.Shape:
    """Qwen2's proportions, with heads of 64 (fewer where ``hidden`` is small) and an embedding of ``vocab`` rows."""
    heads, kv = head_counts(hidden)
    inner = hidden * 38 // 7
    return world.Shape(
        family="qwen2", hidden=hidden, inner=inner, layers=layers, heads=heads, kv=kv, vocab=1024, rows=vocab
    )


def head_counts(hidden: int) -> tuple[int, int]:
    """Heads and key-value heads of a width: 14 and 2 for 896, as Qwen2-0.5B has; 4 and 2 below 256."""
    heads = hidden // 64 if hidden >= 256 else 4
    return heads, 2 if heads % 2 == 0 else 1


def make_data(folder: Path, rows: int, length: int) -> None:
    """Write prompts, conversations and pairs of random words."""
    draw, lexicon = random.Random(1), world.words(200, 0)

    def say(role: str) -> list[dict[str, str]]:
        return [{"role": role, "content": " ".join(draw.choices(lexicon, k=length))}]

    made = [(say("user"), say("assistant"), say("assistant")) for _ in range(rows)]
    files = {
        "prompts": [{"prompt": p} for p, _, _ in made],
        "chats": [{"messages": p + a} for p, a, _ in made],
        "pairs": [{"prompt": p, "chosen": a, "rejected": b} for p, a, b in made],
    }
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


# -- the model and the stages


def whole_model(folder: str, device: torch.device) -> list[Finding]:
    """Hidden states of a grouped row on this device, in both precisions, beside plain transformers on the CPU."""
    draw = random.Random(2)
    some = [draw.choices(range(4, 200), k=n) for n in (40, 9, 21, 15)]
    row = lay([Branch(some[0], some[1:])])
    plain = models.load_policy(folder, models.place(settings.Device(device="cpu", dtype="float32")))
    plain.model.xwin_branches = False
    with torch.no_grad():
        expected = hidden(plain, row)
    findings = []
    for dtype, limit in {torch.float32: 1e-4, torch.bfloat16: 5e-2}.items():
        name = str(dtype)[6:]
        loaded = models.load_policy(folder, models.place(settings.Device(device=str(device), dtype=name)))
        prepare(loaded)
        with torch.inference_mode(), loaded.place.autocast():
            worst = apart(hidden(loaded, row.to(device)), expected)
        good = worst <= limit and loaded.model.xwin_branches
        findings.append(Finding("hidden states", f"{name}, grouped", good, f"off by {worst:.1e}"))
    return findings


def sft(work: Path, model: str, device: settings.Device, rows: int) -> tuple[bool, str, int]:
    """Finetune; the loss must fall."""
    from xwincli.stages import sft as stage

    optim = settings.Optim(
        lr=2e-4, warmup=0.0, schedule="constant", batch=max(rows // 4, 2), epochs=2, max_tokens_per_row=ROW
    )
    stage.run(stage.Config(data=[f"{work}/chats.jsonl"], model=model, out=f"{work}/sft", optim=optim, device=device))
    losses, tokens = curve(work / "sft")
    return losses[-1] < losses[0], f"loss {losses[0]:.3f} -> {losses[-1]:.3f}", tokens


def train_rm(work: Path, model: str, device: settings.Device, rows: int) -> tuple[bool, str, int]:
    """Train a reward model; it starts near log 2 and stays finite."""
    from xwincli.stages import train_rm as stage

    optim = stage.Optim(batch=max(rows // 4, 2), max_tokens_per_row=ROW)
    config = stage.Config(
        data=[f"{work}/pairs.jsonl"], model=model, out=f"{work}/rm", optim=optim, device=device, centring=0.0
    )
    stage.run(config)
    losses, tokens = curve(work / "rm")
    return abs(losses[0] - math.log(2)) < 1 and math.isfinite(losses[-1]), f"first loss {losses[0]:.3f}", tokens


def dpo(work: Path, model: str, device: settings.Device, rows: int) -> tuple[bool, str, int]:
    """Prefer; before the first update policy and reference are one, so the first loss is log 2."""
    from xwincli.stages import dpo as stage

    optim = stage.Optim(batch=max(rows // 4, 2), max_tokens_per_row=ROW)
    config = stage.Config(data=[f"{work}/pairs.jsonl"], model=model, out=f"{work}/dpo", optim=optim, device=device)
    stage.run(config)
    losses, tokens = curve(work / "dpo")
    return abs(losses[0] - math.log(2)) < 0.05, f"first loss {losses[0]:.4f}, log 2 is {math.log(2):.4f}", tokens


def sample(work: Path, model: str, device: settings.Device, rows: int) -> tuple[bool, str, int]:
    """Draw four responses a prompt."""
    from xwincli.stages import sample as stage

    sampling = settings.Sampling(n=4, max_tokens=min(8 * rows, 256))
    config = stage.Config(
        data=[f"{work}/prompts.jsonl"], model=model, out=f"{work}/groups.jsonl", sampling=sampling, device=device
    )
    stage.run(config)
    groups = [json.loads(line) for line in (work / "groups.jsonl").read_text().splitlines()]
    counts = [r["tokens"] for g in groups for r in g["responses"]]
    return len(groups) == rows and len(counts) == 4 * rows, f"{len(counts)} responses", sum(counts)


def curve(folder: Path) -> tuple[list[float], int]:
    """Losses step by step, and tokens trained on in all."""
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [s["loss"] for s in steps], sum(s["tokens"] for s in steps)


def stages(work: Path, model: str, device: torch.device, dtype: str, rows: int) -> list[Finding]:
    """Each stage for a few steps; its rate counts all of it, loading and saving included."""
    findings, meter = [], Meter(device)
    for stage in (sft, train_rm, dpo, sample):
        name = stage.__name__.replace("_", "-")
        meter.start()
        try:
            good, text, tokens = stage(work, model, settings.Device(device=str(device), dtype=dtype), rows)
        except (XwinError, RuntimeError, ValueError, TypeError) as e:
            findings.append(Finding(f"xwin {name}", dtype, False, f"{type(e).__name__}: {e}"[:200]))
            continue
        seconds, peak = meter.read()
        findings.append(Finding(f"xwin {name}", dtype, good, text, tokens / seconds, peak))
    return findings


def table(findings: list[Finding], title: str) -> None:
    """Print what was found."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title)
    for head in ("check", "setting", "", "found", "tokens/s", "peak GiB"):
        shown.add_column(head, justify="right" if "/" in head or "GiB" in head else "left", overflow="fold")
    for f in findings:
        rate, peak = f"{f.rate:,.0f}" if f.rate else "", f"{f.peak:.2f}" if f.peak else ""
        shown.add_row(f.check, f.setting, "ok" if f.good else "WRONG", f.found, rate, peak)
    Console(width=None if sys.stdout.isatty() else 140).print(shown)


def main(argv: list[str] | None = None) -> int:
    """Run all checks; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=896, help="width; below 256 everything else is small too")
    args = parser.parse_args(argv)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no CUDA device here: nothing was checked")
        return 0
    device, small = torch.device(args.device), args.hidden < 256
    heads, kv = head_counts(args.hidden)
    size = args.hidden // heads
    prompt, responses, rows, length, vocab = (12, 3, 8, 6, 0) if small else (512, 16, 64, 150, 151_936)
    dtype = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_data(work, rows, length)
        checks: list[Callable[[], list[Finding]]] = [
            partial(kernels, device, heads, kv, size, prompt, responses),
            partial(long_prompt, device, heads, kv, size, 256 if small else 4096),
        ]
        for check in checks:
            findings += check()
        shallow = world.policy(shape(2, args.hidden, vocab), work / "shallow")
        findings += whole_model(str(shallow), device)
        model = world.policy(shape(args.layers, args.hidden, vocab), work / "model")
        findings += stages(work, str(model), device, dtype, rows)
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    table(findings, f"torch {torch.__version__} on {named}")
    return 0 if all(f.good for f in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
