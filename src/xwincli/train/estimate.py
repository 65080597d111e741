"""What a training run will need, told before any weight is loaded: steps, memory, time, and which cards it fits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from xwincli import settings, weights
from xwincli.console import clock, say, table
from xwincli.errors import XwinError
from xwincli.models import Loaded
from xwincli.rows import Branch, lay, pack
from xwincli.train import parallel
from xwincli.train.plan import Steps, plan
from xwincli.train.rehearsal import Need, rehearse

GB = 1 << 30
# cards by memory (GiB) with the speed of their dense bfloat16 matrix products (FLOP/s, NVIDIA's data sheets)
CARDS = [(24, "RTX 4090", 165e12), (48, "L40S", 362e12), (80, "A100", 312e12)]
SPARE = 1.5  # GiB of a card that CUDA's context and gaps between allocations take
REACHED = 0.4  # share of a card's speed that training of this kind reaches (PaLM, arXiv 2204.02311, saw 46 %)


@dataclass(frozen=True)
class Memory:
    """Bytes of one process, by what they are for."""

    weights: float
    gradients: float
    optimizer: float
    row: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.row


def memory(need: Need, optimizer: str, *, cuda: bool, zero: int = 0, world: int = 1, half: bool = False) -> Memory:
    """A process's memory at its fullest moment.

    Gradients are float32. AdamW keeps two float32 numbers for each that learns; ``adamw8bit`` two bytes and two
    float32 scales a block of 256, except for small tensors. While it steps it holds another copy of all gradients
    on CUDA, where it goes over all tensors at once, and of one tensor elsewhere; the row is gone by then, so the
    larger of the two counts. ZeRO stage 1 shares optimizer state out, 2 gradients too, 3 weights too; in bfloat16 it
    holds weights and gradients in two bytes and float32 weights beside the optimizer's state (Rajbhandari et al.
    2020, arXiv 1910.02054, section 3.1).

    Args:
        need: from ``rehearse``.
        optimizer: ``adamw`` or ``adamw8bit``.
        cuda: computed on a graphics card.
        zero: ZeRO's stage, 0 without.
        world: processes.
        half: computed in bfloat16.
    """
    shared = [world if zero >= level else 1 for level in (3, 2, 1)]
    short = 0.5 if zero and half else 1.0
    state = 8.0 * need.trained
    if optimizer == "adamw8bit":
        state = 8.0 * need.small + (2 + 8 / 256) * (need.trained - need.small)
    if short < 1:
        state += 4.0 * need.trained
    step = 4.0 * (need.trained if cuda and optimizer == "adamw" else 2 * need.largest)
    return Memory(
        weights=short * need.weights / shared[0],
        gradients=short * 4.0 * need.trained / shared[1],
        optimizer=state / shared[2],
        row=max(float(need.row), step / shared[2]),
    )


@dataclass(frozen=True)
class Before:
    """What happens before the first step: operations, and bytes of another model and of its fullest row."""

    flops: float = 0.0
    weights: float = 0.0
    row: float = 0.0


# -- the run that was asked for


def report(
    loaded: Loaded,
    branches: Sequence[Branch],
    config: settings.Run,
    optim: settings.Optim,
    what: str,
    before: Before = Before(),
) -> None:
    """Print the plan of a run.

    Args:
        loaded: from ``rehearsal.sketch``.
        branches: the rows to learn from.
        config: which weights learn, on how many processes.
        optim: batch, epochs, row length, optimizer.
        what: what the rows teach, in words.
        before: from ``reading``.
    """
    if not branches:
        raise XwinError("there is no row to plan for", "see --max-length")
    lengths = [len(b) for b in branches]
    world = max(config.cluster.gpus, parallel.world())
    capacity = optim.max_tokens_per_row
    steps = plan(lengths, batch=optim.batch, capacity=capacity, world=world, epochs=optim.epochs, seed=config.seed)
    rows = [row for step in steps for rank in step for row in rank if row]
    fullest = max(rows, key=lambda row: sum(lengths[i] for i in row))
    row = alike([branches[i] for i in fullest])
    say(_about(loaded, lengths, steps, rows, what, config, optim))
    say("")
    asked = rehearse(loaded, config.adapt, row, loaded.place.dtype)
    other = rehearse(
        loaded, replace(config.adapt, checkpointing=not config.adapt.checkpointing), row, loaded.place.dtype
    )
    say(_memory_table(loaded, asked, other, config, optim, world))
    if before.weights:
        together = gb(asked.weights + before.weights + before.row)
        say(f"before step one, while the reference model is read beside the policy: {together} GiB")
    say("")
    tokens = sum(lengths) * optim.epochs
    say(_time_here(loaded, asked.flops / asked.tokens * tokens, before.flops, world))
    say("")
    say(fit_table(loaded, row, optim, tokens, before.flops))


def reading(
    loaded: Loaded, adapt: settings.Adapt, branches: Sequence[Branch], capacity: int, *, another: bool = False
) -> Before:
    """A forward over all rows, as for the reference: operations of one row counted, of the others by tokens.

    Args:
        loaded: from ``rehearsal.sketch``.
        adapt: of it only ``quantize`` counts.
        branches: what is read.
        capacity: tokens of a packed row.
        another: ``loaded`` is not the model that learns, which waits in memory meanwhile.
    """
    lengths = [len(b) for b in branches]
    fullest = max(pack(lengths, capacity), key=lambda row: sum(lengths[i] for i in row))
    row = alike([branches[i] for i in fullest])
    need = rehearse(loaded, replace(adapt, checkpointing=False), row, loaded.place.dtype, learn=False)
    flops = need.flops / need.tokens * sum(lengths)
    return Before(flops, need.weights if another else 0.0, need.row)


def alike(row: Sequence[Branch]) -> list[Branch]:
    """A row of as many tokens and targets in two branches at most, which is quicker to rehearse."""
    tokens, targets = sum(map(len, row)), len(lay(row).predict)
    parts = min(2, len(row), targets) or 1
    found = []
    for k in range(parts):
        size, learned = ((k + 1) * n // parts - k * n // parts for n in (tokens, targets))
        first = max(size - learned, 1)
        found.append(Branch([0] * first, [[0] * (size - first)]))
    return found


def _about(
    loaded: Loaded,
    lengths: list[int],
    steps: Steps,
    rows: list[list[int]],
    what: str,
    config: settings.Run,
    optim: settings.Optim,
) -> str:
    tokens = sum(lengths)
    per = len(rows) / len(steps)
    packed = tokens * optim.epochs
    return "\n".join(
        [
            f"model: {shape(loaded)}",
            f"data: {len(lengths)} rows of {tokens} tokens, {what}; the longest has {max(lengths)} tokens",
            f"steps: {len(steps)} of {min(optim.batch, len(lengths))} rows, {packed / len(steps):.0f} tokens each; "
            f"{per:.1f} packed rows a step, the fullest of {max(sum(lengths[i] for i in r) for r in rows)} tokens",
        ]
    )


def shape(loaded: Loaded) -> str:
    """A model in a few words."""
    model, text = loaded.model, loaded.model.config.get_text_config()
    count = sum(p.numel() for p in model.parameters())
    sizes = f"{len(weights.layers(model))} layers, hidden {text.hidden_size}, vocabulary {text.vocab_size}"
    return f"{loaded.name}, {type(model).__name__}, {count / 1e6:.1f}M parameters, {sizes}"


def _memory_table(
    loaded: Loaded, asked: Need, other: Need, config: settings.Run, optim: settings.Optim, world: int
) -> str:
    cuda, zero = loaded.place.device.type == "cuda", config.cluster.zero
    half = loaded.place.dtype == torch.bfloat16
    pair = [memory(n, optim.optimizer, cuda=cuda, zero=zero, world=world, half=half) for n in (asked, other)]
    dtype = str(loaded.place.dtype).removeprefix("torch.")
    held = "bfloat16" if zero and half else "float32"
    names = {
        "weights": f"weights (nf4 and {held})" if config.adapt.quantize == "nf4" else f"weights ({held})",
        "gradients": f"gradients of {asked.trained / 1e6:.1f}M that learn",
        "optimizer": f"{optim.optimizer}'s state",
        "row": f"a row of {asked.tokens} tokens, in {dtype}",
        "total": "together",
    }
    lines = [[text, *(gb(getattr(m, key)) for m in pair)] for key, text in names.items()]
    change = "without" if config.adapt.checkpointing else "with"
    return table(["GiB a process", "as asked", f"{change} --checkpointing"], lines)


def gb(size: float) -> str:
    """Bytes in GiB, as the tables show them."""
    return f"{size / GB:.2f}" if size < 10 * GB else f"{size / GB:.0f}"


def _time_here(loaded: Loaded, steps: float, before: float, world: int) -> str:
    speed = probe(loaded)
    work = steps + before
    seconds = work / speed / world
    share = f", {before / work:.0%} of them for the reference" if before else ""
    return (
        f"time: {work:.2g} operations in matrix products{share}; this machine does {speed / 1e9:.0f} G a second, "
        f"so at least {clock(seconds)}, and with all the rest rather {clock(2 * seconds)}"
    )


def probe(loaded: Loaded, seconds: float = 0.2, tokens: int = 512) -> float:
    """Operations a second of this machine's matrix products at the model's width, measured in a moment."""
    width, place = loaded.model.config.get_text_config().hidden_size, loaded.place
    a = torch.randn(tokens, width, dtype=place.dtype, device=place.device)
    b = torch.randn(width, 2 * width, dtype=place.dtype, device=place.device)
    best, start = 0.0, time.monotonic()
    while not best or time.monotonic() - start < seconds:
        begun = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for the device
        best = max(best, 2.0 * tokens * width * 2 * width / (time.perf_counter() - begun))
    return best


# -- what would fit


def fit_table(loaded: Loaded, row: Sequence[Branch], optim: settings.Optim, tokens: int, before: float = 0.0) -> str:
    """Which way of training fits cards of 24, 48 and 80 GB, in bfloat16, and how long it would take."""
    lines = []
    for name, adapt in ways(len(weights.layers(loaded.model))).items():
        plain, twice = (rehearse(loaded, replace(adapt, checkpointing=on), row, torch.bfloat16) for on in (False, True))
        needs = [memory(n, optim.optimizer, cuda=True).total / GB for n in (plain, twice)]
        lines.append(
            [
                name,
                f"{needs[0]:.1f}",
                f"{needs[1]:.1f}",
                *(_fits(size, plain, twice, needs, tokens, speed, before) for size, _, speed in CARDS),
            ]
        )
    return cards(lines)


def ways(depth: int) -> dict[str, settings.Adapt]:
    """Ways of training a model of ``depth`` layers, by name."""
    return {
        "all weights": settings.Adapt(),
        "top half": settings.Adapt(train_top=max(depth // 2, 1)),
        "LoRA r16": settings.Adapt(lora_r=16),
        "QLoRA r16": settings.Adapt(lora_r=16, quantize="nf4"),
    }


def cards(lines: list[list[str]]) -> str:
    """The table of what fits: a way, what it needs without and with checkpointing, and a cell for each card."""
    header = ["GiB, bfloat16", "needs", "with --checkpointing", *(f"{size} GB ({name})" for size, name, _ in CARDS)]
    foot = f"times at {REACHED:.0%} of a card's speed; * only with --checkpointing; {SPARE} GiB of a card are left free"
    return f"{table(header, lines)}\n{foot}"


def _fits(
    size: int, plain: Need, twice: Need, needs: list[float], tokens: int, speed: float, before: float = 0.0
) -> str:
    """A cell: the time it takes if it fits, marked where it does only with checkpointing."""
    for need, used, mark in ((plain, needs[0], ""), (twice, needs[1], "*")):
        if used + SPARE <= size:
            return f"fits, {clock((need.flops / need.tokens * tokens + before) / speed / REACHED)}{mark}"
    return "no"
