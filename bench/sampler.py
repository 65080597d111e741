"""One contender of the sampling benchmark, in a process of its own: WHO FOLDER JOB, the job as JSON.

Prints one line of JSON: tokens drawn, seconds, peak resident memory in MB, how many responses. The clock runs from
the first prompt's prefill to the last token; loading and tokenising do not count. A response has either a length
given beforehand (the same for every contender, random models have no end of their own) or its own end.
"""

from __future__ import annotations

import itertools
import json
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

TEMPERATURE = 0.8


def by_xwin(loaded: Any, prompts: list[list[int]], job: dict[str, Any]) -> tuple[int, float]:
    """The native engine, as ``xwin sample`` drives it."""
    from xwincli.engines.native import batch as module
    from xwincli.engines.native.draw import Choice

    stops = frozenset() if job["lengths"] else frozenset(loaded.template.stop_ids)
    rules = module.Rules(Choice(TEMPERATURE), 0, stops)
    body = module.Body(loaded.model, loaded.place.dtype)
    body.linears.pack()  # as the engine of xwin sample does
    batch = (
        _given(body, rules, job["rows"], job["lengths"]) if job["lengths"] else module.Batch(body, rules, job["rows"])
    )
    requests = [module.Request(str(i), p, job["n"], 0, str(i), job["most"]) for i, p in enumerate(prompts)]
    begun = time.perf_counter()
    tokens = sum(len(d.ids) for _, d in batch.run(requests))
    return tokens, time.perf_counter() - begun


def _given(body: Any, rules: Any, rows: int, lengths: list[list[int]]) -> Any:
    """A batch whose responses have given lengths."""
    from xwincli.engines.native.batch import Batch

    class Given(Batch):
        def _draw(self, r: slice, logits: torch.Tensor) -> list[int]:
            if not self.age[r].any():  # they enter
                for row in range(r.start, r.stop):
                    key = int(self.prompts[int(self.prompt_of[row])].request.key)
                    self.limit[row] = lengths[key][int(self.index[row])]
            return super()._draw(r, logits)

    return Given(body, rules, rows)


def by_generate(loaded: Any, prompts: list[list[int]], job: dict[str, Any]) -> tuple[int, float]:
    """transformers' ``generate``: with given lengths a prompt at a time with its n responses, else padded batches."""
    from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

    class Lengths(StoppingCriteria):
        def __init__(self, start: int, lengths: torch.Tensor) -> None:
            self.start, self.lengths = start, lengths

        def __call__(self, ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
            return ids.shape[1] - self.start >= self.lengths

    pad = loaded.tokenizer.pad_token_id or 0
    stops = [] if job["lengths"] else sorted(loaded.template.stop_ids)
    each = max(job["batch"] // job["n"], 1)
    tokens, begun = 0, time.perf_counter()
    for first in range(0, len(prompts), each):
        some = [p for p in prompts[first : first + each] for _ in range(job["n"])]
        longest = max(map(len, some))
        ids = torch.tensor([[pad] * (longest - len(p)) + p for p in some])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in some])
        lengths = torch.tensor([x for row in job["lengths"][first : first + each] for x in row])
        more: dict[str, Any] = {}
        if len(lengths):
            more["stopping_criteria"] = StoppingCriteriaList([Lengths(longest, lengths)])
        config = GenerationConfig(
            do_sample=True, temperature=TEMPERATURE, top_k=0, max_new_tokens=job["most"], pad_token_id=pad,
            eos_token_id=stops or None,
        )  # fmt: skip
        out = loaded.model.generate(ids, attention_mask=mask, generation_config=config, **more)
        if len(lengths):
            tokens += int(lengths.sum())
        else:
            ends = torch.isin(out[:, longest:], torch.tensor(stops)).long()
            tokens += int((ends.cumsum(1) - ends == 0).sum())
    return tokens, time.perf_counter() - begun


def by_batching(loaded: Any, prompts: list[list[int]], job: dict[str, Any]) -> tuple[int, float]:
    """transformers' continuous batching, so many responses in flight as its cache holds; warming up is not timed."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    page = job.get("page", 256)
    blocks = job["live"] * (-(-(max(map(len, prompts)) + job["most"]) // page) + 1)
    config = ContinuousBatchingConfig(page_size=page, num_blocks=blocks, max_batch_tokens=job["batch"], seed=0)
    stops = [-1] if job["lengths"] else sorted(loaded.template.stop_ids)
    generation = GenerationConfig(
        do_sample=True, temperature=TEMPERATURE, top_k=0, max_new_tokens=job["most"], eos_token_id=stops,
        pad_token_id=loaded.tokenizer.pad_token_id or 0,
    )  # fmt: skip
    each = iter([(p, job["lengths"][i][k] if job["lengths"] else job["most"])
                 for i, p in enumerate(prompts) for k in range(job["n"])])  # fmt: skip
    tokens = flying = 0
    with loaded.model.continuous_batching_context_manager(
        generation_config=generation, continuous_batching_config=config, block=True, timeout=5
    ) as manager:
        begun = time.perf_counter()
        while True:
            for prompt, most in itertools.islice(each, job["live"] - flying):
                manager.add_request(prompt, max_new_tokens=most)
                flying += 1
            if not flying:
                return tokens, time.perf_counter() - begun
            done = manager.get_result(timeout=5)
            if done is None and not manager.is_running():
                raise SystemExit("continuous batching stopped")
            if done is not None and done.is_finished():
                tokens += len(done.generated_tokens)
                flying -= 1


def default(folder: str, dtype: str) -> Any:
    """The model as transformers loads it, on the allocator as it comes; ``models.place`` sets it for the others too."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), AutoTokenizer.from_pretrained(folder)
    template = SimpleNamespace(stop_ids={tokenizer.eos_token_id})
    return SimpleNamespace(model=model.eval(), tokenizer=tokenizer, template=template)


def main() -> None:
    """Run and print."""
    from xwincli import models, settings

    who, folder, job = sys.argv[1], sys.argv[2], json.loads(Path(sys.argv[3]).read_text())
    out, sys.stdout = sys.stdout, sys.stderr
    if who == "generate-default":
        loaded = default(folder, job["dtype"])
    else:
        loaded = models.load_policy(folder, models.place(settings.Device(device="cpu", dtype=job["dtype"])))
        if who != "xwin":
            loaded.model.to(getattr(torch, job["dtype"]))
    prompts = job["prompts"]
    if "few" in job and "generate" in who:
        prompts, job["lengths"] = prompts[: job["few"]], job["lengths"][: job["few"]]
    way = {"xwin": by_xwin, "batching": by_batching}.get(who, by_generate)
    with torch.inference_mode():
        tokens, seconds = way(loaded, prompts, job)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"tokens": tokens, "seconds": seconds, "peak": memory, "responses": len(prompts) * job["n"]}
    print(json.dumps(found), file=out)


if __name__ == "__main__":
    main()
