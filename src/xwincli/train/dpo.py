"""The DPO family: pairs as branches of two responses, which loss takes which log-ratio, and the objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from xwincli.console import warn
from xwincli.errors import XwinError
from xwincli.models import Loaded
from xwincli.records import Message, Pair
from xwincli.rows import Branch, lay, segment_sum
from xwincli.scoring import branch, token_logprobs
from xwincli.states import hidden
from xwincli.train import losses
from xwincli.train.loop import Objective

FALLEN = 5.0  # nats the chosen responses may lose, while the margin grows, before it is worth a warning


@dataclass(frozen=True)
class Loss:
    """How a loss of the family is fed.

    Attributes:
        value: (h or lead, beta, smoothing, gamma) -> loss per pair.
        beta: its usual beta.
        per_token: it takes means over response tokens instead of sums.
        reference: it compares with a reference model.
        uses: options besides beta that mean something to it.
    """

    value: Callable[[torch.Tensor, float, float, float], torch.Tensor]
    beta: float = 0.1
    per_token: bool = False
    reference: bool = True
    uses: tuple[str, ...] = ()


LOSSES: dict[str, Loss] = {
    "sigmoid": Loss(lambda h, b, e, g: losses.dpo_sigmoid(h, b)),
    "cdpo": Loss(lambda h, b, e, g: losses.dpo_conservative(h, b, e), uses=("smoothing",)),
    "robust": Loss(lambda h, b, e, g: losses.dpo_robust(h, b, e), uses=("smoothing",)),
    "hinge": Loss(lambda h, b, e, g: losses.dpo_hinge(h, b)),
    "ipo": Loss(lambda h, b, e, g: losses.dpo_ipo(h, b), per_token=True),
    "ipo-sum": Loss(lambda h, b, e, g: losses.dpo_ipo(h, b)),
    "length-normalised": Loss(lambda h, b, e, g: losses.dpo_sigmoid(h, b), beta=5.0, per_token=True),
    "simpo": Loss(lambda h, b, e, g: losses.simpo(h, b, g), beta=2.0, per_token=True, reference=False, uses=("gamma",)),
}


def as_branch(loaded: Loaded, pair: Pair) -> Branch:
    """A pair as ids: the prompt once, then the chosen and the rejected response.

    Messages before the last one of each side belong to the prompt.

    Raises:
        XwinError: those messages differ between the sides, or a side ends with a tool call instead of text.
    """
    if pair.chosen[:-1] != pair.rejected[:-1]:
        hint = "cut both to where they part: one prompt, one answer each"
        raise XwinError(f"pair {pair.id}: chosen and rejected differ before their last message", hint)
    if not all(isinstance(m.get("content"), str) for m in (pair.chosen[-1], pair.rejected[-1])):
        raise XwinError(f"pair {pair.id}: a side ends with a tool call, which is not text", "leave the pair out")
    prompt: list[Message] = [*pair.prompt, *pair.chosen[:-1]]
    sides = [(str(m["content"]), m.get("finish") != "length") for m in (pair.chosen[-1], pair.rejected[-1])]
    return branch(loaded, (prompt, sides), tail=False, any_length=True)


@dataclass(frozen=True)
class Terms:
    """What is minimised: a loss of ``LOSSES`` with its settings, and ``nll`` times the chosen's mean -log p a token.

    (The latter as in iterative reasoning preference optimisation, Pang et al. 2024, arXiv 2404.19733, eq. 1.)
    """

    loss: str = "sigmoid"
    beta: float = 0.1
    smoothing: float = 0.0
    gamma: float = 0.0
    nll: float = 0.0


def objective(
    loaded: Loaded, branches: Sequence[Branch], reference: Sequence[Sequence[float]], terms: Terms
) -> Objective:
    """Rows of pair indices -> loss summed over pairs.

    ``reference`` holds each pair's two summed log-probabilities under the reference (unused without one). Reports
    accuracy, beta-scaled margin, both log-ratios and the chosen's log-probability, as means over pairs.
    """
    kind = LOSSES[terms.loss]

    def compute(members: list[int]) -> tuple[torch.Tensor, dict[str, float]]:
        row = lay([branches[i] for i in members]).to(loaded.place.device)
        logp = segment_sum(token_logprobs(loaded, row, hidden(loaded, row)), row).view(-1, 2)
        sizes = [[len(r) for r in branches[i].responses] for i in members]
        tokens = torch.tensor(sizes, device=logp.device).view(-1, 2)
        ratio = logp
        if kind.reference:
            held = torch.tensor([reference[i] for i in members], dtype=torch.float64, device=logp.device)
            ratio = logp - held.view(-1, 2)
        fed = ratio / tokens if kind.per_token else ratio
        margin = fed[:, 0] - fed[:, 1]
        values = kind.value(margin, terms.beta, terms.smoothing, terms.gamma)
        if terms.nll:
            values = values - terms.nll * logp[:, 0] / tokens[:, 0]
        kept = ratio.detach()
        return values.sum().float(), {
            "accuracy": float((margin > 0).sum()),
            "margin": terms.beta * float(margin.detach().sum()),
            "chosen": float(kept[:, 0].sum()),
            "rejected": float(kept[:, 1].sum()),
            "chosen_logprob": float(logp.detach()[:, 0].sum()),
        }

    return compute


def watch_chosen(own: bool = True) -> Callable[[int, dict[str, float]], dict[str, float]]:
    """Warn once when the chosen responses become clearly less likely while the margin grows (a watch of the loop).

    Log-ratios are averaged over steps (half-life about seven), since a batch's mean is noisy.

    Args:
        own: the reference is the starting model, so that both began at 0; else they began where the first step
            that is seen finds them.
    """
    began: dict[str, float] = {"chosen": 0.0, "margin": 0.0} if own else {}
    mean: dict[str, float] = {}
    warned = False

    def watch(step: int, figures: dict[str, float]) -> dict[str, float]:
        nonlocal warned
        for name in ("chosen", "margin"):
            began.setdefault(name, figures[name])
            mean[name] = 0.9 * mean.get(name, began[name]) + 0.1 * figures[name]
        lost = began["chosen"] - mean["chosen"]
        if not warned and lost > FALLEN and mean["margin"] > began["margin"]:
            warned = True
            warn(
                f"step {step}: the chosen responses lost {lost:.1f} nats since the start while the margin grows: "
                "add --nll 0.1 or more, raise --beta, or lower --lr"
            )
        return {}

    return watch
