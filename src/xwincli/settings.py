"""How a stage declares its options: one dataclass that is API, flags and saved manifest at once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from xwincli.errors import USAGE, XwinError


def flag(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    execution: bool = False,
    choices: tuple[str, ...] = (),
    positional: bool = False,
    low: float | None = None,
    high: float | None = None,
    name: str = "",
) -> Any:
    """Declare one option of a config dataclass.

    Args:
        default: its value when neither flag nor ``--config`` gives one; left out, the option is required.
        help: one line for ``--help``.
        execution: True if it cannot change the result (device, batch size): journals, manifests and
            comparisons of runs look only at the others.
        choices: the permitted values, if there is a closed list.
        positional: an argument instead of an ``--option``.
        low, high: inclusive bounds of a number.
        name: the flag's name where it differs from the field's.
    """
    metadata = {
        "help": help,
        "execution": execution,
        "choices": choices,
        "positional": positional,
        "low": low,
        "high": high,
        "name": name,
    }
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def group(kind: type) -> Any:
    """Declare a shared group of options (``Device``, ``Optim``, …) as one field of a config."""
    return field(default_factory=kind, metadata={"group": True})


@dataclass(kw_only=True)
class Device:
    """Where and in which precision to compute."""

    device: str = flag("auto", "cuda, mps, cpu, or auto: the best there is", execution=True)
    dtype: str = flag(
        "auto", "auto: bfloat16 where it is faster, else float32", choices=("auto", "float32", "bfloat16")
    )


@dataclass(kw_only=True)
class Sampling:
    """How responses are drawn."""

    n: int = flag(1, "responses per prompt", low=1)
    temperature: float = flag(1.0, "0 is greedy", low=0.0)
    top_p: float = flag(1.0, "nucleus: the smallest set of tokens holding this probability", low=0.0, high=1.0)
    top_k: int = flag(0, "only the so many likeliest tokens; 0 is all", low=0)
    min_p: float = flag(0.0, "only tokens at least this share as likely as the likeliest", low=0.0, high=1.0)
    repetition_penalty: float = flag(1.0, "tokens seen before, prompt included, are so much less likely", low=0.01)
    max_tokens: int = flag(512, "new tokens per response at most", low=1)
    stop: list[str] = flag([], "end a response before this text; repeatable")


@dataclass(kw_only=True)
class Server:
    """A server that speaks OpenAI's protocol (its key is OPENAI_API_KEY, never an option), and how fast to ask it."""

    base_url: str = flag("", "with --engine openai: the server, as http://127.0.0.1:8000/v1; key: OPENAI_API_KEY")
    concurrency: int = flag(
        64, "requests at once at most: begins with few, follows what the server bears", execution=True, low=1, high=1000
    )
    rpm: int = flag(0, "requests a minute at most; 0 is no limit", execution=True, low=0)
    tpm: int = flag(0, "tokens a minute at most, prompts included; 0 is no limit", execution=True, low=0)
    timeout: float = flag(600.0, "seconds a request may take", execution=True, low=0.01)
    retries: int = flag(8, "how often a failed request is tried again", execution=True, low=0)

    def __post_init__(self) -> None:
        self.base_url = self.base_url.rstrip("/")
        if self.base_url and not self.base_url.startswith(("http://", "https://")):
            raise XwinError(f"--base-url is {self.base_url!r}", "it begins with http:// or https://", USAGE)
        if "@" in self.base_url.partition("//")[2].partition("/")[0]:
            raise XwinError("--base-url holds a password", "the key goes in OPENAI_API_KEY alone", USAGE)


@dataclass(kw_only=True)
class Chat:
    """What the chat template is told."""

    template_arg: list[str] = flag([], "KEY=VALUE the chat template reads, as enable_thinking=false; repeatable")


@dataclass(kw_only=True)
class Thinking:
    """What becomes of what a response thinks before its answer."""

    split_thinking: bool = flag(False, "set what stands before </think> aside: the answer alone is judged, scored")


@dataclass(kw_only=True)
class Optim:
    """How weights are updated (AdamW)."""

    lr: float = flag(2e-5, "peak learning rate", low=0.0)
    schedule: str = flag("cosine", "after warm-up", choices=("cosine", "linear", "constant"))
    warmup: float = flag(0.03, "share of the steps to warm up over", low=0.0, high=1.0)
    weight_decay: float = flag(0.0, "decoupled weight decay", low=0.0)
    clip: float = flag(1.0, "largest gradient norm; 0 turns clipping off", low=0.0)
    optimizer: str = flag("adamw", "adamw8bit: its state in a quarter of the memory", choices=("adamw", "adamw8bit"))
    epochs: int = flag(1, "passes over the data", low=1)
    batch: int = flag(128, "sequences (or pairs, or prompts) per update, exactly", low=1)
    max_tokens_per_row: int = flag(
        1024, "tokens per packed row: bounds memory, never the result; a GPU wants 8192", execution=True, low=8
    )


