"""Load and save policies and reward models from whatever people have: folder, hub name, adapter, GGUF."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from xwincli import memory, settings, weights
from xwincli.chat import Template
from xwincli.console import say, warn
from xwincli.errors import XwinError


@dataclass(frozen=True)
class Place:
    """Where to compute, and in which precision matrix products are done."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> torch.autocast:
        """Context in which linear layers run in ``dtype`` while weights, norms and losses stay float32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def facts(self) -> dict[str, str]:
        """For the manifest."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return {"device": name, "dtype": str(self.dtype).removeprefix("torch."), "torch": torch.__version__}


CPU = Place(torch.device("cpu"), torch.float32)


@dataclass
class Loaded:
    """A model with its tokenizer and template.

    ``adapter`` is peft's wrapper around ``model``, if any; ``row_limit`` how many tokens a row may have here, lowered
    where memory ran out.
    """

    model: Any
    tokenizer: Any
    template: Template
    place: Place
    name: str
    adapter: Any = None
    row_limit: int = sys.maxsize


def place(config: settings.Device) -> Place:
    """Choose device and precision, and say so in one line."""
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    elif device.partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise XwinError(f"--device is {device!r}", "use cuda, mps, cpu or auto")
    elif device.startswith("cuda") and not torch.cuda.is_available():
        raise XwinError(f"--device {device}: torch {torch.__version__} sees no CUDA device here")
    where = torch.device(device)
    if where.type == "cpu":
        memory.keep()
    name = config.dtype
    if name == "auto":
        name = "bfloat16" if _bfloat16_pays(where.type) else "float32"
    say(f"computing on {device} in {name}" + (" (chosen)" if "auto" in (config.device, config.dtype) else ""))
    return Place(where, getattr(torch, name))


@cache
def _bfloat16_pays(kind: str) -> bool:
    """CUDA: if the card has it. CPU: if a short probe finds its matrix products clearly faster."""
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if kind != "cpu" or os.environ.get("WORLD_SIZE", "1") != "1":  # processes might find differently
        return False
    seconds = {torch.float32: 0.0, torch.bfloat16: 0.0}
    for dtype in seconds:
        a, b = torch.randn(128, 768).to(dtype), torch.randn(768, 768).to(dtype)
        a[:8] @ b
        times: list[float] = []
        while len(times) < 5 and sum(times) < 0.05:  # where bf16 is emulated, one product takes that long
            start = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return seconds[torch.bfloat16] * 1.3 < seconds[torch.float32]


# -- loading


@contextmanager
def from_the_hub(name: str) -> Iterator[None]:
    """Turn what transformers says about a model that is not there into one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError) as e:
        text = " ".join(str(e).split())[:300]
        raise XwinError(
            f"{name}: cannot load the model: {text}",
            "give a Hugging Face folder, a hub name, an adapter folder or a .gguf",
        ) from e


def _quietly() -> None:
    """No progress bars and deprecation notes of the libraries on stderr: it is for our user."""
    import warnings

    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def locate(name: str) -> tuple[str, dict[str, str]]:
    """The arguments by which transformers finds ``name``."""
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise XwinError(f"{name}: no such file")
        return str(path.parent), {"gguf_file": path.name}
    if (path.exists() or name.startswith((".", "/"))) and not path.is_dir():
        raise XwinError(f"{name}: not a model folder")
    return name, {}


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model folder, hub name, adapter or GGUF file."""
    from transformers import AutoTokenizer

    _quietly()
    source, arguments = locate(name)
    with from_the_hub(name):
        return AutoTokenizer.from_pretrained(source, **arguments)


