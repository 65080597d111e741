"""Every backend of the row attention against a dense softmax: outputs, gradients, arguments, memory, choice."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from xwincli import attention
from xwincli.attention import Plan, gathered

LAYOUT = [((0, 5), [(5, 8), (8, 8), (8, 12), (12, 13)]), ((13, 13), [(13, 17)]), ((17, 19), [(19, 22)]), ((22, 24), [])]
T, H, G, D = 24, 4, 2, 8
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _fresh_kernels():
    yield
    gathered.flash_attn.cache_clear()
    gathered.torch_varlen.cache_clear()


def tensors(dtype=torch.float32, tokens=T):
    g = torch.Generator().manual_seed(0)
    shapes = ((tokens, H, D), (tokens, G, D), (tokens, G, D))
    return [torch.randn(s, generator=g).to(dtype).requires_grad_() for s in shapes]


def sees(layout, window):
    """(T,T) bool, token by token from the definition: who sees whom."""
    tokens = layout[-1][1][-1][1] if layout[-1][1] else layout[-1][0][1]
    mask = torch.zeros(tokens, tokens, dtype=torch.bool)
    for (a, b), responses in layout:
        for i in range(a, b):
            mask[i, a : i + 1] = True
        for c, d in responses:
            for i in range(c, d):
                mask[i, a:b] = True
                mask[i, c : i + 1] = True
    if window:
        for i in range(tokens):
            seen = mask[i].nonzero()[:, 0]
            mask[i, seen[:-window]] = False
    return mask


def dense(q, k, v, layout, scale, window=0, softcap=0.0):
    """Softmax attention over the whole row in float64."""
    q, k, v = (t.detach().double().requires_grad_() for t in (q, k, v))
    kk, vv = (x.repeat_interleave(H // G, 1) for x in (k, v))
    scores = torch.einsum("thd,shd->hts", q, kk) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    p = scores.masked_fill(~sees(layout, window), float("-inf")).softmax(-1)
    return torch.einsum("hts,shd->thd", p, vv), (q, k, v)


def compare(backend, dtype=torch.float32, window=0, softcap=0.0, layout=LAYOUT, rtol=1e-5):
    q, k, v = tensors(dtype, layout[-1][0][1] if not layout[-1][1] else layout[-1][1][-1][1])
    g = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    ours = attention.compute(backend, q, k, v, Plan(layout, CPU), 0.3, window, softcap)
    expected, leaves = dense(q, k, v, layout, 0.3, window, softcap)
    torch.testing.assert_close(ours.double(), expected, rtol=rtol, atol=rtol)
    grads = torch.autograd.grad(ours, (q, k, v), g.to(dtype))
    for a, b in zip(grads, torch.autograd.grad(expected, leaves, g.double()), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=rtol, atol=3 * rtol)


# -- the two backends every machine has


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shared_is_dense_attention(dtype):
    compare("shared", dtype, rtol=1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("softcap", [0.0, 0.7])
@pytest.mark.parametrize("window", [0, 1, 2, 3, 6])
def test_segments_are_dense_attention(window, softcap):
    compare("segments", window=window, softcap=softcap)


def test_segments_in_half_precision():
    compare("segments", torch.bfloat16, window=3, rtol=2e-2)


def test_a_gradient_that_is_not_contiguous():
    q, k, v = tensors()
    out = attention.compute("shared", q, k, v, Plan(LAYOUT, CPU), 0.3)
    got = torch.autograd.grad(out.sum(), (q, k, v))  # sum's gradient is one number, expanded
    expected, leaves = dense(q, k, v, LAYOUT, 0.3)
    for a, b in zip(got, torch.autograd.grad(expected.sum(), leaves), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


# -- flash-attn, which no test machine has: a stand-in that computes the same with SDPA and writes down its arguments


def reference(q, k, v, starts, key_starts, window=-1, scale=None, softcap=0.0):
    """What both varlen kernels promise: causal aligned at the end; token i sees ``window`` tokens before itself."""
    parts = []
    for i in range(len(starts) - 1):
        a, b, c, d = *starts[i : i + 2].tolist(), *key_starts[i : i + 2].tolist()
        mask = torch.ones(b - a, d - c, dtype=torch.bool).tril(d - c - (b - a))
        if window >= 0:
            mask = mask.triu(d - c - (b - a) - window)
        parts.append(capped(q[a:b], k[c:d], v[c:d], mask, scale, softcap))
    return torch.cat(parts)


def capped(q, k, v, mask, scale, softcap):
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("thd,shd->hts", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    return torch.einsum("hts,shd->thd", scores.masked_fill(~mask, float("-inf")).softmax(-1), v)


@pytest.fixture
def flash(monkeypatch):
    calls = []

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
    ):  # fmt: skip
        assert causal
        assert dropout_p == 0.0
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        assert cu_seqlens_q.diff().max() == max_seqlen_q
        assert cu_seqlens_k.diff().max() == max_seqlen_k
        assert window_size[1] in (-1, 0)
        calls.append({"keys": len(k), "window": window_size, "scale": softmax_scale, "softcap": softcap})
        return reference(q, k, v, cu_seqlens_q, cu_seqlens_k, window_size[0], softmax_scale, softcap)

    module = types.ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    gathered.flash_attn.cache_clear()
    return calls


@pytest.mark.parametrize("softcap", [0.0, 0.7])
@pytest.mark.parametrize("window", [0, 1, 3])
def test_flash_attn_is_called_right(window, softcap, flash):
    compare("flash-attn", window=window, softcap=softcap)
    assert {(c["window"], c["scale"], c["softcap"]) for c in flash} == {
        ((window - 1, 0) if window else (-1, -1), 0.3, softcap)
    }
    assert len(flash) == (1 if window == 1 else 2)  # again in backward, where a prompt's keys were gathered


def test_a_row_without_shared_prompts_is_one_call(flash):
    compare("flash-attn", layout=[((0, 0), [(0, 6)]), ((6, 9), [(9, 12)]), ((12, 12), [(12, 14)])])
    assert [c["keys"] for c in flash] == [14]  # nothing gathered, nothing repeated in backward


def test_keys_are_gathered_in_bounded_calls(flash, monkeypatch):
    monkeypatch.setattr("xwincli.attention.plan.Plan.parts.__defaults__", (10,))
    compare("flash-attn")
    assert max(c["keys"] for c in flash) <= 10
    assert len(flash) == 2 * 4  # 8 | 9 | 6 + 4 | 5 + 2 keys


# -- torch's varlen kernel as its versions spell it


def test_torch_varlen_of_this_version_knows_what_we_need():
    kernel, known = gathered.torch_varlen()
    assert kernel is not None
    assert known >= {"cu_seq_q", "cu_seq_k", "max_q", "max_k"}
    assert "is_causal" in known or "window_size" in known


@pytest.mark.parametrize("keywords", [("is_causal",), ("scale", "window_size"), ("scale", "window_size", "enable_gqa")])
@pytest.mark.parametrize("window", [0, 3])
def test_torch_varlen_is_called_right_in_every_version(keywords, window, monkeypatch):
    if window and "window_size" not in keywords:
        assert "torch" not in choices(monkeypatch, keywords=frozenset(keywords), window=window)
        return
    calls = []

    def varlen_attn(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, **options):
        assert set(options) == set(keywords)
        assert options.get("is_causal", True)
        assert "enable_gqa" in keywords or q.shape[1] == k.shape[1]
        calls.append(options)
        left, right = options.get("window_size", (-1, 0))
        assert right == 0
        return reference(q, k, v, cu_seq_q, cu_seq_k, left, options.get("scale"))

    monkeypatch.setattr(gathered, "torch_varlen", lambda: (varlen_attn, frozenset(keywords)))
    compare("torch", window=window)
    assert [c.get("enable_gqa", True) for c in calls] == [True, True]


# -- the choice


def choices(monkeypatch, *, keywords=None, flash=False, gpu=True, dtype=torch.bfloat16, size=64, window=0, softcap=0.0):
    monkeypatch.setattr(attention, "_flash_runs_on", lambda device: gpu)
    known = frozenset({"window_size", "scale", "enable_gqa"}) if keywords is None else keywords
    monkeypatch.setattr(gathered, "torch_varlen", lambda: (object(), known))
    monkeypatch.setattr(gathered, "flash_attn", lambda: object() if flash else None)
    x = torch.zeros(3, 2, size, dtype=dtype)
    return attention.backends(x, x, window, softcap)


def test_the_choice_of_a_kernel(monkeypatch):
    def first(**case):
        return choices(monkeypatch, **case)[0]

    assert first(flash=True) == "flash-attn"
    assert first() == "torch"
    assert first(flash=True, softcap=50.0) == "flash-attn"
    assert first(softcap=50.0) == "segments"  # torch's kernel has no softcap
    assert first(window=8) == "torch"
    assert first(flash=True, dtype=torch.float32) == "shared"  # of the CPU: the stand-in's tensors are there
    assert first(flash=True, gpu=False) == "shared"
    assert first(gpu=False, window=8) == "segments"
    assert first(gpu=False, softcap=1.0) == "segments"
    assert first(flash=True, size=20) == "shared"  # flash kernels want multiples of 8, at most 256
    assert first(flash=True, size=264) == "shared"


def test_a_flash_attn_that_does_not_load_is_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    gathered.flash_attn.cache_clear()
    assert gathered.flash_attn() is None
    assert not attention._flash_runs_on(CPU)


# -- memory: what forward keeps for backward


def saved_bytes(backend, prompt, count, length, **options):
    spans = [(prompt + i * length, prompt + (i + 1) * length) for i in range(count)]
    q, k, v = tensors(tokens=prompt + count * length)
    kept = {}

    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = attention.compute(backend, q, k, v, Plan([((0, prompt), spans)], CPU), 0.3, **options)
    own = sum(t.untyped_storage().nbytes() for t in (q, k, v))
    del out
    return sum(kept.values()), own


@pytest.mark.parametrize("backend", ["shared", "segments", "flash-attn"])
def test_64_responses_keep_no_copies_of_a_long_prompts_keys(backend, flash):
    kept, own = saved_bytes(backend, 4096, 64, 1)
    result_and_sums = (4096 + 64) * H * (D + 1) * 4
    assert kept == own + (result_and_sums if backend == "shared" else 0)
    assert 5 * kept < 64 * 4096 * G * D * 4  # the copies of the prompt's keys alone


# -- the plan and the interface


def test_the_plan_of_a_row():
    plan = Plan(LAYOUT, CPU)
    own = [own for own, _ in plan.segments]
    assert own == [(0, 8), (8, 12), (12, 13), (13, 17), (17, 22), (22, 24)]  # a prompt goes with its first response
    assert plan.groups == [((8, 13), (0, 5))]
    assert plan.reach == 9
    part = plan.parts(window=3)[0]
    assert part.index.tolist() == [*range(8), 3, 4, *range(8, 12), 3, 4, *range(12, 24)]
    assert (part.longest, part.most_keys) == (8, 8)
    assert part.key_starts.tolist() == [0, 8, 14, 17, 21, 26, 28]
    assert plan.mask(2, 4, 2).int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]
    assert plan.mask(2, 4, 2) is plan.mask(2, 4, 2)
    assert plan.parts(3) is plan.parts(3)


def test_a_row_with_holes_is_no_row():
    with pytest.raises(AssertionError, match="end to end"):
        Plan([((0, 2), [(2, 4)]), ((5, 6), [])], CPU)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"s_aux": torch.zeros(4)}, "s_aux"),
        ({"position_bias": torch.zeros(1)}, "position_bias"),
        ({"dropout": 0.1}, "dropout"),
        ({"attention_mask": torch.ones(1, 1, T, T)}, "a mask"),
    ],
)
def test_what_is_not_implemented_is_refused(more, reason):
    q, k, v = (x.transpose(0, 1)[None] for x in tensors())
    call = {"attention_mask": None, "row_plan": Plan(LAYOUT, CPU), **more}
    with pytest.raises(NotImplementedError, match=f"its attention wants {reason}"):
        attention._attend(None, q, k, v, **call)
    out, _ = attention._attend(None, q, k, v, None, row_plan=Plan(LAYOUT, CPU), s_aux=None, scaling=0.3)
    torch.testing.assert_close(out[0].double(), dense(*tensors(), LAYOUT, 0.3)[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="do not hand the row on"):
        attention._attend(None, q, k, v, None)


def test_a_gpu_s_half_precision_goes_to_its_kernel(flash, monkeypatch):
    """The interface as a layer calls it: grouped heads, scale, and a window only where it bites."""
    monkeypatch.setattr(attention, "_flash_runs_on", lambda device: True)
    q, k, v = (x.transpose(0, 1)[None] for x in tensors(torch.bfloat16))
    for window, passed in ((3, (2, 0)), (9, (-1, -1)), (None, (-1, -1))):
        plan = Plan(LAYOUT, CPU)
        out, _ = attention._attend(None, q.float(), k, v, None, row_plan=plan, scaling=0.3, sliding_window=window)
        expected = dense(*tensors(torch.bfloat16), LAYOUT, 0.3, window or 0)[0]
        torch.testing.assert_close(out[0].double(), expected, rtol=2e-2, atol=2e-2)
        assert flash.pop() == {"keys": len(plan.parts(window if window == 3 else 0)[0].index), "window": passed,
                               "scale": 0.3, "softcap": 0.0}  # fmt: skip
        assert plan.calls == 1
