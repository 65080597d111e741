"""Which weights learn and in what form the others wait: LoRA, the top layers, nf4, layers computed twice."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint

from xwincli import settings
from xwincli.console import say
from xwincli.errors import XwinError

if TYPE_CHECKING:
    from xwincli.models import Loaded, Place

Named = list[tuple[str, torch.nn.Parameter]]


def layers(model: Any) -> Any:
    """The decoder layers of a transformers model (its longest ModuleList of equal blocks)."""
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) > 0]
    return max(lists, key=len)


def adapt(loaded: Loaded, config: settings.Adapt, seed: int = 0) -> Named:
    """Choose the weights that learn, per ``--lora-r`` and ``--train-top``; returns them by name.

    ``seed`` is of new adapters, which are drawn at random.
    """
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    chosen = choose(loaded, config)
    torch.set_rng_state(state)
    count, whole = sum(p.numel() for _, p in chosen), sum(map(size, loaded.model.parameters()))
    say(f"training {count / 1e6:.1f}M of {whole / 1e6:.1f}M parameters")
    return chosen


def choose(loaded: Loaded, config: settings.Adapt) -> Named:
    """The same without a word."""
    model = loaded.model
    top = config.train_top
    depth = len(layers(model))
    if top > depth:
        raise XwinError(f"--train-top is {top}, but {loaded.name} has {depth} layers")
    if config.keep_adapter and not config.lora_r:
        raise XwinError("--keep-adapter needs --lora-r", "without LoRA there is no adapter")
    if config.lora_r:
        loaded.adapter = _add_lora(model, config)
    elif top:
        model.requires_grad_(False)
        for block in list(layers(model))[depth - top :]:
            block.requires_grad_(True)
        for name, module in model.named_modules():
            if name.endswith(("norm", "ln_f", "score", "final_layernorm")) and ".layers." not in name:
                module.requires_grad_(True)
    if config.checkpointing:
        checkpoint_layers(model, loaded.name)
    return [(n, p) for n, p in model.named_parameters() if p.requires_grad]


def size(weight: torch.Tensor) -> int:
    """Numbers a weight holds: nf4 packs two in a byte."""
    return weight.numel() * (2 if type(weight).__name__ == "Params4bit" else 1)


def _add_lora(model: Any, config: settings.Adapt) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model

    reward = hasattr(model, "score")
    targets: str | list[str] = "all-linear"
    if config.train_top:  # peft can name layers only beside names of their parts
        chosen = {m for block in layers(model)[-config.train_top :] for m in block.modules()}
        targets = [n for n, m in model.named_modules() if m in chosen and isinstance(m, torch.nn.Linear)]
    return get_peft_model(
        model,
        LoraConfig(
            r=config.lora_r,
            lora_alpha=config.lora_alpha or 2 * config.lora_r,
            lora_dropout=0.0,
            target_modules=targets,
            exclude_modules=["score"] if reward else None,
            modules_to_save=["score"] if reward else None,
            task_type=TaskType.SEQ_CLS if reward else TaskType.CAUSAL_LM,
        ),
    )


# -- layers computed twice


def checkpoint_layers(model: Any, name: str) -> None:
    """Keep only each layer's input for backward, which computes the layer again (Chen et al. 2016, arXiv 1604.06174).

    transformers checkpoints a layer that is in training mode. Ours stay in evaluation mode, where no dropout is;
    so a layer's own flag (not its parts') is up only while the body computes something that will be learned from,
    and generation, which needs the cache that checkpointing forbids, never sees it.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    blocks: list[Any] = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not blocks:
        raise XwinError(f"{name}: transformers cannot checkpoint {type(model).__name__}", "leave --checkpointing out")
    for block in blocks:
        block.gradient_checkpointing = True
        block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        for key, value in list(vars(block).items()):
            if "drop" in key and isinstance(value, float):  # some families draw dropout in the layer itself
                setattr(block, key, 0.0)

    def raise_flags(*_: Any) -> None:
        for block in blocks:
            block.training = torch.is_grad_enabled()

    def lower_flags(*_: Any) -> None:
        for block in blocks:
            block.training = False

    body = model.base_model
    body.register_forward_pre_hook(raise_flags)
    body.register_forward_hook(lower_flags, always_call=True)


# -- weights in four bits


def nf4(place: Place, reward: bool = False) -> dict[str, Any]:
    """transformers' loading arguments for nf4 weights with double quantisation (Dettmers et al. 2023, 2305.14314).

    Embeddings, norms and heads keep their precision.
    """
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise XwinError("--quantize nf4 needs bitsandbytes", "pip install 'xwincli[qlora]'") from None
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=place.dtype,
        llm_int8_skip_modules=["score"] if reward else None,
    )
    return {"quantization_config": config, "device_map": {"": str(place.device)}}


def settle(model: Any) -> None:
    """Forbid bitsandbytes to pack nf4 weights anew on processors with bfloat16: that form has no gradient."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def is_nf4(model: Any) -> bool:
    """True of a model loaded with ``nf4``."""
    return any(type(p).__name__ == "Params4bit" for p in model.parameters())
