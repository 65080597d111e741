"""Direct preference optimisation of a policy on pairs, with the losses of its family.

The reference is the starting model, or `--reference-model`; its log-probabilities are computed once, before the
first step, and no second model stays in memory; a run that is killed goes on with those it has. `--reference FILE`
keeps them, so that a sweep over beta or losses computes them once: a file made of other pairs, another model or
another template is refused.

    xwin dpo --model rs --data pairs.jsonl --beta 0.1 --out dpo
    xwin dpo --model rs --data pairs.jsonl --loss ipo --reference ref.jsonl --out ipo
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xwincli import formats, launch, manifest, settings
from xwincli.console import say
from xwincli.errors import USAGE, XwinError
from xwincli.records import Pair
from xwincli.settings import flag, group

if TYPE_CHECKING:
    from xwincli.models import Loaded
    from xwincli.rows import Branch
    from xwincli.train.dpo import Terms
    from xwincli.train.ledger import Ledger
    from xwincli.train.reference import Source

ROUND = 16  # packed rows of reference log-probabilities that a process computes between two entries in the journal
CHOICES = ("sigmoid", "cdpo", "robust", "hinge", "ipo", "ipo-sum", "length-normalised", "simpo")


@dataclass(kw_only=True)
class Optim(settings.Optim):
    """The recipe's defaults for DPO."""

    lr: float = flag(5e-7, "peak learning rate", low=0.0)


@dataclass(kw_only=True)
class Config(settings.RowsRun):
    """Options of ``xwin dpo``."""

    data: list[str] = flag(["-"], "pairs: files, globs, hf:NAME, or - for standard input; repeatable")
    model: str = flag(help="policy to start from, and the reference")
    loss: str = flag("sigmoid", "ipo takes means over tokens, ipo-sum sums; simpo has no reference", choices=CHOICES)
    beta: float = flag(0.0, "tie to the reference; 0: the loss's usual (.1; length-normalised 5; simpo 2)", low=0.0)
    smoothing: float = flag(0.0, "cdpo, robust: share of the labels taken to be wrong", low=0.0, high=0.49)
    gamma: float = flag(0.0, "simpo: lead in reward that is asked for (its paper: .3 to 1.6)", low=0.0)
    nll: float = flag(0.0, "weight of the chosen's mean negative log-likelihood a token", low=0.0)
    reference: str = flag("", "file of reference log-probabilities: used if it is there, else made", execution=True)
    reference_model: str = flag("", "another reference than --model: folder, hub name, adapter or .gguf")
    max_length: int = flag(4096, "drop (and count) pairs with a side of more tokens; nothing is cut", low=8)
    chat: settings.Chat = group(settings.Chat)
    optim: Optim = group(Optim)
    probe: settings.Probe = group(settings.Probe)


@launch.ranks("dpo")
def run(config: Config) -> None:
    """Train and save."""
    terms = _terms(config)
    models_ = [m for m in (config.model, config.reference_model) if m]
    plan = manifest.plan("dpo", config, [*config.data, *models_])
    if not (config.show or config.plan) and manifest.skip_if_current(config.out, plan, config.force):
        return
    rows = list(formats.read(config.data, Pair, limit=config.limit))
    from xwincli import models, states, weights
    from xwincli.train import dpo, folder, health, loop, preflight, rehearsal, valid
    from xwincli.train.show import show

    place, four = models.place(config.device), config.adapt.quantize
    if config.plan:
        loaded = rehearsal.sketch(config.model, place)
    else:
        loaded = models.load_policy(config.model, place, train=True, quantize=four)
    loaded.template = loaded.template.given(config.chat.template_arg)
    manifest.note_template(plan, loaded.template.facts(), config.model)
    branches, names, ledger = _tokenise(rows, loaded, config)
    if config.show:
        show(branches, loaded.tokenizer, config.show, [("chosen", "rejected")] * len(branches))
        return
    prompts = {row.id: row.prompt_id for row in rows}
    held_out = valid.split([prompts[n] for n in names], config)
    if config.plan:
        _report(branches, held_out, loaded, config)
        return
    preflight.report(preflight.pairs(branches, loaded.template))
    reference = _reference(branches, loaded, config) if dpo.LOSSES[config.loss].reference else None
    run_folder = folder.Folder(config.out, plan, config, force=config.force, saving=config.saving)
    asked = [[*row.prompt, *row.chosen[:-1]] for row in rows]
    probe = health.begin(loaded, config.probe, asked, branches, config.seed, config.cluster)
    states.prepare(loaded)
    before = reference(run_folder.part) if reference else []
    work = loop.Work(
        name="dpo",
        weights=[(weights.adapt(loaded, config.adapt, config.seed), config.optim.lr)],
        objective=dpo.objective(loaded, branches, before, terms),
        lengths=[len(b) for b in branches],
        units=[1] * len(branches),
        ids=names,
        held=held_out,
        schedule=valid.Schedule.of(config),
        model=loaded.model,
        cluster=config.cluster,
        watch=health.together(dpo.watch_chosen(own=not config.reference_model) if reference else None, probe),
    )
    steps = loop.fit(work, config.optim, config.seed, run_folder, loaded.place)
    run_folder.metrics |= probe.close() if probe else {}
    run_folder.counts = {"in": len(rows), "pairs": len(branches), "dropped": ledger.counts(), "steps": steps}
    run_folder.finish(loaded, keep_adapter=config.adapt.keep_adapter)


