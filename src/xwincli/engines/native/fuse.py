"""A model's linear layers as they run while sampling: siblings as one product, in the precision asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
ROWS = 128  # for how many rows a packed weight is laid out; others cost no more


class Joint:
    """Linears over one input: the first one asked computes for all, the last one lets go.

    In the weights' own precision they are laid end to end and the layers' parameters become views of them,
    so no memory is spent twice and an optimizer's step in place is seen here. In another precision this is
    a copy, renewed by ``refresh``.
    """

    def __init__(self, layers: list[nn.Linear], dtype: torch.dtype) -> None:
        self.layers, self.dtype = layers, dtype
        self.sizes = [layer.out_features for layer in layers]
        self.packed: Tensor | None = None
        self.input: Tensor | None = None
        self.parts: dict[int, Tensor] = {}
        self._join()

    def _join(self) -> None:
        self.weight = self._lay([layer.weight for layer in self.layers])
        biases = [layer.bias for layer in self.layers if layer.bias is not None]
        self.bias = self._lay(biases) if biases else None

    def _lay(self, parameters: Sequence[Tensor]) -> Tensor:
        joined = torch.cat([p.detach().to(self.dtype) for p in parameters])
        if joined.dtype == parameters[0].dtype:
            for p, part in zip(parameters, joined.split([len(p) for p in parameters]), strict=True):
                p.data = part
        return joined

    def refresh(self) -> None:
        """Join again if the weights are copied here, or were moved (a cast, an offload, a sharding wrapper)."""
        if self.packed is not None:
            return
        if self.layers[0].weight.dtype == self.dtype:
            starts = torch.tensor([0, *self.sizes[:-1]]).cumsum(0).tolist()
            pairs = [(layer.weight, self.weight[a:]) for layer, a in zip(self.layers, starts, strict=True)]
            if self.bias is not None:
                pairs += [(layer.bias, self.bias[a:]) for layer, a in zip(self.layers, starts, strict=True)]
            if all(mine.data_ptr() == joined.data_ptr() for mine, joined in pairs):
                return
        self._join()

    def pack(self, keep: set[int]) -> None:
        """Hold the weight in oneDNN's own layout, in which a product needs no reordering, and let the original go.

        Args:
            keep: ids of parameters that others read as well (a tied embedding).
        """
        if self.weight.device.type != "cpu":
            return
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, ROWS)
        self.weight = self.weight.new_empty(0)
        for layer in self.layers:
            if id(layer.weight) not in keep:
                layer.weight.data = layer.weight.data.new_empty(0)

    def _product(self, x: Tensor) -> Tensor:
        if self.packed is None:
            return nn.functional.linear(x, self.weight, self.bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return out

    def forward(self, i: int) -> Callable[[Tensor], Tensor]:
        """The forward of the ``i``-th layer: (…, in) -> (…, out_i) in the input's precision."""

        def part(x: Tensor) -> Tensor:
            if self.input is not x or i not in self.parts:
                out = self._product(x.to(self.dtype)).to(x.dtype)
                if len(self.sizes) == 1:
                    return out
                self.input, self.parts = x, dict(enumerate(out.split(self.sizes, dim=-1)))
            mine = self.parts.pop(i)
            if not self.parts:
                self.input = None
            return mine

        return part


class Linears:
    """All linears of a model; ``with linears.active():`` lets them run this way for one forward.

    Args:
        model: any module; adapters, quantised and other special linears stay as they are.
        dtype: precision of the products.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype
        self.joints: list[Joint] = []
        taken: set[int] = set()
        for module in model.modules():
            for names in SIBLINGS:
                layers = [m for name in names if type(m := getattr(module, name, None)) is nn.Linear]
                if len(layers) == len(names) and len({_facts(m) for m in layers}) == 1:
                    self.joints.append(Joint(layers, dtype))
                    taken |= set(map(id, layers))
        for module in model.modules():
            if type(module) is nn.Linear and id(module) not in taken and module.weight.dtype != dtype:
                self.joints.append(Joint([module], dtype))

    def pack(self) -> None:
        """Where it is faster (float32 on a CPU), hold every weight packed in place of the model's own.

        From here on the model serves for nothing but this, and its weights cannot change.
        """
        if self.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
            return
        others = (m for m in self.model.modules() if type(m) is not nn.Linear)
        keep = {id(p) for m in others for p in m.parameters(recurse=False)}
        taken = {id(layer) for joint in self.joints for layer in joint.layers}
        for joint in self.joints:
            joint.pack(keep)
        for module in self.model.modules():  # one after the other: a copy of one layer at a time
            if type(module) is nn.Linear and id(module) not in taken and module.weight.dtype == self.dtype:
                self.joints.append(Joint([module], self.dtype))
                self.joints[-1].pack(keep)

    def refresh(self) -> None:
        """See the weights as they are now."""
        for joint in self.joints:
            joint.refresh()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within the block. Inference only: no gradient reaches the layers' parameters."""
        layers = [(layer, joint.forward(i)) for joint in self.joints for i, layer in enumerate(joint.layers)]
        try:
            for layer, forward in layers:
                layer.__dict__["forward"] = forward
            yield
        finally:
            for layer, _ in layers:
                layer.__dict__.pop("forward", None)


def _facts(layer: nn.Linear) -> tuple[object, ...]:
    return layer.in_features, layer.weight.dtype, layer.weight.device, layer.bias is None
