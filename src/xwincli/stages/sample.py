"""Draw n responses to every prompt from a policy.

    xwin sample --model sft --data prompts.jsonl --n 64 --temperature 0.8 --out groups.jsonl

Each response has a random stream of its own, from the seed, the prompt and its index, so neither order nor
neighbours nor an interruption reach it. What a prompt carries (checks, reference, category) travels along.

On several machines, `--shard 1/8` to `--shard 8/8` share the prompts out, each with a journal and file of its own;
whoever finishes last joins them. `--gpus 8` does the same on one machine. The numbers a model computes depend in their
last digits on what it computes beside them, which now and then turns a near-tie between two tokens;
`--deterministic` takes that away as well.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from xwincli import formats, launch, manifest, settings, shards
from xwincli.console import Progress, progress, warn
from xwincli.errors import USAGE, XwinError
from xwincli.journal import Journal
from xwincli.records import Group, Prompt, Response, content_id, prompt_id
from xwincli.settings import flag, group

if TYPE_CHECKING:
    from xwincli.engines import Ask, Engine


@dataclass(kw_only=True)
class Config:
    """Options of ``xwin sample``."""

    data: list[str] = flag(["-"], "prompts: files, globs, hf:NAME, or - for standard input; repeatable")
    out: str = flag("-", "file of groups to write, or - for standard output")
    system: str = flag("", "file whose text is every prompt's system message, in place of its own")
    model: str = flag("", "policy: folder, hub name, adapter or .gguf; with --engine openai the server's name for it")
    engine: str = flag("native", "what answers", choices=("native", "vllm", "openai", "echo"))
    server: settings.Server = group(settings.Server)
    sampling: settings.Sampling = group(settings.Sampling)
    unique: bool = flag(False, "draw repeated responses of a prompt again")
    unique_rounds: int = flag(4, "how often at most", low=1)
    deterministic: bool = flag(
        False, "decode prompts in fixed blocks of --rows: shards, resuming and merging give equal bytes"
    )
    rows: int = flag(128, "responses decoded together: speed and memory, not the result", execution=True, low=1)
    max_batch_tokens: int = flag(
        0, "keys and values held at once, in tokens; 0: whatever --rows needs", execution=True, low=0
    )
    seed: int = flag(0, "of all draws")
    limit: int = flag(0, "use only the first prompts; 0 uses all", low=0)
    allow_failed: float = flag(0.0, "share of prompts that may fail (too long)", low=0.0, high=1.0)
    force: bool = flag(False, "start anew even if the result or a journal is there", execution=True)
    chat: settings.Chat = group(settings.Chat)
    thinking: settings.Thinking = group(settings.Thinking)
    scale: settings.Scale = group(settings.Scale)
    device: settings.Device = group(settings.Device)

    def __post_init__(self) -> None:
        if self.engine in ("vllm", "openai") and self.deterministic:
            message = f"--deterministic cannot be promised for --engine {self.engine}"
            raise XwinError(message, "--engine native decodes in blocks of its own", USAGE)
        if self.engine == "openai" and not self.server.base_url:
            hint = "such as http://127.0.0.1:8000/v1; the API is https://api.openai.com/v1"
            raise XwinError("--engine openai needs --base-url", hint, USAGE)
        if self.engine == "openai" and self.scale.gpus > 1:
            raise XwinError("--gpus means nothing to --engine openai", "the server has them", USAGE)


def run(config: Config) -> None:
    """Sample and write."""
    plan = _plan(config)
    block = max(config.rows // config.sampling.n, 1) if config.deterministic else 1
    shard = shards.Shard.parse(config.scale.shard, block)
    if shards.done(config.out, plan, shard, config.force) or launch.fan_out("sample", config):
        return
    prompts: Iterator[Prompt] = formats.read(config.data, Prompt, limit=config.limit)
    if config.system:
        text = _system(config.system)
        prompts = (_under(text, prompt) for prompt in prompts)
    total = formats.count(config.data, Prompt, limit=config.limit)
    with Journal(
        config.out, plan, config, allow_failed=config.allow_failed, force=config.force, shard=shard
    ) as journal:
        from xwincli import engines

        engine = engines.find(
            config.engine,
            config.model,
            config.device,
            config.rows,
            tokens=config.max_batch_tokens,
            server=config.server,
            template_arguments=_template_arguments(config),
        )
        journal.machine = engine.facts()
        facts = _template(engine, plan, config)
        with progress("sample", shard.count(total) if total else None, "prompts", journal.finished) as bar:
            journal.metrics = _draw(journal, prompts, engine, config, facts, bar)
        if not journal.rows:
            raise XwinError(f"{', '.join(config.data)}: no rows")
    shards.settle(config.out, plan, shard)


def _system(path: str) -> str:
    """The text of ``--system``."""
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as e:
        raise XwinError(f"--system {path}: cannot read it: {e}", "a file of plain text", USAGE) from None
    if not text:
        raise XwinError(f"--system {path}: is empty", "leave --system out", USAGE)
    return text


def _under(text: str, prompt: Prompt) -> Prompt:
    """A prompt under another system message: another prompt, with an id of its own."""
    rest = [m for m in prompt.prompt if m["role"] != "system"]
    messages = [{"role": "system", "content": text}, *rest]
    return msgspec.structs.replace(prompt, id=prompt_id(messages), prompt=messages)


def _draw(
    journal: Journal, prompts: Iterable[Prompt], engine: Engine, config: Config, facts: dict[str, str], bar: Progress
) -> dict[str, float]:
    """Let the engine answer what is not yet finished; returns the receipt over all responses."""
    receipt, started = Receipt.of(journal.recovered()), time.monotonic()
    open_: dict[str, Prompt] = {}
    answers = _distinct if config.unique else _plain
    portions = journal.blocks(prompts) if config.deterministic else [journal.todo(prompts)]
    asks = (_asks(portion, open_, config.sampling.n) for portion in portions)
    for key, answer in chain.from_iterable(answers(engine, some, config) for some in asks):
        prompt = open_.pop(key)
        if key in journal.index:  # its block was cut off by a kill and is decoded again as a whole
            continue
        if isinstance(answer, XwinError):
            journal.fail(key, prompt, answer.message)
        else:
            journal.add(key, [_group(prompt, answer, config, facts)])
            receipt.add(answer)
        bar.advance(note=receipt.note(time.monotonic() - started))
    speed = receipt.fresh_tokens / max(time.monotonic() - started, 1e-9)
    return {**receipt.metrics(config.unique), "tokens_per_second": round(speed, 1)}


def _plan(config: Config) -> manifest.Manifest:
    """What decides the result; a server's model is a name there, no file, and found out where it has only one."""
    if config.engine != "openai":
        files = [*config.data, *filter(None, (config.model, config.system))]
        plan = manifest.plan("sample", config, files)
        plan["config"]["system"] = bool(config.system)  # where the file lies does not matter
        if config.deterministic:
            plan["config"] |= {"rows": config.rows, "max_batch_tokens": config.max_batch_tokens}
        return plan
    if not config.model:
        from xwincli.engines.openai import served

        config.model = served(config.server)
    plan = manifest.plan("sample", config, [*config.data, *filter(None, (config.system,))])
    plan["config"] |= {"model": config.model, "system": bool(config.system)}
    return plan


