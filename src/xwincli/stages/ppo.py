"""Proximal policy optimisation of a policy against a reward model.

Each iteration takes the next prompts, draws `--n` rollouts of each from the policy as it is, scores them
with the reward model and learns from them. `--advantage gae` trains a critic beside the policy (it starts
as the reward model, or as `--critic`); `--advantage group` compares each rollout with the others of its
prompt and needs none. The reference that the KL is measured to is the starting model unless named.

    xwin ppo --model rs --rm rm --data prompts.jsonl --advantage group --kl 0.02 --out ppo
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xwincli import formats, launch, manifest, settings
from xwincli.console import say, warn
from xwincli.errors import USAGE, XwinError
from xwincli.records import Prompt
from xwincli.settings import flag, group
from xwincli.train.ppo_options import Optim, Options

if TYPE_CHECKING:
    from collections.abc import Callable

    from xwincli.models import Loaded
    from xwincli.train.ppo_learn import Run
    from xwincli.train.ppo_rollouts import Rollouts


@dataclass(kw_only=True)
class Config(settings.Run):
    """Options of ``xwin ppo``."""

    data: list[str] = flag(["-"], "prompts: files, globs, hf:NAME, or - for standard input; repeatable")
    model: str = flag(help="policy to start from")
    rm: str = flag(help="reward model folder or hub name")
    critic: str = flag("", "reward model the critic starts from, in the policy's vocabulary; empty: the --rm")
    reference: str = flag("", "model the KL is measured to; empty: the starting --model")
    rows: int = flag(128, "rollouts decoded together: speed and memory, not the result", execution=True, low=1)
    rollout: Options = group(Options)
    chat: settings.Chat = group(settings.Chat)
    thinking: settings.Thinking = group(settings.Thinking)
    optim: Optim = group(Optim)


def run(config: Config) -> None:
    """Sample and learn, iteration by iteration, and save the policy."""
    _check(config)
    others = [config.rm, config.reference or config.model, config.critic or config.rm]
    plan_ = manifest.plan("ppo", config, [*config.data, config.model, *others])
    if not config.plan and manifest.skip_if_current(config.out, plan_, config.force):
        return
    rows = list(formats.read(config.data, Prompt, limit=config.limit))
    if config.plan:
        _report(config, rows)
        return
    from xwincli.train import folder, ppo

    run_folder = folder.Folder(config.out, plan_, config, force=config.force, saving=config.saving)
    ready, kept = _load(config, rows)
    manifest.note_template(plan_, ready.policy.template.facts(), config.model)
    options, iterations = config.rollout, _iterations(config, kept)
    rollouts = iterations * options.prompts * options.n
    say(f"{len(kept)} prompts, {iterations} iterations, {rollouts} rollouts, {options.advantage} advantages")
    last = ppo.train(ready, ppo.order(len(kept), options.prompts, iterations, config.seed), run_folder)
    run_folder.counts = {"in": len(rows), "prompts": len(kept), "iterations": iterations, "rollouts": rollouts}
    run_folder.metrics = {k: last[k] for k in ("reward", "score", "kl", "ended", "length", "beta")}
    run_folder.finish(ready.policy, keep_adapter=config.adapt.keep_adapter)


def _iterations(config: Config, prompts: list[Prompt]) -> int:
    return config.rollout.iterations or -(-len(prompts) // config.rollout.prompts)


def _report(config: Config, rows: list[Prompt]) -> None:
    """The plan of the run; no weights are loaded."""
    from xwincli import models
    from xwincli.train import ppo_estimate
    from xwincli.train.rehearsal import sketch

    place = models.place(config.device)
    policy, reward = sketch(config.model, place), sketch(config.rm, place, reward=True)
    _given(config, policy, reward)
    kept = _fitting(rows, [policy, reward], config.rollout.max_tokens)
    reference = sketch(config.reference, place) if config.reference else policy
    critic = sketch(config.critic, place, reward=True) if config.critic else reward
    ppo_estimate.report(
        ppo_estimate.Models(policy, reference, reward, critic if config.rollout.advantage == "gae" else None),
        [len(policy.template.prompt_ids(row.prompt)) for row in kept],
        config,
        config.optim,
        config.rollout,
        _iterations(config, kept),
        config.rows,
    )


def _given(config: Config, policy: Loaded, reward: Loaded) -> None:
    """Tell both templates the arguments; warns where they differ."""
    policy.template = policy.template.given(config.chat.template_arg)
    reward.template = reward.template.given(config.chat.template_arg, all_read=False)
    if reward.template.differs(policy.template.facts()):
        warn(f"{config.rm}: reads its own chat template; the policy {config.model} writes with another")


def _check(config: Config) -> None:
    """Refuse what cannot work before anything is loaded."""
    launch.alone("ppo", config.cluster)
    options = config.rollout
    if options.score_shift != "auto":
        try:
            float(options.score_shift)
        except ValueError:
            raise XwinError(f"--score-shift is {options.score_shift!r}", "a number, or auto", USAGE) from None
    if options.advantage == "group" and options.n < 2:
        raise XwinError("--advantage group compares rollouts of one prompt, --n is 1", "use --n 2 or more", USAGE)
    if options.advantage == "group" and config.critic:
        raise XwinError("--critic is given, but --advantage group has no critic", "use --advantage gae", USAGE)


def _load(config: Config, rows: list[Prompt]) -> tuple[Run, list[Prompt]]:
    """Every model where it is needed, wired up, and the prompts that fit them."""
    from xwincli import models, scoring, states, weights
    from xwincli.train import loop
    from xwincli.train.ppo_learn import Run

    place = models.place(config.device)
    policy = models.load_policy(config.model, place, train=True, quantize=config.adapt.quantize)
    reward = models.load_reward(config.rm, place)
    _given(config, policy, reward)
    kept = _fitting(rows, [policy, reward], config.rollout.max_tokens)
    # the reference computes just as the policy does, so that at the start their distance is exactly 0
    four = config.adapt.quantize
    reference = models.load_policy(config.reference or config.model, place, train=True, quantize=four)
    reference.model.requires_grad_(False)
    critic = None
    if config.rollout.advantage == "gae":
        critic = models.load_reward(config.critic or config.rm, place, train=True, quantize=four)
    for other in (reference, *([critic] if critic else [])):
        other.template = other.template.given(config.chat.template_arg, all_read=False)
        policy.template.check_same(other.template, config.model, other.name)
    optim, named = config.optim, weights.adapt(policy, config.adapt, config.seed)
    groups = [([(f"policy.{n}", p) for n, p in named], optim.lr)]
    if critic:
        named = weights.adapt(critic, config.adapt, config.seed)
        groups.append(([(f"critic.{n}", p) for n, p in named], optim.value_lr or optim.lr))
    draw = _drawing(config, policy, kept)
    for each in (policy, reference, reward, *([critic] if critic else [])):
        states.prepare(each)
    ready = Run(
        policy=policy,
        reference=reference,
        critic=critic,
        draw=draw,
        score=lambda items: scoring.rewards(reward, items, optim.max_tokens_per_row),
        parameters=[pair for named, _ in groups for pair in named],
        opt=loop.optimizer([*groups], optim, eps=1e-5),
        options=config.rollout,
        optim=optim,
        seed=config.seed,
        values_shifted=not config.critic,
    )
    return ready, kept


def _fitting(rows: list[Prompt], readers: list[Loaded], new: int) -> list[Prompt]:
    """The prompts that with their longest rollout fit the context of every model that reads them."""

    def fits(row: Prompt, loaded: Loaded) -> bool:
        limit = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
        # a reward model renders the response anew, with what its template writes after it
        return not limit or len(loaded.template.prompt_ids(row.prompt)) + new + 16 <= limit

    kept = [row for row in rows if all(fits(row, loaded) for loaded in readers)]
    if len(kept) < len(rows):
        warn(f"{len(rows) - len(kept)} prompts with {new} new tokens do not fit the context and are left out")
    if not kept:
        raise XwinError("no prompt is left to learn from", "see --max-tokens, and `xwin check` on the data")
    return kept


def _drawing(config: Config, policy: Loaded, rows: list[Prompt]) -> Callable[[list[int], int], Rollouts]:
    """How rollouts are drawn: by the native engine, as exact token ids, from the policy as it is at the time.

    To be made before the policy is prepared for row attention, which knows no plain forward: where the
    engine must go the slow way (transformers' own ``generate``), it is lent the attention from before.
    """
    from xwincli import attention
    from xwincli.chat import split_thinking
    from xwincli.engines import Ask
    from xwincli.engines.native import Native
    from xwincli.rows import Branch
    from xwincli.train.ppo_rollouts import Rollouts

    options, model = config.rollout, policy.model
    engine, plain = Native(policy, config.rows), model.config._attn_implementation
    sampling = settings.Sampling(n=options.n, temperature=options.temperature, max_tokens=options.max_tokens)

    def said(ids: list[int]) -> str:
        text = policy.template.answer(ids)
        return split_thinking(text)[1] if config.thinking.split_thinking else text

    def draw(numbers: list[int], seed: int) -> Rollouts:
        asks = [
            Ask(key=str(k), messages=rows[i].prompt, n=options.n, prompt_id=f"{rows[i].id}/{k}")
            for k, i in enumerate(numbers)
        ]
        branches: list[Branch | None] = [None] * len(asks)
        answers: list[list[tuple[str, bool]]] = [[] for _ in asks]
        if engine.obstacle:
            model.set_attn_implementation(plain)
        for ask, drawn in engine.draw(asks, sampling, seed):
            if isinstance(drawn, XwinError):
                raise drawn
            k = int(ask.key)
            branches[k] = Branch(policy.template.prompt_ids(ask.messages), [d.ids for d in drawn])
            answers[k] = [(said(d.ids), d.finish == "stop") for d in drawn]
        if engine.obstacle and model.xwin_branches:
            model.set_attn_implementation(attention.NAME)
        whole = [b for b in branches if b is not None]
        assert len(whole) == len(asks), "the engine left a prompt unanswered"
        return Rollouts(whole, [(ask.messages, texts) for ask, texts in zip(asks, answers)])

    return draw