def _terms(config: Config) -> Terms:
    """The loss and its settings; an option that means nothing to it is refused."""
    from xwincli.train.dpo import LOSSES, Terms

    kind = LOSSES[config.loss]
    for name in ("smoothing", "gamma"):
        if getattr(config, name) and name not in kind.uses:
            users = ", ".join(k for k, v in LOSSES.items() if name in v.uses)
            raise XwinError(f"--{name} means nothing to --loss {config.loss}", f"it is for: {users}", USAGE)
    if "smoothing" in kind.uses and not config.smoothing:
        raise XwinError(f"--loss {config.loss} needs --smoothing", "the share of wrong labels, such as 0.1", USAGE)
    if not kind.reference and (config.reference or config.reference_model):
        raise XwinError(f"--loss {config.loss} has no reference", "leave --reference and --reference-model out", USAGE)
    if config.reference and not Path(config.reference).suffix:
        raise XwinError(f"--reference is {config.reference}", "name a file, such as reference.jsonl", USAGE)
    beta = config.beta or kind.beta
    return Terms(config.loss, beta, config.smoothing, config.gamma, config.nll)


def _tokenise(rows: list[Pair], loaded: Loaded, config: Config) -> tuple[list[Branch], list[str], Ledger]:
    """Pairs as branches, with the id of each; equal sides and what is too long are left out and counted."""
    from xwincli import scoring
    from xwincli.train.dpo import as_branch
    from xwincli.train.ledger import Ledger

    ledger = Ledger("pairs", {"too long": "raise --max-length", "with equal sides": "see xwin check"})
    limit = min(config.max_length, scoring.context(loaded))
    branches: list[Branch] = []
    names: list[str] = []
    for row in rows:
        ids = as_branch(loaded, row)
        if not all(ids.responses):
            ledger.drop("without a token on one side", row.id)
        elif ids.responses[0] == ids.responses[1]:
            ledger.drop("with equal sides", row.id)
        elif len(ids.prompt) + max(map(len, ids.responses)) > limit:
            ledger.drop("too long", row.id)
        else:
            ledger.keep()
            branches.append(ids)
            names.append(row.id)
    ledger.close(config.max_drop)
    return branches, names, ledger


def _report(branches: list[Branch], held_out: list[int], loaded: Loaded, config: Config) -> None:
    """The plan, with the pass over the reference unless a file stands for it."""
    from xwincli.train import estimate, reference, rehearsal
    from xwincli.train.dpo import LOSSES

    before = estimate.Before()
    found = config.reference and reference.recall(Path(config.reference), branches, _source(loaded, config))
    if branches and LOSSES[config.loss].reference and not found:
        read = rehearsal.sketch(config.reference_model, loaded.place) if config.reference_model else loaded
        adapt = settings.Adapt() if config.reference_model else config.adapt
        capacity, another = config.optim.max_tokens_per_row, bool(config.reference_model)
        before = estimate.reading(read, adapt, branches, capacity, another=another)
    answered = sum(len(r) for b in branches for r in b.responses)
    learned = [b for i, b in enumerate(branches) if i not in set(held_out)]
    estimate.report(loaded, learned, config, config.optim, f"{answered} response tokens", before)


def _source(loaded: Loaded, config: Config) -> Source:
    """What the reference's log-probabilities are tied to."""
    from xwincli.train.reference import Source

    dtype = str(loaded.place.dtype).removeprefix("torch.")
    if config.adapt.quantize != "none" and not config.reference_model:  # the policy itself is read, in four bits
        dtype += f" {config.adapt.quantize}"
    return Source(config.reference_model or config.model, loaded.template.digest, dtype)


def _reference(branches: list[Branch], loaded: Loaded, config: Config) -> Callable[[Path], list[list[float]]]:
    """What gives, once the run's own folder is there, the log-probabilities under the reference.

    They are ``--reference``'s, which is refused at once if it does not fit; else those of the policy as it stands
    when called, or of another model, which is then let go. Without ``--reference`` the run keeps them in its folder.
    """
    from xwincli import models, scoring
    from xwincli.train import parallel, reference

    capacity = config.optim.max_tokens_per_row

    def begin() -> reference.Work:
        model = loaded
        if config.reference_model:
            model = models.load_policy(config.reference_model, loaded.place, train=True)
            model.template = model.template.given(config.chat.template_arg, all_read=False)
            loaded.template.check_same(model.template, config.model, config.reference_model)
        work = lambda part: scoring.logprobs(model, part, capacity)
        return lambda pairs: parallel.shared(pairs, work, loaded.place, config.cluster)

    source = _source(loaded, config)
    found = reference.recall(Path(config.reference), branches, source) if config.reference else None

    def values(folder: Path) -> list[list[float]]:
        if found:
            return found
        parallel.begin(loaded.place, config.cluster)
        path = Path(config.reference or folder / "reference.jsonl")
        made = reference.make(path, branches, source, config, begin, ROUND * capacity * parallel.world())
        if config.reference:
            say(f"kept {path}: reference log-probabilities of {len(branches)} pairs")
        return made

    return values
