"""A training step rehearsed on tensors without numbers: what memory and how many operations it would take.

PyTorch's fake tensors have a shape, a type and a lifetime, but no storage. So the very forward and backward that
training does, LoRA, checkpointing, autocast and attention included, runs in seconds for any model, and every byte
alive and every matrix product is counted instead of being modelled by a formula for one architecture.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from xwincli import attention, models, norms, scoring, settings, weights
from xwincli.errors import XwinError
from xwincli.models import Loaded, Place
from xwincli.rows import Branch, Row, lay
from xwincli.states import hidden

SHALLOW = 6  # layers; deeper models are cut
BLOCK = 64  # nf4 weights share a scale; 256 scales are themselves of 8 bits and share one (arXiv 2305.14314)
OPERATIONS = {**flop_registry, torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm]}


def sketch(name: str, place: Place, *, reward: bool = False, template: str = "") -> Loaded:
    """A model without weights, on the meta device, with its real tokenizer and template.

    Args:
        name: folder, hub name, adapter folder or ``.gguf`` file.
        place: where it would be trained.
        reward: give it a reward model's head.
        template: chat template text that replaces the tokenizer's own.
    """
    from transformers import AutoConfig, GenerationConfig

    tokenizer = models.load_tokenizer(name)
    if template:
        tokenizer.chat_template = template
    source, arguments = models.locate(name)
    with models.from_the_hub(name):
        if (Path(name) / "adapter_config.json").is_file():
            from peft import PeftConfig

            source = str(PeftConfig.from_pretrained(name).base_model_name_or_path)
        config = AutoConfig.from_pretrained(source, **arguments)
    if reward:
        config.num_labels = 1
        config.pad_token_id = tokenizer.pad_token_id
    model = _hollow(config, reward)
    with suppress(OSError):  # not every folder says how to generate
        model.generation_config = GenerationConfig.from_pretrained(source)
    return models.assemble(model, tokenizer, place, name)


def _hollow(config: Any, reward: bool, held: torch.dtype = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    with torch.device("meta"):
        return kind.from_config(copy.deepcopy(config), dtype=held)


@dataclass(frozen=True)
class Need:
    """What a row of training needs, in bytes and floating-point operations.

    Attributes:
        weights: all weights as they are held.
        trained: numbers that learn.
        largest: the most numbers of a weight that learns.
        small: numbers that learn in tensors too small for 8-bit optimizer state.
        row: the most that is alive at once during forward and backward beyond weights and gradients: what is kept
            for backward, casts of weights, logits in parts, gradients on their way.
        flops: of matrix products in forward and backward.
        tokens: of the row.
        kept: what of ``row`` forward leaves alive for backward.
        forward, backward: the most that is alive during each.
    """

    weights: int
    trained: int
    largest: int
    small: int
    row: int
    flops: int
    tokens: int
    kept: int = 0
    forward: int = 0
    backward: int = 0


def rehearse(
    like: Loaded,
    adapt: settings.Adapt,
    branches: Sequence[Branch],
    dtype: torch.dtype,
    *,
    learn: bool = True,
    held: torch.dtype = torch.float32,
) -> Need:
    """Forward and backward of one row, or with ``learn`` False a forward alone, of which nothing is kept.

    Of a deep model only two or three layers are rehearsed and the others reckoned from them: all that is counted
    grows by the same with each layer that learns, and by the same with each that does not (``--train-top``).

    Args:
        like: from ``sketch``; it stays as it is.
        adapt: which weights learn, and how the others wait.
        branches: the row.
        dtype: of the matrix products.
        learn: backward too.
        held: the weights' dtype.

    Raises:
        XwinError: the model's computation depends on the numbers, so that it cannot be rehearsed.
    """
    model = prepared(like, adapt, dtype, held=held)
    depth = len(weights.layers(model))
    if not learn:
        model.requires_grad_(False)
        adapt = replace(adapt, train_top=0)
    moved = adapt.train_top or depth
    if depth <= SHALLOW:
        forward, *peaks, kept, flops = _run(model, like, branches, dtype, learn)
    else:
        few = [(1, 1), (1, 2), (2, 1)] if moved < depth else [(0, 2), (0, 3)]
        found = []
        for still, moving in few:
            cut = prepared(like, replace(adapt, train_top=moving if still else 0), dtype, still + moving, held)
            found.append(_run(cut, like, branches, dtype, learn))
        (still, moving), first, more = few[0], found[0], [*found[1:], found[0]]
        counted = [
            a + (moved - moving) * (b - a) + (depth - moved - still) * (c - a)
            for a, b, c in zip(first, more[0], more[1], strict=True)
        ]
        forward, *peaks, kept, flops = counted
    sizes = [p.numel() for p in model.parameters() if p.requires_grad]
    return Need(
        weights=sum(_bytes(p) for p in model.parameters()),
        trained=sum(sizes),
        largest=max(sizes, default=0),
        small=sum(n for n in sizes if n < 4096),
        row=max(forward, *peaks),
        flops=flops,
        tokens=sum(map(len, branches)),
        kept=kept,
        forward=forward,
        backward=max(peaks),
    )


def prepared(
    like: Loaded, adapt: settings.Adapt, dtype: torch.dtype, depth: int = 0, held: torch.dtype = torch.float32
) -> Any:
    """A new model on the meta device with the weights that learn chosen; ``depth`` > 0 leaves only so many layers."""
    model = _hollow(like.model.config, hasattr(like.model, "score"), held).eval()
    if depth:
        del weights.layers(model)[:-depth]
    if adapt.quantize == "nf4":
        _pack(model, dtype)
    with torch.device("meta"):
        weights.choose(replace(like, model=model), adapt)
    norms.quicken(model)
    return model


def _run(model: Any, like: Loaded, branches: Sequence[Branch], dtype: torch.dtype, learn: bool) -> tuple[int, ...]:
    """Bytes alive at most beyond weights and gradients, bytes kept for backward, and operations, of one row.

    The most bytes are told for four stretches, since of each alone it is true that they grow evenly with depth:
    forward, backward through the head, through the layers, and through the embeddings.
    """
    place = Place(torch.device("cpu"), dtype)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.set_grad_enabled(learn):
        if not learn:
            model.requires_grad_(False)
        model.to_empty(device="cpu").tie_weights()
        model.set_attn_implementation(attention.register())
        model.xwin_branches = True
        alive = Alive()
        for p in model.parameters():
            alive.ignore(p)
            if p.requires_grad:
                p.grad = torch.empty_like(p)
                alive.ignore(p.grad)
        peaks: list[int] = []

        def part(_: Any) -> None:
            peaks.append(alive.peak)
            alive.peak = alive.now

        def embedded(module: Any, inputs: Any, out: torch.Tensor) -> None:
            if out.requires_grad:
                out.register_hook(part)

        model.get_input_embeddings().register_forward_hook(embedded)
        with alive:
            out = _forward(replace(like, model=model, place=place), lay(branches), part)
            part(None)
            if kept := alive.now if learn else 0:
                out.sum().backward()
            part(None)
    return *peaks, *[0] * (4 - len(peaks)), kept, alive.flops


def _forward(loaded: Loaded, row: Row, part: Callable[[Any], None]) -> torch.Tensor:
    """What is learned from, per token or response; ``part`` is called when its gradient has come to the states."""
    reward = hasattr(loaded.model, "score")
    try:
        with loaded.place.autocast():
            states = hidden(loaded, row)
            if states.requires_grad:
                states.register_hook(part)
            return scoring.row_rewards(loaded, row, states) if reward else scoring.token_logprobs(loaded, row, states)
    except DataDependentOutputException as e:
        message = f"{loaded.name}: what this model computes depends on its numbers ({e}), so --plan cannot foresee it"
        raise XwinError(message, "leave --plan out and try with --limit") from None


class Alive(TorchDispatchMode):
    """Counts, in the code it is entered around, bytes of storage alive (``now``, ``peak``) and ``flops``."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.flops = 0
        self._seen: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()

    def ignore(self, tensor: torch.Tensor) -> None:
        """Leave a tensor's storage out of the count."""
        self._seen[tensor.untyped_storage()] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        whole = func.namespace == "aten" and func._overloadpacket not in OPERATIONS
        if whole and torch.is_inference_mode_enabled():
            with self:  # there a linear layer comes here whole, elsewhere as its product
                if (out := func.decompose(*args, **(kwargs or {}))) is not NotImplemented:
                    return out
        out = func(*args, **(kwargs or {}))
        if (count := OPERATIONS.get(func._overloadpacket)) is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                self._seen[storage] = True
                size = storage.nbytes()
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._free, size)
        return out

    def _free(self, size: int) -> None:
        self.now -= size