def load_policy(name: str, place: Place, *, train: bool = False, template: str = "", quantize: str = "none") -> Loaded:
    """Load a causal language model.

    Args:
        name: folder, hub name, adapter folder (merged on loading) or ``.gguf`` file.
        place: from ``place``. Weights are float32 for training, else of the place's dtype.
        train: load for training.
        template: chat template text that replaces the tokenizer's own.
        quantize: "nf4" holds the linear layers in four bits; only adapters can learn then.
    """
    from transformers import AutoModelForCausalLM

    _quietly()
    source, arguments = locate(name)
    dtype = torch.float32 if train else place.dtype
    with from_the_hub(name):
        if quantize == "nf4":
            model = _load_nf4(AutoModelForCausalLM, name, place, dtype)
        elif _is_adapter(name):
            from peft import AutoPeftModelForCausalLM

            model = AutoPeftModelForCausalLM.from_pretrained(source, dtype=dtype).merge_and_unload()
            model.requires_grad_(True)  # peft had frozen what is now an ordinary model
        else:
            model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **arguments)
    if arguments and quantize == "none":
        _forget_quantisation(model)
    tokenizer = load_tokenizer(name)
    if template:
        tokenizer.chat_template = template
    return assemble(model, tokenizer, place, name)


def _is_adapter(name: str) -> bool:
    return (Path(name) / "adapter_config.json").is_file()


def _load_nf4(kind: Any, name: str, place: Place, dtype: torch.dtype) -> Any:
    """A model in four bits; an adapter or a GGUF file is made an ordinary folder first, for a while."""
    arguments = weights.nf4(place, reward="SequenceClassification" in kind.__name__)
    with tempfile.TemporaryDirectory(prefix="xwin-") as folder:
        if _is_adapter(name) or name.endswith(".gguf"):
            save(load_policy(name, CPU, train=True), Path(folder) / "model")
            name = f"{folder}/model"
        model = kind.from_pretrained(name, dtype=dtype, **arguments)
    weights.settle(model)
    return model


def _forget_quantisation(model: Any) -> None:
    """A GGUF is read into plain weights; transformers would still refuse to save them."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def assemble(model: Any, tokenizer: Any, place: Place, name: str) -> Loaded:
    """A model on its device with its tokenizer, template and stop tokens."""
    eos = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    stops = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if model.device.type == place.device.type == "cpu":
        memory.leave_files(model)
    elif model.device.type != "meta":
        model.to(place.device)
    return Loaded(model.eval(), tokenizer, Template(tokenizer, stops), place, name)


def load_reward(name: str, place: Place, *, train: bool = False, quantize: str = "none") -> Loaded:
    """Load a reward model: a ``<X>ForSequenceClassification`` folder with one label; else as ``load_policy``."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    _quietly()
    source, _ = locate(name)
    with from_the_hub(name):
        config = AutoConfig.from_pretrained(source)
        kinds = config.architectures or []
        if not any(k.endswith("ForSequenceClassification") for k in kinds) or config.num_labels != 1:
            raise XwinError(
                f"{name}: not a reward model: architectures {kinds}, {config.num_labels} labels",
                "make one with xwin train-rm",
            )
        dtype = torch.float32 if train else place.dtype
        if quantize == "nf4":
            model = _load_nf4(AutoModelForSequenceClassification, name, place, dtype)
        else:
            model = AutoModelForSequenceClassification.from_pretrained(source, dtype=dtype)
    tokenizer = load_tokenizer(name)
    if config.pad_token_id is None or config.pad_token_id == config.eos_token_id:
        warn(f"{name}: pad = eos, so other loaders may read its score one token early; ours reads the last token")
    return assemble(model, tokenizer, place, name)


def new_reward(name: str, place: Place, seed: int, *, quantize: str = "none") -> Loaded:
    """A reward model from a policy: its body, a fresh head N(0, 1/(h+1)), a pad token that is not eos.

    (Stiennon et al. 2020, arXiv 2009.01325: the head's standard deviation is 1/sqrt(h+1).) ``quantize`` as in
    ``load_policy``; the head stays float32.
    """
    from transformers import AutoModelForSequenceClassification

    policy = load_policy(name, place, train=True, quantize=quantize)
    config = policy.model.config
    config.num_labels = 1
    config.architectures = None
    pad = _spare_pad(policy)
    if pad >= config.get_text_config().vocab_size:
        policy.model.resize_token_embeddings(pad + 1)
    with torch.device("meta"):  # its body is the policy's
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    setattr(model, model.base_model_prefix, policy.model.base_model)
    model.config.pad_token_id = pad
    if quantize == "nf4":
        model.is_loaded_in_4bit = True  # peft asks
    h = model.score.weight.shape[1]
    generator = torch.Generator().manual_seed(seed)
    model.score.weight = torch.nn.Parameter(torch.randn(1, h, generator=generator) / (h + 1) ** 0.5)
    return assemble(model, policy.tokenizer, place, name)