def _template_arguments(config: Config) -> dict[str, Any]:
    """What a server's chat template is told: the engine sends it along."""
    if config.engine != "openai" or not config.chat.template_arg:
        return {}
    from xwincli.chat.arguments import parse_arguments

    return parse_arguments(config.chat.template_arg)


def _template(engine: Any, plan: manifest.Manifest, config: Config) -> dict[str, str]:
    """Tell a policy's template its arguments; the digests of what it writes with (none where we write no template)."""
    loaded = getattr(engine, "loaded", None)
    if loaded is None:
        if config.chat.template_arg and config.engine != "openai":
            raise XwinError(f"--template-arg means nothing to --engine {config.engine}", "leave it out", USAGE)
        return {}
    loaded.template = loaded.template.given(config.chat.template_arg)
    facts: dict[str, str] = loaded.template.facts()
    manifest.note_template(plan, facts, config.model)
    return facts


def _asks(rows: Iterable[tuple[str, Prompt]], open_: dict[str, Prompt], n: int) -> Iterator[Ask]:
    from xwincli.engines import Ask

    for key, prompt in rows:
        open_[key] = prompt
        repeat = "".join(key.partition("#")[1:])  # a row that stands twice in the data gets draws of its own
        yield Ask(key, prompt.prompt, n, prompt_id(prompt.prompt) + repeat)


Answers = Iterator[tuple[str, "list[Response] | XwinError"]]


def _plain(engine: Engine, asks: Iterable[Ask], config: Config) -> Answers:
    from xwincli.chat import set_thinking_aside

    for key, answer in engine.generate(asks, config.sampling, config.seed):
        if config.thinking.split_thinking and not isinstance(answer, XwinError):
            set_thinking_aside(answer)
        yield key, answer


