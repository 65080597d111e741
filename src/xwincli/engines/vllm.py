"""vLLM in this process: the engine for bulk sampling on GPUs. Prompts go in as token ids of our own template.

Responses come as vLLM finishes them and new prompts join at once, so no batch waits for its longest row. Each response
has a seed of its own, from (seed, prompt id, index); vLLM keeps no promise that a batch of another composition gives
the same bits, so near-ties may fall otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from xwincli.chat import Template
from xwincli.console import warn
from xwincli.engines import Ask
from xwincli.errors import XwinError
from xwincli.records import Response
from xwincli.settings import Device, Sampling

AHEAD = 512  # responses that wait in vLLM's queue besides those it decodes


class Vllm:
    """A policy in vLLM.

    Args:
        model: folder or hub name.
        device: its ``dtype`` is vLLM's.
        rows: responses decoded together at most.

    Attributes:
        loaded: its template, which may be told arguments.
    """

    def __init__(self, model: str, device: Device, rows: int) -> None:
        try:
            import vllm
        except ImportError:
            raise XwinError("--engine vllm needs vLLM, which is not installed", "pip install 'xwincli[vllm]'") from None
        if (Path(model) / "adapter_config.json").is_file():
            hint = "make one folder of it: xwin convert --model ADAPTER --out FOLDER"
            raise XwinError(f"{model}: --engine vllm takes whole models, this is an adapter", hint)
        self.model, self.rows, self.version, self.dtype = model, rows, vllm.__version__, device.dtype
        self.loaded = Writer(model)
        llm = vllm.LLM(model=model, dtype=device.dtype, max_num_seqs=rows, enable_prefix_caching=True)
        self.engine, self.context = llm.llm_engine, int(llm.llm_engine.model_config.max_model_len)

    def facts(self) -> dict[str, str]:
        """See ``Engine``."""
        return {"engine": "vllm", "vllm": self.version, "dtype": self.dtype}

    def generate(
        self, asks: Iterable[Ask], sampling: Sampling, seed: int
    ) -> Iterator[tuple[str, list[Response] | XwinError]]:
        """See ``Engine``."""
        queue, open_, waiting, number = iter(asks), dict[str, Ask](), 0, 0
        more = True
        try:
            while more or open_:
                while more and waiting < self.rows + AHEAD:
                    ask = next(queue, None)
                    more = ask is not None
                    if ask is None:
                        break
                    try:
                        prompt = self._prompt(ask)
                    except XwinError as e:
                        yield ask.key, e
                        continue
                    name = str(number)
                    number += 1
                    open_[name] = ask
                    waiting += ask.n
                    self.engine.add_request(name, prompt, self._parameters(ask, sampling, seed))
                for out in self.engine.step():
                    if out.finished:
                        ask = open_.pop(out.request_id)
                        waiting -= ask.n
                        yield ask.key, [self._response(x, ask.first, sampling) for x in _ordered(out.outputs)]
        finally:
            if open_:
                self.engine.abort_request(list(open_))

    def _prompt(self, ask: Ask) -> dict[str, list[int]]:
        ids = self.loaded.template.prompt_ids(ask.messages)
        if len(ids) >= self.context:
            raise XwinError(f"a prompt of {len(ids)} tokens leaves no room in {self.model}'s context of {self.context}")
        return {"prompt_token_ids": ids}

    def _parameters(self, ask: Ask, sampling: Sampling, seed: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            n=ask.n,
            temperature=sampling.temperature,
            top_p=max(sampling.top_p, 1e-6),
            top_k=sampling.top_k or -1,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            max_tokens=sampling.max_tokens,
            stop=sampling.stop or None,
            detokenize=bool(sampling.stop),
            stop_token_ids=sorted(self.loaded.template.stop_ids) or None,
            seed=first_seed(seed, ask),
            logprobs=0,
        )

    def _response(self, out: Any, first: int, sampling: Sampling) -> Response:
        ids = list(out.token_ids)
        text = self.loaded.template.answer(ids)
        text = text[: min((at for s in sampling.stop if (at := text.find(s)) >= 0), default=len(text))]
        if out.finish_reason not in ("stop", "length"):
            warn(f"vLLM ended a response by {out.finish_reason!r}, which counts as cut off")
        finish = "stop" if out.finish_reason == "stop" else "length"
        logprob = None if out.cumulative_logprob is None else round(float(out.cumulative_logprob), 4)
        return Response(text=text, index=first + out.index, finish=finish, tokens=len(ids), logprob=logprob)


class Writer:
    """A model's tokenizer and template without its weights, which vLLM holds."""

    def __init__(self, model: str) -> None:
        from transformers import GenerationConfig

        from xwincli.models import load_tokenizer

        try:
            eos = GenerationConfig.from_pretrained(model).eos_token_id
        except OSError:  # a folder without one
            eos = None
        stops = eos if isinstance(eos, list) else [] if eos is None else [eos]
        self.template = Template(load_tokenizer(model), stops)


def _ordered(outputs: list[Any]) -> list[Any]:
    return sorted(outputs, key=lambda out: out.index)


def first_seed(seed: int, ask: Ask) -> int:
    """Of an ask's first response; vLLM counts on from it, so an index has one seed whoever asks for it."""
    text = hashlib.blake2b(f"{seed}:{ask.prompt_id}".encode(), digest_size=4).digest()
    return (int.from_bytes(text, "little") >> 2) + ask.first
