"""A small run folder as the stages would leave it, made in a second: what the report's tests look at."""

from __future__ import annotations

import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xwincli import jsonl, manifest
from xwincli.records import Group, Response, prompt_id
from xwincli.settings import flag
from xwincli.stages import eval_compare

TOPICS = ["tea", "rain", "the moon", "a bicycle", "bread", "an owl", "the sea", "a garden", "snow", "a clock"]
GOOD = [
    "A good thing to know about {t} is that it rewards a little patience.",
    "People enjoy {t} because it makes an ordinary day feel calm and bright.",
    "You can learn a lot about {t} by looking closely and asking questions.",
]
POOR = ["Well, {t}, {t}, {t}, {t}", "It is what it is and", "I like trains, they go fast, and the", "{t}"]
SKILL = {"base": 0.35, "control": 0.4, "rs": 0.7, "dpo": 0.8, "ppo": 0.82}


@dataclass(kw_only=True)
class Config:
    """Options of a pretended stage."""

    data: list[str] = flag([], "")
    seed: int = flag(0, "")


def groups(name: str, prompts: int, n: int, seed: int = 0) -> list[Group]:
    """A model's answers; better models give the good ones more often. One prompt and answer hold markup."""
    rng = random.Random(f"{seed}{name}")
    made = []
    for i in range(prompts):
        topic = TOPICS[i % len(TOPICS)]
        ask = [{"role": "user", "content": f"Tell me one thing about {topic}, in at most {12 + i} words."}]
        checks = [{"kind": "max_words", "value": 12 + i}, {"kind": "mentions", "value": topic.split()[-1]}]
        if i == prompts // 24:
            ask[0]["content"] += " <script>alert('prompt')</script>"
        responses = []
        for j in range(n):
            good = rng.random() < SKILL.get(name, 0.5)
            text = rng.choice(GOOD if good else POOR).format(t=topic)
            if i == prompts // 24 and j == 0:
                text += " <script>alert('answer')</script> & <b>bold</b>"
            score = {"rm": round(rng.gauss(1.5 if good else 0, 0.8), 3)}
            finish = "stop" if good or rng.random() < 0.5 else "length"
            responses.append(Response(text=text, index=j, finish=finish, tokens=len(text) // 4, scores=score))
        pid = prompt_id(ask)
        facts = {"prompt_id": pid, "prompt": ask, "checks": checks, "model": name}
        made.append(Group(id=f"{pid}-{name}", responses=responses, **facts))
    return made


def stage(out: Path, name: str, inputs: list[Path | str], seconds: float, **facts: Any) -> None:
    """Write an artifact's manifest, as if the stage had worked for a while."""
    if not out.suffix:
        out.mkdir(parents=True, exist_ok=True)
    elif not out.exists():
        out.write_text("{}\n", encoding="utf-8")
    plan = manifest.plan(name, Config(), [str(i) for i in inputs])
    machine = {"device": "cpu", "dtype": "bfloat16"}
    manifest.write(out, plan, Config(), started=time.time() - seconds, machine=machine, **facts)


def train(out: Path, name: str, inputs: list[Path | str], seconds: float, figures: dict[str, Any], steps: int) -> None:
    """A model folder with curves; ``figures`` maps a name to a function of the step."""
    out.mkdir(parents=True)
    rows = [{"step": s, **{k: f(s) for k, f in figures.items()}} for s in range(1, steps + 1)]
    (out / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    stage(out, name, inputs, seconds)


def make(folder: Path, *, prompts: int = 24, n: int = 8) -> Path:
    """The demo's artifacts below ``folder``, from pairs to the evaluation of every model."""
    folder.mkdir(parents=True)
    rng = random.Random(3)

    def falling(high: float, low: float) -> Any:
        return lambda s: low + (high - low) * math.exp(-s / 12) + rng.gauss(0, 0.02 * high)

    def path(name: str) -> Path:
        return folder / name

    base = "SmolLM2-135M-Instruct"
    stage(path("pairs.jsonl"), "sample", ["prompts/pair.jsonl", base], 34, counts={"in": 183, "out": 183})
    stage(path("judged.jsonl"), "judge", [path("pairs.jsonl")], 2)
    curves = {"loss": falling(0.7, 0.55), "accuracy": lambda s: 0.5 + 0.2 * (1 - math.exp(-s / 10))}
    train(path("rm"), "train-rm", [path("judged.jsonl"), base], 83, {**curves, "lr": lambda s: 3e-5 / s}, 34)
    stage(path("set.jsonl"), "sample", ["prompts/set.jsonl", base], 67)
    stage(path("scored.jsonl"), "score", [path("set.jsonl"), path("rm")], 31)
    for name, seconds in (("rs", 66), ("control", 66)):
        stage(path(f"{name}.jsonl"), "rs-filter", [path("scored.jsonl")], 0.4, metrics={"gain": 1.3})
        figures = {"loss": falling(2.3, 1.4), "grad_norm": falling(3, 1)}
        train(path(name), "sft", [path(f"{name}.jsonl"), base], seconds, figures, 42)
    stage(path("dpo.jsonl"), "rs-filter", [path("scored.jsonl")], 0.4)
    figures = {"loss": falling(0.69, 0.5), "margin": lambda s: s / 40, "accuracy": lambda s: 0.5 + s / 60}
    train(path("dpo"), "dpo", [path("dpo.jsonl"), path("rs")], 121, figures, 21)
    figures = {"reward": lambda s: s / 5, "kl": lambda s: 0.4 * s, "ended": lambda s: 0.99}
    train(path("ppo"), "ppo", ["prompts/ppo.jsonl", path("rs"), path("rm")], 206, figures, 6)
    answers = []
    for name in SKILL:
        jsonl.write(str(path(f"eval-{name}.jsonl")), groups(name, prompts, n))
        model = base if name == "base" else path(name)
        stage(path(f"eval-{name}.jsonl"), "sample", ["prompts/eval.jsonl", model], 18)
        answers.append(str(path(f"eval-{name}.jsonl")))
    eval_compare.run(eval_compare.Config(files=answers, out=str(path("eval")), names=[",".join(SKILL)], rounds=200))
    return folder
