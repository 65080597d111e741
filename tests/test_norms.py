"""Our RMS norm beside transformers' modules: outputs, gradients, which modules it takes, what it keeps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from xwincli import norms


def inputs(*shape):
    g = torch.Generator().manual_seed(1)
    return (torch.randn(shape, generator=g, dtype=torch.float64) * 3).float(), torch.randn(shape, generator=g)


def drawn(kind, width=24, **more):
    module = kind(width, **more)
    with torch.no_grad():
        module.weight += torch.linspace(-0.5, 0.9, width)
    return module


def results(module, x, upstream):
    x = x.to(module.weight.dtype).requires_grad_()
    out = module(x)
    return out.detach(), *torch.autograd.grad(out, (x, module.weight), upstream.to(out.dtype))


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen3RMSNorm, Gemma2RMSNorm])
@pytest.mark.parametrize("shape", [(7, 24), (1, 5, 3, 24)])
def test_outputs_and_gradients_are_those_of_the_module(kind, shape):
    x, upstream = inputs(*shape)
    ours = drawn(kind, eps=1e-2)
    plain = results(copy.deepcopy(ours), x, upstream)
    assert norms.quicken(nn.ModuleList([ours])) == 1
    found = results(ours, x, upstream)
    assert "forward" in vars(ours)
    for mine, theirs in zip(found, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_by_hand():
    module = LlamaRMSNorm(2, eps=0.0)
    module.weight.data = torch.tensor([2.0, 3.0])
    norms.quicken(nn.ModuleList([module]))
    x = torch.tensor([[1.0, 7.0]], requires_grad=True)  # mean square 25
    out = module(x)
    assert out.tolist() == [[pytest.approx(0.4), pytest.approx(4.2)]]
    # dx = g w r - x r^3 mean(g w x), r = 1/5
    (dx, dw) = torch.autograd.grad(out, (x, module.weight), torch.tensor([[1.0, 0.0]]))
    assert dx.tolist() == [[pytest.approx(0.4 - 1 * 2 / 2 / 125), pytest.approx(-7 * 2 / 2 / 125)]]
    assert dw.tolist() == [pytest.approx(0.2), 0.0]


class OddRMSNorm(LlamaRMSNorm):
    """Centres first, which is another norm under the same name."""

    def forward(self, x):
        return super().forward(x - x.mean(-1, keepdim=True))


class BareRMSNorm(nn.Module):
    def forward(self, x):
        return x


def test_other_norms_are_left_alone():
    others = nn.ModuleList([OddRMSNorm(8), BareRMSNorm(), nn.LayerNorm(8)])
    assert norms.quicken(others) == 0
    assert not any("forward" in vars(m) for m in others)


def test_without_eps_it_would_be_seen():
    class LateRMSNorm(LlamaRMSNorm):  # adds eps after the root
        def forward(self, x):
            return self.weight * x / (x.pow(2).mean(-1, keepdim=True).sqrt() + self.variance_epsilon)

    assert norms.quicken(nn.ModuleList([LateRMSNorm(8, eps=1e-5)])) == 0


def test_bfloat16_goes_the_modules_own_way():
    x, _ = inputs(4, 24)
    module = drawn(LlamaRMSNorm)
    expected = module(x.bfloat16())
    norms.quicken(nn.ModuleList([module]))
    assert torch.equal(module(x.bfloat16()), expected)


def test_it_keeps_its_input_and_a_number_a_position():
    def kept(module):
        sizes: dict[int, int] = {}

        def keep(t):
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        x = torch.randn(50, 24, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            out = module(x)  # noqa: F841 its graph must live
        return sum(sizes.values())

    module = drawn(LlamaRMSNorm)
    plain = kept(module)
    norms.quicken(nn.ModuleList([module]))
    assert kept(module) == 4 * (50 * 24 + 50 + 24) < 0.6 * plain


def test_a_copy_computes_with_its_own_weight():
    module = nn.ModuleList([drawn(LlamaRMSNorm)])
    norms.quicken(module)
    twin = copy.deepcopy(module)
    twin[0].weight.data.zero_()
    x, _ = inputs(2, 24)
    assert not twin[0](x).any() and module[0](x).any()
