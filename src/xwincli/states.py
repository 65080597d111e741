"""Hidden states of rows, and the probe that says whether a model's responses may share their prompt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from xwincli import attention, norms, weights
from xwincli.console import warn
from xwincli.models import Loaded
from xwincli.rows import Branch, Row, lay


def hidden(loaded: Loaded, row: Row) -> torch.Tensor:
    """Final hidden states (T, H) of a row."""
    body = loaded.model.base_model
    if loaded.model.xwin_branches:
        return _grouped(loaded, row, attention.Plan(row.layout, row.ids.device))
    parts: list[torch.Tensor] = []
    for (a, b), responses in row.layout:
        for i, (c, d) in enumerate(responses):
            ids = torch.cat((row.ids[a:b], row.ids[c:d]))[None]
            states = body(input_ids=ids, use_cache=False).last_hidden_state[0]
            parts.append(states if i == 0 else states[b - a :])
    return torch.cat(parts)


def _grouped(loaded: Loaded, row: Row, plan: attention.Plan) -> torch.Tensor:
    body = loaded.model.base_model
    out = body(input_ids=row.ids[None], position_ids=row.positions[None], use_cache=False, row_plan=plan)
    states: torch.Tensor = out.last_hidden_state[0]
    return states


def prepare(loaded: Loaded) -> Loaded:
    """Switch a model to row attention if it may branch, and its norms to ours; probes decide, not lists of names.

    The probe compares one grouped row with plain forwards. Where they differ, or the model needs something
    row attention does not implement, rows are computed one response at a time, which is slower and equal.
    """
    model = loaded.model
    if getattr(model, "xwin_branches", None) is not None:
        return loaded
    before = model.config._attn_implementation
    model.xwin_branches = False
    reason = _why_not(loaded)
    if reason:
        warn(f"{loaded.name}: prompts cannot be shared ({reason}); responses are computed one by one")
        model.set_attn_implementation(before)
    model.xwin_branches = not reason
    norms.quicken(model)
    return loaded


@torch.no_grad()
def _why_not(loaded: Loaded) -> str:
    """What a grouped row shows against sharing prompts, or "", which leaves the model in row attention.

    Two questions: is it what plain forwards give, and does another first response leave all else as it was? The
    second finds a state that runs on beside attention even where weights make too little of it for the first.
    """
    model = loaded.model
    asked, second, tail = [5, 6, 7], [10, 11, 12], Branch([13], [[14, 15]])
    one = lay([Branch(asked, [[8, 9], second]), tail]).to(loaded.place.device)
    other = lay([Branch(asked, [[16, 17], second]), tail]).to(loaded.place.device)
    plan = attention.Plan(one.layout, one.ids.device)
    with in_float32(model):
        try:
            plain = hidden(loaded, one)
            model.set_attn_implementation(attention.register())
            grouped, changed = _grouped(loaded, one, plan), _grouped(loaded, other, plan)
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as e:
            return str(e)
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    if (without := depth - plan.calls // 2) > 0:
        return f"{without} of its {depth} layers mix tokens without attention"
    # nf4 layers compute in the place's precision whatever they are given
    exact = loaded.place.dtype == torch.float32 or not weights.is_nf4(model)
    if not (difference := _apart(grouped, plain)) <= (1e-3 if exact else 0.25):
        return f"its grouped forward differs by {difference:.2g}"
    same = torch.arange(len(plain), device=plain.device)
    same = same[(same < 3) | (same >= 5)]
    if not (leak := _apart(changed[same], grouped[same])) <= (1e-6 if exact else 1e-2):
        return f"a response changes the one after it by {leak:.2g}"
    return ""


@contextmanager
def in_float32(model: torch.nn.Module) -> Iterator[None]:
    """Forwards in float32, a module at a time: in bfloat16 rounding alone moves a deep model's states by a fifth."""
    hooks: list[Any] = []
    narrow: dict[torch.nn.Parameter, torch.Tensor] = {}

    def widen(module: torch.nn.Module, _: Any) -> None:
        for p in module.parameters(recurse=False):
            if p.dtype in (torch.bfloat16, torch.float16):
                narrow[p], p.data = p.data, p.data.float()

    def back(module: torch.nn.Module, _: Any, out: Any) -> Any:
        for p in module.parameters(recurse=False):
            p.data = narrow.pop(p, p.data)
        return out.float() if isinstance(module, torch.nn.Embedding) and out is not None else out

    for module in model.modules():
        if not isinstance(module, torch.nn.Embedding):
            hooks.append(module.register_forward_pre_hook(widen))
        hooks.append(module.register_forward_hook(back, always_call=True))
    try:
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest relative distance of two states (T,H) at a token."""
    a, b = a.float(), b.float()
    return float(((a - b).norm(dim=-1) / b.norm(dim=-1)).max())