# -- nf4 without bitsandbytes, which knows no fake tensors


class _Packed(torch.autograd.Function):
    """A product with a weight that is unpacked for the moment, in forward and again in backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packed: torch.Tensor, rows: int, dtype: torch.dtype) -> torch.Tensor:
        ctx.shape, ctx.dtype = (rows, x.shape[-1]), dtype
        whole = torch.empty(ctx.shape, dtype=dtype, device=x.device)
        return torch.matmul(x.to(dtype), whole.T).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        whole = torch.empty(ctx.shape, dtype=ctx.dtype, device=grads[0].device)
        return torch.matmul(grads[0].to(ctx.dtype), whole).to(grads[0].dtype), None, None, None


class Packed(torch.nn.Linear):
    """The shape of a linear layer in four bits."""

    def __init__(self, like: torch.nn.Linear, dtype: torch.dtype) -> None:
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features, self.dtype = like.in_features, like.out_features, dtype
        packed = torch.empty((like.weight.numel() + 1) // 2, 1, dtype=torch.uint8, device="meta")
        self.weight = torch.nn.Parameter(packed, requires_grad=False)
        self.bias = like.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Unpack, multiply, forget."""
        out: torch.Tensor = _Packed.apply(x, self.weight, self.out_features, self.dtype)  # type: ignore[no-untyped-call]
        return out if self.bias is None else out + self.bias


def _pack(model: Any, dtype: torch.dtype) -> None:
    """Replace the linear layers as ``weights.nf4`` does: all but the heads."""
    heads = [model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None]
    heads.append(getattr(model, "score", None))
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is torch.nn.Linear and not any(child is head for head in heads):
                setattr(module, name, Packed(child, dtype))


def _bytes(weight: torch.Tensor) -> int:
    size = weight.numel() * weight.element_size()
    if weight.dtype != torch.uint8:
        return size
    scales = 2 * size / BLOCK
    return int(size + scales + 4 * scales / 256)