def _spare_pad(policy: Loaded) -> int:
    """A pad id that ends no response: the tokenizer's own, else a spare special token, else a new one."""
    tokenizer, taken = policy.tokenizer, policy.template.stop_ids | {policy.tokenizer.eos_token_id}
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in taken:
        text = tokenizer.chat_template
        taken = taken | {tokenizer.bos_token_id}
        added = sorted(tokenizer.get_added_vocab().items(), key=lambda kv: kv[1])
        spare = [t for t, i in added if i not in taken and t not in text and i < len(tokenizer)]
        if spare:
            tokenizer.pad_token = spare[0]
        else:
            tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    return int(tokenizer.pad_token_id)


# -- saving


def save(loaded: Loaded, out: str | Path, *, keep_adapter: bool = False) -> None:
    """Write a model as an ordinary folder that appears whole: written beside ``out``, then renamed.

    LoRA weights are merged first unless ``keep_adapter``. Whatever lay at ``out`` before is replaced.
    """
    out = Path(out)
    part = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        if loaded.adapter is not None and keep_adapter:
            _save_adapter(loaded, part)
        else:
            model = _merged(loaded)
            _check_finite(model, loaded.name)
            with _unwrapped():
                model.save_pretrained(part)
        loaded.tokenizer.init_kwargs.pop("local_files_only", None)  # says how it was read, not what it is
        loaded.tokenizer.save_pretrained(part)
        replace_folder(part, out)
    except OSError as e:
        raise XwinError(f"{out}: cannot write the model: {e.strerror or e}") from e
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _save_adapter(loaded: Loaded, folder: Path) -> None:
    if Path(loaded.name).exists():  # so that it opens from any working directory
        loaded.adapter.peft_config["default"].base_model_name_or_path = str(Path(loaded.name).resolve())
    loaded.adapter.save_pretrained(folder)


def _merged(loaded: Loaded) -> Any:
    """The model with its adapter merged in: for good, unless it is in nf4, which merging would round once more."""
    if loaded.adapter is not None and weights.is_nf4(loaded.model):
        from peft import PeftModel

        say(f"merging the adapter into the weights of {loaded.name} in float32, read anew: nf4 would round the sum")
        reward = hasattr(loaded.model, "score")
        whole = new_reward(loaded.name, CPU, 0) if reward else load_policy(loaded.name, CPU, train=True)
        with tempfile.TemporaryDirectory(prefix="xwin-") as folder:
            loaded.adapter.save_pretrained(folder)
            return PeftModel.from_pretrained(whole.model, folder).merge_and_unload()
    if loaded.adapter is not None:
        loaded.model, loaded.adapter = loaded.adapter.merge_and_unload(), None
    return loaded.model


@contextmanager
def _unwrapped() -> Iterator[None]:
    """While saving, accelerate would import DeepSpeed (seconds) just to see that the model is not wrapped in it."""
    hidden = "deepspeed" not in sys.modules
    if hidden:
        sys.modules["deepspeed"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules["deepspeed"]


def replace_folder(new: Path, out: Path) -> None:
    """Put a finished folder in the place of an old one."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.replace(old)
    new.replace(out)
    shutil.rmtree(old, ignore_errors=True)


def _check_finite(model: Any, source: str) -> None:
    for name, p in model.named_parameters():
        if not bool(torch.isfinite(p).all()):
            raise XwinError(f"{source}: the weight {name} is not finite, so nothing was saved", "lower --lr")