def _distinct(engine: Engine, asks: Iterable[Ask], config: Config) -> Answers:
    """The engine's answers with repeated texts replaced: further draws go on in the prompt's stream of indices.

    They join the prompts still to come, so the engine stays full.
    """
    rounds = config.unique_rounds if config.sampling.temperature else 0
    found: dict[str, tuple[Ask, int, list[Response]]] = {}
    again: deque[Ask] = deque()
    new = iter(asks)

    def feed() -> Iterator[Ask]:
        while True:
            if again:
                yield again.popleft()
            elif ask := next(new, None):
                found[ask.key] = (ask, 0, [])
                yield ask
            else:
                return

    while True:
        for key, answer in _plain(engine, feed(), config):
            ask, turn, responses = found.pop(key)
            if isinstance(answer, XwinError):
                yield key, answer
                continue
            responses += answer
            missing = ask.n - len({r.text for r in responses})
            if missing and turn < rounds:
                found[key] = (ask, turn + 1, responses)
                again.append(msgspec.structs.replace(ask, n=missing, first=len(responses)))
            else:
                yield key, _first_distinct(responses, ask.n)
        if not again:
            return


def _first_distinct(responses: list[Response], n: int) -> list[Response]:
    """The first ``n`` different texts; where there are fewer, repeats fill up. Indices are 0 … n-1."""
    seen: set[str] = set()
    new = [r for r in responses if not (r.text in seen or seen.add(r.text))]  # type: ignore[func-returns-value]
    kept = new[:n] + [r for r in responses if r not in new][: max(n - len(new), 0)]
    kept.sort(key=lambda r: r.index)
    for i, r in enumerate(kept):
        r.index = i
    return kept


def _group(prompt: Prompt, responses: list[Response], config: Config, facts: dict[str, str]) -> Group:
    sampling = {**asdict(config.sampling), "seed": config.seed, "engine": config.engine, **facts}
    if config.unique:
        sampling["unique"] = True
    carried = {f: getattr(prompt, f) for f in ("prompt", "checks", "reference", "contexts", "category", "extra")}
    return Group(
        id=content_id(prompt.id, config.model, sampling),
        prompt_id=prompt_id(prompt.prompt),
        responses=responses,
        model=config.model or config.engine,
        sampling=sampling,
        **carried,
    )


class Receipt:
    """Figures over all responses, those of an earlier, interrupted run included."""

    def __init__(self) -> None:
        self.responses = self.tokens = self.ended = self.repeated = self.fresh_tokens = 0

    @classmethod
    def of(cls, rows: Iterable[dict[str, Any]]) -> Receipt:
        """Start from groups that are finished already."""
        receipt = cls()
        for row in rows:
            receipt.count([(r["text"], r.get("finish"), r.get("tokens", 0)) for r in row["responses"]])
        return receipt

    def add(self, responses: list[Response]) -> None:
        """Count a group finished in this run."""
        self.count([(r.text, r.finish, r.tokens or 0) for r in responses])
        self.fresh_tokens += sum(r.tokens or 0 for r in responses)

    def count(self, responses: list[tuple[str, str | None, int]]) -> None:
        """Count (text, finish, tokens) of one group."""
        self.responses += len(responses)
        self.repeated += len(responses) - len({text for text, _, _ in responses})
        self.ended += sum(finish == "stop" for _, finish, _ in responses)
        self.tokens += sum(tokens for _, _, tokens in responses)

    def note(self, seconds: float) -> str:
        """For the progress line."""
        n = max(self.responses, 1)
        speed = self.fresh_tokens / max(seconds, 1e-9)
        return f"{speed:.0f} tok/s · {self.ended / n:.0%} ended · {self.tokens / n:.0f} tokens mean"

    def metrics(self, unique: bool) -> dict[str, float]:
        """For the manifest; warns of what the user should look at."""
        n = max(self.responses, 1)
        if unique and self.repeated:
            warn(f"{self.repeated} of {self.responses} responses stayed repeats: see --unique-rounds, --temperature")
        if self.ended < 0.5 * n:
            warn(f"{1 - self.ended / n:.0%} of the responses were cut off: see --max-tokens")
        return {
            "responses": self.responses,
            "tokens": self.tokens,
            "ended": self.ended / n,
            "mean_tokens": self.tokens / n,
            "repeated": self.repeated / n,
        }
