"""The options of PPO, declared once for the stage's flags and for the trainer; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from xwincli import settings
from xwincli.settings import flag


@dataclass(kw_only=True)
class Optim(settings.Optim):
    """The recipe's defaults for PPO's updates."""

    lr: float = flag(3e-6, "peak learning rate of the policy", low=0.0)
    value_lr: float = flag(0.0, "peak learning rate of the critic; 0 means the policy's", low=0.0)
    schedule: str = flag("linear", "after warm-up", choices=("cosine", "linear", "constant"))
    warmup: float = flag(0.0, "share of the updates to warm up over", low=0.0, high=1.0)
    epochs: int = flag(4, "passes over an iteration's rollouts", low=1, name="ppo_epochs")
    batch: int = flag(0, "prompts (with their rollouts) per update; 0: all", low=0, name="minibatch")


@dataclass(kw_only=True)
class Options:
    """What PPO optimises, and how its rollouts are drawn."""

    advantage: str = flag(
        "gae", "gae: from a critic; group: over the mean of the prompt's rollouts", choices=("gae", "group")
    )
    iterations: int = flag(0, "rounds of sampling and learning; 0 means one pass over the prompts", low=0)
    prompts: int = flag(16, "prompts per iteration", low=1)
    n: int = flag(8, "rollouts per prompt", low=1)
    temperature: float = flag(0.7, "of the rollouts; log-probabilities are taken at it too", low=0.01)
    max_tokens: int = flag(512, "new tokens per rollout at most", low=1)
    kl: float = flag(0.05, "beta: what a nat of distance to the reference costs", low=0.0)
    adaptive_kl: bool = flag(False, "steer beta so that the sequence KL nears --kl-target")
    kl_target: float = flag(6.0, "sequence KL (nats) that --adaptive-kl steers to", low=1e-6)
    kl_horizon: int = flag(10_000, "rollouts over which --adaptive-kl may change beta by a fifth", low=1)
    no_end_penalty: float = flag(1.0, "taken off the score of a rollout that did not end by itself", low=0.0)
    score_shift: str = flag("auto", "added to the scores; auto: so that the first iteration's average 0")
    ratio_clip: float = flag(0.2, "how far a ratio may move from 1 before its gain is cut", low=0.0)
    value_clip: float = flag(0.2, "how far a value may move from the old one before its gain is cut", low=0.0)
    vf_coef: float = flag(0.1, "weight of the critic's loss", low=0.0)
    gamma: float = flag(1.0, "discount per token", low=0.0, high=1.0)
    lam: float = flag(0.95, "lambda of generalised advantage estimation", low=0.0, high=1.0)
    whiten_rewards: bool = flag(False, "scale the per-token rewards to unit variance (their mean stays)")
    group_std: bool = flag(False, "with --advantage group: divide by the group's standard deviation")
