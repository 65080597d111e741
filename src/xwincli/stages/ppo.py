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

from xwincli import formats, manifest, settings
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
    rollout: Options = group(Options)
    optim: Optim = group(Optim)


def run(config: Config) -> None:
    """Sample and learn, iteration by iteration, and save the policy."""
    _check(config)
    others = [config.rm, config.reference or config.model, config.critic or config.rm]
    plan_ = manifest.plan("ppo", config, [*config.data, config.model, *others])
    if manifest.skip_if_current(config.out, plan_, config.force):
        return
    rows = list(formats.read(config.data, Prompt, limit=config.limit))
    from xwincli.train import folder, ppo

    run_folder = folder.Folder(config.out, plan_, config, force=config.force)
    members, rows, dropped = _team(config, rows)
    options = config.rollout
    iterations = options.iterations or -(-len(rows) // options.prompts)
    rollouts = iterations * options.prompts * options.n
    say(f"{len(rows)} prompts, {iterations} iterations, {rollouts} rollouts, {options.advantage} advantages")
    turns = ppo.order(len(rows), options.prompts, iterations, config.seed)
    last = ppo.train(members, turns, run_folder)
    run_folder.counts = {
        "in": len(rows) + dropped, "prompts": len(rows), "iterations": iterations, "rollouts": rollouts
    }  # fmt: skip
    run_folder.metrics = {k: last[k] for k in ("reward", "score", "kl", "ended", "length", "beta")}
    run_folder.finish(members.policy, keep_adapter=config.adapt.keep_adapter)


def _check(config: Config) -> None:
    """Refuse what cannot work before anything is loaded."""
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