@dataclass(kw_only=True)
class Adapt:
    """Which weights are trained."""

    lora_r: int = flag(0, "rank of LoRA adapters on every linear layer; 0 trains the weights themselves", low=0)
    lora_alpha: float = flag(0.0, "LoRA's alpha; 0 means twice the rank", low=0.0)
    keep_adapter: bool = flag(False, "save the adapter instead of merging it into the weights")
    train_top: int = flag(0, "train only the top K layers (and the head); 0 trains all", low=0)
    quantize: str = flag("none", "with --lora-r: hold the other weights in four bits", choices=("none", "nf4"))
    checkpointing: bool = flag(False, "compute each layer twice and keep less for backward", execution=True)

    def __post_init__(self) -> None:
        if self.quantize != "none" and not self.lora_r:
            raise XwinError(f"--quantize {self.quantize} needs --lora-r", "weights of four bits cannot learn", USAGE)


@dataclass(kw_only=True)
class Cluster:
    """How many processes learn together, and who holds the weights."""

    gpus: int = flag(1, "processes, one a GPU; with --device cpu they share the CPU", execution=True, low=1)
    zero: int = flag(
        0, "DeepSpeed ZeRO stage: 1 shares optimizer state out, 2 gradients, 3 weights", execution=True, low=0, high=3
    )
    offload: str = flag(
        "none", "with --zero: what waits in CPU memory", execution=True, choices=("none", "optimizer", "all")
    )


@dataclass(kw_only=True)
class Scale:
    """How rows are shared out among processes that know nothing of each other."""

    shard: str = flag(
        "", "I/N: work on the I-th of N shares of the rows; the last to finish joins them", execution=True
    )
    gpus: int = flag(
        1, "processes, one a GPU, each a shard; with --device cpu they share the CPU", execution=True, low=1
    )


TRACKERS = ("none", "tensorboard", "wandb")


@dataclass(kw_only=True)
class Saving:
    """Checkpoints of a run in progress."""

    save_every: float = flag(
        120.0, "seconds between checkpoints, or ten times what one takes; 0: every step", execution=True, low=0.0
    )
    keep_last: int = flag(2, "checkpoints held while training; a damaged one is passed over", execution=True, low=1)


@dataclass(kw_only=True)
class Run:
    """What every training stage takes besides its own."""

    out: str = flag(help="folder to make")
    seed: int = flag(0, "of shuffles and new weights")
    limit: int = flag(0, "use only the first rows; 0 uses all", low=0)
    track: str = flag(
        "none", "where metrics go too; wandb stays offline unless WANDB_MODE is set", execution=True, choices=TRACKERS
    )
    force: bool = flag(False, "start anew even if the result or a checkpoint is there", execution=True)
    plan: bool = flag(
        False, "print steps, memory, time and what fits 24, 48 and 80 GB, and stop: no weights loaded", execution=True
    )
    device: Device = group(Device)
    adapt: Adapt = group(Adapt)
    cluster: Cluster = group(Cluster)
    saving: Saving = group(Saving)


@dataclass(kw_only=True)
class RowsRun(Run):
    """What the stages that learn from given rows take besides."""

    valid: float = flag(0.0, "share of the prompts held out: their loss is measured, not learned", low=0.0, high=0.9)
    valid_every: int = flag(
        0, "steps between measurements of the held-out loss; 0: at the end, with --keep-best ten times a run", low=0
    )
    keep_best: bool = flag(False, "finish with the weights that had the lowest held-out loss, not with the last")

    max_drop: float = flag(
        1.0, "stop (exit 4) where a larger share of the rows is left out", execution=True, low=0.0, high=1.0
    )
    show: int = flag(
        0, "print this many rows, what is learned green or in [[ ]], and stop: nothing is made", execution=True, low=0
    )

    def __post_init__(self) -> None:
        if self.keep_best and not self.valid:
            raise XwinError("--keep-best needs --valid", "the share of the prompts to hold out, such as 0.1", USAGE)
        if self.keep_best and self.cluster.zero:
            raise XwinError("--keep-best does not go with --zero", "leave one of them out", USAGE)


@dataclass(kw_only=True)
class Probe:
    """A few fixed prompts that are answered before, during and after training."""

    probe: int = flag(0, "how many: watch length, stops, repetition and warn; 0 is off", execution=True, low=0)
    probe_every: int = flag(0, "steps between; 0: as often as takes about 5 % of the time", execution=True, low=0)
    probe_tokens: int = flag(64, "new tokens per answer at most", execution=True, low=1)


def values(config: Any, *, execution: bool | None = None) -> dict[str, Any]:
    """A config as one flat dict of its flags.

    Args:
        config: an instance of a config dataclass.
        execution: only execution-only options (True), only result-affecting ones (False), or all (None).
    """
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.metadata.get("group"):
            flat.update(values(value, execution=execution))
        elif execution is None or f.metadata.get("execution", False) == execution:
            flat[f.name] = value
    return flat
